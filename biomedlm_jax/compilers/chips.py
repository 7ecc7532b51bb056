"""The chips that programs are planned and compiled for without having them, as data.

Figures are those of data sheets, and no time of a real run is among them.

TPU: flops, HBM and interchip interconnect (ICI) of Google Cloud's pages "TPU v4", "TPU v5e", "TPU
v5p" and "TPU v6e" (docs.cloud.google.com/tpu/docs). They give ICI per chip as both ways together
(400, 1,200 GB/s for v5e, v5p) or as one way (2,400, 1,600, 4,800, 3,200 Gbit/s for v4, v5e, v5p,
v6e), which is the same; here it is one way. `program_bytes` is what libtpu 0.0.52 says that a
program may have when it refuses a larger one. The operations a cycle are those of the matrix
units, four of 128 x 128 a core; compiling a product of 8192 x 8192 matrices agrees: XLA estimates
0.88, 1.80, 2.82 and, for one core of v4, 0.90 times 131,072 operations a cycle. The two units of
256 x 256 that Google's page gives v6e would make 262,144, and its peak a clock of 3.5 GHz. XLA's
2.82 is more than they could do, so the table has twice as many: the peak over a clock of 1.75 GHz,
which is concluded, and stated nowhere.

GPU: NVIDIA's data sheets of each product (dense bfloat16 with float32 sums; T4: float16, for it
has no bfloat16), the Turing, Ampere, Ada and Hopper white papers, and the table of technical
specifications by compute capability in the CUDA C++ Programming Guide. Memory is what nvidia-smi
shows. NVLink is one way, half of what the data sheets give; the network is that of DGX A100 and
DGX H100, one adapter of 200 and 400 Gbit/s a GPU; cards without NVLink have their PCIe, x16 of
generation 3 or 4, and are planned for inside one host.
"""

import dataclasses
import re
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Tpu:
    """One chip as one JAX device.

    kind: a regular expression for `jax.Device.device_kind`.
    cores: TensorCores that share the device. XLA splits a program between them, so cycles are
      those of each core while all work.
    flops_per_cycle: of the matrix units of one core, bfloat16; a multiply-add is two.
    mxu_width: of one matrix unit; a contraction or an output that is narrower leaves it part idle.
    flops: a second, dense bfloat16, of the chip. hbm: bytes of the data sheet. program_bytes: what
      the compiler gives a program of them. bandwidth: bytes a second of HBM.
    ici: bytes a second one way over all links; torus: axes of the network, two links each.
    """

    kind: str
    cores: int
    flops_per_cycle: int
    mxu_width: int
    flops: float
    hbm: int
    program_bytes: int
    bandwidth: float
    ici: float
    torus: int

    @property
    def clock(self) -> float:
        """Cycles a second, as the peak implies them."""
        return self.flops / (self.cores * self.flops_per_cycle)

    @property
    def memory(self) -> int:
        return self.program_bytes


TPUS = {
    "v4": Tpu(
        kind="TPU v4",
        cores=2,
        flops_per_cycle=131_072,
        mxu_width=128,
        flops=275e12,
        hbm=32 * GIB,
        program_bytes=int(30.75 * GIB),
        bandwidth=1_200e9,
        ici=300e9,
        torus=3,
    ),
    "v5e": Tpu(
        kind="TPU v5 lite",
        cores=1,
        flops_per_cycle=131_072,
        mxu_width=128,
        flops=197e12,
        hbm=16 * GIB,
        program_bytes=int(15.75 * GIB),
        bandwidth=819e9,
        ici=200e9,
        torus=2,
    ),
    "v5p": Tpu(
        kind="TPU v5p?",
        cores=2,
        flops_per_cycle=131_072,
        mxu_width=128,
        flops=459e12,
        hbm=95 * GIB,
        program_bytes=int(95.73 * GIB),
        bandwidth=2_765e9,
        ici=600e9,
        torus=3,
    ),
    "v6e": Tpu(
        kind="TPU v6 lite",
        cores=1,
        flops_per_cycle=524_288,
        mxu_width=256,
        flops=918e12,
        hbm=32 * GIB,
        program_bytes=int(31.24 * GIB),
        bandwidth=1_600e9,
        ici=400e9,
        torus=2,
    ),
}


@dataclasses.dataclass(frozen=True)
class Capability:
    """What NVIDIA's table says of a compute capability. threads, shared: of a multiprocessor;
    block_shared: bytes that one block may ask for; lanes: float32 operations a cycle."""

    arch: str
    threads: int
    shared: int
    block_shared: int
    lanes: int


