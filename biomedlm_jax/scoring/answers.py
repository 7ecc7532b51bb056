"""What a model answered to the items of a split, and the strict reading of an answer that it wrote.

Where options are scored, the highest score is what was chosen. Where an answer was written, it is
read by a rule that guesses nothing, and an answer that can not be read is a wrong one:

    a multiple choice  the first line is the text of one option, compared by its words. Or the text
                       begins with an option's capital letter, alone or in brackets, and after it
                       come `)`, `.`, `:` or the end of the line: "B", "(B) Aspirin", "B.". Before
                       either may stand "Answer:" or "The answer is". "A 45-year-old ..." is no
                       answer, nor is "A or B"; nor "C. difficile" where that is no option, for a
                       small letter after it in its line has to begin the option's own text.
    a classification   the first word is the name of a class, in any case, and no other class is
                       named before the first `.`, `,`, `;`, `:`, `!`, `?` or end of the line: "Yes,
                       there is no ..." is yes; "yes or no" is no answer.
"""

import dataclasses
import functools
import re
import string
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from biomedlm_jax.benchmarks.item import Item, Kind, Split
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline import words

UNREAD = -1
LETTERS = string.ascii_uppercase
_LED = re.compile(r"(?i)(?:the\s+)?(?:correct\s+)?answer\s*(?:is\b\s*:?|:)\s*")
_LETTER = re.compile(r"(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])(?=[).:]|[ \t]*(?:\n|$)))[).:]*[ \t]*")
_CLAUSE = re.compile(r"[.,;:!?\n]")


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """Answers of one checkpoint to a split, asked in one form. Either `scores` or `written` is
    there, the other is None.

    form: how it was asked, such as "classifier", "letters", "option texts", "generated".
    scores: float64 [items, options], logarithms of which the softmax is the confidence; -inf where
      an item has fewer options. All options have a finite one.
    written: the text of each answer.
    checkpoint: what answered: "place" and "sha256", and what else is known of it, as JSON has it.
    seed: of the fine-tuning or the sampling; None where nothing was drawn.

    Raises:
      ValueError: not as said above.
    """

    split: Split
    form: str
    scores: Float64[np.ndarray, "items options"] | None
    written: tuple[str, ...] | None
    checkpoint: dict[str, Any]
    seed: int | None

    def __post_init__(self) -> None:
        items = self.split.items
        if (self.scores is None) == (self.written is None):
            raise ValueError("answers are either scores or texts")
        if missing := {"place", "sha256"} - self.checkpoint.keys():
            raise ValueError(f"of the checkpoint there is no {' and no '.join(sorted(missing))}")
        if self.written is not None and len(self.written) != len(items):
            raise ValueError(f"{len(self.written)} texts answer {len(items)} items")
        if self.scores is None:
            return
        if self.split.kind == "generation":
            raise ValueError(f"{self.split.benchmark} has no options to score")
        if self.scores.ndim != 2 or len(self.scores) != len(items):
            raise ValueError(f"scores are of shape {self.scores.shape}, items are {len(items)}")
        for item, row in zip(items, self.scores, strict=True):
            options = len(item.options)
            whole = len(row) >= options and np.isfinite(row[:options]).all()
            if not whole or not np.isneginf(row[options:]).all():
                raise ValueError(f"item {item.id} has {options} options and the scores {row}")

    @functools.cached_property
    def labels(self) -> Int64[np.ndarray, " items"]:
        """The place of the right option.

        Raises:
          UserError: the owners of the benchmark keep it to themselves.
          ValueError: texts are to be written.
        """
        if self.split.kind == "generation":
            raise ValueError(f"nothing is chosen in {self.split.benchmark}")
        found = [item.label for item in self.split.items if item.label is not None]
        if len(found) < len(self.split.items):
            raise UserError(
                f"{self.split.benchmark} {self.split.name}: {len(self.split.items) - len(found)} "
                "items have no answer that is published, so nothing can be scored; take another "
                "split"
            )
        return np.array(found, np.int64)

    @functools.cached_property
    def chosen(self) -> Int64[np.ndarray, " items"]:
        """The place of the option that was answered; UNREAD where the text does not say. Of equal
        scores the first."""
        if self.scores is not None:
            return self.scores.argmax(1)
        assert self.written is not None
        if self.split.kind == "generation":
            raise ValueError(f"nothing is chosen in {self.split.benchmark}")
        pairs = zip(self.written, self.split.items, strict=True)
        return np.array([read(text, item, self.split.kind) for text, item in pairs], np.int64)

    @property
    def right(self) -> Bool[np.ndarray, " items"]:
        return self.chosen == self.labels

    def only(self, keep: Bool[np.ndarray, " items"]) -> "Answers":
        """The answers to some of the items."""
        places = np.flatnonzero(keep)
        items = tuple(self.split.items[place] for place in places)
        return dataclasses.replace(
            self,
            split=dataclasses.replace(self.split, items=items),
            scores=None if self.scores is None else self.scores[places],
            written=None if self.written is None else tuple(self.written[x] for x in places),
        )


def read(text: str, item: Item, kind: Kind) -> int:
    """The place of the option that `text` names, or UNREAD; see above."""
    text = text.strip()
    if kind == "classification":
        return _class(text, item.options)
    text = text[led.end() :] if (led := _LED.match(text)) else text
    options = [words.split(option) for option in item.options]
    line = words.split(text.partition("\n")[0])
    if line and options.count(line) == 1:
        return options.index(line)
    found = _LETTER.match(text)
    if not found or _LETTER.match(text[found.end() :].lstrip()):
        return UNREAD
    place = LETTERS.index(next(filter(None, found.groups())))
    if place >= len(options):
        return UNREAD
    rest = text[found.end() :]
    named = words.split(rest)[: len(options[place])] == options[place]
    return UNREAD if rest[:1].islower() and not named else place


def _class(text: str, classes: tuple[str, ...]) -> int:
    names = [name.casefold() for name in classes]
    named = [word for word in words.split(_CLAUSE.split(text, maxsplit=1)[0]) if word in names]
    first = words.split(text)[:1]
    return names.index(named[0]) if named[:1] == first and len(set(named)) == 1 else UNREAD
