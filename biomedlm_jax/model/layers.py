"""The three layers a GPT-2 is made of, as one device computes them under `shard_map`.

Parameters are float32 and stored in pieces; `in_use` brings one together where it is used, and
the product runs in the dtype of its input.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from biomedlm_jax.kernels.products import times_kernel, times_turned
from biomedlm_jax.layout import IN_USE, in_use, parameter


class Linear(nnx.Module):
    """y = x kernel + bias; `axes` are the letters of input and output, such as "df".

    turned: the kernel is stored as [Out, In], which is how products of few rows want it on CPU,
    and a chip does not mind.
    """

    def __init__(
        self,
        axes: str,
        sizes: dict[str, int],
        *,
        std: float,
        rngs: nnx.Rngs,
        turned: bool = False,
    ):
        shape = [sizes[letter] for letter in axes]
        kernel = std * jax.random.normal(rngs.params(), shape)
        self.kernel = parameter(axes[::-1], kernel.T) if turned else parameter(axes, kernel)
        self.bias = parameter(axes[1], jnp.zeros(shape[1]))
        self.input, self.turned = axes[0], turned

    def product(self, x: Float[Array, "B T In"]) -> Float[Array, "B T Out"]:
        """Without the bias."""
        kernel = in_use(self.kernel, x.dtype)
        if self.turned:
            rows = x.reshape(-1, x.shape[2])
            y = times_turned(rows, kernel, x.dtype).reshape(*x.shape[:2], -1)
        else:
            y = times_kernel(x, kernel)
        if summed := IN_USE.get(self.input):
            y = jax.lax.psum(y, summed)  # each device had only its part of the input's columns
        return y

    def __call__(self, x: Float[Array, "B T In"]) -> Float[Array, "B T Out"]:
        return self.product(x) + in_use(self.bias, x.dtype)


class LayerNorm(nnx.Module):
    """Standardises the last axis in float32, then scales and shifts it."""

    def __init__(self, width: int, *, epsilon: float):
        self.scale = parameter("d", jnp.ones(width))
        self.bias = parameter("d", jnp.zeros(width))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)  # first: E[x^2] - E[x]^2 would cancel
        variance = jnp.square(centred).mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (y * in_use(self.scale, y.dtype) + in_use(self.bias, y.dtype)).astype(x.dtype)


class Embedding(nnx.Module):
    """The token table; rows from `vocab` on are padding, zero at the start and for ever."""

    def __init__(self, sizes: dict[str, int], *, vocab: int, std: float, rngs: nnx.Rngs):
        shape = (sizes["v"], sizes["d"])
        exists = jnp.arange(shape[0])[:, None] < vocab
        table = jnp.where(exists, std * jax.random.normal(rngs.params(), shape), 0.0)
        self.table = parameter("vd", table)

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Float32, so that the gradient of a frequent token is summed in float32."""
        table = in_use(self.table, jnp.float32)
        row = tokens - first_row(table.shape[0])
        here = (row >= 0) & (row < table.shape[0])
        found = jnp.where(here[..., None], table[jnp.where(here, row, 0)], 0.0)
        return jax.lax.psum(found, IN_USE["v"])

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Float32 products of x with the rows of the table that this device holds."""
        table = in_use(self.table, x.dtype)
        return jnp.einsum("btd,vd->btv", x, table, preferred_element_type=jnp.float32)


def first_row(rows: int) -> Int[Array, ""]:
    """The first token of the `rows` that this device holds of the table."""
    return jax.lax.axis_index(IN_USE["v"]) * rows
