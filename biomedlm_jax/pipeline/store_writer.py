"""Writes the token store that `store.py` describes, with as many processes as there are.

A document's place in the store depends on all documents before it, so there are two passes.
`piece` takes the tokens of some documents and keeps them as raw arrays; when all pieces are there,
`create` makes the store's arrays in their final size, and `write` fills one shard of one array,
which no other process touches. `close` writes the manifest. Memory holds one shard.

A split's hash is the SHA-256 of the SHA-256s, in hex, of its shards' little-endian uint16 tokens:
it does not depend on how the documents were divided into pieces.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import IO, Any

import numpy as np
import tensorstore as ts
from etils import epath

from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline import store
from biomedlm_jax.pipeline.lines import appearing
from biomedlm_jax.pipeline.store import COLUMNS, FORMAT, SOURCES, SPLITS
from biomedlm_jax.pipeline.vocabulary import Vocabulary, file_name

_LAYOUT = "layout.json"  # what `create` was told, for `write` in other processes
_UNITS = ("tokens", "documents")
_TOKEN, _ROW = np.dtype("<u2"), np.dtype("<i8")


@dataclasses.dataclass(frozen=True)
class StoreWriter:
    """Goes to every process; has no state but its files.

    folder: of the store.
    work: a folder for the pieces, as large as the store; to be removed afterwards.
    vocabulary: the file that the store's tokens belong to.

    Raises:
      OSError: from all methods, the disk is full or may not be written.
    """

    folder: epath.Path
    work: epath.Path
    vocabulary: epath.Path
    size: int
    eos_id: int

    @classmethod
    def of(cls, folder: epath.Path, work: epath.Path, vocabulary: Vocabulary) -> "StoreWriter":
        """Raises UserError where the vocabulary's ids do not fit into uint16."""
        if vocabulary.size > store.MAX_VOCABULARY:
            raise UserError(
                f"--vocabulary={vocabulary.path} has {vocabulary.size} tokens; a store holds ids "
                f"of at most {store.MAX_VOCABULARY}: train one with a smaller --size"
            )
        path = epath.Path(vocabulary.path)
        return cls(folder, work, path, vocabulary.size, vocabulary.eos_id)

    @contextlib.contextmanager
    def piece(self, name: str) -> Iterator["Piece"]:
        """A piece to append documents to; pieces follow each other in the order of `create`."""
        with contextlib.ExitStack() as files:
            opened = {
                (split, kind): files.enter_context(appearing(self.work / f"{name}.{split}.{kind}"))
                for split in SPLITS
                for kind in _UNITS
            }
            yield Piece(self.size, self.eos_id, opened)

    def create(self, pieces: dict[str, dict[str, dict[str, int]]]) -> dict[str, int]:
        """Makes the arrays. May be called again, with the same.

        pieces: {name: `Piece.summary`}, in the order of the documents.

        Returns:
          {item for `write`: bytes}.
        """
        items = {}
        layout = {s: [(n, p[s]["tokens"], p[s]["documents"]) for n, p in pieces.items()]
                  for s in SPLITS}  # fmt: skip
        (self.work / _LAYOUT).write_text(json.dumps(layout))
        for split in SPLITS:
            tokens, rows = (sum(p[split][u] for p in pieces.values()) for u in _UNITS)
            (self.folder / split).mkdir(parents=True, exist_ok=True)
            for kind, length in zip(_UNITS, (tokens, rows), strict=True):
                _Kind(kind).create(self.folder / split / kind, length)
                shard = _Kind(kind).shard
                for i in range(-(-length // shard)):
                    count = min(shard, length - i * shard)
                    items[f"{split}.{kind}.{i:05}"] = count * _Kind(kind).row_bytes
            _Kind("index").create(self.folder / split / "index", -(-rows // store.DOCUMENT_PIECE))
        return items

    def write(self, item: str) -> dict[str, Any]:
        """Writes a shard; returns its hash."""
        split, kind, number = item.split(".")
        parts = json.loads((self.work / _LAYOUT).read_text())[split]
        first = int(number) * _Kind(kind).shard
        folder = self.folder / split
        if kind == "tokens":
            lengths = [(name, tokens) for name, tokens, _ in parts]
            found = [data for _, data in self._overlapping(split, kind, lengths, first)]
            data = np.concatenate([np.frombuffer(d, _TOKEN) for d in found])
        else:
            lengths = [(name, rows) for name, _, rows in parts]
            offsets = np.cumsum([0, *(tokens for _, tokens, _ in parts)])
            tables = []
            for place, raw in self._overlapping(split, kind, lengths, first):
                table = np.frombuffer(raw, _ROW).reshape(-1, len(COLUMNS)).copy()
                table[:, 0] += offsets[place]
                tables.append(table)
            data = np.concatenate(tables)
            index = data[:: store.DOCUMENT_PIECE, 0]
            _Kind("index").write(folder / "index", first // store.DOCUMENT_PIECE, index)
        _Kind(kind).write(folder / kind, first, data)
        return {"sha256": hashlib.sha256(data.tobytes()).hexdigest()}

    def close(
        self,
        pieces: dict[str, dict[str, dict[str, int]]],
        written: dict[str, dict[str, Any]],
        **entries: Any,
    ) -> dict[str, Any]:
        """Writes the vocabulary and then the manifest, which makes the store one; returns it.

        Args:
          pieces: as for `create`.
          written: {item: what `write` returned}.
          entries: more for the manifest.
        """
        vocabulary = self.vocabulary.read_bytes()
        (self.folder / "vocabulary").mkdir(exist_ok=True)
        copy = self.folder / "vocabulary" / file_name(self.vocabulary)
        copy.write_bytes(vocabulary)
        splits = {}
        for split in SPLITS:
            counts = ("tokens", "documents", "bytes")
            hashes = [written[i]["sha256"] for i in sorted(written) if i.startswith(f"{split}.t")]
            splits[split] = {
                **{unit: sum(piece[split][unit] for piece in pieces.values()) for unit in counts},
                "sha256": hashlib.sha256("".join(hashes).encode()).hexdigest(),
            }
        manifest = {
            "format": FORMAT,
            "vocabulary": {
                "sha256": hashlib.sha256(vocabulary).hexdigest(),
                "size": self.size,
                "eos_id": self.eos_id,
            },
            "splits": splits,
            **entries,
        }
        with appearing(self.folder / "manifest.json") as stream:
            stream.write(json.dumps(manifest, indent=1).encode() + b"\n")
        return manifest

    def write_all(
        self, documents: Iterable[tuple[str, np.ndarray, str, str, int, int]], **entries: Any
    ) -> dict[str, Any]:
        """The whole store in this process; `documents` gives the arguments of `Piece.append`."""
        with self.piece("all") as piece:
            for document in documents:
                piece.append(*document)
        pieces = {"all": piece.summary()}
        written = {item: self.write(item) for item in self.create(pieces)}
        self.work.rmtree()
        return self.close(pieces, written, **entries)

    def _overlapping(
        self, split: str, kind: str, lengths: list[tuple[str, int]], first: int
    ) -> Iterator[tuple[int, bytes]]:
        """What the pieces hold of the shard that begins at `first`: (place among them, bytes)."""
        width, end = _Kind(kind).row_bytes, first + _Kind(kind).shard
        begin = 0
        for place, (name, length) in enumerate(lengths):
            low, high = max(first, begin) - begin, min(end, begin + length) - begin
            if low < high:
                with (self.work / f"{name}.{split}.{kind}").open("rb") as file:
                    file.seek(low * width)
                    data = file.read((high - low) * width)
                if len(data) != (high - low) * width:
                    raise UserError(f"{self.work}/{name}.{split}.{kind} was cut; begin again")
                yield place, data
            begin += length


class Piece:
    """Documents that follow each other in each split."""

    def __init__(self, size: int, eos_id: int, files: dict[tuple[str, str], IO[bytes]]) -> None:
        self._size, self._eos_id, self._files = size, eos_id, files
        self._counts = {s: {"tokens": 0, "documents": 0, "bytes": 0} for s in SPLITS}

    def append(
        self, split: str, tokens: np.ndarray, id: str, source: str, nbytes: int, year: int
    ) -> None:
        """Adds a document at the end of a split.

        Args:
          tokens: integers [n], the last one eos and no other.
          id: "PMID:123" for source "abstract", "PMC:123" for "full_text"; see `store.SOURCES`.
          nbytes: UTF-8 length of the text.
          year: of publication; `store.UNKNOWN_YEAR` where it is not known.
        """
        code, prefix = SOURCES[source]
        if not id.startswith(prefix + ":"):
            raise ValueError(f"document {id!r} is of source {source!r}; its id begins {prefix}:")
        if not len(tokens) or tokens[-1] != self._eos_id:
            raise ValueError(f"document {id!r} does not end with the eos token")
        if (tokens[:-1] == self._eos_id).any():
            raise ValueError(f"document {id!r} has an eos token before its end")
        if tokens.min() < 0 or tokens.max() >= self._size:
            raise ValueError(f"document {id!r} has a token that the vocabulary lacks")
        if not 0 <= year <= 9999:
            raise ValueError(f"document {id!r} is of the year {year}")
        counts = self._counts[split]
        row = (counts["tokens"], nbytes, code, int(id.removeprefix(prefix + ":")), year)
        self._files[split, "tokens"].write(tokens.astype(_TOKEN).tobytes())
        self._files[split, "documents"].write(np.array(row, _ROW).tobytes())
        counts["tokens"] += len(tokens)
        counts["documents"] += 1
        counts["bytes"] += nbytes

    def summary(self) -> dict[str, dict[str, int]]:
        """{"train": {"tokens": 3000, "documents": 7, "bytes": 12000}, "heldout": ...}"""
        return self._counts


class _Kind:
    """The form of one of a split's arrays."""

    def __init__(self, name: str) -> None:
        index_shard = store.DOCUMENT_SHARD // store.DOCUMENT_PIECE
        self.dtype, self.row, self.shard, self.piece = {
            "tokens": ("uint16", (), store.TOKEN_SHARD, store.TOKEN_PIECE),
            "documents": ("int64", (len(COLUMNS),), store.DOCUMENT_SHARD, store.DOCUMENT_PIECE),
            "index": ("int64", (), index_shard, index_shard),
        }[name]

    @property
    def row_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * int(np.prod(self.row, dtype=int))

    def create(self, path: epath.Path, length: int) -> None:
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {"chunk_shape": [self.piece, *self.row], "codecs": codecs}
        grid = {"name": "regular", "configuration": {"chunk_shape": [self.shard, *self.row]}}
        metadata = {
            "shape": [length, *self.row],
            "data_type": self.dtype,
            "chunk_grid": grid,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        }
        spec = {"driver": "zarr3", "kvstore": store.kvstore(path), "metadata": metadata}
        _written(ts.open(spec, create=True, open=True), path)

    def write(self, path: epath.Path, first: int, data: np.ndarray) -> None:
        """Rows from `first` on: a whole shard, or what there is of the last one."""
        spec = {
            "driver": "zarr3",
            "kvstore": store.kvstore(path),
            "store_data_equal_to_fill_value": True,  # or a shard of zeros is one that is missing
        }
        array = _written(ts.open(spec, open=True), path)
        _written(array[first : first + len(data)].write(data), path)


def _written(future: Any, path: epath.Path) -> Any:
    try:
        return future.result()
    except ValueError as error:  # tensorstore gives the system's error as words
        if not (found := re.search(r"os_error_code='(\d+)'", str(error))):
            raise
        code = int(found[1])
        raise OSError(code, os.strerror(code), str(path)) from error
