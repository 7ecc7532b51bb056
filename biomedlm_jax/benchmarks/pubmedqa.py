"""PubMedQA's labelled items (Jin et al. 2019, arXiv 1909.06146): is it so, says an abstract?

    ori_pqal.json                                 github.com/pubmedqa/pubmedqa: 1,000 items by PMID
    test_set.json, pqal_fold<k>/{train,dev}_set.json   what the owners' splitter makes of it
    {train,dev,test}.json   BioMedLM's authors: id, sentence1 (question), sentence2 (context), label
    benchmark.json          MIRAGE: the test split without contexts

The owners' script preprocess/split_dataset.py halves the items into 500 for testing and ten folds
of 50. Fold k has one of the ten as dev and the other 450 as train; BioMedLM's authors used fold 0,
which is what no fold stands for. The script is followed here draw by draw (`official_splits`), so
ori_pqal.json is enough; a test_ground_truth.json in the folder must have the same test items and
labels. The test split is in its order.

The context is CONTEXTS joined by a space: the abstract without its conclusion. LONG_ANSWER, which
is that conclusion, is not read.
"""

import math
import random
import re
from collections.abc import Sequence
from typing import Any

from biomedlm_jax.benchmarks import mirage
from biomedlm_jax.benchmarks.files import File
from biomedlm_jax.benchmarks.forms import (
    Asked,
    Candidate,
    Known,
    NoItem,
    Part,
    candidate,
    noted,
    place,
    text,
)
from biomedlm_jax.benchmarks.item import Item, Split
from biomedlm_jax.entry import UserError

CLASSES = ("maybe", "no", "yes")
FOLDS = 10
LABELLED = 1_000
PUBLISHED = {"train": 450, "dev": 50, "test": 500}
KNOWN = {
    "8b3276be8942ebbd77f3ddcda12c1749bf0e490045a736fd8438ee40cf37a41d": Known(
        "the owners' labelled items", "", 1_000
    ),
    "2ebba54cf5ab804005724f29a379245526adca9dbbd74a89ef7b736faa6ac19e": Known(
        "the train split of BioMedLM's authors", "train", 450
    ),
    "2e540335b855ea05885ec5e185dd5adbcaaf1d6e63f97237c3961d39c6f9ca82": Known(
        "the dev split of BioMedLM's authors", "dev", 50
    ),
    "7ef1cd3d1331c2118cf498f3ce106ca39a442a3cf5bba38d54b093f61c052b3e": Known(
        "the test split of BioMedLM's authors", "test", 500
    ),
}
LOOKED_FOR = (
    "ori_pqal.json of github.com/pubmedqa/pubmedqa, or <split>.json of BioMedLM's authors (fold 0)"
)


def candidates(asked: Asked, fold: int | None) -> list[Candidate]:
    """The split in every form that is there. fold: of train and dev; None is the authors', 0."""
    fold, found = fold or 0, []
    for file in asked.named(r"ori_pqal\.json"):
        rows = _of_split(asked, file, fold)
        part = Part(file, rows, LABELLED, len(file.table))
        found.append(candidate(asked, "the owners' items", [part], _labelled))
    for file in asked.named(rf"{asked.split}_set\.json"):
        named = re.search(r"(?:^|/)pqal_fold(\d)/", file.name)
        if asked.split == "test" or (named and int(named[1]) == fold):
            part = Part(file, list(file.table.items()), PUBLISHED[asked.split])
            found.append(candidate(asked, "the owners' split", [part], _labelled))
    if fold == 0 or asked.split == "test":
        for file in asked.of_split(r".*\.jsonl?"):
            if file.has("id", "sentence1", "sentence2", "label") and _pmid(file.first):
                part = Part(file, file.rows, PUBLISHED[asked.split])
                found.append(candidate(asked, "the authors' rows", [part], _pair))
    for file, rows in mirage.rows(asked, "pubmedqa"):
        made = candidate(asked, "MIRAGE's", [Part(file, rows, PUBLISHED["test"])], _mirage)
        found.append(noted(made, mirage.WITHOUT_CONTEXT))
    return found


def official_splits(decisions: dict[str, str]) -> tuple[list[str], list[list[str]]]:
    """PMIDs of the test split and of the ten parts of the rest, of the labels by PMID, as the
    owners' script draws them from Python's generator with seed 0, in its order.

    Each label is shuffled and cut by itself, so that all parts have the same shares of labels.
    Where the last part comes out smaller, it gets one item of each other part.

    Raises:
      IndexError: a part that is to give one has none.
    """
    draw = random.Random(0)
    rest, test = _divided(draw, list(decisions), decisions, 2)
    return test, _divided(draw, rest, decisions, FOLDS)


