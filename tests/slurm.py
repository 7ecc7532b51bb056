"""Slurm on one machine: its own controller and two nodes that are daemons of it, without munge."""

import contextlib
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.conftest import ROOT
from tests.runs import PATIENCE, free_port

PROGRAMS = ("slurmctld", "slurmd", "sbatch")
# Nodes have names that lead to this machine, for process 0 is looked for by the first.
CONFIG = """\
ClusterName=here
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=127.0.0.[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first},{second}] CPUs=1
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL State=UP PriorityTier=10
"""


class Cluster:
    """folder: where jobs are submitted, with what the script looks for of the repository."""

    def __init__(self, folder: Path, config: Path):
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(config), "JAX_PLATFORMS": "cpu"}

    def run(self, *command: str, **environment: str) -> str:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout

    def submit(self, *flags: str, options: tuple[str, ...] = (), **environment: str) -> str:
        """The number of the job."""
        line = ["sbatch", "--parsable", "--nodes=2", *options, "launch/slurm.sh", *flags]
        return self.run(*line, **environment).strip()

    def state(self, job: str) -> str:
        """As in "PENDING 1": what it is, and how often it has begun again."""
        said = self.run("scontrol", "--oneliner", "show", "job", job)
        facts = dict(word.partition("=")[::2] for word in said.split() if "=" in word)
        return f"{facts['JobState']} {facts['Restarts']}"

    def said(self, job: str, task: int | None = None) -> str:
        file = self.folder / f"slurm-{job}{'' if task is None else f'-{task}'}.log"
        return file.read_text() if file.exists() else ""

    def until(self, job: str, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < deadline, f"{self.state(job)}\n{self.said(job)}"
            time.sleep(0.05)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A cluster of two nodes in `folder`."""
    work = folder / "work"
    work.mkdir()
    for name in ("biomedlm_jax", "configs", "launch"):
        (work / name).symlink_to(ROOT / name)
    ports = {name: free_port() for name in ("port", "first", "second")}
    user = pwd.getpwuid(os.getuid()).pw_name
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(user=user, folder=folder, **ports))
    cluster = Cluster(work, config)
    (folder / "state").mkdir()
    with contextlib.ExitStack() as started:
        daemons = []
        for name, *flags in (
            ["slurmctld"],
            ["slurmd", "-N", "127.0.0.1"],
            ["slurmd", "-N", "127.0.0.2"],
        ):
            program = shutil.which(name)
            assert program
            log = started.enter_context((folder / f"{'-'.join([name, *flags[1:]])}.log").open("w"))
            daemon = subprocess.Popen(
                [program, "-D", *flags], env=cluster.environment, stdout=log, stderr=log
            )
            daemons.append(daemon)
            started.callback(daemon.wait)
            started.callback(daemon.terminate)
        deadline = time.monotonic() + PATIENCE
        while "idle" not in _nodes(cluster):
            ended = any(daemon.poll() is not None for daemon in daemons)
            assert not ended, "".join(log.read_text() for log in folder.glob("*.log"))
            assert time.monotonic() < deadline, (folder / "slurmctld.log").read_text()
            time.sleep(0.1)
        yield cluster
        cluster.run("scancel", "--user", user)
        while cluster.run("squeue", "--noheader"):
            time.sleep(0.1)


def _nodes(cluster: Cluster) -> str:
    """ "idle" where all nodes are."""
    found = subprocess.run(
        ["sinfo", "--noheader", "--partition=main", "--format=%T"],
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout if found.returncode == 0 and len(found.stdout.split()) == 1 else ""
