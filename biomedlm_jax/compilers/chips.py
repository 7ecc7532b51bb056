"""The chips that programs are compiled for without having them, as data.

TPU peaks are those of Google Cloud's pages on each version (197, 459 and 918 TFLOP/s in bfloat16
for v5e, v5p and v6e; 275 for v4) over the clock (1.5, 1.75, 1.75; 1.05 GHz). Compiling a product of
8192 x 8192 matrices agrees: XLA estimates 0.88, 1.80, 2.82 and, for one core of v4, 0.90 times
131,072 operations a cycle.

GPU figures: NVIDIA's A100 and H100 architecture white papers and data sheets, and the table of
technical specifications by compute capability in the CUDA C++ Programming Guide.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Tpu:
    """One chip as one JAX device.

    cores: TensorCores that share the device. XLA splits a kernel's grid between them where its
      dimensions are parallel, so cycles of a program are those of each core while all work.
    flops_per_cycle: of the matrix units of one core, bfloat16; a multiply-add is two.
    mxu_width: of one matrix unit; a contraction or an output that is narrower leaves it part idle.
    topology: arguments of `jax.experimental.topologies.get_topology_desc`.
    """

    cores: int
    flops_per_cycle: int
    mxu_width: int
    topology: dict[str, Any]


TPUS = {
    # Without these arguments a v4 is two devices of one core each.
    "v4": Tpu(
        2,
        131_072,
        128,
        dict(
            topology_name="v4:2x2x1",
            chip_config_name="megacore",
            chips_per_host_bounds=(2, 2, 1),
            num_slices=1,
            wrap=(False, False, False),
        ),
    ),
    "v5e": Tpu(1, 131_072, 128, dict(topology_name="v5e:2x2")),
    "v5p": Tpu(2, 131_072, 128, dict(topology_name="v5p:2x2x1")),
    "v6e": Tpu(1, 524_288, 256, dict(topology_name="v6e:2x2")),
}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What XLA asks of a GPU: bytes, bytes a second, GHz; `shared` is of one multiprocessor, of
    which a block may ask for 1 KiB less. `arch` is what ptxas calls it."""

    name: str
    topology_name: str
    arch: str
    major: int
    cores: int
    lanes: int
    shared: int
    bandwidth: int
    cache: int
    clock: float
    memory: int

    @property
    def topology(self) -> dict[str, Any]:
        return dict(topology_name=self.topology_name, target_config=self.target(), topology="1x1x1")

    def target(self) -> str:
        """XLA's GpuTargetConfigProto as text."""
        extension = " feature_extension: ACCELERATED_FEATURES" if self.arch.endswith("a") else ""
        return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 * 1024}
  shared_memory_per_block_optin: {self.shared - 1024}
  shared_memory_per_core: {self.shared}
  threads_per_core_limit: 2048
  core_count: {self.cores}
  fpus_per_core: {self.lanes}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
  memory_bandwidth: {self.bandwidth}
  l2_cache_size: {self.cache}
  clock_rate_ghz: {self.clock}
  device_memory_size: {self.memory}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {self.major} minor: 0{extension} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{self.name}"
"""


GPUS = {
    "a100": Gpu(
        name="NVIDIA A100-SXM4-80GB",
        topology_name="a100",
        arch="sm_80",
        major=8,
        cores=108,
        lanes=64,
        shared=164 * 2**10,
        bandwidth=2_039 * 10**9,
        cache=40 * 2**20,
        clock=1.41,
        memory=80 * 2**30,
    ),
    "h100": Gpu(
        name="NVIDIA H100 80GB HBM3",
        topology_name="h100",
        arch="sm_90a",
        major=9,
        cores=132,
        lanes=128,
        shared=228 * 2**10,
        bandwidth=3_350 * 10**9,
        cache=50 * 2**20,
        clock=1.98,
        memory=80 * 2**30,
    ),
}
CHIPS = TPUS | GPUS
