"""Runs of the smallest experiment as a person starts them: real processes, one or several."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from biomedlm_jax import checkpoint
from biomedlm_jax.config import Experiment

ROOT = Path(__file__).parent.parent
PATIENCE = 300  # seconds for anything to happen on a busy machine; never what a test measures


def config_file(experiment: Experiment, file: Path) -> Path:
    """Writes an experiment as a file of configs/."""
    lines = [
        f"    config.{name} = {value!r}" for name, value in dataclasses.asdict(experiment).items()
    ]
    file.write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n    config = ConfigDict()\n"
        + "\n".join(lines)
        + "\n    return config\n"
    )
    return file


class Process:
    """One process, whose output goes to a file. more: variables of its environment."""

    def __init__(self, command: Sequence[str], log: Path, more: dict[str, str] | None = None):
        self.log = log
        with log.open("w") as output:
            self.popen = subprocess.Popen(
                command,
                cwd=ROOT,
                env={
                    **os.environ,
                    "JAX_PLATFORMS": "cpu",
                    "PYTHONUNBUFFERED": "1",
                    **(more or {}),
                },
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def until(self, pattern: str) -> None:
        """Waits until it has said something."""
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern, self.said, re.MULTILINE):
            ended = self.popen.poll() is not None
            if ended and re.search(pattern, self.said, re.MULTILINE):
                return
            assert not ended, f"ended with {self.popen.returncode}:\n{self.said}"
            assert time.monotonic() < deadline, f"{pattern} is not in\n{self.said}"
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def wait(self) -> int:
        return self.popen.wait(timeout=PATIENCE)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def running(
    file: Path,
    workdir: Path,
    *flags: str,
    processes: int = 2,
    faults: dict[int, str] | None = None,
    extra: dict[int, list[str]] | None = None,
    logs: Path | None = None,
) -> Iterator[list[Process]]:
    """The processes of one run; whatever is left of them at the end is killed.

    file: of `config_file`.
    flags: for all of them; `extra` for one.
    faults: what goes wrong in which process, as in "hang=5"; see `faulty.py`.
    logs: a folder for what they say; None is that of `file`.
    """
    flags = (f"--config={file}", f"--workdir={workdir}", *flags)
    if processes > 1:
        flags += (f"--coordinator=localhost:{free_port()}", f"--processes={processes}")
    found, number, logs = [], time.monotonic_ns(), Path(tempfile.mkdtemp(dir=logs or file.parent))
    try:
        for index in range(processes):
            fault = (faults or {}).get(index)
            module = ["tests.faulty", fault] if fault else ["biomedlm_jax.main"]
            own = [f"--process_id={index}"] if processes > 1 else []
            own += (extra or {}).get(index, [])
            command = [sys.executable, "-m", *module, *flags, *own]
            found.append(Process(command, logs / f"{number}-{index}.log"))
        yield found
    finally:
        for process in found:
            process.popen.kill()
            process.popen.wait()


def ends(processes: list[Process]) -> list[int]:
    """Their exit codes, when all have ended."""
    return [process.wait() for process in processes]


def finish(file: Path, workdir: Path, *flags: str, processes: int = 2) -> None:
    """The same command again, to the end."""
    with running(file, workdir, *flags, processes=processes) as run:
        codes = ends(run)
        assert codes == [0] * processes, "\n".join(process.said for process in run)


def lines(workdir: Path, name: str = "metrics") -> list[dict]:
    return [json.loads(line) for line in (workdir / f"{name}.jsonl").read_text().splitlines()]


def losses(workdir: Path) -> list[tuple[int, float]]:
    """(step, loss) of every update that the run has kept, in the order of the file."""
    return [(line["step"], line["loss"]) for line in lines(workdir) if "loss" in line]


def assert_same(workdir: Path, whole: Path) -> None:
    """Two runs have come to the same end by the same way, to the bit, and left nothing lying."""
    assert losses(workdir) == losses(whole)
    (_, ours, step), (_, theirs, last) = checkpoint.load(workdir), checkpoint.load(whole)
    assert step == last
    same = jax.tree.map(np.array_equal, ours, theirs)
    assert all(jax.tree.leaves(same)), same
    assert not (workdir / "lock").exists()
    assert not list((workdir / "checkpoints").glob("*tmp*"))
    found = {path.name for path in workdir.iterdir() if not path.name.startswith("stacks_")}
    assert found - {"damaged"} == {path.name for path in whole.iterdir()}
