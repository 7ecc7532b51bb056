"""The GPU kernels: interpreted against float64, and compiled for GPUs that are not here."""

import dataclasses
import functools
import importlib.util
import re
import warnings
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from biomedlm_jax.kernels.attention import cudnn, keep, pallas_gpu, reference
from biomedlm_jax.planning import target
from tests.conftest import TINY, changed

TOLERANCE = {jnp.float32: 1e-5, jnp.float16: 5e-3, jnp.bfloat16: 3e-2}  # of the largest element
DATA_SHEETS = {
    "A100": dict(
        device_description_str="NVIDIA A100-SXM4-80GB",
        cuda_compute_capability="{ major: 8 minor: 0 }",
        core_count=108,
        fpus_per_core=64,
        clock_rate_ghz=1.41,
        memory_bandwidth=2_039_000_000_000,
        l2_cache_size=41_943_040,
        shared_memory_per_core=167_936,
        shared_memory_per_block_optin=166_912,
    ),
    "H100": dict(
        device_description_str="NVIDIA H100 80GB HBM3",
        cuda_compute_capability="{ major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }",
        core_count=132,
        fpus_per_core=128,
        clock_rate_ghz=1.98,
        memory_bandwidth=3_352_320_000_000,
        l2_cache_size=52_428_800,
        shared_memory_per_core=233_472,
        shared_memory_per_block_optin=232_448,
    ),
}
TARGET = """gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_core: {shared_memory_per_core}
  shared_memory_per_block_optin: {shared_memory_per_block_optin}
  core_count: {core_count}  fpus_per_core: {fpus_per_core}  clock_rate_ghz: {clock_rate_ghz}
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: {memory_bandwidth}  l2_cache_size: {l2_cache_size}
  device_memory_size: 84978434048  cuda_compute_capability {cuda_compute_capability}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}}
platform_name: "CUDA"  device_description_str: "{device_description_str}"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
"""
# Unless JAX is told to use the CPU, the plugin looks for a GPU and gives up without one.
HAS_PLUGIN = all(map(importlib.util.find_spec, ("jax_plugins", "jax_plugins.xla_cuda12")))
needs_plugin = pytest.mark.skipif(
    not HAS_PLUGIN or jax.config.jax_platforms != "cpu",
    reason="needs jax-cuda12-plugin, jax-cuda12-pjrt, nvidia-cuda-nvcc-cu12 and JAX_PLATFORMS=cpu",
)


def inputs(shape, dtype, *, segments=0, rate=0.0, seed=0) -> tuple[list, dict[str, Any]]:
    """(q, k, v, d_out) and the options of a kernel but scale, drawn from `seed`."""
    draw = np.random.default_rng(seed)
    arrays = [jnp.asarray(draw.standard_normal(shape), dtype) for _ in range(4)]
    ids = seeds = None
    if segments:
        ids = jnp.asarray(np.sort(draw.integers(0, segments, shape[:2]), axis=1), jnp.int32)
    if rate:
        seeds = keep.head_seeds(jnp.uint32(seed), shape[0], shape[2])
    return arrays, dict(segment_ids=ids, dropout_rate=rate, head_seeds=seeds)


def kept(length: int, rate: float, head_seeds) -> np.ndarray:
    """Which weights [B, N, T, S] stay, as in reference.py."""
    own_query, own_key = (x[..., None] for x in keep.own(head_seeds))
    base_query, base_key = keep.bases(length)
    a, b = keep.side(base_query, own_query, own_key), keep.side(base_key, own_key, own_query)
    return np.asarray(keep.kept(a[..., None], b[..., None, :], rate))


