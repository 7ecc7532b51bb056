"""What `clean.py` must know of each document to compare it with all others: one pass over the text
of a shard, in batches, from which tables are left (`tables.py`) and no text.

    facts.parquet       a row for each document
    signatures.parquet  of MinHash; bands/00 and on: what candidates agree in (`duplicates.py`)
    anchors/00 and on   some runs of words of each document, divided by their hash
    hits.parquet        runs of words that benchmarks have as well (`contamination.py`)

A document is number (shard << 32) + row.

Anchors show that an abstract stands in a full text, wherever it does: the runs of LONG words whose
hash is 0 modulo ANCHOR (Broder's sketches for containment, 1997). The same run is one of the
anchors of both, so the share of an abstract's anchors that a full text has estimates how much of
the abstract stands there. An abstract of w words has about (w - 12) / ANCHOR of them.
"""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from etils import epath

from data.cleaning import duplicates, words
from data.cleaning.contamination import LONG, Matcher
from data.cleaning.words import HashSet, Words
from data.documents import Document
from data.tables import TableWriter, fixed

ANCHOR = 16
PARTS = 8  # of the anchors' tables, by the first bits; each is queried by itself
FULL = ("full_text", "pile_full_text")

FACTS = pa.schema(
    [
        ("doc", pa.int64()),
        ("source", pa.string()),
        ("number", pa.int64()),
        ("version", pa.int32()),
        ("date", pa.string()),
        ("pmid", pa.int64()),
        ("verdict", pa.string()),  # why it is dropped for itself alone, or null
        ("digest", pa.binary(16)),  # of its words
        ("anchors", pa.int32()),
    ]
)
SIGNATURES = pa.schema([("doc", pa.int64()), ("kept", pa.binary(duplicates.HASHES))])
BAND = pa.schema([("hash", pa.uint64()), ("doc", pa.int64())])
ANCHORS = pa.schema([("hash", pa.uint64()), ("doc", pa.int64()), ("full", pa.bool_())])
HITS = pa.schema([("doc", pa.int64()), ("run", pa.int64())])