def predictions(split: Split, chosen: Sequence[int]) -> dict[str, str]:
    """By PMID the class that was chosen, of a test split: what the owners' evaluation.py reads. An
    answer that could not be read (-1) is "", which it counts as wrong, and as a class of its own in
    its macro F1.

    Raises:
      ValueError: not one answer an item.
    """
    names = {-1: "", **dict(enumerate(CLASSES))}
    pairs = zip(split.items, chosen, strict=True)
    return {item.id: names[answer] for item, answer in pairs}


def _divided(
    draw: random.Random, pmids: list[str], decisions: dict[str, str], count: int
) -> list[list[str]]:
    parts: list[list[str]] = [[] for _ in range(count)]
    for decision in ("yes", "no", "maybe"):
        same = [pmid for pmid in pmids if decisions[pmid] == decision]
        draw.shuffle(same)
        size = math.ceil(len(same) / count)
        for number, part in enumerate(parts):
            part += same[number * size : (number + 1) * size]
    if len(parts[-1]) != len(parts[0]):
        for part in parts[:-1]:
            moved = draw.choice(part)
            part.remove(moved)
            parts[-1].append(moved)
    return parts


def _of_split(asked: Asked, file: File, fold: int) -> list[tuple[str, dict[str, Any]]]:
    rows = file.table
    wrong = [
        pmid
        for pmid, row in rows.items()
        if not (pmid.isdecimal() and len(pmid) <= 9)
        or not isinstance(row, dict)
        or row.get("final_decision") not in CLASSES
    ]
    if wrong or not rows:
        which = f"{wrong[0]!r} has no PMID and final_decision" if wrong else "it holds no item"
        raise file.damaged(f"{which}, so its items can not be divided as the owners do")
    try:
        test, parts = official_splits({pmid: row["final_decision"] for pmid, row in rows.items()})
    except IndexError as error:
        raise UserError(
            f"{file.name} has {len(rows)} items, too few for the owners' script to divide into a "
            f"test split and {FOLDS} folds; copy the published file"
        ) from error
    train = [pmid for number, part in enumerate(parts) if number != fold for pmid in part]
    chosen = {"train": train, "dev": parts[fold], "test": test}[asked.split]
    for truth in asked.named(r"test_ground_truth\.json") if asked.split == "test" else ():
        if truth.table != {pmid: rows[pmid]["final_decision"] for pmid in chosen}:
            raise UserError(
                f"{truth.name} has other items or labels than the test split that the owners' "
                f"script makes of {file.name}; copy both from one version of "
                "github.com/pubmedqa/pubmedqa"
            )
    return [(pmid, rows[pmid]) for pmid in chosen]


def _pmid(row: dict[str, Any]) -> bool:
    """BioASQ's ids, in rows with the same columns, are hexadecimal and longer."""
    return isinstance(row["id"], str) and row["id"].isdecimal() and len(row["id"]) <= 9


def _item(pmid: str, question: str, context: str, label: int) -> Item:
    if not (pmid.isdecimal() and len(pmid) <= 9):
        raise NoItem(f"the id {pmid!r}, which is no PMID")
    return Item(pmid, question, CLASSES, label, context, pmids=(int(pmid),))


def _labelled(row: tuple[str, dict[str, Any]], number: int, file: File) -> Item:
    pmid, values = row
    if not isinstance(values, dict) or not isinstance(values.get("CONTEXTS"), list):
        raise NoItem("no CONTEXTS")
    contexts = [part.strip() for part in values["CONTEXTS"] if isinstance(part, str)]
    context = " ".join(part for part in contexts if part)
    if not context:
        raise NoItem("an empty context")
    label = place(values.get("final_decision"), CLASSES)
    return _item(pmid, text(values, "QUESTION"), context, label)


def _pair(row: dict[str, Any], number: int, file: File) -> Item:
    context = text(row, "sentence2")
    if not context:
        raise NoItem("an empty context")
    label = place(row.get("label"), CLASSES)
    return _item(text(row, "id"), text(row, "sentence1"), context, label)


def _mirage(row: mirage.Row, number: int, file: File) -> Item:
    pmid, values = row
    given = mirage.options(values)
    label = place(given[mirage.answer(values, "answer", len(given))], CLASSES)
    return _item(pmid, text(values, "question"), "", label)
