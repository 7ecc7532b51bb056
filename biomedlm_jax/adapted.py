"""The arrays of a run that trained adapters, as `Arrays` has those of another run: kernels with the
adapters in them, under the names and shapes of a model without any.

A kernel is merged on the host, with the product of a whole layer (`hf.adapters.Adapter`), so that
the bits are the same on any mesh, in an export and in an import. What was saved is checked as it
was saved: before anything is added to it.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from biomedlm_jax.arrays import Arrays
from biomedlm_jax.checksums import Running
from biomedlm_jax.config import Model
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf.adapters import Adapter
from biomedlm_jax.hf.foreign import Shares
from biomedlm_jax.hf.read import finite
from biomedlm_jax.model.additions import ADAPTER


class Adapted:
    """See `Arrays`, whose methods it has, with its errors."""

    def __init__(self, saved: Arrays, model: Model, wait_seconds: int = 600) -> None:
        """
        saved: arrays of `model`, which has adapters.
        wait_seconds: for the other processes.
        """
        self._rest = saved.only(lambda path: path[-1] not in ADAPTER)
        self._beside = saved.only(lambda path: path[-1] in ADAPTER)
        self._scale = model.lora_alpha / model.lora_rank
        self._shares, self._wait_seconds = Shares(), wait_seconds
        self._sums = dict[str, int]()

    @cached_property
    def adapters(self) -> dict[str, Adapter]:
        """By the paths of their kernels, as numpy arrays, checked; every process reads all."""
        found: Any = traverse_util.flatten_dict(self._beside.restore(), sep="/")
        layers = [name.removesuffix("/a") for name in found if name.endswith("/a")]
        return {
            f"{layer}/kernel": Adapter(found[f"{layer}/a"], found[f"{layer}/b"], self._scale)
            for layer in layers
        }

    def restore(self, shardings: Any = None) -> dict:
        adapters = self.adapters
        flat: Any = traverse_util.flatten_dict(self._rest.restore(shardings), sep="/")
        self._shares.forget()
        for name, adapter in adapters.items():
            flat[name] = self._with(name, adapter, flat[name])
        return traverse_util.unflatten_dict(flat, sep="/")

    def check(self, arrays: dict) -> None:
        """Of what `restore` gave; of kernels, what they were before."""
        flat: Any = traverse_util.flatten_dict(arrays, sep="/")
        mine = {name: flat.pop(name) for name in self.adapters}
        self._rest.check(traverse_util.unflatten_dict(flat, sep="/"))
        for name, checksum in self._shares.sums(mine, self._wait_seconds).items():
            self._rest.compare(name, checksum)

    def pieces(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        adapter = self.adapters.get(name)
        if adapter is None:
            yield from self._rest.pieces(name)
            return
        saved = Running(adapter.shape)
        for start, found in self._rest.pieces(name):
            saved.add(start, found)
            yield start, self._sum(name, adapter, found, (slice(start, start + len(found)),))
        self._sums[name] = saved.value

    def compare(self, name: str, checksum: int) -> None:
        """Of what `pieces` gave, all of which were taken."""
        self._rest.compare(name, self._sums[name] if name in self.adapters else checksum)

    def _with(self, name: str, adapter: Adapter, kernel: Any) -> Any:
        """The kernel with its adapter, where it lies; its share in the checksum is kept."""
        whole = (slice(None),) * 3
        if not isinstance(kernel, jax.Array):
            return self._sum(name, adapter, kernel, whole)
        mine = {repr(shard.index): shard for shard in kernel.addressable_shards}
        made = dict[str, np.ndarray]()  # devices that hold copies share one

        def piece(index: Any) -> np.ndarray:
            if (key := repr(index)) not in made:
                found = np.asarray(mine[key].data)
                self._shares.add(name, found, adapter.shape, index)
                made[key] = self._sum(name, adapter, found, index)
            return made[key]

        return jax.make_array_from_callback(kernel.shape, kernel.sharding, piece)

    def _sum(self, name: str, adapter: Adapter, found: np.ndarray, index: Any) -> np.ndarray:
        made = np.array(found)
        adapter.add_to(made, (*index, *(slice(None),) * (3 - len(index))))
        if not finite(made):
            raise UserError(
                f"{name} with its adapters has values that are not finite; they are too large for "
                "float32"
            )
        return made
