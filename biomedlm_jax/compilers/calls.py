"""The Pallas kernels that a program calls, taken out of it, so that each can be compiled alone.

To have libtpu write the schedules of a whole training step takes half as long again as to compile
it; those of its kernels take seconds.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jaxlib._jax import Device

TENSOR = re.compile(r"tensor<((?:\d+x)*)(\w+)>")
ALIAS = re.compile(r"output_tuple_indices = \[(\d*)\], operand_index = (\d+)")
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "i1": "bool"}
DTYPES |= {f"i{bits}": f"int{bits}" for bits in (8, 16, 32)}
DTYPES |= {f"ui{bits}": f"uint{bits}" for bits in (8, 16, 32)}


def calls(lowered: Any) -> list[dict[str, Any]]:
    """The different kernels in a lowered program, as what `alone` takes.

    Raises:
      ValueError: an operand or a result is of a type that is not known here.
    """
    found = []
    for operation in _custom_calls(lowered.compiler_ir("stablehlo").operation):
        attributes = operation.attributes
        one = {
            "name": attributes["kernel_name"].value if "kernel_name" in attributes else "",
            "config": attributes["backend_config"].value,
            "operands": [_array(str(value.type)) for value in operation.operands],
            "results": [_array(str(value.type)) for value in operation.results],
            "aliases": _aliases(str(attributes["output_operand_aliases"])),
        }
        if one not in found:
            found.append(one)
    return found


def _custom_calls(operation: Any) -> Iterator[Any]:
    for region in operation.regions:
        for block in region.blocks:
            for inner in block.operations:
                if inner.operation.name == "stablehlo.custom_call":
                    if inner.attributes["call_target_name"].value == "tpu_custom_call":
                        yield inner
                else:
                    yield from _custom_calls(inner.operation)


def _array(text: str) -> tuple[list[int], str]:
    found = TENSOR.fullmatch(text)
    if not found or found[2] not in DTYPES:
        raise ValueError(f"a kernel takes or gives {text}")
    return [int(size) for size in found[1].split("x")[:-1]], DTYPES[found[2]]


def _aliases(text: str) -> list[tuple[int, int]]:
    """(Operand, result) where a result is written over an operand."""
    return [(int(operand), int(result or 0)) for result, operand in ALIAS.findall(text)]


def alone(device: Device, *, call: dict[str, Any]) -> tuple[Callable, tuple]:
    """One of `calls` as a program of its own, and its operands."""
    here = jax.sharding.SingleDeviceSharding(device)
    results = [jax.ShapeDtypeStruct(tuple(shape), dtype) for shape, dtype in call["results"]]
    kernel = jax.ffi.ffi_call(
        "tpu_custom_call",
        results,
        custom_call_api_version=1,
        legacy_backend_config=call["config"],
        input_output_aliases=dict(map(tuple, call["aliases"])),
    )
    operands = tuple(
        jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=here)
        for shape, dtype in call["operands"]
    )
    return kernel, operands
