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
        self._cycles: dict[str, int | None] = {}

    def __enter__(self) -> "Programs":
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def program(
        self, machine: str, make: str, text_to: Path | None = None, **options: Any
    ) -> dict[str, Any]:
        """A whole program for a machine of `topologies.named`: what `whole.program` says of it, and
        `kernel_cycles`, static cycles of a core of all runs of kernels, None where they are not
        known. text_to: a file for the program's text.

        Raises:
          CompileError: the program can not be made or compiled, or kills the compiler.
          MachineError: the compiler knows no such machine.
        """
        more = {"text_to": str(text_to) if text_to else None}
        request = dict(machine=machine, make=make, options=options, how="program", more=more)
        found = self._whole.asked(request)
        calls, runs = found.pop("calls"), found["kernel_runs"]
        return found | {"kernel_cycles": self._all(machine, calls, runs) if runs else None}

    def _all(self, machine: str, calls: list[dict[str, Any]], runs: dict[str, int]) -> int | None:
        """Cycles of every run of every kernel. The name of a kernel's instruction has the kernel's
        in it, as jvp_attention_forward_.1; of two that fit, the longer one is meant."""
        total = 0
        for instruction, times in runs.items():
            near = [call for call in calls if call["name"] and call["name"] in instruction]
            longest = max((len(call["name"]) for call in near), default=0)
            meant = [call for call in near if len(call["name"]) == longest]
            cycles = {self._of(machine, call) for call in meant}
            if len(cycles) != 1:  # none, or several kernels of one name that differ
                return None
            (one,) = cycles
            if one is None:
                return None
            total += times * one
        return total

    def _of(self, machine: str, call: dict[str, Any]) -> int | None:
        """Of one run of a kernel; None where the trips of a loop in it are not constant, or it does
        not compile alone."""
        chip = machine.partition(":")[0]
        key = chip + json.dumps(call)
        if key not in self._cycles:
            assert named(chip).devices == 1
            try:
                kernels = self._kernels.measure(chip, ALONE, call=call)["kernels"]
            except CompileError:
                kernels = {}
            found = [one["cycles"] for one in kernels.values() if not one["cycles_of_a_trip"]]
            self._cycles[key] = found[0] if len(found) == len(kernels) == 1 else None
        return self._cycles[key]
