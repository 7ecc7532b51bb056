"""One table between our parameters and Hugging Face's GPT-2, read in both directions.

Ours come from `model/gpt.py` as a nested dict; `hf/read.py` reads them from a folder and
`hf/save.py` writes them to one, an array or a piece of one at a time. Kernels are (in, out) on both
sides, for GPT-2 keeps them in that order (its class is called Conv1D). Three things differ, and the
letters of a row's axes say which of them apply:

  l first: we stack the layers of a parameter into one array, Hugging Face names each layer's.
  v first: our embedding has rows of padding from `vocab` on, theirs has not.
  q last:  we order columns (head, (q, k, v), head dim), so that a device that holds some of the
           columns holds whole heads; theirs are ((q, k, v), head, head dim).

There is no row for Hugging Face's `lm_head.weight`: the head is `wte`, tied by the config. TABLE is
the decoder; `rows` has besides the head that fine-tuning added, whose kernel is (out, in) there:

    without a bias    GPT2ForSequenceClassification, a score for each class
    with one          GPT2DoubleHeadsModel, one score
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import Float

from biomedlm_jax.arrays import PIECE
from biomedlm_jax.config import Model
from biomedlm_jax.entry import UserError
from biomedlm_jax.model.gpt import axis_sizes

PREFIX = "transformer."  # GPT2LMHeadModel has it, GPT2Model has not
HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.weight"
# What older releases of transformers kept with the weights: the causal mask, and what it fills in.
MASKS = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")
Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    ours: str  # path in the nested dict
    theirs: str  # with {} for the layer
    axes: str  # of ours: the letters of `layout`, and t for positions
    turned: bool = False  # theirs has the axes the other way round

    def names(self, model: Model) -> list[str]:
        """Hugging Face's, one for each layer or one in all."""
        layers = range(model.layers if self.axes[0] == "l" else 1)
        return [self.theirs.format(layer) for layer in layers]

    def shapes(self, model: Model) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of our array, and of each tensor of Hugging Face's."""
        sizes = {**axis_sizes(model), "l": model.layers, "t": model.context}
        ours = tuple(sizes[axis] for axis in self.axes)
        sizes["v"] = model.vocab
        theirs = tuple(sizes[axis] for axis in self.axes.removeprefix("l"))
        return ours, theirs[::-1] if self.turned else theirs

    def leave(
        self, array: Float[np.ndarray, "..."], model: Model, start: int = 0
    ) -> Iterator[tuple[str, Float[np.ndarray, "..."]]]:
        """Hugging Face's name and tensor, each C-contiguous as safetensors needs it; a view of
        `array` where nothing has to move. Of a piece that is padding alone nothing leaves.

        array: ours, or what of it begins at `start` on its first axis: then the tensors of some
          layers, or some rows of the one tensor; all of one that is `turned`.
        """
        if self.axes[0] == "v" and start >= model.vocab:
            return
        stacked = self.axes[0] == "l"
        parts = array if stacked else array[None]
        listed = self.names(model)[start : start + len(array)] if stacked else self.names(model)
        for name, part in zip(listed, parts, strict=True):
            if self.axes[0] == "v":
                part = part[: model.vocab - start]
            part = self.their_order(part, model)
            yield name, np.ascontiguousarray(part.T if self.turned else part)

    def their_order(self, array: np.ndarray, model: Model) -> np.ndarray:
        """Our columns [..., Out], in Hugging Face's order."""
        if self.axes[-1] != "q":
            return array
        split = array.reshape(*array.shape[:-1], model.heads, 3, -1)
        return split.swapaxes(-3, -2).reshape(array.shape)

    def our_order(self, array: np.ndarray, model: Model) -> np.ndarray:
        """Hugging Face's columns [..., Out], in our order."""
        if self.axes[-1] != "q":
            return array
        return _columns(range(array.shape[-1]), model, lambda q: array[..., q])

    def piece(
        self, index: Index, model: Model, read: Callable[[str, Index], np.ndarray]
    ) -> Float[np.ndarray, "..."]:
        """array[index] of our array, float32, from what `read(name, index)` gives of Hugging
        Face's tensors; nothing else of them is read."""
        ours, theirs = self.shapes(model)
        ranges = [range(*part.indices(size)) for part, size in zip(index, ours, strict=True)]
        out = np.zeros([len(part) for part in ranges], np.float32)
        stacked = self.axes[0] == "l"
        inner = ranges[stacked:]
        for layer, target in zip(ranges[0], out, strict=True) if stacked else [(0, out)]:
            name = self.theirs.format(layer)
            if self.axes[-1] == "q":
                others = tuple(slice(part.start, part.stop) for part in inner[:-1])
                target[...] = _columns(inner[-1], model, lambda q: read(name, (*others, q)))  # noqa: B023
            elif self.turned:
                target[...] = read(name, tuple(slice(x.start, x.stop) for x in inner[::-1])).T
            elif inner[0].start < theirs[0]:  # else all of it is padding
                slices = tuple(
                    slice(part.start, min(part.stop, size))
                    for part, size in zip(inner, theirs, strict=True)
                )
                target[: slices[0].stop - slices[0].start] = read(name, slices)
        return out


