"""The settings of PEFT's adapters, adapter_config.json, and which of them can be read.

As with config.json (`hf/config.py`), a setting whose value changes what is computed is refused by
its name, and so is one that nobody here knows; PEFT itself drops settings that it does not know.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from biomedlm_jax.entry import UserError
from biomedlm_jax.hf.read import read_json

CONFIG = "adapter_config.json"
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


def check(settings: Mapping[str, Any], file: Path) -> None:
    """
    settings: what is in an adapter_config.json.
    file: where it is, for messages.

    Raises:
      UserError: with every setting that is not LoRA as it is computed here, that is unknown, or
        whose value can not be one.
    """
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


def of_module(settings: Mapping[str, Any], name: str, plain: str, default: int, module: str) -> Any:
    """As PEFT's get_pattern_key: of the first expression that ends the module's name."""
    for pattern, value in (settings.get(name) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return settings.get(plain, default)


def targeted(settings: Mapping[str, Any], module: str) -> bool:
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
