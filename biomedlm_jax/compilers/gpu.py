"""Compiles a function for a GPU that is not here, with JAX's CUDA plugin, and has ptxas say what
registers each kernel takes and what it spills.

XLA hands each kernel to the ptxas below `CUDA_ROOT`, which JAX reads once, so this runs in a
process of its own (`child.py`) with a folder that keeps a copy of what ptxas is given. (JAX 0.12
does not write these kernels' PTX into `--xla_dump_to`.)
"""

import importlib.util
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from biomedlm_jax.compilers import whole
from biomedlm_jax.compilers.chips import GPUS
from biomedlm_jax.compilers.wheels import install

WHEELS = ("jax-cuda12-plugin", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12")
ENTRY = re.compile(r"Compiling entry function '([^']+)' for")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")


def missing() -> str | None:
    """Why nothing can be compiled for GPUs here; None where it can."""
    if not importlib.util.find_spec("jax_cuda12_plugin"):
        return f"JAX's CUDA plugin is not installed: {install(*WHEELS)}"
    if not ptxas():
        return f"ptxas is not installed: {install(*WHEELS)}"
    return None


def ptxas() -> Path | None:
    """The assembler in the wheel of nvcc; one in PATH may be of another CUDA."""
    for parent in ("nvidia", "nvidia.cuda_nvcc"):
        if not importlib.util.find_spec(parent):
            return None
    spec = importlib.util.find_spec("nvidia.cuda_nvcc")
    places = [Path(place) / "bin/ptxas" for place in spec.submodule_search_locations or ()]  # type: ignore[union-attr]
    return next((place for place in places if place.is_file()), None)


def environment(dump: Path, schedules: bool) -> dict[str, str]:
    """Sets up a CUDA_ROOT beside `dump` whose ptxas leaves a copy of its input in `dump`, where
    `schedules` are asked for."""
    real = ptxas()
    assert real is not None, "`missing` was asked before"
    root = dump.parent / "cuda"
    (root / "bin").mkdir(parents=True)
    (root / "nvvm").symlink_to(real.parent.parent / "nvvm")
    keeper = root / "bin/ptxas"
    copy = ":" if not schedules else f'[ -f "$1" ] && cp "$1" {shlex.quote(str(dump))}/$$.ptx'
    keeper.write_text(f'#!/bin/sh\n{copy}\nexec {shlex.quote(str(real))} "$@"\n')
    keeper.chmod(0o755)
    return {"JAX_PLATFORMS": "cpu", "CUDA_ROOT": str(root)}


def measure(
    chip: str, function: Callable, operands: tuple[jax.ShapeDtypeStruct, ...], dump: Path
) -> dict[str, Any]:
    """Compiles `function(*operands)` for one device of `chip`.

    Returns:
      temporary_bytes: of device memory.
      kernels: by name, Pallas's and XLA's: registers a thread, bytes of spills and of stack.

    Raises:
      what XLA raises for a program that it refuses.
      RuntimeError: ptxas refuses a kernel.
    """
    compiled = whole.program(function, operands, "cuda")
    kernels: dict[str, dict[str, int]] = {}
    for path in sorted(dump.glob("*.ptx")):
        for name, figures in read(_assembled(path, GPUS[chip].arch)).items():
            kernels[f"{name} again" if name in kernels else name] = figures
    return {
        "temporary_bytes": compiled["memory"]["temporary"],
        "kernels": kernels,
    }


def _assembled(ptx: Path, arch: str) -> str:
    """What `ptxas -v` says of a file of PTX."""
    command = [str(ptxas()), "-v", f"-arch={arch}", str(ptx), "-o", "/dev/null"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ptxas refuses {ptx.name}: {done.stderr.strip()}")
    return done.stderr + done.stdout


def read(report: str) -> dict[str, dict[str, int]]:
    """By name of the kernel, from the report of `ptxas -v`."""
    found: dict[str, dict[str, int]] = {}
    for part in re.split(r"(?=ptxas info\s*: Compiling entry function)", report):
        name, stack, registers = ENTRY.search(part), STACK.search(part), REGISTERS.search(part)
        if not name:
            continue
        if not stack or not registers:
            raise ValueError(f"ptxas says nothing of registers or spills of {name[1]!r}")
        found[name[1]] = {
            "registers": int(registers[1]),
            "stack_bytes": int(stack[1]),
            "spilled_bytes": int(stack[2]) + int(stack[3]),
        }
    return found
