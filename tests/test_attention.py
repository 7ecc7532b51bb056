"""Attention and its gradients against their formulas in float64 numpy, for every implementation
that this machine can run; what is kept for the backward pass; what is refused.

The GPU kernel has more in test_attention_gpu.py, long sequences in test_attention_streaming.py.
"""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as simulation
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec

from biomedlm_jax import config, settings
from biomedlm_jax.kernels.attention import block_sizes, keep, pallas_tpu, tpu_resident
from biomedlm_jax.kernels.attention.api import IMPLEMENTATIONS, attention, attention_qkv
from biomedlm_jax.mesh import make as make_mesh
from biomedlm_jax.step import train_step
from configs.demo import get_config
from tests.conftest import changed, put, random_tokens, started

# Largest error of the result or a gradient over the largest value in it.
TOLERANCE = {"float32": 4e-6, "bfloat16": 1.2e-2}
SEED = jnp.uint32(17)
SEED_KEY = jax.random.key(17)

# To compile takes longer than to run once.
quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def inputs(batch, length, heads, head_dim, dtype="float32") -> list[jax.Array]:
    """q, k, v and the gradient of the result."""
    shape = batch, length, heads, head_dim
    return [jax.random.normal(key, shape).astype(dtype) for key in jax.random.split(SEED_KEY, 4)]


def segments_of(batch: int, length: int, mean: float) -> jax.Array:
    """Segments of `mean` tokens on average; some have one."""
    starts = np.random.default_rng(length).random((batch, length)) < 1 / mean
    return jnp.asarray(np.cumsum(starts, 1), jnp.int32)


def mask(batch: int, heads: int, length: int, rate: float) -> np.ndarray:
    """1 / (1 - rate) where a weight is kept, else 0, [B, N, T, T], one weight at a time."""
    own_query, own_key = keep.own(keep.head_seeds(SEED, batch, heads)[..., None])
    base_query, base_key = keep.bases(length)
    a, b = keep.side(base_query, own_query, own_key), keep.side(base_key, own_key, own_query)
    return np.asarray(keep.kept(a[..., None], b[..., None, :], rate)) / (1 - rate)


