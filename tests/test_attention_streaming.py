"""The streaming TPU kernels, interpreted, against the reference: blocks of 128 and 256 rows, so
that a few hundred positions make several blocks, and a last block that is not whole."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as simulation
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec

from biomedlm_jax.kernels.attention import block_sizes, keep, reference, tpu_streaming
from biomedlm_jax.kernels.attention.block_sizes import Streaming
from biomedlm_jax.kernels.attention.tpu_tiles import Plan

SMALL = Streaming(128, 128, 2, 128, 128, 2)
WIDE = Streaming(256, 128, 2, 256, 128, 2)  # blocks of several units
# Of the largest value: float32 differs by the order of sums, bfloat16 by a rounding of weights.
TOLERANCE = {"float32": 3e-6, "bfloat16": 8e-3}
SCALE = 0.11


# To compile takes longer than to run once.
quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@dataclasses.dataclass
class Case:
    batch: int = 1
    length: int = 384
    heads: int = 1
    head_dim: int = 128
    dtype: str = "float32"
    segments: bool = False
    rate: float = 0.0
    blocks: Streaming = SMALL

    def operands(self):
        shape = (self.batch, self.length, self.heads, self.head_dim)
        keys = jax.random.split(jax.random.key(1), 4)
        return [jax.random.normal(key, shape).astype(self.dtype) for key in keys]

    def options(self):
        """(segment ids, seeds): segments begin inside blocks and on their borders."""
        ids = None
        if self.segments:
            begins = jnp.array([0, 100, 101, 256])
            row = (jnp.arange(self.length)[:, None] >= begins).sum(1).astype(jnp.int32)
            ids = jnp.stack([row, row // 2] * self.batch)[: self.batch]
        seeds = keep.head_seeds(jnp.uint32(3), self.batch, self.heads) if self.rate else None
        return ids, seeds


def kernels(case: Case, interpret: bool | pltpu.InterpretParams = True):
    """(out, dq, dk, dv), each [B, T, N, H]."""

    def both(q, k, v, dout, scale: jax.Array):
        plan = Plan(case.head_dim, case.rate, case.blocks)
        flat = [x.reshape(*x.shape[:2], -1) for x in (q, k, v, dout)]
        inputs = plan, interpret, tuple(flat[:3]), scale, *case.options()
        out, lse = tpu_streaming.forward(*inputs)
        grads = tpu_streaming.backward(*inputs, out, lse, flat[3])
        return [x.reshape(q.shape) for x in (out, *grads)]

    return quickly(both)(*case.operands(), jnp.float32(SCALE))


def expected(case):
    """The same by the reference in float32, from operands as they are."""
    ids, seeds = case.options()
    options = dict(scale=SCALE, segment_ids=ids, dropout_rate=case.rate, head_seeds=seeds)

    def both(q, k, v, dout):
        attend = functools.partial(reference.attention, **options)
        out, backward = jax.vjp(attend, q, k, v)
        return out, *backward(dout)

    return quickly(both)(*(x.astype(jnp.float32) for x in case.operands()))


CASES = {
    "float32": Case(),
    "bfloat16": Case(dtype="bfloat16"),
    "rows, columns, segments, dropout": Case(batch=2, length=256, heads=2, segments=True, rate=0.3),
    "units and a last block that is not whole": Case(
        length=640, dtype="bfloat16", segments=True, rate=0.1, blocks=WIDE
    ),
    "one block that is not whole": Case(length=128, rate=0.1, blocks=WIDE),
    "two heads in a column": Case(length=256, heads=4, head_dim=64, rate=0.2),
    "four heads in a column": Case(
        length=256, heads=4, head_dim=32, dtype="bfloat16", segments=True
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_values_and_gradients_are_those_of_the_reference(case):
    found = kernels(case)
    for name, mine, theirs in zip(("out", "dq", "dk", "dv"), found, expected(case), strict=True):
        assert mine.dtype == case.dtype
        atol = TOLERANCE[case.dtype] * float(jnp.abs(theirs).max())
        np.testing.assert_allclose(mine.astype(jnp.float32), theirs, 0, atol, err_msg=name)


def test_logsumexp_is_of_base_2():
    case = Case(length=256, heads=2, segments=True)
    q, k, _, _ = (np.asarray(x, np.float64) for x in case.operands())
    ids = np.asarray(case.options()[0])
    scores = SCALE * np.log2(np.e) * np.einsum("btnh,bsnh->bnts", q, k)
    seen = np.tril(ids[:, :, None] == ids[:, None, :])
    sums = np.where(seen[:, None], 2**scores, 0).sum(-1)
    flat = tuple(x.reshape(1, 256, 256) for x in case.operands()[:3])
    plan = Plan(case.head_dim, 0.0, WIDE)
    _, lse = tpu_streaming.forward(plan, True, flat, jnp.float32(SCALE), *case.options())
    np.testing.assert_allclose(lse[:, :, 0], np.log2(sums), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rising", [True, False])
def test_large_scores_neither_overflow_nor_vanish(rising):
    """Scores to +-2,048 that differ by 16 from key to key: each query gets one value, that of the
    last key it sees or that of the first, blocks after or before the one it began with."""
    height = jnp.linspace(-4, 4, 256)[:: 1 if rising else -1]
    k = jnp.broadcast_to(height[None, :, None], (1, 256, 128))
    v = jax.random.normal(jax.random.key(0), k.shape)
    operands = jnp.full_like(k, 4), k, v
    out, _ = tpu_streaming.forward(
        Plan(128, 0.0, SMALL), True, operands, jnp.float32(1.0), None, None
    )
    best = jnp.arange(256) if rising else jnp.zeros(256, jnp.int32)
    np.testing.assert_allclose(out[0], v[0, best], atol=1e-5)


def test_no_races_and_nothing_read_that_was_not_written():
    """In the interpreter of TPUs, with transfers as they happen; memory begins as NaN."""
    case = Case(segments=True, blocks=WIDE)
    interpret = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    found = kernels(case, interpret)
    assert simulation.races is not None
    assert not simulation.races.races_found
    for mine, theirs in zip(found, expected(case), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=3e-6 * float(jnp.abs(theirs).max()))


def test_parts_of_a_mesh_are_parts_of_the_whole():
    case = Case(batch=2, length=256, heads=2)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    spec = PartitionSpec("data", None, "model")
    plan = Plan(case.head_dim, 0.0, SMALL)

    def attend(q, k, v):
        return tpu_streaming.forward(plan, True, (q, k, v), jnp.float32(SCALE), None, None)[0]

    flat = [x.reshape(2, 256, 256) for x in case.operands()[:3]]
    parts = jax.jit(jax.shard_map(attend, mesh=mesh, in_specs=spec, out_specs=spec))(*flat)
    np.testing.assert_allclose(parts, jax.jit(attend)(*flat), atol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((128, 100, 2, 128, 128, 2), "forward_rows=100 is not a multiple of 128"),
        ((128, 128, 2, 384, 256, 2), "backward_block=384 is not a multiple of backward_unit=256"),
        ((0, 128, 2, 128, 128, 2), "forward_block=0"),
        ((128, 128, 0, 128, 128, 2), "forward_in_flight=0 is not at least 1"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Streaming(*sizes)


def test_shapes_and_seeds_that_do_not_fit_are_refused():
    def call(length, width, rate, seeds):
        q = jnp.zeros((1, length, width))
        plan = Plan(128, rate, SMALL)
        return tpu_streaming.forward(plan, True, (q, q, q), jnp.float32(1), None, seeds)

    with pytest.raises(ValueError, match="T 200 and N \\* H 128 are not both multiples of 128"):
        call(200, 128, 0.0, None)
    with pytest.raises(ValueError, match="N \\* H 192"):
        call(256, 192, 0.0, None)
    with pytest.raises(ValueError, match=r"rate 0\.1 and no seeds"):
        call(256, 128, 0.1, None)
    with pytest.raises(ValueError, match=r"rate 0\.0 and seeds"):
        call(256, 128, 0.0, jnp.zeros((1, 1), jnp.uint32))


def test_a_length_beyond_vmem_is_refused_with_the_limit(monkeypatch):
    """Of a v4, as it is found when the kernel is traced for one."""
    info = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion.TPU_V4, 1)
    monkeypatch.setattr(pltpu, "is_tpu_device", lambda: True)
    monkeypatch.setattr(pltpu, "get_tpu_info", lambda: info)
    blocks = block_sizes.streaming("TPU v4", 128, jnp.bfloat16)

    def gradients(length):
        q = jax.ShapeDtypeStruct((1, length, 128), jnp.bfloat16)
        lse = jax.ShapeDtypeStruct((1, 1, 1, length), jnp.float32)

        def both(q, lse):
            plan = Plan(128, 0.0, blocks)
            inputs = plan, True, (q, q, q), jnp.float32(1), None, None
            return tpu_streaming.backward(*inputs, q, lse, q)

        return jax.eval_shape(both, q, lse)

    with pytest.raises(NotImplementedError, match=r"T 32768 in blocks of 512 needs") as refusal:
        gradients(32768)
    longest = int(str(refusal.value).removesuffix(" at most").split()[-1])
    assert gradients(longest)[0].shape == (1, longest, 128)
    with pytest.raises(NotImplementedError, match=f"T can be {longest} at most"):
        gradients(longest + 128)
