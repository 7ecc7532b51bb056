"""Two sides of a comparison on this CPU, each in a process of its own, which waits while the other
works; and the record of what they said."""

import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from biomedlm_jax.entry import UserError

SIDES = ("ours", "pytorch")
PACKAGES = ("jax", "jaxlib", "torch", "transformers", "numpy")


class Side:
    """A process that does what it is asked to, in the program `module`."""

    def __init__(self, name: str, module: str):
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, f"--side={name}"],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: Any) -> dict[str, Any]:
        """Its answer; both are JSON."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name} died (exit {self._process.wait()})")
        return json.loads(line)

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def answer(act: Callable[[Any], dict[str, Any]]) -> None:
    """The other end of `Side.ask`, until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes elsewhere
    for line in sys.stdin:
        answers.write(json.dumps(act(json.loads(line))) + "\n")
        answers.flush()


def check_peer() -> None:
    """Raises UserError where the peer is not installed."""
    if missing := [
        name for name in ("torch", "transformers") if not importlib.util.find_spec(name)
    ]:
        raise UserError(
            f"{', '.join(missing)} is not installed, so there is nothing to compare with; "
            "requirements-dev.txt has it for Python 3.11"
        )


def write(output: Path, found: dict[str, Any]) -> None:
    """record.json in `output`, with where it was found out; prints the versions."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    record = {
        "date": datetime.date.today().isoformat(),
        "versions": versions,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "memory": os.environ.get("GLIBC_TUNABLES", ""),  # the same for both sides
        **found,
    }
    output.mkdir(parents=True, exist_ok=True)
    beside = output / "record.json.partial"
    beside.write_text(json.dumps(record, indent=1) + "\n")
    beside.rename(output / "record.json")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
