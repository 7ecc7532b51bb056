"""The alphabet: each tensor axis has one letter, and two tables say where a letter lives.

  b batch         t position          s position a device computes
  d width         f mlp width         e heads x head dim (attention's output, joined)
  n heads         h head dim          q heads x (query, key, value) x head dim, joined
  v vocabulary    l layers            c classes        r rank of an adapter

Mesh axes: `data` holds copies of the parameters in use, `fsdp` the pieces in which one is stored,
`model` the pieces in which a layer is computed, `context` the pieces in which a sequence is. The
batch is split over `data` and `fsdp`. The whole step runs under one `jax.shard_map`, so the model
sees per-device arrays: what it calls [B, S, F] has B / (data * fsdp) rows, T / context positions
and F / model columns.
"""

from typing import Any

import jax
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

Places = dict[str, tuple[str, ...]]

# Over `data` copies of a layer would be the same, so each holds some layers of the stack instead.
# Over `fsdp` a kernel is split by rows, never by columns: TPU tiles are 8 x 128, and a width of
# 2560 split 16 times gives 160 rows, a multiple of 8, but 160 columns, not a multiple of 128.
STORED: Places = {
    "d": ("fsdp",),
    "e": ("model", "fsdp"),
    "f": ("model", "fsdp"),
    "l": ("data",),  # where it divides the layers
    "q": ("model",),
    "v": ("model", "fsdp"),
}
IN_USE: Places = {
    "b": ("data", "fsdp"),
    "e": ("model",),
    "f": ("model",),
    "n": ("model", "context"),
    "q": ("model",),
    "s": ("context",),
    "v": ("model",),
}
BATCH = IN_USE["b"]
LABELS = BATCH + IN_USE["s"]  # a device has the loss of its positions of its rows


def spec(axes: str, places: Places) -> PartitionSpec:
    """spec("fd", STORED) is P(("model", "fsdp"), None): the first letter that asks for a mesh
    axis has it."""
    free, parts = {"data", "fsdp", "model", "context"}, []
    for letter in axes:
        mine = tuple(axis for axis in places.get(letter, ()) if axis in free)
        free -= set(mine)
        parts.append(mine or None)
    return PartitionSpec(*parts)


def stored(axes: str) -> PartitionSpec:
    """Of a parameter. A vector is stored as it is used: the bytes are few, and to bring a dozen of
    them together in each layer is a dozen times waiting for the network."""
    return spec(axes, STORED if len(axes) > 1 else IN_USE)


def parameter(axes: str, value: jax.Array) -> nnx.Param:
    return nnx.Param(value, axes=axes)


def in_use(param: nnx.Param, dtype: jax.typing.DTypeLike) -> jax.Array:
    """A stored parameter, brought together over `fsdp` for one use, in the dtype of that use.

    The cast comes first, so bfloat16 travels, not float32. Its transpose is what one wants of a
    gradient: a reduce-scatter that leaves each device the sum for the piece that it stores.
    """
    value = param[...].astype(dtype)
    if jax.lax.axis_size("fsdp") == 1:  # to gather one piece is to copy it
        return value
    for axis, part in enumerate(stored(param.axes)):
        if part and "fsdp" in part:
            value = jax.lax.all_gather(value, "fsdp", axis=axis, tiled=True)
    return value


def all_layers(params: Any, specs: Any, dtype: jax.typing.DTypeLike) -> Any:
    """Parameters, of which each device of `data` stores some layers, with all of them: kernels in
    `dtype`, in which they are used, so that it travels; vectors as they are. Once a step.

    params, specs: trees of arrays and of how they are stored.
    """

    def gathered(value: jax.Array, spec: PartitionSpec) -> jax.Array:
        if not layers_over_data(spec):
            return value
        value = value.astype(dtype) if value.ndim == 3 else value
        return jax.lax.all_gather(value, "data", axis=0, tiled=True)

    return jax.tree.map(gathered, params, specs)


def layers_over_data(spec: PartitionSpec) -> bool:
    return bool(spec) and spec[0] in ("data", ("data",))


def mine(whole: Shaped[Array, "B T ..."]) -> Shaped[Array, "B S ..."]:
    """The positions that this device computes of an array that has all of them."""
    (axis,) = IN_USE["s"]
    length = whole.shape[1] // jax.lax.axis_size(axis)
    return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(axis) * length, length, axis=1)