def _columns(wanted: range, model: Model, read: Callable[[slice], np.ndarray]) -> np.ndarray:
    """Some of our columns of qkv; `read` gives a range of Hugging Face's."""
    head = 3 * model.head_dim
    first, end = wanted.start // head, -(-wanted.stop // head)  # whole heads
    starts = [part * model.width + first * model.head_dim for part in range(3)]
    size = (end - first) * model.head_dim
    parts = [read(slice(start, start + size)) for start in starts]
    split = [part.reshape(*part.shape[:-1], end - first, model.head_dim) for part in parts]
    joined = np.stack(split, axis=-2).reshape(*parts[0].shape[:-1], 3 * size)
    return joined[..., wanted.start - first * head : wanted.stop - first * head]


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
HEADS = (
    Row("head/kernel", "multiple_choice_head.summary.weight", "dc", turned=True),
    Row("head/bias", "multiple_choice_head.summary.bias", "c"),
)
SCORE = (Row("head/kernel", "score.weight", "dc", turned=True),)


def rows(model: Model) -> tuple[Row, ...]:
    """Of all parameters of a model without adapters.

    Raises:
      UserError: it has a head that is that of no class of transformers.
    """
    if model.classes > 1 and model.class_bias:
        raise UserError(
            f"config.model.class_bias=True with config.model.classes={model.classes} can not be "
            "written as a Hugging Face folder: GPT2ForSequenceClassification has no bias, and "
            "GPT2DoubleHeadsModel has one score; train with class_bias=False"
        )
    if 4 * model.width * model.classes > PIECE:  # one that is turned leaves whole
        raise UserError(
            f"a head of {model.classes:,} classes is too large to become a Hugging Face folder; "
            f"there are {PIECE // (4 * model.width):,} at most for a width of {model.width}"
        )
    if not model.classes:
        return TABLE
    return TABLE + (HEADS if model.class_bias else SCORE)


def row_of(ours: str, model: Model) -> Row:
    """The row of a path of our parameters."""
    return next(row for row in rows(model) if row.ours == ours)


def count(model: Model) -> int:
    """Parameters with the head's, without vocabulary padding."""
    return sum(math.prod(row.shapes(model)[1]) * len(row.names(model)) for row in rows(model))


def to_hf(params: Mapping, model: Model) -> Iterator[tuple[str, np.ndarray]]:
    """Hugging Face's name and tensor for every parameter; see `Row.leave`.

    params: nested dict of float32 arrays, such as params["blocks"]["qkv"]["kernel"] [L, D, Q].

    Raises:
      UserError: before the first tensor, with every name that is missing, unknown, or has
        another shape or dtype than `model` gives it.
    """
    flat: Any = traverse_util.flatten_dict(params, sep="/")
    misfits = _misfits(
        {name: array.shape for name, array in flat.items()},
        {row.ours: row.shapes(model)[0] for row in rows(model)},
    )
    misfits += [
        f"{name} is {array.dtype} instead of float32"
        for name, array in flat.items()
        if array.dtype != np.float32
    ]
    if misfits:
        raise UserError(
            "these parameters do not fit config.model, so nothing was converted; give the "
            f"configuration that they were made with: {'; '.join(misfits)}"
        )
    arrays = ((row, np.asarray(flat[row.ours])) for row in rows(model))
    return (tensor for row, array in arrays for tensor in row.leave(array, model))


def match(found: Mapping[str, tuple[int, ...]], model: Model, where: str) -> dict[str, str]:
    """{Hugging Face's name as in `rows`: its name in `found`}, each once; also of HEAD, if there.

    found: shapes of the tensors, with the prefix "transformer." or all without it.
    where: they are, for messages.

    Raises:
      UserError: with every tensor that is missing, unknown, or has another shape than `model`
        gives it.
    """
    if model.layers > len(found):  # asked first, for what is missing is named one by one
        raise UserError(
            f"the config.json of {where} describes n_layer={model.layers:,} layers, and there are "
            f"{len(found)} tensors; correct it, or copy the folder again"
        )
    prefixed = any(name.startswith(PREFIX) for name in found)
    spelled = {
        name if prefixed or name == HEAD else PREFIX + name: name
        for name in found
        if not MASKS.fullmatch(name if prefixed else PREFIX + name)
    }
    shapes = {name: row.shapes(model)[1] for row in rows(model) for name in row.names(model)}
    if HEAD in spelled:
        shapes[HEAD] = shapes[EMBEDDING]
    wrong = _misfits({name: found[own] for name, own in spelled.items()}, shapes)
    if wrong:
        raise UserError(
            f"the tensors of {where} are not those that its config.json describes, so nothing was "
            f"loaded: {'; '.join(wrong)}"
        )
    return spelled


def _misfits(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> list[str]:
    wrong = [f"{name} is missing" for name in wanted if name not in found]
    for name, shape in found.items():
        if name not in wanted:
            wrong.append(f"{name} is unknown")
        elif tuple(shape) != wanted[name]:
            wrong.append(f"{name} has shape {tuple(shape)} instead of {wanted[name]}")
    return wrong
