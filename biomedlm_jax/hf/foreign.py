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
from biomedlm_jax.hf.names import Index, Row, rows
from biomedlm_jax.saves import DamagedError, differing

PARAMS, RECEIPT = "params", "receipt.json"


class Shares:
    """What arrays were before something was added to them: the shares of their pieces in their
    checksums, by names and indices."""

    def __init__(self) -> None:
        self._found: dict[tuple, int] = {}

    def add(self, name: str, piece: np.ndarray, shape: tuple[int, ...], index: Index) -> None:
        """piece: array[index] of the array of this name and shape."""
        self._found[self._key(name, shape, index)] = int(share(piece, shape, index))

    def forget(self) -> None:
        self._found.clear()

    def of(self, name: str, shape: tuple[int, ...], indices: Iterable[Index]) -> int:
        """The share of these pieces together, each of which was added."""
        return sum(self._found[self._key(name, shape, index)] for index in indices) % 2**32

    def sums(self, arrays: dict[str, Any], wait_seconds: int) -> dict[str, int]:
        """The checksums of what these arrays were. A piece that several devices hold counts on the
        process that has the first of them; every process calls it."""
        mine = {}
        for name, array in arrays.items():
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
            mine[name] = self.of(name, array.shape, indices)
        said = hosts.gather("start-adapters", json.dumps(mine), wait_seconds)
        each = [json.loads(found) for found in said]
        return {name: sum(x[name] for x in each) % 2**32 for name in mine}

    @staticmethod
    def _key(name: str, shape: tuple[int, ...], index: Index) -> tuple:
        return name, *(part.indices(n)[:2] for part, n in zip(index, shape, strict=True))


class Merged(read.Folder):
    """A Hugging Face folder whose kernels have PEFT's adapters added to them.

    Attributes:
      adapters: by the paths of our parameters.
      shares: of the base's arrays where adapters change them, as far as they were read.
    """

    def __init__(self, path: Path, base: Path, dropout: float | None = None) -> None:
        """path: the folder of adapters."""
        super().__init__(base, dropout)
        self.adapters = adapters.read(path, self.model)
        self.shares = Shares()

    def _piece(self, row: Row, index: Index) -> np.ndarray:
        piece = super()._piece(row, index)
        if (adapter := self.adapters.get(row.ours)) is not None:
            self.shares.add(row.ours, piece, adapter.shape, index)
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
        names = [row.ours for row in rows(self._folder.model)]
        found = {name: self._folder.array(name, flat.get(name)) for name in names}
        return traverse_util.unflatten_dict(found, sep="/")

    def check(self, arrays: dict) -> None:
        """Of what `restore` gave; of an array with adapters, what its base was."""
        if not self._sums:
            return
        found = checksums({PARAMS: arrays})
        if isinstance(self._folder, Merged):
            flat: Any = traverse_util.flatten_dict(arrays, sep="/")
            mine = {name: flat[name] for name in self._folder.adapters}
            before = self._folder.shares.sums(mine, self._wait_seconds)
            found |= {f"{PARAMS}/{name}": checksum for name, checksum in before.items()}
        self._compare(found)

    def pieces(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        return self._folder.pieces(name)

    def compare(self, name: str, checksum: int) -> None:
        """Of what `pieces` gave, all of which were taken."""
        if isinstance(self._folder, Merged) and name in self._folder.adapters:
            shape = self._folder.adapters[name].shape
            rest = [slice(None)] * (len(shape) - 1)
            indices = [(slice(*cut), *rest) for cut in cuts(shape)]
            checksum = self._folder.shares.of(name, shape, indices)
        self._compare({f"{PARAMS}/{name}": checksum})

    def _compare(self, found: dict[str, int]) -> None:
        if self._sums and (wrong := differing(found, self._sums)):
            raise DamagedError(f"{wrong} in {RECEIPT}; remove that file if others changed them")


def receipt(folder: Path) -> dict[str, dict]:
    """The checksums of arrays and the digests of files in a folder's receipt.json; none where
    there is no such file."""
    found = read.read_json(folder / RECEIPT) if (folder / RECEIPT).is_file() else {}
    said = {name: found.get(name, {}) for name in ("checksums", "files")}
    if wrong := [name for name, value in said.items() if not isinstance(value, dict)]:
        raise UserError(
            f"{folder / RECEIPT} is not what hf.save writes, for {' and '.join(wrong)} is no object"
            "; copy it again, or remove it"
        )
    return said
