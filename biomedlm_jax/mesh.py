"""The device mesh, and whether a model and a batch divide over it."""

import dataclasses
import math
import os

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.extend.backend import clear_backends
from jax.sharding import AxisType

from biomedlm_jax.config import Experiment, Model
from biomedlm_jax.config import Mesh as MeshConfig
from biomedlm_jax.entry import UserError
from biomedlm_jax.layout import BATCH, STORED


def sizes(mesh: MeshConfig, devices: int) -> dict[str, int]:
    """{"data": 1, "fsdp": 16, "model": 1, "context": 1} with -1 filled in.

    Raises:
      UserError: the axes do not multiply to `devices`.
    """
    given = dataclasses.asdict(mesh)
    fixed = math.prod(size for size in given.values() if size != -1)
    rest = devices // fixed
    filled = {name: rest if size == -1 else size for name, size in given.items()}
    if math.prod(filled.values()) != devices:
        shown = " x ".join(f"config.mesh.{name}={size}" for name, size in given.items())
        raise UserError(
            f"{shown} does not give the {devices} devices that are here; the axes multiply to the "
            "number of devices: one of them can be -1 to take what is left, the others are of "
            f"{', '.join(str(n) for n in range(1, devices + 1) if devices % n == 0)}"
        )
    return filled


