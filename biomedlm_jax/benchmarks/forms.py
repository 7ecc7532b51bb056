"""From rows of files to a split: what is no item, which version it is, which of several files wins.

A row that is no item is left out of a training split, counted and named in `Split.skipped`. In a
dev or test split it is refused: with another number of questions a score is another score.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

from biomedlm_jax.benchmarks.files import File
from biomedlm_jax.benchmarks.item import Item, Kind, Split
from biomedlm_jax.entry import UserError

AGAIN = "the same item again"


class NoItem(ValueError):  # noqa: N818
    """A row that is no item; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Known:
    """A file that was held against what its owners publish. rows: as counted then."""

    what: str
    split: str  # "" where a file holds more than one
    rows: int


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a reader is to read. files: all of the folder. known: by sha256 of what a file holds
    unpacked. other_version: take files that have not the published number of rows."""

    benchmark: str
    kind: Kind
    split: str
    files: list[File]
    known: dict[str, Known]
    other_version: bool = False

    def named(self, pattern: str) -> list[File]:
        """Files whose name without .gz is this, in order."""
        return [file for file in self.files if re.fullmatch(pattern, file.base)]

    def of_split(self, pattern: str) -> list[File]:
        """Of those, the ones whose name has the split as well."""
        return [file for file in self.named(pattern) if file.split == self.split]


@dataclasses.dataclass(frozen=True)
class Part:
    """rows: those of the split, in order. published: how many rows the owners' file has, None where
    that is not known. found: how many this one has, all of `rows` unless it says otherwise."""

    file: File
    rows: Sequence[Any]
    published: int | None = None
    found: int | None = None


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A split as one form of the files gives it. what: the form, in words."""

    what: str
    split: Split


def text(row: dict[str, Any], column: str) -> str:
    """A text of a row, without white space around it.

    Raises:
      NoItem: there is none.
    """
    value = row.get(column)
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise NoItem(f"no text in {column!r}")


def place(value: Any, of: Sequence[str]) -> int:
    """The place of a label among `of`, whatever case it is written in.

    Raises:
      NoItem: it is none of them.
    """
    if not isinstance(value, str) or (label := value.strip().casefold()) not in of:
        raise NoItem(f"{str(value)[:20]!r} is none of {', '.join(of)}")
    return of.index(label)


def candidate(
    asked: Asked, what: str, parts: Sequence[Part], item: Callable[[Any, int, File], Item]
) -> Candidate:
    """The rows of all parts as one split.

    item: of a row, its number from 0 and its file; raises NoItem where it is none.

    Raises:
      UserError: a file is another version than the published, or of another split than its name
        says; a row of a dev or test split is no item; an id means two items; nothing is left.
    """
    items: dict[str, Item] = {}
    skipped: dict[str, list[str]] = collections.defaultdict(list)
    notes = []
    for part in parts:
        notes += _version(asked, part)
        for number, row in enumerate(part.rows):
            where = f"{part.file.name}, row {number + 1}"
            try:
                made = _checked(item(row, number, part.file), asked.kind)
            except NoItem as error:
                if asked.split != "train":
                    raise UserError(
                        f"{where}, is no item of {asked.benchmark}: {error}; a {asked.split} split "
                        "with a question less has other scores, so nothing is left out of it; copy "
                        "the file again from its owners"
                    ) from error
                skipped[str(error)].append(where)
                continue
            other = items.setdefault(made.id, made)
            if other is made:
                continue
            if dataclasses.replace(other, subject=made.subject) == made:
                skipped[AGAIN].append(made.id)
            else:
                raise UserError(
                    f"{where}, has the id {made.id!r} of another item of the {asked.split} split "
                    f"of {asked.benchmark}; keep one version of the file in the folder"
                )
    names = ", ".join(part.file.name for part in parts[:3])
    if not items:
        reasons = ", ".join(f"{reason}: {len(rows):,}" for reason, rows in skipped.items())
        raise UserError(
            f"{names}: not one row is an item of {asked.benchmark} ({reasons or 'there is none'}); "
            "copy the file again from its owners"
        )
    files = {part.file.name: part.file.sha256 for part in parts}
    found = tuple(items.values())
    return Candidate(
        f"{what} ({names}{', ...' if len(parts) > 3 else ''})",
        Split(asked.benchmark, asked.split, asked.kind, found, files, dict(skipped), tuple(notes)),
    )


