"""What a run learns from, and what it is scored on meanwhile: a token store in pre-training, the
items of benchmarks in fine-tuning. `train.fit` asks both the same things."""

from collections.abc import Callable, Generator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from etils import epath
from jax.sharding import Mesh, NamedSharding

from biomedlm_jax import start, step
from biomedlm_jax.benchmarks import read
from biomedlm_jax.benchmarks.apart import check_apart
from biomedlm_jax.benchmarks.batches import Questions
from biomedlm_jax.benchmarks.exam import Exam, summary
from biomedlm_jax.benchmarks.prompts import SPECIAL, Form
from biomedlm_jax.claim import Identity
from biomedlm_jax.config import Experiment
from biomedlm_jax.continuations import continuations
from biomedlm_jax.entry import UserError
from biomedlm_jax.held_out import TOTAL, Evaluator
from biomedlm_jax.pipeline.loader import Loader
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.pipeline.vocabulary import Vocabulary

Each = Callable[[], object]


class Tokens:
    """Of a store.

    Attributes:
      identity: by which a run knows what it began with.
      vocabulary: of the model that learns from it. said: what to do where it is another's.
      size: in words.
    """

    def __init__(self, experiment: Experiment, mesh: Mesh) -> None:
        data, run = experiment.data, experiment.run
        self.identity: Identity = TokenStore(data.store, "train")
        self.vocabulary = Vocabulary(self.identity.vocabulary_path)
        self.said = (
            f"config.data.store={data.store}; write the store again with `python -m data.tokenize "
            "--vocabulary` and the vocabulary of config.start"
        )
        self._loader = Loader(
            self.identity,
            batch=data.batch,
            length=experiment.model.context,
            separators=data.separators,
            segment_ids=data.segment_ids,
            seed=run.seed,
            sharding=NamedSharding(mesh, step.BATCH_SPEC),
        )
        self.size = f"{self._loader.blocks:,} blocks of {experiment.model.context} tokens"
        self.documents = self._loader.documents
        self._experiment, self._mesh = experiment, mesh
        self._held_out = TokenStore(data.store, "heldout") if run.eval_every else None
        self._evaluate = None
        if self._held_out:
            self._evaluate = Evaluator(experiment, mesh, self._held_out, run.eval_batches)

    def coming(self, first: int, last: int) -> Generator[Future[Any], None, None]:
        """Batches first, ..., last - 1, each perhaps still being read."""
        return self._loader.coming(first, last)

    @property
    def scores(self) -> bool:
        """Whether there is something to score a model on."""
        return self._evaluate is not None

    def score(self, params: dict, each: Each) -> tuple[dict[str, float], str]:
        """Numbers by name, and in words. each: called after every batch; may raise."""
        assert self._evaluate is not None
        found = self._evaluate(params, each)
        total = found[TOTAL]
        bits = {f"bits_per_byte/{part}".rstrip("/"): x.bits_per_byte for part, x in found.items()}
        return {"held_out_loss": total.loss, **bits}, f"held out: {total}"

    def samples(self, params: dict) -> list[dict[str, str]]:
        """What the model writes."""
        assert self._held_out is not None
        return continuations(self._experiment, self._mesh, params, self._held_out)


class Items:
    """Of benchmarks; see `Tokens`."""

    def __init__(self, experiment: Experiment, mesh: Mesh, workdir: epath.Path) -> None:
        task, model = experiment.task, experiment.model
        assert task is not None
        self.vocabulary, self._base = _vocabulary(experiment, workdir)
        self.said = "config.task.vocabulary; leave that empty for the one of config.start"
        form = Form(task.objective, self.vocabulary, task.length)
        if model.vocab != form.size:
            added = ", ".join(SPECIAL[task.objective]) or "none"
            raise UserError(
                f"config.model.vocab={model.vocab}, but {self.vocabulary.path} has "
                f"{self.vocabulary.size} tokens, and config.task.objective={task.objective!r} adds "
                f"{added}: set it to {form.size}"
            )
        folder, fold = Path(task.benchmarks), None if task.fold < 0 else task.fold
        taken: Any = dict(fold=fold, other_version=task.other_version)
        learned = read.read_many(task.train, folder, "train", **taken)
        self.identity: Identity = (questions := Questions(experiment, mesh, form, learned))
        self._questions, self.documents = questions, questions.documents
        self.size = f"{len(questions.items):,} items, {questions.epoch:,} batches an epoch"
        self._exam = None
        if task.dev and experiment.run.eval_every:
            dev = read.read(task.dev, folder, "dev", **taken)
            check_apart(learned, dev)
            self._exam = Exam(experiment, mesh, form, dev)

    def coming(self, first: int, last: int) -> Generator[Future[Any], None, None]:
        return self._questions.coming(first, last)

    @property
    def scores(self) -> bool:
        return self._exam is not None

    def score(self, params: dict, each: Each) -> tuple[dict[str, float], str]:
        assert self._exam is not None
        found = summary(self._exam(params, each), self._exam)
        words = ", ".join(f"{name.removeprefix('held_out_')} {x:.4f}" for name, x in found.items())
        return found, f"{self._exam.split.benchmark} {self._exam.split.name}: {words}"

    def samples(self, params: dict) -> list[dict[str, str]]:
        return []


def of(experiment: Experiment, mesh: Mesh, workdir: epath.Path) -> Tokens | Items:
    """What this experiment learns from.

    Raises:
      UserError: it is not there, or does not fit the settings.
    """
    if experiment.task is None:
        return Tokens(experiment, mesh)
    return Items(experiment, mesh, workdir)


def _vocabulary(
    experiment: Experiment, workdir: epath.Path
) -> tuple[Vocabulary, start.Source | None]:
    """The base's: what the run has kept of it, else that of config.start, which may be a file that
    is there for as long as the source is."""
    task = experiment.task
    assert task is not None
    if task.vocabulary:
        return Vocabulary(epath.Path(task.vocabulary)), None
    if (workdir / "config.json").is_file():  # the last that a run's folder gets
        return Vocabulary(workdir / "vocabulary"), None
    if not experiment.start:
        raise UserError(
            "config.task.vocabulary is empty, and so is config.start, whose vocabulary it would "
            "be; name one of them"
        )
    source = start.find(experiment.start)
    return start.own_vocabulary(source), source
