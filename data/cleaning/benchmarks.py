"""What the model is tested on, read as its owners publish it, so that `clean.py` can keep it out.

Files are recognised by their form, plain or .gz, at any depth of a folder:

    PubMedQA  ori_pqal.json, test_ground_truth.json, a list of splits, and the rows of
              train/dev/test.json with sentence1 and sentence2 (BioASQ's too)
    BioASQ    task B's JSON with "questions"
    MedQA     JSONL with "options" and "answer_idx", and the rows with sent1 and ending0
    MedMCQA   JSONL with "opa" to "opd"
    MMLU      <subject>_<split>.csv of the six medical subjects, no header
    MeQSum    <split>.source
    BLURB     <split>.tsv of BioASQ: id, question, context, label
    MIRAGE    benchmark.json, of all but MeQSum

A file that is none of these and not named in _LEFT stops the run: a benchmark that was not
understood must not pass for one that was kept out.

Items for testing and development count, items for training do not: those may be learnt. All 1000 of
PubMedQA's labelled items count, for each is in its test set or in the development part of one of
its ten folds. BioASQ's published answers ("golden") are the test batches of their year, and an item
of them that a training file has as well is one of a test. The same item in two files is one item.
Where an id is no more than the place in a file, it is the same if the question has the same words;
another item has its file in the id.
"""

import collections
import csv
import dataclasses
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from biomedlm_jax.benchmarks import bioasq, mirage
from biomedlm_jax.benchmarks.files import split_in_name
from biomedlm_jax.benchmarks.item import SPLITS
from biomedlm_jax.benchmarks.mmlu import SUBJECTS
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline import words

_PLACE = re.compile(r"(?:train|dev|val|test)-\d+")  # an id that tells the place in a file only
_SUBJECT = re.compile(r"([a-z_]+)_(dev|val|test)\.csv")
_BROKEN = (OSError, EOFError, zlib.error, UnicodeError, ValueError, KeyError, TypeError,
           AttributeError, IndexError, csv.Error)  # fmt: skip
_LEFT = {  # by name: why nothing is read from it
    r"(?i)(licen[cs]e|readme|disclaimer)(\..*)?|.*\.md": "words about the data",
    r".*\.target": "answers to the questions of .source",
    r"(?i)medquad.*\.tar\.gz": "for training; no part of it is a test",
    r"(?i)meqsum.*\.xlsx": "MeQSum in one table; its split is in .source files",
    r".*pqa[au].*\.json": "PubMedQA for training: unlabelled or made by rule",
    r"\d+(_\d+)*\.xml": "a topic of MedQuAD, for training",
}


@dataclasses.dataclass(frozen=True)
class Item:
    """One question. texts: what must not be found in the corpus, each by itself. options: of a
    multiple choice, looked for with a short question. pmids: of the abstracts that answer it."""

    benchmark: str
    split: str  # of SPLITS
    id: str
    texts: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    pmids: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Benchmarks:
    """files: {"name", "benchmark", "split", "items"}, or {"name", "not read": reason}."""

    files: list[dict[str, Any]]
    items: dict[tuple[str, str], list[Item]]  # by benchmark and id; forms of it from all files


def read(folder: epath.Path) -> Benchmarks:
    """All files below `folder`.

    Raises:
      UserError: it is no folder, or a file is damaged or of no known form.
    """
    listed: list[dict[str, Any]] = []
    items: dict[tuple[str, str], list[Item]] = collections.defaultdict(list)
    asked: _Asked = {}
    for file in files(folder):
        name = str(file.relative_to(folder))
        if reason := _left_out(file.name):
            listed.append({"name": name, "not read": reason})
            continue
        found = _read(file, name)
        splits = collections.Counter(item.split for item in found)
        for split, count in sorted(splits.items()):
            benchmark = found[0].benchmark
            listed.append({"name": name, "benchmark": benchmark, "split": split, "items": count})
        for item in found:
            items[item.benchmark, _id(item, name, asked)].append(item)
    if not items:
        raise UserError(f"--benchmarks={folder} holds no test set; see data/cleaning/benchmarks.py")
    return Benchmarks(listed, dict(sorted(items.items())))


_Asked = dict[tuple[str, str], list[tuple[list[str], str]]]


