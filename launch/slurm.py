"""A run on the GPUs of a Slurm cluster: the `sbatch` line of a launch file.

    python -m launch.slurm --config=configs/pretrain_2p7b.py --accelerator=h100-128 --workdir=DIR

What the job does, and when it begins again, is in `launch/slurm.sh`. Given where sbatch is, in the
repository's folder, on a file system that all nodes see. --dry_run prints the line and what each
node will run.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from biomedlm_jax import entry
from biomedlm_jax.compilers.topologies import GPUS_OF_A_HOST
from biomedlm_jax.entry import UserError
from launch import preflight, spec
from launch.spec import Launch

SCRIPT = "launch/slurm.sh"
ROOT = Path(__file__).parent.parent


def submission(launch: Launch, settings: Sequence[str]) -> list[str]:
    """The command that queues the run.

    settings: of the run, --config.section.name=value.

    Raises:
      UserError: the accelerator is none that a Slurm cluster has.
    """
    machine = launch.machine
    if machine.tpu:
        raise UserError(f"--accelerator={machine.name}: Slurm is for GPUs; use launch.tpu or gke")
    if launch.capacity != "on-demand" or launch.slices != 1:
        raise UserError(
            f"--capacity={launch.capacity} and --slices={launch.slices} are Google Cloud's; a "
            "partition of Slurm is named in the launch file, and its nodes by --accelerator"
        )
    options = {
        "job-name": launch.name,
        "nodes": launch.hosts,
        "gpus-per-node": machine.chips_of_host,
        "time": f"{launch.slurm.hours}:00:00",
        "partition": launch.slurm.partition,
        "account": launch.slurm.account,
        "export": f"ALL,PYTHON={launch.python}" if launch.python else "",
    }
    whole = machine.chips_of_host == GPUS_OF_A_HOST  # then nobody else is on the node
    return [
        "sbatch",
        *(f"--{name}={value}" for name, value in options.items() if value),
        *(["--exclusive", "--mem=0"] if whole else []),
        SCRIPT,
        f"--config={launch.config}",
        f"--workdir={launch.workdir}",
        *settings,
    ]


def main(settings: Sequence[str]) -> None:
    """settings: as for `submission`.

    Raises:
      UserError: the launch is wrong, or there is no sbatch.
    """
    launch = spec.from_flags()
    if wrong := spec.problems(launch, cloud=False):
        raise UserError("\n".join(wrong))
    experiment = spec.experiment(launch, settings)
    preflight.meshed(launch, experiment)
    preflight.workdir(launch, experiment)
    command = submission(launch, settings)
    print(shlex.join(command), flush=True)
    if flags.FLAGS.dry_run:
        script = ["bash", str(ROOT / SCRIPT), *command[command.index(SCRIPT) + 1 :], "--dry_run"]
        environment = os.environ | ({"PYTHON": launch.python} if launch.python else {})
        done = subprocess.run(script, cwd=ROOT, env=environment, check=False)
        if done.returncode:
            raise UserError(f"{SCRIPT} ended with code {done.returncode}; see above")
        return
    if shutil.which(command[0]) is None:
        raise UserError("there is no sbatch; say this where jobs are submitted, or --dry_run")
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise UserError(f"sbatch ended with code {done.returncode}; see above")


if __name__ == "__main__":
    spec.define_flags()
    flags.DEFINE_bool("dry_run", False, "print what would be submitted and run")
    settings: list[str] = []

    def separate(arguments: list[str]) -> None:
        settings[:], sys.argv[1:] = spec.run_settings(arguments)

    entry.run(lambda: main(settings), separate)
