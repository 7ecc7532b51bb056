"""One uint32 for each array of a tree, the same on every mesh, by which a save is known again.

The bits of an element, as uint32, times an odd weight of its row and an odd weight of its column,
summed modulo 2^32: a bit that flips always changes the sum, for an odd number times a power of two
below 2^32 is never 0. A row is everything but the last axis. The sum is taken where the array is:
on the devices, where every device adds up what it holds; arrays in a host's own memory are summed
by numpy, which there is twenty times as fast as XLA.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

MIXED = -1  # for an array of which the copies are not alike


def checksums(tree: Any) -> dict[str, int]:
    """{"params/ln_f/scale": 1234, ...} of jax arrays on one mesh, or of numpy arrays.

    With several processes every one of them has to call it.
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    arrays = [leaf for leaf in leaves.values() if isinstance(leaf, jax.Array)]
    if arrays and not all(_on_this_host(array) for array in arrays):
        mesh = arrays[0].sharding.mesh  # pyright: ignore
        everywhere = NamedSharding(mesh, PartitionSpec())
        sums = jax.device_get(_on_devices(everywhere, leaves))
        return {name: int(x) for name, x in sums.items()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy lets go of the interpreter meanwhile
        return dict(zip(leaves, pool.map(_of_host, leaves.values()), strict=True))


class Running:
    """The checksum of an array that comes in pieces: `value`, when all of them were added."""

    def __init__(self, shape: tuple[int, ...]):
        self._shape, self._sum = shape, np.uint32(0)

    def add(self, start: int, piece: np.ndarray) -> None:
        """piece: array[start : start + len(piece)]."""
        index = (slice(start, start + len(piece)), *[slice(None)] * (piece.ndim - 1))
        with np.errstate(over="ignore"):
            self._sum += share(piece, self._shape, index)

    @property
    def value(self) -> int:
        return int(self._sum)


def _on_this_host(array: jax.Array) -> bool:
    return array.is_fully_addressable and all(d.platform == "cpu" for d in array.devices())


def _of_host(array: jax.Array | np.ndarray) -> int:
    if not isinstance(array, jax.Array):
        array = np.asarray(array)
        return int(share(array, array.shape, tuple(slice(None) for _ in array.shape)))
    copies: dict[int, np.uint32] = {}
    for shard in array.addressable_shards:
        own = share(np.asarray(shard.data), array.shape, shard.index)
        with np.errstate(over="ignore"):
            copies[shard.replica_id] = copies.get(shard.replica_id, np.uint32(0)) + own
    return int(copies[0]) if len(set(copies.values())) == 1 else MIXED


def share(piece: np.ndarray, shape: tuple[int, ...], index: tuple[slice, ...]) -> np.uint32:
    """The share that `piece`, array[index] of an array of this shape, has in the sum."""
    if not shape:
        piece, shape, index = piece.reshape(1), (1,), (slice(None),)
    columns = _odd(np.arange(shape[-1], dtype=np.uint32))[index[-1]]
    rows = _odd(np.arange(math.prod(shape[:-1]), dtype=np.uint32)).reshape(shape[:-1])[index[:-1]]
    bits = (
        np.ascontiguousarray(piece).view(f"u{piece.dtype.itemsize}").astype(np.uint32, copy=False)
    )
    sums = np.einsum("ij,j->i", bits.reshape(-1, bits.shape[-1]), columns)
    return (sums * rows.reshape(-1)).sum(dtype=np.uint32)


@partial(jax.jit, static_argnums=0)
def _on_devices(everywhere: NamedSharding, leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def summed(array: jax.Array) -> jax.Array:
        array = array.reshape(array.shape or (1,))
        whole = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(array, whole).astype(jnp.uint32)
        columns = _odd(jax.lax.iota(jnp.uint32, array.shape[-1]))
        count = math.prod(array.shape[:-1])
        rows = _odd(jax.lax.iota(jnp.uint32, count)).reshape(array.shape[:-1])
        sums = (bits * columns).sum(-1, dtype=jnp.uint32)
        total = (sums * rows).sum(dtype=jnp.uint32)
        return jax.lax.with_sharding_constraint(total, everywhere)

    return jax.tree.map(summed, leaves)


def _odd(index: Any) -> Any:
    """An odd number for each index; neighbours have nothing in common."""
    mixed = index * np.uint32(0x9E3779B1)
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x85EBCA77)
    return (mixed ^ (mixed >> np.uint32(13))) | np.uint32(1)
