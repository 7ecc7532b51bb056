"""Items as tokens: the prompts of fine-tuning, as the authors' code made them [1].

    multiple_choice   question [SEP]  option [SEP]                                one row an option
    classification    <|CONTEXT|> context <|QUESTION|> question <|ANSWER|>        one row
    generation        question <|startoftext|> answer <|endoftext|>               one row
    next_token        the text of `plain` with its answer <|endoftext|>           one row

Nothing else stands between the parts, but for a space before an option. A head reads the last token
of a row; generation learns what follows <|startoftext|>, next_token every token but the first.

The tokens in brackets are new: their ids follow those of the vocabulary, in the order of `SPECIAL`,
so they take rows of the embedding that are padding otherwise. A text that spells one of them stays
text. Rows are cut as Hugging Face's tokenizers cut pairs ("longest first"): the longer part loses
its end until both fit, or both lose theirs where each is longer than half. So a long question loses
its [SEP], as it did there.

[1] stanford-crfm/BioMedLM: finetune/mc/run_multiple_choice.py, textgen/gpt2/sum_dataset.py;
    classification as for the 2.7B model, stanford-crfm/mistral: seqcls/run_seqcls_gpt.py of
    2022-11-20
"""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int32

from biomedlm_jax.benchmarks.item import Item, Kind
from biomedlm_jax.benchmarks.plain import plain
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.vocabulary import Vocabulary

Objective = Literal["multiple_choice", "classification", "generation", "next_token"]
PAD, CLS, SEP, START = "[PAD]", "[CLS]", "[SEP]", "<|startoftext|>"
CONTEXT, QUESTION, ANSWER = "<|CONTEXT|>", "<|QUESTION|>", "<|ANSWER|>"
SPECIAL: dict[Objective, tuple[str, ...]] = {
    "multiple_choice": (PAD, CLS, SEP),
    "classification": (PAD, CONTEXT, QUESTION, ANSWER),
    "generation": (PAD, START),
    "next_token": (),
}


class Row(NamedTuple):
    """tokens of a row; `learned`: where those begin that are learned by generation."""

    tokens: Int32[np.ndarray, "T"]
    learned: int


@dataclasses.dataclass(frozen=True)
class Form:
    """How items become rows. length: tokens of a row at most."""

    objective: Objective
    vocabulary: Vocabulary
    length: int

    @property
    def size(self) -> int:
        """Tokens that there are, the new ones with them."""
        return self.vocabulary.size + len(SPECIAL[self.objective])

    @property
    def pad(self) -> int:
        special = SPECIAL[self.objective]
        return self.id(PAD) if PAD in special else self.vocabulary.eos_id

    @property
    def longest_answer(self) -> int:
        """Of generation, tokens with the end of text; a question has as much room."""
        return self.length // 2

    def id(self, special: str) -> int:
        return self.vocabulary.size + SPECIAL[self.objective].index(special)

    def rows(self, items: tuple[Item, ...], kind: Kind) -> list[list[Row]]:
        """Of each item, one row or one for each of its options.

        Raises:
          UserError: an item has nothing to ask, or nothing that could be answered.
        """
        for item in items:
            self._check(item)
        texts = [self._texts(item, kind) for item in items]
        encoded = iter(self.vocabulary.encode_batch([text for parts in texts for text in parts]))
        return [self._of([next(encoded) for _ in parts]) for parts in texts]

    def _check(self, item: Item) -> None:
        wanted = {
            "multiple_choice": len(item.options) > 1,
            "classification": bool(item.context) and len(item.options) > 1,
            "generation": bool(item.answer),
            "next_token": bool(item.answer) or item.label is not None,
        }
        if not item.question.strip() or not wanted[self.objective]:
            raise UserError(
                f"item {item.id} has no question, or no "
                f"{'context' if self.objective == 'classification' else 'answer'} that "
                f"config.task.objective={self.objective!r} could learn; take another objective or "
                "benchmark"
            )

    def _texts(self, item: Item, kind: Kind) -> list[str]:
        if self.objective == "multiple_choice":
            return [item.question, *(f" {option}" for option in item.options)]
        if self.objective == "classification":
            return [item.context, item.question]
        if self.objective == "generation":
            return [item.question, item.answer]
        return ["".join(plain(item, kind))]

    def _of(self, ids: list[list[int]]) -> list[Row]:
        if self.objective == "multiple_choice":
            question, *options = ids
            sep = [self.id(SEP)]
            return [self._pair([*question, *sep], [*option, *sep]) for option in options]
        if self.objective == "classification":
            context, question = ids
            second = [self.id(QUESTION), *question, self.id(ANSWER)]
            return [self._pair([self.id(CONTEXT), *context], second)]
        if self.objective == "generation":
            half = self.longest_answer - 1  # 510 each of 1,022
            source = [*ids[0][:half], self.id(START)]
            target = [*ids[1][:half], self.vocabulary.eos_id]
            return [Row(np.array(source + target, np.int32), len(source))]
        text = [*ids[0], self.vocabulary.eos_id][: self.length]
        return [Row(np.array(text, np.int32), 1)]

    def _pair(self, first: list[int], second: list[int]) -> Row:
        a, b = longest_first(len(first), len(second), self.length)
        return Row(np.array(first[:a] + second[:b], np.int32), 0)


def longest_first(first: int, second: int, length: int) -> tuple[int, int]:
    """How much of two sequences stays where both are to have `length` tokens together
    (`truncate_encodings` of huggingface/tokenizers)."""
    if first + second <= length:
        return first, second
    short, long = sorted((first, second))
    long = max(short, length - short)
    if short + long > length:
        short, long = length // 2, length - length // 2
    return (short, long) if first <= second else (long, short)
