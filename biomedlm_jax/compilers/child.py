"""The process that compiles, and the handle on it: `with Compiler("tpu") as compiler: ...`

A request is one line of JSON, {machine, make, options, how}; the answer is one line. `make` is
"module:name" of a function of devices and of options that returns what to compile and its
operands. A program that XLA refuses is answered with the reason. A compiler that dies takes its
process with it and not the caller; the next request starts another.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jax.experimental import topologies
from jaxlib._jax import Device

from biomedlm_jax.compilers import whole
from biomedlm_jax.compilers.topologies import named

LOWERED = {"tpu": "tpu", "gpu": "cuda"}  # what JAX calls the platform of each compiler


class CompileError(RuntimeError):
    """The program does not compile for the chip; the message is the compiler's."""


class MachineError(CompileError):
    """The compiler knows no such machine."""


def missing(platform: str) -> str | None:
    """Why nothing can be compiled for "tpu" or "gpu" here; None where it can."""
    return importlib.import_module(f"{__package__}.{platform}").missing()


class Compiler:
    """Compiles for chips of one platform, one program at a time, in a process that it starts.

    schedules: the compiler also writes what `measure` reads, which takes it longer.
    """

    def __init__(self, platform: str, schedules: bool = True):
        self._platform, self._schedules = platform, schedules
        self._folder = Path(tempfile.mkdtemp(prefix="compile-"))
        self._process: subprocess.Popen[str] | None = None
        self._errors = (self._folder / "stderr").open("w+")

    def __enter__(self) -> "Compiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._errors.close()
        shutil.rmtree(self._folder)

    def measure(self, chip: str, make: str, **options: Any) -> dict[str, Any]:
        """A program of kernels for one device; see `tpu.measure` and `gpu.measure`.

        Raises:
          CompileError: what is asked for can not be made or compiled, or kills the compiler.
        """
        return self.asked(dict(machine=chip, make=make, options=options, how="measure"))

    def asked(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
          CompileError: as above.
        """
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            self._end()
            self._errors.seek(0)
            raise CompileError(
                f"the compiler died (exit {process.returncode}): {self._last_words()}"
            )
        answer = json.loads(line)
        if "refused" in answer:
            raise (CompileError if answer["machine"] else MachineError)(answer["refused"])
        return answer

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            module = importlib.import_module(f"{__package__}.{self._platform}")
            dump = Path(tempfile.mkdtemp(dir=self._folder)) / "dump"
            dump.mkdir()
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.child", self._platform, str(dump)],
                env={**os.environ, **module.environment(dump, self._schedules)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        return self._process

    def _end(self) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # the end of its requests
        self._process.wait()
        self._process.stdout.close()
        self._process = None

    def _last_words(self) -> str:
        return "\n".join(self._errors.read().splitlines()[-5:])


def answer(platform: str, dump: Path, request: dict[str, Any]) -> dict[str, Any]:
    compiler = importlib.import_module(f"{__package__}.{platform}")
    module, name = request["make"].split(":")
    for old in dump.iterdir():
        old.unlink()
    devices = None
    try:
        devices = present(request["machine"])
        function, operands = getattr(importlib.import_module(module), name)(
            *devices, **request["options"]
        )
        if request["how"] == "program":
            return whole.program(function, operands, LOWERED[platform], **request["more"])
        return compiler.measure(request["machine"], function, operands, dump)
    except Exception as error:  # whatever it is, it is the answer to this request
        return {"refused": f"{type(error).__name__}: {error}", "machine": bool(devices)}


def present(name: str) -> list[Device]:
    """The devices of the machine of that name, as if they were here; see `topologies.named`.

    Raises:
      what the compiler raises for a shape that it does not know.
    """
    machine = named(name)
    found = topologies.get_topology_desc(**machine.arguments()).devices
    return list(found)[: machine.devices]


def main() -> None:
    platform, dump = sys.argv[1], Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what compilers print goes elsewhere
    for line in sys.stdin:
        answers.write(json.dumps(answer(platform, dump, json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
