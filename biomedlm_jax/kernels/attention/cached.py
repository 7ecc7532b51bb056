"""Attention of the newest token of each row over the keys and values that are kept of it and of
the tokens before it: what generation does at every step, in plain jax.numpy.

It reads the cache once and does little with it, so memory decides its time on any machine, and
XLA's own code is as fast as that.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def attend(
    q: Float[Array, "B N H"],
    keys: Float[Array, "B N S H"],
    values: Float[Array, "B N S H"],
    *,
    scale: Float[Array, ""] | float,
    position: Int[Array, "B"],
) -> Float[Array, "B N H"]:
    """softmax(scale * q k^T) v over places 0 to `position` of each row; what the cache holds
    after them, it holds of nobody. Scores and softmax are float32, products in q's dtype."""
    scores_BNS = scale * jnp.einsum("bnh,bnsh->bns", q, keys, preferred_element_type=jnp.float32)
    there_BNS = jnp.arange(keys.shape[2]) <= position[:, None, None]
    weights_BNS = jax.nn.softmax(jnp.where(there_BNS, scores_BNS, -jnp.inf), axis=-1)
    return jnp.einsum("bns,bnsh->bnh", weights_BNS.astype(values.dtype), values)
