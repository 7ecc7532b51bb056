"""The command line: python -m biomedlm_jax.main --config=configs/<file>.py --workdir=DIR

The file describes an experiment, which is trained, or an evaluation, whose answers are scored into
DIR (`evaluate.py`). A setting is changed by --config.section.name=value. The same command again
goes on where the last one stopped. --validate_only checks the settings against each other, prints
what the run would be and where each parameter would lie (of a mesh with -1, on --devices=N), and
allocates nothing; it opens no store and counts no devices. Of an evaluation it prints who would be
asked what.

Several hosts are one run: on Cloud TPU and under Slurm or Open MPI the same command on each is all;
elsewhere each also has --coordinator=HOST:PORT of process 0, --processes and its --process_id.
"""

import dataclasses
import math
import typing
from collections.abc import Callable

import numpy as np
from absl import flags
from ml_collections import config_flags

from biomedlm_jax import entry
from biomedlm_jax.config import Evaluation, Experiment
from biomedlm_jax.entry import UserError
from biomedlm_jax.settings import build, check_arguments, kind

if typing.TYPE_CHECKING:
    from etils import epath


def main() -> None:
    given = flags.FLAGS
    if given.config is None:
        raise UserError("--config is missing; for example --config=configs/demo.py")
    values = given.config.to_dict()
    if kind(values) is Evaluation:
        evaluate(build(Evaluation, values))
    else:
        train(build(Experiment, values))


def train(experiment: Experiment) -> None:
    given = flags.FLAGS
    if given.validate_only:
        print(description(experiment, given.devices))
        return
    from biomedlm_jax import mesh  # after the settings were found good
    from biomedlm_jax.train import fit

    wait = experiment.run.wait_seconds
    workdir = begin(wait, lambda processes: mesh.cpu_devices(experiment.mesh, processes))
    fit(experiment, workdir, profile_at=given.profile_at, wandb_project=given.wandb_project)


def evaluate(evaluation: Evaluation) -> None:
    from biomedlm_jax import evaluate, hosts

    for name in ("devices", "profile_at", "wandb_project"):
        if flags.FLAGS[name].value is not None:
            raise UserError(f"--{name} is for training, and the config describes an evaluation")
    if flags.FLAGS.validate_only:
        print(evaluate.description(evaluation))
        return
    output = begin(evaluate.WAIT_SECONDS, None)
    written = evaluate.run(evaluation, output)
    if hosts.primary():
        print(f"{evaluate.table(output)}\n{' and '.join(map(str, written))}")


def begin(wait_seconds: int, cpu_devices: Callable[[int], int] | None) -> "epath.Path":
    """Finds the other processes; returns --workdir. The arguments are of `hosts.connect`."""
    given = flags.FLAGS
    if given.workdir is None:
        raise UserError("--workdir is missing; what is made goes there")
    import jax
    from etils import epath

    from biomedlm_jax import hosts

    hosts.connect(
        given.coordinator, given.processes, given.process_id, wait_seconds, cpu_devices=cpu_devices
    )
    workdir = epath.Path(given.workdir)
    count = jax.process_count()
    each = cpu_devices(count) if cpu_devices and jax.default_backend() == "cpu" else 1
    hosts.keep_programs(workdir / "compilation_cache", cpu_devices=each * count)
    return workdir


def description(experiment: Experiment, devices: int | None = None) -> str:
    """What a run would be, from its settings alone: no model, no data.

    devices: how many there would be; None is as many as the mesh has, where it does not have -1.

    Raises:
      UserError: the mesh can not divide the model or the batch, however many devices there are, or
        does not give `devices`.
    """
    from biomedlm_jax import sharding
    from biomedlm_jax.mesh import check, sizes
    from biomedlm_jax.optimizer import schedule

    mesh = dataclasses.asdict(experiment.mesh)
    check(experiment, {axis: max(size, 1) for axis, size in mesh.items()})
    if devices is None and -1 not in mesh.values():
        devices = math.prod(mesh.values())
    table = "not shown       where parameters lie, for config.mesh has -1; say --devices=N"
    if devices is not None:
        axes = sizes(experiment.mesh, devices)
        check(experiment, axes)
        table = sharding.table(experiment, axes)

    model, run, chosen = experiment.model, experiment.run, experiment.optimizer
    rate, task = schedule(experiment), experiment.task
    warmup = chosen.warmup_steps
    steps = [0, warmup // 2, warmup, run.steps // 3, run.steps // 2, run.steps]
    items = experiment.data.batch
    batch, unread = items * model.context, "config.data.store"
    sizes_of_run = [
        f"global batch    {batch:,} tokens ({items:,} x {model.context:,})",
        f"run             {run.steps:,} steps, {run.steps * batch:,} tokens",
    ]
    if task is not None:
        unread = "config.start, config.task.benchmarks"
        sizes_of_run = [
            f"global batch    {items:,} items of {task.train}, up to {task.length:,} tokens a row",
            f"run             {run.steps:,} steps, {run.steps * items:,} items",
        ]
    lines = [
        f"parameters      {model.parameters:,}",
        f"stored on mesh  {model.padded_vocab - model.vocab} rows of padding besides, for a "
        f"vocabulary of {model.vocab:,} padded to {model.padded_vocab:,}",
        sizes_of_run[0],
        f"mesh            {mesh}; -1 takes the devices that are left",
        sizes_of_run[1],
        f"flops           {model.flops_per_token:,} per token ({model.flops_in_words})",
        f"not checked     {unread}, and whether the mesh fits the devices",
        *(
            f"learning rate   {float(np.asarray(rate(step))):.5g} at step {step:,}"
            for step in steps
        ),
        table,
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "a file of configs/")
    flags.DEFINE_string("workdir", None, "folder of the run, or of the scores")
    flags.DEFINE_bool("validate_only", False, "check and describe, do not train")
    flags.DEFINE_integer("devices", None, "with --validate_only: how many there would be", 1)
    flags.DEFINE_integer("profile_at", None, "a step; five from there on are profiled")
    flags.DEFINE_string("wandb_project", None, "also report to Weights & Biases, as part of this")
    flags.DEFINE_string("coordinator", None, "of several processes: host:port of process 0")
    flags.DEFINE_integer("processes", None, "how many there are")
    flags.DEFINE_integer("process_id", None, "which of them this is, from 0")
    entry.run(main, check_arguments)
