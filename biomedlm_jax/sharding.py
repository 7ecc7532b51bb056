"""Where each parameter lies, and what a device holds, as a table for people. Nothing is allocated:
the shapes are `jax.eval_shape`'s."""

import math

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from biomedlm_jax import step
from biomedlm_jax.config import Experiment

PARTS = {"parameters": "params", "optimizer state": "opt_state", "average": "average"}


def table(experiment: Experiment, mesh: Mesh | AbstractMesh | dict[str, int]) -> str:
    """One line a parameter: name, shape, dtype, the mesh axes that each of its axes is split over,
    its shape and bytes on a device; then the bytes of all parts of the state.

    mesh: or its axes, {"data": 16, "fsdp": 16, "model": 1, "context": 1}.
    """
    if isinstance(mesh, dict):
        mesh = AbstractMesh(tuple(mesh.values()), tuple(mesh))
    state = jax.eval_shape(lambda: step.init(experiment))
    specs = step.state_specs(experiment, mesh.shape)

    lines = [("parameter", "shape", "dtype", "split over", "on a device", "bytes there")]
    places = jax.tree.leaves(specs.params)
    for (path, array), spec in zip(jax.tree.leaves_with_path(state.params), places, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        local = _local(mesh, spec, array)
        lines.append(
            (name, _shape(array.shape), str(array.dtype), _axes(spec), _shape(local.shape),
             f"{_bytes(local):,}")
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    found = [
        "  ".join(
            cell.rjust(width) if cell is line[-1] else cell.ljust(width)
            for cell, width in zip(line, widths, strict=True)
        )
        for line in lines
    ]

    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    found += ["", f"on each of {math.prod(mesh.shape.values()):,} devices, {axes}:"]
    parts = held(experiment, mesh)
    for label, (here, whole) in parts.items():
        if whole:
            found.append(f"  {label:16} {here:>15,} bytes of {whole:,}")
    total = sum(here for here, _ in parts.values())
    found.append(f"  {'together':16} {total:>15,} bytes; gradients and activations come on top")
    return "\n".join(found)


def held(experiment: Experiment, mesh: Mesh | AbstractMesh) -> dict[str, tuple[int, int]]:
    """(Bytes on a device, bytes of the whole) by part of the state."""
    state = jax.eval_shape(lambda: step.init(experiment))
    specs = step.state_specs(experiment, mesh.shape)
    found = {}
    for label, field in PARTS.items():
        arrays, where = (jax.tree.leaves(getattr(tree, field)) for tree in (state, specs))
        here = sum(_bytes(_local(mesh, s, x)) for x, s in zip(arrays, where, strict=True))
        found[label] = here, sum(map(_bytes, arrays))
    return found


def _local(mesh: Mesh | AbstractMesh, spec: PartitionSpec, array: jax.ShapeDtypeStruct):
    """What a device holds of an array."""
    shape = NamedSharding(mesh, spec).shard_shape(array.shape)
    return jax.ShapeDtypeStruct(shape, array.dtype)


def _bytes(array: jax.ShapeDtypeStruct) -> int:
    return array.size * array.dtype.itemsize


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _axes(spec: PartitionSpec) -> str:
    """(("model", "fsdp"), None) is "model*fsdp, -"."""
    return ", ".join("*".join([part] if isinstance(part, str) else part or "-") for part in spec)
