"""A fine-tuned model answers the items of a split, rows of like length together."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float

from biomedlm_jax import step
from biomedlm_jax.benchmarks.batches import filled
from biomedlm_jax.benchmarks.item import Split
from biomedlm_jax.benchmarks.prompts import Form
from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import UserError
from biomedlm_jax.layout import BATCH

ROWS = 8  # of a device at a time


class Exam:
    """exam(params) gives what `params` say to each item.

    Of a head, float64 scores [items, options], whose softmax is what the model takes for likely;
    of generation and next_token the negative log-likelihood of the right text, nats [items, 1].

    Attributes:
      batches: that go through the model.
      learned: tokens of each item that generation and next_token learn, int [items].

    Raises:
      UserError: see `Form.rows`; or items with another number of classes than the head.
    """

    def __init__(self, experiment: Experiment, mesh: Mesh, form: Form, split: Split) -> None:
        self.split, self._form, self._classes = split, form, experiment.model.classes
        other = [x for x in split.items if self._classes > 1 and len(x.options) != self._classes]
        if other:
            raise UserError(
                f"{split.benchmark} has items with {len(other[0].options)} classes, such as "
                f"{other[0].id}, and the model has a head for {self._classes}"
            )
        rows = form.rows(split.items, split.kind)
        self._rows = [row for mine in rows for row in mine]
        self.learned = np.array([len(mine[0].tokens) - mine[0].learned for mine in rows])
        self._of = np.repeat(np.arange(len(rows)), [len(mine) for mine in rows])
        self._at_once = ROWS * int(np.prod([mesh.shape[axis] for axis in BATCH]))
        # The longest first, so that what does not fit in memory does not fit at once.
        self._order = sorted(range(len(self._rows)), key=lambda i: -len(self._rows[i].tokens))
        self.batches = -(-len(self._rows) // self._at_once)
        data = dataclasses.replace(experiment.data, batch=self._at_once)
        asked = dataclasses.replace(experiment, data=data)
        self._wide = NamedSharding(mesh, step.BATCH_SPEC)
        self._flat = NamedSharding(mesh, step.ITEM_SPEC)
        if self._classes:
            self._ask = step.scores(asked, mesh)
        else:
            self._ask = step.eval_step(asked, mesh, groups=self._at_once)

    def __call__(
        self, params: dict, each: Callable[[], object] = lambda: None
    ) -> Float[np.ndarray, "N K"]:
        """each: called after every batch; may raise to give the rest up."""
        found = np.zeros((len(self._rows), max(self._classes, 1)))
        for first in range(0, len(self._order), self._at_once):
            chosen = self._order[first : first + self._at_once]
            rows = [self._rows[i] for i in chosen]
            found[chosen] = self._answers(params, rows + rows[:1] * (self._at_once - len(rows)))[
                : len(chosen)
            ]
            each()
        if self._classes > 1 or self._form.objective != "multiple_choice":
            return found
        counts = np.bincount(self._of)
        out = np.full((len(self.split.items), int(counts.max())), -np.inf)
        out[self._of, np.concatenate([np.arange(count) for count in counts])] = found[:, 0]
        return out

    def _answers(self, params: dict, rows: list) -> np.ndarray:
        tokens, ends, learned = filled(rows, self._form)
        if self._classes:
            found = self._ask(params, self._put(tokens, self._wide), self._put(ends, self._flat))
            return np.asarray(found, np.float64)
        group = np.where(learned[:, 1:], np.arange(len(rows))[:, None], -1).astype(np.int32)
        places = self._put(tokens, self._wide), None, self._put(group, self._wide)
        return np.asarray(self._ask(params, *places), np.float64)[:, None]

    @staticmethod
    def _put(whole: np.ndarray, place: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(whole.shape, place, lambda at: whole[at])


def summary(scores: Float[np.ndarray, "N K"], exam: Exam) -> dict[str, float]:
    """held_out_loss in the unit of the training loss, nats per learned token, or per item of a
    choice, and of choices accuracy."""
    if scores.shape[1] == 1:
        return {"held_out_loss": float(scores.sum() / exam.learned.sum())}
    labels = np.array([item.label for item in exam.split.items])
    logits = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    nats = -logits[np.arange(len(labels)), labels]
    accuracy = float((scores.argmax(1) == labels).mean())
    return {"held_out_loss": float(nats.mean()), "accuracy": accuracy}
