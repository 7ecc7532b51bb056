"""The planner's memory is what a program really takes: the same reading of the same compiler's
account, held against a process on this machine's CPU that runs the step."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from biomedlm_jax.compilers.topologies import named
from biomedlm_jax.planning import memory
from biomedlm_jax.planning.target import Target
from tests.conftest import ROOT, TINY, changed

SMALL = dict(model__layers=4, model__width=512, model__mlp=2048, model__heads=8)
SMALL |= dict(model__vocab=4096, model__context=256, data__batch=16)
# Whatever is freed goes back to the system at once, so that the resident size is what is in use.
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@pytest.mark.parametrize("remat", ["none", "full"])
def test_memory_is_what_a_step_allocates(remat):
    settings = SMALL | dict(model__remat=remat)
    done = subprocess.run(
        [sys.executable, "-m", "tests.allocates", json.dumps(settings)],
        cwd=ROOT,
        env={**os.environ, **RETURNING, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    target = Target(changed(TINY, **settings), named("l4:1"))
    held = memory.parts(target, found["memory"])
    assert held["needed"] == pytest.approx(found["allocated"], rel=0.1)
    assert found["allocated"] > 3e8, "too little to tell it from the process around it"


def account(target, **changes):
    """What a compiler might say of a step."""
    state = sum(memory.state(target).values())
    return dict(
        arguments=state + 1000, results=8, temporary=9 * state, code=50, peak=8 * state, **changes
    )


def test_parts_add_up_to_what_is_needed_and_hold_the_compilers_peak():
    target = Target(changed(TINY, optimizer__ema_decay=0.9), named("l4:1"))
    said = account(target)
    held = memory.parts(target, said)
    parts = held["parts"]
    assert sum(parts.values()) == held["needed"]
    allocated = said["arguments"] + said["temporary"] + said["results"]
    assert held["needed"] == allocated + said["code"]
    beyond = parts["left between allocations"] + parts["code"]
    assert held["needed"] - beyond == said["peak"] == held["peak"]
    assert parts["gradients"] == parts["parameters"] == parts["average"]
    assert parts["optimizer state"] == pytest.approx(2 * parts["parameters"], rel=1e-3)
    assert parts["batch and padding"] == 1000
    assert held["fits"]
    said["temporary"] = target.machine.chip.memory
    assert not memory.parts(target, said)["fits"]


def test_the_state_is_split_as_the_mesh_says():
    experiment = dataclasses.replace(
        changed(TINY, data__batch=8),
        mesh=dataclasses.replace(TINY.mesh, data=2, fsdp=4),
    )
    alone = memory.state(Target(TINY, named("l4:1")))
    split = memory.state(Target(experiment, named("h100:8")))
    # Kernels are stored over both axes, the table over fsdp, vectors over data.
    assert alone["parameters"] / 8 < split["parameters"] < alone["parameters"] / 6
    assert "average" not in split