CAPABILITIES = {
    (7, 5): Capability("sm_75", 1024, 64 * 2**10, 64 * 2**10, 64),
    (8, 0): Capability("sm_80", 2048, 164 * 2**10, 163 * 2**10, 64),
    (8, 6): Capability("sm_86", 1536, 100 * 2**10, 99 * 2**10, 128),
    (8, 9): Capability("sm_89", 1536, 100 * 2**10, 99 * 2**10, 128),
    (9, 0): Capability("sm_90a", 2048, 228 * 2**10, 227 * 2**10, 128),
}

CUDA = GIB // 2  # of a device that its context, libraries and code take, about


@dataclasses.dataclass(frozen=True)
class Gpu:
    """kind: a regular expression for `jax.Device.device_kind`. cores: multiprocessors. flops,
    bandwidth, clock: a second; capacity, cache: bytes. link: bytes a second one way to GPUs of the
    same host; network: to other hosts, None where the card is planned for inside one."""

    name: str
    kind: str
    capability: tuple[int, int]
    cores: int
    flops: float
    capacity: int  # as nvidia-smi shows it
    bandwidth: float
    cache: int
    clock: float
    link: float
    network: float | None = None

    @property
    def memory(self) -> int:
        """That a program can have."""
        return self.capacity - CUDA

    @property
    def arch(self) -> str:
        """What ptxas calls it."""
        return CAPABILITIES[self.capability].arch

    def target(self) -> str:
        """XLA's GpuTargetConfigProto as text."""
        found, (major, minor) = CAPABILITIES[self.capability], self.capability
        extension = " feature_extension: ACCELERATED_FEATURES" if found.arch.endswith("a") else ""
        return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 * 1024}
  shared_memory_per_block_optin: {found.block_shared}
  shared_memory_per_core: {found.shared}
  threads_per_core_limit: {found.threads}
  core_count: {self.cores}
  fpus_per_core: {found.lanes}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
  memory_bandwidth: {int(self.bandwidth)}
  l2_cache_size: {self.cache}
  clock_rate_ghz: {self.clock / 1e9}
  device_memory_size: {self.capacity}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor}{extension} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{self.name}"
"""


def _gpu(name: str, kind: str, capability: tuple[int, int], mib: int, **figures: Any) -> Gpu:
    return Gpu(name=name, kind=kind, capability=capability, capacity=mib * 2**20, **figures)


_A100: dict[str, Any] = dict(cores=108, flops=312e12, cache=40 * 2**20, clock=1.41e9)
_A100 |= dict(link=300e9, network=25e9)
GPUS = {
    "h100": _gpu("NVIDIA H100 80GB HBM3", "H100", (9, 0), 81_559, cores=132, flops=989e12,
                 bandwidth=3_350e9, cache=50 * 2**20, clock=1.98e9, link=450e9, network=50e9),
    "a100-80": _gpu("NVIDIA A100-SXM4-80GB", "A100", (8, 0), 81_920, bandwidth=2_039e9, **_A100),
    "a100-40": _gpu("NVIDIA A100-SXM4-40GB", "A100", (8, 0), 40_960, bandwidth=1_555e9, **_A100),
    "rtx4090": _gpu("NVIDIA GeForce RTX 4090", "RTX 4090", (8, 9), 24_564, cores=128, flops=165e12,
                    bandwidth=1_008e9, cache=72 * 2**20, clock=2.52e9, link=32e9),
    "l4": _gpu("NVIDIA L4", "NVIDIA L4", (8, 9), 23_034, cores=58, flops=121e12,
               bandwidth=300e9, cache=48 * 2**20, clock=2.04e9, link=32e9),
    "a10": _gpu("NVIDIA A10", "NVIDIA A10", (8, 6), 23_028, cores=72, flops=125e12,
                bandwidth=600e9, cache=6 * 2**20, clock=1.695e9, link=32e9),
    "t4": _gpu("Tesla T4", "Tesla T4", (7, 5), 15_360, cores=40, flops=65e12,
               bandwidth=320e9, cache=4 * 2**20, clock=1.59e9, link=16e9),
}  # fmt: skip
Chip = Tpu | Gpu
CHIPS: dict[str, Chip] = {**TPUS, **GPUS}


def of_kind(kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None for one that is not here."""
    found = {}
    for chip in CHIPS.values():
        if match := re.search(rf"\b({chip.kind})\b", kind):
            found.setdefault(len(match[0]), chip)
    return found[max(found)] if found else None  # "TPU v5" is in "TPU v5 lite"
