"""Whether a training split holds what is tested: the same ids, or the same questions."""

import dataclasses
import re

from biomedlm_jax.benchmarks.forms import normal
from biomedlm_jax.benchmarks.item import Item, Split
from biomedlm_jax.entry import UserError

IN_A_TEST = "an item of a dev or test split"


def overlap(train: Split, other: Split) -> tuple[str, ...]:
    """Ids of the items of `train` that `other` has as well: under the same id in the same
    benchmark, or with the same words of the question and, in a multiple choice, the same options,
    whatever their order, case and punctuation."""
    ids = {_id(other, item) for item in other.items}
    asked = {_words(other, item) for item in other.items}
    return tuple(
        item.id for item in train.items if _id(train, item) in ids or _words(train, item) in asked
    )


def check_apart(train: Split, *others: Split) -> None:
    """Raises UserError where `train` has an item of one of `others`; names the first ten ids."""
    for other in others:
        if found := overlap(train, other):
            more = f" and {len(found) - 10:,} more" if len(found) > 10 else ""
            raise UserError(
                f"{len(found):,} of the items of {train.benchmark} to train on are in the "
                f"{other.name} split of {other.benchmark}: {', '.join(found[:10])}{more}; a score "
                "on what was learnt says nothing. Leave those out of the training split"
            )


def without(train: Split, *others: Split) -> Split:
    """`train` without the items of `others`, which are counted in `skipped`."""
    both = {id for other in others for id in overlap(train, other)}
    if not both:
        return train
    items = tuple(item for item in train.items if item.id not in both)
    gone = [item.id for item in train.items if item.id in both]
    skipped = {**train.skipped, IN_A_TEST: [*train.skipped.get(IN_A_TEST, []), *gone]}
    return dataclasses.replace(train, items=items, skipped=skipped)


def _id(split: Split, item: Item) -> str:
    """Of several benchmarks together, an id has its benchmark in front already."""
    return item.id if "+" in split.benchmark else f"{split.benchmark}/{item.id}"


def _words(split: Split, item: Item) -> tuple:
    question = " ".join(re.findall(r"\w+", item.question.casefold())) or item.question
    options = tuple(sorted(map(normal, item.options)))
    return question, options if split.kind == "multiple_choice" else ()
