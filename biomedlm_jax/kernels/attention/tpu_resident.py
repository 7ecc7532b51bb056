"""The TPU kernels for sequences whose keys and values fit in VMEM: T up to 2048, unrolled.

One step of the grid is one column of one row of the batch, with all its keys at hand. So a row of
scores has its exact maximum at once: no online softmax, no first and last pass, and what lies above
the diagonal is never emitted. The work is cut into units that `tpu_tiles.interleave` overlaps.

The backward pass works on transposed scores s^T = k q^T. Then dv = p^T do and dk = ds^T q need no
transpose, and logsumexp and delta are rows that broadcast down the sublanes for nothing.

Formulas: Dao et al. 2022, FlashAttention, appendix B; logsumexp here is of base 2, of scale * s.
"""

import functools
from collections.abc import Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from biomedlm_jax.kernels.attention.block_sizes import Resident
from biomedlm_jax.kernels.attention.tpu_tiles import (
    DEFAULT_VMEM,
    LANES,
    LOG2E,
    MASKED,
    NN,
    NT,
    SUBLANES,
    TN,
    Head,
    Plan,
    as_row,
    at_or_before,
    dot,
    dropped,
    interleave,
    join,
    row_max,
    row_sums,
    scale_from,
    shared_inputs,
    where_kept,
    where_same_segment,
)
from biomedlm_jax.kernels.interpret import everywhere

# Code grows with T squared and with the heads of a column: at T 2048 the backward kernel has 21,000
# bundles with one head, 47,000 with two, and at T 4096 76,000, which take minutes to compile.
LONGEST, LONGEST_COLUMN = 2048, 4096


class Stack(NamedTuple):
    """Arrays of all layers, and which layer is meant. The kernels read and write it where it lies:
    to cut a layer out of a stack is to copy it, and a stack of qkv is 3 GB at 2.7B parameters."""

    layer: Int32[Array, ""]
    operands: tuple[Float[Array, "L B T N*H"], ...]  # q, k, v, or (qkv [L, B, T, N * 3 * H],)
    out: Float[Array, "L B T N*H"] | None
    lse: Float[Array, "L B N 1 T"] | None


def _forward(plan: Plan[Resident], inputs: dict, columns, out, lse, sides) -> None:
    """out [T, 128] and lse [heads, 1, T] of columns q, k, v [T, 128].

    sides: scratch for the hashes of each head, a pair (column [T, 128], row [1, T]).
    """
    q, k, v = columns
    scalars, segments, bases = (inputs[name] for name in ("scalars", "segments", "bases"))
    length, dtype, scale = q.shape[0], q.dtype, scale_from(scalars)
    heads = [Head(plan, i) for i in range(plan.heads)]

    def unit(head: Head, row: int) -> Generator:
        """Queries row .. row + rows against every key up to them."""
        rows = pl.Slice(row, min(plan.blocks.forward_rows, length - row))
        queries = head.alone(q[rows])
        past = dot(queries, k[:row], NT) if row else None
        here = dot(queries, k[rows], NT)
        yield
        parts = [(rows, jnp.where(at_or_before(here.shape, 0), here, MASKED))]
        if past is not None:
            parts.insert(0, (pl.Slice(0, row), past))
        if segments is not None:
            column, line = segments
            parts = [(c, where_same_segment(column[rows], line[:, c], s, MASKED)) for c, s in parts]
        top = row_max([s for _, s in parts]) * scale
        weights = [(c, jnp.exp2(s * scale - top)) for c, s in parts]
        total = row_sums(join([p for _, p in weights], 1))
        if plan.rate:
            column, line = sides[head.within]
            weights = [
                (c, where_kept(dropped(column[rows], line[:, c], 0, plan.rate), p))
                for c, p in weights
            ]
        weights = [(c, p.astype(dtype)) for c, p in weights]
        yield
        mixed = functools.reduce(jnp.add, [dot(p, v[c], NN) for c, p in weights[::-1]])
        yield
        mixed = (mixed * (1 / (1 - plan.rate) / total)).astype(dtype)
        out[rows, head.lanes] = mixed[:, head.lanes]
        logsumexp = top + jnp.log2(total)
        for at in range(0, rows.size, LANES):
            lse[head.within, :, pl.Slice(row + at, LANES)] = as_row(logsumexp[at : at + LANES])

    for head in heads if plan.rate else []:
        for axis in (0, 1):
            sides[head.within][axis][...] = head.side(scalars, bases[axis][...], axis)
    starts = list(range(0, length, plan.blocks.forward_rows))
    pairs = zip(starts[::-1], starts, strict=True)  # long rows and short ones in turn
    order = [row for pair in pairs for row in pair][: len(starts)]
    units = (unit(head, row) for row in order for head in heads)
    interleave(units, plan.blocks.forward_in_flight)


