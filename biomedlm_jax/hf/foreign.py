"""The arrays of a Hugging Face folder, as `arrays.Arrays` has those of a save: whole, onto a mesh,
or piece by piece, checked where the folder's receipt has checksums. Adapters are merged as pieces
of their base are read, so there is no second copy of anything.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from biomedlm_jax import hosts
from biomedlm_jax.arrays import cuts
from biomedlm_jax.checksums import checksums, share
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf import adapters, read
from biomedlm_jax.hf.names import TABLE, Index, Row
from biomedlm_jax.saves import DamagedError, differing

PARAMS, RECEIPT = "params", "receipt.json"


class Merged(read.Folder):
    """A Hugging Face folder whose kernels have PEFT's adapters added to them.

    Attributes:
      adapters: by the paths of our parameters.
    """

    def __init__(self, path: Path, base: Path, dropout: float | None = None) -> None:
        """path: the folder of adapters."""
        super().__init__(base, dropout)
        self.adapters = adapters.read(path, self.model)
        self._before: dict[tuple, int] = {}  # shares in the base's checksums

    def before(self, name: str, indices: Iterable[Index]) -> int:
        """The share of these pieces, which were read, in the checksum of the base's array."""
        return sum(self._before[self._key(name, index)] for index in indices) % 2**32

    def _key(self, name: str, index: Index) -> tuple:
        shape = self.adapters[name].shape
        return name, *(part.indices(n)[:2] for part, n in zip(index, shape, strict=True))

    def _piece(self, row: Row, index: Index) -> np.ndarray:
        piece = super()._piece(row, index)
        if (adapter := self.adapters.get(row.ours)) is not None:
            self._before[self._key(row.ours, index)] = int(share(piece, adapter.shape, index))
            adapter.add_to(piece, index)
            if not read.finite(piece):
                raise UserError(
                    f"{row.ours} of {self.path} with its adapters has values that are not finite; "
                    "they are too large for float32"
                )
        return piece


class Foreign:
    """The arrays of a folder; see `Arrays`, whose methods it has."""

    def __init__(self, folder: read.Folder, sums: dict[str, int], wait_seconds: int = 600):
        """
        sums: of all arrays, where the folder, or the base of adapters, is our own export.
        wait_seconds: for the other processes.
        """
        self._folder, self._sums, self._wait_seconds = folder, sums, wait_seconds

    def restore(self, shardings: Any = None) -> dict:
        flat: Any = traverse_util.flatten_dict(shardings, sep="/") if shardings else {}
        found = {row.ours: self._folder.array(row.ours, flat.get(row.ours)) for row in TABLE}
        return traverse_util.unflatten_dict(found, sep="/")

    def check(self, arrays: dict) -> None:
        """Of what `restore` gave; of an array with adapters, what its base was."""
        if not self._sums:
            return
        found = checksums({PARAMS: arrays})
        if isinstance(self._folder, Merged):
            found |= self._bases(self._folder, traverse_util.flatten_dict(arrays, sep="/"))
        self._compare(found)

    def pieces(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        return self._folder.pieces(name)

    def compare(self, name: str, checksum: int) -> None:
        """Of what `pieces` gave, all of which were taken."""
        if isinstance(self._folder, Merged) and name in self._folder.adapters:
            shape = self._folder.adapters[name].shape
            rest = [slice(None)] * (len(shape) - 1)
            indices = [(slice(*cut), *rest) for cut in cuts(shape)]
            checksum = self._folder.before(name, indices)
        self._compare({f"{PARAMS}/{name}": checksum})

    def _bases(self, folder: Merged, arrays: dict) -> dict[str, int]:
        """The checksums of the base's arrays where adapters changed them. A piece that several
        devices hold counts on the process that has the first of them."""
        mine = {}
        for name in folder.adapters:
            array = arrays[name]
            indices = [(slice(None),) * array.ndim]
            if isinstance(array, jax.Array):
                placed = array.sharding.devices_indices_map(array.shape)
                first = {
                    repr(index): (device, index) for device, index in reversed(list(placed.items()))
                }
                here = jax.process_index()
                indices = [
                    index for device, index in first.values() if device.process_index == here
                ]
            mine[name] = folder.before(name, indices)
        said = hosts.gather("start-adapters", json.dumps(mine), self._wait_seconds)
        each = [json.loads(found) for found in said]
        return {f"{PARAMS}/{name}": sum(x[name] for x in each) % 2**32 for name in mine}

    def _compare(self, found: dict[str, int]) -> None:
        if self._sums and (wrong := differing(found, self._sums)):
            raise DamagedError(f"{wrong} in {RECEIPT}; remove that file if others changed them")