def noted(made: Candidate, note: str) -> Candidate:
    """The same with one more note."""
    split = dataclasses.replace(made.split, notes=(*made.split.notes, note))
    return dataclasses.replace(made, split=split)


def _checked(item: Item, kind: Kind) -> Item:
    try:
        "".join((item.id, item.question, *item.options, item.context, item.answer)).encode()
    except UnicodeEncodeError as error:
        raise NoItem("half of a character, as \\ud800 is") from error
    if not item.id:
        raise NoItem("an empty id")
    if not item.question:
        raise NoItem("an empty question")
    if kind == "generation":
        if not item.answer:
            raise NoItem("no answer")
        return item
    if len(item.options) < 2 or not all(item.options):
        raise NoItem("an empty option")
    if item.label is not None and not 0 <= item.label < len(item.options):
        raise NoItem("a label out of range")
    return item


def _version(asked: Asked, part: Part) -> list[str]:
    name, known = part.file.name, asked.known.get(part.file.sha256)
    if known and known.split not in ("", asked.split):
        raise UserError(
            f"{name} is named for the {asked.split} split of {asked.benchmark}, and holds its "
            f"{known.split} split: it is {known.what}; name it so, or copy the right file"
        )
    found = len(part.rows) if part.found is None else part.found
    if part.published is None or (found == part.published and known):
        return []
    if found == part.published:
        return [f"{name} has the published {found:,} rows; its bytes were not seen before"]
    is_known = f"; it is {known.what}" if known else ""
    if not asked.other_version:
        raise UserError(
            f"{name} has {found:,} rows, the published {asked.split} file of {asked.benchmark} has "
            f"{part.published:,}{is_known}; scores on it, or of a model trained on it, compare "
            "with no others. Copy the published file, or say that another version is meant: "
            "other_version=True"
        )
    return [f"another version: {name} has {found:,} rows, published {part.published:,}{is_known}"]


def normal(words: str) -> str:
    """Without differences in case and white space."""
    return " ".join(words.casefold().split())


def _asked_and_answered(split: Split, labels: bool) -> collections.Counter[tuple]:
    return collections.Counter(
        (
            normal(item.question),
            tuple(map(normal, item.options)),
            item.label if labels else None,
            normal(item.answer) if split.kind == "generation" else "",
        )
        for item in split.items
    )


def settle(asked: Asked, candidates: Sequence[Candidate], looked_for: str) -> Split:
    """The first of the candidates; all others must ask and answer the same.

    looked_for: the names of files and what is in them, for who has none.

    Raises:
      UserError: there is none, or two differ.
    """
    if not candidates:
        raise UserError(
            f"there is no {asked.split} split of {asked.benchmark} in the folder; "
            f"its files are {looked_for}"
        )
    first, *others = candidates
    for other in others:
        labels = all(item.label is not None for one in (first, other) for item in one.split.items)
        ours, theirs = (_asked_and_answered(one.split, labels) for one in (first, other))
        if ours != theirs:
            differing = next(iter((ours - theirs) or (theirs - ours)))
            raise UserError(
                f"two files with the {asked.split} split of {asked.benchmark} differ: {first.what} "
                f"has {ours.total():,} items, {other.what} {theirs.total():,}, and "
                f"{(ours - theirs).total():,} of the first are not in the second, such as "
                f"{differing[0][:80]!r}; keep one of them in the folder"
            )
    return first.split
