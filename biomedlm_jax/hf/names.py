"""One table between our parameters and Hugging Face's GPT-2, read in both directions.

Ours come from `model/gpt.py` as a nested dict; `hf/save.py` writes what `to_hf` yields. Kernels
are (in, out) on both sides, for GPT-2 keeps them in that order (its class is called Conv1D). Three
things differ, and the letters of a row's axes say which of them apply:

  l first: we stack the layers of a parameter into one array, Hugging Face names each layer's.
  v first: our embedding has rows of padding from `vocab` on, theirs has not.
  q last:  we order columns (head, (q, k, v), head dim), so that a device that holds some of the
           columns holds whole heads; theirs are ((q, k, v), head, head dim).

There is no row for Hugging Face's `lm_head.weight`: the head is `wte`, tied by the config.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from biomedlm_jax.config import Model
from biomedlm_jax.entry import UserError
from biomedlm_jax.model.gpt import axis_sizes


@dataclasses.dataclass(frozen=True)
class Row:
    ours: str  # path in the nested dict
    theirs: str  # with {} for the layer
    axes: str  # of ours: the letters of `layout`, and t for positions

    def names(self, model: Model) -> list[str]:
        """Hugging Face's, one for each layer or one in all."""
        layers = range(model.layers if self.axes[0] == "l" else 1)
        return [self.theirs.format(layer) for layer in layers]

    def shapes(self, model: Model) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of our array, and of each tensor of Hugging Face's."""
        sizes = {**axis_sizes(model), "l": model.layers, "t": model.context}
        ours = tuple(sizes[axis] for axis in self.axes)
        sizes["v"] = model.vocab
        return ours, tuple(sizes[axis] for axis in self.axes.removeprefix("l"))


TABLE = (
    Row("tokens/table", "transformer.wte.weight", "vd"),
    Row("positions", "transformer.wpe.weight", "td"),
    Row("blocks/ln_1/scale", "transformer.h.{}.ln_1.weight", "ld"),
    Row("blocks/ln_1/bias", "transformer.h.{}.ln_1.bias", "ld"),
    Row("blocks/qkv/kernel", "transformer.h.{}.attn.c_attn.weight", "ldq"),
    Row("blocks/qkv/bias", "transformer.h.{}.attn.c_attn.bias", "lq"),
    Row("blocks/out/kernel", "transformer.h.{}.attn.c_proj.weight", "led"),
    Row("blocks/out/bias", "transformer.h.{}.attn.c_proj.bias", "ld"),
    Row("blocks/ln_2/scale", "transformer.h.{}.ln_2.weight", "ld"),
    Row("blocks/ln_2/bias", "transformer.h.{}.ln_2.bias", "ld"),
    Row("blocks/up/kernel", "transformer.h.{}.mlp.c_fc.weight", "ldf"),
    Row("blocks/up/bias", "transformer.h.{}.mlp.c_fc.bias", "lf"),
    Row("blocks/down/kernel", "transformer.h.{}.mlp.c_proj.weight", "lfd"),
    Row("blocks/down/bias", "transformer.h.{}.mlp.c_proj.bias", "ld"),
    Row("ln_f/scale", "transformer.ln_f.weight", "d"),
    Row("ln_f/bias", "transformer.ln_f.bias", "d"),
)


def to_hf(params: Mapping, model: Model) -> Iterator[tuple[str, np.ndarray]]:
    """Hugging Face's name and tensor for every parameter, each C-contiguous as safetensors
    needs it; a view of ours where nothing had to move.

    params: nested dict of float32 arrays, such as params["blocks"]["qkv"]["kernel"] [L, D, Q].

    Raises:
      UserError: before the first tensor, with every name that is missing, unknown, or has
        another shape or dtype than `model` gives it.
    """
    flat: Any = traverse_util.flatten_dict(params, sep="/")
    _refuse_misfits("parameters", flat, {row.ours: row.shapes(model)[0] for row in TABLE})
    return _leave(flat, model)


def _leave(flat: Mapping[str, np.ndarray], model: Model) -> Iterator[tuple[str, np.ndarray]]:
    for row in TABLE:
        array = np.asarray(flat[row.ours])
        parts = array if row.axes[0] == "l" else array[None]
        for name, part in zip(row.names(model), parts, strict=True):
            if row.axes[0] == "v":
                part = part[: model.vocab]
            if row.axes[-1] == "q":
                part = _swap(part, (model.heads, 3))
            yield name, np.ascontiguousarray(part)


def from_hf(tensors: Mapping[str, np.ndarray], model: Model) -> dict:
    """The nested dict of parameters that `to_hf` makes `tensors` of, to the bit.

    Raises:
      UserError: with every tensor that is missing, unknown, or has another shape or dtype than
        `model` gives it.
    """
    shapes = {name: row.shapes(model)[1] for row in TABLE for name in row.names(model)}
    _refuse_misfits("Hugging Face tensors", tensors, shapes)

    flat = {}
    for row in TABLE:
        parts = [tensors[name] for name in row.names(model)]
        if row.axes[0] == "v":
            parts = [
                np.pad(part, ((0, model.padded_vocab - model.vocab), (0, 0))) for part in parts
            ]
        if row.axes[-1] == "q":
            parts = [_swap(part, (3, model.heads)) for part in parts]
        flat[row.ours] = np.stack(parts) if row.axes[0] == "l" else parts[0]
    return traverse_util.unflatten_dict(flat, sep="/")


def _swap(array: np.ndarray, groups: tuple[int, int]) -> np.ndarray:
    """`array` [..., Q] with the two outer of the three axes that Q joins, of sizes `groups`,
    in the other order."""
    split = array.reshape(*array.shape[:-1], *groups, -1)
    return split.swapaxes(-3, -2).reshape(array.shape)


def _refuse_misfits(
    what: str, found: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    misfits = [f"{name} is missing" for name in shapes if name not in found]
    for name, array in found.items():
        if name not in shapes:
            misfits.append(f"{name} is unknown")
        elif array.shape != shapes[name]:
            misfits.append(f"{name} has shape {array.shape} instead of {shapes[name]}")
        elif array.dtype != np.float32:
            misfits.append(f"{name} is {array.dtype} instead of float32")
    if misfits:
        raise UserError(
            f"these {what} do not fit config.model, so nothing was converted; give the "
            f"configuration that they were made with: {'; '.join(misfits)}"
        )
