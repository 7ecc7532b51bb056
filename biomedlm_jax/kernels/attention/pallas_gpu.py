"""Causal attention for NVIDIA GPUs: three Triton kernels, written in Pallas.

The forward kernel takes a block of queries past the keys before it, with an online softmax
(Milakov and Gimelshein, arXiv 1805.02867; in blocks: Dao, arXiv 2307.08691). Of the scores it
leaves only their logsumexp, from which the backward kernels make them again: one takes a block of
queries past its keys and gives dq, one takes a block of keys past its queries and gives dk and dv.
One kernel for all three would make the scores once, but add up dq with atomics, and the sum would
differ from run to run.

Operands lie as the projections leave them, [B, T, N, H]; a program reads its head's rows with
stride N * H. Blocks above the diagonal are not visited, and where documents are packed, neither are
blocks before the first and after the last position that shares a document with this block.

Statistics, probabilities and sums are float32. A product takes operands of q's dtype and adds in
float32; float32 operands are multiplied in full, where Triton by itself would round them to tf32.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int, Int32

from biomedlm_jax.kernels.attention import block_sizes, keep
from biomedlm_jax.kernels.interpret import everywhere
from biomedlm_jax.kernels.varying import axes_of, marked

LOG2E = math.log2(math.e)
NO_SCORE = -1e30  # less than any score, and finite when scaled: inf - inf would be NaN
HEAD_DIMS = (32, 64, 128)
DTYPES = ("bfloat16", "float16", "float32")


class Blocks(NamedTuple):
    """How a kernel is cut: rows of its blocks, warps of a program, stages of its load pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


class Tuning(NamedTuple):
    forward: Blocks
    dq: Blocks
    dkv: Blocks


# By (device kind, head dim, bytes of an element). Compiled for these GPUs, but timed on none. A row
# has, of some 8 candidates for each kernel, one that spills no register, with or without segments,
# dropout and a last block that is not full (jax 0.10.2 and 0.12.0.1), and issues few instructions
# for a score: those of the loop below the diagonal (0.12.0.1, T1024), times 32 * warps, over
# queries * keys. Plain, and with segments and dropout:
#
#                 forward              dq                   dkv
#   A100, 64      10.5, 19.2           12.0, 20.6           15.5, 30.6     registers 153 to 186
#   A100, 128     14.9, 23.8           16.6, 23.7           24.9, 36.4               174 to 243
#   H100, 64       7.3, 15.7            8.2, 15.4           10.5, 20.7               134 to 231
#   H100, 128     11.5, 20.4           10.1, 17.3           16.5, 30.6               160 to 231
#
# Larger blocks issue fewer (forward on H100, 128: 8.4 with 128 x 128), but spill with all of it on.
# Rows of 32 follow 64. float32 goes without tensor cores, where larger blocks spill.
BLOCK_SIZES = {
    ("NVIDIA A100", 32, 2): Tuning(
        forward=Blocks(128, 64, 8, 2), dq=Blocks(64, 32, 4, 3), dkv=Blocks(32, 64, 4, 2)
    ),
    ("NVIDIA A100", 64, 2): Tuning(
        forward=Blocks(128, 64, 8, 2), dq=Blocks(64, 32, 4, 3), dkv=Blocks(32, 64, 4, 2)
    ),
    ("NVIDIA A100", 128, 2): Tuning(
        forward=Blocks(128, 64, 8, 2), dq=Blocks(64, 128, 8, 2), dkv=Blocks(64, 64, 8, 2)
    ),
    ("NVIDIA H100", 32, 2): Tuning(
        forward=Blocks(128, 128, 8, 2), dq=Blocks(64, 64, 4, 2), dkv=Blocks(64, 64, 4, 2)
    ),
    ("NVIDIA H100", 64, 2): Tuning(
        forward=Blocks(128, 128, 8, 2), dq=Blocks(64, 64, 4, 2), dkv=Blocks(64, 64, 4, 2)
    ),
    ("NVIDIA H100", 128, 2): Tuning(
        forward=Blocks(128, 64, 8, 3), dq=Blocks(64, 64, 4, 2), dkv=Blocks(32, 64, 4, 2)
    ),
} | {
    (gpu, head_dim, 4): Tuning(*[Blocks(16, 16, warps, 1)] * 3)
    for gpu in ("NVIDIA A100", "NVIDIA H100")
    for head_dim, warps in ((32, 8), (64, 16 if gpu == "NVIDIA A100" else 8), (128, 8))
}


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    *,
    interpret: bool = False,
    **options,
) -> Float[Array, "B T N H"]:
    """See `api.attention`. T of any size.

    interpret: run the kernels' arithmetic on any platform, slowly.

    Raises:
      NotImplementedError: a dtype, head dim or device that BLOCK_SIZES has no row for.
    """
    return _attention(*_arguments(q, k, v, interpret, **options))