def exact(q, k, v, dout, scale, segments=None, rate=0.0) -> list[np.ndarray]:
    """The result and dq, dk, dv in float64."""
    q, k, v, dout = (np.asarray(x, np.float64).swapaxes(1, 2) for x in (q, k, v, dout))
    allowed = np.tril(np.ones(q.shape[2:3] * 2, bool))
    if segments is not None:
        segments = np.asarray(segments)
        allowed = allowed & (segments[:, None, :, None] == segments[:, None, None, :])
    scores = np.where(allowed, scale * q @ k.swapaxes(2, 3), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    kept = mask(*q.shape[:3], rate) if rate else 1.0
    dweights = dout @ v.swapaxes(2, 3) * kept
    dscores = weights * (dweights - (weights * dweights).sum(-1, keepdims=True)) * scale
    used = weights * kept
    found = used @ v, dscores @ k, dscores.swapaxes(2, 3) @ q, used.swapaxes(2, 3) @ dout
    return [x.swapaxes(1, 2) for x in found]


def assert_close(found, wanted, dtype: str) -> None:
    for name, x, y in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        assert x.dtype == dtype
        error = np.abs(np.asarray(x, np.float64) - y).max() / (np.abs(y).max() or 1.0)
        assert error < TOLERANCE[dtype], (name, error)


def run(q, k, v, dout, **options) -> list[jax.Array]:
    @quickly
    def both(q, k, v, dout):
        out, backward = jax.vjp(lambda *x: attention(*x, **options), q, k, v)
        return [out, *backward(dout)]

    return both(q, k, v, dout)


def check(impl, batch, length, heads, head_dim, dtype, mean_segment=None, rate=0.0) -> None:
    operands = inputs(batch, length, heads, head_dim, dtype)
    segments = mean_segment and segments_of(batch, length, mean_segment)
    dropout = dict(dropout_rate=rate, dropout_seed=SEED) if rate else {}
    scale = head_dim**-0.5
    found = run(*operands, scale=jnp.float32(scale), segment_ids=segments, impl=impl, **dropout)
    assert_close(found, exact(*operands, scale, segments, rate), dtype)


CASES = [  # T, N, H, dtype, mean length of a segment, dropout
    (1, 1, 128, "float32", None, 0.0),
    (1, 4, 64, "float32", 1.0, 0.1),
    (7, 4, 128, "bfloat16", 2.0, 0.1),
    (7, 3, 64, "float32", None, 0.1),
    (128, 12, 64, "float32", 1.0, 0.0),
    (128, 4, 32, "float32", 9.0, 0.1),
    (256, 2, 128, "bfloat16", None, 0.0),
    (384, 2, 64, "bfloat16", 40.0, 0.1),
]
LARGE = [
    (1000, 1, 128, "float32", 90.0, 0.1),
    (1000, 12, 64, "bfloat16", None, 0.1),
    (1024, 20, 128, "bfloat16", 100.0, 0.1),
    (1024, 20, 128, "float32", None, 0.0),
    (1024, 12, 64, "float32", 100.0, 0.1),
    (2048, 1, 128, "float32", 300.0, 0.1),
    (2048, 2, 64, "bfloat16", None, 0.0),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("impl", ["reference", "cpu", "pallas_tpu_interpret"])
def test_result_and_gradients_are_those_of_the_formula(impl, case):
    check(impl, 2, *case)


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_ones_too(case):
    check("pallas_tpu_interpret", 1, *case)


@hypothesis.given(
    length=st.integers(1, 260),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([32, 64, 128]),
    mean_segment=st.sampled_from([None, 1.5, 50.0]),
    rate=st.sampled_from([0.0, 0.1, 0.9]),
)
@hypothesis.settings(max_examples=4, derandomize=True)
def test_any_shape(length, heads, head_dim, mean_segment, rate):
    check("pallas_tpu_interpret", 1, length, heads, head_dim, "float32", mean_segment, rate)


@pytest.mark.parametrize("impl", ["reference", "cpu", "pallas_tpu_interpret"])
def test_the_mask_is_the_same_to_the_bit(impl):
    """With unit vectors for values a row of the result is a row of weights."""
    length, size, rate = 256, 128, 0.3
    q, k, *_ = inputs(1, length, 1, size)
    for block in range(0, length, size):
        v = jnp.eye(length)[:, block : block + size][None, :, None]
        options = dict(scale=0.01, dropout_rate=rate, dropout_seed=SEED, impl=impl)
        weights = attention(q, k, v, **options)[0, :, 0]
        wanted = mask(1, 1, length, rate)[0, 0, :, block : block + size] > 0
        seen = np.tril(np.ones((length, length), bool))[:, block : block + size]
        np.testing.assert_array_equal(np.asarray(weights > 0), wanted & seen)


@pytest.fixture(params=["reference", "cpu", "pallas_tpu_interpret", "streaming"])
def impl_of_any_length(request, monkeypatch) -> str:
    """Also the kernels of long sequences, for short ones in small blocks."""
    if request.param != "streaming":
        return request.param
    small = block_sizes.Streaming(128, 128, 2, 128, 128, 2)
    monkeypatch.setattr(tpu_resident, "LONGEST", 0)
    monkeypatch.setattr(block_sizes, "streaming", lambda *_: small)
    return "pallas_tpu_interpret"


@pytest.mark.parametrize("head_dim", [64, 128])
def test_fused_is_the_same(impl_of_any_length, head_dim):
    impl = impl_of_any_length
    heads, length, rate = 256 // head_dim, 200, 0.1
    q, k, v, dout = inputs(2, length, heads, head_dim)
    segments = segments_of(2, length, 60.0)
    bias = 0.1 * jax.random.normal(jax.random.key(1), (heads, 3, head_dim))
    product = jnp.stack([q, k, v], 3) - bias
    options = dict(segment_ids=segments, dropout_rate=rate, dropout_seed=SEED, impl=impl)

    @quickly
    def both(product, bias, dout):
        attend = functools.partial(attention_qkv, head_dim=head_dim, scale=0.1, **options)
        out, backward = jax.vjp(attend, product, bias)
        return out, *backward(dout)

    shape = (2, length, -1)
    out, dproduct, dbias = both(product.reshape(shape), bias.reshape(-1), dout.reshape(shape))
    grads = jnp.moveaxis(dproduct.reshape(2, length, heads, 3, head_dim), 3, 0)
    wanted = exact(q, k, v, dout, 0.1, segments, rate)
    assert_close([out.reshape(q.shape), *grads], wanted, "float32")
    sums = np.stack([x.sum((0, 1)) for x in wanted[1:]], 1)
    np.testing.assert_allclose(dbias.reshape(sums.shape), sums, atol=2e-6 * np.abs(sums).max())


@pytest.mark.parametrize("impl", ["reference", "cpu", "pallas_tpu_interpret"])
def test_packed_is_unpacked(impl):
    """Documents in one row give the results and gradients that each gives alone."""
    lengths = [100, 1, 27, 128]
    ends = np.cumsum(lengths)
    segments = jnp.asarray(np.repeat(range(4), lengths)[None], jnp.int32)
    operands = inputs(1, ends[-1], 2, 64)
    packed = run(*operands, scale=0.1, segment_ids=segments, impl=impl)
    for start, end in zip(ends - lengths, ends, strict=True):
        alone = run(*(x[:, start:end] for x in operands), scale=0.1, impl=impl)
        for x, y in zip(packed, alone, strict=True):
            np.testing.assert_allclose(x[:, start:end], y, atol=2e-6)


@pytest.mark.parametrize("impl", ["reference", "cpu", "pallas_tpu_interpret"])
def test_layers_under_scan_and_remat(impl):
    """The scale of each layer is traced."""
    q, k, v, dout = inputs(1, 128, 1, 128)

    def layers(q, k, v):
        def layer(x, index):
            scale = 0.3 / (index + 1).astype(jnp.float32)
            return x + attention(x, k, v, scale=scale, impl=impl), None

        return jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), q, jnp.arange(3))[0]

    def unrolled(q, k, v):
        for index in range(3):
            q = q + attention(q, k, v, scale=0.3 / (index + 1), impl="reference")
        return q

    def grads(f):
        return jax.grad(lambda *x: (f(*x) * dout).sum(), argnums=(0, 1, 2))

    for x, y in zip(grads(layers)(q, k, v), grads(unrolled)(q, k, v), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5 * jnp.abs(y).max())