def _backward(plan: Plan[Resident], inputs: dict, columns, grads, sums, dq_sums, sides) -> None:
    """grads: dq, dk, dv [T, 128] of one column. sums: of these over T, float32 [1, 128], or None.

    1 / (1 - rate) is left out of the loop: it is in delta and in the last scale of each gradient.
    """
    q, k, v = columns
    names = ("scalars", "segments", "bases", "out", "lse", "dout")
    scalars, segments, bases, out, lse, dout = (inputs[name] for name in names)
    length, dtype, scale = q.shape[0], q.dtype, scale_from(scalars)
    inverse = 1 / (1 - plan.rate)
    score_scale = scale * (inverse / LOG2E)
    heads = [Head(plan, i) for i in range(plan.heads)]
    for head in heads if plan.rate else []:
        for axis in (0, 1):
            sides[head.within][axis][...] = head.side(scalars, bases[axis][...], 1 - axis)
    deltas, started, bias_sums = {}, set(), {}

    def delta(head: Head, queries) -> jax.Array:
        """sum(dout * out) of each query as a row [1, C], made when first needed."""
        for at in range(queries.start, queries.start + queries.size, LANES):
            if (head, at) not in deltas:
                rows = pl.Slice(at, LANES)
                both = dout[rows].astype(jnp.float32) * out[rows].astype(jnp.float32)
                mine = both[:, head.lanes].sum(1, keepdims=True)
                deltas[head, at] = as_row(mine) * (1 - plan.rate)
        tiles = range(queries.start, queries.start + queries.size, LANES)
        return join([deltas[head, at] for at in tiles], 1)

    def unit(head: Head, keys, queries, totals, finish) -> Generator:
        s = dot(head.alone(k[keys]), q[queries], NT)
        dp = dot(head.alone(v[keys]), dout[queries], NT)
        yield
        p = jnp.exp2(s * scale - lse[head.within, :, queries])
        if segments is not None:
            column, line = segments
            p = where_same_segment(column[keys], line[:, queries], p, 0.0)
        if keys.start == queries.start:
            square = p[:, : keys.size]
            square = jnp.where(at_or_before(square.shape, 1), square, 0.0)
            p = join([square, p[:, keys.size :]][: 1 + (queries.size > keys.size)], 1)
        used = p
        if plan.rate:
            column, line = sides[head.within]
            kept = dropped(column[keys], line[:, queries], 1, plan.rate)
            used, dp = where_kept(kept, p), where_kept(kept, dp)
        ds, used = (p * (dp - delta(head, queries))).astype(dtype), used.astype(dtype)
        yield
        parts = dot(used, dout[queries], NN), dot(ds, q[queries], NN)
        for total, part in zip(totals, parts, strict=True):
            for at in range(0, keys.size, LANES):
                tile, row = part[at : at + LANES], keys.start + at
                total[row] = tile + total[row] if row in total else tile
        part, dq_sum = dot(ds, k[keys], TN), dq_sums[head.within]
        for at in range(0, queries.size, LANES):
            rows, tile = pl.Slice(queries.start + at, LANES), part[at : at + LANES]
            dq_sum[rows] = tile + dq_sum[rows] if (head, rows.start) in started else tile
            started.add((head, rows.start))
        if finish:
            finish()

    def block_units(head: Head, start: int):
        """Key block start .. start + backward_block against all queries from there on."""
        size = min(plan.blocks.backward_block, length - start)
        dk_sum, dv_sum = {}, {}

        def finish() -> None:
            for row in range(start, start + size, LANES):
                rows = pl.Slice(row, LANES)
                dq_row = dq_sums[head.within][rows] * score_scale
                found = dq_row, dk_sum[row] * score_scale, dv_sum[row] * inverse
                for i, (grad, x) in enumerate(zip(grads, found, strict=True)):
                    grad[rows, head.lanes] = x[:, head.lanes].astype(dtype)
                    if sums is not None:
                        part = x.reshape(-1, SUBLANES, LANES).sum(0)
                        bias_sums[head, i] = part + bias_sums.get((head, i), 0.0)

        # The square on the diagonal in pieces of 128 keys, then the rest.
        spans: list[tuple[pl.Slice, pl.Slice]] = []
        for at in range(0, size, LANES):
            spans.append((pl.Slice(start + at, LANES), pl.Slice(start + at, size - at)))
        for at in range(start + size, length, plan.blocks.backward_block):
            queries = pl.Slice(at, min(plan.blocks.backward_block, length - at))
            spans.append((pl.Slice(start, size), queries))
        for span in spans:
            yield unit(head, *span, (dv_sum, dk_sum), finish if span is spans[-1] else None)

    starts = range(0, length, plan.blocks.backward_block)
    units = (unit for start in starts for head in heads for unit in block_units(head, start))
    interleave(units, plan.blocks.backward_in_flight)
    for (head, i), part in bias_sums.items():
        sums[i][:, head.lanes] = part.sum(0, keepdims=True)[:, head.lanes]


