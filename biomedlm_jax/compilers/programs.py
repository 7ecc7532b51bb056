"""Whole programs for machines that are not here: `with Programs("tpu") as programs: ...`"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from biomedlm_jax.compilers.child import CompileError, Compiler
from biomedlm_jax.compilers.topologies import named

ALONE = "biomedlm_jax.compilers.calls:alone"


class Programs:
    """Compiles programs of one platform in one process and, on TPU, the kernels that they call,
    each once, in another one that also writes their schedules."""

    def __init__(self, platform: str):
        self._closing = ExitStack()
        self._whole = self._closing.enter_context(Compiler(platform, schedules=False))
        self._kernels = self._closing.enter_context(Compiler(platform))
        self._platform = platform
        self._cycles: dict[str, int | str] = {}  # or why they are not known

    def __enter__(self) -> "Programs":
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def program(
        self, machine: str, make: str, text_to: Path | None = None, **options: Any
    ) -> dict[str, Any]:
        """A whole program for a machine of `topologies.named`: what `whole.program` says of it, and
        `kernel_cycles`, static cycles of a core of all runs of kernels, None where they are not
        known and `kernels_unknown` says why. text_to: a file for the program's text.

        Raises:
          CompileError: the program can not be made or compiled, or kills the compiler.
          MachineError: the compiler knows no such machine.
        """
        more = {"text_to": str(text_to) if text_to else None}
        request = dict(machine=machine, make=make, options=options, how="program", more=more)
        found = self._whole.asked(request)
        calls, runs = found.pop("calls"), found["kernel_runs"]
        try:
            return found | {"kernel_cycles": self._all(machine, calls, runs)}
        except ValueError as reason:
            return found | {"kernel_cycles": None, "kernels_unknown": str(reason)}

    def _all(
        self, machine: str, calls: list[dict[str, Any]] | str, runs: dict[str, int] | None
    ) -> int:
        """Cycles of every run of every kernel. The name of a kernel's instruction has the kernel's
        in it, as jvp_attention_forward_.1; of two that fit, the longer one is meant.

        Raises:
          ValueError: they are not known; the message says why.
        """
        if self._platform != "tpu":
            raise ValueError("no compiler states cycles for GPUs")
        if runs is None:
            raise ValueError("the program's text could not be counted")
        if isinstance(calls, str):
            if runs:
                raise ValueError(calls)
            return 0
        total = 0
        for instruction, times in runs.items():
            near = [call for call in calls if call["name"] and call["name"] in instruction]
            longest = max((len(call["name"]) for call in near), default=0)
            meant = [call for call in near if len(call["name"]) == longest]
            if not meant:
                raise ValueError(f"{instruction} is no kernel that the program was given")
            cycles = {self._of(machine, call) for call in meant}
            if len(cycles) != 1:
                raise ValueError(f"{instruction} is one of several kernels of a name that differ")
            total += times * cycles.pop()
        return total

    def _of(self, machine: str, call: dict[str, Any]) -> int:
        """Of one run of a kernel.

        Raises:
          ValueError: the trips of a loop in it are not constant, or it does not compile alone.
        """
        chip = machine.partition(":")[0]
        key = chip + json.dumps(call)
        if key not in self._cycles:
            assert named(chip).devices == 1
            self._cycles[key] = self._alone(chip, call)
        found = self._cycles[key]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def _alone(self, chip: str, call: dict[str, Any]) -> int | str:
        """Of one run, or why that is not known."""
        name = call["name"]
        try:
            kernels = self._kernels.measure(chip, ALONE, call=call)["kernels"]
        except CompileError as error:
            return f"{name} does not compile alone: {' '.join(str(error).split())}"
        if len(kernels) != 1:
            return f"{name} alone is a program of {len(kernels)} kernels"
        (one,) = kernels.values()
        if one["cycles_of_a_trip"]:
            return f"the trips of a loop in {name} are not constant"
        return one["cycles"]
