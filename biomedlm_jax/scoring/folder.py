"""A folder of scored answers, from which all numbers can be computed again.

    scores.json      a list of records, one a benchmark, split, form and seed
    answers/<benchmark>_<split>_<form>.jsonl
                     a line an item: id, label, chosen, and scores (null where an item has fewer
                     options) or what was written; _seed7 before the dot where there is a seed

Whatever scores.json lists is whole at any time: a record is taken out before its answers are
replaced, and comes back behind them.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.lines import appearing
from biomedlm_jax.scoring import record as records
from biomedlm_jax.scoring.answers import Answers
from biomedlm_jax.scoring.contamination import Contamination
from biomedlm_jax.scoring.record import Record

FILE, FOLDER = "scores.json", "answers"


def add(folder: epath.Path, answers: Answers, contamination: Contamination | None) -> Record:
    """Scores `answers` and puts record and answers into `folder`, beside what is there. A record of
    the same benchmark, split, form, seed and checkpoint is replaced.

    Raises:
      UserError: `folder` holds such a record of another checkpoint, or a damaged scores.json.
    """
    made = records.record(answers, contamination)
    there = read(folder) if (folder / FILE).exists() else []
    others = []
    for old in there:
        if old.key != made.key:
            if old.answers == made.answers:
                raise UserError(f"{made} and {old} have one file, {made.answers}; rename a form")
            others.append(old)
        elif old.checkpoint["sha256"] != made.checkpoint["sha256"]:
            raise UserError(
                f"{folder / FILE} has {made} of {old.checkpoint['place']}, another checkpoint; "
                "name another folder, or remove this one"
            )
    if len(others) < len(there):
        _write(folder, others)
    with appearing(folder / FOLDER / made.answers) as file:
        file.write(records.lines(answers))
    _write(folder, sorted([*others, made], key=lambda x: (*x.key[:3], x.seed or 0)))
    return made


def read(folder: epath.Path) -> list[Record]:
    """The records in `folder`.

    Raises:
      UserError: it has none, or the file is damaged or of another format.
    """
    file = folder / FILE
    if not file.is_file():
        raise UserError(f"{folder} has no {FILE}; name the folder that answers were scored into")
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}; copy it again or score again") from error
    if not isinstance(values, list):
        raise UserError(f"{file} is no list of records; score again")
    return [records.checked(value, f"{file}, record {n}") for n, value in enumerate(values, 1)]


def answers(folder: epath.Path, of: Record) -> list[dict[str, Any]]:
    """The lines of the answers that `of` was made of: "id", and of a choice "label" and "chosen".

    Raises:
      UserError: the file is missing, or is another one.
    """
    file = folder / FOLDER / of.answers
    if not file.is_file():
        raise UserError(f"{file}, the answers of {of}, is missing; copy the folder whole")
    text = file.read_bytes()
    if (found := hashlib.sha256(text).hexdigest()) != of.answers_sha256:
        raise UserError(
            f"{file} is not the answers of {of}: its sha256 is {found}, {FILE} says "
            f"{of.answers_sha256}; copy the folder again or score again"
        )
    return [json.loads(line) for line in text.decode().splitlines()]


def has_answers(folder: epath.Path, of: Record) -> bool:
    """Whether the file is there that `of` was made of."""
    file = folder / FOLDER / of.answers
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == of.answers_sha256


def right(folder: epath.Path, of: Record) -> np.ndarray:
    """bool [items]: which answers are right, in the order of the items, from the file."""
    return np.array([line["label"] == line["chosen"] for line in answers(folder, of)], bool)


def _write(folder: epath.Path, records: Sequence[Record]) -> None:
    values = [dataclasses.asdict(each) for each in records]
    with appearing(folder / FILE) as file:
        text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
        file.write(f"{text}\n".encode())