_BATCH = 1 << 19  # letters
_FUNCTION_WORDS = """the of and in to a was with for were that is by as on at from or be are this
    these which not an it we than had been their have has between after during"""


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is dropped; goes into the manifest.

    least_words: a shorter document goes.
    least_english: share of English function words among the words that begin with no digit.
    near: Jaccard similarity from which two documents are near duplicates.
    contained: share of an abstract's anchors that a full text must have, and at least
      least_anchors of them.
    """

    least_words: int = 20
    least_english: float = 0.12
    near: float = 0.8
    contained: float = 0.8
    least_anchors: int = 3

    def verdicts(self, hashed: Words) -> list[str | None]:
        """Why each document is dropped for itself alone, or None.

        English is what has least_english of _FUNCTION_WORDS. PubMed's label plays no part: it is
        the article's, and most journals in other languages have English abstracts. Of 17,610
        English articles and abstracts all but one, a list of authors, have over 0.16 of these
        words; of 61 abstracts in other languages none has over 0.06.
        """
        known = np.zeros(len(hashed.hashes), bool)
        known[_function_words().find(hashed.hashes)[0]] = True
        share = hashed.per_text(known) / np.maximum(hashed.per_text(hashed.lettered), 1)
        verdicts: list[str | None] = []
        for count, english in zip(np.diff(hashed.begins), share, strict=True):
            if count < self.least_words:
                verdicts.append("too short")
            elif english < self.least_english:
                verdicts.append("not English")
            else:
                verdicts.append(None)
        return verdicts


def describe(
    shard: int,
    found: Iterable[Document],
    place: epath.Path,
    rules: Rules,
    matcher: Matcher | None,
) -> int:
    """Writes the tables of a shard below `place`, each as <table>/<shard>.parquet; returns the
    number of documents."""
    row = 0
    with _Tables(shard, place, rules) as tables:
        for batch in _batches(found):
            tables.add(batch, row, matcher)
            row += len(batch)
    return row


def table(place: epath.Path, name: str, shard: int) -> epath.Path:
    return place / name / f"{shard:05}.parquet"


class _Tables:
    def __init__(self, shard: int, place: epath.Path, rules: Rules) -> None:
        self._shard, self._place, self._rules = shard, place, rules
        self._bands, self._rows = duplicates.bands_and_rows(rules.near)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "_Tables":
        self._facts = self._open("facts", FACTS)
        self._signatures = self._open("signatures", SIGNATURES)
        self._band = [self._open(f"bands/{b:02}", BAND) for b in range(self._bands)]
        self._anchors = [self._open(f"anchors/{p:02}", ANCHORS) for p in range(PARTS)]
        self._hits = self._open("hits", HITS)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # pyright: ignore[reportArgumentType]

    def _open(self, name: str, schema: pa.Schema) -> TableWriter:
        return self._stack.enter_context(TableWriter(table(self._place, name, self._shard), schema))

    def add(self, batch: list[Document], row: int, matcher: Matcher | None) -> None:
        """Describes the documents from `row` of the shard on."""
        texts = [document.text for document in batch]
        hashed = words.hashed(texts)
        numbers = (self._shard << 32) + row + np.arange(len(batch))
        verdicts = self._rules.verdicts(hashed)
        fit = np.array([verdict is None for verdict in verdicts])
        long = hashed.runs(LONG)
        anchors = self._add_anchors(batch, numbers, fit, *long)
        self._add_signatures(numbers, fit, *hashed.runs(duplicates.SHINGLE))
        if matcher:
            hits = [(text, run) for text, run in matcher.find(texts, hashed, long) if fit[text]]
            self._hits.write(numbers[[text for text, _ in hits]], [run for _, run in hits])
        digests = [
            hashlib.blake2b(hashed.hashes[a:b].tobytes(), digest_size=16).digest()
            for a, b in zip(hashed.begins[:-1], hashed.begins[1:], strict=True)
        ]
        self._facts.write(
            numbers,
            [document.source for document in batch],
            [document.number for document in batch],
            [document.version for document in batch],
            [document.date for document in batch],
            [document.pmid for document in batch],
            verdicts,
            digests,
            anchors,
        )

    def _add_signatures(
        self, numbers: np.ndarray, fit: np.ndarray, runs: np.ndarray, begins: np.ndarray
    ) -> None:
        chosen = np.flatnonzero(fit & (np.diff(begins) > 0))
        found = duplicates.signatures(runs, begins)[chosen]
        self._signatures.write(numbers[chosen], fixed(duplicates.kept_bytes(found)))
        hashes = duplicates.band_hashes(found, self._bands, self._rows)
        for band, writer in enumerate(self._band):
            writer.write(hashes[:, band], numbers[chosen])

    def _add_anchors(
        self,
        batch: list[Document],
        numbers: np.ndarray,
        fit: np.ndarray,
        runs: np.ndarray,
        begins: np.ndarray,
    ) -> np.ndarray:
        """Writes the anchors, each of a document once; returns how many each has."""
        at = np.flatnonzero(runs % np.uint64(ANCHOR) == 0)
        text = np.searchsorted(begins, at, side="right") - 1
        at, text = at[fit[text]], text[fit[text]]
        order = np.lexsort((runs[at], text))
        text, hashes = text[order], runs[at][order]
        once = np.ones(len(text), bool)
        once[1:] = (text[1:] != text[:-1]) | (hashes[1:] != hashes[:-1])
        text, hashes = text[once], hashes[once]
        part = hashes >> np.uint64(64 - (PARTS - 1).bit_length())
        full = np.array([document.source in FULL for document in batch])
        for number, writer in enumerate(self._anchors):
            own = part == number
            writer.write(hashes[own], numbers[text[own]], full[text[own]])
        return np.bincount(text, minlength=len(batch))


def _batches(found: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in found:
        if batch and size + len(document.text) > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += len(document.text)
    if batch:
        yield batch


@functools.cache
def _function_words() -> HashSet:
    return HashSet(np.unique(words.hashed([_FUNCTION_WORDS]).hashes))
