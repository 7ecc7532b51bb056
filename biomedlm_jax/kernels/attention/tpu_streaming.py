"""The TPU kernels for sequences whose keys and values do not fit: block by block from HBM.

A step of the grid is one block of queries against one block of keys of a column. Blocks above the
diagonal are no steps at all: the pairs (query block, key block) that compute are tables, which the
index maps read. Each sweep begins on the diagonal, in a body of its own that needs no former sums:
it alone pays for the causal mask, writes where the others add, and leaves a finite maximum.

Forward: a query block past the keys up to it, with an online softmax (Milakov and Gimelshein,
arXiv 1805.02867). Backward: a key block past the queries from it on, on transposed scores as in
`tpu_resident`; dk and dv of the block and dq of the whole column add up in float32 scratch. That
dq is what limits T. dq of a block is complete after its own key block has met the diagonal.

A body is cut into units that `tpu_tiles.interleave` overlaps; at the borders of a step nothing
overlaps, so blocks are large. Where T is no multiple of a block, the last block of queries has
bodies of its own, which read only rows that exist.

Formulas: Dao et al. 2022, FlashAttention, appendix B; logsumexp here is of base 2, of scale * s.
"""

import functools
import math
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int, Num

from biomedlm_jax.kernels.attention import block_sizes, keep
from biomedlm_jax.kernels.attention.block_sizes import Streaming
from biomedlm_jax.kernels.attention.tpu_tiles import (
    DEFAULT_VMEM,
    LANES,
    LOG2E,
    MASKED,
    NN,
    NT,
    TN,
    Head,
    Plan,
    at_or_before,
    dot,
    dropped,
    interleave,
    join,
    lane_tiles,
    row_max,
    scale_from,
    shared_inputs,
    where_kept,
    where_same_segment,
)
from biomedlm_jax.kernels.interpret import everywhere

MIB = 2**20
ROWS_IN_FLIGHT = 8  # tiles of 128 rows at the begin and the end of a sweep


