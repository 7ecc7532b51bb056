"""The layers a GPT-2 is made of, as one device computes them under `shard_map`.

Parameters are stored in pieces, float32 or already in the dtype of their use; `in_use` brings one
together where it is used, and the product runs in the dtype of its input.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from biomedlm_jax.kernels.products import times_kernel, times_turned
from biomedlm_jax.kernels.varying import axes_of, marked
from biomedlm_jax.layout import IN_USE, in_use, parameter


class Linear(nnx.Module):
    """y = x kernel + bias; `axes` are the letters of input and output, such as "df".

    turned: the kernel is stored as [Out, In], which is how products of few rows want it on CPU,
    and a chip does not mind.
    alpha: with sizes["r"], the rank, y = x kernel + alpha / rank * (x a) b + bias: an adapter
      (LoRA, arXiv 2106.09685), which begins as nothing, for b does.
    """

    def __init__(
        self,
        axes: str,
        sizes: dict[str, int],
        *,
        std: float,
        rngs: nnx.Rngs,
        turned: bool = False,
        alpha: float = 0.0,
    ):
        shape = [sizes[letter] for letter in axes]
        kernel = std * jax.random.normal(rngs.params(), shape)
        self.kernel = parameter(axes[::-1], kernel.T) if turned else parameter(axes, kernel)
        self.bias = parameter(axes[1], jnp.zeros(shape[1]))
        self.input, self.turned, self.counts = axes[0], turned, 0.0
        if alpha:
            rank, bound = sizes["r"], shape[0] ** -0.5  # PEFT's: kaiming_uniform_ with a = sqrt(5)
            a = jax.random.uniform(rngs.params(), (shape[0], rank), minval=-bound, maxval=bound)
            self.a = parameter(axes[0] + "r", a)
            self.b = parameter("r" + axes[1], jnp.zeros((rank, shape[1])))
            self.counts = alpha / rank

    def gathered(self, dtype: jax.typing.DTypeLike) -> Array:
        """The kernel, brought together for one use."""
        return in_use(self.kernel, dtype)

    def product(
        self, x: Float[Array, "B T In"], kernel: Array | None = None
    ) -> Float[Array, "B T Out"]:
        """Without the bias. kernel: `gathered`, where the caller has it."""
        kernel = self.gathered(x.dtype) if kernel is None else kernel
        if self.turned:
            rows = x.reshape(-1, x.shape[2])
            y = times_turned(rows, kernel, x.dtype).reshape(*x.shape[:2], -1)
        else:
            y = times_kernel(x, kernel)
        if self.counts:
            low = times_kernel(x, in_use(self.a, x.dtype))
            y += times_kernel(low, in_use(self.b, x.dtype)) * jnp.asarray(self.counts, x.dtype)
        if summed := IN_USE.get(self.input):
            y = jax.lax.psum(y, summed)  # each device had only its part of the input's columns
        return y

    def __call__(
        self, x: Float[Array, "B T In"], kernel: Array | None = None
    ) -> Float[Array, "B T Out"]:
        return self.product(x, kernel) + in_use(self.bias, x.dtype)


class Head(nnx.Module):
    """Float32 scores of classes, of a row's last token."""

    def __init__(self, sizes: dict[str, int], *, bias: bool, std: float, rngs: nnx.Rngs):
        shape = (sizes["d"], sizes["c"])
        self.kernel = parameter("dc", std * jax.random.normal(rngs.params(), shape))
        self.has_bias = bias
        if bias:
            self.bias = parameter("c", jnp.zeros(shape[1]))

    def __call__(self, hidden: Float[Array, "B S D"], ends: Int[Array, "B"]) -> Float[Array, "B C"]:
        """hidden: at this device's S of the T positions. ends: where a row's last token stands."""
        (split,) = IN_USE["s"]
        place = ends - jax.lax.axis_index(split) * hidden.shape[1]
        here = (place >= 0) & (place < hidden.shape[1])
        place = jnp.where(here, place, 0)[:, None, None]
        last = jnp.take_along_axis(hidden, place, axis=1)[:, 0].astype(jnp.float32)
        last = jax.lax.psum(jnp.where(here[:, None], last, 0.0), split)
        scores = last @ in_use(self.kernel, jnp.float32)
        return scores + in_use(self.bias, jnp.float32) if self.has_bias else scores


class Statistics(NamedTuple):
    """Of the last axis, float32."""

    mean: Float[Array, "B T"]
    rstd: Float[Array, "B T"]  # 1 / sqrt(variance + epsilon)


