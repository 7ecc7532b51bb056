"""Checkpoints answer benchmarks, and the answers are scored beside published numbers:

    python -m biomedlm_jax.main --config=configs/eval_paper.py --config.start=DIR \\
      --config.benchmarks=QA --workdir=SCORES

DIR is the --workdir of a run, what `hf.load` wrote, or hf: and a Hugging Face folder; QA has the
owners' files. A model that was fine-tuned answers as it learned to, see `candidate.py`; those that
were fine-tuned for a benchmark are named in config.tuned. SCORES gets the answers, table.md and
report.html, see `scoring/`; the same command again, or another, adds what is not there yet. With
config.store, the token store that was trained on, items are told apart that it gives away.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath
from tqdm import tqdm

from biomedlm_jax import ask, hosts
from biomedlm_jax.benchmarks.item import Split
from biomedlm_jax.benchmarks.read import BENCHMARKS, read
from biomedlm_jax.candidate import (
    CLASSIFIER,
    GENERATOR,
    MADE_BY,
    Candidate,
    candidates,
    work,
)
from biomedlm_jax.config import Evaluation
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.scoring import contamination, folder, page
from biomedlm_jax.scoring.answers import Answers
from biomedlm_jax.scoring.contamination import Contamination
from biomedlm_jax.scoring.record import Record

FORMS = {form for forms in ask.FORMS.values() for form in forms} | {CLASSIFIER, GENERATOR}
WAIT_SECONDS = 600  # for other processes


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked about a split: in these forms, after these examples."""

    split: Split
    forms: tuple[str, ...]
    shots: ask.Shots

    def __str__(self) -> str:
        return f"{self.split.benchmark} {self.split.name}"


Asked = list[tuple[Candidate, list[Question]]]


def run(evaluation: Evaluation, output: epath.Path) -> list[epath.Path]:
    """Scores into `output`, and returns what to look at. What is there already, of the same
    weights, items and program, is not asked again. On several processes all call it, and see one
    `output`.

    Raises:
      UserError: see `plan`; or `output` has answers of another checkpoint. Before that checkpoint
        is asked.
    """
    if output.is_file():
        raise UserError(f"--workdir={output} is a file; name a folder")
    asked = plan(evaluation)
    hosts.agree(_facts(evaluation, asked, output), WAIT_SECONDS)
    searched = _searched(evaluation, [x.split for _, questions in asked for x in questions])
    for number, (candidate, questions) in enumerate(asked, 1):
        candidate.load()
        there = folder.read(output) if (output / folder.FILE).exists() else []
        left = [_left(x, candidate, there, evaluation, searched, output) for x in questions]
        total = sum(work(question.split, question.forms) for question in left)
        title = f"[{number}/{len(asked)}] {candidate.source.place.name}"
        with tqdm(total=total, unit="answer", disable=not hosts.primary()) as bar:
            for question in left:
                bar.set_description(f"{title}: {question}")
                for one in _answers(candidate, question, evaluation, bar):
                    if hosts.primary():
                        folder.add(output, one, searched.get(question.split.sha256))
        candidate.unload()
    return page.write(output) if hosts.primary() else []