def takes(plan: Plan[Resident], length: int, dtype: jax.typing.DTypeLike) -> bool:
    """Whether T is short enough, and VMEM (of the TPU that is traced for) large enough."""
    if length > LONGEST or plan.heads * length > LONGEST_COLUMN:
        return False
    needed = vmem_bytes(plan, length, dtype)
    return not pltpu.is_tpu_device() or needed <= pltpu.get_tpu_info().vmem_capacity_bytes


def vmem_bytes(plan: Plan[Resident], length: int, dtype: jax.typing.DTypeLike) -> int:
    """What the backward kernel needs at most; with segments and fused, whether it has them or not.

    Two windows of each operand and gradient, scratch, and spilled registers, of which the compiler
    (libtpu 0.0.42 and 0.0.52) was seen to allocate 3.3 KB a row in bfloat16, twice that in float32.
    """
    size = jnp.dtype(dtype).itemsize
    windows = 2 * 8 * LANES * size + 2 * LANES * 4 * (1 + bool(plan.rate))
    rearranged = 6 * LANES * size if plan.heads > 1 else 0
    scratch = LANES * 4 * plan.heads * (1 + bool(plan.rate)) + rearranged
    return length * (windows + scratch + 1800 * size)


def forward(
    plan: Plan[Resident], interpret, stack: Stack, scale, segment_ids, seeds
) -> tuple[Array, Array]:
    """out [L, B, T, N * H] and lse [L, B, N, 1, T]: those of `stack`, with its layer written.

    stack.out, stack.lse: None for new ones, of which no other layer has values.
    """
    layers, batch, length, width = stack.operands[0].shape
    width = width // 3 if len(stack.operands) == 1 else width
    inputs = shared_inputs(scale, segment_ids, seeds, length, query_axis=0)
    inputs["operands"] = stack.operands
    out = jax.ShapeDtypeStruct((layers, batch, length, width), stack.operands[0].dtype)
    lse = jax.ShapeDtypeStruct((layers, batch, width // plan.head_dim, 1, length), jnp.float32)
    before = {} if stack.out is None else {"out": stack.out, "lse": stack.lse}
    scratch = {"sides": _sides_scratch(plan, length), "qkv": _column_scratch(plan, stack.operands)}
    outputs = {"out": out, "lse": lse}
    found = _call(_forward_kernel, plan, interpret, stack.layer, inputs, outputs, scratch, before)
    return found["out"], found["lse"]


def backward(
    plan: Plan[Resident], interpret, stack: Stack, scale, segment_ids, seeds, dout
) -> tuple[tuple[Array, ...], Array | None]:
    """Gradients of the operands of the stack's layer, each [B, T, ...], and for (qkv,) of its bias,
    float32 [N * 3 * H]."""
    _, batch, length, width = stack.operands[0].shape
    inputs = shared_inputs(scale, segment_ids, seeds, length, query_axis=1)
    inputs |= {"operands": stack.operands, "out": stack.out, "lse": stack.lse, "dout": dout}
    outputs: dict = {
        "grads": tuple(jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in stack.operands)
    }
    if len(stack.operands) == 1:
        outputs["dbias"] = jax.ShapeDtypeStruct((batch, 1, width), jnp.float32)
    scratch = {
        "sides": _sides_scratch(plan, length),
        "qkv": _column_scratch(plan, stack.operands),
        "grads": _column_scratch(plan, stack.operands),
        "sums": _column_scratch(plan, stack.operands, rows=1),
        "dq": [pltpu.VMEM((length, LANES), jnp.float32)] * plan.heads,
    }
    found = _call(_backward_kernel, plan, interpret, stack.layer, inputs, outputs, scratch)
    return found["grads"], found["dbias"].sum((0, 1)) if "dbias" in found else None


def _forward_kernel(plan: Plan[Resident], _, inputs: dict, __, outputs: dict, scratch: dict):
    columns = _columns(plan, inputs["operands"], scratch["qkv"])
    _forward(plan, inputs, columns, outputs["out"], outputs["lse"], scratch["sides"])


def _backward_kernel(plan: Plan[Resident], _, inputs: dict, __, outputs: dict, scratch: dict):
    columns = _columns(plan, inputs["operands"], scratch["qkv"])
    grads, sums = outputs["grads"], None
    if len(grads) == 1:
        grads = scratch["grads"] or _thirds(grads[0])
        sums = scratch["sums"] or _thirds(outputs["dbias"])
    _backward(plan, inputs, columns, grads, sums, scratch["dq"], scratch["sides"])
    if scratch["grads"]:
        _rearrange(plan.head_dim, scratch["grads"], _thirds(outputs["grads"][0]), back=True)
        _rearrange(plan.head_dim, scratch["sums"], _thirds(outputs["dbias"]), back=True)


def _thirds(ref) -> list:
    return [ref.at[:, pl.Slice(i * LANES, LANES)] for i in range(3)]


def _columns(plan: Plan[Resident], operands, scratch):
    """Refs of q, k, v [T, 128]; smaller heads of a fused column are sorted into scratch."""
    if scratch:
        _rearrange(plan.head_dim, operands, scratch)
    return scratch or operands


def _rearrange(head_dim: int, tiles: list, to: list, back: bool = False) -> None:
    """Three refs [R, 128] of columns (head, (q, k, v), head dim) into those of q, of k and of v."""
    for which in range(3):
        for head in range(LANES // head_dim):
            tile, lane = divmod((3 * head + which) * head_dim, LANES)
            fused = tiles[tile] if not back else to[tile], pl.Slice(lane, head_dim)
            sorted_ = to[which] if not back else tiles[which], pl.Slice(head * head_dim, head_dim)
            (source, from_lanes), (target, to_lanes) = (
                (sorted_, fused) if back else (fused, sorted_)
            )
            target[:, to_lanes] = source[:, from_lanes]


def _sides_scratch(plan: Plan[Resident], length: int) -> list:
    one = pltpu.VMEM((length, LANES), jnp.int32), pltpu.VMEM((1, length), jnp.int32)
    return [one] * plan.heads if plan.rate else []


def _column_scratch(plan: Plan[Resident], operands, rows: int | None = None) -> list:
    if len(operands) == 3 or plan.heads == 1:
        return []
    dtype = operands[0].dtype if rows is None else jnp.float32
    return [pltpu.VMEM((rows or operands[0].shape[2], LANES), dtype)] * 3


def _call(
    kernel,
    plan: Plan[Resident],
    interpret,
    layer: Int32[Array, ""],
    inputs: dict,
    outputs: dict,
    scratch: dict,
    before: dict | None = None,
) -> dict[str, Any]:
    """before: outputs by name, of which only the layer's part is written."""
    _, batch, length, width = inputs["operands"][0].shape
    dtype = inputs["operands"][0].dtype
    wide = len(inputs["operands"]) == 1

    def of(*, lanes=LANES, rows=length, every=1, first=0):
        return pl.BlockSpec((None, rows, lanes), lambda b, c, _: (b, 0, every * c + first))

    def of_row(rows, lanes):
        return pl.BlockSpec((None, rows, lanes), lambda b, c, _: (b, 0, 0))

    def in_stack(spec):
        def place(b, c, layer):
            return layer[0], *spec.index_map(b, c, layer)

        return pl.BlockSpec((None, *spec.block_shape), place)

    of_lse = pl.BlockSpec((None, plan.heads, 1, length), lambda b, c, _: (b, c, 0, 0))
    thirds = [of(every=3, first=i) for i in range(3)]
    specs = {
        "scalars": pl.BlockSpec(memory_space=pltpu.SMEM),
        "operands": tuple(map(in_stack, thirds if wide else [of()] * 3)),
        "segments": (of_row(length, LANES), of_row(1, length)),
        "bases": tuple(
            pl.BlockSpec(shape, lambda b, c, _: (0, 0)) for shape in ((length, LANES), (1, length))
        ),
        "out": in_stack(of()),
        "lse": in_stack(of_lse),
        "dout": of(),
        "dbias": of(rows=1, lanes=3 * LANES),
        "grads": (of(lanes=3 * LANES),) if wide else (of(),) * 3,
    }
    if wide:
        inputs = inputs | {"operands": inputs["operands"] * 3}
    before = before or {}
    # Of all arrays in the order in which they are given: those that become an output.
    first = 1 + len(jax.tree.leaves(inputs))
    aliases = {first + i: sorted(outputs).index(name) for i, name in enumerate(sorted(before))}

    def run(arrays: tuple):
        varying = jax.typeof(arrays[1]["operands"][0]).manual_axis_type
        return pl.pallas_call(
            functools.partial(kernel, plan),
            name=f"attention{kernel.__name__.removesuffix('_kernel')}",
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(batch, width // (3 * LANES if wide else LANES)),
                in_specs=[
                    {name: None if x is None else specs[name] for name, x in inputs.items()},
                    {name: pl.BlockSpec(memory_space=pl.ANY) for name in before},
                ],
                out_specs={name: specs[name] for name in outputs},
                scratch_shapes=[scratch],
            ),
            out_shape=jax.tree.map(lambda x: x.update(manual_axis_type=varying), outputs),
            input_output_aliases=aliases,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel"),
                vmem_limit_bytes=max(DEFAULT_VMEM, vmem_bytes(plan, length, dtype)),
            ),
            interpret=interpret,
        )(*arrays)

    arrays = layer[None], inputs, before
    return everywhere(run, arrays) if interpret else run(arrays)
