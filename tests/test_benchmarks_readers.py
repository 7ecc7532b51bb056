"""What the benchmarks read from compilers' texts, on texts cut down to what is read."""

import pytest

from biomedlm_jax.benchmarks import (
    compiler_gpu,
    hlo,
    kernels,
    peers,
    report,
    schedules,
    times,
)
from biomedlm_jax.benchmarks.chips import GPUS, TPUS


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
    assert hlo.read(HLO) == hlo.Program(xla_cycles=12 * 50 + 3, kernels={"kernel.1": 12})


def test_a_loop_without_a_constant_bound_is_refused():
    with pytest.raises(ValueError, match=r"while\.1 does not run to a constant"):
        hlo.read(HLO.replace("constant(12)", "parameter(1)"))


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
    assert compiler_gpu.read(report) == {
        "attention_dq": {"registers": 255, "stack_bytes": 16, "spilled_bytes": 56},
        "attention_dkv": {"registers": 40, "stack_bytes": 0, "spilled_bytes": 0},
    }
    with pytest.raises(ValueError, match="says nothing of registers or spills of 'attention_dkv'"):
        compiler_gpu.read(report.replace("Used 40 registers", ""))


def test_times_are_of_what_runs_here_and_the_rest_says_why_not():
    refused, timed = times.measure((1, 2, 64, 16), ("pallas_tpu", "reference"))
    assert "pallas_tpu: is for tpu" in refused["refused"]
    assert timed["implementation"] == "reference"
    assert timed["device"] == "cpu"
    assert timed["milliseconds"] > 0


def test_targets_name_the_architecture():
    assert "feature_extension" in GPUS["h100"].target()
    assert "feature_extension" not in GPUS["a100"].target()
    assert "shared_memory_per_block_optin: 232448" in GPUS["h100"].target()
    assert "shared_memory_per_block_optin: 166912" in GPUS["a100"].target()


def test_floors_are_those_of_the_causal_products():
    shape = kernels.SHAPE
    # Seven products of 1024 x 1024 x 128, 80 of each, half of which lies under the diagonal.
    half = 7 * 80 * 1024 * 1024 * 128 / 131_072
    assert kernels.floor(TPUS["v5e"], shape) == pytest.approx(half, rel=1e-3)
    assert kernels.floor(TPUS["v5p"], shape) == kernels.floor(TPUS["v5e"], shape) / 2
    tiles = [kernels.tile_floor(TPUS["v5e"], shape, way) for way in kernels.PRODUCTS]
    assert sum(tiles) == pytest.approx(2 * half * 36 / 64)
    small = (4, 12, 1024, 64)
    assert kernels.tile_floor(TPUS["v5e"], small, "forward") == tiles[0] * 12 / 20


def test_peers_pay_for_the_blocks_that_they_compute_and_for_no_other():
    """T 1024 in blocks of 512: of four, one is whole, two are crossed, one is skipped."""
    shape, blocks = (1, 8, 1024, 128), peers.Blocks(512, 512, 512)
    kernel = {"cycles": 100_000, "cycles_of_a_trip": 0, "optional": [(4000, 0), (80_000, 9)]}
    plain = {**kernel, "name": "splash_mha_fwd_residuals.1"}
    assert peers.cycles(plain, blocks, shape, 1) == (100_000 - 80_000 / 4 - 4000 / 2, False)
    # With a grid of three steps a head that all compute, and a body each with and without mask:
    dynamic = {"cycles": 1000, "cycles_of_a_trip": 900, "optional": [(300, 9), (400, 9)]}
    steps = 8 * 3 + 2
    total = 1000 + (steps - 1) * 900 - steps * (300 * 2 / 3 + 400 / 3)
    found, backward = peers.cycles({**dynamic, "name": "dkv"}, blocks, shape, 1)
    assert found == pytest.approx(total)
    assert backward


def test_every_recorded_peer_is_one_of_its_candidates():
    for chip in TPUS:
        for peer in peers.PEERS:
            for variant in kernels.VARIANTS:
                won = peers.winners(peers.key(peer, chip, variant.shape))
                for blocks in won or ():
                    assert blocks in peers.candidates(peer, variant.shape[2])
    assert peers.winners(peers.key("jax splash", "v5e", kernels.SHAPE))


def record():
    cost = {"forward": 2e5, "backward": 4e5, "xla": 1e4}
    row = kernels.row(TPUS["v5e"], kernels.SHAPE, cost)
    head = dict(chip="v5e", variant="causal", layout="[B, T, N*H]")
    refused = head | dict(implementation="jax splash", limit=None, refused="too large | for\nVMEM")
    found = head | dict(implementation="ours", limit=0.65, peak_bytes=1e8) | row
    return {
        "date": "2026-01-02",
        "command": "python -m x",
        "versions": {"jax": "1", "libtpu": "2"},
        "rows": [found, refused],
        "registers": [{"chip": "h100", "refused": "no plugin"}],
        "times": [{"missing": "no GPU here"}],
    }


def test_the_record_holds_what_exceeds_a_limit_and_what_does_not_compile(tmp_path):
    text = report.markdown(record())
    # The backward pass is bounded by its tiles: 0.461 > 0.4.
    assert "| 0.200 | 0.400 | 0.010 | 0.610 | 0.671 |" in text
    assert "0.650 **exceeded**" in text
    assert "does not compile: too large / for VMEM" in text
    assert "no GPU here" in text
    report.plot(record(), tmp_path / "cycles.png")
    assert (tmp_path / "cycles.png").stat().st_size > 10_000
