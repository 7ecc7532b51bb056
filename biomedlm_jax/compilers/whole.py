"""A whole program, compiled: what it holds, what it does, and what it took to compile it."""

import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from biomedlm_jax.compilers import calls, cost

SHOWN = 40  # of the most expensive operations
PEAK = Path("/proc/self/clear_refs"), Path("/proc/self/status")
TOO_LARGE = (  # libtpu 0.0.52 and 0.0.42; the numbers are GiB, MiB, ...
    re.compile(
        r"required for .*?\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"
    ),
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"),
)


def program(
    function: Callable, operands: tuple, platform: str, text_to: str | None = None
) -> dict[str, Any]:
    """Compiles `function(*operands)`, where it is jitted as it is, and returns its figures.

    text_to: a file for the text of the optimised program.

    Returns:
      trace_seconds, compile_seconds, host_bytes: of the compiler, its largest resident size.
      calls: of Pallas kernels on TPU, by `calls.calls`, or why they can not be read.
      memory: bytes on a device, by `memory`.
      matrix_flops, xla_cycles, kernel_runs, collectives, dearest: as in `cost.Program`; all None
        and `uncounted` the reason where the text can not be counted.

    Raises:
      what XLA raises for a program that it refuses.
    """
    forget_peak()
    begin = time.perf_counter()
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    lowered = jitted.trace(*operands).lower(lowering_platforms=(platform,))  # pyright: ignore
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    text = compiled.as_text()
    assert text is not None, "XLA gives the text of every program"
    if text_to:
        Path(text_to).write_text(text)
    figures = {
        "trace_seconds": middle - begin,
        "compile_seconds": end - middle,
        "host_bytes": peak(),
        "memory": memory(compiled),
        "calls": called(lowered) if platform == "tpu" else [],
    }
    return figures | counted(text)


def called(lowered: Any) -> list[dict[str, Any]] | str:
    """See `program`."""
    try:
        return calls.calls(lowered)
    except ValueError as reason:
        return str(reason)


def counted(text: str) -> dict[str, Any]:
    """See `program`."""
    try:
        found = cost.read(text)
    except ValueError as reason:
        names = ("matrix_flops", "xla_cycles", "kernel_runs", "collectives", "dearest")
        return {**dict.fromkeys(names), "uncounted": str(reason)}
    return {
        "matrix_flops": found.matrix_flops,
        "xla_cycles": found.xla_cycles,
        "kernel_runs": found.kernels,
        "collectives": [dataclasses.asdict(one) for one in found.collectives],
        "dearest": [operation._asdict() for operation in found.dearest[:SHOWN]],
    }


def memory(compiled: Any) -> dict[str, int]:
    """Bytes of a device that the program takes: arguments, results that are not written over
    arguments, temporary, code, and the peak of all but the code, as XLA states them.

    The allocator takes `temporary` in one piece, with what its cutting leaves unused; the peak is
    of what is in use at once.
    """
    found = compiled.memory_analysis()
    assert found is not None, "XLA says what memory every program takes"
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    whole = found.argument_size_in_bytes + results + found.temp_size_in_bytes
    return {
        "arguments": found.argument_size_in_bytes,
        "results": results,
        "temporary": found.temp_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
        "peak": found.peak_memory_in_bytes or whole,
    }


def too_large(message: str) -> tuple[int, int] | None:
    """(Bytes wanted, bytes there) where a compiler's message says that memory was not enough."""
    for form in TOO_LARGE:
        if found := form.search(message):
            units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
            wanted, unit, there, unit_there = found.groups()
            return int(float(wanted) * units[unit]), int(float(there) * units[unit_there])
    return None


def forget_peak() -> None:
    """The kernel counts this process's largest resident size anew from here."""
    PEAK[0].write_text("5")


def peak() -> int:
    """This process's largest resident size in bytes since `forget_peak`."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", PEAK[1].read_text())
    return int(line) * 1024