def plan(evaluation: Evaluation) -> Asked:
    """Who is asked what. Reads the files of the benchmarks, and of checkpoints what they are.

    Raises:
      UserError: see `read.read`, `Candidate`, `ask.draw`; a split has no right answers; none of the
        forms fits it.
    """
    names = dict.fromkeys(name for name in evaluation.splits.split("+") if name)
    if not names:
        raise UserError("config.splits is empty, so nothing is asked; for example medqa/test")
    pairs = [_pair(name) for name in names]
    forms = tuple(form for form in evaluation.forms.split("+") if form)
    if unknown := [form for form in forms if form not in FORMS]:
        raise UserError(
            f"config.forms: there is no {'+'.join(unknown)}; there are {'+'.join(sorted(FORMS))}"
        )
    reader = functools.cache(functools.partial(_read, evaluation))
    asked: Asked = []
    for who in [Candidate(evaluation.start)] if evaluation.start else []:
        asked.append((who, [_question(who, *pair, forms, evaluation, reader) for pair in pairs]))
    for name, place in vars(evaluation.tuned).items():
        own = [pair for pair in pairs if pair[0] == name]
        if place and not own:
            raise UserError(
                f"config.tuned.{name}={place}, but config.splits={evaluation.splits} has no split "
                f"of it; add {name}/test, or leave it empty"
            )
        for who in candidates(place) if place else []:
            if who.objective is None:
                raise UserError(
                    f"config.tuned.{name}={place} has neither a head nor tokens of a prompt, so it "
                    "is asked as a base model is; name it as config.start"
                )
            asked.append((who, [_question(who, *pair, (), evaluation, reader) for pair in own]))
    _check_apart(asked, evaluation)
    return asked


def _check_apart(asked: Asked, evaluation: Evaluation) -> None:
    """Raises UserError where two checkpoints would have one place in the table."""
    known: dict[tuple, Candidate] = {}
    for who, questions in asked:
        for question in questions:
            for form in question.forms:
                key = _key(question, form, who, evaluation)
                if (other := known.setdefault(key, who)) is not who:
                    raise UserError(
                        f"{other.source.place} and {who.source.place} both answer {question}, "
                        f"{form}, seed {who.seed}; ask them into two folders"
                    )


def _facts(evaluation: Evaluation, asked: Asked, output: epath.Path) -> dict[str, str]:
    """What has to be the same on all processes: they decide by it what is asked."""
    there = output / folder.FILE
    found = {f"config.{name}": str(value) for name, value in vars(evaluation).items()}
    found |= {str(question): question.split.sha256 for _, x in asked for question in x}
    found["checkpoints"] = ", ".join(f"{who.source.place} {who.source.step}" for who, _ in asked)
    scores = hashlib.sha256(there.read_bytes()).hexdigest() if there.is_file() else "nothing"
    return found | {str(there): scores, "versions": str(hosts.versions())}


def _pair(name: str) -> tuple[str, str]:
    benchmark, slash, split = name.partition("/")
    if not slash:
        raise UserError(f"config.splits: {name!r} is no benchmark and split, such as medqa/test")
    return benchmark, split


def _read(evaluation: Evaluation, benchmark: str, split: str, fold: int | None) -> Split:
    other = evaluation.other_version
    place = epath.Path(evaluation.benchmarks)
    found = read(benchmark, place, split, fold=fold, other_version=other)
    if not found.items:
        raise UserError(f"{benchmark} has no item in its {split} split")
    return found


def _question(
    candidate: Candidate,
    benchmark: str,
    name: str,
    forms: tuple[str, ...],
    evaluation: Evaluation,
    reader: Callable[..., Split],
) -> Question:
    fold = candidate.fold(benchmark) if benchmark in BENCHMARKS else None
    split = reader(benchmark, name, fold)
    if split.kind != "generation" and (n := sum(item.label is None for item in split.items)):
        others = [f"{benchmark}/{x}" for x in BENCHMARKS[benchmark].splits if x != name]
        raise UserError(
            f"config.splits: the owners of {benchmark} keep {n:,} of the answers of {name} to "
            f"themselves; {' or '.join(others)} can be scored"
        )
    if not (fitting := candidate.forms(split, forms)):
        own = "+".join(candidate.forms(split)) or "none"
        what = f", which was fine-tuned for {candidate.objective}," if candidate.objective else ""
        raise UserError(
            f"config.forms={evaluation.forms!r} has none for {benchmark}, a {split.kind}: of "
            f"{candidate.source.place}{what} those that fit are {own}; take others, or leave it "
            "out of config.splits"
        )
    candidate.check(split, fitting, evaluation.max_tokens)
    shots = ask.NO_SHOTS
    if evaluation.shots and candidate.objective is None:
        try:
            train = reader(benchmark, "train", fold)
        except UserError as error:
            raise UserError(
                f"config.shots={evaluation.shots} are drawn from the train split: {error}"
            ) from error
        shots = ask.draw(train, split, evaluation.shots, evaluation.seed)
    items = split.items[: evaluation.limit or None]
    return Question(dataclasses.replace(split, items=items), fitting, shots)