def forward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    *,
    interpret: bool = False,
    **options,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """(out, logsumexp), which `backward` needs."""
    out, (*_, lse) = _attention_fwd(*_arguments(q, k, v, interpret, **options))
    return out, lse


def backward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    out: Float[Array, "B T N H"],
    lse: Float[Array, "B N T"],
    dout: Float[Array, "B T N H"],
    *,
    interpret: bool = False,
    **options,
) -> tuple[Float[Array, "B T N H"], ...]:
    """The gradients of q, k and v."""
    rate, tuning, _, *operands = _arguments(q, k, v, interpret, **options)
    residuals = marked((*operands, out, lse), axes_of((operands, out, dout)))
    return _attention_bwd(rate, tuning, interpret, residuals, dout)[:3]


def _arguments(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    interpret: bool,
    *,
    scale: Float[Array, ""] | float,
    segment_ids: Int[Array, "B T"] | None,
    dropout_rate: float,
    head_seeds: keep.HeadSeeds | None,
) -> tuple:
    """Of `_attention`."""
    tuning = tuning_of(q, k, v, interpret)
    rate = dropout_rate if head_seeds is not None else 0.0
    operands = q, k, v, jnp.asarray(scale, jnp.float32), segment_ids, head_seeds
    return rate, tuning, interpret, *marked(operands, axes_of(operands))