def forward(
    plan: Plan[Streaming],
    interpret: bool | pltpu.InterpretParams,
    operands: tuple[Num[Array, "B T D"], ...],
    scale: Float[Array, ""],
    segment_ids: Int[Array, "B T"] | None,
    seeds: keep.HeadSeeds | None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B N 1 T"]]:
    """out, and lse: log2 of the sum of 2 ** (log2(e) * scale * s) over the keys of each query.

    operands: q, k, v, bfloat16 or float32; T and D = N * head_dim are multiples of 128.
    seeds: of dropout, uint32 [B, N]; None where plan.rate is 0.

    Raises:
      ValueError: T or D is no multiple of 128, or seeds and plan.rate disagree.
      NotImplementedError: T needs more VMEM than the TPU that is compiled for has.
    """
    q = operands[0]
    batch, length, width = q.shape
    block = plan.blocks.forward_block
    steps = [(query, key) for query in range(-(-length // block)) for key in range(query, -1, -1)]
    inputs = _inputs(plan, operands, scale, segment_ids, seeds, query_axis=0)
    outputs = {
        "out": jax.ShapeDtypeStruct(q.shape, q.dtype),
        "lse": jax.ShapeDtypeStruct((batch, width // plan.head_dim, 1, length), jnp.float32),
    }
    tile = (plan.heads, block, LANES)
    scratch = {name: pltpu.VMEM(tile, jnp.float32) for name in ("mixed", "total", "top")}
    if plan.rate:
        scratch["side"] = pltpu.VMEM(tile, jnp.int32)
    unit = plan.blocks.forward_rows * block * 4
    spill = plan.blocks.forward_in_flight * unit * (q.dtype.itemsize // 2)
    found = _call(_forward_kernel, plan, interpret, spill, steps, inputs, outputs, scratch)
    return found["out"], found["lse"]


def backward(
    plan: Plan[Streaming],
    interpret: bool | pltpu.InterpretParams,
    operands: tuple[Num[Array, "B T D"], ...],
    scale: Float[Array, ""],
    segment_ids: Int[Array, "B T"] | None,
    seeds: keep.HeadSeeds | None,
    out: Float[Array, "B T D"],
    lse: Float[Array, "B N 1 T"],
    dout: Float[Array, "B T D"],
) -> tuple[Num[Array, "B T D"], Num[Array, "B T D"], Num[Array, "B T D"]]:
    """dq, dk, dv. What is not a gradient is as in `forward`, which raises the same."""
    q = operands[0]
    length = q.shape[1]
    block = plan.blocks.backward_block
    blocks = -(-length // block)
    steps = [(query, key) for key in range(blocks) for query in range(key, blocks)]
    inputs = _inputs(plan, operands, scale, segment_ids, seeds, query_axis=1)
    inputs |= {"out": out, "lse": lse, "dout": dout}
    outputs = {name: jax.ShapeDtypeStruct(q.shape, q.dtype) for name in ("dq", "dk", "dv")}
    scratch = {name: pltpu.VMEM((block, LANES), jnp.float32) for name in ("dk_sum", "dv_sum")}
    scratch["dq_sum"] = pltpu.VMEM((blocks * block, LANES), jnp.float32)
    scratch["delta"] = pltpu.VMEM((plan.heads, 1, blocks * block), jnp.float32)
    if plan.rate:
        scratch["side"] = pltpu.VMEM((plan.heads, block, LANES), jnp.int32)
    unit = plan.blocks.backward_unit**2 * 4
    spill = 2 * plan.blocks.backward_in_flight * unit * (q.dtype.itemsize // 2)
    found = _call(_backward_kernel, plan, interpret, spill, steps, inputs, outputs, scratch)
    return found["dq"], found["dk"], found["dv"]


def _forward_kernel(
    plan: Plan[Streaming], length: int, scalars, query_of, key_of, inputs, outputs, scratch
):
    q, k, v, segments, bases = (inputs[name] for name in ("q", "k", "v", "segments", "bases"))
    mixed_sum, total, top = (scratch[name] for name in ("mixed", "total", "top"))
    block, dtype, scale = plan.blocks.forward_block, q.dtype, scale_from(scalars)
    query, key = query_of[pl.program_id(2)], key_of[pl.program_id(2)]
    heads = [Head(plan, i) for i in range(plan.heads)]

    def unit(head: Head, rows, on_diagonal: bool) -> Generator:
        """Some queries against the keys of the block that they see."""
        queries, at = head.alone(q[rows]), (head.within, rows)
        spans = [pl.Slice(0, rows.start), rows] if on_diagonal else [pl.Slice(0, block)]
        parts = [(c, dot(queries, k[c], NT)) for c in spans if c.size]
        yield
        if on_diagonal:
            c, s = parts.pop()
            parts.append((c, jnp.where(at_or_before((s.shape[0], s.shape[1]), 0), s, MASKED)))
        if segments is not None:
            column, line = segments
            parts = [(c, where_same_segment(column[rows], line[:, c], s, MASKED)) for c, s in parts]
        highest = jnp.broadcast_to(row_max([s for _, s in parts]) * scale, (rows.size, LANES))
        fade = None
        if not on_diagonal:
            before = top[at]
            highest = jnp.maximum(before, highest)
            fade = jnp.exp2(before - highest)
        weights = [(c, [jnp.exp2(s * scale - highest) for s in lane_tiles(x)]) for c, x in parts]
        sums = functools.reduce(jnp.add, [p for _, tiles in weights for p in tiles])
        weights = [(c, join(tiles, 1)) for c, tiles in weights]
        if plan.rate:
            column = scratch["side"][at]
            lines = [head.side(scalars, bases[1][:, c], 1) for c, _ in weights]
            kept = [dropped(column, line, 0, plan.rate) for line in lines]
            weights = [(c, where_kept(k, p)) for k, (c, p) in zip(kept, weights, strict=True)]
        weights = [(c, p.astype(dtype)) for c, p in weights]
        yield
        mixed = functools.reduce(jnp.add, [dot(p, v[c], NN) for c, p in weights[::-1]])
        yield
        if fade is not None:
            mixed, sums = mixed + fade * mixed_sum[at], sums + fade * total[at]
        mixed_sum[at], total[at], top[at] = mixed, sums, highest

    def body(size: int, on_diagonal: bool) -> None:
        if on_diagonal and plan.rate:
            for head in heads:
                scratch["side"][head.within] = head.side(scalars, bases[0][...], 0)
        starts = range(0, size, plan.blocks.forward_rows)
        rows = [pl.Slice(at, min(plan.blocks.forward_rows, size - at)) for at in starts]
        if on_diagonal:  # long rows and short ones in turn
            rows = [r for pair in zip(rows[::-1], rows, strict=True) for r in pair][: len(rows)]
        units = (unit(head, r, on_diagonal) for r in rows for head in heads)
        interleave(units, plan.blocks.forward_in_flight)

    def normalized(head: Head, rows) -> Generator:
        """A quotient takes eleven operations, since it might be of 0 or overflow; exp2 takes one,
        and log2 of the total, which is 1 at least, is wanted anyway."""
        at = head.within, rows
        logarithm = jnp.log2(jnp.broadcast_to(total[at].sum(1, keepdims=True), (rows.size, LANES)))
        yield
        mixed = mixed_sum[at] * jnp.exp2(-logarithm - math.log2(1 - plan.rate))
        outputs["out"][rows, head.lanes] = mixed[:, head.lanes].astype(dtype)
        outputs["lse"][head.within, :, rows] = equal_lanes_as_row(top[at] + logarithm)

    def finish() -> None:
        tiles = [pl.Slice(row, LANES) for row in range(0, block, LANES)]
        units = (normalized(head, rows) for rows in tiles for head in heads)
        interleave(units, ROWS_IN_FLIGHT)

    _bodies(body, length, block, query, key)
    pl.when(key == 0)(finish)


def _backward_kernel(
    plan: Plan[Streaming], length: int, scalars, query_of, key_of, inputs, outputs, scratch
):
    """1 / (1 - rate) is left out of the units: it is in delta and in the last scale of each sum."""
    names = ("q", "k", "v", "out", "lse", "dout", "segments", "bases")
    q, k, v, out, lse, dout, segments, bases = (inputs[name] for name in names)
    dq_sum, dk_sum, dv_sum, delta = (scratch[x] for x in ("dq_sum", "dk_sum", "dv_sum", "delta"))
    block, dtype, scale = plan.blocks.backward_block, q.dtype, scale_from(scalars)
    inverse = 1 / (1 - plan.rate)
    score_scale = scale * (inverse / LOG2E)
    query, key = query_of[pl.program_id(2)], key_of[pl.program_id(2)]
    heads = [Head(plan, i) for i in range(plan.heads)]

    def in_column(rows):
        """Rows of the query block as rows of the column."""
        return pl.Slice(pl.multiple_of(query * block + rows.start, LANES), rows.size)

    def started(rows) -> Generator:
        """Of queries that the first key block meets: their delta, and a sum of zeros."""
        both = dout[rows].astype(jnp.float32) * out[rows].astype(jnp.float32)
        yield
        for head in heads:
            mine = both[:, head.lanes].sum(1, keepdims=True) * (1 - plan.rate)
            mine = jnp.broadcast_to(mine, both.shape)
            delta[head.within, :, in_column(rows)] = equal_lanes_as_row(mine)
        dq_sum[in_column(rows)] = jnp.zeros((rows.size, LANES), jnp.float32)

    def start() -> None:
        units = (started(pl.Slice(row, LANES)) for row in range(0, block, LANES))
        interleave(units, ROWS_IN_FLIGHT)

    def unit(head: Head, keys, queries, on_diagonal: bool, fresh: set) -> Generator:
        my_q, my_dout = head.alone(q[queries]), head.alone(dout[queries])
        s, dp = dot(k[keys], my_q, NT), dot(v[keys], my_dout, NT)
        yield
        p = jnp.exp2(s * scale - lse[head.within, :, queries])
        if segments is not None:
            column, line = segments
            p = where_same_segment(column[keys], line[:, queries], p, 0.0)
        if on_diagonal and keys.start == queries.start:
            square = at_or_before((keys.size, keys.size), 1)
            square = jnp.where(square, p[:, : keys.size], 0.0)
            p = join([square, p[:, keys.size :]][: 1 + (queries.size > keys.size)], 1)
        used = p
        if plan.rate:
            line = head.side(scalars, bases[1][:, queries], 0)
            kept = dropped(scratch["side"][head.within, keys], line, 1, plan.rate)
            used, dp = where_kept(kept, p), where_kept(kept, dp)
        ds = (p * (dp - delta[head.within, :, in_column(queries)])).astype(dtype)
        used = used.astype(dtype)
        yield
        dv_part, dk_part = dot(used, my_dout, NN), dot(ds, my_q, NN)
        for at in range(0, keys.size, LANES):
            rows, tile = pl.Slice(keys.start + at, LANES), slice(at, at + LANES)
            for total, part in ((dv_sum, dv_part), (dk_sum, dk_part)):
                total[rows] = part[tile] if rows.start in fresh else total[rows] + part[tile]
            fresh.discard(rows.start)
        dq_sum[in_column(queries)] += dot(ds, head.alone(k[keys]), TN)

    def body(size: int, on_diagonal: bool) -> None:
        if on_diagonal and plan.rate:
            for head in heads:
                scratch["side"][head.within] = head.side(scalars, bases[0][...], 1)
        keys = size if on_diagonal else block
        fresh = set(range(0, keys, LANES)) if on_diagonal else set()  # rows with no sum as yet
        spans = _spans(keys, size, plan.blocks.backward_unit, on_diagonal)
        units = (unit(head, *span, on_diagonal, fresh) for span in spans for head in heads)
        interleave(units, plan.blocks.backward_in_flight)
        if on_diagonal:
            found = dq_sum[in_column(pl.Slice(0, size))] * score_scale
            outputs["dq"][:size] = found.astype(dtype)

    def finish() -> None:
        outputs["dk"][...] = (dk_sum[...] * score_scale).astype(dtype)
        outputs["dv"][...] = (dv_sum[...] * inverse).astype(dtype)

    pl.when(key == 0)(start)
    _bodies(body, length, block, query, key)
    pl.when(query == -(-length // block) - 1)(finish)


def equal_lanes_as_row(x: Float[Array, "128 128"]) -> Float[Array, "1 128"]:
    """`as_row` of an array whose lanes are equal, by the diagonal and not by a transpose."""
    row, column = (lax.broadcasted_iota(jnp.int32, x.shape, axis) for axis in (0, 1))
    return jnp.where(row == column, x, 0.0).sum(0, keepdims=True)


def _spans(
    keys: int, queries: int, unit: int, on_diagonal: bool
) -> Iterator[tuple[pl.Slice, pl.Slice]]:
    """(keys, queries) of the units of a step; on the diagonal, squares in pieces of 128 keys."""
    for start in range(0, keys, unit):
        size, seen = min(unit, keys - start), 0
        if on_diagonal:
            seen = start + size
            for at in range(start, seen, LANES):
                yield pl.Slice(at, LANES), pl.Slice(at, seen - at)
        for at in range(seen, queries, unit):
            yield pl.Slice(start, size), pl.Slice(at, min(unit, queries - at))


def _bodies(body: Callable[[int, bool], None], length: int, block: int, query, key) -> None:
    """Emits body(queries that exist, on the diagonal) for each kind of step."""
    last = -(-length // block) - 1
    rest = length - last * block
    sizes = [(block, None)] if rest == block else [(block, query < last), (rest, query == last)]
    for size, applies in sizes[-1:] if last == 0 else sizes:
        for on_diagonal in (True, False)[: 1 + (last > 0)]:
            where = query == key if on_diagonal else query > key
            where = where if applies is None else where & applies
            pl.when(where)(functools.partial(body, size, on_diagonal))


def _inputs(
    plan: Plan[Streaming], operands, scale, segment_ids, seeds, *, query_axis: int
) -> dict[str, Any]:
    """What both kernels read, checked."""
    _, length, width = operands[0].shape
    if length % LANES or width % LANES:
        raise ValueError(f"T {length} and N * H {width} are not both multiples of {LANES}")
    if (seeds is not None) != (plan.rate > 0):
        found = "no seeds" if seeds is None else "seeds"
        raise ValueError(f"dropout has rate {plan.rate} and {found}")
    shared = shared_inputs(scale, segment_ids, seeds, length, query_axis)
    return dict(zip("qkv", operands, strict=True)) | shared


def _specs(plan: Plan[Streaming], block: int, *, query_axis: int) -> dict[str, Any]:
    """By name. An index map is called with row of the batch, column, step, scalars, and tables of
    the query block and the key block of each step."""
    query, key = 0, 1
    down, along = (query, key) if query_axis == 0 else (key, query)

    def rows(of: int, to: Callable = lambda b, c, i: (b, i, c)) -> pl.BlockSpec:
        shape = (None, block, LANES)
        return pl.BlockSpec(shape, lambda b, c, s, _, *tables: to(b, c, tables[of][s]))

    def once(b, c, s, _, queries, keys):
        """The first key block makes delta; from then on `out` stays at the last block it was at."""
        return b, jnp.where(keys[s] == 0, queries[s], queries[pl.num_programs(2) - 1]), c

    line = pl.BlockSpec((None, 1, block), lambda b, c, s, _, *tables: (b, 0, tables[along][s]))
    base = pl.BlockSpec((block, LANES), lambda b, c, s, _, *tables: (tables[down][s], 0))
    base_line = pl.BlockSpec((1, block), lambda b, c, s, _, *tables: (0, tables[along][s]))
    lse = pl.BlockSpec(
        (None, plan.heads, 1, block), lambda b, c, s, _, *at: (b, c, 0, at[query][s])
    )
    return {
        **{"q": rows(query), "k": rows(key), "v": rows(key), "dout": rows(query), "lse": lse},
        "segments": (rows(down, lambda b, c, i: (b, i, 0)), line),
        "bases": (base, base_line),
        "out": pl.BlockSpec((None, block, LANES), once) if query_axis else rows(query),
        **dict.fromkeys(("dq", "dk", "dv"), rows(key)),
    }


def _call(kernel, plan: Plan[Streaming], interpret, spill: int, steps, inputs, outputs, scratch):
    """Results by name. steps: (query block, key block) of each; spill: bytes of VMEM that the units
    in flight may take."""
    batch, length, width = inputs["q"].shape
    scalars = inputs.pop("scalars")
    forwards = kernel is _forward_kernel
    block = plan.blocks.forward_block if forwards else plan.blocks.backward_block
    specs = _specs(plan, block, query_axis=0 if forwards else 1)
    in_specs = {name: None if x is None else specs[name] for name, x in inputs.items()}
    out_specs = {name: specs[name] for name in outputs}
    windows = jax.tree.map(_window_bytes, (inputs, outputs), (in_specs, out_specs))
    own = sum(math.prod(x.shape) * x.dtype.itemsize for x in scratch.values())
    needed = sum(jax.tree.leaves(windows)) + own + spill + MIB
    _check_vmem(needed, length, block, 0 if forwards else 4 * block * (LANES + plan.heads))
    tables = [jnp.asarray(np.array(table, np.int32)) for table in zip(*steps, strict=True)]

    def run(inputs: tuple):
        varying = jax.typeof(inputs[-1]["q"]).manual_axis_type
        return pl.pallas_call(
            functools.partial(kernel, plan, length),
            name=f"attention_streaming{kernel.__name__.removesuffix('_kernel')}",
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=3,
                grid=(batch, width // LANES, len(steps)),
                in_specs=[in_specs],
                out_specs=out_specs,
                scratch_shapes=[scratch],
            ),
            out_shape=jax.tree.map(lambda x: x.update(manual_axis_type=varying), outputs),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"),
                vmem_limit_bytes=max(needed, DEFAULT_VMEM),
            ),
            interpret=interpret,
        )(*inputs)

    inputs = scalars, *tables, inputs
    return everywhere(run, inputs) if interpret else run(inputs)


def _window_bytes(x, spec: pl.BlockSpec) -> int:
    """Of the two blocks of an operand that are in VMEM."""
    return 2 * math.prod(n for n in spec.block_shape or () if isinstance(n, int)) * x.dtype.itemsize


def _check_vmem(needed: int, length: int, block: int, bytes_per_block: int) -> None:
    """Raises NotImplementedError where the TPU that is traced for has less than `needed` bytes.

    bytes_per_block: what another block of T adds.
    """
    if not pltpu.is_tpu_device():
        return  # traced for nothing in particular, or to be interpreted
    excess = needed - pltpu.get_tpu_info().vmem_capacity_bytes
    if excess <= 0:
        return
    longest = (-(-length // block) + -excess // bytes_per_block) * block if bytes_per_block else 0
    advice = f"T can be {longest} at most" if longest > 0 else "smaller blocks would need less"
    raise NotImplementedError(
        f"T {length} in blocks of {block} needs {needed / MIB:.1f} MiB of VMEM,"
        f" {excess / MIB:.1f} more than {block_sizes.device()[1]} has; {advice}"
    )