def test_nothing_of_size_t_by_t_is_kept():
    """HBM of a layer: q, k, v, the result and logsumexp."""
    length, heads = 256, 2
    q, k, v, _ = inputs(2, length, heads, 128, "bfloat16")
    options = dict(dropout_rate=0.1, dropout_seed=SEED, impl="pallas_tpu_interpret")
    _, backward = jax.vjp(functools.partial(attention, scale=0.1, **options), q, k, v)
    kept = sorted(x.size for x in jax.tree.leaves(backward) if x.size > 2 * heads)
    assert kept == [2 * heads * length, *[q.size] * 4]


@pytest.mark.parametrize("impl", ["reference", "cpu", "pallas_tpu_interpret"])
def test_a_device_draws_what_one_device_would(impl):
    operands = inputs(4, 128, 4, 64)
    segments = segments_of(4, 128, 30.0)
    options = dict(scale=0.1, dropout_rate=0.2, dropout_seed=SEED, impl=impl)

    def local(q, k, v, dout, segments):
        first_row = jax.lax.axis_index(("data", "fsdp")) * q.shape[0]
        first_head = jax.lax.axis_index("model") * q.shape[2]
        places = dict(first_row=first_row, first_head=first_head)
        attend = functools.partial(attention, segment_ids=segments, **places, **options)
        out, backward = jax.vjp(attend, q, k, v)
        return [out, *backward(dout)]

    mesh = Mesh(np.reshape(jax.devices()[:8], (2, 2, 2)), ("data", "fsdp", "model"))
    rows = PartitionSpec(("data", "fsdp"))
    split = PartitionSpec(("data", "fsdp"), None, "model")
    sharded = jax.shard_map(local, mesh=mesh, in_specs=(*[split] * 4, rows), out_specs=split)
    whole = run(*operands, segment_ids=segments, **options)
    for x, y in zip(quickly(sharded)(*operands, segments), whole, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-6)


@pytest.mark.parametrize(
    "impl", ["reference", "cpu", "pallas_tpu_interpret", "pallas_gpu_interpret"]
)
def test_what_devices_share_has_the_sum_of_their_gradients(impl):
    """A product that is split over devices and a bias that is not."""
    product, bias = jax.random.normal(SEED_KEY, (2, 64, 192)), jnp.linspace(-1, 1, 192)
    mesh = Mesh(jax.devices()[:2], ("data",))
    rows, alike = PartitionSpec("data"), PartitionSpec()

    def loss(attend, product, bias):
        return jnp.square(attend(product, bias)).sum()

    whole = functools.partial(attention_qkv, head_dim=64, scale=0.1, impl=impl)
    split = jax.shard_map(whole, mesh=mesh, in_specs=(rows, alike), out_specs=rows)
    found, wanted = (
        jax.grad(functools.partial(loss, f), (0, 1))(product, bias) for f in (split, whole)
    )
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * jnp.abs(y).max())


def test_dropout_keeps_the_mean():
    q, k, v, dout = inputs(2, 24, 3, 16)
    seeds = jnp.arange(400, dtype=jnp.uint32)
    options = dict(scale=0.25, dropout_rate=0.2)
    drawn = jax.vmap(lambda seed: attention(q, k, v, dropout_seed=seed, **options))(seeds)
    error = drawn.mean(0) - exact(q, k, v, dout, 0.25)[0]
    assert jnp.abs(error / (drawn.std(0) / 20 + 1e-3)).max() < 6


