"""Collectives in HLO: how many, how often they run, how many bytes they are of.

XLA:TPU hides a collective behind compute by writing it into several fusions: one in which it
starts, those that it runs beside, one in which it ends. All of them hold the collective's own
instruction; it counts where it starts. XLA:GPU has `-start` and `-done`. What is neither is
stand-alone: the chip does nothing else meanwhile.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from biomedlm_jax.compilers.hlo import Instruction, Module, arrays, parts

KINDS = {  # how often the bytes of a collective pass a chip's links, for many chips in a ring
    "all-gather": 1,
    "reduce-scatter": 1,
    "all-to-all": 1,
    "collective-permute": 1,
    "all-reduce": 2,
}
START = re.compile(r'custom_call_target="AsyncCollectiveStart"')
PART = re.compile(r'custom_call_target="AsyncCollectiveDone"')
OPERATION = re.compile(r'op_name="([^"]*)"')
# The three ways in which XLA writes which devices speak with each other.
BY_AXES = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
BY_COUNT = re.compile(r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
BY_NAME = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """bytes: of one run, before a scatter or after a gather, on one chip. alone: nothing else runs
    meanwhile. block: it stays within blocks of so many devices, a power of 2, counted from the
    first. group: as many devices as speak with each other, in the largest group. Both None where
    the text does not say."""

    kind: str
    runs: int
    bytes: int
    alone: bool
    operation: str
    block: int | None
    group: int | None

    def wire(self, chips: int) -> float:
        """Bytes that all its runs send over a chip's links, in a ring of `chips`. A permute sends
        all that it has."""
        share = 1.0 if self.kind == "collective-permute" else (chips - 1) / chips
        return share * KINDS[self.kind] * self.runs * self.bytes


@dataclasses.dataclass(frozen=True)
class Total:
    """Of one kind. count: in the text; runs: in a step; bytes, wire: of all runs; alone: the part
    of wire that nothing runs beside."""

    count: int = 0
    runs: int = 0
    bytes: int = 0
    wire: float = 0.0
    alone: float = 0.0


def totals(collectives: list[Collective], chips: int) -> dict[str, Total]:
    found: dict[str, Total] = {}
    for one in collectives:
        old, wire = found.get(one.kind, Total()), one.wire(chips)
        found[one.kind] = Total(
            old.count + 1,
            old.runs + one.runs,
            old.bytes + one.runs * one.bytes,
            old.wire + wire,
            old.alone + wire * one.alone,
        )
    return found


def collectives(module: Module) -> list[Collective]:
    """Every collective of the program, once."""
    found = []
    for name, runs in module.runs.items():
        instructions = module.computations[name]
        shapes = {instruction.name: instruction.shape for instruction in instructions}
        starts = any(START.search(instruction.rest) for instruction in instructions)
        goes_on = "async_collective" in name or any(PART.search(x.rest) for x in instructions)
        for instruction in instructions:
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            if goes_on and not starts and name not in module.alone:
                continue  # counted where it starts
            size = _bytes(kind, instruction, shapes)
            alone = name in module.alone and kind == instruction.opcode
            if kind == "all-reduce" and "all-reduce-scatter" in name:  # of a TPU, one operation
                kind, alone = "reduce-scatter", True
            said = OPERATION.search(instruction.rest)
            where = said[1] if said else ""
            groups = groups_of(instruction.rest)
            reach = (block(groups), max(map(len, groups))) if groups else (None, None)
            found.append(Collective(kind, runs, size, alone, where, *reach))
    return found


def block(groups: list[list[int]]) -> int:
    """See `Collective.block`."""
    size = 1
    while any(len({device // size for device in group}) > 1 for group in groups):
        size *= 2
    return size


def groups_of(text: str) -> list[list[int]] | None:
    """The devices that speak with each other, by their numbers; None where the text of a
    collective's attributes does not say."""
    if found := BY_AXES.search(text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        inside = re.findall(r"'(\w+)'", found[2])
        order = [name for name in sizes if name not in inside] + inside
        devices = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        devices = devices.transpose([list(sizes).index(name) for name in order])
        return devices.reshape(-1, math.prod(sizes[name] for name in inside)).tolist()
    if found := BY_COUNT.search(text):
        shape = [int(size) for size in found[2].split(",")]
        devices = np.arange(math.prod(shape)).reshape(shape)
        if found[3]:
            devices = devices.transpose([int(axis) for axis in found[3].split(",")])
        return devices.reshape(-1, int(found[1])).tolist()
    if found := BY_NAME.search(text):
        return [[int(n) for n in re.findall(r"\d+", group)] for group in found[1].split("},{")]
    return None


def _bytes(kind: str, instruction: Instruction, shapes: Mapping[str, str]) -> int:
    """Of the whole array: what a gather or a reduction leaves, what is scattered."""
    shape, started = instruction.shape, instruction.opcode != kind
    elements = parts(shape)
    if started and len(elements) > 1 and (kind != "all-reduce" or elements[0].startswith("(")):
        # ((operands), results, ...); of a reduce-scatter the operands are the whole
        shape = elements[0] if kind == "reduce-scatter" else elements[1]
    elif kind == "reduce-scatter":
        shape = " ".join(shapes[name] for name in instruction.operands)
    return sum(array.bytes for array in arrays(shape))
