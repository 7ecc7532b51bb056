"""Files that appear whole, on a disk or on gs://, and lines of text in files that zstd packed."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import zstandard
from etils import epath

from biomedlm_jax.entry import in_cloud

_LEVEL = 3  # 4 times smaller than the text, 200 MB/s


def lines(file: Path | epath.Path) -> Iterator[bytes]:
    """The lines of a compressed file.

    Raises:
      EOFError: it was cut.
      zstandard.ZstdError: it is damaged.
    """
    with file.open("rb") as raw:
        yield from io.BufferedReader(Unpacked(raw), 1 << 20)


class Unpacked(io.RawIOBase):
    """A stream behind zstd, of one frame or several. The library's own reader takes the end of a
    file that was cut for the end of its text; this one does not.

    Raises, from reads:
      EOFError: the file ends inside a frame.
      zstandard.ZstdError: it is damaged.
    """

    def __init__(self, raw: Any) -> None:
        self._raw, self._rest, self._frame = raw, b"", None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            packed = self._frame.unused_data if self._frame and self._frame.eof else b""
            # Little at once: a hostile file can unpack to 30,000 times its size.
            if not (packed := packed or self._raw.read(1 << 12)):
                if self._frame and not self._frame.eof:
                    raise EOFError("the file was cut")
                return 0
            if not self._frame or self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._rest = memoryview(self._frame.decompress(packed))
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


@contextlib.contextmanager
def compressed(file: epath.Path) -> Iterator[IO[bytes]]:
    """A file to write into, through zstd; it has its name when the block ends without an error."""
    compressor = zstandard.ZstdCompressor(_LEVEL, write_checksum=True)
    with appearing(file) as raw, compressor.stream_writer(raw, closefd=False) as packed:
        yield packed  # pyright: ignore


@contextlib.contextmanager
def appearing(file: epath.Path) -> Iterator[IO[bytes]]:
    """A file to write bytes into; it has its name when the block ends without an error. On gs://,
    where nothing has a name before it is whole, it is written in its place."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if in_cloud(file):
        try:
            with file.open("wb") as stream:
                yield stream
        except BaseException:  # closing it has published what there was
            file.unlink(missing_ok=True)
            raise
        return
    beside = file.with_name(f"{file.name}.{os.getpid()}.partial")
    with beside.open("wb") as stream:
        yield stream
    beside.replace(file)
