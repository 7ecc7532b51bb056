"""Where parameters lie: on paper, for meshes that are not here, and over TPU slices."""

import dataclasses
import math

import jax
import pytest

from biomedlm_jax import mesh, sharding, step
from biomedlm_jax.config import Experiment, Mesh
from biomedlm_jax.entry import UserError
from biomedlm_jax.settings import build
from configs import pretrain_2p7b
from tests.conftest import TINY, changed, on, started

AXES = ("data", "fsdp", "model", "context")


@pytest.mark.parametrize("shape", [(16, 16, 1, 1), (4, 8, 4, 1)])
def test_golden_table_of_the_published_model(shape, golden):
    experiment = build(Experiment, pretrain_2p7b.get_config().to_dict())
    found = sharding.table(experiment, dict(zip(AXES, shape, strict=True))) + "\n"
    name = "sharding_2p7b_" + "x".join(map(str, shape)) + ".txt"
    assert found == golden(name, found)


def test_the_table_is_what_devices_hold():
    experiment, devices = on(changed(TINY, optimizer__ema_decay=0.9), 2, 2, 2)
    found = sharding.table(experiment, devices)
    assert found == sharding.table(experiment, dict(devices.shape))
    state = started(experiment, devices)
    for name, part in [
        ("parameters", state.params),
        ("optimizer state", state.opt_state),
        ("average", state.average),
    ]:
        held = sum(leaf.addressable_shards[5].data.nbytes for leaf in jax.tree.leaves(part))
        whole = sum(leaf.nbytes for leaf in jax.tree.leaves(part))
        assert f"{name:16} {held:>17,} bytes of {whole:,}".split() in map(
            str.split, found.splitlines()
        )
    kernel = state.params["blocks"]["up"]["kernel"].addressable_shards[0].data
    (line,) = [x for x in found.splitlines() if x.startswith("blocks.up.kernel")]
    assert " x ".join(map(str, kernel.shape)) in line
    assert line.endswith(f" {kernel.nbytes:,}")


@dataclasses.dataclass(frozen=True)
class Tpu:
    """As much of a v5e as the assignment of devices to a mesh asks for."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    process_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


def tpus(slices: int) -> list[Tpu]:
    """Slices of 4 x 4."""
    places = [(s, (x, y, 0)) for s in range(slices) for y in range(4) for x in range(4)]
    return [Tpu(i, slice_index, coords) for i, (slice_index, coords) in enumerate(places)]


@pytest.mark.parametrize("shape", [(2, 16, 1, 1), (4, 8, 1, 1), (2, 4, 4, 1), (8, 4, 1, 1)])
def test_a_copy_of_the_parameters_stays_inside_a_slice(shape):
    found = mesh.over_slices(dict(zip(AXES, shape, strict=True)), tpus(2), 2)
    assert found.shape == shape
    assert len({device.id for device in found.flat}) == math.prod(shape)
    for copy in found:
        assert len({device.slice_index for device in copy.flat}) == 1


def test_data_that_does_not_divide_over_the_slices_is_refused():
    shape = Mesh(data=1, fsdp=32, model=1, context=1)
    experiment = dataclasses.replace(changed(TINY, data__batch=32, model__width=64), mesh=shape)
    with pytest.raises(UserError, match="data=1 does not divide over the 2 slices"):
        mesh.make(experiment, tpus(2))


@pytest.mark.parametrize(
    ("shape", "processes", "each"),
    [((2, 4, 1, 1), 4, 2), ((-1, 1, 1, 1), 3, 1), ((-1, 6, 1, 1), 4, 3), ((1, -1, 8, 1), 2, 4)],
)
def test_cpu_devices_are_made_up_alike_in_each_process(shape, processes, each):
    asked = Mesh(**dict(zip(AXES, shape, strict=True)))
    assert mesh.cpu_devices(asked, processes) == each
    sizes = mesh.sizes(asked, each * processes)
    assert math.prod(sizes.values()) == each * processes


def test_cpu_devices_that_do_not_split_over_processes_are_refused():
    with pytest.raises(UserError, match="has 8 devices, which do not split over --processes=3"):
        mesh.cpu_devices(Mesh(data=2, fsdp=4, model=1, context=1), 3)


def test_specs_are_those_of_the_state():
    """The table takes specs and arrays in the same order."""
    params = jax.eval_shape(lambda: step.init(TINY)).params
    assert jax.tree.structure(params) == jax.tree.structure(
        step.state_specs(TINY, {"data": 1}).params
    )
