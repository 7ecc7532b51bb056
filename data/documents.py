"""The folder of documents that `parse.py` writes, `clean.py` thins out, and `tokenizer.py` and
`tokenize.py` read.

    shards/00000.jsonl.zst   documents, one a line, in the order of the files they came from
    quarantine.jsonl         what could not be read: file, position, reason
    manifest.json            settings, counts, sizes and hashes; written last

Whether a document is trained on or held out follows from its id alone (`is_heldout`), so a folder
is not divided by it. `biomedlm_jax/pipeline/tasks.py` reads the lines for seqio; otherwise the
format is known here only.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import zstandard
from etils import epath

from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.lines import compressed, lines
from biomedlm_jax.pipeline.store import SOURCES, SPLITS, is_heldout
from data.parsing.markup import Unreadable

MANIFEST, QUARANTINE, SHARDS = "manifest.json", "quarantine.jsonl", "shards"
Folder = Path | epath.Path  # on a disk or gs://
_TALLIED = ("source", "year", "language", "licence")


@dataclasses.dataclass(frozen=True)
class Document:
    id: str  # "PMID:123", "PMC:123"; see SOURCES in biomedlm_jax/pipeline/store.py
    source: str  # a key of SOURCES
    date: str  # of publication, as far as known: "2015-03-07", "2015-03", "2015", ""
    language: str  # three letters as in PubMed
    licence: str
    text: str
    journal: str = ""
    types: tuple[str, ...] = ()  # of publication, in PubMed's or PMC's words
    pmid: int | None = None
    pmcid: int | None = None
    doi: str | None = None
    version: int = 1
    # In other languages or for other readers: {"type", "language", "text"}. Never trained on.
    other_abstracts: tuple[dict[str, str], ...] = ()

    @property
    def number(self) -> int:
        return int(self.id.split(":")[1])

    @property
    def year(self) -> int | None:
        return int(self.date[:4]) if self.date else None


class Tally:
    """Documents and bytes of text by split, source, year, language and licence; a sum of tallies
    is the tally of all."""

    def __init__(self, summaries: Iterable[dict[str, Any]] = ()) -> None:
        self._counts: dict[str, collections.Counter[tuple[str, str]]] = {
            "documents": collections.Counter(),
            "bytes": collections.Counter(),
        }
        for summary in summaries:
            for field, values in summary.items():
                for value, units in values.items():
                    for unit, count in units.items():
                        self._counts.setdefault(unit, collections.Counter())[field, value] += count

    def add(self, document: Document, split: str, **units: int) -> None:
        """Counts one more document; `units` are further numbers to add up, such as its tokens."""
        values = {"split": split, **{f: str(getattr(document, f)) for f in _TALLIED}}
        numbers = {"documents": 1, "bytes": len(document.text.encode()), **units}
        for unit, number in numbers.items():
            counter = self._counts.setdefault(unit, collections.Counter())
            for item in values.items():
                counter[item] += number

    def summary(self) -> dict[str, dict[str, dict[str, int]]]:
        """{"year": {"2015": {"documents": 3, "bytes": 4000}}, ...}"""
        found: dict[str, dict[str, dict[str, int]]] = {f: {} for f in ("split", *_TALLIED)}
        for field, value in sorted({key for c in self._counts.values() for key in c}):
            units = {unit: counter[field, value] for unit, counter in self._counts.items()}
            found[field][value] = units
        return found


class ShardWriter:
    """Writes one file of documents, in a `with` block; it appears when the block ends well."""

    def __init__(self, file: epath.Path, heldout_per_mille: int) -> None:
        self._heldout_per_mille = heldout_per_mille
        self._hash = hashlib.sha256()
        self._tally = Tally()
        self._file = file
        self._stack = contextlib.ExitStack()
        self.documents = 0

    def __enter__(self) -> "ShardWriter":
        self._lines = self._stack.enter_context(compressed(self._file))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, document: Document) -> None:
        line = to_line(document)
        self._lines.write(line)
        self._hash.update(line)
        self._tally.add(document, SPLITS[is_heldout(document.id, self._heldout_per_mille)])
        self.documents += 1

    def summary(self) -> dict[str, Any]:
        """For `finish`: the lines' number and hash, and their tally."""
        return {
            "name": self._file.name,
            "documents": self.documents,
            "sha256": self._hash.hexdigest(),
            "tally": self._tally.summary(),
        }


