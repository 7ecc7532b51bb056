"""Machines by name: `v5e:16x16`, `v5p:4x4x8`, `a100-80:128`. None needs to be there.

A TPU slice is its shape in chips. GPUs are as many as there are, in hosts of eight where there are
more. A chip's name alone is one of it.
"""

import dataclasses
import math
import re
from typing import Any

from biomedlm_jax.compilers.chips import CHIPS, GPUS, Chip, Gpu, Tpu
from biomedlm_jax.entry import UserError

GPUS_OF_A_HOST = 8
COMMON = {  # shapes that Google rents, by axes of the network; a v5e or v6e slice has at most 256
    2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: (
        "2x2x1",
        "2x2x2",
        "2x2x4",
        "2x4x4",
        "4x4x4",
        "4x4x8",
        "4x8x8",
        "8x8x8",
        "8x8x16",
        "8x16x16",
    ),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """shape: of a TPU slice in chips; of GPUs (hosts, GPUs of each). devices: how many of them a
    program is for; one chip by its name alone is one of the smallest slice."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    devices: int

    @property
    def platform(self) -> str:
        """Which of `compilers` compiles for it: "tpu" or "gpu"."""
        return "tpu" if isinstance(self.chip, Tpu) else "gpu"

    @property
    def hosts(self) -> int | None:
        """Of GPUs; a slice of TPUs is one network, however many hosts it has."""
        return None if isinstance(self.chip, Tpu) else self.shape[0]

    def arguments(self) -> dict[str, Any]:
        """Of `jax.experimental.topologies.get_topology_desc`."""
        name, _, _ = self.name.partition(":")
        joined = "x".join(map(str, self.shape))
        if isinstance(self.chip, Gpu):
            target = self.chip.target()
            topology = f"1x{joined}"  # slices x hosts x GPUs
            return dict(
                platform="cuda", topology_name=name, target_config=target, topology=topology
            )
        found: dict[str, Any] = dict(platform="tpu", topology_name=f"{name}:{joined}")
        if name == "v5e" and self.shape == (1, 1):
            found |= dict(chips_per_host_bounds=(1, 1, 1))
        if name == "v6e" and self.shape == (1, 1):
            found |= dict(chips_per_host_bounds=(1, 1, 1))
        if name == "v4":  # else a chip is two devices of one core each
            found |= dict(chip_config_name="megacore", chips_per_host_bounds=(2, 2, 1))
            found |= dict(num_slices=1, wrap=tuple(size % 4 == 0 for size in self.shape))
        return found


def named(name: str) -> Topology:
    """The machine of that name.

    Raises:
      UserError: no such chip, or a shape that it does not come in.
    """
    kind, colon, size = name.partition(":")
    if kind not in CHIPS:
        raise UserError(f"--topology={name}: there is no {kind!r} in the table; {known()}")
    chip = CHIPS[kind]
    if isinstance(chip, Gpu):
        if not re.fullmatch(r"[1-9]\d*", size or "1"):
            raise UserError(f"--topology={name}: of GPUs say how many, as {kind}:8")
        return _gpus(name, chip, int(size or 1))
    if not colon:
        return Topology(name, chip, (2, 2) if chip.torus == 2 else (2, 2, 1), 1)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size) or size.count("x") + 1 != chip.torus:
        shapes = ", ".join(f"{kind}:{shape}" for shape in COMMON[chip.torus])
        raise UserError(
            f"--topology={name}: a slice of {kind} is {chip.torus} numbers of chips, one for each "
            f"axis of its network; common ones are {shapes}"
        )
    shape = tuple(map(int, size.split("x")))
    return Topology(name, chip, shape, math.prod(shape))


def _gpus(name: str, chip: Gpu, count: int) -> Topology:
    hosts = max(1, count // GPUS_OF_A_HOST)
    if count > GPUS_OF_A_HOST and (count % GPUS_OF_A_HOST or chip.network is None):
        why = (
            "its network to other hosts is not in the table, so at most 8"
            if chip.network is None
            else f"{count} is no multiple of the 8 GPUs of a host"
        )
        raise UserError(f"--topology={name}: {why}")
    return Topology(name, chip, (hosts, count // hosts), count)


def known() -> str:
    """For people: what `named` takes."""
    parts = []
    for name, chip in CHIPS.items():
        if isinstance(chip, Tpu):
            parts.append(f"{name}:{' '.join(COMMON[chip.torus])}")
    many = ", ".join(name for name, chip in GPUS.items() if chip.network is not None)
    few = ", ".join(name for name, chip in GPUS.items() if chip.network is None)
    return (
        f"known are {'; '.join(parts)}; of {many} as many as there are, as h100:16; of {few} "
        f"at most {GPUS_OF_A_HOST}, as l4:4"
    )
