"""Which words of a test item give it away where they stand in another text, and how they are found.

After GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C): 13 words in a row, as `words.split`
sees them, that stand in a test item as well. GPT-3 takes an n of 8 to 13 from each benchmark's
length; here every item has its own: 13, or all words of an item of 8 to 12. A question of under 13
words is looked for joined to its options, and alone as well if it has 8. What is still under 8
words can not be told from common speech and is not looked for.

As there, a run of words that more than COMMON texts have is common speech, and alone it shows
nothing; copies of a text are one text. But a document that has much of an item shows it however
many others do: at least SEVERAL of the item's runs, which are either half of all that the item has
or LONG of them, as 25 words in a row make. Common speech is shorter: "this study had institutional
review board approval and informed consent was obtained from all patients", which stands in an
abstract that PubMedQA asks about, is three of its runs among a hundred. What more than COMMON items
have ("which of the following is the most likely cause of this patient's") is not counted among
these.

`data.clean` keeps such documents out of a corpus; `scoring.contamination` says which items a model
may have seen. Runs are found by their hashes, among a million, and then compared word for word.
"""

import collections
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from biomedlm_jax.pipeline import words
from biomedlm_jax.pipeline.words import HashSet, Words

LONG, SHORT = 13, 8  # words
COMMON = 10  # texts, or items
SEVERAL = 3  # runs


def phrases(texts: Sequence[str], options: Sequence[str]) -> list[str]:
    """The words of each text of an item that can be looked for, with single spaces.

    options: of a multiple choice, joined to what has under LONG words.
    """
    found = []
    chosen_from = [word for option in options for word in words.split(option)]
    for text in texts:
        phrase = words.split(text)
        found.append(phrase)
        if len(phrase) < LONG and chosen_from:
            found.append(phrase + chosen_from)
    return [" ".join(phrase) for phrase in found if len(phrase) >= SHORT]


class Runs(NamedTuple):
    """The runs of some phrases, each once: a phrase of under LONG words, or LONG words of one. Runs
    of LONG words have the first numbers, in the order of `long`, the others follow.

    long: hashes, distinct, rising, uint64. long_place: of each, a phrase and the word in it at
    which it begins. short: the phrases that are a run. short_head: the hash of the first SHORT
    words of each.
    """

    long: np.ndarray
    long_place: np.ndarray
    short: np.ndarray
    short_head: np.ndarray


def runs(phrases: list[str]) -> tuple[Runs, list[set[int]]]:
    """The runs of all phrases, and the numbers of those that each phrase has."""
    hashed = words.hashed(phrases)
    hashes, begins = hashed.runs(LONG)
    long, first, numbers = np.unique(hashes, return_index=True, return_inverse=True)
    phrase = np.searchsorted(begins, first, side="right") - 1
    heads, heads_begin = hashed.runs(SHORT)
    short = np.flatnonzero(np.diff(hashed.begins) < LONG)
    place = np.stack([phrase, first - begins[phrase]], 1)
    own = [set(numbers[a:b].tolist()) for a, b in itertools.pairwise(begins)]
    for number, at in enumerate(short.tolist()):
        own[at].add(len(long) + number)
    return Runs(long, place, short, heads[heads_begin[short]]), own


class Matcher:
    """Looks for `runs(phrases)` in texts."""

    def __init__(self, phrases: list[str], runs: Runs) -> None:
        self._phrases = phrases
        self._long, self._long_place = HashSet(runs.long), runs.long_place
        heads, head_of = np.unique(runs.short_head, return_inverse=True)
        self._heads, self._short = HashSet(heads), runs.short
        self._of_head: dict[int, list[int]] = collections.defaultdict(list)
        for short, head in enumerate(head_of.tolist()):
            self._of_head[head].append(short)

    def find(
        self, texts: Sequence[str], hashed: Words, long_runs: tuple[np.ndarray, np.ndarray]
    ) -> list[tuple[int, int]]:
        """(number of text, number of run) of all runs in `texts`, once each, rising.

        hashed: `words.hashed(texts)`. long_runs: `hashed.runs(LONG)`.
        """

        @functools.cache
        def split(text: int) -> list[str]:
            return words.split(texts[text])

        found: set[tuple[int, int]] = set()
        for text, place, run in _places(self._long, *long_runs):
            if split(text)[place : place + LONG] == self._words(run):
                found.add((text, run))
        for text, place, head in _places(self._heads, *hashed.runs(SHORT)):
            for short in self._of_head[head]:
                run = len(self._long.hashes) + short
                phrase = self._words(run)
                if split(text)[place : place + len(phrase)] == phrase:
                    found.add((text, run))
        return sorted(found)

    def text(self, run: int) -> str:
        """The words of a run."""
        return " ".join(self._words(run))

    def _words(self, run: int) -> list[str]:
        if run >= len(self._long.hashes):
            return self._phrases[self._short[run - len(self._long.hashes)]].split()
        phrase, begin = self._long_place[run].tolist()
        return self._phrases[phrase].split()[begin : begin + LONG]


def _places(
    sought: HashSet, runs: np.ndarray, begins: np.ndarray
) -> Iterator[tuple[int, int, int]]:
    """(text, place of the run in it, number of the hash) of every hit."""
    at, number = sought.find(runs)
    text = np.searchsorted(begins, at, side="right") - 1
    return zip(text.tolist(), (at - begins[text]).tolist(), number.tolist(), strict=True)
