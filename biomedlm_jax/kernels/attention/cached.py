"""Attention of the newest token of each row over the keys and values that are kept of it and of
the tokens before it: what generation does at every step, in plain jax.numpy.

It reads the cache once and does little with it, so memory decides its time on any machine, and
XLA's own code is as fast as that.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def attend(
    q: Float[Array, "M H"],
    keys: Float[Array, "M S H"],
    values: Float[Array, "M S H"],
    *,
    scale: Float[Array, ""] | float,
    position: Int[Array, "M"],
) -> Float[Array, "M H"]:
    """softmax(scale * q k^T) v over places 0 to `position` of each row; what the cache holds
    after them is nobody's. Scores and softmax are float32, weights are rounded to q's dtype; keys
    and values may be kept in a wider one.

    Rows and heads are one axis, M: where there is one row, XLA:CPU would drop its axis, and copy
    the cache for it.
    """
    products_MS = jnp.einsum(
        "mh,msh->ms", q.astype(keys.dtype), keys, preferred_element_type=jnp.float32
    )
    there_MS = jnp.arange(keys.shape[1]) <= position[:, None]
    weights_MS = jax.nn.softmax(jnp.where(there_MS, scale * products_MS, -jnp.inf), axis=-1)
    weights_MS = weights_MS.astype(q.dtype).astype(values.dtype)
    return jnp.einsum("ms,msh->mh", weights_MS, values).astype(q.dtype)
