"""A checkpoint that is asked: what it is, in which forms it can answer, and its answers.

What was fine-tuned with a head answers by it ("classifier"), what was fine-tuned to write writes
after its own prompt ("generator"). Everything else answers in the forms of `ask.py`.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath
from jax.sharding import Mesh

from biomedlm_jax import ask, start
from biomedlm_jax import mesh as meshes
from biomedlm_jax.benchmarks.exam import Exam
from biomedlm_jax.benchmarks.item import Split
from biomedlm_jax.benchmarks.prompts import Form, Objective
from biomedlm_jax.benchmarks.read import BENCHMARKS
from biomedlm_jax.entry import UserError
from biomedlm_jax.generate import Engine
from biomedlm_jax.generation.slots import groups, without_context
from biomedlm_jax.likelihood import LogLikelihood
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from biomedlm_jax.scoring.answers import Answers

CLASSIFIER, GENERATOR = "classifier", "generator"
RESULTS = "results.json"  # of `finetune`
MADE_BY = ("vocabulary_sha256", "model", "length")  # what answers depend on besides the weights
SLOTS = 16  # texts of a group of devices at once
Each = Callable[[int], object]


class Candidate:
    """A checkpoint on all devices that are here, from `load` to `unload`. step: of a run, the save
    that is meant.

    Attributes:
      objective: of the fine-tuning that gave it a head or tokens of its own; None where there was
        none.
      seed: of that.

    Raises:
      UserError: see `start.find`; or it has no vocabulary, or a head or tokens of which nothing
        says what they are for.
    """

    def __init__(self, place: str, step: int | None = None) -> None:
        source = start.find(place, step=step)
        if source.vocabulary is None:
            raise UserError(
                f"{place} has no vocabulary, so nothing can be asked; put the tokenizer.json that "
                "belongs to it there"
            )
        experiment = source.experiment
        self.source, self.vocabulary = source, Vocabulary(source.vocabulary)
        self.model = dataclasses.replace(source.model, attention="auto", remat="none")
        self.task = experiment.task if experiment else None
        self.objective: Objective | None = None
        self.seed: int | None = None
        self._likelihood = self._engine = None
        if source.model.classes or source.special:
            if experiment is None or self.task is None:
                what = "a head of classes" if source.model.classes else ", ".join(source.special)
                raise UserError(
                    f"{place} has {what} and no settings of the fine-tuning; name the --workdir of "
                    "the run"
                )
            self.objective, self.seed = self.task.objective, experiment.run.seed

    def load(self) -> None:
        self.mesh: Mesh = meshes.everywhere(self.model)
        self.params = start.params(self.source, self.mesh)
        self.checkpoint = _known(self.source, self.params, self.vocabulary)

    def unload(self) -> None:
        """Frees its memory."""
        self._likelihood = self._engine = None
        self.params = {}

    def fold(self, benchmark: str) -> int | None:
        """Of a benchmark, the one that it was fine-tuned on: what is dev in another it has seen."""
        task = self.task
        if task is None or task.fold < 0 or BENCHMARKS[benchmark].folds < 2:
            return None
        return task.fold if benchmark in task.train.split("+") else None

    def forms(self, split: Split, wanted: Sequence[str] = ()) -> tuple[str, ...]:
        """Those of `wanted` that fit a split; all that fit where none is named."""
        if self.objective is None:
            fitting = ask.FORMS[split.kind]
        elif split.kind != self.objective:
            fitting = ()
        else:
            fitting = (GENERATOR if split.kind == "generation" else CLASSIFIER,)
        return tuple(form for form in fitting if form in wanted) if wanted else fitting

    def check(self, split: Split, forms: Sequence[str], max_tokens: int) -> None:
        """Raises UserError where `answers` could not."""
        classes, context = self.model.classes, self.model.context
        if CLASSIFIER in forms and classes > 1 and len(split.items[0].options) != classes:
            raise UserError(
                f"{split.benchmark} has {len(split.items[0].options)} classes, and "
                f"{self.source.place} a head for {classes}; leave it out of config.splits"
            )
        if ask.GENERATED in forms and max_tokens >= context:
            raise UserError(
                f"config.max_tokens={max_tokens} leaves nothing of the {context} tokens of "
                f"{self.source.place} for a question; say less"
            )

    def answers(
        self, split: Split, forms: Sequence[str], shots: ask.Shots, max_tokens: int, each: Each
    ) -> list[Answers]:
        """To all items of a split, in each of the `forms` that fit.

        each: called after every batch with how much of `work` is done.
        """
        if CLASSIFIER in forms:
            return [self._by_head(split, each)]
        if split.kind == "generation":
            return [self._by_writing(split, shots, max_tokens, each)]
        if self._likelihood is None:
            self._likelihood = LogLikelihood(self.model, self.params, self.mesh)
        return ask.scored(
            split, forms, self._likelihood, self.vocabulary, self.checkpoint, shots, each
        )

    def _by_head(self, split: Split, each: Each) -> Answers:
        assert self.source.experiment is not None
        # Of a run with adapters, which are in the kernels by now.
        experiment = dataclasses.replace(self.source.experiment, model=self.model)
        exam = Exam(experiment, self.mesh, self._form, split)
        rows, batches = work(split, (CLASSIFIER,)), exam.batches
        done = iter(range(1, batches + 1))

        def batch() -> None:
            number = next(done)
            each(rows * number // batches - rows * (number - 1) // batches)

        scores = exam(self.params, batch)
        return Answers(split, CLASSIFIER, scores, None, self.checkpoint, self.seed)

    def _by_writing(self, split: Split, shots: ask.Shots, max_tokens: int, each: Each) -> Answers:
        if self._engine is None:
            slots = SLOTS * groups(without_context(self.mesh))
            self._engine = Engine(
                self.model,
                self.params,
                self.vocabulary,
                self.mesh,
                slots=slots,
                of_prompts=len(self.source.special),
            )
        if self.objective is None:
            return ask.written(split, self._engine, self.checkpoint, shots, max_tokens, each)
        texts, how = ask.taught(split, self._engine, self._form, each)
        checkpoint = self.checkpoint | {"asked": how}
        return Answers(split, GENERATOR, None, texts, checkpoint, self.seed)

    @property
    def _form(self) -> Form:
        assert self.task is not None
        return Form(self.task.objective, self.vocabulary, self.task.length)


def candidates(place: str) -> list[Candidate]:
    """Of the --workdir of `finetune`, each seed with the save that was taken; else what `place`
    is.

    Raises:
      UserError: `finetune` is not done, or its results are damaged.
    """
    results = epath.Path(place) / RESULTS
    if not results.is_file():
        if not (results.parent / "config.json").exists() and [*results.parent.glob("seed_*")]:
            raise UserError(
                f"{place} has runs of several seeds and no {RESULTS}, so which saves are meant is "
                "not decided yet; run `biomedlm_jax.finetune` to its end, or name one of the runs"
            )
        return [Candidate(place)]
    try:
        found = json.loads(results.read_text())["saves"].items()
        saves = {int(seed): int(step) for seed, step in found}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{results} is damaged: {error!r}; run `biomedlm_jax.finetune` again, which keeps what "
            "is done"
        ) from error
    return [Candidate(str(results.parent / f"seed_{seed}"), step) for seed, step in saves.items()]


def work(split: Split, forms: Sequence[str]) -> int:
    """What there is to do for a split: texts to write, or options to judge, twice where letters and
    texts are asked about."""
    if split.kind == "generation":
        return len(split.items) * len(forms)
    times = len({ask.TEXT if form == ask.PER_BYTE else form for form in forms})
    return times * sum(len(item.options) for item in split.items)


def _known(source: start.Source, params: dict, vocabulary: Vocabulary) -> dict[str, Any]:
    """What a record says of a checkpoint."""
    weights = start.weights(source, params)
    known = {"place": str(source.place), "sha256": weights["sha256"], "what": source.what}
    known |= {"parameters": source.model.parameters, "vocabulary_sha256": vocabulary.sha256}
    known["model"] = start.function(source.model) | {"compute_dtype": source.model.compute_dtype}
    task = source.experiment.task if source.experiment else None
    known["length"] = task.length if task else None
    return known if source.step is None else known | {"step": source.step}
