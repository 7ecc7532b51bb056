"""What is counted in the text of real programs for chips that are not here, against counts by hand,
and in texts cut down to what is read."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from biomedlm_jax.compilers import calls, child, cost, hlo, traffic, whole
from biomedlm_jax.compilers.programs import Programs
from biomedlm_jax.compilers.traffic import Collective

HERE = "tests.test_compilers_counts:"


@pytest.fixture(scope="module", params=["tpu", "gpu"])
def compiler(request):
    if reason := child.missing(request.param):
        pytest.skip(reason)
    with Programs(request.param) as compiler:
        yield compiler, {"tpu": "v5e:2x2", "gpu": "h100:4"}[request.param]


def gathered(*devices, layers, rows, width):
    """A scan of products with weights that are gathered for each, one sum over all at the end."""
    mesh = jax.sharding.Mesh(list(devices), ("x",))

    def local(x, weights):
        def layer(x, weight):
            whole = jax.lax.all_gather(weight, "x", tiled=True)
            return jnp.tanh(x @ whole), None

        x, _ = jax.lax.scan(layer, x, weights)
        scores = jnp.einsum("bd,cd->bc", x, x, preferred_element_type=jnp.float32)
        return jax.lax.psum(scores, "x")

    split = PartitionSpec("x"), PartitionSpec(None, "x")
    function = jax.shard_map(local, mesh=mesh, in_specs=split, out_specs=PartitionSpec())
    shapes = (len(devices) * rows, width), (layers, width, width)
    operands = tuple(
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, split, strict=True)
    )
    return function, operands


@pytest.mark.parametrize("layers", [3, 7])
def test_products_and_collectives_of_a_loop_are_those_counted_by_hand(compiler, layers, tmp_path):
    compile_, machine = compiler
    rows, width, text = 256, 512, tmp_path / "step.hlo"
    options = dict(layers=layers, rows=rows, width=width)
    found = compile_.program(machine, HERE + "gathered", text_to=text, **options)
    assert found["matrix_flops"] == layers * 2 * rows * width**2 + 2 * rows**2 * width
    totals = traffic.totals([Collective(**one) for one in found["collectives"]], 4)
    gathers, reduces = totals["all-gather"], totals["all-reduce"]
    assert set(totals) == {"all-gather", "all-reduce"}
    assert (gathers.runs, gathers.bytes) == (layers, layers * width**2 * 2)
    assert (reduces.runs, reduces.bytes) == (1, rows**2 * 4)
    assert gathers.wire == 3 / 4 * gathers.bytes
    assert reduces.wire == 2 * 3 / 4 * reduces.bytes
    assert found["memory"]["arguments"] == (rows + layers * width // 4) * width * 2
    assert found["host_bytes"] > 1e8
    assert cost.read(text.read_text()).matrix_flops == found["matrix_flops"]
    estimates = machine.startswith("v5e")
    assert bool(found["xla_cycles"]) == estimates
    assert (found["xla_cycles"] is None) != estimates


def test_kernels_cost_alone_what_they_cost_in_their_program():
    """Where operands are in HBM; a step leaves some in VMEM, for 2 % more cycles."""
    if reason := child.missing("tpu"):
        pytest.skip(reason)
    asked = dict(make="biomedlm_jax.speed.attention:ours", shape=(2, 4, 1024, 128))
    with Programs("tpu") as programs:
        alone = programs.program("v5e", **asked)
    with child.Compiler("tpu") as compiler:
        inside = compiler.measure("v5e", **asked)["kernels"]
    assert alone["kernel_runs"] == {name: kernel["runs"] for name, kernel in inside.items()}
    expected = sum(kernel["runs"] * kernel["cycles"] for kernel in inside.values())
    assert alone["kernel_cycles"] == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("cycles", "runs", "total"),
    [
        ({"forward": [100], "backward": [200]}, {"forward.1": 3, "backward.7.clone": 2}, 700),
        ({"forward": [100, 100]}, {"forward.1": 3}, 300),
        ({"forward": [100], "forward_long": [7]}, {"jvp_forward_long_.1": 1, "forward.2": 1}, 107),
        ({"forward": [100, 120]}, {"forward.1": 3}, "several kernels of a name that differ"),
        ({"forward": [100]}, {"other.1": 3}, "other.1 is no kernel that"),
        ({"forward": [None]}, {"forward.1": 3}, "the trips of a loop in forward are not const"),
        ({"forward": ["Mosaic\n failed"]}, {"forward.1": 3}, "not compile alone: Mosaic failed"),
        ("a kernel takes tensor<3xf4>", {"forward.1": 3}, "a kernel takes tensor<3xf4>"),
        ({"forward": [100]}, None, "could not be counted"),
        ({}, {}, 0),
        ("a kernel takes tensor<3xf4>", {}, 0),
    ],
)
def test_a_kernel_whose_cycles_are_not_known_makes_the_sum_unknown(
    cycles, runs, total, monkeypatch
):
    calls = cycles
    if isinstance(cycles, dict):
        calls = [{"name": name, "cycles": n} for name, each in cycles.items() for n in each]

    def measure(chip, make, call):
        if isinstance(call["cycles"], str):
            raise child.CompileError(call["cycles"])
        known = call["cycles"] is not None
        one = {"cycles": call["cycles"] or 7, "cycles_of_a_trip": 0 if known else 3}
        return {"kernels": {call["name"]: one}}

    whole_program = {"calls": calls, "kernel_runs": runs}
    with Programs("tpu") as programs:
        monkeypatch.setattr(programs._kernels, "measure", measure)
        monkeypatch.setattr(programs._whole, "asked", lambda request: dict(whole_program))
        found = programs.program("v5e:2x2", "")
    if isinstance(total, int):
        assert found == {"kernel_runs": runs, "kernel_cycles": total}
    else:
        assert found["kernel_cycles"] is None
        assert total in found["kernels_unknown"]


def test_a_kernel_of_an_unknown_type_is_not_known_and_the_program_compiles(monkeypatch):
    def unknown(lowered):
        raise ValueError("a kernel takes or gives tensor<4xf8E8M0FNU>")

    monkeypatch.setattr(calls, "calls", unknown)
    assert whole.called(None) == "a kernel takes or gives tensor<4xf8E8M0FNU>"


def huge(device, *, gibibytes):
    here = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((gibibytes, 2**28), jnp.float32, sharding=here)
    return lambda x: x + 1, (x,)


def test_what_does_not_fit_says_what_it_would_take():
    if reason := child.missing("tpu"):
        pytest.skip(reason)
    with Programs("tpu") as compiler, pytest.raises(child.CompileError) as error:
        compiler.program("v5e:1x1", HERE + "huge", gibibytes=16)
    wanted, there = whole.too_large(str(error.value)) or (0, 0)
    assert there == 15.75 * 2**30
    assert wanted >= 32 * 2**30


def test_refusals_of_both_libtpus_are_read():
    older = "Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm"
    newer = "memory required for HLO temporaries (512.00M) exceeds available HBM (15.75G). HLO"
    assert whole.too_large(older) == (20.5 * 2**30, 15.75 * 2**30)
    assert whole.too_large(newer) == (512 * 2**20, 15.75 * 2**30)
    assert whole.too_large("INVALID_ARGUMENT: no such thing") is None


ASYNC = """\
HloModule jit_step

