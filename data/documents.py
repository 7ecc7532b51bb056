"""The folder of documents that `parse.py` writes and `tokenizer.py` and `tokenize.py` read.

    train.jsonl, heldout.jsonl   one document per line; heldout is never trained on
    quarantine.jsonl             what could not be read: file, position, reason
    manifest.json                the settings, counts of every stage, sizes and hashes

`biomedlm_jax/pipeline/tasks.py` reads the lines for seqio; otherwise the format is known here only.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from biomedlm_jax import entry
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.store import SOURCES, SPLITS
from data.markup import Unreadable

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of no call that reads


@dataclasses.dataclass(frozen=True)
class Document:
    id: str  # "PMID:123", "PMC:123"
    source: str  # "abstract", "full_text"
    year: int | None  # of publication
    language: str  # three letters as in PubMed
    licence: str
    text: str


@contextlib.contextmanager
def output_folder(output: Path) -> Iterator[Path]:
    """`entry.whole_folder` for --output of the tools here.

    Raises:
      UserError: `output` is not empty, or the system does not let it be written: the disk is full,
        read-only or another's.
    """
    output = output.absolute()
    partial = output.with_name(output.name + ".partial")
    try:
        with entry.whole_folder(output) as folder:
            yield folder
    except OSError as error:
        about = error.filename and Path(str(error.filename))
        ours = about and (about.is_relative_to(partial) or about in partial.parents)
        if error.errno not in _NO_ROOM and not ours:
            raise
        raise UserError(
            f"--output={output} can not be written: {error.strerror}; remove {partial} and make "
            "room there, or name a folder on another disk"
        ) from error


def is_heldout(id: str, per_mille: int) -> bool:
    """Whether a document is kept from training. It depends on nothing but the id, so that it never
    moves when the corpus grows."""
    digest = hashlib.blake2b(id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 1000 < per_mille


class Writer:
    """Writes the folder, in a `with` block; `finish` is the last that is called in it."""

    def __init__(self, folder: Path, heldout_per_mille: int) -> None:
        self._folder = folder
        self._heldout_per_mille = heldout_per_mille
        self._files = contextlib.ExitStack()
        self._quarantine = self._open("quarantine.jsonl")
        self._splits = {name: _Split(self._open(f"{name}.jsonl")) for name in SPLITS}
        self.quarantined = 0
        self.first_quarantined: dict[str, str] | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    @property
    def documents(self) -> int:
        return sum(split.documents for split in self._splits.values())

    def write(self, document: Document) -> None:
        split = SPLITS[is_heldout(document.id, self._heldout_per_mille)]
        self._splits[split].write(document)

    def set_aside(self, file: str, what: Unreadable) -> None:
        line = {"file": file, **dataclasses.asdict(what)}
        self._quarantine.write(_line(line))
        self.quarantined += 1
        self.first_quarantined = self.first_quarantined or line

    def finish(self, **entries: Any) -> dict[str, Any]:
        """Writes manifest.json, with `entries` at its head, and returns what it holds."""
        splits = {name: split.summary() for name, split in self._splits.items()}
        manifest = {**entries, "quarantined": self.quarantined, "splits": splits}
        text = json.dumps(manifest, indent=2) + "\n"
        (self._folder / "manifest.json").write_text(text, encoding="utf-8")
        return manifest

    def _open(self, name: str) -> IO[bytes]:
        return self._files.enter_context((self._folder / name).open("wb"))


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a folder of documents.

    Raises:
      UserError: `folder` is none.
    """
    file = folder / "manifest.json"
    missing = [f for f in (file, *(folder / f"{s}.jsonl" for s in SPLITS)) if not f.is_file()]
    if missing:
        raise UserError(
            f"--documents={folder} is no folder of documents: it has no {missing[0].name}; write "
            "one with `python -m data.parse`"
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        for name in SPLITS:
            for key in ("documents", "bytes", "sha256"):
                manifest["splits"][name][key]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} was not written by `python -m data.parse`: {error!r}") from error
    return manifest


def read(file: Path) -> Iterator[Document]:
    """The documents of a .jsonl file, in its order."""
    with file.open("rb") as lines:
        for line in lines:
            yield Document(**json.loads(line))


def append(file: IO[bytes], document: Document) -> int:
    """Writes a document to a binary file; returns the bytes of the line."""
    return file.write(_line(dataclasses.asdict(document)))


class _Split:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._sizes = {source: {"documents": 0, "bytes": 0} for source in SOURCES}
        self.documents = 0

    def write(self, document: Document) -> None:
        line = _line(dataclasses.asdict(document))
        self._file.write(line)
        self._hash.update(line)
        self.documents += 1
        size = self._sizes[document.source]
        size["documents"] += 1
        size["bytes"] += len(document.text.encode())

    def summary(self) -> dict[str, Any]:
        total = {
            unit: sum(s[unit] for s in self._sizes.values()) for unit in ("documents", "bytes")
        }
        return {**total, "sources": self._sizes, "sha256": self._hash.hexdigest()}


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"
