"""Flops of a matrix product in HLO: a multiply-add is two. XLA:TPU writes products as convolutions,
XLA:GPU as dots and as calls of cuBLAS."""

import math
import re
from collections.abc import Mapping

from biomedlm_jax.compilers.hlo import Instruction, arrays

LABELS = re.compile(r"dim_labels=([0-9a-z]+)_([0-9a-z]+)->([0-9a-z]+)")
WINDOW = re.compile(r"window=\{([^}]*)\}")
CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=\{|ensions":\[)([0-9",]*)')
GROUPS = re.compile(r"feature_group_count=(\d+)")
CUBLAS = re.compile(r'custom_call_target="__cublas\$')


def is_product(instruction: Instruction) -> bool:
    if instruction.opcode == "custom-call":
        return bool(CUBLAS.search(instruction.rest))
    return instruction.opcode in ("convolution", "dot")


def flops(instruction: Instruction, shapes: Mapping[str, str]) -> int:
    """shapes: of the operands, by name.

    Raises:
      ValueError: it does not say what it contracts.
    """
    if instruction.opcode == "convolution":
        return _convolution(instruction, shapes)
    contracted = CONTRACTED.search(instruction.rest)
    if not contracted:
        raise ValueError(f"{instruction.name} does not say what it contracts")
    places = [int(place) for place in re.findall(r"\d+", contracted[1])]
    lhs = arrays(shapes[instruction.operands[0]])[0].dims
    out = arrays(instruction.shape)[0].dims
    return 2 * math.prod(out) * math.prod(lhs[place] for place in places)


def _convolution(instruction: Instruction, shapes: Mapping[str, str]) -> int:
    """Products whose places in the input are padding count nothing."""
    out = arrays(instruction.shape)[0].dims
    lhs, rhs = (arrays(shapes[name])[0].dims for name in instruction.operands[:2])
    labels = LABELS.search(instruction.rest)
    if not labels:
        raise ValueError(f"{instruction.name} does not say what it contracts")
    of_lhs, of_rhs, of_out = labels[1], labels[2], labels[3]
    window = WINDOW.search(instruction.rest)
    given = dict(item.split("=") for item in window[1].split()) if window else {}
    spatial = sum(letter.isdigit() for letter in of_out)

    def field(name: str, otherwise: str) -> list[str]:
        return given[name].split("x") if name in given else [otherwise] * spatial

    found = 2 * rhs[of_rhs.index("i")] * out[of_out.index("f")] * out[of_out.index("b")]
    sizes = zip(
        field("size", "1"),
        field("stride", "1"),
        field("pad", "0_0"),
        field("lhs_dilate", "1"),
        field("rhs_dilate", "1"),
        strict=True,
    )
    for axis, (size, stride, pad, lhs_dilate, rhs_dilate) in enumerate(sizes):
        length, result = lhs[of_lhs.index(str(axis))], out[of_out.index(str(axis))]
        low, spread = int(pad.split("_")[0]), int(lhs_dilate)
        if (size, stride, low, spread) == ("1", "1", 0, 1):
            found *= result
            continue
        places = (
            o * int(stride) - low + k * int(rhs_dilate)
            for k in range(int(size))
            for o in range(result)
        )
        found *= sum(p % spread == 0 and 0 <= p // spread < length for p in places)
    return found
