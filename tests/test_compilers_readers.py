"""What is read from compilers' texts, on texts cut down to what is read."""

import pytest

from biomedlm_jax.compilers import cost, gpu, schedules
from biomedlm_jax.compilers.chips import GPUS


def program(lines: dict[int, str], bundles: int) -> str:
    """A schedule of empty bundles, with comments at some of them."""
    return "\n".join(
        f"{hex(at) if at else '0':>6}   : {{ {lines.get(at, '')} }}" for at in range(bundles)
    )


# A loop of bundles 10 to 59, 6 times; in it the pipeline's region, in that one that may be skipped.
NESTED = {
    10: "%s1 = smov.u32 0 } /* Start region 3 */",
    12: "%9 = sbr.rel (%p1_p2) target = $region40",
    15: "%12 = sbr.rel (!%p3_p0) target = $region41",
    45: "} /* End region 9 */ /* Start region 41 */",
    52: "} /* Start region 40 */",
    53: "%p2_p6 = scmp.ge.s32.totalorder %s2_s25, 6 /* loop exit test */",
    54: "%20 = sbr.rel (!%p2_p6) target = $region3",
}
UNITS = "== CAPACTIY:\nMATMUL, MATPUSH, VSTORE:SPILL\n    4     4     1\n== UTILIZATION:\n"


def test_loops_count_by_their_trips_and_what_a_step_may_skip_is_apart():
    slots = UNITS + "\n".join(f"{3 * (30 <= at < 35)} 0 {at % 2}" for at in range(64))
    found = schedules.read(program(NESTED, 64), slots)
    assert found.bundles == 64
    assert found.loops == (schedules.Loop(10, 59, 6),)
    assert found.cycles() == 64 + 5 * 49
    assert found.cycles_of_a_trip() == 0
    assert found.regions == ((17, 52), (20, 45))
    assert found.optional() == [(6 * 25, 15)]
    assert found.used("MATMUL") == 15
    assert found.used("VSTORE:SPILL") == 32


def test_a_loop_without_constant_trips_counts_once_and_says_what_a_trip_costs():
    lines = {**NESTED, 53: "%p2_p6 = scmp.ge.s32.totalorder %s2_s25, %s9 /* loop exit test */"}
    found = schedules.read(program(lines, 64))
    assert found.loops == (schedules.Loop(10, 59, None),)
    assert (found.cycles(), found.cycles_of_a_trip()) == (64, 49)


def test_loops_in_loops_multiply():
    inner = {
        20: "} /* Start region 5 */",
        29: "%p8_p1 = scmp.ge.s32.totalorder %s7_s1, 3 /* loop exit test */",
        30: "%13 = sbr.rel (!%p8_p1) target = $region5",
    }
    outer = {at: line for at, line in NESTED.items() if at in (10, 53, 54)}
    found = schedules.read(program(outer | inner, 64))
    assert found.cycles() == 15 + 6 * (49 - 15 + 3 * 15)


def test_slots_of_the_older_libtpu_are_found():
    slots = "== CAPACTIY:\nMXU, XLU\n    4     3\n== UTILIZATION:\n2 1\n1 0\n"
    assert schedules.read(program({}, 2), slots).used("MATMUL") == 3


def test_a_text_without_bundles_is_refused():
    with pytest.raises(ValueError, match="no bundles"):
        schedules.read("an error message")


HLO = """\
HloModule jit_step, is_scheduled=true

%fused (p: f32[8]) -> f32[8] {
  ROOT %inner.1 = f32[8]{0} add(%p, %p), backend_config={"estimated_cycles":"7777"}
}

%test.1 (state: (s32[], f32[8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(12)
  ROOT %lt.0 = pred[]{:T(512)} compare(%counter, %bound), direction=LT
}

%body.1 (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.1 = f32[8]{0} fusion(%p), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"50"}
  ROOT %kernel.1 = (f32[8]{0}, f32[8]{0}) custom-call(%p), custom_call_target="tpu_custom_call"
}

ENTRY %main.1 (x: f32[8]) -> f32[8] {
  %copy.1 = f32[8]{0} copy(%x), backend_config={"estimated_cycles":"3"}
  ROOT %while.1 = (s32[], f32[8]{0}) while(%copy.1), condition=%test.1, body=%body.1
}
"""  # noqa: E501


def test_operations_count_as_often_as_the_loops_around_run():
    found = cost.read(HLO)
    assert (found.xla_cycles, found.kernels) == (12 * 50 + 3, {"kernel.1": 12})


@pytest.mark.parametrize("target", ["mosaic_gpu_v2", "__cudnn$fmhaSoftmaxDropoutBackward"])
def test_attention_of_gpus_is_a_kernel(target):
    assert cost.read(HLO.replace("tpu_custom_call", target)).kernels == {"kernel.1": 12}
    assert cost.read(HLO.replace("tpu_custom_call", "__cudnn$convForward")).kernels == {}


def test_a_loop_without_a_constant_bound_is_refused():
    with pytest.raises(ValueError, match=r"while\.1 does not run to a constant"):
        cost.read(HLO.replace("constant(12)", "parameter(1)"))


def test_registers_and_spills_of_each_kernel():
    report = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'attention_dq' for 'sm_90a'
ptxas info    : Function properties for attention_dq
    16 bytes stack frame, 24 bytes spill stores, 32 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 376 bytes cmem[0]
ptxas info    : Compiling entry function 'attention_dkv' for 'sm_90a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers
"""
    assert gpu.read(report) == {
        "attention_dq": {"registers": 255, "stack_bytes": 16, "spilled_bytes": 56},
        "attention_dkv": {"registers": 40, "stack_bytes": 0, "spilled_bytes": 0},
    }
    with pytest.raises(ValueError, match="says nothing of registers or spills of 'attention_dkv'"):
        gpu.read(report.replace("Used 40 registers", ""))


def test_targets_name_the_architecture():
    assert "feature_extension" in GPUS["h100"].target()
    assert "feature_extension" not in GPUS["a100-80"].target()
    assert "shared_memory_per_block_optin: 232448" in GPUS["h100"].target()
    assert "shared_memory_per_block_optin: 166912" in GPUS["a100-80"].target()
