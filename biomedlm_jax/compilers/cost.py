"""What one run of an optimised program does, and what XLA thinks that costs, from its HLO text.

XLA:TPU writes `estimated_cycles` beside every operation that it made itself, cycles of one core; a
Pallas kernel has none. XLA:GPU writes no estimate at all.
"""

import collections
import re
from typing import NamedTuple

from biomedlm_jax.compilers import hlo, products, traffic
from biomedlm_jax.compilers.traffic import Collective

ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')
KERNEL = re.compile(
    r'custom_call_target="(?:tpu_custom_call|__gpu\$xla\.gpu\.triton|mosaic_gpu|__cudnn\$fmha)'
)


class Operation(NamedTuple):
    """cycles: of all its runs. operation: where it is in the program that was traced."""

    name: str
    opcode: str
    shape: str
    operation: str
    runs: int
    cycles: int


class Program(NamedTuple):
    """xla_cycles: XLA's estimate outside kernels, None where XLA gives none. kernels: how often
    each kernel runs, Pallas's and cuDNN's attention. matrix_flops: outside kernels. dearest:
    operations by their cycles, the most expensive first."""

    xla_cycles: int | None
    kernels: dict[str, int]
    matrix_flops: int
    collectives: list[Collective]
    dearest: list[Operation]


def read(text: str) -> Program:
    """From `compiled.as_text()`.

    Raises:
      ValueError: a loop that does not run to a constant, or no entry computation.
    """
    module = hlo.parse(text)
    flops, kernels = 0, collections.Counter[str]()
    operations = []
    for computation, runs in module.runs.items():
        instructions = module.computations[computation]
        shapes = {instruction.name: instruction.shape for instruction in instructions}
        for instruction in instructions:
            if products.is_product(instruction):
                flops += runs * products.flops(instruction, shapes)
            if computation not in module.alone:
                continue  # a fusion's own instructions cost nothing besides it
            name, shape, opcode, rest = instruction
            if opcode == "custom-call" and KERNEL.search(rest):
                kernels[name] += runs
            elif found := ESTIMATE.search(rest):
                said = traffic.OPERATION.search(rest)
                where, cycles = said[1] if said else "", runs * int(found[1])
                operations.append(Operation(name, opcode, shape[:80], where, runs, cycles))
    dearest = sorted(operations, key=lambda operation: -operation.cycles)
    cycles = sum(operation.cycles for operation in operations) if operations else None
    return Program(cycles, dict(kernels), flops, traffic.collectives(module), dearest)
