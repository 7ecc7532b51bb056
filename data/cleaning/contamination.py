"""Which documents give away what the model is tested on, for `clean.py`.

Two ways, after those of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C):

    by number   a document whose PMID is that of an abstract which PubMedQA or BioASQ ask about
    by words    13 words in a row, as `words.split` sees them, that stand in a test item as well

GPT-3 takes an n of 8 to 13 from each benchmark's length; here every item has its own: 13, or all
words of an item of 8 to 12. A question of under 13 words is looked for joined to its options, and
alone as well if it has 8. What is still under 8 words can not be told from common speech and is not
looked for; the report counts it.

As there, a run of words that more than COMMON texts of the corpus have is common speech, and alone
it shows nothing; copies of a text are one text. But a document that has much of an item shows it
however many others do: at least SEVERAL of the item's runs, which are either half of all that the
item has or LONG of them, as 25 words in a row make. Common speech is shorter: "this study had
institutional review board approval and informed consent was obtained from all patients", which
stands in an abstract that PubMedQA asks about, is three of its runs among a hundred. What more than
COMMON items have ("which of the following is the most likely cause of this patient's") is not
counted among these. What is left in the corpus for being common is reported by item.

GPT-3 cut the place out and kept the rest of a long document; here the document goes whole, as in
GPT-3's first attempt: an abstract is hardly longer than the place.

Runs are found by their hashes, among a million, and then compared word for word.
"""

import collections
import functools
import hashlib
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from etils import epath

from biomedlm_jax.pipeline.lines import appearing
from data.cleaning import benchmarks, words
from data.cleaning.benchmarks import Item
from data.cleaning.words import HashSet, Words
from data.tables import TableWriter

LONG, SHORT = 13, 8  # words
COMMON = 10  # texts of the corpus, or items
SEVERAL = 3  # runs
LEFT_IN = "common, left in"

ITEMS, RUNS, PHRASES = "items.json", "runs.npz", "phrases.txt"
OF_RUNS, OF_PMIDS = "of_runs.parquet", "of_pmids.parquet"  # which items have a run, a PMID


def prepare(source: epath.Path, folder: epath.Path) -> None:
    """Reads the benchmarks below `source` and writes to `folder` what is to be looked for.

    A phrase is a line of words; a run is a phrase of under LONG words, or LONG words of one.

    Raises:
      UserError: see `benchmarks.read`.
    """
    found = benchmarks.read(source)
    items: list[dict[str, Any]] = []
    phrases: dict[str, int] = {}
    of_phrases: list[list[int]] = []  # by phrase: items
    of_pmids: list[tuple[int, int]] = []
    for (benchmark, id), forms in found.items.items():
        split = benchmarks.split_of(forms)
        if split == "train":
            continue
        number = len(items)
        own = {phrase for item in forms for phrase in _phrases(item)}
        pmids = {pmid for item in forms for pmid in item.pmids}
        of_pmids += [(pmid, number) for pmid in pmids]
        for phrase in sorted(own):
            if phrases.setdefault(phrase, len(phrases)) == len(of_phrases):
                of_phrases.append([])
            of_phrases[phrases[phrase]].append(number)
        items.append(
            {"benchmark": benchmark, "split": split, "id": id, "sought": bool(own or pmids)}
        )
    of_runs = _write_runs(folder, list(phrases), of_phrases)
    for name, first, pairs in ((OF_RUNS, "run", of_runs), (OF_PMIDS, "pmid", of_pmids)):
        schema = pa.schema([(first, pa.int64()), ("item", pa.int32())])
        with TableWriter(folder / name, schema) as table:
            table.write(*np.unique(np.array(pairs, np.int64).reshape(-1, 2), axis=0).T)
    with appearing(folder / ITEMS) as stream:  # last: it says that all is there
        stream.write(json.dumps({"files": found.files, "items": items}).encode())