def check(experiment: Experiment, axes: dict[str, int]) -> None:
    """Refuses what does not divide, naming what would.

    Raises:
      UserError: a tensor axis or the batch is no multiple of the mesh axes it is split over.
    """
    model, rows = experiment.model, experiment.data.batch
    groups = math.prod(axes[name] for name in BATCH)
    if rows % groups:
        near = [rows // groups * groups or groups, (rows // groups + 1) * groups]
        raise UserError(
            f"config.data.batch={rows} does not split over config.mesh.data={axes['data']} x "
            f"config.mesh.fsdp={axes['fsdp']} = {groups} groups of devices; "
            f"{' or '.join(map(str, sorted(set(near))))} would"
        )
    if (rows // groups) % experiment.run.accumulate:
        raise UserError(
            f"config.run.accumulate={experiment.run.accumulate} does not divide the "
            f"{rows // groups} rows of config.data.batch={rows} that a device computes"
        )
    task, pieces = experiment.task, axes["context"]
    if task is not None and task.length % pieces:
        raise UserError(
            f"config.task.length={task.length} does not split over config.mesh.context={pieces}; "
            f"{task.length // pieces * pieces} or {(task.length // pieces + 1) * pieces} would"
        )
    _check_model(model, axes)


def _check_model(model: Model, axes: dict[str, int]) -> None:
    split = {
        "config.model.context": (model.context, ("context",)),
        "config.model.heads": (model.heads, ("model", "context")),
        "config.model.width": (model.width, STORED["d"]),
        "config.model.width, as heads x head dim,": (model.width, STORED["e"]),
        "config.model.mlp": (model.mlp, STORED["f"]),
        "config.model.vocab, padded to a multiple of 128,": (model.padded_vocab, STORED["v"]),
    }
    for setting, (size, names) in split.items():
        pieces = math.prod(axes[name] for name in names)
        if size % pieces:
            shown = " x ".join(f"config.mesh.{name}={axes[name]}" for name in names)
            fits = ", ".join(str(n) for n in range(1, pieces + 1) if size % n == 0)
            raise UserError(
                f"{setting} is {size}, which does not split over {shown} = {pieces}; "
                f"{fits} would fit"
            )


def cpu_devices(mesh: MeshConfig, processes: int) -> int:
    """How many CPU devices each of several processes makes up, so that together they are as many as
    the mesh has; -1 asks for as few as there can be.

    Raises:
      UserError: the devices do not split over the processes.
    """
    given = dataclasses.asdict(mesh).values()
    wanted = math.prod(size for size in given if size != -1)
    if -1 in given:
        return math.lcm(wanted, processes) // processes
    if wanted % processes:
        raise UserError(
            f"config.mesh={dataclasses.asdict(mesh)} has {wanted} devices, which do not split over "
            f"--processes={processes}; make one a multiple of the other"
        )
    return wanted // processes


def make(experiment: Experiment, devices: list | None = None) -> jax.sharding.Mesh:
    """The mesh of a run, checked, over the devices of all processes.

    CPU devices are made up: there are as many as are asked for, and -1 asks for one (of several
    processes see `hosts.connect`). Where TPUs are in several slices, between which the network is
    slow, `data` spans the slices and the other axes stay inside.

    Raises:
      UserError: see `sizes` and `check`; or config.mesh.data does not divide over the slices.
    """
    if devices is None:
        wanted = math.prod(max(size, 1) for size in dataclasses.asdict(experiment.mesh).values())
        devices = _present(wanted)
    axes = sizes(experiment.mesh, len(devices))
    check(experiment, axes)
    slices = 1
    if devices[0].platform == "tpu":  # one that is only described has no such attribute
        slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return _arranged(axes, devices)
    return _named(axes, over_slices(axes, devices, slices))


def _arranged(axes: dict[str, int], devices: list) -> jax.sharding.Mesh:
    """So that neighbours on a mesh axis are neighbours in the network. Two mesh axes share one of
    the network where it can not be otherwise, as fsdp=16 on the 8 x 8 chips of a v6e; of itself
    JAX does that on v5e alone."""
    shape, types = tuple(axes.values()), (AxisType.Auto,) * len(axes)
    try:
        return jax.make_mesh(shape, tuple(axes), axis_types=types, devices=devices)
    except NotImplementedError:
        found = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return _named(axes, found)


def _named(axes: dict[str, int], devices: np.ndarray) -> jax.sharding.Mesh:
    return jax.sharding.Mesh(devices, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def for_generation(model: Model, pieces: int | None = None) -> jax.sharding.Mesh:
    """All devices that are here, a layer computed in `pieces` and the rest with copies, which take
    requests of their own. So each device reads as little of the weights for a token as can be.

    pieces: None is as many as divide both the model and the devices. CPU devices are made up, hold
      one copy, and None is one: a single one has all cores for its products.

    Raises:
      UserError: `pieces` does not divide the model or the devices.
    """
    split = math.gcd(model.heads, model.mlp, model.padded_vocab)
    on_cpu = jax.default_backend() == "cpu"
    here = len(os.sched_getaffinity(0)) if on_cpu else len(jax.devices())
    if pieces is None:
        pieces = 1 if on_cpu else math.gcd(split, here)
    if pieces < 1 or split % pieces or (here % pieces and not on_cpu):
        fits = [n for n in range(1, here + 1) if split % n == 0 and (on_cpu or here % n == 0)]
        raise UserError(
            f"--pieces={pieces} does not divide config.model.heads={model.heads}, "
            f"config.model.mlp={model.mlp}, the padded vocabulary of {model.padded_vocab} and the "
            f"{here} devices; {', '.join(map(str, fits))} would"
        )
    devices = _present(pieces)[: pieces if on_cpu else None]
    axes = {"data": len(devices) // pieces, "fsdp": 1, "model": pieces, "context": 1}
    return _arranged(axes, devices)


def _present(wanted: int) -> list:
    """The devices of all processes. One process on CPU makes up as many as are wanted."""
    devices = jax.devices()
    alone = jax.process_count() == 1
    if alone and devices[0].platform == "cpu" and wanted > len(devices):
        clear_backends()
        jax.config.update("jax_num_cpu_devices", wanted)
        devices = jax.devices()
    return devices


def everywhere(model: Model) -> jax.sharding.Mesh:
    """All devices as pieces of one copy of the parameters, for weights without a run.

    Raises:
      UserError: the model does not split over them.
    """
    axes = sizes(MeshConfig(data=1, fsdp=-1, model=1, context=1), jax.device_count())
    _check_model(model, axes)
    return _arranged(axes, jax.devices())


def over_slices(axes: dict[str, int], devices: list, slices: int) -> np.ndarray:
    """The devices of several TPU slices as an array of the mesh's shape.

    Raises:
      UserError: config.mesh.data does not divide over the slices.
    """
    if axes["data"] % slices:
        raise UserError(
            f"config.mesh.data={axes['data']} does not divide over the {slices} slices that the "
            f"{len(devices)} TPUs are in; a layer is computed inside a slice, so make it a "
            f"multiple of {slices}"
        )
    inside = {**axes, "data": axes["data"] // slices}
    between = {**dict.fromkeys(axes, 1), "data": slices}
    return mesh_utils.create_hybrid_device_mesh(
        tuple(inside.values()),
        tuple(between.values()),
        devices,
        allow_split_physical_axes=True,  # as jax.make_mesh does
    )
