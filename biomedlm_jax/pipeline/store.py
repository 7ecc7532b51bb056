"""The token store: a corpus as one long array of tokens per split, and a table of its documents.

`data/tokenize.py` writes it, the batch loader reads it; its format is known here only. A store is
a folder that needs nothing beside it:

    manifest.json                      what is in it, written last: without it there is no store
    vocabulary/sentencepiece.model     the vocabulary that the tokens belong to; or tokenizer.json
    <split>/tokens                     uint16 [tokens]; every document ends with the eos token
    <split>/documents                  int64 [documents, 4]; see COLUMNS

Both arrays are zarr 3, uncompressed, in shards of about 64 MB. A shard is read by pieces of 64 KB
with a checksum each, so that a window from anywhere costs one or two of them.
"""

import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.vocabulary import file_in, file_name

FORMAT = 1
COLUMNS = ("first token", "utf-8 bytes", "source", "number")
SPLITS = ("train", "heldout")  # of a corpus; heldout is never trained on
SOURCES = {"abstract": (0, "PMID"), "full_text": (1, "PMC")}  # in the table, in an id
_SOURCE_OF_CODE = {code: source for source, (code, _) in SOURCES.items()}
MAX_VOCABULARY = 1 << 16  # ids that fit into uint16

_TOKEN_SHARD, _TOKEN_PIECE = 1 << 25, 1 << 15  # 64 MiB of 64 KiB
_DOCUMENT_SHARD, _DOCUMENT_PIECE = 1 << 21, 1 << 13  # 64 MiB of 256 KiB
_CACHE_BYTES = 256 << 20  # pieces and shard indices that were read; the indices are 16 KiB each


def document_id(source: str, number: int) -> str:
    """The id of a document: "PMID:123" of source "abstract", "PMC:123" of "full_text"."""
    return f"{SOURCES[source][1]}:{number}"


