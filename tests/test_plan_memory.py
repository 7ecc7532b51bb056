"""The planner's memory is what a program really takes: the same reading of the same compiler's
account, held against a process on this machine's CPU that runs the step."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from biomedlm_jax import layout
from biomedlm_jax.compilers.topologies import named
from biomedlm_jax.model import gpt
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


def split_8(**changes):
    """TINY over 8 chips, its layers over `data`."""
    return Target(
        changed(TINY, data__batch=8, mesh__data=2, mesh__fsdp=4, **changes), named("h100:8")
    )


def test_what_a_step_brings_together_is_what_its_layout_does():
    target = split_8(model__compute_dtype="bfloat16")
    model, names = target.experiment.model, tuple(target.axes)
    mesh = AbstractMesh((2, 4, 1, 1), names, axis_types=(AxisType.Auto,) * 4)
    specs = gpt.specs(model, target.axes)
    own, sizes = [], []

    def local(params):
        whole = layout.all_layers(params, specs, model.compute_dtype)
        for old, new, spec in zip(*map(jax.tree.leaves, (params, whole, specs)), strict=True):
            size = new.size * new.dtype.itemsize
            own.append(size)
            if layout.layers_over_data(spec):
                assert new.size == 2 * old.size
                sizes.append(size)
        return jax.numpy.float32(0)

    inside = jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=PartitionSpec())
    jax.eval_shape(inside, jax.eval_shape(lambda: gpt.init(model, jax.random.key(0))))
    besides = memory.besides(target)
    assert besides == {"layers brought together": sum(sizes), "gradients": sum(own)}
    assert 0 < sum(sizes) < sum(own)
    said = account(target)
    held = memory.parts(target, said)
    assert {part: held["parts"][part] for part in besides} == besides
    assert sum(held["parts"].values()) == held["needed"]
    refused = memory.refused(target, 10**9, 10**8)
    assert {part: refused["parts"][part] for part in besides} == besides
    assert sum(refused["parts"].values()) == 10**9


def test_parts_are_never_below_zero_nor_more_than_the_compilers_peak():
    target = split_8()
    said = account(target)
    little = memory.besides(target)["layers brought together"] + 10
    said |= dict(peak=said["arguments"] + little, temporary=little, results=0)
    parts = memory.parts(target, said)["parts"]
    assert parts["gradients"] == 10
    assert parts["activations and working memory"] == 0
    assert min(parts.values()) >= 0


def test_accumulation_keeps_sums_beside_the_gradients_of_a_part():
    once, twice = (memory.besides(split_8(run__accumulate=n))["gradients"] for n in (1, 2))
    assert twice == 2 * once, "all of float32"
    target = split_8(model__compute_dtype="bfloat16", run__accumulate=2)
    assert memory.least(target) == sum((memory.state(target) | memory.besides(target)).values())
    assert memory.besides(target)["gradients"] > 1.4 * once


def test_nothing_is_brought_together_where_one_chip_has_all_layers():
    target = Target(TINY, named("l4:1"))
    assert memory.besides(target) == {"gradients": memory.state(target)["parameters"]}
    assert memory.scattered(target) == 0


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
