"""Runs that were fine-tuned, as they are on a disk, without a step of training: random weights."""

import contextlib
import dataclasses
from pathlib import Path

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from biomedlm_jax import step
from biomedlm_jax.benchmarks.item import Item, Split
from biomedlm_jax.benchmarks.prompts import SPECIAL, Form
from biomedlm_jax.checkpoint import Checkpoints
from biomedlm_jax.config import Experiment
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from tests.conftest import fine_tuning, on

CLASSES = ("maybe", "no", "yes")
TRAIN = {"multiple_choice": "medqa", "classification": "pubmedqa", "generation": "meqsum"}


@dataclasses.dataclass(frozen=True)
class Known:
    """As `benchmarks.batches.Questions` says what a run learns from."""

    vocab_size: int
    vocabulary_path: epath.Path
    vocabulary_sha256: str
    setting: str = "config.task.benchmarks"
    sha256: str = "0"


def experiment_of(objective: str, vocabulary: Path, *, model: dict | None = None, **task):
    """The smallest, with a vocabulary of its own."""
    size = Vocabulary(vocabulary).size + len(SPECIAL[objective])
    settings = dict(vocab=size, context=64, dropout=0.0, init_std=0.3)
    task = dict(train=TRAIN.get(objective, "medqa"), length=48) | task
    return fine_tuning(objective, model=settings | (model or {}), **task)


def drawn(experiment: Experiment, seed: int = 0) -> dict:
    """Parameters of the run, none of them a round number; rows of padding zero."""
    model, draw = experiment.model, np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: step.init(experiment)).params
    params = jax.tree.map(lambda x: 0.3 * draw.normal(size=x.shape).astype(np.float32), shapes)
    params["tokens"]["table"][model.vocab :] = 0
    return params


def saved(
    experiment: Experiment, vocabulary: Path, workdir: Path, weights: dict | None = None
) -> dict:
    """A run in `workdir` with a save of step 1, written on four devices; its parameters."""
    opened, params = Vocabulary(vocabulary), drawn(experiment)
    known = Known(experiment.model.vocab, epath.Path(opened.path), opened.sha256)
    experiment, mesh = on(experiment, 1, 2, 2)
    shapes = jax.eval_shape(lambda: step.init(experiment))
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    average = None if state.average is None else params
    state = dataclasses.replace(state, step=np.int32(1), params=params, average=average)  # pyright: ignore
    state = jax.device_put(state, step.state_shardings(experiment, mesh))
    with contextlib.closing(Checkpoints(workdir, experiment, known, weights)) as kept:
        kept.save(state, 1)
    return params


def items(objective: str) -> Split:
    """Three questions, the last with more text than a row has room for."""
    texts = ["Kari to melsin?", "Dorpa lu [SEP] kari", "to mel sin dor pa lu ka ri " * 6]
    options = {"multiple_choice": ("melsin", "dorpa lu", "kari. ri"), "classification": CLASSES}
    found = tuple(
        Item(
            str(number),
            text.replace("[SEP] ", ""),
            options.get(objective, ()),
            number if objective in options else None,
            context=f"Sindor {text[::-1]} lu".replace("]PES[", ""),
            answer="" if objective in options else "melsin dor.",
        )
        for number, text in enumerate(texts)
    )
    kind = objective if objective in options else "generation"
    return Split(TRAIN[objective], "dev", kind, found, {}, {})  # pyright: ignore


def form(experiment: Experiment, vocabulary: Path) -> Form:
    assert experiment.task is not None
    return Form(experiment.task.objective, Vocabulary(vocabulary), experiment.task.length)


def flat(tree: dict) -> dict[str, np.ndarray]:
    return traverse_util.flatten_dict(jax.device_get(tree), sep="/")  # pyright: ignore


def lora(experiment: Experiment, rank: int = 4) -> Experiment:
    model = dataclasses.replace(experiment.model, lora_rank=rank, lora_alpha=2.0 * rank)
    return dataclasses.replace(experiment, model=model)


def names_of(tree: dict) -> list[str]:
    return list(traverse_util.flatten_dict(tree, sep="/"))  # pyright: ignore
