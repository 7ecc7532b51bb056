"""Float32 arrays in a folder that orbax wrote, read whole, onto a mesh, or piece by piece.

`checkpoint.py` and `hf/load.py` write such folders. Whoever reads one says how it was when it was
written: the checksum of every array.
"""

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from biomedlm_jax.checksums import checksums
from biomedlm_jax.entry import in_cloud
from biomedlm_jax.saves import DamagedError, damage, differing, restored

PIECE = 64 << 20  # bytes of an array that is read in pieces


class Arrays:
    """Float32 arrays that orbax wrote, with the checksums that they must have.

    Every method raises DamagedError where what is read is not what was saved, and UserError where
    nothing can be said about that.
    """

    def __init__(self, folder: epath.Path, part: str, like: dict, checksums: dict[str, int]):
        """
        folder: of orbax.
        part: the tree in it that is meant, such as "params"; the checksums are of that name.
        like: its nested dict of shapes and dtypes.
        """
        self._folder, self._part, self._like, self._checksums = folder, part, like, checksums

    def only(self, wanted: Callable[[tuple[str, ...]], bool]) -> "Arrays":
        """Those whose path in `like` is wanted."""
        flat: Any = traverse_util.flatten_dict(self._like)
        like = traverse_util.unflatten_dict({path: x for path, x in flat.items() if wanted(path)})
        return Arrays(self._folder, self._part, like, self._checksums)

    def restore(self, shardings: Any = None) -> dict:
        """All, as `shardings`, a tree like it, says; or as numpy arrays, checked. Those on devices
        are checked by `check`: in it processes wait for each other."""
        with damage():
            found = self._restored(self._like, shardings)
        if shardings is None:
            self.check(found)
        return found

    def check(self, arrays: dict) -> None:
        with damage():
            if wrong := differing(checksums({self._part: arrays}), self._checksums):
                raise DamagedError(wrong)

    def pieces(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """The array of a path such as "blocks/qkv/kernel" in pieces of its first axis, each with
        where it begins; whoever takes them gives their checksum to `compare`. On a disk, a piece is
        in memory at a time: tensorstore would hold all of a file and all of the array."""
        flat: Any = traverse_util.flatten_dict(self._like, sep="/")
        key = f"{self._part}/{name}"
        with damage():
            files, whole = _Files.open(self._folder, key), np.empty(0)
            if files is None:
                nested = traverse_util.unflatten_dict({name: flat[name]}, sep="/")
                (whole,) = jax.tree.leaves(self._restored(nested, None))
            else:
                files.check(flat[name].shape)
        for start, stop in cuts(flat[name].shape):
            with damage():
                piece = whole[start:stop] if files is None else files.read(start, stop)
            yield start, piece

    def compare(self, name: str, checksum: int) -> None:
        """Of what `pieces` gave."""
        if wrong := differing({f"{self._part}/{name}": checksum}, self._checksums):
            raise DamagedError(wrong)

    def _restored(self, like: dict, shardings: Any) -> dict:
        item = {self._part: like}
        if shardings is None:
            how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        else:
            how = jax.tree.map(
                lambda x, sharding: ocp.ArrayRestoreArgs(
                    global_shape=x.shape, dtype=x.dtype, sharding=sharding
                ),
                item,
                {self._part: shardings},
            )
        restore = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
        return jax.block_until_ready(restored(self._folder, restore))[self._part]


class _Files:
    """An array as `state_handler` leaves it on a disk: zarr 2, without compression, so that a file
    is a piece of the array in C order. Files are files for each read, and let go after it."""

    def __init__(self, folder: Path, about: dict[str, Any]):
        self._folder, self._shape, self._chunk = folder, about["shape"], about["chunks"]
        self._separator = about.get("dimension_separator", ".")

    @classmethod
    def open(cls, folder: epath.Path, key: str) -> "_Files | None":
        """None where the array is of another form, as those that were written to gs:// are."""
        if in_cloud(folder):
            return None
        place = Path(folder) / key.replace("/", ".")
        if not (place / ".zarray").is_file():
            return None
        about = json.loads((place / ".zarray").read_text())
        plain = about["compressor"] is None and not about["filters"] and about["order"] == "C"
        return cls(place, about) if plain and about["dtype"] == "<f4" else None

    def check(self, shape: tuple[int, ...]) -> None:
        if tuple(self._shape) != shape:
            raise DamagedError(f"{self._folder.name} has shape {self._shape} instead of {shape}")

    def read(self, start: int, stop: int) -> np.ndarray:
        """array[start:stop]."""
        first, *rest = [range(-(-n // c)) for n, c in zip(self._shape, self._chunk, strict=True)]
        size = self._chunk[0]
        mine = [number for number in first if number * size < stop and (number + 1) * size > start]
        if len(mine) == 1 and all(len(numbers) == 1 for numbers in rest):
            at = (mine[0], *[0] * len(rest))
            return self._rows(at, start - mine[0] * size, stop - start)
        out = np.empty([stop - start, *self._shape[1:]], np.float32)
        for at in itertools.product(mine, *rest):
            begin = [number * c for number, c in zip(at, self._chunk, strict=True)]
            lows = [max(begin[0], start), *begin[1:]]
            highs = [min(b + c, n) for b, c, n in zip(begin, self._chunk, self._shape, strict=True)]
            highs[0] = min(highs[0], stop)
            inside = tuple(slice(a - b, z - b) for a, z, b in zip(lows, highs, begin, strict=True))
            lows[0], highs[0] = lows[0] - start, highs[0] - start
            out[tuple(map(slice, lows, highs))] = self._file(at)[inside]
        return out

    def _file(self, at: Sequence[int]) -> np.ndarray:
        """Mapped, and let go when what is taken of it was copied."""
        return np.memmap(self._path(at), "<f4", "r", shape=tuple(self._chunk))

    def _rows(self, at: Sequence[int], first: int, count: int) -> np.ndarray:
        """Of a file, read in one go. The system is told that those behind them come next, and that
        these need not stay in memory, where what is made of them has better use for it."""
        row = math.prod(self._chunk[1:])
        start, size = 4 * row * first, 4 * row * count
        with self._path(at).open("rb") as file:
            os.posix_fadvise(file.fileno(), start, 3 * size, os.POSIX_FADV_WILLNEED)
            found = np.fromfile(file, "<f4", row * count, offset=start)
            os.posix_fadvise(file.fileno(), start, size, os.POSIX_FADV_DONTNEED)
        return found.reshape(count, *self._chunk[1:])

    def _path(self, at: Sequence[int]) -> Path:
        return self._folder / self._separator.join(map(str, at))


def cuts(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Where an array is cut on its first axis into pieces of about PIECE bytes of float32."""
    rows = max(1, PIECE // (4 * math.prod(shape[1:])))
    return [(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]