def _id(item: Item, file: str, asked: _Asked) -> str:
    """The id of the same item in the files before, or a new one.

    asked: by benchmark and place, the words of each question there and its id; gets new ones.
    """
    if not _PLACE.fullmatch(item.id):
        return item.id
    question = words.split(item.texts[0])
    others = asked.setdefault((item.benchmark, item.id), [])
    for known, id in others:
        if known == question:
            return id
    others.append((question, f"{file} {item.id}" if others else item.id))
    return others[-1][1]


def _below(folder: epath.Path) -> Iterator[epath.Path]:
    for inside in folder.iterdir():
        if inside.is_dir():
            yield from _below(inside)
        else:
            yield inside


def files(folder: epath.Path) -> list[epath.Path]:
    """All files below `folder`, in order.

    Raises:
      UserError: it is no folder.
    """
    if not folder.is_dir():
        raise UserError(f"--benchmarks={folder} is no folder; name the one with the test sets")
    return sorted(_below(folder))


def split_of(forms: list[Item]) -> str:
    """The last of SPLITS that a file has an item in."""
    return max((item.split for item in forms), key=SPLITS.index)


def _left_out(name: str) -> str | None:
    return next((why for pattern, why in _LEFT.items() if re.fullmatch(pattern, name)), None)


def _read(file: epath.Path, name: str) -> list[Item]:
    base = file.name.removesuffix(".gz")
    try:
        data = file.read_bytes()
        text = (gzip.decompress(data) if file.name.endswith(".gz") else data).decode()
        if base.endswith(".csv"):
            found = list(_mmlu(base, text))
        elif base.endswith(".source"):
            found = list(_meqsum(base, text))
        elif base.endswith(".tsv"):
            found = list(_blurb(base, text))
        elif base.endswith((".json", ".jsonl")):
            found = list(_json(base, text))
        else:
            raise ValueError("a name that does not end in .json, .jsonl, .csv, .tsv or .source")
        if not found:
            raise ValueError("no item in it")
    except _BROKEN as error:
        raise UserError(
            f"--benchmarks: {name} is damaged or of no form that is known ({error!r}); copy it "
            "again, or move it elsewhere if it is no test set; data/cleaning/benchmarks.py lists "
            "the forms"
        ) from error
    return found


def _json(name: str, text: str) -> Iterator[Item]:
    try:
        values = json.loads(text)
    except ValueError:
        values = None  # lines of JSON, or broken: which, the lines show
    if isinstance(values, dict) and isinstance(values.get("questions"), list):
        return _bioasq(name, values["questions"])
    if isinstance(values, dict) and values and all(key.isdecimal() for key in values):
        return _labelled(values)
    if isinstance(values, dict) and isinstance(values.get("test"), list):
        return _folds(values)
    if isinstance(values, dict) and values and values.keys() <= mirage.SPLITS.keys():
        return _mirage(values)
    if not isinstance(rows := values, list):
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    keys = set(rows[0])
    for needed, reader in _ROWS.items():
        if keys.issuperset(needed):
            return reader(name, rows)
    raise ValueError(f"rows with {', '.join(sorted(keys))[:200]}")


def _labelled(values: dict[str, Any]) -> Iterator[Item]:
    """PubMedQA's items by PMID, or only their answers, which it publishes for the test set."""
    for pmid, value in values.items():
        if value in ("yes", "no", "maybe"):
            yield Item("pubmedqa", "test", pmid, pmids=(int(pmid),))
        else:
            texts = (value["QUESTION"], *value["CONTEXTS"], value["LONG_ANSWER"])
            yield Item("pubmedqa", "dev", pmid, texts, pmids=(int(pmid),))


def _folds(values: dict[str, Any]) -> Iterator[Item]:
    for pmid in values.pop("test"):
        yield Item("pubmedqa", "test", pmid, pmids=(int(pmid),))
    for pmid in sorted({pmid for fold in values.values() for pmid in fold["dev"]}):
        yield Item("pubmedqa", "dev", pmid, pmids=(int(pmid),))


def _sentence_pairs(name: str, rows: list[dict[str, Any]]) -> Iterator[Item]:
    """PubMedQA's, whose ids are PMIDs, or BioASQ's of BLURB."""
    split = _split(name)
    for row in rows:
        texts = (row["sentence1"], row["sentence2"])
        if row["id"].isdecimal():
            yield Item("pubmedqa", split, row["id"], texts, pmids=(int(row["id"]),))
        else:
            yield Item("bioasq", split, row["id"], texts)


