"""What `card.py` says of a corpus: the manifest of a token store, held against itself.

The counts of a corpus are taken at several places: by file, by stage, by source, by split, by year,
before and after cleaning. `read` compares all that must agree, so that a card never shows two
numbers of which one is wrong.
"""

import collections
import dataclasses
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.store import SOURCES, SPLITS, TokenStore
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from data.clean import CONTAMINATION
from data.cleaning.describe import Rules
from data.documents import MANIFEST, QUARANTINE, Folder
from data.parsing.settle import KEPT

FIELDS = ("source", "year", "language", "licence")
ITEMS = {  # what `parse.py` counts as read of each source
    "abstract": "citations",
    "full_text": "articles",
    "pile_abstract": "pieces",
    "pile_full_text": "pieces",
}
NAMES = {
    "abstract": "PubMed abstracts",
    "full_text": "PubMed Central full texts",
    "pile_abstract": "The Pile's PubMed Abstracts",
    "pile_full_text": "The Pile's PubMed Central",
}
NO_DATE = "None"  # as `documents.Tally` writes it
EXAMPLES = 3
_FAULTS = (ValueError, KeyError, TypeError, AttributeError)  # of a manifest of another form
_CLEANING = (*(field.name for field in dataclasses.fields(Rules)), "input sha256", "hashes",
             "bands", "rows", "compared pairs", "similar pairs", "unicode")  # fmt: skip
