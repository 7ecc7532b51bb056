"""Fine-tunes with several seeds, takes a save of each by its score on dev, and scores it.

    python -m biomedlm_jax.finetune --config=configs/finetune_pubmedqa.py --workdir=DIR \
        --seeds=1,2,3 --test

DIR/seed_1, ... are runs like any other: a killed one goes on with the same command. config.run.seed
is each seed in turn; it draws the head, the order of items and dropout.

Which save is taken is decided on dev alone: config.task.select="last" is the end of the run,
"best" the save with the highest accuracy on dev, of equals the earlier one. The test split is read
with --test only, when every seed has its save; DIR/scores says so by having it, and then it is not
scored again. DIR/results.json has the scores of all seeds, their mean and its 95 % interval
(Student's), DIR/scores the answers, and a page.
"""

import dataclasses
import json
from typing import Any

from absl import flags
from etils import epath
from ml_collections import config_flags

from biomedlm_jax import entry, journal
from biomedlm_jax.benchmarks import read
from biomedlm_jax.benchmarks.item import Split
from biomedlm_jax.config import Experiment, Task
from biomedlm_jax.entry import UserError
from biomedlm_jax.evaluate import Candidate
from biomedlm_jax.pipeline.lines import appearing
from biomedlm_jax.saves import absolute, steps_in
from biomedlm_jax.scoring import folder, page
from biomedlm_jax.scoring.measures import mean
from biomedlm_jax.settings import build, check_arguments
from biomedlm_jax.train import fit

RESULTS, SCORES = "results.json", "scores"


def finetune(
    experiment: Experiment, workdir: epath.Path, seeds: list[int], *, test: bool
) -> dict[str, Any]:
    """Runs, selects and scores; returns what is in results.json.

    Raises:
      UserError: the settings are not of a task with a dev split, or the test split was scored
        before; besides, see `train.fit`.
    """
    task = checked(experiment, seeds)
    done = [seed for seed in seeds if _of(workdir, task.dev, "test", seed)]
    if test and done:
        raise UserError(
            f"{workdir / SCORES} has the test split of {task.dev} scored with seeds {done}; a test "
            "is read once. Leave --test out, or name another --workdir"
        )
    for seed in seeds:
        run = dataclasses.replace(experiment.run, seed=seed)
        fit(dataclasses.replace(experiment, run=run), workdir / f"seed_{seed}")
    chosen = {seed: selected(workdir / f"seed_{seed}", task) for seed in seeds}
    found = {"dev": {seed: answer(workdir, seed, chosen[seed], "dev") for seed in seeds}}
    if test:
        found["test"] = {seed: answer(workdir, seed, chosen[seed], "test") for seed in seeds}
    results = {
        "benchmark": task.dev,
        "train": task.train,
        "select": task.select,
        "test_was_scored": test,
        "saves": chosen,
        **{split: _summary(scores) for split, scores in found.items()},
    }
    with appearing(workdir / RESULTS) as file:
        file.write(json.dumps(results, indent=2).encode() + b"\n")
    page.write(workdir / SCORES)
    return results


def checked(experiment: Experiment, seeds: list[int]) -> Task:
    """Raises UserError where the settings can not be fine-tuned and selected with."""
    task, run = experiment.task, experiment.run
    if task is None or not task.dev:
        raise UserError("config.task.dev names nothing to select by; use a config of fine-tuning")
    if task.objective not in ("multiple_choice", "classification"):
        raise UserError(
            f"config.task.objective={task.objective!r} has no choices to score here; train with "
            "`python -m biomedlm_jax.main`, and let the model write"
        )
    if len(set(seeds)) < max(len(seeds), 1):
        raise UserError(f"--seeds={seeds}: give each seed once")
    if not run.save_every:
        raise UserError("config.run.save_every=0 leaves no save to score; say run.steps")
    if task.select == "best":
        saves = -(-run.steps // run.save_every)
        if run.eval_every != run.save_every or run.keep < saves:
            raise UserError(
                f"config.task.select='best' compares the {saves} saves of a run: set "
                f"config.run.eval_every to run.save_every={run.save_every}, and run.keep to {saves}"
            )
    return task


def selected(run: epath.Path, task: Task) -> int:
    """The step of the save that is taken, by the scores on dev alone."""
    there = steps_in(absolute(run))
    if task.select == "last":
        return max(there)
    lines = journal.read(absolute(run) / "metrics.jsonl")
    scored = {line["step"]: line for line in lines if "accuracy" in line}
    ranked = [(-scored[s]["accuracy"], s) for s in there if s in scored]
    return min(ranked)[1]


def answer(workdir: epath.Path, seed: int, step: int, split: str) -> dict[str, float]:
    """What the save of `step` says to a split, scored into the folder."""
    candidate = Candidate(str(workdir / f"seed_{seed}"), step)
    assert candidate.task is not None, "a run that was fine-tuned has a task"
    (answers,) = candidate.by_head(asked_of(candidate.task, split))
    found = folder.add(workdir / SCORES, answers, None).scores
    measured = {"accuracy": found["accuracy"]["value"]}
    return measured | ({"macro_f1": found["macro_f1"]} if "macro_f1" in found else {})


def asked_of(task: Task, split: str) -> Split:
    fold = None if task.fold < 0 else task.fold
    return read.read(
        task.dev, epath.Path(task.benchmarks), split, fold=fold, other_version=task.other_version
    )


def _of(workdir: epath.Path, benchmark: str, split: str, seed: int) -> bool:
    there = workdir / SCORES / folder.FILE
    records = folder.read(workdir / SCORES) if there.exists() else []
    return any((x.benchmark, x.split, x.seed) == (benchmark, split, seed) for x in records)


def _summary(scores: dict[int, dict[str, float]]) -> dict[str, Any]:
    """Of each measure, the seeds' values, and their mean with its interval where there are two."""
    found = {}
    for name in next(iter(scores.values())):
        values = {seed: one[name] for seed, one in scores.items()}
        found[name] = {"seeds": values}
        if len(values) > 1:
            found[name] |= mean(list(values.values()))._asdict()
    return found


def main() -> None:
    given = flags.FLAGS
    for name in ("config", "workdir"):
        if getattr(given, name) is None:
            raise UserError(f"--{name} is missing; see `python -m biomedlm_jax.finetune --help`")
    try:
        seeds = [int(seed) for seed in given.seeds]
    except ValueError as error:
        raise UserError(f"--seeds={','.join(given.seeds)}: {error}") from error
    experiment = build(Experiment, given.config.to_dict())
    results = finetune(experiment, epath.Path(given.workdir), seeds, test=given.test)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "a file of configs/")
    flags.DEFINE_string("workdir", None, "folder of the runs, one for each seed")
    flags.DEFINE_list("seeds", ["1", "2", "3"], "one run each")
    flags.DEFINE_bool("test", False, "also score the test split, once")
    entry.run(main, check_arguments)
