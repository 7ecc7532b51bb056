"""The text of an optimised program: its computations, and how often each of them runs.

`compiled.cost_analysis()` counts the body of a loop once and knows nothing of kernels. Here every
operation counts as often as the loops around it run. Of a conditional each branch counts, so what
is added up is a bound from above.
"""

import collections
import math
import re
from typing import NamedTuple

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
HEAD = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = ")
OPERATION = re.compile(r" ([a-z][a-z\-0-9]*)\((.*)$")
CALLED = re.compile(r"(?:to_apply|true_computation|false_computation|body|condition)=%([\w.\-]+)")
FUSED = re.compile(r"(?:calls|async_execution_thread_calls)=%([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
BODY = re.compile(r"body=%([\w.\-]+)")
CONDITION = re.compile(r"condition=%([\w.\-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
NUMBER = re.compile(r"(\d+)\)")
ARRAY = re.compile(r"\b([a-z]+\d+[a-z0-9]*|pred)\[([0-9,]*)\]")
BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16}


class Instruction(NamedTuple):
    """shape: of the result, as it is written. rest: operands and attributes."""

    name: str
    shape: str
    opcode: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.split(")")[0])


class Array(NamedTuple):
    dtype: str
    dims: tuple[int, ...]

    @property
    def bytes(self) -> int:
        bits = BITS.get(self.dtype) or int(re.findall(r"\d+", self.dtype)[0])
        return math.prod(self.dims) * bits // 8


class Module(NamedTuple):
    """runs: how often each computation runs. alone: those that are no part of a fusion, whose
    instructions are operations of their own."""

    computations: dict[str, list[Instruction]]
    entry: str
    runs: dict[str, int]
    alone: frozenset[str]


def arrays(shape: str) -> list[Array]:
    """Of a shape, or of all the parts of a tuple."""
    return [
        Array(dtype, tuple(int(n) for n in dims.split(",") if n))
        for dtype, dims in ARRAY.findall(shape)
    ]


def parts(shape: str) -> list[str]:
    """The elements of a tuple; a shape that is none is its only element."""
    if not shape.startswith("("):
        return [shape]
    found, depth, begin = [], 0, 1
    for place, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or depth == 0:
            found.append(shape[begin:place].strip())
            begin = place + 1
    return found


def parse(text: str) -> Module:
    """From `compiled.as_text()`.

    Raises:
      ValueError: a loop that does not run to a constant, or no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        if not line.startswith(" "):
            head = COMPUTATION.match(line)
            current = head[2] if head else ""
            if head:
                computations[current] = []
                entry = current if head[1] else entry
        elif current and (found := _instruction(line)):
            computations[current].append(found)
    if not entry:
        raise ValueError("the text has no ENTRY computation")
    runs, alone = collections.Counter[str](), {entry}
    waiting = [(entry, 1)]
    while waiting:
        name, times = waiting.pop()
        runs[name] += times
        for instruction in computations[name]:
            for other, more, fused in _called(instruction, computations):
                waiting.append((other, times * more))
                if name in alone and not fused:
                    alone.add(other)
    return Module(computations, entry, dict(runs), frozenset(alone))


def _instruction(line: str) -> Instruction | None:
    head = HEAD.match(line)
    if not head:
        return None
    begin = end = head.end()
    if line[begin] == "(":  # a tuple, with tuples and layouts in it
        depth = 0
        for end in range(begin, len(line)):
            depth += (line[end] == "(") - (line[end] == ")")
            if depth == 0:
                break
        end += 1
    else:
        end = line.find(" ", begin)
    found = OPERATION.match(line, end)
    return Instruction(head[1], line[begin:end], found[1], found[2]) if found else None


def _called(
    instruction: Instruction, computations: dict[str, list[Instruction]]
) -> list[tuple[str, int, bool]]:
    """(Computation, how often it runs for one run of the instruction, whether it is fused)."""
    _, _, opcode, rest = instruction
    if opcode in ("fusion", "async-start"):
        return [(name, 1, True) for name in FUSED.findall(rest) if name in computations]
    if opcode not in ("while", "call", "conditional"):
        return []  # what a reduction applies costs nothing besides it
    times = _trips(instruction, computations) if opcode == "while" else 1
    names = CALLED.findall(rest)
    for group in BRANCHES.findall(rest):
        names += [part.strip().lstrip("%") for part in group.split(",")]
    return [(name, times, False) for name in names]


def _trips(loop: Instruction, computations: dict[str, list[Instruction]]) -> int:
    """Trips of a `while`: its known_trip_count, or what its condition holds the counter below, for
    XLA:TPU writes none; loops that JAX makes of scans count from zero in steps of one."""
    if known := TRIPS.search(loop.rest):
        return int(known[1])
    condition = CONDITION.search(loop.rest)
    tests = _flat(condition[1], computations) if condition else []
    bounds = [
        int(found[1])
        for test in tests
        if test.opcode == "constant" and (found := NUMBER.match(test.rest))
    ]
    below = [test for test in tests if test.opcode == "compare" and "direction=LT" in test.rest]
    if len(bounds) != 1 or len(below) != 1:
        shown = [(test.name, test.opcode, test.rest[:80]) for test in tests]
        raise ValueError(f"loop {loop.name} does not run to a constant: {shown}")
    body = BODY.search(loop.rest)
    if body and "windowed_dot_general" in body[1]:  # XLA writes two trips of it as one
        return bounds[0] // 2
    return bounds[0]


def _flat(name: str, computations: dict[str, list[Instruction]]) -> list[Instruction]:
    """The instructions of a computation and of the fusions in it."""
    found = []
    for instruction in computations.get(name, []):
        found.append(instruction)
        for inner in FUSED.findall(instruction.rest):
            found += _flat(inner, computations)
    return found
