"""The token store: a corpus as one long array of tokens per split, and a table of its documents.

`store_writer.py` writes it, the batch loader reads it. A store is a folder, on a disk or on gs://,
that needs nothing beside it:

    manifest.json                      what is in it, written last: without it there is no store
    vocabulary/sentencepiece.model     the vocabulary that the tokens belong to; or tokenizer.json
    <split>/tokens                     uint16 [tokens]; every document ends with the eos token
    <split>/documents                  int64 [documents, 5]; see COLUMNS
    <split>/index                      int64 [n]: the first token of every 1,024th document

The arrays are zarr 3, uncompressed, in shards of about 64 MB. A shard is read by pieces of 64 KB
with a checksum each, so that a window from anywhere costs one or two of them, and the document at
any token costs the index and one piece of the table.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from etils import epath
from jaxtyping import Int

from biomedlm_jax.entry import UserError, in_cloud
from biomedlm_jax.pipeline.vocabulary import file_in

FORMAT = 3
COLUMNS = ("first token", "utf-8 bytes", "source", "number", "year")
UNKNOWN_YEAR = 0  # of publication
SPLITS = ("train", "heldout")  # of a corpus; heldout is never trained on
SOURCES = {  # code in the table, prefix of an id; The Pile's numbers are hashes of the text
    "abstract": (0, "PMID"),
    "full_text": (1, "PMC"),
    "pile_abstract": (2, "PILEA"),
    "pile_full_text": (3, "PILEC"),
}
SOURCE_OF_CODE = {code: source for source, (code, _) in SOURCES.items()}
MAX_VOCABULARY = 1 << 16  # ids that fit into uint16

TOKEN_SHARD, TOKEN_PIECE = 1 << 25, 1 << 15  # 64 MiB of 64 KiB
DOCUMENT_SHARD, DOCUMENT_PIECE = 1 << 21, 1 << 10  # 64 MiB of 32 KiB
_CACHE_BYTES = 256 << 20  # pieces and shard indices that were read; the indices are 16 KiB each


def document_id(source: str, number: int) -> str:
    """The id of a document: "PMID:123" of source "abstract", "PMC:123" of "full_text"."""
    return f"{SOURCES[source][1]}:{number}"


def is_heldout(id: str, per_mille: int) -> bool:
    """Whether a document is kept from training. It depends on nothing but the id, so that it never
    moves when the corpus grows."""
    digest = hashlib.blake2b(id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 1000 < per_mille


class TokenStore:
    """One split of a store, for reading. That every shard is there and whole is checked when it is
    opened; the checksums of the pieces are, when they are read.

    Attributes:
      tokens: how many there are, those that end documents included.
      rows: how many documents.
      manifest: manifest.json of the whole store.
      eos_id, vocab_size, vocabulary_sha256, vocabulary_path: of the vocabulary inside the store.
      sha256: of the tokens' hashes, shard by shard; see `store_writer.py`.

    Raises:
      UserError: no store at `path`, no such split, another format, arrays that do not hold what
        the manifest says, or shards that are missing or cut.
    """

    def __init__(self, path: str | Path | epath.Path, split: str) -> None:
        self.path = epath.Path(path)
        self.setting = f"config.data.store={self.path}"
        self.manifest = _read_manifest(self.path)
        splits = self.manifest["splits"]
        if split not in splits:
            raise UserError(f"{self.path} has no split {split!r}; it has {', '.join(splits)}")
        self.split = split
        self.tokens: int = splits[split]["tokens"]
        self.rows: int = splits[split]["documents"]
        self.sha256: str = splits[split]["sha256"]
        self.vocab_size: int = self.manifest["vocabulary"]["size"]
        self.eos_id: int = self.manifest["vocabulary"]["eos_id"]
        self.vocabulary_sha256: str = self.manifest["vocabulary"]["sha256"]
        self.vocabulary_path = file_in(self.path / "vocabulary", "write the store again")
        found = hashlib.sha256(self.vocabulary_path.read_bytes()).hexdigest()
        if found != self.vocabulary_sha256:
            raise UserError(
                f"{self.vocabulary_path} is not the vocabulary of the tokens beside it: its sha256 "
                f"is {found}, the manifest says {self.vocabulary_sha256}; copy the store again"
            )
        folder = self.path / split
        self._array = _open(folder / "tokens", (self.tokens,), TOKEN_SHARD)
        self._table = _open(folder / "documents", (self.rows, len(COLUMNS)), DOCUMENT_SHARD)
        entries = -(-self.rows // DOCUMENT_PIECE)
        self._index = _open(folder / "index", (entries,), DOCUMENT_SHARD // DOCUMENT_PIECE)

    @functools.cached_property
    def documents(self) -> np.ndarray:
        """int64 [documents, 5], columns as in COLUMNS, by rising first token.

        Read when first asked for: the 18 million rows of all abstracts are 720 MB, and training
        needs none of them.

        Raises:
          UserError: a shard is damaged.
        """
        return np.asarray(_result(self._table.read(), self.path / self.split))

    def table(self, first: int, end: int) -> np.ndarray:
        """Rows `first` to `end` of `documents`, int64 [end - first, 5], without the others.

        Raises:
          UserError: a shard is damaged.
        """
        assert 0 <= first <= end <= self.rows
        return np.asarray(_result(self._table[first:end].read(), self.path / self.split))

    @functools.cached_property
    def text_bytes(self) -> int:
        """UTF-8 length of all documents, for a loss in bits per byte."""
        return int(self.documents[:, 1].sum())

    @functools.cached_property
    def groups(self) -> tuple[np.ndarray, np.ndarray]:
        """The source and the year of all documents: int64 [groups, 2], each pair of a code of
        SOURCES and a year once, in rising order; and int64 [documents], the group of each."""
        pairs = self.documents[:, [COLUMNS.index("source"), COLUMNS.index("year")]]
        found, of = np.unique(pairs, axis=0, return_inverse=True)
        return found, of.reshape(-1)  # of another shape in NumPy 2.0

    @functools.cached_property
    def _firsts(self) -> np.ndarray:
        """The first token of every DOCUMENT_PIECE'th document, int64."""
        return _result(self._index.read(), self.path / self.split)

    def length(self, separators: bool) -> int:
        """Tokens of the split with or without those that end documents."""
        return self.tokens if separators else self.tokens - self.rows

    def read(self, starts: np.ndarray, length: int) -> Int[np.ndarray, "n length"]:
        """The windows of `length` tokens that begin at `starts`, ends of documents included.

        Args:
          starts: int64 [n]; 0 <= start <= tokens - length.
          length: tokens in a window.

        Raises:
          UserError: a shard is damaged.
        """
        windows = np.empty((len(starts), length), np.int32)
        ranges = [(start, start + length) for start in starts.tolist()]
        for window, tokens in zip(windows, self._read(ranges), strict=True):
            window[:] = tokens
        return windows

    def windows(
        self, starts: np.ndarray, length: int, separators: bool
    ) -> tuple[Int[np.ndarray, "n length"], Int[np.ndarray, "n length"]]:
        """The windows of `length` tokens that begin at `starts`, and the segment of each token: 0
        for the document in which the window begins, 1 for the next one, and so on.

        Without `separators` the tokens that end documents are left out, and starts count the others
        only; where documents lie is looked up in their table.

        Args:
          starts: int64 [n]; 0 <= start <= length(separators) - length.
          length: tokens in a window.
        """
        assert starts.size == 0 or starts.max() + length <= self.length(separators)
        skipped = np.zeros((2, len(starts)), np.int64)
        if not separators and len(starts):
            edges = np.concatenate([starts, starts + length - 1])
            skipped = self._rows_at(edges, separators=False).reshape(2, -1)
        begins, ends = starts + skipped[0], starts + skipped[1] + length
        tokens = np.empty((len(starts), length), np.int32)
        segments = np.empty_like(tokens)
        ranges = list(zip(begins.tolist(), ends.tolist(), strict=True))
        for row, stored in enumerate(self._read(ranges)):
            ending = stored == self.eos_id
            segment = np.cumsum(ending) - ending
            kept = slice(None) if separators else ~ending
            tokens[row], segments[row] = stored[kept], segment[kept]
        return tokens, segments

    def ids(self, start: int, length: int, separators: bool = True) -> list[str]:
        """The documents that the window at `start` comes from: "PMID:123", "PMC:123"."""
        edges = np.array([start, start + length - 1])
        low, high = self._rows_at(edges, separators).tolist()
        rows = _result(self._table[low : high + 1].read(), self.path / self.split).tolist()
        return [document_id(SOURCE_OF_CODE[code], number) for _, _, code, number, _ in rows]

    def _rows_at(self, positions: np.ndarray, separators: bool) -> np.ndarray:
        """The row of the document that holds each position, int64 [n]."""
        index = self._firsts
        if not separators:  # every document before has one token that does not count
            index = index - DOCUMENT_PIECE * np.arange(len(index))
        pieces = np.searchsorted(index, positions, side="right") - 1
        rows = np.empty_like(positions)
        with ts.Batch() as batch:
            firsts = {}
            for piece in np.unique(pieces).tolist():
                span = slice(piece * DOCUMENT_PIECE, (piece + 1) * DOCUMENT_PIECE)
                firsts[piece] = self._table[span.start : min(span.stop, self.rows), 0].read(
                    batch=batch
                )
        for piece, read in firsts.items():
            first = _result(read, self.path / self.split)
            row = piece * DOCUMENT_PIECE + np.arange(len(first))
            here = pieces == piece
            begins = first if separators else first - row
            found = np.searchsorted(begins, positions[here], side="right") - 1
            rows[here] = row[found]
        return rows

    def _read(self, ranges: list[tuple[int, int]]) -> list[np.ndarray]:
        """Tokens [start, end) of each range. All reads are issued together, so that the pieces
        they share are fetched once."""
        assert all(0 <= start <= end <= self.tokens for start, end in ranges)
        with ts.Batch() as batch:
            reads = [self._array[start:end].read(batch=batch) for start, end in ranges]
        return [_result(read, self.path / self.split) for read in reads]


