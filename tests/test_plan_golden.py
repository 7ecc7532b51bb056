"""What the compilers say of the 2.7B step, against golden figures: memory, flops, cycles, bytes
over the network, collectives. No chip is needed, and a step that became dearer is seen here."""

import importlib.metadata
import json

import pytest

from biomedlm_jax.compilers import child
from biomedlm_jax.compilers.programs import Programs
from biomedlm_jax.compilers.topologies import named
from biomedlm_jax.config import Experiment
from biomedlm_jax.planning.answer import ask
from biomedlm_jax.planning.target import target
from biomedlm_jax.settings import build
from configs import pretrain_2p7b
from tests.conftest import TINY, changed

MOVES = 0.03  # of a figure, beyond which it is another step
VERSIONS = ("0.12.0.1", "0.0.52")  # jax and libtpu of the figures


def figures(answer) -> dict[str, float]:
    """What is held, by name."""
    record = answer.record()
    found = {
        "memory of a chip, bytes": record["memory"]["needed"],
        "compiler's peak, bytes": record["memory"]["peak"],
        "matrix flops": record["flops"]["matrix"],
        "XLA's cycles": record["xla_cycles"],
        "kernels' cycles": record["kernel_cycles"],
    }
    for kind, total in sorted(record["collectives"].items()):
        found |= {f"{kind}, runs": total["runs"], f"{kind}, wire bytes": total["wire"]}
    found["wire bytes"] = sum(total["wire"] for total in record["collectives"].values())
    found["wire bytes alone"] = sum(total["alone"] for total in record["collectives"].values())
    return found


def moved(old: dict[str, float], new: dict[str, float]) -> list[str]:
    """The figures that differ by more than MOVES, in words."""
    return [
        f"{name}: {old.get(name, 0):,.6g} before, {new.get(name, 0):,.6g} now"
        for name in dict.fromkeys([*old, *new])
        if abs(new.get(name, 0) - old.get(name, 0)) > MOVES * abs(old.get(name, 0))
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "per_chip"), [("v5e:16x16", 4), ("v5p:4x4x8", 8)], ids=["v5e", "v5p"]
)
def test_golden_figures_of_the_published_step(machine, per_chip, golden):
    if reason := child.missing("tpu"):
        pytest.skip(reason)
    here = tuple(importlib.metadata.version(name) for name in ("jax", "libtpu"))
    if here != VERSIONS:
        pytest.skip(f"figures are of jax and libtpu {VERSIONS}, here are {here}")
    experiment = build(Experiment, pretrain_2p7b.get_config().to_dict())
    with Programs("tpu") as compiler:
        answer = ask(compiler, target(experiment, named(machine), None, per_chip))
    assert answer.refused is None
    found = figures(answer)
    text = json.dumps(found, indent=1) + "\n"
    old = golden(f"plan_2p7b_{machine.replace(':', '_')}.json", text)
    assert not (gone := moved(json.loads(old), found)), "\n".join(gone)


@pytest.mark.slow
def test_the_forward_kernel_runs_once_unless_all_is_computed_twice():
    if reason := child.missing("tpu"):
        pytest.skip(reason)
    small = changed(TINY, model__layers=3, model__width=256, model__heads=2, model__context=512)
    small = changed(small, model__compute_dtype="bfloat16")
    runs = {}
    with Programs("tpu") as compiler:
        for remat in ("none", "named", "full"):
            one = target(changed(small, model__remat=remat), named("v5e:1x1"), None, 2)
            answer = ask(compiler, one)
            assert answer.figures, answer.refused
            counts = answer.figures["kernel_runs"].items()
            runs[remat] = sum(count for name, count in counts if "forward" in name)
    assert runs == {"none": 3, "named": 3, "full": 2 * 3}


def test_two_mesh_axes_share_an_axis_of_the_network_where_they_must():
    """16 chips in a line are not to be had of 8 x 8."""
    if reason := child.missing("tpu"):
        pytest.skip(reason)
    wide = changed(TINY, model__width=256, model__heads=2, model__context=512, mesh__fsdp=16)
    with Programs("tpu") as compiler:
        answer = ask(compiler, target(changed(wide, mesh__data=-1), named("v6e:8x8"), None, 1))
    assert answer.figures, answer.refused
    assert answer.target.axes["fsdp"] == 16


def test_a_figure_that_moves_by_more_than_three_per_cent_is_named():
    old = {"matrix flops": 100.0, "wire bytes": 50.0, "all-to-all, runs": 0, "gone": 4}
    new = {"matrix flops": 102.9, "wire bytes": 48.4, "all-to-all, runs": 1}
    assert moved(old, new) == [
        "wire bytes: 50 before, 48.4 now",
        "all-to-all, runs: 0 before, 1 now",
        "gone: 4 before, 0 now",
    ]
    assert moved(old, old) == []
