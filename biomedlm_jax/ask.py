"""Answers of a model that was not fine-tuned for a benchmark: what it finds likeliest, or writes.

    letters                 log p of " A", " B", ... after the prompt of `benchmarks/plain.py`
    option texts            log p of each option's whole text after the prompt without the options
    option texts, per byte  the same over the option's bytes of UTF-8, as lm_eval's acc_bytes, so
                            that a long text is not unlikely for its length
    class words             of a classification, log p of " yes", " no", ...
    generated               where a text is to be written, the greedy one, to the end of text,
                            the next "Question:", or so many tokens

Before the prompt may stand examples of the training split with their answers (few-shot), the same
for all items, a blank line behind each. Those that do not fit in the context are left out, the
first ones first; where the prompt alone does not fit, it loses its beginning, for all options as
much as for the longest.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from biomedlm_jax.benchmarks.apart import without
from biomedlm_jax.benchmarks.item import Item, Kind, Split
from biomedlm_jax.benchmarks.plain import LETTERS, plain
from biomedlm_jax.benchmarks.prompts import Form
from biomedlm_jax.entry import UserError
from biomedlm_jax.generate import Engine, Request, joined, stream
from biomedlm_jax.likelihood import LogLikelihood, Pair
from biomedlm_jax.pipeline.loader import shuffled
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from biomedlm_jax.scoring.answers import Answers

LETTER, TEXT, PER_BYTE = "letters", "option texts", "option texts, per byte"
CLASS, GENERATED = "class words", "generated"
FORMS: dict[Kind, tuple[str, ...]] = {
    "multiple_choice": (LETTER, TEXT, PER_BYTE),
    "classification": (CLASS,),
    "generation": (GENERATED,),
}
STOP = "\nQuestion:"
Each = Callable[[int], object]


@dataclasses.dataclass(frozen=True)
class Shots:
    """items: the examples, in the order in which they stand. seed: by which they were drawn, None
    where there are none."""

    items: tuple[Item, ...]
    seed: int | None

    def said(self, form: str) -> str:
        """What answers in `form` after these examples are called."""
        count = len(self.items)
        return f"{form}, {count} shot{'s' if count > 1 else ''}" if count else form


NO_SHOTS = Shots((), None)


def draw(train: Split, tested: Split, count: int, seed: int) -> Shots:
    """`count` items of `train` that are none of `tested`.

    Raises:
      UserError: there are not as many that have an answer.
    """
    apart = without(train, tested).items
    known = [item for item in apart if item.label is not None or item.answer]
    if len(known) < count:
        raise UserError(
            f"config.shots={count}, but the train split of {train.benchmark} has {len(known)} "
            "items with an answer; ask for as many at most"
        )
    places = shuffled(np.arange(count), len(known), seed=seed, epoch=0) if count else []
    return Shots(tuple(known[place] for place in places), seed if count else None)


def scored(
    split: Split,
    forms: Sequence[str],
    likelihood: LogLikelihood,
    vocabulary: Vocabulary,
    checkpoint: dict[str, Any],
    shots: Shots,
    each: Each = lambda pairs: None,
) -> list[Answers]:
    """The answers in each of `forms`, all of one kind of FORMS. Option texts are asked about once
    for both of their forms.

    checkpoint: see `Answers`; how it was asked is added to it as "asked": shots, and over all items
      how many of them were left out, and how many prompts lost their beginning.
    each: called after every batch with the number of options that are answered by it.

    Raises:
      UserError: see `LogLikelihood`.
    """
    found: dict[str, tuple[np.ndarray, dict[str, int]]] = {}
    answers = []
    for form in forms:
        asked = TEXT if form == PER_BYTE else form
        if asked not in found:
            found[asked] = _nats(split, asked, likelihood, vocabulary, shots, each)
        nats, how = found[asked]
        if form == PER_BYTE:
            nats = nats / _bytes(split.items, nats.shape[1])
        answers.append(_answers(split, form, nats, None, checkpoint | {"asked": how}, shots))
    return answers


def written(
    split: Split,
    engine: Engine,
    checkpoint: dict[str, Any],
    shots: Shots,
    max_tokens: int,
    each: Each = lambda texts: None,
) -> Answers:
    """Greedy texts of at most `max_tokens`; otherwise as `scored`.

    Raises:
      UserError: max_tokens leaves no room for a prompt.
    """
    context = engine.model.context
    if not 0 < max_tokens < context:
        raise UserError(
            f"config.max_tokens={max_tokens} is not in [1, {context - 1}], what the context leaves"
        )
    prompts = [plain(item, split.kind)[0] for item in split.items]
    ids, how = _fitted(
        [[prompt] for prompt in prompts], split.kind, shots, engine.vocabulary, context - max_tokens
    )
    requests = [_greedy(whole, max_tokens, (STOP,)) for ((_, whole),) in ids]
    texts = _texts(engine, requests, each)
    how = how | {"max_tokens": max_tokens}
    return _answers(split, GENERATED, None, texts, checkpoint | {"asked": how}, shots)


def taught(
    split: Split, engine: Engine, form: Form, each: Each = lambda texts: None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """(greedy texts of a model that was fine-tuned to write, each after the prompt it learned; how
    it was asked, for a record). A text has as many tokens as the longest that can be learned from.

    form: of the fine-tuning, for generation.

    Raises:
      UserError: see `Form.rows`.
    """
    rows = form.rows(split.items, split.kind)
    room = form.longest_answer
    requests = [_greedy(mine[0].tokens[: mine[0].learned].tolist(), room, ()) for mine in rows]
    return _texts(engine, requests, each), {"max_tokens": room}


def prompt(item: Item, form: str, kind: Kind) -> str:
    """What is asked; of option texts it does not list the options."""
    return plain(item, "generation" if form == TEXT else kind)[0]


def options(item: Item, form: str) -> list[str]:
    """What may follow the prompt, as `plain` writes it."""
    names = LETTERS[: len(item.options)] if form == LETTER else item.options
    return [f" {name}" for name in names]


def _greedy(prompt: Sequence[int], max_tokens: int, stop: tuple[str, ...]) -> Request:
    return Request(
        prompt=tuple(prompt),
        max_tokens=max_tokens,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        seed=0,
        stop=stop,
    )


def _texts(engine: Engine, requests: Sequence[Request], each: Each) -> tuple[str, ...]:
    pieces = [[] for _ in requests]
    for number, piece in stream(engine, requests):
        pieces[number].append(piece)
        each(1 if piece.finish else 0)
    return tuple(joined(of_one).text.strip() for of_one in pieces)


def _nats(
    split: Split,
    form: str,
    likelihood: LogLikelihood,
    vocabulary: Vocabulary,
    shots: Shots,
    each: Each,
) -> tuple[np.ndarray, dict[str, int]]:
    """(log p of each option, nats [items, options], -inf where there is none; how it was asked)."""
    texts = [[prompt(item, form, split.kind), *options(item, form)] for item in split.items]
    room = likelihood.model.context + 1  # the last token is only asked about
    ids, how = _fitted(texts, split.kind, shots, vocabulary, room, form)
    pairs = [Pair(whole[:begin], whole[begin:]) for of_item in ids for begin, whole in of_item]
    found = likelihood(pairs, each)
    counts = [len(item.options) for item in split.items]
    nats = np.full((len(counts), max(counts)), -np.inf)
    nats[np.arange(nats.shape[1]) < np.array(counts)[:, None]] = [one.nats for one in found]
    return nats, how


def _fitted(
    texts: list[list[str]],
    kind: Kind,
    shots: Shots,
    vocabulary: Vocabulary,
    room: int,
    form: str = GENERATED,
) -> tuple[list[list[tuple[int, list[int]]]], dict[str, int]]:
    """Of each item, for each thing that may follow its prompt, (tokens of what is before it, all
    tokens); and how many shots were left out and prompts cut.

    texts: of each item the prompt and what may follow it; the prompt alone is asked for a text.
    room: tokens that there may be.
    """
    examples = [prompt(item, form, kind) + _right(item, form) for item in shots.items]
    found: list[list[tuple[int, list[int]]]] = [[] for _ in texts]
    waiting, left_out = list(range(len(texts))), 0
    for first in range(len(examples) + 1):
        before = "".join(f"{example}\n\n" for example in examples[first:])
        wanted = [[before + texts[at][0] + rest for rest in ("", *texts[at][1:])] for at in waiting]
        encoded = iter(vocabulary.encode_batch([text for of_one in wanted for text in of_one]))
        too_long = []
        for at, of_one in zip(waiting, wanted, strict=True):
            asked, *wholes = [next(encoded) for _ in of_one]
            # As lm_eval: the continuation is what the whole has beyond the tokens of the prompt.
            found[at] = [(len(asked), whole) for whole in wholes or [asked]]
            if max(len(whole) for _, whole in found[at]) > room:
                too_long.append(at)
        waiting = too_long
        left_out += len(waiting) if first < len(examples) else 0
    for at in waiting:
        # The same for all options, so that they are asked about behind the same words.
        kept = max(1, room - max(len(whole) - begin for begin, whole in found[at]))
        found[at] = [
            (min(begin, kept), whole[max(0, begin - kept) :]) for begin, whole in found[at]
        ]
    return found, {"shots": len(examples), "left_out": left_out, "cut": len(waiting)}


def _right(item: Item, form: str) -> str:
    if form == GENERATED:
        return f" {item.answer}"
    assert item.label is not None
    return options(item, form)[item.label]


def _bytes(items: Sequence[Item], width: int) -> np.ndarray:
    """UTF-8 bytes of each option, float64 [items, width]; 1 where there is none."""
    sizes = np.ones((len(items), width))
    for row, item in zip(sizes, items, strict=True):
        row[: len(item.options)] = [len(option.encode()) for option in item.options]
    return sizes


def _answers(
    split: Split,
    form: str,
    scores: np.ndarray | None,
    texts: tuple[str, ...] | None,
    checkpoint: dict[str, Any],
    shots: Shots,
) -> Answers:
    return Answers(split, shots.said(form), scores, texts, checkpoint, shots.seed)