def finish(
    folder: epath.Path, shards: list[dict[str, Any]], heldout_per_mille: int, **entries: Any
) -> dict[str, Any]:
    """Writes manifest.json, with `entries` at its head, and returns what it holds.

    shards: `ShardWriter.summary` of each, in order.
    """
    names = [{k: v for k, v in s.items() if k != "tally"} for s in shards]
    tally = Tally(shard["tally"] for shard in shards).summary()
    nothing = {"documents": 0, "bytes": 0}
    manifest = {
        **entries,
        "heldout_per_mille": heldout_per_mille,
        "splits": {split: tally["split"].get(split, nothing) for split in SPLITS},
        "tally": tally,
        "sha256": hashlib.sha256("".join(s["sha256"] for s in names).encode()).hexdigest(),
        "shards": names,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def read_manifest(folder: Folder) -> dict[str, Any]:
    """manifest.json of a folder of documents.

    Raises:
      UserError: `folder` is none, or a shard of it is missing.
    """
    file = folder / MANIFEST
    if not file.exists():
        raise UserError(
            f"--documents={folder} is no folder of documents: it has no {MANIFEST}; write one "
            "with `python -m data.parse`"
        )
    try:
        manifest = json.loads(file.read_text())
        for split in SPLITS:
            for key in ("documents", "bytes"):
                manifest["splits"][split][key]
        for key in ("heldout_per_mille", "sha256", "tally"):
            manifest[key]
        shards = [(shard["name"], shard["sha256"]) for shard in manifest["shards"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} was not written by `python -m data.parse`: {error!r}") from error
    for name, _ in shards:
        if not (folder / SHARDS / name).exists():
            raise UserError(
                f"--documents={folder} is not whole: {SHARDS}/{name} is missing; copy or write "
                "the folder again"
            )
    return manifest


def read(folder: Folder, split: str | None = None) -> Iterator[Document]:
    """The documents of a folder, in order; with `split`, only those of it.

    Raises:
      UserError: as `read_manifest` and `read_shard`.
    """
    manifest = read_manifest(folder)
    for shard in manifest["shards"]:
        for document in read_shard(folder / SHARDS / shard["name"], shard["sha256"]):
            if split is None or split == split_of(document, manifest["heldout_per_mille"]):
                yield document


def split_of(document: Document, heldout_per_mille: int) -> str:
    return SPLITS[is_heldout(document.id, heldout_per_mille)]


def read_shard(file: Folder, sha256: str | None = None) -> Iterator[Document]:
    """The documents of one file.

    sha256: of its lines, from the manifest; what `parse.py` has not finished has none.

    Raises:
      UserError: it is damaged, or a line is no document, and that is named by number; or behind
        the last document, its lines are not those of `sha256`.
    """
    number = 1
    digest = hashlib.sha256()
    try:
        for line in lines(file):
            digest.update(line)
            yield _document(line)
            number += 1
    except (zstandard.ZstdError, EOFError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{file}, line {number}, is no document: {error!r}; copy or write the folder again"
        ) from error
    if sha256 and digest.hexdigest() != sha256:
        raise UserError(
            f"{file} is not the file that {MANIFEST} beside it lists: its {number - 1} lines have "
            "another hash; copy or write the folder again"
        )


def to_line(document: Document) -> bytes:
    return line_of(dataclasses.asdict(document))


def line_of(values: dict[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"


def set_aside(file: str, what: Unreadable) -> bytes:
    """A line of quarantine.jsonl."""
    return line_of({"file": file, **dataclasses.asdict(what)})


def _document(line: bytes) -> Document:
    text = line.decode()
    values = json.loads(text)
    if "\\u" in text:  # half of a surrogate pair can be written so, and nothing can encode it
        line_of(values)
    values["types"] = tuple(values["types"])
    values["other_abstracts"] = tuple(values["other_abstracts"])
    document = Document(**values)
    prefix = SOURCES[document.source][1] + ":"
    if not (document.id.startswith(prefix) and document.id.removeprefix(prefix).isdecimal()):
        raise ValueError(f"id {document.id!r} of source {document.source!r}")
    return document