def fingerprint(source: epath.Path) -> dict[str, str]:
    """{file: hash} of all that `prepare` would read.

    Raises:
      UserError: `source` is no folder.
    """
    return {
        str(file.relative_to(source)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in benchmarks.files(source)
    }


def _write_runs(
    folder: epath.Path, phrases: list[str], items: list[list[int]]
) -> list[tuple[int, int]]:
    """Writes the phrases and the runs in them; returns (number of run, item) of all."""
    hashed = words.hashed(phrases)
    hashes, begins = hashed.runs(LONG)
    long, first, numbers = np.unique(hashes, return_index=True, return_inverse=True)
    phrase = np.searchsorted(begins, first, side="right") - 1
    heads, heads_begin = hashed.runs(SHORT)
    short = np.flatnonzero(np.diff(hashed.begins) < LONG)
    with appearing(folder / RUNS) as stream:
        np.savez(
            stream,
            long=long,
            long_place=np.stack([phrase, first - begins[phrase]], 1),
            short=short,
            short_head=heads[heads_begin[short]],
        )
    with appearing(folder / PHRASES) as stream:
        stream.write("\n".join(phrases).encode())
    own = [set(numbers[a:b].tolist()) for a, b in itertools.pairwise(begins)]
    for number, at in enumerate(short.tolist()):
        own[at].add(len(long) + number)
    return [(run, item) for at, runs in enumerate(own) for run in runs for item in items[at]]


def _phrases(item: Item) -> list[str]:
    """The words of each text of an item that can be looked for."""
    found = []
    options = [word for option in item.options for word in words.split(option)]
    for text in item.texts:
        phrase = words.split(text)
        found.append(phrase)
        if len(phrase) < LONG and options:
            found.append(phrase + options)
    return [" ".join(phrase) for phrase in found if len(phrase) >= SHORT]


class Matcher:
    """What `prepare` wrote, to be looked for in texts."""

    def __init__(self, folder: epath.Path) -> None:
        self._phrases = (folder / PHRASES).read_text().split("\n")
        with (folder / RUNS).open("rb") as stream, np.load(stream) as found:
            self._long, self._long_place = HashSet(found["long"]), found["long_place"]
            heads, self._head_of = np.unique(found["short_head"], return_inverse=True)
            self._heads, self._short = HashSet(heads), found["short"]
        self._of_head: dict[int, list[int]] = collections.defaultdict(list)
        for short, head in enumerate(self._head_of.tolist()):
            self._of_head[head].append(short)

    def find(
        self, texts: Sequence[str], hashed: Words, long_runs: tuple[np.ndarray, np.ndarray]
    ) -> list[tuple[int, int]]:
        """(number of text, number of run) of all runs in `texts`, once each, rising.

        long_runs: `hashed.runs(LONG)`.
        """

        @functools.cache
        def split(text: int) -> list[str]:
            return words.split(texts[text])

        found: set[tuple[int, int]] = set()
        for text, place, run in _places(self._long, *long_runs):
            phrase, begin = self._long_place[run].tolist()
            if split(text)[place : place + LONG] == self._words(phrase)[begin : begin + LONG]:
                found.add((text, run))
        for text, place, head in _places(self._heads, *hashed.runs(SHORT)):
            for short in self._of_head[head]:
                phrase = self._words(self._short[short])
                if split(text)[place : place + len(phrase)] == phrase:
                    found.add((text, len(self._long.hashes) + short))
        return sorted(found)

    def _words(self, phrase: int) -> list[str]:
        return self._phrases[phrase].split()


def _places(sought: HashSet, runs: np.ndarray, begins: np.ndarray) -> Any:
    """(text, place of the run in it, number of the hash) of every hit."""
    at, number = sought.find(runs)
    text = np.searchsorted(begins, at, side="right") - 1
    return zip(text.tolist(), (at - begins[text]).tolist(), number.tolist(), strict=True)


def report(
    folder: epath.Path, hits: list[tuple[int, str, str]], left: list[tuple[int, int]]
) -> dict[str, Any]:
    """For every benchmark and split: how many items there are, were not looked for and stand in
    the corpus, and these with their documents; and of how many there are words that stay in it for
    being common, and in how many documents.

    hits: number of an item, "pmid" or "words", id of a document.
    left: number of an item, number of documents.
    """
    items = json.loads((folder / ITEMS).read_text())["items"]
    names = [f"{item['benchmark']} {item['split']}" for item in items]
    found: dict[str, dict[str, Any]] = {}
    for item, name in zip(items, names, strict=True):
        nothing = {"items": 0, "too short to look for": 0, "found": 0, LEFT_IN: 0}
        entry = found.setdefault(name, {**nothing, "by pmid": {}, "by words": {}, "left in": {}})
        entry["items"] += 1
        entry["too short to look for"] += not item["sought"]
    for number, how, document in sorted(hits):
        found[names[number]][f"by {how}"].setdefault(items[number]["id"], []).append(document)
    for number, count in sorted(left):
        found[names[number]]["left in"][items[number]["id"]] = count
    for entry in found.values():
        entry["found"] = len({*entry["by pmid"], *entry["by words"]})
        entry[LEFT_IN] = len(entry["left in"])
    return dict(sorted(found.items()))
