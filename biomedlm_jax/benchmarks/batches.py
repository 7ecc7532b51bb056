"""Batches of questions on the mesh: which items make batch k is a function of (seed, k) alone.

An epoch has every item once, in an order of its own. Its last batch may be short, and is filled
with rows that count nothing then, so a mean is over the items that are there (as in PyTorch's
loader without drop_last). Rows are as wide as the longest of the batch asks, in steps of WIDTH, for
each width is a program; what stands behind a row's last token is seen by nobody.
"""

from collections.abc import Generator
from concurrent.futures import Future

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding

from biomedlm_jax.benchmarks.item import Split
from biomedlm_jax.benchmarks.prompts import Form, Row
from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.loader import ahead, shuffled
from biomedlm_jax.step import Batch, batch_specs

WIDTH = 128  # of a row, a tile of a TPU's kernels


class Questions:
    """The items that a run learns.

    Attributes:
      vocab_size, vocabulary_sha256, vocabulary_path, sha256, setting: as a `TokenStore` has them,
        by which a run knows what it began with.
      epoch: batches in one.

    Raises:
      UserError: items without a label, or with another number of options than the model's head.
    """

    def __init__(self, experiment: Experiment, mesh: Mesh, form: Form, split: Split) -> None:
        task = experiment.task
        assert task is not None
        self.items = split.items[: task.items or None]
        if not self.items:
            raise UserError(f"config.task.train={task.train!r} has no item")
        self.options = len(self.items[0].options)
        self._check(experiment)
        self.vocab_size = form.size
        self.vocabulary_path = epath.Path(form.vocabulary.path)
        self.vocabulary_sha256, self.sha256 = form.vocabulary.sha256, split.sha256
        self.setting = f"config.task.benchmarks={task.benchmarks}"
        self._form, self._task, self._seed = form, task, experiment.run.seed
        self._rows = form.rows(self.items, split.kind)
        self._batch = experiment.data.batch
        specs = batch_specs(experiment)
        self._places = Batch(*(NamedSharding(mesh, spec) for spec in specs))  # pyright: ignore
        self.epoch = -(-len(self.items) // self._batch)

    def _check(self, experiment: Experiment) -> None:
        task, classes = self._name(experiment), experiment.model.classes
        unlabelled = [item.id for item in self.items if classes and item.label is None]
        uneven = [item.id for item in self.items if len(item.options) != self.options]
        if unlabelled or (classes and uneven):
            wrong, ids = ("no label", unlabelled) if unlabelled else ("other options", uneven)
            raise UserError(
                f"{task} has {len(ids)} items with {wrong}, the first of them {ids[0]}; a model is "
                "trained on items with a label and equally many options"
            )
        if classes > 1 and classes != self.options:
            raise UserError(
                f"config.model.classes={classes}, but {task} has {self.options}: "
                f"{', '.join(self.items[0].options)}"
            )

    @staticmethod
    def _name(experiment: Experiment) -> str:
        assert experiment.task is not None
        return f"config.task.train={experiment.task.train!r}"

    def chosen(self, step: int) -> np.ndarray:
        """The items of batch `step`, fewer than config.data.batch at the end of an epoch."""
        epoch, part = divmod(step, self.epoch)
        index = np.arange(part * self._batch, min((part + 1) * self._batch, len(self.items)))
        return shuffled(index, len(self.items), seed=self._seed, epoch=epoch)

    def documents(self, step: int) -> list[str]:
        """The ids of the items of batch `step`."""
        return [self.items[number].id for number in self.chosen(step)]

    def batch(self, step: int) -> Batch:
        """Batch `step`, of which each host puts its rows on its devices."""
        chosen, epoch = self.chosen(step), step // self.epoch
        rows, labels = list[Row](), np.zeros(self._batch, np.int32)
        for place, number in enumerate(chosen.tolist()):
            mine, label = self._rows[number], self.items[number].label
            if self._task.shuffle_options:
                key = self._seed + 7919 * number  # another order for each item
                order = shuffled(np.arange(len(mine)), len(mine), seed=key, epoch=epoch)
                mine, label = [mine[i] for i in order], int(np.flatnonzero(order == label)[0])
            rows += mine
            labels[place] = label or 0
        each = len(rows) // len(chosen)
        filling = (self._batch - len(chosen)) * each
        tokens, ends, learned = filled(rows + rows[:1] * filling, self._form)
        real = np.arange(self._batch) < len(chosen)
        if self._task.objective in ("multiple_choice", "classification"):
            return self._put(Batch(tokens, None, real, ends, labels))  # pyright: ignore
        return self._put(Batch(tokens, None, learned & real[:, None]))  # pyright: ignore

    def coming(self, first: int, last: int) -> Generator[Future[Batch], None, None]:
        """Batches first, ..., last - 1, each perhaps still being made."""
        return ahead(self.batch, first, last)

    def _put(self, batch: Batch) -> Batch:
        def on_mesh(part: np.ndarray, place: NamedSharding) -> jax.Array:
            return jax.make_array_from_callback(part.shape, place, lambda at: part[at])

        found = zip(batch, self._places, strict=True)
        return Batch(*(None if part is None else on_mesh(part, at) for part, at in found))  # pyright: ignore


def filled(rows: list[Row], form: Form) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens [R, T] filled up with `form.pad`, where each row ends [R], which tokens `learned`
    counts [R, T])."""
    width = min(-(-max(len(row.tokens) for row in rows) // WIDTH) * WIDTH, form.length)
    tokens = np.full((len(rows), width), form.pad, np.int32)
    learned = np.zeros(tokens.shape, bool)
    for number, row in enumerate(rows):
        tokens[number, : len(row.tokens)] = row.tokens
        learned[number, row.learned : len(row.tokens)] = True
    ends = np.array([len(row.tokens) - 1 for row in rows], np.int32)
    return tokens, ends, learned
