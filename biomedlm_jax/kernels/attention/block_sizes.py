"""How the TPU kernels cut their work, as data, and what is being traced for.

Rows were chosen by static cycles (jax 0.12.0.1, libtpu 0.0.52, bfloat16), Mcycles of forward +
backward in the comments; `python -m biomedlm_jax.speed.kernels` counts the row that stands
here. Edits that mean nothing move a schedule by 3 to 5 %, so rows differ only where the gain was
more. The GPU kernel's are in `pallas_gpu.py`, chosen by spills and instructions.
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
    """The same for all T and head dims. Of twelve other cuts none was better by more than noise
    where they were tried: T 1024 on v5e (libtpu 0.0.42) and v6e, T 512 on v6e, H 64 on v5e, v5p."""
    if device_kind == "TPU v6 lite":  # T 1024: 0.159 + 0.300, with the other row 0.179 + 0.311
        return Resident(256, 4, 512, 3)  # T 512: 0.145 + 0.216 against 0.174 + 0.241
    return Resident(128, 4, 512, 2)  # v5e, T 1024: 0.214 + 0.450; H 64, N 12: 0.134 + 0.284


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
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    default = chosen if isinstance(chosen, jax.Device) else jax.devices(chosen)[0]
    return default.platform, default.device_kind
