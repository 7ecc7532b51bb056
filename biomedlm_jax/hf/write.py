"""Safetensors files written as their bytes come, in shards of a chosen size.

The library's own writer wants all tensors in memory. Here a header is written first, for shapes
and dtypes are known, then the bytes of one tensor after the other; a thread hashes them, a second
one writes them, a third keeps the disk busy meanwhile, and what waits for them is bounded. The
format is a length, a JSON header and the bytes [1]; what comes out is read by the library.

[1] https://github.com/huggingface/safetensors#format
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from biomedlm_jax import entry
from biomedlm_jax.entry import UserError

NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes
WAITING = 4  # pieces that are hashed and written behind the one that is made
SYNC = 256 << 20  # bytes after which the disk is told to begin
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Shard:
    file: str
    tensors: list[tuple[str, Shape]]  # in the order of their bytes


def plan(tensors: Sequence[tuple[str, Shape]], dtype: str, limit: int) -> list[Shard]:
    """Tensors in shards of at most `limit` bytes, in their order, named as transformers does; one
    that is larger has a shard of its own."""
    groups: list[list[tuple[str, Shape]]] = [[]]
    room = limit
    for name, shape in tensors:
        size = math.prod(shape) * WIDTHS[dtype]
        if groups[-1] and size > room:
            groups.append([])
            room = limit
        groups[-1].append((name, shape))
        room -= size
    if len(groups) == 1:
        return [Shard("model.safetensors", groups[0])]
    count = len(groups)
    return [
        Shard(f"model-{number:05d}-of-{count:05d}.safetensors", group)
        for number, group in enumerate(groups, 1)
    ]


def index(shards: Sequence[Shard], dtype: str) -> dict[str, Any]:
    """What model.safetensors.index.json says, as transformers writes it."""
    placed = {name: shard.file for shard in shards for name, _ in shard.tensors}
    numbers = sum(math.prod(shape) for shard in shards for _, shape in shard.tensors)
    about = {"total_parameters": numbers, "total_size": numbers * WIDTHS[dtype]}
    return {"metadata": about, "weight_map": dict(sorted(placed.items()))}


class Writer:
    """Takes the bytes of all tensors of a plan, in its order.

    Attributes, when it is closed:
      files: name, size in bytes and sha256 of each shard.

    Raises:
      OSError: from `add` and `sync`, what the disk refuses.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], dtype: str) -> None:
        self.files: dict[str, dict[str, Any]] = {}
        self._folder, self._dtype = folder, dtype
        self._coming = deque(shards)
        self._left = deque[tuple[str, int]]()  # of the shard that is open
        self._pending = deque[list[Future]]()
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=x) for x in ("hash", "disk")]
        self._syncing = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._descriptor = -1
        self._synced_all: list[Future] = []

    def add(self, name: str, values: np.ndarray) -> bool:
        """The next values of tensor `name`, of the plan's dtype; no one changes them afterwards.
        Whether they were its last."""
        if not self._left:
            self._open()
        wanted, left = self._left[0]
        data: Any = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
        assert wanted == name, f"{name} comes where {wanted} should"
        assert data.nbytes <= left, f"{name} has too many bytes"
        self._put(data)
        if data.nbytes < left:
            self._left[0] = (name, left - data.nbytes)
            return False
        self._left.popleft()
        if not self._left:
            self._finish()
        return True

    def sync(self) -> None:
        """Waits until the disk has it all. What it refuses it says once, to whoever asks first, so
        the answer to every request counts."""
        for future in self._synced_all:
            future.result()

    def close(self) -> None:
        """Ends the threads; call it whether or not all went well."""
        for thread in (*self._threads, self._syncing):
            thread.shutdown(cancel_futures=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        self._shard = self._coming.popleft()
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, shape in self._shard.tensors:
            size = math.prod(shape) * WIDTHS[self._dtype]
            offsets = [at, at + size]
            header[name] = {
                "dtype": NAMES[self._dtype],
                "shape": list(shape),
                "data_offsets": offsets,
            }
            self._left.append((name, size))
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that tensors are aligned
        path = self._folder / self._shard.file
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._sha, self._size, self._synced = hashlib.sha256(), 0, 0
        self._put(np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8))

    def _put(self, data: Any) -> None:
        hashing, disk = self._threads
        self._pending.append([hashing.submit(self._sha.update, data), disk.submit(self._out, data)])
        self._size += data.nbytes
        self._wait(WAITING)

    def _out(self, data: Any) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._synced += data.nbytes
        if self._synced >= SYNC:
            self._synced = 0
            self._synced_all.append(self._syncing.submit(os.fdatasync, self._descriptor))

    def _wait(self, more_than: int) -> None:
        while len(self._pending) > more_than:
            for future in self._pending.popleft():
                future.result()

    def _finish(self) -> None:
        self._wait(0)
        self._synced_all.append(self._syncing.submit(_finished, self._descriptor))
        self._descriptor = -1
        self.files[self._shard.file] = {"bytes": self._size, "sha256": self._sha.hexdigest()}


def _finished(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(content: bytes) -> dict[str, Any]:
    """What a receipt says of a file."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@contextlib.contextmanager
def written(output: Path, needed: int) -> Iterator[Path]:
    """`entry.whole_folder`, which has its name when the disk has all that is in it. An error leaves
    nothing, and is a UserError where it is the disk's.

    needed: bytes, of which it is asked first whether the disk has them, when what a kill left of
      another attempt is gone.
    """
    entry.check_output(output)
    try:
        with entry.whole_folder(output) as folder:
            check_room(output, needed)
            yield folder
            for path in (*folder.rglob("*"), folder):
                _sync(path)
    except BaseException as error:
        shutil.rmtree(output.absolute().with_name(output.name + ".partial"), ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"{output} was not written, nothing is left of it: {error}") from error
        raise
    _sync(output.absolute().parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_room(output: Path, needed: int) -> None:
    """Raises UserError where the disk of `output` has not `needed` bytes free."""
    there = next(path for path in (output, *output.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"no space left for --output={output}: it takes {needed:,} bytes, {free:,} are "
            "free; make room or name another place"
        )
