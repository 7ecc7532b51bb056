"""A checkpoint answers benchmarks, and the answers are scored beside published numbers:

    python -m biomedlm_jax.evaluate --checkpoint=DIR --benchmarks=QA --tasks=medqa,pubmedqa \\
      --split=test --output=SCORES

DIR is the --workdir of a run, what `hf.load` wrote, or a Hugging Face folder; QA has the owners'
files. What was fine-tuned with a head of classes answers by it. Everything else answers in the
forms of `ask.py` that fit, or those of --forms, after --shots examples. SCORES gets the answers,
table.md and report.html, see `scoring/`; a second call adds to it. With --store, the token store
that the model was trained on, items are told apart that it gives away.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from biomedlm_jax import ask, entry, start
from biomedlm_jax import mesh as meshes
from biomedlm_jax.benchmarks.exam import Exam
from biomedlm_jax.benchmarks.item import Split
from biomedlm_jax.benchmarks.prompts import Form
from biomedlm_jax.benchmarks.read import BENCHMARKS, read
from biomedlm_jax.entry import UserError
from biomedlm_jax.generate import Engine
from biomedlm_jax.generation.slots import groups, without_context
from biomedlm_jax.likelihood import LogLikelihood
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from biomedlm_jax.scoring import contamination, folder, page
from biomedlm_jax.scoring.answers import Answers
from biomedlm_jax.start import Source

CLASSIFIER = "classifier"
SLOTS = 16  # texts of a group of devices at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """tasks: of `read.BENCHMARKS`. forms: of `ask.FORMS`; none is all that fit. shots: examples of
    the train split, drawn by `seed`. max_tokens: of a text, None where none is to be written.
    limit: of items, the first so many; None is all. other_version: see `read.read`."""

    benchmarks: str
    tasks: tuple[str, ...]
    split: str
    forms: tuple[str, ...]
    shots: int
    seed: int
    max_tokens: int | None
    limit: int | None
    other_version: bool


class Candidate:
    """A checkpoint on all devices that are here, from when `load` was called. step: of a run, the
    save that is meant.

    Raises:
      UserError: see `start.find`; or it has no vocabulary, or was fine-tuned to write after tokens
        that are no text.
    """

    def __init__(self, place: str, step: int | None = None) -> None:
        source = start.find(place, step=step)
        if source.vocabulary is None:
            raise UserError(
                f"{place} has no vocabulary, so nothing can be asked; put the tokenizer.json that "
                "belongs to it there"
            )
        self.task = source.experiment.task if source.experiment else None
        if source.special and not source.model.classes:
            raise UserError(
                f"{place} was fine-tuned to write after {', '.join(source.special)}, which are no "
                "text; this scores models with a head of classes, and those that learnt text alone"
            )
        self.source, self.vocabulary = source, Vocabulary(source.vocabulary)
        self._likelihood = self._engine = None

    def load(self) -> None:
        self.mesh: Mesh = meshes.everywhere(self.source.model)
        self.params = start.params(self.source, self.mesh)
        self.checkpoint = _known(self.source, self.params)

    def fold(self, benchmark: str) -> int | None:
        """Of a benchmark, the one that it was fine-tuned on: what is dev in another it has seen."""
        task = self.task
        if task is None or task.fold < 0 or BENCHMARKS[benchmark].folds < 2:
            return None
        return task.fold if benchmark in task.train.split("+") else None

    @property
    def seed(self) -> int | None:
        """Of the fine-tuning, where it has a head."""
        experiment = self.source.experiment
        return experiment.run.seed if experiment and self.has_head else None

    @property
    def has_head(self) -> bool:
        return self.source.model.classes > 0

    def forms(self, split: Split, wanted: Sequence[str]) -> tuple[str, ...]:
        """Those of `wanted` that fit; all that fit where none is named. A model with a head has
        its own alone."""
        fitting = (CLASSIFIER,) if self.has_head else ask.FORMS[split.kind]
        return tuple(form for form in fitting if form in wanted) if wanted else fitting

    def by_head(self, split: Split) -> list[Answers]:
        assert self.source.experiment is not None
        assert self.task is not None
        # Of a run with adapters, which are in the kernels by now.
        experiment = dataclasses.replace(self.source.experiment, model=self.source.model)
        form = Form(self.task.objective, self.vocabulary, self.task.length)
        exam = Exam(experiment, self.mesh, form, split)
        with tqdm(total=exam.batches, desc=f"{split.benchmark} {split.name}", unit="batch") as bar:
            scores = exam(self.params, bar.update)
        return [Answers(split, CLASSIFIER, scores, None, self.checkpoint, self.seed)]

    def by_likelihood(self, split: Split, forms: Sequence[str], shots: ask.Shots) -> list[Answers]:
        if self._likelihood is None:
            self._likelihood = LogLikelihood(self.source.model, self.params, self.mesh)
        times = len({ask.TEXT if form == ask.PER_BYTE else form for form in forms})
        count = times * sum(len(item.options) for item in split.items)
        with tqdm(total=count, desc=f"{split.benchmark} {split.name}", unit="option") as bar:
            return ask.scored(
                split, forms, self._likelihood, self.vocabulary, self.checkpoint, shots, bar.update
            )

    def by_writing(self, split: Split, shots: ask.Shots, max_tokens: int) -> list[Answers]:
        if self._engine is None:
            slots = SLOTS * groups(without_context(self.mesh))
            self._engine = Engine(
                self.source.model, self.params, self.vocabulary, self.mesh, slots=slots
            )
        with tqdm(
            total=len(split.items), desc=f"{split.benchmark} {split.name}", unit="text"
        ) as bar:
            return [
                ask.written(split, self._engine, self.checkpoint, shots, max_tokens, bar.update)
            ]


def run(place: str, asked: Asked, output: epath.Path, store: str | None) -> list[epath.Path]:
    """Scores `place` into `output`, and returns what to look at. Everything that can be refused is
    refused before anything is asked.

    store: that it was trained on, for contamination.

    Raises:
      UserError: see `read.read`, `Candidate`, `ask.draw`, `folder.add`, `contamination.find`; or no
        form fits a benchmark.
    """
    if output.is_file():
        raise UserError(f"--output={output} is a file; name a folder")
    candidate = Candidate(place)
    folds = {name: candidate.fold(name) for name in asked.tasks if name in BENCHMARKS}
    splits = [
        _limited(_read(name, asked, asked.split, folds.get(name)), asked.limit)
        for name in asked.tasks
    ]
    for split in splits:
        _check(split, asked)
    shots = [
        _shots(name, split, asked, folds.get(name))
        for name, split in zip(asked.tasks, splits, strict=True)
    ]
    trained_on = TokenStore(store, "train") if store else None
    forms = [candidate.forms(split, asked.forms) for split in splits]
    for split, of_split in zip(splits, forms, strict=True):
        _check_forms(candidate, split, of_split, asked)
    candidate.load()
    for split, of_split, before in zip(splits, forms, shots, strict=True):
        _check_output(output, candidate, split, of_split, before, asked)
    found: Any = contamination.find(splits, trained_on) if trained_on else [None] * len(splits)
    for split, of_split, before, dirty in zip(splits, forms, shots, found, strict=True):
        if candidate.has_head:
            answers = candidate.by_head(split)
        elif split.kind == "generation":
            assert asked.max_tokens is not None
            answers = candidate.by_writing(split, before, asked.max_tokens)
        else:
            answers = candidate.by_likelihood(split, of_split, before)
        for one in answers:
            one = dataclasses.replace(one, form=_said(one.form, asked.limit))
            folder.add(output, one, dirty)
    return page.write(output)


def _read(name: str, asked: Asked, split: str, fold: int | None) -> Split:
    folder = Path(asked.benchmarks)
    return read(name, folder, split, fold=fold, other_version=asked.other_version)


def _limited(split: Split, limit: int | None) -> Split:
    return dataclasses.replace(split, items=split.items[:limit])


def _said(form: str, limit: int | None) -> str:
    """A name that tells answers to some items from those to all."""
    return form if limit is None else f"{form}, first {limit:,} items"


def _check(split: Split, asked: Asked) -> None:
    if not split.items:
        raise UserError(f"{split.benchmark} has no item in its {split.name} split")
    if split.kind != "generation" and (n := sum(item.label is None for item in split.items)):
        others = [x for x in BENCHMARKS[split.benchmark].splits if x != split.name]
        raise UserError(
            f"--split={split.name}: the owners of {split.benchmark} keep {n:,} of its answers to "
            f"themselves; --split={' or --split='.join(others)} can be scored"
        )
    if split.kind == "generation" and asked.max_tokens is None:
        raise UserError(
            f"{split.benchmark} is answered by a text; say how long one may be with --max_tokens"
        )


def _shots(name: str, split: Split, asked: Asked, fold: int | None) -> ask.Shots:
    if not asked.shots:
        return ask.NO_SHOTS
    try:
        train = _read(name, asked, "train", fold)
    except UserError as error:
        raise UserError(f"--shots={asked.shots} are drawn from the train split: {error}") from error
    return ask.draw(train, split, asked.shots, asked.seed)


def _check_forms(candidate: Candidate, split: Split, forms: Sequence[str], asked: Asked) -> None:
    if not forms:
        raise UserError(
            f"--forms={','.join(asked.forms)} has none for {split.benchmark}; those of this model "
            f"are {'; '.join(candidate.forms(split, ()))}"
        )
    if not candidate.has_head:
        return
    objective = candidate.task.objective if candidate.task else None
    if objective is None:
        raise UserError(
            f"{candidate.source.place} has a head of classes and no settings of the fine-tuning; "
            "name the --workdir of the run"
        )
    if split.kind != objective:
        raise UserError(
            f"{split.benchmark} is a {split.kind}, and {candidate.source.place} was fine-tuned for "
            f"{objective} on {candidate.task.train}; leave it out of --tasks"  # pyright: ignore
        )
    if asked.shots:
        raise UserError(f"--shots={asked.shots}, but {candidate.source.place} answers by its head")


def _check_output(
    output: epath.Path,
    candidate: Candidate,
    split: Split,
    forms: Sequence[str],
    shots: ask.Shots,
    asked: Asked,
) -> None:
    """What `folder.add` would refuse, before the work is done."""
    seed = candidate.seed if candidate.has_head else shots.seed
    said = [_said(shots.said(form), asked.limit) for form in forms]
    keys = {(split.benchmark, split.name, form, seed) for form in said}
    for old in folder.read(output) if (output / folder.FILE).exists() else ():
        if old.key in keys and old.checkpoint["sha256"] != candidate.checkpoint["sha256"]:
            raise UserError(
                f"--output={output} has {old} of {old.checkpoint['place']}, another checkpoint; "
                "name another folder, or remove this one"
            )


def _known(source: Source, params: dict) -> dict[str, Any]:
    """What a record says of a checkpoint."""
    weights = start.weights(source, params)
    known = {"place": str(source.place), "sha256": weights["sha256"], "what": source.what}
    known["parameters"] = source.model.parameters
    return known if source.step is None else known | {"step": source.step}


def table(output: epath.Path) -> list[str]:
    """A line a record."""
    lines = []
    for record in folder.read(output):
        scores = record.scores
        if record.kind == "generation":
            values = [f"{kind} {100 * scores[kind]['value']:.1f}" for kind in ("rouge1", "rougeL")]
        else:
            one = scores["accuracy"]
            low, high = 100 * one["low"], 100 * one["high"]
            values = [f"{100 * one['value']:.1f} % right ({low:.1f} to {high:.1f})"]
        lines.append(f"  {record!s:<48}{', '.join(values)} of {scores['items']:,}")
    return lines


def main() -> None:
    given = flags.FLAGS
    known = {form for forms in ask.FORMS.values() for form in forms} | {CLASSIFIER}
    forms = tuple(form.strip() for form in given.forms.split(";") if form.strip())
    if unknown := [form for form in forms if form not in known]:
        raise UserError(
            f"--forms: there is no {'; '.join(unknown)}; there are {'; '.join(sorted(known))}"
        )
    asked = Asked(
        benchmarks=given.benchmarks,
        tasks=tuple(given.tasks),
        split=given.split,
        forms=forms,
        shots=given.shots,
        seed=given.seed,
        max_tokens=given.max_tokens,
        limit=given.limit,
        other_version=given.other_version,
    )
    output = epath.Path(given.output)
    written = run(given.checkpoint, asked, output, given.store)
    print("\n".join(table(output)))
    print(f"{' and '.join(map(str, written))}")


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "a run, or a model's folder", required=True)
    flags.DEFINE_string("benchmarks", None, "folder with their owners' files", required=True)
    flags.DEFINE_list("tasks", None, f"of {', '.join(BENCHMARKS)}", required=True)
    flags.DEFINE_string("split", None, "train, dev or test", required=True)
    flags.DEFINE_string("output", None, "folder of the scores, also one with some", required=True)
    flags.DEFINE_string("forms", "", "with ; between them; not given: all that fit")
    flags.DEFINE_integer("shots", 0, "examples before a question", 0)
    flags.DEFINE_integer("seed", 0, "by which examples are drawn", 0)
    flags.DEFINE_integer("max_tokens", None, "of a text that is to be written", 1)
    flags.DEFINE_integer("limit", None, "the first so many items of each", 1)
    flags.DEFINE_bool("other_version", False, "take files of other counts than the published")
    flags.DEFINE_string("store", None, "that the model was trained on, for contamination")
    entry.run(main)
