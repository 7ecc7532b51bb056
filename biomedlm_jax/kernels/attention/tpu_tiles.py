"""The pieces that the TPU kernels are made of: products, masks, and the order they are emitted in.

Names of shapes: T positions of one row of the batch; a *column* is 128 lanes of [B, T, N * H], one
head of 128 or several smaller ones side by side.
"""

import dataclasses
import functools
from collections.abc import Generator, Iterable
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32, Num

from biomedlm_jax.kernels.attention import keep
from biomedlm_jax.kernels.attention.block_sizes import Resident, Streaming

LANES, SUBLANES = 128, 8
LOG2E = 1.4426950408889634
DEFAULT_VMEM = 16 * 2**20  # bytes that a kernel may take unless it asks for more
MASKED = -1e30  # times any scale that api.py lets pass it is far below scores; exp2 of it is 0
NT, NN, TN = [(dims, ((), ())) for dims in (((1,), (1,)), ((1,), (0,)), ((0,), (0,)))]

Blocks = TypeVar("Blocks", Resident, Streaming)


@dataclasses.dataclass(frozen=True)
class Plan(Generic[Blocks]):
    """What a kernel is built for."""

    head_dim: int
    rate: float  # of dropout
    blocks: Blocks

    @property
    def heads(self) -> int:
        """Of one column."""
        return LANES // self.head_dim


class Head:
    """One head of the column that a step of the grid works on.

    Where a column holds several, a product over all 128 lanes is kept to this head's by setting the
    other lanes of one operand to zero, and of a result only this head's lanes count. The matrix
    unit takes as long for 64 lanes as for 128, and no lane has to move.
    """

    def __init__(self, plan: Plan, within: int):
        first = (pl.program_id(0) * pl.num_programs(1) + pl.program_id(1)) * plan.heads
        self.plan, self.within, self.number = plan, within, first + within
        self.lanes = slice(within * plan.head_dim, (within + 1) * plan.head_dim)

    def alone(self, x: Num[Array, "R 128"]) -> Num[Array, "R 128"]:
        return x if self.plan.heads == 1 else only_lanes(x, self.lanes)

    def side(self, scalars, base: Int32[Array, "..."], axis: int) -> Int32[Array, "..."]:
        """What dropout knows of queries (axis 0) or of keys (axis 1), from their bases.

        scalars: int32 [1 + 2 * heads], the scale, then (own_query, own_key) of each head of the
          batch.
        """
        mine, other = (scalars[1 + 2 * self.number + which] for which in (axis, 1 - axis))
        return keep.side(base, mine, other)


def dot(a: jax.Array, b: jax.Array, contract: tuple) -> Float[Array, "M N"]:
    """Float32 product: NT is a b^T, NN a b, TN a^T b. Float32 operands keep all their bits."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, contract, precision=precision, preferred_element_type=jnp.float32)


def join(parts: list[jax.Array], axis: int) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def lane_tiles(x: jax.Array) -> list[jax.Array]:
    """[R, n * 128] as n of [R, 128]."""
    return [x[:, at : at + LANES] for at in range(0, x.shape[1], LANES)]


def interleave(units: Iterable[Generator], in_flight: int) -> None:
    """Runs generators a stage at a time, `in_flight` of them side by side.

    Mosaic schedules close to the order of the source. A unit of work (scores, softmax, products)
    in plain order leaves the matrix unit idle during its softmax; with the scores of the next units
    emitted before that, the same arithmetic takes 10 to 25 % fewer cycles.
    """
    waiting = iter(units)
    live: list[Generator] = []
    while True:
        if len(live) < in_flight and (unit := next(waiting, None)) is not None:
            live.append(unit)
        if not live:
            return
        for unit in live[::-1]:
            try:
                next(unit)
            except StopIteration:
                live.remove(unit)


def at_or_before(shape: tuple[int, ...], query_axis: int) -> jax.Array:
    """Which keys a query sees in a square on the diagonal, bool [*shape]."""
    query = lax.broadcasted_iota(jnp.int32, shape, query_axis)
    return query >= lax.broadcasted_iota(jnp.int32, shape, 1 - query_axis)


def where_same_segment(
    column: Int32[Array, "R 128"], row: Int32[Array, "1 C"], x: Float[Array, "R C"], otherwise
) -> Float[Array, "R C"]:
    """x where row r and column c are of one segment. `column` comes with its lanes equal: one lane
    of it would have to be broadcast at every use."""
    tiles = zip(lane_tiles(row), lane_tiles(x), strict=True)
    return join([jnp.where(column == r, tile, otherwise) for r, tile in tiles], 1)


def dropped(
    column: Int32[Array, "R 128"], row: Int32[Array, "1 C"], query_axis: int, rate: float
) -> list:
    """Which weights are kept, a list of bool [R, 128] for the tiles of [R, C].

    column, row: `keep.side` of queries and keys, or of keys and queries where `query_axis` is 1.
    """
    if query_axis == 0:
        return [keep.kept(column, r, rate) for r in lane_tiles(row)]
    return [keep.kept(r, column, rate) for r in lane_tiles(row)]


def where_kept(kept: list, x: Float[Array, "R C"]) -> Float[Array, "R C"]:
    return join([jnp.where(m, t, 0.0) for m, t in zip(kept, lane_tiles(x), strict=True)], 1)


def only_lanes(x: Num[Array, "R 128"], lanes: slice) -> Num[Array, "R 128"]:
    """x with all other lanes set to 0."""
    lane = lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    mask = jnp.where((lane >= lanes.start) & (lane < lanes.stop), jnp.int32(-1), jnp.int32(0))
    return pltpu.bitcast(pltpu.bitcast(x, jnp.int32) & mask, x.dtype)


def row_sums(x: Float[Array, "R C"]) -> Float[Array, "R 1"]:
    return functools.reduce(jnp.add, lane_tiles(x)).sum(1, keepdims=True)


def row_max(parts: list[jax.Array]) -> Float[Array, "R 1"]:
    tiles = [tile for x in parts for tile in lane_tiles(x)]
    return functools.reduce(jnp.maximum, tiles).max(1, keepdims=True)


def as_row(column: Float[Array, "128 1"]) -> Float[Array, "1 128"]:
    return jnp.transpose(jnp.broadcast_to(column, (LANES, LANES)))[:1]


def scale_from(scalars) -> Float[Array, ""]:
    """The softmax scale times log2(e), which travels as bits before the seeds of the heads."""
    return lax.bitcast_convert_type(scalars[0], jnp.float32)


def shared_inputs(scale, segment_ids, seeds, length: int, query_axis: int) -> dict:
    """Operands that any kernel reads besides q, k and v: "scalars", "segments", "bases".

    The last two are pairs, down the sublanes in every lane and along the lanes; `query_axis` says
    which of them are the queries. None where there are no segments, no dropout.
    """

    def pair(down, along):
        return jnp.broadcast_to(down[..., None], (*down.shape, LANES)), along[..., None, :]

    scalars = lax.bitcast_convert_type(scale * LOG2E, jnp.int32).reshape(1)
    segments = bases = None
    if segment_ids is not None:
        segments = pair(segment_ids, segment_ids)
    if seeds is not None:
        scalars = jnp.concatenate([scalars, jnp.stack(keep.own(seeds), -1).reshape(-1)])
        bases = pair(*keep.bases(length)[:: 1 if query_axis == 0 else -1])
    return {"scalars": scalars, "segments": segments, "bases": bases}
