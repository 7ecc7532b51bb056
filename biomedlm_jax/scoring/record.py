"""The record of one model's answers to one split, asked in one form: what it scored, and all that
one has to know to get the same again. How a record from a file is checked."""

import dataclasses
import hashlib
import json
import math
import re
from typing import Any

from biomedlm_jax import hosts
from biomedlm_jax.entry import UserError
from biomedlm_jax.scoring import scores
from biomedlm_jax.scoring.answers import Answers
from biomedlm_jax.scoring.contamination import Contamination

FORMAT = 1
ROUGE = ("rouge1", "rouge2", "rougeL")
_KINDS = (
    (str, "a text", ("benchmark", "split", "kind", "form", "answers", "answers_sha256")),
    (int | None, "a number or null", ("seed",)),
    (dict, "an object", ("checkpoint", "data", "scores", "versions")),
    (dict | None, "an object or null", ("contamination", "clean")),
)


@dataclasses.dataclass(frozen=True)
class Record:
    """checkpoint, seed, form: as in `Answers`. data: "sha256" of the items, "files" they were read
    from with theirs, and "skipped", how many rows are no items, by reason. scores: see
    `scores.of`. contamination: as the class of that name, None where it was not looked for. clean:
    the scores without contaminated items, None where there are none or nothing is left. versions:
    of the programs. answers: the name of the file below answers/, see `folder.py`;
    answers_sha256: of that file.
    """

    benchmark: str
    split: str
    kind: str
    form: str
    seed: int | None
    checkpoint: dict[str, Any]
    data: dict[str, Any]
    scores: dict[str, Any]
    contamination: dict[str, Any] | None
    clean: dict[str, Any] | None
    versions: dict[str, Any]
    answers: str
    answers_sha256: str
    format: int = FORMAT

    @property
    def key(self) -> tuple[str, str, str, int | None]:
        return self.benchmark, self.split, self.form, self.seed

    def __str__(self) -> str:
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"{self.benchmark} {self.split}, {self.form}{seed}"


def record(answers: Answers, contamination: Contamination | None) -> Record:
    """Scores `answers`.

    contamination: of their split; None where no training text is at hand.
    """
    split = answers.split
    dirty = contamination is not None and contamination.items
    # As it comes back from a file, where a tuple is a list.
    why = json.loads(json.dumps(dataclasses.asdict(contamination))) if contamination else None
    return Record(
        benchmark=split.benchmark,
        split=split.name,
        kind=split.kind,
        form=answers.form,
        seed=answers.seed,
        checkpoint=answers.checkpoint,
        data={
            "sha256": split.sha256,
            "files": split.files,
            "skipped": {reason: len(ids) for reason, ids in split.skipped.items()},
        },
        scores=scores.of(answers),
        contamination=why,
        clean=scores.without(answers, contamination) if contamination and dirty else None,
        versions=hosts.versions(),
        answers=file_name(answers),
        answers_sha256=hashlib.sha256(lines(answers)).hexdigest(),
    )


def file_name(of: Answers) -> str:
    """Of the file of its answers."""
    parts = [of.split.benchmark, of.split.name, of.form]
    parts += [] if of.seed is None else [f"seed{of.seed}"]
    return "_".join(re.sub(r"\W+", "_", part).strip("_").lower() for part in parts) + ".jsonl"


def lines(of: Answers) -> bytes:
    """The file of the answers."""
    choice = of.split.kind != "generation"
    found = []
    for place, item in enumerate(of.split.items):
        line: dict[str, Any] = {"id": item.id}
        if choice:
            line |= {"label": int(of.labels[place]), "chosen": int(of.chosen[place])}
        if of.scores is not None:
            line["scores"] = [x if math.isfinite(x) else None for x in of.scores[place].tolist()]
        if of.written is not None:
            line["written"] = of.written[place]
        found.append(json.dumps(line, allow_nan=False) + "\n")
    return "".join(found).encode()


def checked(value: Any, place: str) -> Record:
    """A record as JSON has it.

    place: of it, for messages.

    Raises:
      UserError: it is of another format, or not whole.
    """

    def refuse(what: str) -> UserError:
        return UserError(f"{place}: {what}; copy the folder again, or score again")

    if not isinstance(value, dict):
        raise refuse(f"{str(value)[:60]!r} is no record")
    if value.get("format") != FORMAT:
        raise refuse(f"format is {value.get('format')!r}, this code reads {FORMAT}")
    if wrong := {field.name for field in dataclasses.fields(Record)} ^ value.keys():
        raise refuse(f"missing or unknown: {', '.join(sorted(wrong))}")
    for kind, named, names in _KINDS:
        for name in names:
            if not isinstance(value[name], kind) or isinstance(value[name], bool):
                raise refuse(f"{name} is {str(value[name])[:60]!r}, not {named}")
    for name, needed in (("checkpoint", {"place", "sha256"}), ("data", {"sha256"})):
        if missing := needed - value[name].keys():
            raise refuse(f"{name} has no {', '.join(sorted(missing))}")
    if not re.fullmatch(r"\w+\.jsonl", value["answers"]):
        raise refuse(f"answers is {value['answers']!r}, no name of a file below answers/")
    found = value["contamination"]
    if found is not None and not (
        isinstance(found.get("items"), dict) and isinstance(found.get("store"), dict)
    ):
        raise refuse("contamination has no items or no store")
    for part in ("scores", "clean"):
        if value[part] is not None and (wrong := _wrong(value[part], value["kind"])):
            raise refuse(f"{part}: {wrong} missing or impossible")
    return Record(**value)


def _wrong(found: dict[str, Any], kind: str) -> str:
    """Names of what of `scores.of` is not there or can not be."""
    if kind == "generation":
        form = {"items": _count, **dict.fromkeys(ROUGE, _estimate)}
    else:
        form = {"items": _count, "unreadable": _count, "accuracy": _estimate, "chance": _share,
                "majority": _share, "subjects": _subjects}  # fmt: skip
    optional = {"macro_f1": _share, "ece": _share, "brier": _number, "bins": _bins,
                "classes": _objects}  # fmt: skip
    wrong = [name for name, right in form.items() if not right(found.get(name))]
    wrong += [name for name, right in optional.items() if name in found and not right(found[name])]
    return ", ".join(wrong)


def _number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def _count(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= 0


def _share(x: Any) -> bool:
    return _number(x) and 0 <= x <= 1


def _estimate(x: Any) -> bool:
    return (
        isinstance(x, dict)
        and _share(x.get("value"))
        and all(_number(x.get(end)) for end in ("low", "high"))
        and _count(x.get("of"))
    )


def _subjects(x: Any) -> bool:
    return isinstance(x, dict) and all(_estimate(each) for each in x.values())


def _objects(x: Any) -> bool:
    return isinstance(x, dict) and all(isinstance(each, dict) for each in x.values())


def _bins(x: Any) -> bool:
    names = ("low", "high", "confidence", "accuracy")
    return isinstance(x, list) and all(
        isinstance(each, dict)
        and _count(each.get("items"))
        and all(_share(each.get(n)) for n in names)
        for each in x
    )
