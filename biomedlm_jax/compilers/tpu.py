"""Compiles a function for a TPU that is not here, with libtpu, and reads what it will cost.

libtpu reads its flags once, when it is loaded, so this runs in a process of its own (`child.py`)
whose environment `environment()` made; the dump folder is emptied before each compilation.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from biomedlm_jax.compilers import schedules, whole
from biomedlm_jax.compilers.wheels import install


def missing() -> str | None:
    """Why nothing can be compiled for TPUs here; None where it can."""
    if not importlib.util.find_spec("libtpu"):
        return f"libtpu is not installed: {install('libtpu')}"
    return None


def environment(dump: Path, schedules: bool) -> dict[str, str]:
    """What libtpu needs where there is no TPU, and where it writes schedules if it is to. It would
    write gigabytes, one file for each of its own passes over each operation; two of them are read.
    """
    found = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    if schedules:
        wanted = "^final_(bundles|hlo-static-per-bundle-utilization)$"
        written = f"--xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex={wanted}"
        found["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={dump} {written}"
    return found


def measure(
    chip: str, function: Callable, operands: tuple[jax.ShapeDtypeStruct, ...], dump: Path
) -> dict[str, Any]:
    """Compiles `function(*operands)` for one device of `chip`, to look at its kernels.

    Returns:
      xla_cycles: XLA's estimate for what surrounds the Pallas kernels, of each core.
      peak_bytes, temporary_bytes: of HBM; the peak counts operands and results too.
      kernels: by name of the HLO instruction: runs; of one run `Schedule.cycles`, `idle`,
        `cycles_of_a_trip` (0 where all loops are constant) and `optional`; bundles, matrix slots
        and spills in its text; its loops.

    Raises:
      what XLA raises for a program that it refuses.
      ValueError: the program can not be counted, or libtpu wrote no schedule of a kernel.
    """
    del chip
    figures = whole.program(function, operands, "tpu")
    if "uncounted" in figures:
        raise ValueError(figures["uncounted"])
    runs = figures["kernel_runs"]
    return {
        "xla_cycles": figures["xla_cycles"] or 0,
        "peak_bytes": figures["memory"]["peak"],
        "temporary_bytes": figures["memory"]["temporary"],
        "kernels": {
            name: {"runs": runs[name], **_kernel(schedule)}
            for name, schedule in _schedules(runs, dump).items()
        },
    }


def _schedules(runs: dict[str, int], dump: Path) -> dict[str, schedules.Schedule]:
    found = schedules.in_folder(dump, set(runs))
    if missing := sorted(set(runs) - set(found)):
        raise ValueError(f"libtpu wrote no schedule of {', '.join(missing)}")
    return {name: found[name] for name in runs}


def _kernel(schedule: schedules.Schedule) -> dict[str, Any]:
    return {
        "cycles": schedule.cycles(),
        "idle": schedule.idle(),
        "cycles_of_a_trip": schedule.cycles_of_a_trip(),
        "bundles": schedule.bundles,
        "matmul_slots": schedule.used("MATMUL"),
        "spills": schedule.used("VSTORE:SPILL"),
        "fills": schedule.used("VLOAD:FILL"),
        "loops": [[loop.start, loop.end, loop.trips] for loop in schedule.loops],
        "optional": schedule.optional(),
    }
