"""The signatures of documents that have candidates, on the disk, for `choose.near`.

A document's signature is a row, by rank, of a file that is mapped into memory to be read; rows that
nobody asks for are holes in it. So a comparison reads two rows, and no query has to join a hundred
bytes to each of a hundred million pairs, which would need more memory than `tables.MEMORY`. Rows
are written by the system's call and not through the map: of a full disk that is an error, and a map
is a killed process.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from etils import epath
from pyarrow import parquet

from data import tables
from data.cleaning import duplicates

_PAIRS = 1 << 13  # at a time: at 4 KB a page the mapped rows take 64 MB
_ROWS = 1 << 13  # at a time, for the same reason


def pairs(candidates: list[epath.Path]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tables of (low, rank), some rows at a time."""
    for file in candidates:
        with file.open("rb") as stream:
            table = parquet.ParquetFile(stream)
            for number in range(table.num_row_groups):
                for batch in table.read_row_group(number).to_batches(_PAIRS):
                    yield batch["low"].to_numpy(), batch["rank"].to_numpy()


class Sketches:
    """Signatures by rank, for the ranks in `candidates`.

    folder: on a disk, for the files. ranked: table of (doc, rank), by document. signatures: tables
    of (doc, kept), one a shard, see `describe.SIGNATURES`.

    Attributes:
      count: of ranks.

    Raises:
      UserError: `folder` has no room.
    """

    def __init__(
        self,
        folder: Path,
        ranked: epath.Path,
        candidates: list[epath.Path],
        signatures: list[epath.Path],
    ) -> None:
        self._kept, self._docs = folder / "kept", folder / "docs"
        with ranked.open("rb") as stream:
            self.count = parquet.ParquetFile(stream).metadata.num_rows
        for file, width in ((self._kept, duplicates.HASHES), (self._docs, 8)):
            with file.open("wb") as stream:
                stream.truncate(max(self.count, 1) * width)
        wanted = np.zeros(self.count, bool)
        for low, rank in pairs(candidates):
            wanted[low] = wanted[rank] = True
        for shard, file in enumerate(signatures):
            within = [("doc", ">=", shard << 32), ("doc", "<", (shard + 1) << 32)]
            with ranked.open("rb") as stream:
                found = parquet.read_table(stream, columns=["doc", "rank"], filters=within)
            docs, ranks = found["doc"].to_numpy(), found["rank"].to_numpy()
            if wanted[ranks].any():
                with file.open("rb") as stream:
                    self._gather(stream, docs[wanted[ranks]], ranks[wanted[ranks]])

    def similarities(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Of pairs of ranks: see `duplicates.similarities`."""
        found = [np.zeros(0)]
        for begin in range(0, len(one), _PAIRS):
            kept = self._mapped(self._kept, np.uint8).reshape(-1, duplicates.HASHES)
            part = slice(begin, begin + _PAIRS)
            found.append(duplicates.similarities(kept[one[part]], kept[other[part]]))
        return np.concatenate(found)

    def documents(self, ranks: np.ndarray) -> np.ndarray:
        return self._mapped(self._docs, np.int64)[ranks]

    def _gather(self, stream: object, own: np.ndarray, ranks: np.ndarray) -> None:
        """Copies the signatures of the documents `own`, rising, from a shard's table."""
        table = parquet.ParquetFile(stream)
        for number in range(table.num_row_groups):  # a `tables.TableWriter` wrote these small
            for batch in table.read_row_group(number, use_threads=False).to_batches(_ROWS):
                found = batch["doc"].to_numpy()
                at = np.minimum(np.searchsorted(own, found), len(own) - 1)
                same = own[at] == found
                where = ranks[at[same]].tolist()
                _write(self._kept, _bytes(batch["kept"])[same], where)
                _write(self._docs, found[same].view(np.uint8).reshape(-1, 8), where)

    def _mapped(self, file: Path, kind: type) -> np.ndarray:
        """A file, mapped anew: pages that were read count for this process no longer."""
        return np.memmap(file, kind, "r")


def _write(file: Path, rows: np.ndarray, places: list[int]) -> None:
    """Writes rows of bytes at their places in `file`.

    Raises:
      UserError: its disk has no room.
    """
    width = rows.shape[1]
    try:
        with file.open("r+b", 0) as stream:
            for place, row in zip(places, rows, strict=True):
                os.pwrite(stream.fileno(), row, place * width)
    except OSError as error:
        raise tables.no_room(error.strerror or str(error)) from error


def _bytes(column: pa.Array) -> np.ndarray:
    """(rows, HASHES) of a column of blobs of fixed width."""
    rows = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, duplicates.HASHES)
    return rows[column.offset : column.offset + len(column)]
