"""A question with its answer, and a split of a benchmark: what all files are read into."""

import dataclasses
import hashlib
import json
from typing import Literal

Kind = Literal["multiple_choice", "classification", "generation"]
SPLITS = ("train", "dev", "test")


@dataclasses.dataclass(frozen=True)
class Item:
    """options: what can be answered. Of a multiple choice its texts, in the owners' order; of a
      classification the names of the classes, sorted; none where a text is to be written.
    label: the place of the right one in `options`; None where a text is to be written, or where
      the owners keep the answers to themselves.
    context: what is given to read. answer: a text that answers.
    subject: what scores are told apart by. pmids: of the abstracts that answer it.
    """

    id: str
    question: str
    options: tuple[str, ...] = ()
    label: int | None = None
    context: str = ""
    answer: str = ""
    subject: str = ""
    pmids: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Split:
    """name: of SPLITS. items: in the order of the files. files: by their path below the folder of
    benchmarks, the sha256 of what they hold unpacked. skipped: by reason, the ids of rows that are
    no items. notes: sentences on what is not as published."""

    benchmark: str
    name: str
    kind: Kind
    items: tuple[Item, ...]
    files: dict[str, str]
    skipped: dict[str, list[str]]
    notes: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Of the items, whatever files they came from."""
        text = json.dumps([list(vars(item).values()) for item in self.items], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()
