"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685) in the format of Hugging Face's PEFT.

An adapter of a kernel W [In, Out] is scale * a @ b beside it. `read` takes a folder that PEFT
wrote, `write` makes one that PEFT loads. As with config.json (`hf/config.py`), a setting whose value
changes what is computed in another way is refused by its name, and so is one that nobody here
knows; PEFT itself drops settings that it does not know.
"""

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from jaxtyping import Float

from biomedlm_jax.config import Model
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf.names import PREFIX, TABLE, Index, Row
from biomedlm_jax.hf.read import DTYPES, Tensor, finite, read_json, safetensors_in
from biomedlm_jax.hf.write import written

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
BEGIN = "base_model.model."  # of PEFT's names
ROWS = {row.ours: row for row in TABLE if row.axes[0] == "l" and row.ours.endswith("/kernel")}
NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# LoraConfig's of peft 0.21.2 (tuners/lora/config.py) that change the function, and the values with
# which it is the one above. Initializations that are missing here change the base as well.
WANTED: dict[str, tuple] = {
    "peft_type": ("LORA",),
    "task_type": (None, "CAUSAL_LM", "FEATURE_EXTRACTION"),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    "use_dora": (False,),
    "lora_bias": (False,),
    "use_qalora": (False,),
    **dict.fromkeys(("modules_to_save", "target_parameters", "layer_replication"), (None, [])),
    **dict.fromkeys(("trainable_token_indices", "alora_invocation_tokens"), (None, [], {})),
    **dict.fromkeys(("megatron_config", "monteclora_config", "use_bdlora"), (None,)),
    **dict.fromkeys(("arrow_config", "kasa_config"), (None,)),
}
# Read below, or of training, of how a base is stored, and of initializations.
HARMLESS = {
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "base_model_name_or_path"),
    *("fan_in_fan_out", "inference_mode", "lora_dropout", "auto_mapping", "peft_version"),
    *("revision", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("velora_config", "qalora_group_size", "ensure_weight_tying", "runtime_config"),
}


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


def base_of(folder: Path) -> Path:
    """The Hugging Face folder that adapters belong to; a name on a hub is never looked up.

    Raises:
      UserError: base_model_name_or_path is no Hugging Face folder on this disk.
    """
    named = read_json(folder / CONFIG).get("base_model_name_or_path")
    base = folder / named if isinstance(named, str) and named else None  # absolute ones stay
    if base is None or not (base / "config.json").is_file() or (base / CONFIG).is_file():
        raise UserError(
            f"{folder / CONFIG} has base_model_name_or_path={named!r}, which is no Hugging Face "
            "folder here, and nothing is downloaded; write there the path of the folder with the "
            "base's config.json, absolute or from the folder of the adapters"
        )
    return base


def read(folder: Path, model: Model) -> dict[str, Adapter]:
    """The adapters by the paths of our parameters, such as "blocks/qkv/kernel".

    model: of the base.

    Raises:
      UserError: settings or tensors that are not those of LoRA on the kernels of `model`, all
        named; weights that are missing, pickled, damaged or not finite.
    """
    settings = read_json(folder / CONFIG)
    _check(settings, folder / CONFIG)
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
        if _targeted(settings, module) != (module in parts):
            said = "target_modules has it not" if module in parts else "there are no tensors of it"
            wrong.append(f"{module}: {said}")
    ranks = {module: _pattern(settings, "rank_pattern", "r", 8, module) for module in parts}
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
            alpha = _pattern(settings, "alpha_pattern", "lora_alpha", 8, module)
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


def _check(settings: Mapping[str, Any], file: Path) -> None:
    wrong = []
    for name, allowed in WANTED.items():
        value = settings.get(name, allowed[0] if name != "peft_type" else None)
        if not any(type(value) is type(v) and value == v for v in allowed):
            shown = " or ".join(repr(v) for v in allowed)
            wrong.append(f"{name}={value!r} is not implemented, only {shown}")
    for name in settings.keys() - WANTED.keys() - HARMLESS:
        if settings[name] not in (None, False, [], {}):
            wrong.append(f"{name}={settings[name]!r} is no setting that is known of LoRA")
    ranks, alphas = (settings.get(x) or {} for x in ("rank_pattern", "alpha_pattern"))
    if type(settings.get("use_rslora", False)) is not bool:
        wrong.append(f"use_rslora={settings['use_rslora']!r} is not true or false")
    if not isinstance(ranks, dict) or not isinstance(alphas, dict):
        wrong.append("rank_pattern and alpha_pattern are not objects of names and numbers")
        ranks = alphas = {}
    for rank in (settings.get("r", 8), *ranks.values()):
        if type(rank) is not int or rank < 1:
            wrong.append(f"the rank {rank!r} of r or rank_pattern is not a whole number from 1 on")
    for alpha in (settings.get("lora_alpha", 8), *alphas.values()):
        if type(alpha) not in (int, float) or not math.isfinite(alpha):
            wrong.append(f"{alpha!r} of lora_alpha or alpha_pattern is no finite number")
    targets = settings.get("target_modules")
    listed = [targets] if isinstance(targets, str) else targets
    if not isinstance(listed, list) or not all(isinstance(x, str) for x in listed):
        wrong.append(f"target_modules={targets!r} is neither names nor a pattern")
    try:
        for pattern in (*ranks, *alphas, targets if isinstance(targets, str) else ""):
            re.compile(pattern)
    except re.error as error:
        wrong.append(f"{error.pattern!r} is no regular expression: {error}")
    if wrong:
        raise UserError(f"{file} can not be loaded: {'; '.join(sorted(wrong))}")


def _pattern(settings: Mapping[str, Any], name: str, plain: str, default: int, module: str) -> Any:
    """As PEFT's get_pattern_key: of the first expression that ends the module's name."""
    for pattern, value in (settings.get(name) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return settings.get(plain, default)


def _targeted(settings: Mapping[str, Any], module: str) -> bool:
    """Whether PEFT puts an adapter there, as its check_target_module_exists says."""

    def among(names: Any) -> bool:
        if isinstance(names, str):
            return bool(re.fullmatch(names, module))
        return any(module == name or module.endswith(f".{name}") for name in names or [])

    if among(settings.get("exclude_modules")) or not among(settings["target_modules"]):
        return False
    layers, patterns = settings.get("layers_to_transform"), settings.get("layers_pattern")
    if layers in (None, []) or isinstance(settings["target_modules"], str):
        return True
    named = re.search(r"(?:^|\.)(\w+)\.(\d+)\.", module)
    assert named is not None, module
    patterns = [patterns] if isinstance(patterns, str) else patterns
    listed = layers if isinstance(layers, list) else [layers]
    return int(named[2]) in listed and (not patterns or named[1] in patterns)


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
