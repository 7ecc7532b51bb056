"""Device memory by part, so that the parts add up to what the chip has.

What the state takes follows from its shardings; the rest is the compiler's own account. Gradients
are counted as they are stored, in float32 over the same shards; what else is in the compiler's peak
is activations and working memory. Beyond the peak are what the allocator's cutting leaves unused,
and the code.
"""

from typing import Any

from jax.sharding import AbstractMesh

from biomedlm_jax import sharding
from biomedlm_jax.planning.target import Target

GB = 1e9


def state(target: Target) -> dict[str, int]:
    """Bytes on a chip of the parts of the state that the experiment has."""
    axes = target.axes
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes))
    found = sharding.held(target.experiment, mesh)
    return {part: here for part, (here, whole) in found.items() if whole}


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
    gradients = min(found["parameters"], over)
    found |= {"gradients": gradients, "activations and working memory": over - gradients}
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
    found: dict[str, int] = dict(state(target))
    found["gradients, activations and working memory"] = max(0, wanted - sum(found.values()))
    return {"parts": found, "peak": None, "needed": wanted, "limit": limit, "fits": False}


def least(target: Target) -> int:
    """Bytes without which no step runs: the state and gradients."""
    found = state(target)
    return sum(found.values()) + found["parameters"]