%begin (p: bf16[8,64]) -> (bf16[8,64], bf16[32,64]) {
  %all-gather.1 = bf16[32,64]{1,0} all-gather(%p), channel_id=7, dimensions={0}
  ROOT %start = (bf16[8,64], bf16[32,64]) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (p: bf16[8,64]) -> bf16[32,64] {
  ROOT %all-gather.2 = bf16[32,64]{1,0} all-gather(%p), channel_id=7, dimensions={0}
}

%finish (p: bf16[8,64]) -> bf16[32,64] {
  %all-gather.3 = bf16[32,64]{1,0} all-gather(%p), channel_id=7, dimensions={0}
  ROOT %done = bf16[32,64] custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter (p: f32[64,64]) -> f32[16,64] {
  %all-reduce.9 = f32[64,64]{1,0} all-reduce(%p), channel_id=3, to_apply=%add
  ROOT %slice = f32[16,64]{1,0} dynamic-slice(%all-reduce.9), dynamic_slice_sizes={16,64}
}

ENTRY %main (p: bf16[8,64], q: f32[64,64]) -> bf16[32,64] {
  %a = (bf16[8,64], bf16[32,64]) fusion(%p), kind=kCustom, calls=%begin
  %b = bf16[32,64]{1,0} fusion(%p), kind=kOutput, calls=%async_collective_fusion.2
  %scattered = f32[16,64]{1,0} fusion(%q), kind=kCustom, calls=%all-reduce-scatter
  %permute = (f32[16,64]{1,0}, f32[16,64]{1,0}, u32[]) collective-permute-start(%scattered), channel_id=1
  %rs = ((f32[64,64]{1,0}, f32[4]{0}), (f32[16,64]{1,0}, f32[1]{0})) reduce-scatter-start(%q, %c), channel_id=1
  %ar = (f32[64,64]{1,0}, f32[8]{0}) all-reduce-start(%q, %c), channel_id=1
  ROOT %c = bf16[32,64]{1,0} fusion(%p), kind=kCustom, calls=%finish
}
"""  # noqa: E501


def test_an_asynchronous_collective_is_written_three_times_and_counts_once():
    all_of = traffic.collectives(hlo.parse(ASYNC))
    found = sorted((one.kind, one.bytes, one.alone) for one in all_of)
    assert found == [
        ("all-gather", 32 * 64 * 2, False),
        ("all-reduce", 64 * 64 * 4 + 8 * 4, False),
        ("collective-permute", 16 * 64 * 4, False),
        ("reduce-scatter", 64 * 64 * 4, True),
        ("reduce-scatter", 64 * 64 * 4 + 4 * 4, False),
    ]


def test_a_program_that_can_not_be_counted_says_why_and_counts_nothing():
    text = ASYNC.replace("ENTRY %main", "%main")
    found = whole.counted(text)
    assert found["uncounted"] == "the text has no ENTRY computation"
    assert found["matrix_flops"] is found["collectives"] is found["xla_cycles"] is None


@pytest.mark.parametrize(
    ("text", "block", "group"),
    [
        ("replica_groups=mesh['data'=2,'fsdp'=8,'model'=1] {'fsdp'}, dimensions={1}", 8, 8),
        ("replica_groups=mesh['data'=2,'fsdp'=8,'model'=1] {'data','model'}", 16, 2),
        ("replica_groups=mesh['data'=2,'fsdp'=4,'model'=2] {'model'}", 2, 2),
        ("replica_groups=[2,8]<=[16], dimensions={0}", 8, 8),
        ("replica_groups=[8,2]<=[2,8]T(1,0), use_global_device_ids=true", 16, 2),
        ("replica_groups={{0,1,2},{4,5}}, to_apply=%add", 4, 3),
        ("channel_id=3, source_target_pairs={{0,1},{1,2},{2,3}}", 4, 2),
        ("channel_id=3, source_target_pairs={{6,7}}", 2, 2),
        ("channel_id=3", None, None),
    ],
)
def test_how_far_a_collective_reaches_and_with_how_many(text, block, group):
    line = f"  ROOT %r = f32[8]{{0}} all-reduce(%p), {text}"
    (found,) = traffic.collectives(hlo.parse(f"ENTRY %main (p: f32[8]) -> f32[8] {{\n{line}\n}}"))
    assert (found.block, found.group) == (block, group)


def test_a_permute_sends_all_that_it_has():
    permute = Collective("collective-permute", 3, 100, True, "", None, None)
    assert permute.wire(4) == 300
    assert traffic.totals([permute], 4)["collective-permute"].wire == 300
