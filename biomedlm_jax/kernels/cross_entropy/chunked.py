"""Cross entropy a chunk of tokens at a time, gradients included, in jax.numpy. See `api`."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from biomedlm_jax.kernels.products import over_tokens

# Of the logits of a chunk. In million cycles of a v5e core, as XLA:TPU (libtpu 0.0.52) estimates
# them for 4096 tokens of the 2.7B shape in bfloat16, forward and backward, 1, 2, 4, 8 and 16 chunks
# cost 14.7, 14.8, 15.6, 20.7 and 34.2 with 32 MiB of scoped VMEM, and 16.8, 15.8, 15.9, 21.6 and
# 37.0 with the default of 16 MiB; the three products alone are 13.9. Each chunk but the first adds
# its table gradient to a float32 sum in memory, which also takes more of it than larger chunks do.
# These 4096 tokens are one chunk of 226 MiB.
CHUNK_BYTES = 2**28
TILE = 128  # tokens: no chunk ends within a tile of the matrix unit


class Settings(NamedTuple):
    """What of a loss is known at trace time; see `api.cross_entropy`."""

    vocab: int
    z_loss: float
    split: tuple[str, ...]
    rows: int


class Chunk(NamedTuple):
    hidden: Float[Array, "*C D"]
    labels: Int[Array, "*C"]
    weights: Float[Array, "*C"]


class Losses(NamedTuple):
    nats: Float[Array, "*C"]
    with_z: Float[Array, "*C"]  # nats + z_loss * Z^2


class Gradients(NamedTuple):
    """Of the sum of weights * with_z."""

    hidden: Float[Array, "*C D"]
    table: Float[Array, "V D"]


def rows_of_a_chunk(tokens: int, rows_of_table: int, dtype: jax.typing.DTypeLike) -> int:
    """As few chunks as CHUNK_BYTES allows, then all of one size."""
    most = max(CHUNK_BYTES // (rows_of_table * jnp.dtype(dtype).itemsize), 1)
    if tokens <= most:
        return tokens
    even = -(-tokens // -(-tokens // most))
    return -(-even // TILE) * TILE


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def weighted_sum(
    hidden: Float[Array, "N D"],
    table: Float[Array, "V D"],
    labels: Int[Array, " N"],
    weights: Float[Array, " N"],
    settings: Settings,
) -> tuple[Float[Array, ""], Float[Array, " N"]]:
    """(sum of weights * losses, nats of each label); only the sum has a gradient."""
    chunks = _cut(Chunk(hidden, labels, weights), settings.rows)
    losses = jax.lax.map(lambda chunk: _losses(chunk, table, settings)[0], chunks)
    nats, with_z = (_join(x, len(labels)) for x in losses)
    return (weights * with_z).sum(), nats


def _forward(
    hidden: Float[Array, "N D"],
    table: Float[Array, "V D"],
    labels: Int[Array, " N"],
    weights: Float[Array, " N"],
    settings: Settings,
) -> tuple[tuple[Array, Array], tuple[Gradients, Array]]:
    """The gradients, for a cotangent of 1, while the logits of a chunk are there."""
    chunks = _cut(Chunk(hidden, labels, weights), settings.rows)

    def alone(index: int, before: Array | None) -> tuple[Array, tuple[Losses, Array]]:
        # The barrier keeps the logits of two chunks from existing together.
        chunk, before = jax.lax.optimization_barrier((_at(chunks, index), before))
        to_table, part = _add(before, chunk, table, settings)
        return to_table, jax.tree.map(lambda x: x[None], part)

    # The first and the last chunk stand outside the loop: the sum of table gradients starts as the
    # first one, and is rounded to the table's dtype where the last is added, not in two more
    # passes over it.
    count = len(chunks.labels)
    to_table, part = alone(0, None)
    parts = [part]
    if count > 2:
        to_table, part = jax.lax.scan(
            lambda before, chunk: _add(before, chunk, table, settings),
            to_table,
            _at(chunks, slice(1, -1)),
        )
        parts.append(part)
    if count > 1:
        to_table, part = alone(count - 1, to_table)
        parts.append(part)
    losses, to_hidden = jax.tree.map(
        lambda *pieces: _join(jnp.concatenate(pieces), len(labels)), *parts
    )
    gradients = Gradients(to_hidden, to_table.astype(table.dtype))
    return ((weights * losses.with_z).sum(), losses.nats), (gradients, losses.with_z)


def _backward(
    settings: Settings, residuals: tuple[Gradients, Array], cotangents: tuple[Array, Array]
) -> tuple[Array, Array, None, Array]:
    (to_hidden, to_table), with_z = residuals
    cotangent, _ = cotangents  # 1, and nothing to compute, where the sum itself is made small

    def scaled(gradient: Array) -> Array:
        return (cotangent * gradient.astype(jnp.float32)).astype(gradient.dtype)

    return scaled(to_hidden), scaled(to_table), None, cotangent * with_z


weighted_sum.defvjp(_forward, _backward)


def _cut(tokens: Chunk, rows: int) -> Chunk:
    """Chunks of `rows` tokens along a new first axis; what fills up the last has weight 0."""
    count = -(-len(tokens.labels) // rows)

    def cut(x: Array) -> Array:
        filled = jnp.pad(x, [(0, count * rows - len(x))] + [(0, 0)] * (x.ndim - 1))
        return filled.reshape(count, rows, *x.shape[1:])

    return Chunk(*map(cut, tokens))


def _join(chunks: Array, tokens: int) -> Array:
    return chunks.reshape(-1, *chunks.shape[2:])[:tokens]


def _at(chunks: Chunk, index: int | slice) -> Chunk:
    return Chunk(*(x[index] for x in chunks))


def _add(
    before: Float[Array, "V D"] | None, chunk: Chunk, table: Float[Array, "V D"], settings: Settings
) -> tuple[Float[Array, "V D"], tuple[Losses, Float[Array, "C D"]]]:
    """(float32 gradient to the table, of this chunk and those before, (losses, to hidden))."""
    losses, gradients = _losses_and_gradients(chunk, table, settings)
    to_table = gradients.table if before is None else before + gradients.table
    return to_table, (losses, gradients.hidden)


def _losses(
    chunk: Chunk, table: Float[Array, "V D"], settings: Settings
) -> tuple[Losses, Float[Array, "C V"], Float[Array, " C"]]:
    """(losses, logits less the label's, Z)."""
    split = settings.split
    row, exists = _rows(chunk, table, settings)
    here = (row >= 0) & (row < table.shape[0])
    of_label = table[jnp.where(here, row, 0)].astype(jnp.float32)
    found = (chunk.hidden.astype(jnp.float32) * of_label).sum(-1)
    label_logit = jax.lax.psum(jnp.where(here, found, 0.0), split)

    # Kept in the dtype of the products, as the difference to the label's logit: what all logits
    # of a token share, which may be much larger than what tells them apart, is not rounded.
    logits = _product("cd,vd->cv", chunk.hidden, table)
    relative = jnp.where(exists, logits - label_logit[:, None], -jnp.inf).astype(table.dtype)

    shift, total = _sum_of_exponentials(relative)
    top = jax.lax.pmax(shift, split)
    nats = top + jnp.log(jax.lax.psum(total * jnp.exp(shift - top), split))
    z = nats + label_logit
    return Losses(nats, nats + settings.z_loss * z**2), relative, z


def _losses_and_gradients(
    chunk: Chunk, table: Float[Array, "V D"], settings: Settings
) -> tuple[Losses, Gradients]:
    """The gradient to the table is float32."""
    losses, relative, z = _losses(chunk, table, settings)
    row, _ = _rows(chunk, table, settings)
    p = jnp.exp(relative.astype(jnp.float32) - losses.nats[:, None])
    is_label = jnp.arange(table.shape[0]) == row[:, None]
    slope = p * (1 + 2 * settings.z_loss * z)[:, None] - is_label
    slope = (slope * chunk.weights[:, None]).astype(table.dtype)
    to_hidden = _product("cv,vd->cd", slope, table).astype(table.dtype)
    to_table = over_tokens(slope, chunk.hidden, precision=_precision(slope))
    return losses, Gradients(to_hidden, to_table)


def _product(axes: str, a: Array, b: Array) -> Float[Array, "..."]:
    """Float32."""
    return jnp.einsum(axes, a, b, precision=_precision(a), preferred_element_type=jnp.float32)


def _precision(operand: Array) -> jax.lax.Precision | None:
    """Operands in float32 keep their bits on every chip: the label's own logit, which is taken
    without a product, would else not be the one among all logits."""
    return jax.lax.Precision.HIGHEST if operand.dtype == jnp.float32 else None


def _rows(
    chunk: Chunk, table: Float[Array, "V D"], settings: Settings
) -> tuple[Int[Array, " C"], Bool[Array, " V"]]:
    """(each label's row of this device's part of the table, if it is there; rows that are no
    padding)."""
    held = table.shape[0]
    first = jax.lax.axis_index(settings.split) * held if settings.split else 0
    return chunk.labels - first, first + jnp.arange(held) < settings.vocab


def _sum_of_exponentials(relative: Float[Array, "C V"]) -> tuple[Float[Array, " C"], ...]:
    """(shift, sum of exp(relative - shift)) of each row, float32; `relative` is 0 at the label.

    The label's exponential is 1, so the whole sum can not vanish and needs no shift, unless some
    logit exceeds the label's by 88. XLA:TPU takes a sum that waits for no maximum as it writes
    the logits; a pass over them is 10 % of the loss.
    """

    def shifted() -> tuple[Float[Array, " C"], Float[Array, " C"]]:
        top = jnp.maximum(relative.max(-1).astype(jnp.float32), 0.0)
        return top, jnp.exp(relative.astype(jnp.float32) - top[:, None]).sum(-1)

    direct = jnp.exp(relative.astype(jnp.float32)).sum(-1)
    return jax.lax.cond(
        jnp.isfinite(direct).all(), lambda: (jnp.zeros_like(direct), direct), shifted
    )