def _bioasq(name: str, rows: list[dict[str, Any]]) -> Iterator[Item]:
    split = "test" if "golden" in name else _split(name)
    for row in rows:
        texts = (row["body"], *(snippet["text"] for snippet in row.get("snippets", ())))
        documents = row.get("documents", ())  # none while the test is on
        pmids = tuple(sorted({id for url in documents if (id := bioasq.pmid(url))}))
        yield Item("bioasq", split, row["id"], texts, pmids=pmids)


def _blurb(name: str, text: str) -> Iterator[Item]:
    split = _split(name)
    for row in csv.reader(io.StringIO(text, newline=""), delimiter="\t"):
        id, question, context, label = row
        if label not in bioasq.CLASSES:
            raise ValueError(f"a fourth column with {label!r}, not {' or '.join(bioasq.CLASSES)}")
        yield Item("bioasq", split, id, (question, context))


def _mirage(values: dict[str, Any]) -> Iterator[Item]:
    for benchmark, rows in values.items():
        split = mirage.SPLITS[benchmark]
        for id, row in rows.items():
            options = tuple(row["options"].values())
            of, named = benchmark, id
            if benchmark == "medqa":
                named = f"{split}-{int(id):05}"
            elif benchmark == "mmlu":
                subject, _, number = id.rpartition("-")
                of, named = f"mmlu {subject}", f"{split}-{int(number)}"
            elif benchmark != "medmcqa":
                options = ()  # yes and no
            pmids = tuple(sorted({int(pmid) for pmid in row.get("PMID", ())}))
            yield Item(of, split, named, (row["question"],), options, pmids)


def _medqa(name: str, rows: list[dict[str, Any]]) -> Iterator[Item]:
    split = _split(name)
    for number, row in enumerate(rows):
        options = tuple(row["options"].values())
        yield Item("medqa", split, f"{split}-{number:05}", (row["question"],), options)


def _medqa_endings(name: str, rows: list[dict[str, Any]]) -> Iterator[Item]:
    split = _split(name)
    for row in rows:
        options = tuple(row[f"ending{number}"] for number in range(4))
        text = f"{row['sent1']} {row['sent2']}".strip()
        yield Item("medqa", split, row["id"], (text,), options)


def _medqa_tasks(name: str, rows: list[dict[str, Any]]) -> Iterator[Item]:
    """Questions in the form of instructions, of which a part of the training set is published."""
    split = _split(name)
    for number, row in enumerate(rows):
        if row["name"] != "med_qa":
            raise ValueError(f"rows of {row['name']!r}")
        yield Item("medqa", split, f"{split}-{number:05}", (row["instances"]["input"],))


def _medmcqa(name: str, rows: list[dict[str, Any]]) -> Iterator[Item]:
    split = _split(name)
    for row in rows:
        options = (row["opa"], row["opb"], row["opc"], row["opd"])
        yield Item("medmcqa", split, row["id"], (row["question"],), options)


def _mmlu(name: str, text: str) -> Iterator[Item]:
    named = _SUBJECT.fullmatch(name)
    if not named or named[1] not in SUBJECTS:
        raise ValueError(f"a table that is not <subject>_<split>.csv of {', '.join(SUBJECTS)}")
    subject, split = named[1], _split(name)
    for number, row in enumerate(csv.reader(io.StringIO(text, newline=""), strict=True)):
        question, *options, answer = row
        if len(options) != 4 or answer not in "ABCD":
            raise ValueError(f"row {number + 1} is not a question, four options and A to D")
        yield Item(f"mmlu {subject}", split, f"{named[2]}-{number}", (question,), tuple(options))


def _meqsum(name: str, text: str) -> Iterator[Item]:
    split = _split(name)
    for number, line in enumerate(text.removesuffix("\n").split("\n")):
        yield Item("meqsum", split, f"{split}-{number}", (line,))


def _split(name: str) -> str:
    """Of a file, from its name."""
    if not (found := split_in_name(name)):
        raise ValueError("a name without train, dev, val or test: which split is it?")
    return found


_ROWS: dict[tuple[str, ...], Callable[[str, list[dict[str, Any]]], Iterator[Item]]] = {
    ("sentence1", "sentence2", "id"): _sentence_pairs,
    ("sent1", "ending0", "id"): _medqa_endings,
    ("question", "options", "answer_idx"): _medqa,
    ("instances", "name"): _medqa_tasks,
    ("question", "opa", "opd", "id"): _medmcqa,
}
