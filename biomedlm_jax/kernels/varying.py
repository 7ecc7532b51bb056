"""Over which mesh axes an array differs from device to device, under `jax.shard_map`.

Plain operations on arrays of several kinds work that out by themselves; a kernel, or a gradient
rule of one's own, wants operands of one kind. The transpose of a mark is a sum over its axes, so
gradients of what devices share are summed as they would be with plain operations.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

import jax

Tree = TypeVar("Tree")


def axes_of(tree: Any) -> frozenset[str]:
    """All axes that any array in it varies over."""
    leaves = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    return frozenset[str]().union(*(jax.typeof(x).manual_axis_type.varying for x in leaves))


def marked(tree: Tree, axes: Iterable[str]) -> Tree:
    """The same, every array marked as varying over `axes` as well."""

    def mark(x: Any) -> Any:
        if not isinstance(x, jax.Array):
            return x
        missing = tuple(sorted(frozenset(axes) - axes_of(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(mark, tree)


def unwritten(
    shape: tuple[int, ...], dtype: jax.typing.DTypeLike, axes: Iterable[str]
) -> jax.Array:
    """An array that varies over `axes`, to be written before it is read: on chips it has no values
    yet, for to set a stack of all layers' activations to zero takes as long as a layer."""
    return marked(jax.lax.empty(shape, dtype), axes)
