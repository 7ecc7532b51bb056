"""Fine-tunes with several seeds, takes a save of each by its score on dev, and scores it.

    python -m biomedlm_jax.finetune --config=configs/finetune_pubmedqa.py --workdir=DIR \
        --seeds=1,2,3 --test

DIR/seed_1, ... are runs like any other: a killed one goes on with the same command. config.run.seed
is each seed in turn; it draws the head, the order of items and dropout.

Which save is taken is decided on dev alone: config.task.select="last" is the end of the run,
"best" the save with the highest accuracy on dev, of equals the earlier one. The test split is asked
with --test only, when every seed has its save, and each save is asked once: its answers are in
DIR/scores, and numbers come from there. DIR/results.json has the scores of the seeds, their mean
and its 95 % interval (Student's), and whether the test was asked.

This is for one process. On several hosts train each seed with `python -m biomedlm_jax.main`, and
ask it with configs/eval_paper.py.
"""

import dataclasses
import json
from typing import Any

import jax
from absl import flags
from etils import epath
from ml_collections import config_flags
from tqdm import tqdm

from biomedlm_jax import entry, hosts, journal, mesh
from biomedlm_jax.ask import NO_SHOTS
from biomedlm_jax.benchmarks import read
from biomedlm_jax.benchmarks.apart import check_apart
from biomedlm_jax.benchmarks.item import Split
from biomedlm_jax.candidate import CLASSIFIER, RESULTS, Candidate, work
from biomedlm_jax.config import Experiment, Task
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.lines import appearing
from biomedlm_jax.saves import absolute, steps_in
from biomedlm_jax.scoring import folder, page
from biomedlm_jax.scoring.measures import mean
from biomedlm_jax.settings import build, check_arguments
from biomedlm_jax.train import fit

SCORES = "scores"


def finetune(
    experiment: Experiment, workdir: epath.Path, seeds: list[int], *, test: bool
) -> dict[str, Any]:
    """Runs, selects and scores; returns what is in results.json.

    Raises:
      UserError: the settings are not of a task with a dev split, or the test split can not be asked
        or has items that are trained on, before anything runs; besides, see `train.fit`.
    """
    task = checked(experiment, seeds)
    if test:
        _check_test(task)
    for seed in seeds:
        run = dataclasses.replace(experiment.run, seed=seed)
        fit(dataclasses.replace(experiment, run=run), workdir / f"seed_{seed}")
    saves = {seed: selected(workdir / f"seed_{seed}", task) for seed in seeds}
    for split in ("dev", "test") if test else ("dev",):
        for seed in seeds:
            if known(workdir, task, split, seed, saves[seed]) is None:
                answer(workdir, seed, saves[seed], split)
    results = {
        "benchmark": task.dev,
        "train": task.train,
        "select": task.select,
        "saves": saves,
    }
    for split in ("dev", "test"):
        found = {seed: known(workdir, task, split, seed, saves[seed]) for seed in seeds}
        asked = {seed: record for seed, record in found.items() if record is not None}
        results[split] = _summary(asked) if len(asked) == len(seeds) else None
    results["test_was_asked"] = results["test"] is not None
    with appearing(workdir / RESULTS) as file:
        file.write(json.dumps(results, indent=2).encode() + b"\n")
    page.write(workdir / SCORES)
    return results


def _check_test(task: Task) -> None:
    """Raises UserError where the test split can not be asked, or gives nothing to learn from."""
    split = asked_of(task, "test")
    if hidden := sum(item.label is None for item in split.items):
        raise UserError(
            f"--test: the owners of {task.dev} keep {hidden:,} of its answers to themselves; leave "
            "--test out, and dev is scored"
        )
    fold = None if task.fold < 0 else task.fold
    folder_of = epath.Path(task.benchmarks)
    learned = read.read_many(
        task.train, folder_of, "train", fold=fold, other_version=task.other_version
    )
    check_apart(learned, split)


def checked(experiment: Experiment, seeds: list[int]) -> Task:
    """Raises UserError where the settings can not be fine-tuned and selected with."""
    task, run = experiment.task, experiment.run
    if task is None or not task.dev:
        raise UserError("config.task.dev names nothing to select by; use a config of fine-tuning")
    if task.objective not in ("multiple_choice", "classification"):
        raise UserError(
            f"config.task.objective={task.objective!r} has no choices to score; train with `python "
            "-m biomedlm_jax.main`, and name the run in config.tuned of configs/eval_paper.py"
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


def answer(workdir: epath.Path, seed: int, step: int, split: str) -> None:
    """Asks the save of `step` a split, and puts its answers into the folder of scores."""
    candidate = Candidate(str(workdir / f"seed_{seed}"), step)
    candidate.load()
    assert candidate.task is not None, "a run that was fine-tuned has a task"
    of = asked_of(candidate.task, split)
    with tqdm(total=work(of, (CLASSIFIER,)), desc=f"seed {seed}, {split}", unit="answer") as bar:
        (answers,) = candidate.answers(of, (CLASSIFIER,), NO_SHOTS, 0, bar.update)
    folder.add(workdir / SCORES, answers, None)


def known(
    workdir: epath.Path, task: Task, split: str, seed: int, step: int
) -> dict[str, float] | None:
    """The scores of a save in the folder of scores; None where it was not asked yet.

    Raises:
      UserError: another save of this seed was.
    """
    there = workdir / SCORES / folder.FILE
    for record in folder.read(workdir / SCORES) if there.exists() else []:
        if (record.benchmark, record.split, record.seed) == (task.dev, split, seed):
            if record.checkpoint.get("step") != step:
                raise UserError(
                    f"{there} has {record} of the save of step {record.checkpoint.get('step')}, "
                    f"and step {step} would be taken now; a test is asked once, so name another "
                    "--workdir"
                )
            found = record.scores
            measured = {"accuracy": found["accuracy"]["value"]}
            return measured | ({"macro_f1": found["macro_f1"]} if "macro_f1" in found else {})
    return None


def asked_of(task: Task, split: str) -> Split:
    fold = None if task.fold < 0 else task.fold
    return read.read(
        task.dev, epath.Path(task.benchmarks), split, fold=fold, other_version=task.other_version
    )


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
    hosts.connect(None, None, None, experiment.run.wait_seconds)
    if jax.process_count() > 1:
        raise UserError(
            f"this is one of {jax.process_count()} processes, and seeds are scored by one; train "
            "each seed with `python -m biomedlm_jax.main --config.run.seed=...` on all hosts, and "
            "ask it with configs/eval_paper.py"
        )
    workdir = epath.Path(given.workdir)
    on_cpu = mesh.cpu_devices(experiment.mesh, processes=1)
    hosts.keep_programs(workdir / "compilation_cache", cpu_devices=on_cpu)
    results = finetune(experiment, workdir, seeds, test=given.test)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "a file of configs/")
    flags.DEFINE_string("workdir", None, "folder of the runs, one for each seed")
    flags.DEFINE_list("seeds", ["1", "2", "3"], "one run each")
    flags.DEFINE_bool("test", False, "also score the test split, once")
    entry.run(main, check_arguments)