def _searched(evaluation: Evaluation, splits: Sequence[Split]) -> dict[str, Contamination]:
    """By the sha256 of a split's items, once each; none where there is no store."""
    if not evaluation.store:
        return {}
    different = {split.sha256: split for split in splits}
    store = TokenStore(evaluation.store, "train")
    return dict(zip(different, contamination.find([*different.values()], store), strict=True))


def _answers(
    candidate: Candidate, question: Question, evaluation: Evaluation, bar: tqdm
) -> list[Answers]:
    if not question.forms:
        return []
    found = candidate.answers(
        question.split, question.forms, question.shots, evaluation.max_tokens, bar.update
    )
    return [dataclasses.replace(one, form=_said(one.form, evaluation)) for one in found]


def _said(form: str, evaluation: Evaluation) -> str:
    """A name that tells answers to some items from those to all."""
    return f"{form}, first {evaluation.limit:,} items" if evaluation.limit else form


def _left(
    question: Question,
    candidate: Candidate,
    there: Sequence[Record],
    evaluation: Evaluation,
    searched: dict[str, Contamination],
    output: epath.Path,
) -> Question:
    """With the forms that are not answered yet.

    Raises:
      UserError: another checkpoint has answered.
    """
    split, left = question.split, []
    known = {record.key: record for record in there}
    found = searched.get(split.sha256)
    for form in question.forms:
        old = known.get(_key(question, form, candidate, evaluation))
        if old is None:
            left.append(form)
            continue
        if old.checkpoint["sha256"] != candidate.checkpoint["sha256"]:
            raise UserError(
                f"--workdir has {old} of {old.checkpoint['place']}, another checkpoint; name "
                "another folder, or remove this one"
            )
        most = old.checkpoint.get("asked", {}).get("max_tokens")
        same = (
            old.data["sha256"] == split.sha256
            and old.versions == hosts.versions()
            and _searched_in(old.contamination) == _searched_in(found and vars(found))
            and all(old.checkpoint.get(name) == candidate.checkpoint[name] for name in MADE_BY)
            and (form != ask.GENERATED or most == evaluation.max_tokens)
            and folder.has_answers(output, old)
        )
        left += [] if same else [form]
    return dataclasses.replace(question, forms=tuple(left))


def _key(
    question: Question, form: str, candidate: Candidate, evaluation: Evaluation
) -> tuple[str, str, str, int | None]:
    """`Record.key` of the answers."""
    fine_tuned = form in (CLASSIFIER, GENERATOR)
    said = form if fine_tuned else question.shots.said(form)
    seed = candidate.seed if fine_tuned else question.shots.seed
    return question.split.benchmark, question.split.name, _said(said, evaluation), seed


def _searched_in(found: dict[str, Any] | None) -> str | None:
    """The text that a contamination is of, wherever it lies."""
    return found["store"]["tokens_sha256"] if found else None


def description(evaluation: Evaluation) -> str:
    """What would be asked, a line a split."""
    lines = []
    for candidate, questions in plan(evaluation):
        lines.append(f"{candidate.source.place}, {candidate.source.model.parameters:,} parameters")
        for question in questions:
            forms = "; ".join(map(question.shots.said, question.forms))
            lines.append(f"  {question!s:<16} {len(question.split.items):>6,} items  {forms}")
    return "\n".join(lines)


def table(output: epath.Path) -> str:
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
    return "\n".join(lines)
