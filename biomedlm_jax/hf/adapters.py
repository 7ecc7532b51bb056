"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685) in the format of Hugging Face's PEFT.

An adapter of a kernel W [In, Out] is scale * a @ b beside it. `read` takes a folder that PEFT
wrote, `write` makes one that PEFT loads; `hf/adapter_config.py` knows its settings.
"""

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from jaxtyping import Float

from biomedlm_jax.config import Model
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf.adapter_config import CONFIG, check, of_module, targeted
from biomedlm_jax.hf.names import PREFIX, TABLE, Index, Row
from biomedlm_jax.hf.read import DTYPES, Tensor, finite, read_json, safetensors_in
from biomedlm_jax.hf.write import written

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
BEGIN = "base_model.model."  # of PEFT's names
ROWS = {row.ours: row for row in TABLE if row.axes[0] == "l" and row.ours.endswith("/kernel")}
NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Of one parameter. Columns of `b` are in our order; layers without an adapter are zero."""

    a: Float[np.ndarray, "L In R"]
    b: Float[np.ndarray, "L R Out"]
    scale: float | Float[np.ndarray, " L"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the parameter."""
        return *self.a.shape[:2], self.b.shape[2]

    def add_to(self, piece: Float[np.ndarray, "..."], index: Index) -> None:
        """Makes kernel[index], float32, that of kernel + scale * a @ b. The product is of a whole
        layer, whatever part of it is wanted: of another shape it is summed in another order."""
        layers = range(*index[0].indices(len(self.a)))
        scales = np.broadcast_to(np.asarray(self.scale, np.float32), len(self.a))
        for layer, target in zip(layers, piece, strict=True):
            target += (scales[layer] * (self.a[layer] @ self.b[layer]))[index[1:]]


def read(folder: Path, model: Model) -> dict[str, Adapter]:
    """The adapters by the paths of our parameters, such as "blocks/qkv/kernel".

    model: of the base.

    Raises:
      UserError: settings or tensors that are not those of LoRA on the kernels of `model`, all
        named; weights that are missing, pickled, damaged or not finite.
    """
    settings = read_json(folder / CONFIG)
    check(settings, folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        why = "has no adapter_model.safetensors"
        if (folder / PICKLED).is_file():
            why = f"has its weights in {PICKLED}, a pickle, which is never opened"
        raise UserError(
            f"{folder} {why}; write it with PEFT's save_pretrained(..., safe_serialization=True)"
        )
    found = safetensors_in(folder / WEIGHTS)
    plain = not any(name.startswith(BEGIN + PREFIX) for name in found)  # of GPT2Model
    places = {
        _module(row, layer).removeprefix(PREFIX if plain else ""): (row, layer)
        for row in ROWS.values()
        for layer in range(model.layers)
    }
    wrong, parts = list[str](), dict[str, dict[str, Tensor]]()
    for name, tensor in found.items():
        matched = NAME.fullmatch(name)
        if matched is None or matched[1] not in places:
            wrong.append(f"{name} is none of {_allowed(model)}")
        else:
            parts.setdefault(matched[1], {})[matched[2]] = tensor
    for module in places:
        if targeted(settings, module) != (module in parts):
            said = "target_modules has it not" if module in parts else "there are no tensors of it"
            wrong.append(f"{module}: {said}")
    ranks = {module: of_module(settings, "rank_pattern", "r", 8, module) for module in parts}
    for module, pair in parts.items():
        row, layer = places[module]
        _, rows, columns = row.shapes(model)[0]
        shapes = {"A": (ranks[module], rows), "B": (columns, ranks[module])}
        for part, shape in shapes.items():
            name = f"{module}.lora_{part}.weight"
            if part not in pair:
                wrong.append(f"{name} is missing")
            elif pair[part].shape != shape:
                wrong.append(f"{name} has shape {pair[part].shape} instead of {shape}")
            elif pair[part].dtype not in DTYPES.values():
                wrong.append(f"{name} is {pair[part].dtype}, not {', '.join(DTYPES.values())}")
            elif not finite(_whole(pair[part])):
                wrong.append(f"{name} has values that are not finite (NaN or infinity)")
    if not parts and not wrong:
        wrong.append("there is none")
    if wrong:
        raise UserError(
            f"the adapters of {folder} do not fit its settings and its base, so nothing was "
            f"loaded: {'; '.join(wrong)}"
        )
    made = dict[str, Adapter]()
    for row in ROWS.values():
        mine = {places[x][1]: x for x in parts if places[x][0] is row}
        if not mine:
            continue
        layers, rows, columns = row.shapes(model)[0]
        rank = max(ranks[module] for module in mine.values())
        a = np.zeros((layers, rows, rank), np.float32)
        b, scales = np.zeros((layers, rank, columns), np.float32), np.zeros(layers)
        for layer, module in mine.items():
            r = ranks[module]
            a[layer, :, :r] = _whole(parts[module]["A"]).T
            b[layer, :r] = row.our_order(_whole(parts[module]["B"]).T, model)
            alpha = of_module(settings, "alpha_pattern", "lora_alpha", 8, module)
            scales[layer] = alpha / (math.sqrt(r) if settings.get("use_rslora") else r)
        present = set(scales[list(mine)])
        made[row.ours] = Adapter(a, b, float(present.pop()) if len(present) == 1 else scales)
    return made


def write(adapters: Mapping[str, Adapter], model: Model, folder: Path, base: str) -> None:
    """A folder that `peft.PeftModel.from_pretrained` loads, which appears when it is complete.
    Layers whose a and b are zero have no adapter there; lora_alpha is scale * R.

    base: what base_model_name_or_path is to be; see `base_of`.

    Raises:
      UserError: the folder is not empty or has no room, or the adapters are not the model's.
    """
    tensors, kinds, wrong = dict[str, np.ndarray](), dict[str, tuple[int, float]](), list[str]()
    for name, adapter in adapters.items():
        arrays = (adapter.a, adapter.b)
        if name not in ROWS or adapter.shape != ROWS[name].shapes(model)[0]:
            wrong.append(f"{name} {adapter.shape} is no kernel of the model; there are {[*ROWS]}")
            continue
        if any(x.dtype != np.float32 or not finite(x) for x in arrays):
            wrong.append(f"{name} is not of finite float32")
        if not np.isfinite(adapter.scale).all():
            wrong.append(f"the scale of {name} is {adapter.scale}")
            continue
        rank = adapter.a.shape[2]
        for layer, scale in enumerate(np.broadcast_to(adapter.scale, model.layers).tolist()):
            a, b = (x[layer] for x in arrays)
            if not (a.any() or b.any()):
                continue
            whole = round(scale * rank)
            module = _module(ROWS[name], layer)
            kinds[module] = rank, whole if whole / rank == scale else scale * rank
            b = ROWS[name].their_order(b, model)
            tensors[f"{BEGIN}{module}.lora_A.weight"] = np.ascontiguousarray(a.T)
            tensors[f"{BEGIN}{module}.lora_B.weight"] = np.ascontiguousarray(b.T)
    if wrong or not tensors:
        raise UserError(f"no adapters were written: {'; '.join(wrong) or 'all are zero'}")
    ends = {module.partition(".h.")[2].partition(".")[2] for module in kinds}
    whole = len(kinds) == len(ends) * model.layers
    rank, alpha = Counter(kinds.values()).most_common(1)[0][0]
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {x: r for x, (r, _) in kinds.items() if r != rank},
        "alpha_pattern": {x: alpha_ for x, (_, alpha_) in kinds.items() if alpha_ != alpha},
        "target_modules": sorted(ends) if whole else list(kinds),
        "fan_in_fan_out": True,  # GPT-2's kernels are (in, out)
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    with written(folder, sum(x.nbytes for x in tensors.values())) as partial:
        safetensors.numpy.save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        (partial / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _module(row: Row, layer: int) -> str:
    return row.theirs.format(layer).removesuffix(".weight")


def _allowed(model: Model) -> str:
    ends = ", ".join(row.theirs.split("{}.")[1].removesuffix(".weight") for row in ROWS.values())
    return (
        f"lora_A.weight and lora_B.weight of {ends} of layers 0 to {model.layers - 1}; embeddings, "
        "the head and LayerNorms have no adapters here"
    )


def _whole(tensor: Tensor) -> Float[np.ndarray, "..."]:
    index = tuple(slice(0, size) for size in tensor.shape)
    return tensor.read(index).astype(np.float32)
