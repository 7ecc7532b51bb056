"""What the kernels' benchmark makes of compilers' figures."""

import pytest

from biomedlm_jax.compilers.chips import TPUS
from biomedlm_jax.speed import kernels, peers, report, times


def test_times_are_of_what_runs_here_and_the_rest_says_why_not():
    refused, timed = times.measure((1, 2, 64, 16), ("pallas_tpu", "reference"))
    assert "pallas_tpu: is for tpu" in refused["refused"]
    assert timed["implementation"] == "reference"
    assert timed["device"] == "cpu"
    assert timed["milliseconds"] > 0


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
