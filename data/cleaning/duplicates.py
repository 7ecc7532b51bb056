"""Texts that are nearly the same, found without comparing all with all, for `clean.py`.

As GPT-3 and Lee et al. [1] did: a text is the set of its runs of SHINGLE words, two texts are near
duplicates where the Jaccard similarity of their sets (common over all) is at least a threshold, and
MinHash [2] estimates it: of HASHES random orders of all runs, in how many the two sets have the
same first one. The signature comes from rensa, with SEED; it depends on the text alone.

Which pairs are compared: a signature is cut into bands of `rows` places, and two texts are
candidates if they agree in a whole band [3]. `bands_and_rows` gives the most rows for which a pair
at the threshold is missed in less than MISSED of all cases; pairs above it are missed less often.
In a bucket of many, each is a candidate with the bucket's best and with the one before it alone, so
a phrase that a million documents share costs two million comparisons and not a million squared; a
pair in the midst of a bucket may be missed for it, unless a chain links it. Candidates are then
compared by all places of their signatures, of which one byte each is kept [4].

What is linked so, directly or over others, is one group, as in [1].

[1] Lee et al. 2022, arXiv 2107.06499      [2] Broder 1997, doi 10.1109/SEQUEN.1997.666900
[3] Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, 3.4
[4] Li and König 2010, arXiv 0910.3349: b-bit minwise hashing, b = 8
"""

from collections.abc import Iterator

import numpy as np
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]: it has no stubs

SHINGLE = 5  # words
HASHES = 128
SEED = 20
MISSED = 0.1

_PART = 1 << 16
_ALGORITHM = 2  # of rensa: another one gives other signatures


def bands_and_rows(threshold: float) -> tuple[int, int]:
    """See above. A pair of similarity s agrees in none of the bands with chance
    (1 - s^rows)^bands."""
    for rows in range(HASHES, 1, -1):
        bands = HASHES // rows
        if (1 - threshold**rows) ** bands < MISSED:
            return bands, rows
    return HASHES, 1


def signatures(runs: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """(texts, HASHES) uint32 from the texts' runs of SHINGLE words, see `Words.runs`; of a text
    without runs it means nothing."""
    if RMinHash.ALGORITHM_VERSION != _ALGORITHM:
        raise RuntimeError("rensa makes other signatures than before; see requirements.txt")
    found = RMinHash.digest_matrix_from_flat_token_hashes(
        runs, begins.astype(np.uint64), HASHES, SEED
    )
    return np.array(found.to_rows(), np.uint32).reshape(len(begins) - 1, HASHES)


def band_hashes(found: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """(texts, bands) uint64: equal where two signatures agree in the whole band."""
    odd = np.random.Generator(np.random.PCG64(SEED)).integers(0, 1 << 63, rows, np.uint64) * 2 + 1
    parts = found[:, : bands * rows].reshape(len(found), bands, rows).astype(np.uint64) + 1
    sums = (parts * odd).sum(2, dtype=np.uint64)
    return sums ^ (sums >> np.uint64(32))


def kept_bytes(found: np.ndarray) -> np.ndarray:
    """(texts, HASHES) uint8: what of a signature is kept to compare it by."""
    return found.astype(np.uint8)


def similarities(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(pairs,) of two arrays of `kept_bytes`: the estimated Jaccard similarity, from 0 to 1. Its
    standard error is at the most 0.044, and 0.035 at 0.8."""
    same = (first == second).mean(1)
    return np.clip((same - 1 / 256) / (1 - 1 / 256), 0, 1)  # bytes agree by chance as well


class Groups:
    """Which of the numbers from 0 to count - 1 belong together: union-find, 4 bytes a number."""

    def __init__(self, count: int) -> None:
        self._up = np.arange(count, dtype=np.int32)  # towards a smaller one
        self._view = memoryview(self._up.data)

    def link(self, one: np.ndarray, other: np.ndarray) -> None:
        """Joins the groups of the numbers in `one` with those in `other`, pair by pair."""
        up, first = self._view, self.first
        apart = self._up[one] != self._up[other]
        for a, b in zip(one[apart].tolist(), other[apart].tolist(), strict=True):
            a, b = first(a), first(b)
            if a != b:
                up[max(a, b)] = min(a, b)

    def first(self, number: int) -> int:
        """The smallest of a number's group."""
        up = self._view
        while (above := up[number]) != number:
            up[number] = number = up[above]
        return number

    def others(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All numbers that are not the first of their group, and that first one; in parts."""
        for begin in range(0, len(self._up), _PART):
            part = np.arange(begin, min(begin + _PART, len(self._up)), dtype=np.int32)
            part = part[self._up[part] != part]
            yield part, np.array([self.first(number) for number in part.tolist()], np.int32)
