"""The benchmarks by name, and the one way in: a folder of their files becomes a `Split`.

read("medqa", "QA", "test")
read("pubmedqa", "QA", "train", fold=3)
read_many("medmcqa+medqa", "QA", "train")
"""

import dataclasses
import difflib
from collections.abc import Callable

from etils import epath

from biomedlm_jax.benchmarks import (
    bioasq,
    files,
    medmcqa,
    medqa,
    medquad,
    meqsum,
    mmlu,
    pubmedqa,
)
from biomedlm_jax.benchmarks.forms import Asked, Candidate, Known, settle
from biomedlm_jax.benchmarks.item import SPLITS, Kind, Split
from biomedlm_jax.entry import UserError


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """splits: those that are published, under our names. folds: how many ways there are to divide
    what is not for testing. rows: how many each split has as published, by its name, where known.
    candidates: every form of a split that the files have, for a fold. classes: of a classification,
    as its items have them for options."""

    kind: Kind
    splits: tuple[str, ...]
    rows: dict[str, int]
    candidates: Callable[[Asked, int | None], list[Candidate]]
    looked_for: str
    known: dict[str, Known]
    folds: int = 1
    classes: tuple[str, ...] = ()


BENCHMARKS = {
    "medqa": Benchmark(
        kind="multiple_choice",
        splits=SPLITS,
        rows=medqa.PUBLISHED,
        candidates=lambda asked, fold: medqa.candidates(asked, options=4),
        looked_for=medqa.LOOKED_FOR,
        known=medqa.KNOWN,
    ),
    "medqa5": Benchmark(
        kind="multiple_choice",
        splits=SPLITS,
        rows=medqa.PUBLISHED,
        candidates=lambda asked, fold: medqa.candidates(asked, options=5),
        looked_for=medqa.LOOKED_FOR,
        known=medqa.KNOWN,
    ),
    "medmcqa": Benchmark(
        kind="multiple_choice",
        splits=SPLITS,
        rows=medmcqa.PUBLISHED,
        candidates=lambda asked, fold: medmcqa.candidates(asked),
        looked_for=medmcqa.LOOKED_FOR,
        known=medmcqa.KNOWN,
    ),
    "mmlu": Benchmark(
        kind="multiple_choice",
        splits=SPLITS,
        rows={split: sum(rows) for split, rows in mmlu.PUBLISHED.items()},
        candidates=lambda asked, fold: mmlu.candidates(asked),
        looked_for=mmlu.LOOKED_FOR,
        known=mmlu.KNOWN,
    ),
    "pubmedqa": Benchmark(
        kind="classification",
        splits=SPLITS,
        rows=pubmedqa.PUBLISHED,
        candidates=pubmedqa.candidates,
        looked_for=pubmedqa.LOOKED_FOR,
        known=pubmedqa.KNOWN,
        folds=pubmedqa.FOLDS,
        classes=pubmedqa.CLASSES,
    ),
    "bioasq": Benchmark(
        kind="classification",
        splits=SPLITS,
        rows={},  # as many as there are years
        candidates=lambda asked, fold: bioasq.candidates(asked),
        looked_for=bioasq.LOOKED_FOR,
        known=bioasq.KNOWN,
        classes=bioasq.CLASSES,
    ),
    "meqsum": Benchmark(
        kind="generation",
        splits=("train", "test"),
        rows=meqsum.PUBLISHED,
        candidates=lambda asked, fold: meqsum.candidates(asked),
        looked_for=meqsum.LOOKED_FOR,
        known=meqsum.KNOWN,
    ),
    "medquad": Benchmark(
        kind="generation",
        splits=("train",),
        rows={"train": medquad.PAIRS},
        candidates=lambda asked, fold: medquad.candidates(asked),
        looked_for=medquad.LOOKED_FOR,
        known=medquad.KNOWN,
    ),
}


def read(
    benchmark: str,
    folder: epath.PathLike,
    split: str,
    *,
    fold: int | None = None,
    other_version: bool = False,
) -> Split:
    """One split of one of BENCHMARKS, from whatever of its files lie below `folder`.

    fold: of PubMedQA's training and dev items; None is fold 0, the authors'.
    other_version: take files that have not the published number of rows; `Split.notes` says so.

    Raises:
      UserError: there is no such benchmark, split or fold; its files are not there, damaged,
        another version, or say different things.
    """
    if (known := BENCHMARKS.get(benchmark)) is None:
        near = difflib.get_close_matches(benchmark, BENCHMARKS, n=1)
        hint = f"; is {near[0]!r} meant?" if near else ""
        raise UserError(
            f"there is no benchmark {benchmark!r}; there are {', '.join(BENCHMARKS)}{hint}"
        )
    if split not in known.splits:
        raise UserError(
            f"{benchmark} has no {split!r} split; its owners publish {', '.join(known.splits)}"
        )
    if fold is not None and not (known.folds > 1 and 0 <= fold < known.folds):
        allowed = f"0 to {known.folds - 1}" if known.folds > 1 else "none"
        raise UserError(f"fold={fold} of {benchmark}; its folds are {allowed}")
    asked = Asked(benchmark, known.kind, split, files.below(folder), known.known, other_version)
    return settle(asked, known.candidates(asked, fold), known.looked_for)


def read_many(
    names: str,
    folder: epath.PathLike,
    split: str,
    *,
    fold: int | None = None,
    other_version: bool = False,
) -> Split:
    """A split of several benchmarks, joined by +, one behind the other: "medmcqa+medqa".

    Ids are "medqa/train-00000". A single name is `read`; its ids stay as they are.

    Raises:
      UserError: as `read`; or they are of different kinds, or have not the same number of options
        (of a classification, not the same classes); or one is named twice.
    """
    wanted = names.split("+")
    if len(set(wanted)) != len(wanted):
        raise UserError(f"{names} names a benchmark twice")
    folded = [name for name in wanted if name in BENCHMARKS and BENCHMARKS[name].folds > 1]

    def one(name: str) -> Split:
        # A fold is for those that have some; if none has, it is refused.
        mine = fold if name in folded or not folded else None
        return read(name, folder, split, fold=mine, other_version=other_version)

    splits = [one(name) for name in wanted]
    if len(splits) == 1:
        return splits[0]
    shapes = {part.benchmark: f"{part.kind} ({_answers(part)})" for part in splits}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} is {shape}" for name, shape in shapes.items())
        raise UserError(f"{names} can not be one split: {listed}; name those that are alike")
    return Split(
        benchmark=names,
        name=split,
        kind=splits[0].kind,
        items=tuple(
            dataclasses.replace(item, id=f"{part.benchmark}/{item.id}")
            for part in splits
            for item in part.items
        ),
        files={name: sha256 for part in splits for name, sha256 in part.files.items()},
        skipped={
            f"{part.benchmark}: {reason}": ids
            for part in splits
            for reason, ids in part.skipped.items()
        },
        notes=tuple(f"{part.benchmark}: {note}" for part in splits for note in part.notes),
    )


def classes(names: str) -> tuple[str, ...]:
    """The classes of a benchmark, or of several that `read_many` joins; () of what has none."""
    return BENCHMARKS[names.split("+")[0]].classes


def _answers(split: Split) -> str:
    if split.kind == "classification":
        return ", ".join(split.items[0].options)
    counts = sorted({len(item.options) for item in split.items})
    return f"{' or '.join(map(str, counts))} options" if split.kind == "multiple_choice" else "text"