class TokenStore:
    """One split of a store, for reading. That every shard is there and whole is checked when it is
    opened; the checksums of the pieces are, when they are read.

    Attributes:
      tokens: how many there are.
      manifest: manifest.json of the whole store.
      eos_id, vocab_size, vocabulary_sha256, vocabulary_path: of the vocabulary inside the store.
      sha256: of the split's tokens as little-endian uint16.

    Raises:
      UserError: no store at `path`, no such split, another format, arrays that do not hold what
        the manifest says, or shards that are missing or cut.
    """

    def __init__(self, path: str | Path, split: str) -> None:
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        splits = self.manifest["splits"]
        if split not in splits:
            raise UserError(f"{self.path} has no split {split!r}; it has {', '.join(splits)}")
        self.split = split
        self.tokens: int = splits[split]["tokens"]
        self.sha256: str = splits[split]["sha256"]
        self.vocab_size: int = self.manifest["vocabulary"]["size"]
        self.eos_id: int = self.manifest["vocabulary"]["eos_id"]
        self.vocabulary_sha256: str = self.manifest["vocabulary"]["sha256"]
        self.vocabulary_path = file_in(self.path / "vocabulary", "write the store again")
        rows: int = splits[split]["documents"]
        self._array = _open(self.path / split / "tokens", (self.tokens,), _TOKEN_SHARD)
        table = self.path / split / "documents"
        self._table = _open(table, (rows, len(COLUMNS)), _DOCUMENT_SHARD)

    @functools.cached_property
    def documents(self) -> np.ndarray:
        """int64 [documents, 4], columns as in COLUMNS, by rising first token.

        Read when first asked for: the 18 million rows of all abstracts are 580 MB, and training
        needs none of them.

        Raises:
          UserError: a shard is damaged.
        """
        return np.asarray(_result(self._table.read(), self.path / self.split))

    @functools.cached_property
    def text_bytes(self) -> int:
        """UTF-8 length of all documents, for a loss in bits per byte."""
        return int(self.documents[:, 1].sum())

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The windows of `length` tokens that begin at `starts`.

        All reads are issued together, so that the pieces they share are fetched once.

        Args:
          starts: int64 [n]; 0 <= start <= tokens - length.
          length: tokens in a window.

        Returns:
          int32 [n, length].

        Raises:
          UserError: a shard is damaged.
        """
        assert starts.size == 0 or (starts.min() >= 0 and starts.max() + length <= self.tokens)
        with ts.Batch() as batch:
            reads = [self._array[s : s + length].read(batch=batch) for s in starts.tolist()]
        windows = np.empty((len(reads), length), np.int32)
        for window, read in zip(windows, reads, strict=True):
            window[:] = _result(read, self.path / self.split)
        return windows

    def ids(self, start: int, length: int) -> list[str]:
        """The documents that tokens [start, start + length) come from: "PMID:123", "PMC:123"."""
        firsts = self.documents[:, 0]
        low = int(np.searchsorted(firsts, start, side="right")) - 1
        high = int(np.searchsorted(firsts, start + length, side="left"))
        rows = self.documents[low:high].tolist()
        return [document_id(_SOURCE_OF_CODE[code], number) for _, _, code, number in rows]


class StoreWriter:
    """Writes a store of `splits` into an existing empty folder, document by document.

    Memory stays at one shard per split; nothing can be read before `close` has been called.

    Raises:
      UserError: the vocabulary's ids do not fit into uint16.
      OSError: here and in its methods, the disk is full or may not be written.
    """

    def __init__(
        self,
        folder: Path,
        splits: Sequence[str],
        *,
        vocabulary: Path,
        vocab_size: int,
        eos_id: int,
    ) -> None:
        if vocab_size > MAX_VOCABULARY:
            raise UserError(
                f"--vocabulary={vocabulary} has {vocab_size} tokens; a store holds ids of at most "
                f"{MAX_VOCABULARY}: train one with a smaller --size"
            )
        self._folder = folder
        (folder / "vocabulary").mkdir()
        shutil.copyfile(vocabulary, folder / "vocabulary" / file_name(vocabulary))
        self._vocabulary = {
            "sha256": hashlib.sha256(vocabulary.read_bytes()).hexdigest(),
            "size": vocab_size,
            "eos_id": eos_id,
        }
        self._splits = {name: _Split(folder / name) for name in splits}

    def append(self, split: str, tokens: np.ndarray, id: str, source: str, nbytes: int) -> None:
        """Adds a document at the end of a split.

        Args:
          tokens: integers [n], the last one eos.
          id: "PMID:123" for source "abstract", "PMC:123" for "full_text".
          nbytes: UTF-8 length of the text.
        """
        code, prefix = SOURCES[source]
        if not id.startswith(prefix + ":"):
            raise ValueError(f"document {id!r} is of source {source!r}; its id begins {prefix}:")
        if not len(tokens) or tokens[-1] != self._vocabulary["eos_id"]:
            raise ValueError(f"document {id!r} does not end with the eos token")
        if tokens.min() < 0 or tokens.max() >= self._vocabulary["size"]:
            raise ValueError(f"document {id!r} has a token that the vocabulary lacks")
        row = (nbytes, code, int(id.removeprefix(prefix + ":")))
        self._splits[split].append(tokens.astype("<u2"), row)

    def close(self, *, documents: dict[str, Any], versions: dict[str, str]) -> dict[str, Any]:
        """Writes what is buffered, then the manifest, and returns it.

        Args:
          documents: where the text came from, for the manifest.
          versions: of the packages that made the tokens, for the manifest.
        """
        manifest = {
            "format": FORMAT,
            "vocabulary": self._vocabulary,
            "splits": {name: split.close() for name, split in self._splits.items()},
            "documents": documents,
            "versions": versions,
        }
        text = json.dumps(manifest, indent=2) + "\n"
        (self._folder / "manifest.json").write_text(text, encoding="utf-8")
        return manifest


class _Split:
    def __init__(self, folder: Path) -> None:
        self._tokens = _GrowingArray(
            folder / "tokens", "uint16", (), shard=_TOKEN_SHARD, piece=_TOKEN_PIECE
        )
        self._documents = _GrowingArray(
            folder / "documents", "int64", (4,), shard=_DOCUMENT_SHARD, piece=_DOCUMENT_PIECE
        )
        self._hash = hashlib.sha256()
        self._bytes = 0

    def append(self, tokens: np.ndarray, row: tuple[int, int, int]) -> None:
        first = self._tokens.length
        self._tokens.append(tokens)
        self._documents.append(np.array([(first, *row)], np.int64))
        self._hash.update(tokens.tobytes())
        self._bytes += row[0]

    def close(self) -> dict[str, Any]:
        self._tokens.flush()
        self._documents.flush()
        return {
            "tokens": self._tokens.length,
            "documents": self._documents.length,
            "bytes": self._bytes,
            "sha256": self._hash.hexdigest(),
        }


class _GrowingArray:
    """A zarr array that is extended along its first axis, one whole shard at a time: a shard that
    is written twice would be read back and written anew."""

    def __init__(
        self, path: Path, dtype: str, row: tuple[int, ...], *, shard: int, piece: int
    ) -> None:
        self._shard = shard
        self._buffer: list[np.ndarray] = []
        self._buffered = 0
        self.length = 0
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {"chunk_shape": [piece, *row], "codecs": codecs}
        grid = {"name": "regular", "configuration": {"chunk_shape": [shard, *row]}}
        metadata = {
            "shape": [0, *row],
            "data_type": dtype,
            "chunk_grid": grid,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        }
        self._path = path
        spec = {"driver": "zarr3", "kvstore": _kvstore(path), "metadata": metadata}
        self._array = _written(ts.open(spec, create=True), path)

    def append(self, rows: np.ndarray) -> None:
        self.length += len(rows)
        self._buffer.append(rows)
        self._buffered += len(rows)
        if self._buffered >= self._shard:
            rows = np.concatenate(self._buffer)
            whole = len(rows) // self._shard * self._shard
            self._write(rows[:whole], self.length - len(rows))
            self._buffer, self._buffered = [rows[whole:].copy()], len(rows) - whole

    def flush(self) -> None:
        if self._buffered:
            self._write(np.concatenate(self._buffer), self.length - self._buffered)
        self._buffer, self._buffered = [], 0

    def _write(self, rows: np.ndarray, first: int) -> None:
        last = first + len(rows)
        exclusive_max = [last, *rows.shape[1:]]
        larger = self._array.resize(exclusive_max=exclusive_max, expand_only=True)
        self._array = _written(larger, self._path)
        _written(self._array[first:last].write(rows), self._path)


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.is_file():
        raise UserError(
            f"config.data.store={path} is no token store: it has no manifest.json; write one with "
            "`python -m data.tokenize`, or wait until it has finished"
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
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


def _open(path: Path, shape: tuple[int, ...], shard: int) -> ts.TensorStore:
    """The array at `path`, checked against the shape that the manifest gives it. A shard that is
    absent must be found here: zarr reads it as zeros. One that was cut has lost the index at its
    end, without which not one row of it can be read."""
    cached = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
    spec = {
        "driver": "zarr3",
        "kvstore": _kvstore(path),
        "recheck_cached_metadata": "open",
        "recheck_cached_data": "open",
    }
    array = _result(ts.open(spec, open=True, read=True), path)
    if tuple(array.shape) != shape:
        raise UserError(
            f"{path} is of shape {tuple(array.shape)}, the manifest says {shape}; the store is "
            "damaged or two were mixed: write it again or copy it whole"
        )
    width = "/0" * (len(shape) - 1)
    for index in range(-(-shape[0] // shard)):
        if not (file := path / f"c/{index}{width}").is_file():
            raise UserError(f"{file} is missing; the store is not whole, copy it again")
    with ts.Batch() as batch:
        rows = [array[first].read(batch=batch) for first in range(0, shape[0], shard)]
    for row in rows:
        _result(row, path)
    return _result(ts.open(spec, open=True, read=True, context=cached), path)


def _result(future: Any, path: Path) -> Any:
    try:
        return future.result()
    except ValueError as error:  # how tensorstore reports absent, cut and damaged files
        raise UserError(f"{path} can not be read, copy the store again: {error}") from error


def _written(future: Any, path: Path) -> Any:
    try:
        return future.result()
    except ValueError as error:  # tensorstore gives the system's error as words
        if not (found := re.search(r"os_error_code='(\d+)'", str(error))):
            raise
        code = int(found[1])
        raise OSError(code, os.strerror(code), str(path)) from error


def _kvstore(path: Path) -> dict[str, str]:
    return {"driver": "file", "path": f"{path.absolute()}/"}
