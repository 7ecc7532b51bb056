"""Numbers that say how good answers are, each with its formula. Shares are from 0 to 1.

accuracy    right / items; an answer that can not be read is wrong. Interval: Wilson 1927 [1],
            (p + z^2/2n +- z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n), z = 1.96.
macro F1    the mean over classes of 2 right / (chosen + items), as scikit-learn's
            f1_score(average="macro"): classes that labels or answers have, 0 where none is right.
ECE         expected calibration error [2]: over 15 bins of equal width (m/15, (m+1)/15] of the
            confidence, the sum of share of items x |accuracy - mean confidence|. The confidence is
            the softmax's value of what was chosen.
Brier       of all classes [3]: the mean over items of sum_k (p_k - y_k)^2, from 0 to 2.
McNemar     exact [4]: of the items that only one of two systems has right, how likely a fair coin
            is to be as uneven, both tails.
bits/byte   nats / ln 2 / bytes of UTF-8.

[1] Wilson 1927, J. Am. Stat. Assoc. 22   [2] Guo et al. 2017, arXiv 1706.04599, eq. 3 to 5
[3] Brier 1950, Mon. Weather Rev. 78      [4] McNemar 1947, Psychometrika 12; binomial form
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy import special

from biomedlm_jax.scoring.answers import UNREAD

BINS = 15
COVERED = 0.95  # by every interval
Z = float(special.ndtri((1 + COVERED) / 2))


class Estimate(NamedTuple):
    """value: with the interval from low to high that covers 95 %. of: how many numbers or items it
    is of."""

    value: float
    low: float
    high: float
    of: int


class Class(NamedTuple):
    """items: that have this label. chosen: how often it was answered. right: both at once."""

    items: int
    chosen: int
    right: int

    @property
    def f1(self) -> float:
        return 2 * self.right / max(self.items + self.chosen, 1)


class Bin(NamedTuple):
    """Items with a confidence in (low, high]; confidence: their mean; accuracy: share right."""

    low: float
    high: float
    items: int
    confidence: float
    accuracy: float


class Paired(NamedTuple):
    """first, second: items that this system alone has right. p: of McNemar's test."""

    first: int
    second: int
    p: float


def proportion(right: int, items: int) -> Estimate:
    """A share with Wilson's interval.

    Raises:
      ValueError: of nothing.
    """
    if items < 1 or not 0 <= right <= items:
        raise ValueError(f"{right} of {items} is no share")
    share, square = right / items, Z * Z / items
    middle = share + square / 2
    half = math.sqrt(share * (1 - share) * square + square * square / 4)
    low, high = (middle - half) / (1 + square), (middle + half) / (1 + square)
    # At the ends the formula gives 0 and 1, but for rounding.
    return Estimate(share, max(low, 0.0) if right else 0.0, high if right < items else 1.0, items)


def mean(values: Sequence[float]) -> Estimate:
    """The mean with Student's interval, +- t(n - 1) s / sqrt(n): over seeds, or over items.

    Raises:
      ValueError: there are fewer than two; one value has no spread.
    """
    count = len(values)
    if count < 2:
        raise ValueError(f"{count} values have no interval; two or more do")
    middle = float(np.mean(values))
    spread = float(np.std(values, ddof=1)) / math.sqrt(count)
    half = float(special.stdtrit(count - 1, (1 + COVERED) / 2)) * spread
    return Estimate(middle, middle - half, middle + half, count)


def classes(
    labels: Int64[np.ndarray, " items"], chosen: Int64[np.ndarray, " items"], count: int
) -> list[Class]:
    """Of each of `count` classes."""
    right = np.bincount(labels[labels == chosen], minlength=count).tolist()
    had = np.bincount(labels, minlength=count).tolist()
    answered = np.bincount(chosen[chosen != UNREAD], minlength=count).tolist()
    return [Class(*each) for each in zip(had, answered, right, strict=True)]


def macro_f1(found: Sequence[Class]) -> float:
    return float(np.mean([each.f1 for each in found if each.items or each.chosen]))


def confidences(
    scores: Float64[np.ndarray, "items options"],
) -> Float64[np.ndarray, "items options"]:
    """The softmax over the options of each item; 0 where there is none (-inf)."""
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def calibration(
    confidence: Float64[np.ndarray, " items"], right: Bool[np.ndarray, " items"], bins: int = BINS
) -> list[Bin]:
    """The bins that have items. confidence: above 0, up to 1."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for number in np.unique(place).tolist():
        here = place == number
        told, true = float(confidence[here].mean()), float(right[here].mean())
        found.append(Bin(number / bins, (number + 1) / bins, int(here.sum()), told, true))
    return found


def expected_calibration_error(found: Sequence[Bin]) -> float:
    items = sum(each.items for each in found)
    return sum(each.items * abs(each.accuracy - each.confidence) for each in found) / items


def brier(
    confidence: Float64[np.ndarray, "items options"], labels: Int64[np.ndarray, " items"]
) -> float:
    truth = np.zeros_like(confidence)
    truth[np.arange(len(labels)), labels] = 1
    return float(((confidence - truth) ** 2).sum(1).mean())


def mcnemar(first: Bool[np.ndarray, " items"], second: Bool[np.ndarray, " items"]) -> Paired:
    """Of two systems that answered the same items in the same order: whether each was right.

    Raises:
      ValueError: they did not answer as many items.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} answers can not be paired with {len(second)}")
    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    p = min(1.0, 2 * float(special.bdtr(min(one, other), one + other, 0.5)))
    return Paired(one, other, p)


def bits_per_byte(nats: float, nbytes: int) -> float:
    """nats: negative log-likelihood of a text of `nbytes` bytes."""
    return nats / math.log(2) / nbytes
