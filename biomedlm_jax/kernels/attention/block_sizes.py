"""How the TPU kernels cut their work, as data: by chip, sequence length and head dim.

Each row was chosen by static cycles of the compiled kernels (jax 0.12.0.1, libtpu 0.0.52, bfloat16,
B N = 80 at T 1024, 160 at 512, 40 at 2048), which `python -m biomedlm_jax.benchmarks.kernels
--sweep` counts. The comments have Mcycles of forward + backward. Schedules move by 3 to 5 % from
edits that mean nothing, so rows differ only where the gain was larger.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Resident:
    """Blocks of `tpu_resident`, in rows; in flight: units that are emitted side by side."""

    forward_rows: int
    forward_in_flight: int
    backward_block: int
    backward_in_flight: int

    def __post_init__(self):
        for name in ("forward_rows", "backward_block"):
            if (rows := getattr(self, name)) <= 0 or rows % 128:
                raise ValueError(f"{name}={rows} is not a multiple of 128")
        for name in ("forward_in_flight", "backward_in_flight"):
            if (count := getattr(self, name)) < 1:
                raise ValueError(f"{name}={count} is not at least 1")


@dataclasses.dataclass(frozen=True)
class Streaming:
    """Blocks, in rows. forward_block, backward_block: of queries and of keys in a step of the grid;
    forward_rows: queries of a unit, backward_unit: keys and queries of a unit; in flight: units
    that are emitted side by side."""

    forward_block: int
    forward_rows: int
    forward_in_flight: int
    backward_block: int
    backward_unit: int
    backward_in_flight: int

    def __post_init__(self):
        for way, part in (("forward", "rows"), ("backward", "unit")):
            block, within = getattr(self, f"{way}_block"), getattr(self, f"{way}_{part}")
            if within <= 0 or within % 128:
                raise ValueError(f"{way}_{part}={within} is not a multiple of 128")
            if block <= 0 or block % within:
                raise ValueError(f"{way}_block={block} is not a multiple of {way}_{part}={within}")
            if (count := getattr(self, f"{way}_in_flight")) < 1:
                raise ValueError(f"{way}_in_flight={count} is not at least 1")


def resident(device_kind: str) -> Resident:
    if device_kind == "TPU v6 lite":
        return Resident(256, 4, 512, 3)
    return Resident(128, 4, 512, 2)


def streaming(device_kind: str, head_dim: int, dtype: jax.typing.DTypeLike) -> Streaming:
    """Larger blocks lose less at their borders; several heads in a column, or float32 products of
    several passes, need as many times the code. A v4 has 16 MiB of VMEM."""
    if jnp.dtype(dtype) == jnp.float32:
        return Streaming(512, 128, 2, 256, 256, 1)
    if head_dim == 32:
        return Streaming(512, 128, 4, 512, 256, 2)
    if head_dim == 64 or device_kind.startswith("TPU v4"):
        return Streaming(1024, 128, 4, 512, 512, 2)
    return Streaming(1024, 128, 3, 1024, 512, 2)


def device() -> tuple[str, str]:
    """(platform, device kind) that is being traced for: of the mesh in use, which may be of chips
    that are not here, or else of the default device."""
    of_mesh = jax.sharding.get_abstract_mesh().abstract_device
    if of_mesh is not None:
        return of_mesh.platform, of_mesh.device_kind
    default = jax.devices()[0]
    return default.platform, default.device_kind