ITEM = ("items", "too short to look for", "found")  # of a test set
_KIND_LENGTH = 160  # characters of a reason that tell its kind
Claim = tuple[str, int, str, int]


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why something could not be read. kind: with N for every number, so that like is counted
    with like."""

    kind: str
    count: int
    examples: list[tuple[str, str]]  # file and position, the first ones


@dataclasses.dataclass(frozen=True)
class Facts:
    """Checked; see `read`.

    store, documents: the manifests of the token store and of its documents.
    vocabulary: "sentencepiece" or "byte_level".
    reasons, contamination: None where the folder of documents was not given, the latter also where
      no test set was looked for.
    sums: how many pairs of numbers were compared.
    """

    store: dict[str, Any]
    documents: dict[str, Any]
    vocabulary: str
    reasons: list[Reason] | None
    contamination: dict[str, Any] | None
    sums: int

    @property
    def total(self) -> dict[str, int]:
        """{"documents", "bytes", "tokens"} of both splits."""
        splits = self.store["splits"]
        return {
            unit: sum(splits[split][unit] for split in SPLITS)
            for unit in ("documents", "bytes", "tokens")
        }

    @property
    def sources(self) -> list[str]:
        """Those that anything was read of, in the order of SOURCES."""
        return [source for source in SOURCES if source in self.documents["counts"]]

    @property
    def largest_first(self) -> list[str]:
        """The sources of the store, by their tokens."""
        tally = self.store["tally"]["source"]
        return sorted(tally, key=lambda source: (-tally[source]["tokens"], source))


def read(store: Folder, documents: Folder | None) -> Facts:
    """What is known of a store and, where it is at hand, the folder of its documents.

    Raises:
      UserError: `store` is none, is damaged or was not written by `tokenize.py`; `documents` is not
        the folder that it was made from; or two counts that must agree do not, which are named.
    """
    file = epath.Path(store) / MANIFEST
    if not file.exists():
        raise UserError(
            f"--store={store} is no token store: it has no {MANIFEST}; write one with "
            "`python -m data.tokenize`"
        )
    train, _ = (TokenStore(store, split) for split in SPLITS)  # refuses what is not whole
    manifest = train.manifest
    vocabulary = Vocabulary(epath.Path(store) / "vocabulary")
    compared, wrong = 0, ""
    try:
        for what, found, other, expected in _claims(manifest):
            compared += 1
            if found != expected:
                wrong = f"{what} {found:,}, {other} {expected:,}"
                break
    except _FAULTS as error:
        raise UserError(
            f"{file} does not tell where its documents come from: {error!r}; write the store "
            "again with `python -m data.tokenize`"
        ) from error
    if wrong:
        raise UserError(f"{file} contradicts itself: {wrong}; write documents and store again")
    reasons = contamination = None
    if documents is not None:
        reasons, contamination = _beside(epath.Path(documents), manifest["documents"], store)
    return Facts(manifest, manifest["documents"], vocabulary.kind, reasons, contamination, compared)


def _claims(manifest: dict[str, Any]) -> Iterator[Claim]:
    """What must agree: (what is counted, number, the same counted elsewhere, number)."""
    documents, splits = manifest["documents"], manifest["splits"]
    tally = manifest["tally"]
    _complete(manifest)
    _checked({name: manifest[name] for name in ("splits", "tally")})
    _checked({name: documents[name] for name in ("splits", "tally", "counts", "licences")})
    for split in SPLITS:
        for unit in ("documents", "bytes"):
            said = documents["splits"][split][unit]
            yield f"{unit} of {split} are", splits[split][unit], "of the documents'", said
        for unit in ("documents", "bytes", "tokens"):
            counted = tally["split"].get(split, {unit: 0})[unit]
            yield f"{unit} of {split} are", splits[split][unit], "by the tally", counted
    for field in FIELDS:
        for unit in ("documents", "bytes", "tokens"):
            total = sum(splits[split][unit] for split in SPLITS)
            yield f"{unit} by {field} are", _sum(tally[field], unit), "of the splits", total
        for value in sorted({*tally[field], *documents["tally"][field]}):
            for unit in ("documents", "bytes"):
                here, there = (t[field].get(value, {unit: 0})[unit] for t in
                               (tally, documents["tally"]))  # fmt: skip
                yield f"{unit} of {field} {value!r} are", here, "of the documents'", there
    shards = sum(shard["documents"] for shard in documents["shards"])
    total = sum(splits[split]["documents"] for split in SPLITS)
    yield "documents of the shards are", shards, "of the splits", total
    yield from _claims_of_files(documents)
    yield from _claims_of_stages(documents, tally["source"])


def _claims_of_files(documents: dict[str, Any]) -> Iterator[Claim]:
    """What was read, and from which files."""
    read = documents["counts"]["read"]
    files: collections.Counter[str] = collections.Counter()
    for file in documents["files"]:
        _checked(file["counts"])
        files.update(file["counts"])
    for name in sorted({*files, *read}):
        yield f"{name} read are", read.get(name, 0), "of the files", files[name]
    unreadable, articles = read.get("unreadable", 0), read.get("articles", 0)
    yield "quarantined are", documents["quarantined"], "unreadable of the files", unreadable
    yield "licences are", sum(documents["licences"].values()), "articles", articles
    others = read.get("lines of other sets", 0)
    yield "pieces of other sets are", sum(documents["other_sets"].values()), "read", others
    counts = documents["counts"]
    for items in sorted({*ITEMS.values()}):
        ends = sum(_sum_of(counts, source) for source, name in ITEMS.items() if name == items)
        yield f"{items} that came to an end are", ends, "read", read.get(items, 0)


def _claims_of_stages(documents: dict[str, Any], tally: dict[str, Any]) -> Iterator[Claim]:
    """What became of it. tally: by source, of the documents in the store."""
    counts = documents["counts"]
    for source in sorted({*SOURCES, *tally}):
        if source not in SOURCES:
            raise ValueError(f"source {source!r} is unknown")
        kept = counts.get(source, {}).get(KEPT, 0)
        if "cleaning" in documents:
            ends = counts.get(f"clean {source}", {})
            yield f"{source} that are settled are", kept, "cleaned", sum(ends.values())
            kept = ends.get(KEPT, 0)
        stored = tally.get(source, {"documents": 0})["documents"]
        yield f"{source} kept are", kept, "in the store", stored
    if "cleaning" not in documents:
        return
    by_source = [counts.get(f"clean {source}", {}) for source in SOURCES]
    for end in sorted({*counts["clean"], *itertools.chain(*by_source)}):
        ends = sum(found.get(end, 0) for found in by_source)
        yield f"cleaned with end {end!r} are", counts["clean"].get(end, 0), "by source", ends
    nbytes = sum(documents["splits"][split]["bytes"] for split in SPLITS)
    yield "bytes kept are", counts["clean bytes"].get(KEPT, 0), "of the splits", nbytes


def _complete(manifest: dict[str, Any]) -> None:
    """Raises KeyError, TypeError or ValueError where something is missing that a card says."""
    documents = manifest["documents"]
    _ = [manifest["versions"][name] for name in manifest["versions"]]
    _ = [[file[key] for key in ("name", "kind", "bytes", "sha256")] for file in documents["files"]]
    _ = [int(year) for year in manifest["tally"]["year"] if year != NO_DATE]
    if "cleaning" in documents:
        _ = [documents["cleaning"][name] for name in _CLEANING]
    if found := documents.get("benchmarks"):
        _ = [[item[name] for name in ITEM] for item in found["items"].values()]
        _ = [file["name"] for file in found["files"]]


def _checked(numbers: Any, name: str = "") -> None:
    """Raises ValueError where something other than a count stands among counts; hashes may."""
    if isinstance(numbers, dict):
        for key, value in numbers.items():
            if key != "sha256":
                _checked(value, f"{name} {key}".strip())
    elif type(numbers) is not int or numbers < 0:
        raise ValueError(f"{name} is {numbers!r} and no count")


def _sum(values: dict[str, dict[str, int]], unit: str) -> int:
    return sum(units[unit] for units in values.values())


def _sum_of(counts: dict[str, dict[str, int]], name: str) -> int:
    return sum(counts.get(name, {}).values())


def _beside(
    folder: epath.Path, manifest: dict[str, Any], store: Folder
) -> tuple[list[Reason], dict[str, Any] | None]:
    """What the folder of documents has beside its manifest, which must be the store's."""
    file = folder / MANIFEST
    try:
        same = json.loads(file.read_text()) == manifest if file.exists() else False
    except ValueError:
        same = False
    if not same:
        raise UserError(
            f"--documents={folder} is not the folder of documents that --store={store} was made "
            f"from: its {MANIFEST} is another or none; name that folder, or leave --documents out"
        )
    reasons = _reasons(folder / QUARANTINE, manifest["quarantined"])
    if not manifest.get("benchmarks"):
        return reasons, None
    file = folder / CONTAMINATION
    try:
        report = json.loads(file.read_text())
        for name, said in manifest["benchmarks"]["items"].items():
            found = {what: report[name][what] for what in said}
            given = len({*report[name]["by pmid"], *report[name]["by words"]})
            if found != said or given != said["found"]:
                raise UserError(f"{file} and {folder / MANIFEST} differ on {name}; clean again")
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing; copy or write the folder again") from error
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(f"{file} is damaged: {error!r}; clean again") from error
    return reasons, report


def _reasons(file: epath.Path, expected: int) -> list[Reason]:
    """The lines of quarantine.jsonl by kind, the most frequent first. Memory holds the kinds.

    Raises:
      UserError: it is damaged, or has not as many lines as the manifest says.
    """
    counts: collections.Counter[str] = collections.Counter()
    examples: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    number = 0
    try:
        with file.open("rb") as lines:
            for line in lines:
                number += 1
                entry = json.loads(line)
                kind = re.sub(r"\d+", "N", entry["reason"])[:_KIND_LENGTH]
                counts[kind] += 1
                if len(examples[kind]) < EXAMPLES:
                    examples[kind].append((str(entry["file"]), str(entry["position"])))
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing; copy or write the folder again") from error
    except _FAULTS as error:
        raise UserError(
            f"{file}, line {number}, is damaged: {error!r}; copy or write the folder again"
        ) from error
    if number != expected:
        raise UserError(
            f"{file} has {number:,} lines, {MANIFEST} says that {expected:,} items are "
            "quarantined; copy or write the folder again"
        )
    order = sorted(counts, key=lambda kind: (-counts[kind], kind))
    return [Reason(kind, counts[kind], examples[kind]) for kind in order]