def formula(q, k, v, d_out, scale, *, segment_ids, dropout_rate, head_seeds):
    """(out, dq, dk, dv) in float64."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    length = q.shape[1]
    visible = np.tril(np.ones((length, length), bool))
    if segment_ids is not None:
        ids = np.asarray(segment_ids)
        visible = visible & (ids[:, None, :, None] == ids[:, None, None, :])
    keeps = 1.0
    if head_seeds is not None:
        keeps = kept(length, dropout_rate, head_seeds) / (1 - dropout_rate)
    scores = np.where(visible, scale * np.einsum("btnh,bsnh->bnts", q, k), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    d_weights = np.einsum("btnh,bsnh->bnts", d_out, v) * keeps
    d_scores = weights * (d_weights - (d_weights * weights).sum(-1, keepdims=True))
    return (
        np.einsum("bnts,bsnh->btnh", weights * keeps, v),
        scale * np.einsum("bnts,bsnh->btnh", d_scores, k),
        scale * np.einsum("bnts,btnh->bsnh", d_scores, q),
        np.einsum("bnts,btnh->bsnh", weights * keeps, d_out),
    )


@functools.partial(jax.jit, static_argnames="dropout_rate")
def interpreted(q, k, v, d_out, scale, **options):
    """(out, dq, dk, dv) of the kernels."""
    attend = functools.partial(pallas_gpu.attention, scale=scale, **options, interpret=True)
    out, pullback = jax.vjp(attend, q, k, v)
    return out, *pullback(d_out)


def check(shape, dtype, scale=0.3, **drawn):
    arrays, options = inputs(shape, dtype, **drawn)
    found = interpreted(*arrays, jnp.float32(scale), **options)
    expected = formula(*arrays, scale, **options)
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        atol = TOLERANCE[dtype] * max(np.abs(b).max(), 1)
        np.testing.assert_allclose(np.asarray(a, np.float64), b, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    ("shape", "dtype", "drawn"),
    [
        ((1, 1, 1, 64), jnp.float32, dict()),
        ((2, 7, 3, 64), jnp.float32, dict(segments=3, rate=0.1)),
        ((1, 128, 3, 128), jnp.bfloat16, dict(rate=0.1)),
        ((1, 1000, 1, 64), jnp.bfloat16, dict(segments=5, rate=0.1)),
        ((1, 150, 2, 32), jnp.float32, dict(segments=100)),  # many of length 1
    ],
)
def test_out_and_gradients_equal_the_formula(shape, dtype, drawn):
    check(shape, dtype, **drawn)


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [dict(), dict(segments=4), dict(segments=1024, rate=0.5)])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_long_sequences_equal_the_formula(dtype, head_dim, drawn):
    check((1, 1024, 2, head_dim), dtype, **drawn)
    check((1, 1000, 1, head_dim), dtype, **drawn)


@hypothesis.settings(max_examples=3, derandomize=True)
@hypothesis.given(
    batch=st.integers(1, 2),
    length=st.integers(1, 100),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([32, 64, 128]),
    segments=st.integers(0, 20),
    rate=st.sampled_from([0.0, 0.1, 0.7]),
    seed=st.integers(0, 2**31),
)
def test_drawn_shapes_equal_the_formula(batch, length, heads, head_dim, **drawn):
    check((batch, length, heads, head_dim), jnp.float32, **drawn)


def test_segments_need_not_lie_together():
    arrays, options = inputs((1, 150, 2, 32), jnp.float32, segments=100)
    ids = np.random.default_rng(1).integers(0, 9, (1, 150))
    options["segment_ids"] = jnp.asarray(ids, jnp.int32)
    found = interpreted(*arrays, jnp.float32(0.3), **options)
    for a, b in zip(found, formula(*arrays, 0.3, **options), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_dropout_mask_is_the_references_to_the_bit():
    """Values and d_out that are unit vectors read single weights: v[s] = e_s gives out[t, s]."""
    arrays, options = inputs((1, 128, 2, 128), jnp.float32, rate=0.4)
    units = jnp.broadcast_to(jnp.eye(128)[None, :, None], (1, 128, 2, 128))
    out, _, _, dv = interpreted(*arrays[:2], units, units, jnp.float32(0.1), **options)
    expected = kept(128, 0.4, options["head_seeds"]) & np.tril(np.ones((128, 128), bool))
    np.testing.assert_array_equal(np.einsum("btns->bnts", out) > 0, expected)
    np.testing.assert_array_equal(np.einsum("bsnt->bnts", dv) > 0, expected)


def test_on_a_mesh_each_device_computes_its_rows_and_heads():
    arrays, options = inputs((2, 40, 2, 32), jnp.float32, segments=3, rate=0.2)
    scale, rate = jnp.float32(0.3), options.pop("dropout_rate")
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    whole = P("data", None, "model")
    sharded = jax.shard_map(
        lambda q, k, v, d_out, scale, ids, seeds: interpreted(
            q, k, v, d_out, scale, segment_ids=ids, head_seeds=seeds, dropout_rate=rate
        ),
        mesh=mesh,
        in_specs=(whole,) * 4 + (P(), P("data"), P("data", "model")),
        out_specs=(whole,) * 4,
    )
    found = jax.jit(sharded)(*arrays, scale, options["segment_ids"], options["head_seeds"])
    expected = formula(*arrays, 0.3, dropout_rate=rate, **options)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_under_scan_and_remat_the_gradients_are_the_references():
    (q, k, v, _), options = inputs((1, 40, 1, 32), jnp.float32)
    scales = jnp.asarray([0.3, 0.15, 0.1])
    gradients = [
        jax.jit(jax.grad(lambda q, k, v, a=attend: stack(a, q, k, v, scales).sum(), (0, 1, 2)))
        for attend in (
            functools.partial(pallas_gpu.attention, **options, interpret=True),
            functools.partial(reference.attention, **options),
        )
    ]
    for a, b in zip(*[gradient(q, k, v) for gradient in gradients], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def stack(attend, q, k, v, scales):
    """Layers that share k and v, each computed again in the backward pass."""

    @jax.checkpoint
    def layer(x, scale):
        return x + attend(x, k, v, scale=scale), None

    return jax.lax.scan(layer, q, scales)[0]


def test_refusals_say_what_was_found():
    def attend(shape=(1, 8, 1, 64), dtype=jnp.float32, interpret=True):
        arrays, options = inputs(shape, dtype)
        return pallas_gpu.attention(*arrays[:3], scale=1.0, interpret=interpret, **options)

    with pytest.raises(NotImplementedError, match=r"head dim 48 is not one of \(32, 64, 128\)"):
        attend(shape=(1, 8, 1, 48))
    with pytest.raises(NotImplementedError, match="int8, int8, int8, not one of bfloat16"):
        attend(dtype=jnp.int8)
    with pytest.raises(NotImplementedError, match="need an NVIDIA GPU; this is cpu"):
        attend(interpret=False)


def test_a_gpu_without_block_sizes_is_refused(monkeypatch):
    monkeypatch.setattr(pallas_gpu.block_sizes, "device", lambda: ("gpu", "Tesla T4"))
    arrays, options = inputs((1, 8, 1, 64), jnp.float32)
    with pytest.raises(NotImplementedError, match="no block sizes for 'Tesla T4'; there are"):
        pallas_gpu.attention(*arrays[:3], scale=1.0, **options)


def absent(gpu: str):
    """The device, which need not be here."""
    topology = topologies.get_topology_desc(
        platform="cuda",
        topology_name=gpu.lower(),
        target_config=TARGET.format(**DATA_SHEETS[gpu]),
        topology="1x1x1",
    )
    return topology.devices[0]


def lowered(gpu: str, attention, structs, out_specs):
    """`attention` on one `gpu`, as the step calls it: under shard_map."""
    mesh = Mesh(np.array([absent(gpu)]), ("data",))
    specs = [P("data") if x.ndim else P() for x in structs]
    structs = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
        for x, spec in zip(structs, specs, strict=True)
    ]
    sharded = jax.shard_map(attention, mesh=mesh, in_specs=tuple(specs), out_specs=out_specs)
    with warnings.catch_warnings():
        # jax 0.12 says of all Triton kernels that they will move out of JAX.
        warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)
        return jax.jit(sharded).trace(*structs).lower(lowering_platforms=("cuda",))


def compiled(gpu: str, shape, dtype, *, segments: bool, rate: float) -> str:
    """The program of forward and backward; an error if a kernel keeps registers in memory."""
    batch, length, heads, _ = shape

    def attention(q, k, v, d_out, scale, ids, seeds):
        options = dict(segment_ids=ids if segments else None, head_seeds=seeds if rate else None)
        attend = functools.partial(pallas_gpu.attention, scale=scale, dropout_rate=rate, **options)
        out, pullback = jax.vjp(attend, q, k, v)
        return out, *pullback(d_out)

    structs = [jax.ShapeDtypeStruct(shape, dtype)] * 4
    structs += [
        jax.ShapeDtypeStruct((), jnp.float32),
        jax.ShapeDtypeStruct((batch, length), jnp.int32),
        jax.ShapeDtypeStruct((batch, heads), jnp.uint32),
    ]
    program = lowered(gpu, attention, structs, (P("data"),) * 4)
    options = {"xla_gpu_fail_ptx_compilation_on_register_spilling": True}
    return program.compile(compiler_options=options).as_text()


@needs_plugin
@pytest.mark.parametrize("gpu", DATA_SHEETS)
def test_no_register_spills_at_the_models_shape(gpu):
    program = compiled(gpu, (4, 1024, 20, 128), jnp.bfloat16, segments=True, rate=0.1)
    assert all(f"attention_{name}" in program for name in ("forward", "dq", "dkv"))
    moved = re.findall(r"= bf16\[4,\d+,\d+,128\]\S* (?:copy|transpose)\(", program)
    assert not moved


@needs_plugin
def test_a_step_runs_no_kernel_twice():
    """The forward kernel of the first layer stands before the loop over layers, that of the others
    in it, and the backward pass has those of the backward alone."""
    experiment = changed(TINY, model__layers=3, model__width=128, model__heads=2)
    experiment = changed(experiment, model__remat="named", model__compute_dtype="bfloat16")
    step, operands = target.program(absent("A100"), experiment=dataclasses.asdict(experiment))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)
        lowered = step.trace(*operands).lower(lowering_platforms=("cuda",))
    text = lowered.compile().as_text()
    kernels = re.findall(r"custom-call\(.*xla.gpu.triton.*?attention_(\w+?)[.\"/\d]", text)
    assert sorted(kernels) == ["dkv", "dq", "forward", "forward"]


@needs_plugin
@pytest.mark.slow
@pytest.mark.parametrize("gpu", DATA_SHEETS)
@pytest.mark.parametrize("head_dim", pallas_gpu.HEAD_DIMS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_no_register_spills(gpu, head_dim, dtype):
    for segments in (False, True):
        for rate in (0.0, 0.1):
            for length in (1024, 1000):
                compiled(gpu, (2, length, 2, head_dim), dtype, segments=segments, rate=rate)


@needs_plugin
def test_a_spill_would_be_found(monkeypatch):
    rows = pallas_gpu.BLOCK_SIZES["NVIDIA A100", 128, 2]
    too_few_warps = rows._replace(forward=rows.forward._replace(warps=4))
    monkeypatch.setattr(pallas_gpu, "tuning_of", lambda *_: too_few_warps)
    with pytest.raises(jax.errors.JaxRuntimeError, match="register spilling"):
        compiled("A100", (1, 256, 1, 128), jnp.bfloat16, segments=False, rate=0.0)


def test_cudnn_refuses_what_it_can_not_do():
    def attend(shape=(1, 8, 1, 64), dtype=jnp.bfloat16, **drawn):
        arrays, options = inputs(shape, dtype, **drawn)
        return jax.eval_shape(lambda q: cudnn.attention(q, q, q, scale=1.0, **options), arrays[0])

    for reason, case in {
        "dropout_rate=0.1: cuDNN draws bits of its own": dict(rate=0.1),
        "a bias of T x T": dict(segments=2),
        "float32, float32, float32; cuDNN takes bfloat16": dict(dtype=jnp.float32),
        "head dim 20; cuDNN takes multiples of 8 up to 128": dict(shape=(1, 8, 1, 20)),
        "head dim 256": dict(shape=(1, 8, 1, 256)),
        "cuDNN needs an NVIDIA GPU; this is cpu": dict(),
    }.items():
        with pytest.raises(NotImplementedError, match=reason):
            attend(**case)


def test_a_missing_cudnn_is_refused_while_tracing(monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("cuDNN not found.")

    monkeypatch.setattr(cudnn.block_sizes, "device", lambda: ("gpu", "NVIDIA A100-SXM4-80GB"))
    monkeypatch.setattr(jax.nn, "dot_product_attention", missing)
    q = jax.ShapeDtypeStruct((1, 8, 1, 64), jnp.bfloat16)
    options = inputs(q.shape, q.dtype)[1]
    with pytest.raises(NotImplementedError, match="can not be used: cuDNN not found"):
        jax.eval_shape(lambda q: cudnn.attention(q, q, q, scale=1.0, **options), q)


@needs_plugin
def test_cudnn_is_called_where_q_lies_with_the_static_part_of_scale(monkeypatch):
    # The call is lowered without the library; only its version is asked for.
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    options = inputs((1, 1, 1, 64), jnp.bfloat16)[1]
    structs = [jax.ShapeDtypeStruct((2, 256, 4, 64), jnp.bfloat16)] * 3
    structs += [jax.ShapeDtypeStruct((), jnp.float32)]
    attend = functools.partial(cudnn.attention, **options)
    program = lowered(
        "H100", lambda q, k, v, scale: attend(q, k, v, scale=scale), structs, P("data")
    )
    text = program.as_text()
    for expected in ("__cudnn$fmhaSoftmax", "CAUSAL", "0.125"):
        assert expected in text


def test_cudnn_scales_q_exactly_where_it_can(monkeypatch):
    """jax.nn's own form stands in for cuDNN; what the folded scale does to q is the same."""
    dot_product_attention = jax.nn.dot_product_attention

    def stand_in(q, k, v, **options):
        return dot_product_attention(q, k, v, **{**options, "implementation": "xla"})

    monkeypatch.setattr(cudnn.block_sizes, "device", lambda: ("gpu", "NVIDIA A100-SXM4-80GB"))
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    (q, k, v, _), options = inputs((1, 64, 2, 128), jnp.bfloat16)
    for layer, exact in {0: True, 2: False, 3: True}.items():
        scale = 1 / np.sqrt(128) / (layer + 1)
        static = cudnn.attention(q, k, v, scale=float(scale), **options)
        traced = cudnn.attention(q, k, v, scale=jnp.float32(scale), **options)
        np.testing.assert_allclose(
            np.float32(traced), np.float32(static), atol=0 if exact else TOLERANCE[jnp.bfloat16]
        )
