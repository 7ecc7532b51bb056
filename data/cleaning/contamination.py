"""Which documents give away what the model is tested on, for `clean.py`.

Two ways, after those of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C):

    by number   a document whose PMID is that of an abstract which PubMedQA or BioASQ ask about
    by words    13 words in a row, as `words.split` sees them, that stand in a test item as well

Which words are looked for, and what is common speech, is said in `pipeline/passages.py`. What is
under 8 words and what is left in the corpus for being common is reported by item.

GPT-3 cut the place out and kept the rest of a long document; here the document goes whole, as in
GPT-3's first attempt: an abstract is hardly longer than the place.
"""

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
from etils import epath

from biomedlm_jax.pipeline import passages
from biomedlm_jax.pipeline.lines import appearing
from biomedlm_jax.pipeline.passages import Runs
from data.cleaning import benchmarks
from data.tables import TableWriter

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
        own = {p for form in forms for p in passages.phrases(form.texts, form.options)}
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
    runs, own = passages.runs(phrases)
    with appearing(folder / RUNS) as stream:
        np.savez(stream, **runs._asdict())
    with appearing(folder / PHRASES) as stream:
        stream.write("\n".join(phrases).encode())
    return [(run, item) for at, runs in enumerate(own) for run in runs for item in items[at]]


class Matcher(passages.Matcher):
    """What `prepare` wrote, to be looked for in texts."""

    def __init__(self, folder: epath.Path) -> None:
        with (folder / RUNS).open("rb") as stream, np.load(stream) as found:
            runs = Runs(**{name: found[name] for name in Runs._fields})
        super().__init__((folder / PHRASES).read_text().split("\n"), runs)


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