def test_auto_takes_what_this_machine_has_and_says_why_not_the_others(caplog):
    q, k, v, _ = inputs(1, 5, 1, 32)
    with caplog.at_level("INFO", logger="absl"):
        attention(q, k, v, scale=1.0)
    (line,) = {r.getMessage() for r in caplog.records if "(1, 5, 1, 32)" in r.getMessage()}
    assert "runs as cpu" in line
    for name, (_, platform) in IMPLEMENTATIONS.items():
        assert platform in ("cpu", None) or f"{name}: is for {platform}, this is cpu" in line


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(k=jnp.zeros((1, 3, 1, 32))), ValueError, "are not one shape"),
        (dict(q=jnp.zeros((1, 4, 1, 32), "bfloat16")), ValueError, "are not one floating dtype"),
        (dict(scale=-1.0), ValueError, "scale=-1.0 is not a positive number"),
        (dict(scale=jnp.float32(0)), ValueError, "scale=0.0 is not a positive number"),
        (dict(first_row=1.5), ValueError, "first_row=1.5 is not one integer"),
        (dict(dropout_rate=jnp.float32(0.1)), ValueError, r"is not in \[0, 1\)"),
        (dict(scale=jnp.ones(3)), ValueError, r"scale of shape \(3,\) is not one number"),
        (dict(segment_ids=jnp.zeros((2, 4), "int32")), ValueError, r"\(2, 4\) are not \[B, T\]"),
        (dict(segment_ids=jnp.zeros((1, 4))), ValueError, "dtype float32 are not int32"),
        (dict(dropout_rate=0.1), ValueError, "needs a dropout_seed"),
        (dict(dropout_rate=1.0, dropout_seed=SEED), ValueError, r"is not in \[0, 1\)"),
        (dict(dropout_rate=0.1, dropout_seed=3), ValueError, "dropout_seed int32"),
        (dict(impl="flash"), ValueError, "impl='flash' is not one of auto, pallas_tpu, "),
        (dict(impl="pallas_tpu"), NotImplementedError, "is for tpu, this is cpu"),
        (dict(impl="cudnn"), NotImplementedError, "is for gpu, this is cpu"),
    ],
)
def test_refusals_say_what_was_found(change, error, message):
    same = jnp.zeros((1, 4, 1, 32))
    options = dict(q=same, k=same, v=same, scale=1.0) | change
    with pytest.raises(error, match=message):
        attention(**options)


def test_refusals_of_the_fused_form():
    product = jnp.zeros((1, 4, 2 * 3 * 32))
    with pytest.raises(ValueError, match=r"is not \[B, T, N \* 3 \* H\] of whole heads of 128"):
        attention_qkv(product, jnp.zeros(192), head_dim=128, scale=1.0)
    with pytest.raises(ValueError, match=r"bias .* does not go with"):
        attention_qkv(product, jnp.zeros(64), head_dim=32, scale=1.0)
    with pytest.raises(NotImplementedError, match="head dim 16 is not one of"):
        attention_qkv(product, jnp.zeros(192), head_dim=16, scale=1.0, impl="pallas_tpu_interpret")


def test_block_sizes_are_checked():
    with pytest.raises(ValueError, match="forward_rows=100 is not a multiple of 128"):
        block_sizes.Resident(100, 1, 128, 1)
    with pytest.raises(ValueError, match="backward_in_flight=0"):
        block_sizes.Resident(128, 1, 128, 0)


def test_no_race_in_tpu_memory():
    """In a simulation of TPU memory that is NaN until written and watched for races."""
    operands = inputs(1, 250, 2, 64)
    options = dict(scale=jnp.float32(0.1), segment_ids=segments_of(1, 250, 60.0))
    options |= dict(dropout_rate=0.1, head_seeds=keep.head_seeds(SEED, 1, 2))
    simulated = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    attend = functools.partial(pallas_tpu.attention, interpret=simulated, **options)
    out, backward = jax.vjp(attend, *operands[:3])
    wanted = exact(*operands, 0.1, options["segment_ids"], 0.1)
    assert_close([out, *backward(operands[3])], wanted, "float32")
    assert simulation.races is not None
    assert not simulation.races.races_found


@pytest.mark.slow
def test_the_demo_trains_alike():
    """configs/demo.py, dropout and mesh included: loss and gradient norm of each step to 1e-5."""
    found = {}
    for impl in ("reference", "pallas_tpu_interpret"):
        demo = settings.build(config.Experiment, get_config().to_dict())
        demo = changed(demo, model__attention=impl)
        mesh = make_mesh(demo, jax.devices()[:8])
        state, step = started(demo, mesh), train_step(demo, mesh)
        found[impl] = []
        for number in range(5):
            state, metrics = step(state, put(random_tokens(demo, number), mesh))
            found[impl].append([metrics["loss"], metrics["grad_norm"]])
    np.testing.assert_allclose(*found.values(), rtol=1e-5)