def _read_manifest(path: epath.Path) -> dict[str, Any]:
    file = path / "manifest.json"
    try:
        there = file.exists()
    except OSError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"config.data.store={path} can not be read: {reason}; see that this process may"
        ) from error
    if not there:
        raise UserError(
            f"config.data.store={path} is no token store: it has no manifest.json; write one with "
            "`python -m data.tokenize`, or wait until it has finished"
        )
    try:
        manifest = json.loads(file.read_text())
        if manifest["format"] != FORMAT:
            raise UserError(
                f"{file} is of format {manifest['format']!r}, this code reads {FORMAT}; write the "
                "store again with `python -m data.tokenize`"
            )
        entries = [(manifest["vocabulary"], ("sha256", "size", "eos_id"))]
        entries += [(s, ("tokens", "documents", "sha256")) for s in manifest["splits"].values()]
        for entry, names in entries:
            for name in names:
                entry[name]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not the manifest of a token store: {error!r}") from error
    return manifest


def _open(path: epath.Path, shape: tuple[int, ...], shard: int) -> ts.TensorStore:
    """The array at `path`, checked against the shape that the manifest gives it. A shard that is
    absent must be found here: zarr reads it as zeros. One that was cut has lost the index at its
    end, without which not one row of it can be read."""
    cached = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
    spec = {
        "driver": "zarr3",
        "kvstore": kvstore(path),
        "recheck_cached_metadata": "open",
        "recheck_cached_data": "open",
        "fill_missing_data_reads": False,  # or a shard that is gone is read as zeros
    }
    array = _result(ts.open(spec, open=True, read=True), path)
    if tuple(array.shape) != shape:
        raise UserError(
            f"{path} is of shape {tuple(array.shape)}, the manifest says {shape}; the store is "
            "damaged or two were mixed: write it again or copy it whole"
        )
    width = "/0" * (len(shape) - 1)
    shards = -(-shape[0] // shard)
    there = {str(file.relative_to(path)) for file in path.glob(f"c/*{width}")}
    for index in range(shards):
        if (name := f"c/{index}{width}") not in there:
            raise UserError(f"{path / name} is missing; the store is not whole, copy it again")
    with ts.Batch() as batch:
        rows = [array[first].read(batch=batch) for first in range(0, shape[0], shard)]
    for row in rows:
        _result(row, path)
    return _result(ts.open(spec, open=True, read=True, context=cached), path)


def _result(future: Any, path: epath.Path) -> Any:
    try:
        return future.result()
    except ValueError as error:  # how tensorstore reports absent, cut and damaged files
        raise UserError(f"{path} can not be read, copy the store again: {error}") from error


def kvstore(path: epath.Path) -> dict[str, str]:
    """For tensorstore: a folder on a disk or on gs://."""
    if in_cloud(path):
        bucket, _, name = str(path).removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{name}/"}
    return {"driver": "file", "path": f"{Path(path).absolute()}/"}
