"""Compiles a function for a TPU that is not here, with libtpu, and reads what it will cost.

libtpu reads its flags once, when it is loaded, so this runs in a process of its own (`child.py`)
whose environment `environment()` made; the dump folder is emptied before each compilation.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jaxlib._jax import Device

from biomedlm_jax.compilers import hlo, schedules
from biomedlm_jax.compilers.chips import TPUS


def missing() -> str | None:
    """Why nothing can be compiled for TPUs here; None where it can."""
    if not importlib.util.find_spec("libtpu"):
        return "libtpu is not installed: make compilers"
    return None


def environment(dump: Path) -> dict[str, str]:
    """What libtpu needs where there is no TPU, and where it writes its schedules."""
    return {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true",
    }


def device(chip: str) -> Device:
    return topologies.get_topology_desc(platform="tpu", **TPUS[chip].topology).devices[0]


def measure(
    chip: str, function: Callable, operands: tuple[jax.ShapeDtypeStruct, ...], dump: Path
) -> dict[str, Any]:
    """Compiles `function(*operands)` for one device of `chip`.

    Returns:
      xla_cycles: XLA's estimate for what surrounds the Pallas kernels, of each core.
      peak_bytes, temporary_bytes: of HBM; the peak counts operands and results too.
      kernels: by name of the HLO instruction: runs; of one run `Schedule.cycles`, `idle`,
        `cycles_of_a_trip` (0 where all loops are constant) and `optional`; bundles, matrix slots
        and spills in its text; its loops.

    Raises:
      what XLA raises for a program that it refuses.
      ValueError: libtpu wrote no schedule of a kernel that the program calls.
    """
    compiled = jax.jit(function).trace(*operands).lower(lowering_platforms=("tpu",)).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None, "libtpu gives the text of every program"
    assert memory is not None, "and says what memory it takes"
    program = hlo.read(text)
    found = schedules.in_folder(dump)
    return {
        "xla_cycles": program.xla_cycles,
        "peak_bytes": memory.peak_memory_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "kernels": {
            name: {"runs": runs, **_kernel(name, found)} for name, runs in program.kernels.items()
        },
    }


def _kernel(name: str, found: dict[str, schedules.Schedule]) -> dict[str, Any]:
    if name not in found:
        raise ValueError(f"libtpu wrote no schedule of kernel {name!r}, only of {sorted(found)}")
    schedule = found[name]
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
