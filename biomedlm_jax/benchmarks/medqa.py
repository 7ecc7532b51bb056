"""MedQA (Jin et al. 2021, arXiv 2009.13081): questions of the US medical licensing examination.

Forms, the owners' first:

    phrases_no_exclude_{train,dev,test}.jsonl, {train,dev,test}.jsonl   github.com/jind11/MedQA, US:
        question, options {"A": ..}, answer, answer_idx; 4 options in the first, 5 in the second
    {train,dev,test}.json   BioMedLM's authors: id, sent1, sent2, ending0 to ending3, label
    benchmark.json          MIRAGE: the test split

A benchmark of 4 options ("medqa", what the paper reports) and one of 5 ("medqa5"): the same
questions, so a model trained on the one has seen the other's. An item's id is its place in the
owners' file, "test-00000".
"""

import re
from typing import Any

from biomedlm_jax.benchmarks import mirage
from biomedlm_jax.benchmarks.files import File
from biomedlm_jax.benchmarks.forms import Asked, Candidate, Known, NoItem, Part, candidate, text
from biomedlm_jax.benchmarks.item import Item

PUBLISHED = {"train": 10_178, "dev": 1_272, "test": 1_273}
KNOWN = {
    "774bbd90103af43badbe8d5294e336443573fc37b918763920b8fc3b3df581d9": Known(
        "the owners' dev split with 4 options", "dev", 1_272
    ),
    "c3b905ccfa66152dc25afbcb2c10e86c0bdb208824f0658fcdb2c040f60a2beb": Known(
        "the owners' test split with 4 options", "test", 1_273
    ),
    "6bdc019180ebf82908c5690b6266898341fee5fd3b807ed0201c39c93f3424c6": Known(
        "the owners' dev split with 5 options", "dev", 1_272
    ),
    "cfa75cbcc53c29b023752b0a395ff49d8202121041392735ae44771a5ec734a3": Known(
        "the owners' test split with 5 options", "test", 1_273
    ),
    "44212909568dcdafe0e6536d402f6f63dbb371cecf9b57e17b2fc16b7165889f": Known(
        "the dev split of BioMedLM's authors", "dev", 1_272
    ),
    "6104e893a8964aea725fad332aa98d64da43a1b8d210bbae0d357403a39efb10": Known(
        "the test split of BioMedLM's authors", "test", 1_273
    ),
    "471e8c0082f1444b60fec9c03227575a0cde7747fdfa02098c3e30880b23c9fc": Known(
        "the first 1,000 questions of the training split, with 5 options", "train", 1_000
    ),
}
LOOKED_FOR = (
    "phrases_no_exclude_<split>.jsonl for 4 options and <split>.jsonl for 5 (medqa5), of "
    "github.com/jind11/MedQA, in questions/US; or <split>.json of BioMedLM's authors"
)
_OTHER = re.compile(r"(?i)(^|/)(mainland|taiwan)/")  # examinations of other countries


def candidates(asked: Asked, options: int) -> list[Candidate]:
    """The split with so many options, in every form that is there."""
    owners, authors = [], []
    for file in asked.of_split(r".*\.jsonl?"):
        if _OTHER.search(file.name):
            continue
        published = PUBLISHED[asked.split]
        if file.has("question", "options", "answer_idx") and _count(file.first) == options:
            part = Part(file, file.rows, published)
            owners.append(candidate(asked, "the owners' rows", [part], _question(asked, options)))
        elif file.has("id", "sent1", "ending0") and _endings(file.first) == options:
            part = Part(file, file.rows, published)
            authors.append(candidate(asked, "the authors' rows", [part], _ending(asked, options)))
    theirs = mirage.rows(asked, "medqa") if options == 4 else []
    return [*owners, *authors] + [
        candidate(asked, "MIRAGE's", [Part(file, rows, PUBLISHED["test"])], _mirage)
        for file, rows in theirs
    ]


def _count(row: dict[str, Any]) -> int:
    return len(row["options"]) if isinstance(row["options"], dict) else 0


def _endings(row: dict[str, Any]) -> int:
    return sum(column.startswith("ending") for column in row)


def _question(asked: Asked, count: int):
    def item(row: dict[str, Any], number: int, file: File) -> Item:
        given = mirage.options(row)
        if len(given) != count:
            raise NoItem(f"{len(given)} options, not {count}")
        label = mirage.answer(row, "answer_idx", count)
        if "answer" in row and text(row, "answer") != given[label]:
            raise NoItem("an answer that is not the option of its letter")
        subject = text(row, "meta_info") if "meta_info" in row else ""
        id = f"{asked.split}-{number:05}"
        return Item(id, text(row, "question"), given, label, subject=subject)

    return item


def _ending(asked: Asked, count: int):
    def item(row: dict[str, Any], number: int, file: File) -> Item:
        id = text(row, "id")
        if (named := id.partition("-")[0]) in PUBLISHED and named != asked.split:
            raise file.damaged(f"row {number + 1} is {id!r}, of another split than the file's name")
        question = f"{text(row, 'sent1')} {text(row, 'sent2')}".strip()
        given = tuple(text(row, f"ending{place}") for place in range(count))
        places = [str(place) for place in range(count)]
        if (label := str(row.get("label"))) not in places:
            raise NoItem(f"a label out of range: {label[:20]!r}")
        return Item(id, question, given, places.index(label))

    return item


def _mirage(row: mirage.Row, number: int, file: File) -> Item:
    id, values = row
    if not (id.isdecimal() and len(id) < 6):
        raise NoItem(f"the id {id!r}, not a place in the owners' file")
    given = mirage.options(values)
    label = mirage.answer(values, "answer", len(given))
    return Item(f"test-{int(id):05}", text(values, "question"), given, label)
