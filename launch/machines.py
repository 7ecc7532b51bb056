"""What can be rented, by the names that Google gives it, for all back ends.

A TPU slice is `v5e-256`: Google counts TensorCores of v4 and v5p, of which a chip has two, and of
v5e and v6e chips. GPUs are `h100-8`, in machines of eight, or fewer of them on one. How fast a chip
is and what memory it has is in `biomedlm_jax.compilers.chips`.

Sources: Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e", "TPU software versions",
"Plan TPUs in GKE" and "GPU machine types" (docs.cloud.google.com), as of 2026.
"""

import dataclasses
import difflib
import math

from biomedlm_jax.compilers.chips import GPUS, TPUS
from biomedlm_jax.compilers.topologies import COMMON, GPUS_OF_A_HOST
from biomedlm_jax.entry import UserError


@dataclasses.dataclass(frozen=True)
class Machine:
    """One slice of TPUs, or GPUs that work together.

    name: as a person writes it. kind: its name in `compilers.chips.CHIPS`. chips: of the slice, or
      GPUs. hosts: machines that they are in; each runs one process.
    topology: of a TPU slice in chips, "16x16"; "" of GPUs.
    api_type: the Cloud TPU API's accelerator type; quota: the beginning of its quotas' names, with
      {} for what chips that may be preempted have there; runtime: the software version of its
      hosts. All "" of GPUs.
    machine_type: of Compute Engine and of a GKE node pool. gke_label: the value of GKE's node label
      gke-tpu-accelerator or gke-accelerator.
    """

    name: str
    kind: str
    chips: int
    hosts: int
    topology: str
    api_type: str
    quota: str
    runtime: str
    machine_type: str
    gke_label: str

    @property
    def tpu(self) -> bool:
        return self.kind in TPUS

    @property
    def chips_of_host(self) -> int:
        return self.chips // self.hosts

    @property
    def plan_topology(self) -> str:
        """What `biomedlm_jax.plan --topology` calls it."""
        return f"{self.kind}:{self.topology or self.chips}"

    @property
    def extra(self) -> str:
        """Of pyproject.toml: what a run on it needs besides requirements.txt."""
        return "tpu" if self.tpu else "cuda"


@dataclasses.dataclass(frozen=True)
class _Generation:
    api_name: str  # before the dash of an accelerator type
    quota: str
    runtime: str
    machine: str  # before the number of chips of a host, which ends the machine type
    gke_label: str
    one_host: tuple[int, ...]  # sizes in chips that are one host; larger ones have four chips each


_GENERATIONS = {
    "v4": _Generation(
        "v4", "TPUV4s{}Pod", "tpu-ubuntu2204-base", "ct4p-hightpu", "tpu-v4-podslice", (4,)),
    "v5e": _Generation(
        "v5litepod", "TPUV5s{}Litepod", "v2-alpha-tpuv5-lite", "ct5lp-hightpu",
        "tpu-v5-lite-podslice", (1, 4, 8)),
    "v5p": _Generation(
        "v5p", "TPUV5P{}", "v2-alpha-tpuv5", "ct5p-hightpu", "tpu-v5p-slice", (4,)),
    "v6e": _Generation(
        "v6e", "TPUV6E{}", "v2-alpha-tpuv6e", "ct6e-standard", "tpu-v6e-slice", (1, 4, 8)),
}  # fmt: skip
CHIPS_OF_A_HOST = 4  # of a slice of several hosts

_GPU_MACHINES = {  # {chip: (GKE's label, {GPUs of a machine: its type})}
    "h100": ("nvidia-h100-80gb", {8: "a3-highgpu-8g"}),
    "a100-80": (
        "nvidia-a100-80gb",
        {n: f"a2-ultragpu-{n}g" for n in (1, 2, 4, 8)},
    ),
    "a100-40": (
        "nvidia-tesla-a100",
        {n: f"a2-highgpu-{n}g" for n in (1, 2, 4, 8)},
    ),
    "l4": ("nvidia-l4", {1: "g2-standard-12", 2: "g2-standard-24", 4: "g2-standard-48",
                         8: "g2-standard-96"}),
}  # fmt: skip


def _slices() -> dict[str, Machine]:
    found = {}
    for kind, made in _GENERATIONS.items():
        chip = TPUS[kind]
        for topology in COMMON[chip.torus]:
            chips = math.prod(map(int, topology.split("x")))
            if chips < CHIPS_OF_A_HOST and chips not in made.one_host:
                continue
            hosts = 1 if chips in made.one_host else chips // CHIPS_OF_A_HOST
            size = chips * chip.cores
            found[f"{kind}-{size}"] = Machine(
                name=f"{kind}-{size}",
                kind=kind,
                chips=chips,
                hosts=hosts,
                topology=topology,
                api_type=f"{made.api_name}-{size}",
                quota=made.quota,
                runtime=made.runtime,
                machine_type=f"{made.machine}-{chips // hosts}t",
                gke_label=made.gke_label,
            )
    return found


SLICES = _slices()


def named(name: str) -> Machine:
    """The machine of that name; the API's own, as v5litepod-256, are understood too.

    Raises:
      UserError: there is none, with the nearest that are.
    """
    by_api = {machine.api_type: machine for machine in SLICES.values()}
    if found := SLICES.get(name) or by_api.get(name):
        return found
    kind, _, count = name.rpartition("-")
    if kind in _GPU_MACHINES and count.isdecimal():
        return _gpus(name, kind, int(count))
    raise UserError(f"accelerator={name!r} is nothing that can be rented; {_nearest(name)}")


def _gpus(name: str, kind: str, count: int) -> Machine:
    label, types = _GPU_MACHINES[kind]
    each = min(count, GPUS_OF_A_HOST)
    if each not in types or count % each or (count > each and GPUS[kind].network is None):
        sizes = [f"{kind}-{n}" for n in types]
        if GPUS[kind].network is not None:
            sizes.append(f"any multiple of {GPUS_OF_A_HOST} as {kind}-{4 * GPUS_OF_A_HOST}")
        raise UserError(f"accelerator={name!r}: {kind} comes as {', '.join(sizes)}")
    return Machine(name, kind, count, count // each, "", "", "", "", types[each], label)


def _nearest(name: str) -> str:
    kind, _, count = name.rpartition("-")
    kind = {"v5litepod": "v5e", "v5lite": "v5e"}.get(kind, kind)
    same = [machine for machine in SLICES.values() if machine.kind == kind]
    if same and count.isdecimal():
        near = sorted(same, key=lambda m: abs(int(m.name.rpartition("-")[2]) - int(count)))[:2]
        return f"nearest are {' and '.join(machine.name for machine in near)}"
    known = [*SLICES, *(f"{kind}-8" for kind in _GPU_MACHINES)]
    if near := difflib.get_close_matches(name, known, n=3, cutoff=0.5):
        return f"did you mean {' or '.join(near)}?"
    kinds = [*_GENERATIONS, *_GPU_MACHINES]
    return f"known are {', '.join(kinds)} with a dash and how many, as v5e-256 or h100-8"