class LayerNorm(nnx.Module):
    """Standardises the last axis in float32, then scales and shifts it."""

    def __init__(self, width: int, *, epsilon: float):
        self.scale = parameter("d", jnp.ones(width))
        self.bias = parameter("d", jnp.zeros(width))
        self.epsilon = epsilon

    def __call__(
        self, x: Float[Array, "B T D"], statistics: Statistics | None = None
    ) -> Float[Array, "B T D"]:
        """statistics: those of x, where the caller has them."""
        mean, rstd = self.statistics(x) if statistics is None else statistics
        y = standardised(x, mean, rstd)
        return (y * in_use(self.scale, y.dtype) + in_use(self.bias, y.dtype)).astype(x.dtype)

    def statistics(self, x: Float[Array, "B T D"]) -> Statistics:
        """E[x^2] - E[x]^2 is one pass where E[(x - E[x])^2] is two, and loses digits where the mean
        is large beside the deviation. In bfloat16 the rounding of x has lost more by then: it moves
        each x by up to 2^-9 of it, a float32 sum by 2^-24."""
        x32 = x.astype(jnp.float32)
        mean = x32.mean(-1)
        if x.dtype == jnp.bfloat16:
            variance = jnp.maximum(jnp.square(x32).mean(-1) - jnp.square(mean), 0.0)
        else:
            variance = jnp.square(x32 - mean[..., None]).mean(-1)
        return Statistics(mean, jax.lax.rsqrt(variance + self.epsilon))


@jax.custom_vjp
def standardised(
    x: Float[Array, "B T D"], mean: Float[Array, "B T"], rstd: Float[Array, "B T"]
) -> Float[Array, "B T D"]:
    """y = (x - mean) rstd, float32, of x and its own statistics.

    With g the gradient of y, that of x is rstd (g - E[g] - y E[g y]), means over D. What x changes
    in mean and rstd is in it, so those two have none: the chain rule with d mean / dx = 1 / D and
    d rstd / dx = -rstd^2 y / D (LayerNorm: Ba et al., arXiv 1607.06450).
    """
    return (x.astype(jnp.float32) - mean[..., None]) * rstd[..., None]


def _standardised_forward(x: Array, mean: Array, rstd: Array) -> tuple[Array, tuple]:
    return standardised(x, mean, rstd), (x, mean, rstd)


def _standardised_backward(kept: tuple, g: Float[Array, "B T D"]) -> tuple:
    x, mean, rstd = kept
    y = standardised(x, mean, rstd)
    along, spread = g.mean(-1, keepdims=True), (g * y).mean(-1, keepdims=True)
    dx = rstd[..., None] * (g - along - y * spread)
    return dx.astype(x.dtype), jnp.zeros_like(mean), jnp.zeros_like(rstd)


standardised.defvjp(_standardised_forward, _standardised_backward)


class Embedding(nnx.Module):
    """The token table; rows from `vocab` on are padding, zero at the start and for ever."""

    def __init__(self, sizes: dict[str, int], *, vocab: int, std: float, rngs: nnx.Rngs):
        shape = (sizes["v"], sizes["d"])
        exists = jnp.arange(shape[0])[:, None] < vocab
        table = jnp.where(exists, std * jax.random.normal(rngs.params(), shape), 0.0)
        self.table = parameter("vd", table)

    def gathered(self, dtype: jax.typing.DTypeLike) -> Float[Array, "V D"]:
        """The rows that this device uses, brought together: once a step, for both ends of the
        model."""
        return in_use(self.table, dtype)

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Float32 products of x with the rows of the table that this device holds."""
        table = self.gathered(x.dtype)
        return jnp.einsum("btd,vd->btv", x, table, preferred_element_type=jnp.float32)


def rows_of(table: Float[Array, "V D"], tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Of the embedding, from the part of the table that this device holds of it."""
    row = tokens - first_row(table.shape[0])
    here = (row >= 0) & (row < table.shape[0])
    row = jnp.where(here, row, 0)
    found = jnp.where(here[..., None], _taken(*marked((table, row), axes_of((table, row)))), 0)
    return jax.lax.psum(found, IN_USE["v"])


@jax.custom_vjp
def _taken(table: Float[Array, "V D"], rows: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Its gradient, which for a frequent token has many terms, is summed in float32."""
    return table[rows]


def _taken_forward(table: Array, rows: Array) -> tuple[Array, tuple]:
    return table[rows], (table, rows)


def _taken_backward(kept: tuple, slope: Float[Array, "B T D"]) -> tuple[Array, None]:
    table, rows = kept
    zeros = marked(jnp.zeros(table.shape, jnp.float32), axes_of((table, slope)))
    return zeros.at[rows].add(slope.astype(jnp.float32)).astype(table.dtype), None


_taken.defvjp(_taken_forward, _taken_backward)


def first_row(rows: int) -> Int[Array, ""]:
    """The first token of the `rows` that this device holds of the table."""
    return jax.lax.axis_index(IN_USE["v"]) * rows
