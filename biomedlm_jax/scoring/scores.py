"""All that is measured of one model's answers to one split, in the form in which it is kept: names
and numbers that JSON holds. Shares are from 0 to 1."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from biomedlm_jax.benchmarks.item import Item
from biomedlm_jax.entry import UserError
from biomedlm_jax.scoring import measures
from biomedlm_jax.scoring.answers import UNREAD, Answers
from biomedlm_jax.scoring.contamination import Contamination
from biomedlm_jax.scoring.measures import Estimate
from biomedlm_jax.scoring.rouge import rouge


def of(answers: Answers) -> dict[str, Any]:
    """Of a split whose items have options:

        items, unreadable       numbers of them
        accuracy                see `measures.Estimate`
        chance                  the mean of 1 / options
        majority                the share of the most frequent label
        subjects                {name: accuracy}, where items have subjects
        macro_f1, classes       of a classification; {name: {items, chosen, right, f1}}
        ece, brier, bins        where options were scored; bins as in `measures.Bin`

    Of one whose texts are written: items, and rouge1, rouge2 and rougeL as estimates.

    Raises:
      UserError: there are no items, or fewer than two texts, whose mean has no interval.
    """
    items = answers.split.items
    if len(items) < _least(answers):
        raise UserError(
            f"{answers.split.benchmark} {answers.split.name} has {len(items)} items to score; "
            f"score {_least(answers)} or more"
        )
    if answers.split.kind == "generation":
        assert answers.written is not None
        found = rouge(answers.written, [item.answer for item in items])
        return {"items": len(items), **{kind: _kept(each) for kind, each in found.items()}}
    labels, chosen = answers.labels, answers.chosen
    told: dict[str, Any] = {
        "items": len(items),
        "unreadable": int((chosen == UNREAD).sum()),
        "accuracy": _accuracy(answers.right),
        "chance": float(np.mean([1 / len(item.options) for item in items])),
        "majority": int(np.bincount(labels).max()) / len(items),
        "subjects": _subjects(items, answers.right),
    }
    if answers.split.kind == "classification":
        names = items[0].options
        found = measures.classes(labels, chosen, len(names))
        told["macro_f1"] = measures.macro_f1(found)
        told["classes"] = {
            name: each._asdict() | {"f1": each.f1} for name, each in zip(names, found, strict=True)
        }
    if answers.scores is not None:
        confidences = measures.confidences(answers.scores)
        bins = measures.calibration(confidences[np.arange(len(items)), chosen], answers.right)
        told["ece"] = measures.expected_calibration_error(bins)
        told["brier"] = measures.brier(confidences, labels)
        told["bins"] = [each._asdict() for each in bins]
    return told


def without(answers: Answers, contamination: Contamination) -> dict[str, Any] | None:
    """`of` the items that are not contaminated; None where nothing is left that can be measured."""
    clean = contamination.clean(answers.split)
    return of(answers.only(clean)) if clean.sum() >= _least(answers) else None


def _least(answers: Answers) -> int:
    return 2 if answers.split.kind == "generation" else 1


def _subjects(items: Sequence[Item], right: np.ndarray) -> dict[str, Any]:
    names = np.array([item.subject for item in items])
    return {name: _accuracy(right[names == name]) for name in np.unique(names).tolist() if name}


def _accuracy(right: np.ndarray) -> dict[str, Any]:
    return _kept(measures.proportion(int(right.sum()), len(right))) | {"right": int(right.sum())}


def _kept(estimate: Estimate) -> dict[str, Any]:
    return estimate._asdict()
