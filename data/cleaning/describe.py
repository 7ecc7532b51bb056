"""What `clean.py` must know of each document to compare it with all others: one pass over the text
of a shard, in batches, from which tables are left (`tables.py`) and no text.

    facts.parquet       a row for each document
    signatures.parquet  of MinHash; bands/00 and on: what candidates agree in (`duplicates.py`)
    anchors/00 and on   some runs of words of each document, divided by their hash; not of one that
                        is dropped for itself alone
    hits.parquet        runs of words that benchmarks have as well (`contamination.py`)

A document is number (shard << 32) + row.

Anchors show that an abstract stands in a full text, wherever it does: of every WINDOW runs of LONG
words in a row the one with the smallest hash (winnowing, Schleimer, Wilkerson and Aiken 2003). Two
texts that share a passage choose the same one from each window of it, so all anchors of an abstract
that stands in a full text word for word are the full text's as well, and the share of them that it
has tells how much of the abstract stands there. An abstract of w words has about 1 + (w - 28) / 8.5
of them; one of LONG + n WINDOW - 1 words has n or more, so that of 60 words has 3.
"""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from etils import epath

from biomedlm_jax.pipeline import words
from biomedlm_jax.pipeline.passages import LONG
from biomedlm_jax.pipeline.words import HashSet, Words
from data.cleaning import duplicates
from data.cleaning.contamination import Matcher
from data.documents import Document
from data.tables import TableWriter, fixed

WINDOW = 16  # runs; a power of 2. Of all runs 2 / 17 are anchors
PARTS = 8  # of the anchors' tables, by the last bits; each is queried by itself
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
ANCHORS = pa.schema(
    [
        ("hash", pa.uint64()),
        ("doc", pa.int64()),
        ("full", pa.bool_()),
        ("text", pa.uint64()),  # of its digest: copies are counted as one
    ]
)
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
        digests = [
            hashlib.blake2b(hashed.hashes[a:b].tobytes(), digest_size=16).digest()
            for a, b in zip(hashed.begins[:-1], hashed.begins[1:], strict=True)
        ]
        full = np.array([document.source in FULL for document in batch])
        same = np.frombuffer(b"".join(digests), np.uint64)[::2]
        anchored, hashes = anchors(*long)
        anchored, hashes = anchored[fit[anchored]], hashes[fit[anchored]]
        part = hashes % np.uint64(PARTS)
        for number, writer in enumerate(self._anchors):
            at = anchored[part == number]
            writer.write(hashes[part == number], numbers[at], full[at], same[at])
        self._add_signatures(numbers, fit, *hashed.runs(duplicates.SHINGLE))
        if matcher:
            hits = [(text, run) for text, run in matcher.find(texts, hashed, long) if fit[text]]
            self._hits.write(numbers[[text for text, _ in hits]], [run for _, run in hits])
        self._facts.write(
            numbers,
            [document.source for document in batch],
            [document.number for document in batch],
            [document.version for document in batch],
            [document.date for document in batch],
            [document.pmid for document in batch],
            verdicts,
            digests,
            np.bincount(anchored, minlength=len(batch)),
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


def anchors(runs: np.ndarray, begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of texts, hashes) of their anchors, each of a text once, rising; from the texts'
    runs of LONG words, see `Words.runs`."""
    count = len(runs) - WINDOW + 1
    if count < 1:
        return np.zeros(0, np.int64), np.zeros(0, np.uint64)
    least, width = runs, 1
    while width < WINDOW:
        least = np.minimum(least[:-width], least[width:])
        width *= 2
    text = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
    chosen = text[:count] == text[WINDOW - 1 :]  # the window lies within a text
    chosen[1:] &= ~chosen[:-1] | (least[1:] != least[:-1])  # and is not the one before again
    text, least = text[:count][chosen], least[chosen]
    order = np.lexsort((least, text))
    text, least = text[order], least[order]
    once = np.ones(len(text), bool)
    once[1:] = (text[1:] != text[:-1]) | (least[1:] != least[:-1])
    return text[once], least[once]


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