def tuning_of(q: jax.Array, k: jax.Array, v: jax.Array, interpret: bool) -> Tuning:
    """The row of BLOCK_SIZES for these operands on the device that is traced for."""
    if not q.dtype == k.dtype == v.dtype or q.dtype not in DTYPES:
        found = f"{q.dtype}, {k.dtype}, {v.dtype}"
        raise NotImplementedError(f"q, k, v are {found}, not one of {', '.join(DTYPES)}")
    if q.shape[3] not in HEAD_DIMS:
        raise NotImplementedError(f"head dim {q.shape[3]} is not one of {HEAD_DIMS}")
    kinds = list(dict.fromkeys(row[0] for row in BLOCK_SIZES))
    platform, kind = ("gpu", kinds[0]) if interpret else block_sizes.device()
    if platform not in ("gpu", "cuda"):
        raise NotImplementedError(f"the kernels need an NVIDIA GPU; this is {platform} ({kind})")
    for known in kinds:
        if kind.startswith(known):
            return BLOCK_SIZES[known, q.shape[3], q.dtype.itemsize]
    raise NotImplementedError(f"no block sizes for {kind!r}; there are {', '.join(kinds)}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(rate, tuning, interpret, q, k, v, scale, segment_ids, head_seeds):
    return _attention_fwd(rate, tuning, interpret, q, k, v, scale, segment_ids, head_seeds)[0]


def _attention_fwd(rate, tuning, interpret, q, k, v, scale, segment_ids, head_seeds):
    inputs = {"q": q, "k": k, "v": v, **_shared(scale, segment_ids, head_seeds, q.shape[1])}
    outputs = {"out": q, "lse": None}
    found = _call(_forward_kernel, tuning.forward, rate, interpret, inputs, outputs)
    out, lse = found["out"], found["lse"]
    return out, (q, k, v, scale, segment_ids, head_seeds, out, lse)


def _attention_bwd(rate, tuning, interpret, residuals, d_out):
    q, k, v, scale, segment_ids, head_seeds, out, lse = residuals
    inputs = {"q": q, "k": k, "v": v, **_shared(scale, segment_ids, head_seeds, q.shape[1])}
    inputs |= {"d_out": d_out, "lse": lse}
    outputs = {"dq": q, "delta": None}
    of_queries = _call(_dq_kernel, tuning.dq, rate, interpret, inputs | {"out": out}, outputs)
    inputs |= {"delta": of_queries["delta"]}
    of_keys = _call(_dkv_kernel, tuning.dkv, rate, interpret, inputs, {"dk": k, "dv": v})
    return of_queries["dq"], of_keys["dk"], of_keys["dv"], None, None, None


_attention.defvjp(_attention_fwd, _attention_bwd)


def _shared(scale, segment_ids, head_seeds, length: int) -> dict[str, jax.Array]:
    """What all three kernels read besides q, k and v."""
    inputs = {"scale": scale[None]}
    if segment_ids is not None:
        inputs["segments"] = segment_ids
    if head_seeds is not None:
        base_query, base_key = keep.bases(length)
        own_query, own_key = (x[..., None] for x in keep.own(head_seeds))
        inputs["query_sides"] = keep.side(base_query, own_query, own_key)
        inputs["key_sides"] = keep.side(base_key, own_key, own_query)
    return inputs


def _call(
    kernel, blocks: Blocks, rate: float, interpret: bool, inputs: dict, outputs: dict
) -> dict[str, jax.Array]:
    """Runs `kernel` for every block of its rows, head and row of the batch.

    outputs: by name an array of the same shape and dtype, or None for float32 [B, N, T].
    """
    batch, length, heads, _ = inputs["q"].shape
    statistic = (batch, heads, length), jnp.float32
    shapes = {
        name: statistic if like is None else (like.shape, like.dtype)
        for name, like in outputs.items()
    }
    over_keys = kernel is _dkv_kernel
    rows = blocks.keys if over_keys else blocks.queries
    if "segments" in inputs:
        inputs = inputs | {"reach": _reach(inputs["segments"], rows, over_keys)}

    def spec(x):  # a program sees its row of the batch and its head, whole
        match x.shape:
            case (_, t, _, h):
                return pl.BlockSpec((None, t, None, h), lambda i, n, b: (b, 0, n, 0))
            case (_, _, t):
                return pl.BlockSpec((None, None, t), lambda i, n, b: (b, n, 0))
            case (_, t):
                return pl.BlockSpec((None, t), lambda i, n, b: (b, 0))
        return pl.BlockSpec((1,), lambda i, n, b: (0,))

    def run(inputs):
        varying = jax.typeof(inputs["q"]).manual_axis_type
        out_shape = {
            name: jax.ShapeDtypeStruct(*found, manual_axis_type=varying)
            for name, found in shapes.items()
        }
        return pl.pallas_call(
            functools.partial(kernel, blocks, length, rate, interpret),
            name=f"attention{kernel.__name__.removesuffix('_kernel')}",
            grid=(pl.cdiv(length, rows), heads, batch),
            in_specs=[jax.tree.map(spec, inputs)],
            out_specs=jax.tree.map(spec, out_shape),
            out_shape=out_shape,
            compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
            interpret=interpret,
        )(inputs)

    return everywhere(run, inputs) if interpret else run(inputs)


def _reach(segments: Int[Array, "B T"], rows: int, over_keys: bool) -> Int32[Array, "B blocks"]:
    """For each block of queries the first key that shares a segment with one of them; for each
    block of keys the last such query. XLA makes it in one pass that stores nothing of T x T."""
    length = segments.shape[1]
    same = segments[:, :, None] == segments[:, None, :]
    farthest, none = (jnp.max, -1) if over_keys else (jnp.min, length)
    reach = farthest(jnp.where(same, jnp.arange(length, dtype=jnp.int32), none), axis=2)
    reach = jnp.pad(reach, ((0, 0), (0, -length % rows)), constant_values=none)
    return farthest(reach.reshape(reach.shape[0], -1, rows), axis=2)


class _Rows(NamedTuple):
    """A block of positions; those at `length` and after do not exist."""

    start: Int32[Array, ""]
    size: int
    length: int

    def places(self) -> Int32[Array, "R"]:
        return self.start + jnp.arange(self.size, dtype=jnp.int32)

    def load(self, ref, other: float = 0) -> jax.Array:
        """Rows of [T, ...]; those that do not exist are `other`."""
        ref = ref.at[pl.ds(self.start, self.size)]
        mask = self._exist(ref.shape)
        return plgpu.load(ref, mask=mask, other=None if mask is None else other)

    def store(self, ref, x) -> None:
        ref = ref.at[pl.ds(self.start, self.size)]
        plgpu.store(ref, x.astype(ref.dtype), mask=self._exist(ref.shape))

    def _exist(self, shape):
        if self.length % self.size == 0:
            return None
        exist = self.places() < self.length
        return jnp.broadcast_to(lax.expand_dims(exist, range(1, len(shape))), shape)


class _Labels(NamedTuple):
    """By what the scores of a tile are hidden or dropped, of its rows [R, 1] or columns [1, R]."""

    places: Int32[Array, "..."]
    segments: Any  # Int32[Array, "..."], or None where there is one segment
    sides: Any  # of keep.py, or None where there is no dropout

    @classmethod
    def of(cls, refs, which: str, rows: _Rows, axis: int) -> "_Labels":
        def along(x):
            return lax.expand_dims(x, (1 - axis,))

        segments, sides = (
            along(rows.load(refs[name])) if name in refs else None
            for name in ("segments", f"{which}_sides")
        )
        return cls(along(rows.places()), segments, sides)


def _where_visible(x, query: _Labels, key: _Labels, diagonal: bool, otherwise: float):
    """`x` where the query may see the key. diagonal: keys of this tile may come later."""
    visible = [query.places >= key.places] if diagonal else []
    if query.segments is not None:
        visible.append(query.segments == key.segments)
    return jnp.where(functools.reduce(jnp.logical_and, visible), x, otherwise) if visible else x


def _kept(x, query: _Labels, key: _Labels, rate: float):
    """`x`, but 0 where dropout takes the weight."""
    return jnp.where(keep.kept(query.sides, key.sides, rate), x, 0) if rate else x


def _product(a, b):
    return plgpu.dot(a, b, precision=lax.Precision.HIGHEST)


def _exp2(scores, scale, top, interpret: bool):
    """2 ** (scores * scale - top) in two instructions. By jnp.exp2 they would be seven: Triton does
    not fuse the product and the difference, and libdevice keeps results below 2**-126."""
    if interpret:
        return jnp.exp2(scores * scale - top)
    asm = "{ .reg .f32 x; fma.rn.ftz.f32 x, $1, $2, $3; ex2.approx.ftz.f32 $0, x; }"
    args = [jnp.broadcast_to(x, scores.shape) for x in (scores, scale, -top)]
    out = jax.ShapeDtypeStruct(scores.shape, jnp.float32)
    [weights] = plgpu.elementwise_inline_asm(
        asm, args=args, constraints="=f,f,f,f", pack=1, result_shape_dtypes=[out]
    )
    return weights


def _query_rows(blocks: Blocks, length: int) -> _Rows:
    """This program's. The longest rows come first, so that short ones fill the end of the run."""
    block = pl.num_programs(0) - 1 - pl.program_id(0)
    return _Rows(block * blocks.queries, blocks.queries, length)


def _over_keys(step, query: _Rows, blocks: Blocks, refs, sums):
    """`step` over the key blocks that `query` sees; first those that lie before all of it."""
    first = (
        lax.div(refs["reach"][lax.div(query.start, query.size)], blocks.keys)
        if "reach" in refs
        else 0
    )
    diagonal = jnp.maximum(first, lax.div(query.start, blocks.keys))
    end = jnp.minimum(query.start + query.size, query.length)
    sums = lax.fori_loop(first, diagonal, functools.partial(step, diagonal=False), sums)
    return lax.fori_loop(
        diagonal, pl.cdiv(end, blocks.keys), functools.partial(step, diagonal=True), sums
    )


def _forward_kernel(blocks: Blocks, length: int, rate: float, interpret: bool, refs, outs) -> None:
    scale = refs["scale"][0] * LOG2E
    rows = _query_rows(blocks, length)
    query = _Labels.of(refs, "query", rows, axis=0)
    q = rows.load(refs["q"])

    def step(block, sums, *, diagonal):
        acc, top, total = sums
        key_rows = _Rows(block * blocks.keys, blocks.keys, length)
        key = _Labels.of(refs, "key", key_rows, axis=1)
        k, v = key_rows.load(refs["k"]), key_rows.load(refs["v"])
        scores = _where_visible(_product(q, k.T), query, key, diagonal, -jnp.inf)
        new_top = jnp.maximum(top, scores.max(axis=1))
        shrink = jnp.exp2((top - new_top) * scale)
        # scale is positive: the largest score stays the largest, and a hidden one -inf.
        weights = _exp2(scores, scale, (new_top * scale)[:, None], interpret)
        total = total * shrink + weights.sum(axis=1)
        weights = _kept(weights, query, key, rate).astype(v.dtype)
        return acc * shrink[:, None] + _product(weights, v), new_top, total

    zeros = jnp.zeros(rows.size, jnp.float32)
    sums = jnp.zeros(q.shape, jnp.float32), zeros + NO_SCORE, zeros
    acc, top, total = _over_keys(step, rows, blocks, refs, sums)
    rows.store(outs["out"], acc / (total * (1 - rate))[:, None])
    rows.store(outs["lse"], top * (scale / LOG2E) + jnp.log(total))


def _dq_kernel(blocks: Blocks, length: int, rate: float, interpret: bool, refs, outs) -> None:
    scale = refs["scale"][0]
    rows = _query_rows(blocks, length)
    query = _Labels.of(refs, "query", rows, axis=0)
    q, d_out = rows.load(refs["q"]), rows.load(refs["d_out"])
    lse = rows.load(refs["lse"], jnp.inf) * LOG2E
    # A weight is softmax / (1 - rate) where it is kept. The division is left to the end: until
    # there, delta and the gradients of weights and scores are 1 - rate times what they are.
    out = rows.load(refs["out"]).astype(jnp.float32)
    delta = (out * d_out.astype(jnp.float32)).sum(axis=1) * (1 - rate)

    def step(block, dq, *, diagonal):
        key_rows = _Rows(block * blocks.keys, blocks.keys, length)
        key = _Labels.of(refs, "key", key_rows, axis=1)
        k, v = key_rows.load(refs["k"]), key_rows.load(refs["v"])
        weights = _exp2(_product(q, k.T), scale * LOG2E, lse[:, None], interpret)
        weights = _where_visible(weights, query, key, diagonal, 0)
        d_weights = _kept(_product(d_out, v.T), query, key, rate)
        d_scores = weights * (d_weights - delta[:, None])
        return dq + _product(d_scores.astype(k.dtype), k)

    dq = _over_keys(step, rows, blocks, refs, jnp.zeros(q.shape, jnp.float32))
    rows.store(outs["dq"], dq * (scale / (1 - rate)))
    rows.store(outs["delta"], delta)


def _dkv_kernel(blocks: Blocks, length: int, rate: float, interpret: bool, refs, outs) -> None:
    scale = refs["scale"][0]
    block = pl.program_id(0)
    rows = _Rows(block * blocks.keys, blocks.keys, length)
    key = _Labels.of(refs, "key", rows, axis=0)
    k, v = rows.load(refs["k"]), rows.load(refs["v"])

    def step(query_block, sums, *, diagonal):
        dk, dv = sums
        query_rows = _Rows(query_block * blocks.queries, blocks.queries, length)
        query = _Labels.of(refs, "query", query_rows, axis=1)
        q, d_out = query_rows.load(refs["q"]), query_rows.load(refs["d_out"])
        lse = query_rows.load(refs["lse"], jnp.inf) * LOG2E  # a query that is not has no weights
        delta = query_rows.load(refs["delta"])
        # Scores lie [keys, queries], so that no product needs them transposed.
        weights = _exp2(_product(k, q.T), scale * LOG2E, lse[None, :], interpret)
        weights = _where_visible(weights, query, key, diagonal, 0)
        dv += _product(_kept(weights, query, key, rate).astype(d_out.dtype), d_out)
        d_weights = _kept(_product(v, d_out.T), query, key, rate)
        d_scores = weights * (d_weights - delta[None, :])
        return dk + _product(d_scores.astype(q.dtype), q), dv

    end = pl.cdiv(refs["reach"][block] + 1 if "reach" in refs else length, blocks.queries)
    after = jnp.minimum(pl.cdiv(rows.start + rows.size, blocks.queries), end)
    sums = (jnp.zeros(k.shape, jnp.float32),) * 2
    sums = lax.fori_loop(
        lax.div(rows.start, blocks.queries), after, functools.partial(step, diagonal=True), sums
    )
    dk, dv = lax.fori_loop(after, end, functools.partial(step, diagonal=False), sums)
    rows.store(outs["dk"], dk * (scale / (1 - rate)))
    rows.store(outs["dv"], dv / (1 - rate))
