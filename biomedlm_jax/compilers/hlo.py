"""What an optimised TPU program runs and what XLA thinks that costs, from its HLO text.

XLA:TPU writes `estimated_cycles` beside every operation that it made itself; a Pallas kernel has
none. Each counts as often as the loops around it run. `compiled.cost_analysis()` counts the body of
a loop once and knows nothing of kernels.
"""

import collections
import re
from typing import NamedTuple

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (?:\(.*?\)|\S+) ([a-z][a-z\-0-9]*)\((.*)$")
CALLED = re.compile(r"(?:to_apply|true_computation|false_computation|body|condition)=%([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
CONDITION = re.compile(r"condition=%([\w.\-]+)")
NUMBER = re.compile(r"(\d+)\)")
ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')


Instruction = tuple[str, str, str]  # name, opcode, the rest of the line


class Program(NamedTuple):
    """xla_cycles: XLA's estimate outside Pallas kernels. kernels: how often each kernel runs."""

    xla_cycles: int
    kernels: dict[str, int]


def read(text: str) -> Program:
    """From `compiled.as_text()`.

    Raises:
      ValueError: a loop that does not run to a constant, or no entry computation.
    """
    bodies: dict[str, list[Instruction]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            current = head[2]
            bodies[current] = []
            entry = current if head[1] else entry
        elif current and (found := INSTRUCTION.match(line)):
            bodies[current].append((found[1], found[2], found[3]))
    if not entry:
        raise ValueError("the text has no ENTRY computation")

    runs = collections.Counter({entry: 1})
    waiting = [(entry, 1)]
    while waiting:
        name, times = waiting.pop()
        for instruction, opcode, rest in bodies[name]:
            if opcode not in ("while", "call", "conditional"):
                continue  # a fusion's own instructions cost nothing besides it
            inner = times
            if opcode == "while":
                inner *= _trips(instruction, rest, bodies)
            called = CALLED.findall(rest)
            for group in BRANCHES.findall(rest):
                called += [part.strip().lstrip("%") for part in group.split(",")]
            for other in called:
                runs[other] += inner
                waiting.append((other, inner))

    cycles, kernels = 0, collections.Counter()
    for name, times in runs.items():
        for instruction, opcode, rest in bodies[name]:
            if opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in rest:
                kernels[instruction] += times
            elif found := ESTIMATE.search(rest):
                cycles += times * int(found[1])
    return Program(cycles, dict(kernels))


def _trips(name: str, rest: str, bodies: dict[str, list[Instruction]]) -> int:
    """Trips of a `while`: what its condition holds the counter below. XLA:TPU writes no
    known_trip_count; loops that JAX makes of scans count from zero in steps of one."""
    condition = CONDITION.search(rest)
    tests = bodies[condition[1]] if condition else []
    bounds = [
        int(found[1]) for _, op, arg in tests if op == "constant" and (found := NUMBER.match(arg))
    ]
    below = [arg for _, op, arg in tests if op == "compare" and "direction=LT" in arg]
    if len(bounds) != 1 or len(below) != 1:
        raise ValueError(f"loop {name} does not run to a constant: {tests}")
    return bounds[0]
