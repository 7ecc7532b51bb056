"""Device memory by part, so that the parts add up to what the chip has.

What the state takes follows from its shardings, and so do the layers that a step brings together
and its gradients; the rest is the compiler's own account. What else is in its peak is activations
and working memory. Beyond the peak are what the allocator's cutting leaves unused, and the code.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from biomedlm_jax import sharding
from biomedlm_jax.config import Mesh, Model
from biomedlm_jax.layout import layers_over_data
from biomedlm_jax.model import gpt
from biomedlm_jax.optimizer import trained
from biomedlm_jax.planning.target import Target

FLOAT32 = 4  # bytes


class InUse(NamedTuple):
    """A parameter in a step, on a chip. together: its layers come from the chips of `data`."""

    size: int
    itemsize: int
    together: bool


def state(target: Target) -> dict[str, int]:
    """Bytes on a chip of the parts of the state that the experiment has."""
    return dict(_state(target))


@functools.cache  # a sweep asks for each as often as there are others
def _state(target: Target) -> dict[str, int]:
    axes = target.axes
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes))
    found = sharding.held(target.experiment, mesh)
    return {part: here for part, (here, whole) in found.items() if whole}


def besides(target: Target) -> dict[str, int]:
    """Bytes on a chip that every step holds at once, besides the state: the layers as
    `layout.all_layers` brings them together, and gradients, of the same layers in the same dtype,
    before they are scattered over `data`. With run.accumulate there are sums of them in float32.
    """
    model, mesh = target.experiment.model, target.experiment.mesh
    together = sum(one.size * one.itemsize * one.together for one in _in_use(model, mesh))
    gradients = 0
    for one in _in_use(model, mesh, learned=True):
        sums = FLOAT32 * (target.experiment.run.accumulate > 1)
        gradients += one.size * (one.itemsize + sums)
    found = {"layers brought together": together, "gradients": gradients}
    return {part: size for part, size in found.items() if size}


def scattered(target: Target) -> int:
    """Bytes on a chip of gradients in float32 on their way to be scattered over `data`, were all of
    them on it at once; the compiler may take one after the other."""
    return sum(
        FLOAT32 * one.size
        for one in _in_use(target.experiment.model, target.experiment.mesh, learned=True)
        if one.together
    )


@functools.cache  # targets of a sweep have few different ones
def _in_use(model: Model, mesh: Mesh, learned: bool = False) -> tuple[InUse, ...]:
    """learned: those alone that are trained."""
    axes = dataclasses.asdict(mesh)
    devices = AbstractMesh(tuple(axes.values()), tuple(axes))
    trees = jax.eval_shape(lambda: gpt.init(model, jax.random.key(0))), gpt.specs(model, axes)
    if learned:
        trees = tuple(trained(tree, model) for tree in trees)
    shapes, specs = map(jax.tree.leaves, trees)
    computed = jnp.dtype(model.compute_dtype).itemsize
    found = []
    for array, spec in zip(shapes, specs, strict=True):
        together = layers_over_data(spec)
        whole = PartitionSpec(None, *spec[1:]) if together else spec
        size = math.prod(NamedSharding(devices, whole).shard_shape(array.shape))
        kernel = together and array.ndim == 3
        found.append(InUse(size, computed if kernel else array.dtype.itemsize, together))
    return tuple(found)


def parts(target: Target, compiled: dict[str, int]) -> dict[str, Any]:
    """compiled: `compilers.whole.memory`.

    Returns:
      parts: bytes on a chip by part, which add up to `needed`.
      peak: the compiler's. needed: with the allocator's loss and the code. limit: what a program
      can have of the chip. fits.
    """
    found: dict[str, int] = dict(state(target))
    inputs = compiled["arguments"] - sum(found.values())  # counts and the batch, and what tiles pad
    found["batch and padding"] = max(0, inputs)
    over = max(0, compiled["peak"] - compiled["arguments"])
    left = over
    for part, size in besides(target).items():
        found[part] = min(size, left)
        left -= found[part]
    found["activations and working memory"] = left
    allocated = compiled["arguments"] + compiled["results"] + compiled["temporary"]
    found["left between allocations"] = max(0, allocated - compiled["arguments"] - over)
    found["code"] = compiled["code"]
    needed, limit = sum(found.values()), target.machine.chip.memory
    return {
        "parts": found,
        "peak": compiled["peak"],
        "needed": needed,
        "limit": limit,
        "fits": needed <= limit,
    }


def refused(target: Target, wanted: int, limit: int) -> dict[str, Any]:
    """The same where the compiler said only what the whole would take."""
    found = state(target) | besides(target)
    found["activations and all else"] = max(0, wanted - sum(found.values()))
    return {"parts": found, "peak": None, "needed": wanted, "limit": limit, "fits": False}


def least(target: Target) -> int:
    """Bytes without which no step runs: the state and `besides`."""
    return sum((state(target) | besides(target)).values())
