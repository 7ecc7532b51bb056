"""The settings of a model as Hugging Face's config.json for GPT-2, and back.

`config_json` writes every field, so that no default of a release of transformers decides what a
model computes. `model_of` takes what others wrote: files that leave out what is GPT-2's default,
spell a field by its other name, or carry fields that do not change the function. What this model
does not compute is refused by the name of its field, and a field that is in none of the tables
below is too: nothing is passed over because nobody knew it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from biomedlm_jax.config import Model
from biomedlm_jax.entry import UserError

# GPT2Config's, of transformers 5.23 (models/gpt2/configuration_gpt2.py), the same since 4.0: a
# config.json may leave out what is equal to them.
DEFAULTS: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,  # 4 n_embd
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "tie_word_embeddings": True,
    "pruned_heads": {},
    "quantization_config": None,
    "architectures": None,
}
ALIASES = {  # GPT2Config.attribute_map
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
WANTED: dict[str, tuple] = {  # the only values that this model computes
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # one function by two names
    "scale_attn_weights": (True,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "tie_word_embeddings": (True,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "architectures": (
        *(None, [], ["GPT2LMHeadModel"], ["GPT2Model"]),
        *(["GPT2ForSequenceClassification"], ["GPT2DoubleHeadsModel"]),
    ),
}
# Of the head of GPT2DoubleHeadsModel, with GPT2Config's defaults first. Its dropout,
# summary_first_dropout, is of training alone; ours has none.
SUMMARY: dict[str, tuple] = {
    "summary_type": ("cls_index",),
    "summary_use_proj": (True,),
    "summary_activation": (None,),
    "summary_proj_to_labels": (True,),
}
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Where a file comes from, how it is kept and generated from, and what belongs to heads, which is
# looked at where there is one (`_head`): none of them changes what the decoder computes.
HARMLESS = {
    *("transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "dtype"),
    *("torch_dtype", "torchscript", "use_bfloat16", "tf_legacy_loss", "use_cache", "return_dict"),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_autoset"),
    *("_attn_implementation_internal", "gradient_checkpointing", "output_attentions"),
    *("output_hidden_states", "output_past", "output_scores", "return_dict_in_generate"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task"),
    *("task_specific_params", "summary_type", "summary_use_proj", "summary_activation"),
    *("summary_proj_to_labels", "summary_first_dropout", "predict_special_tokens"),
    *("tokenizer_class", "prefix", "chunk_size_feed_forward", "is_decoder"),
    *("cross_attention_hidden_size", "tie_encoder_decoder", "decoder_start_token_id"),
    *("sep_token_id", "do_sample", "early_stopping", "max_length", "min_length", "num_beams"),
    *("num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p"),
    *("repetition_penalty", "length_penalty", "no_repeat_ngram_size", "bad_words_ids"),
    *("encoder_no_repeat_ngram_size", "num_return_sequences", "forced_bos_token_id"),
    *("forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "remove_invalid_values"),
    *("exponential_decay_length_penalty", "max_new_tokens", "_from_model_config"),
}
DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")


def architecture(model: Model) -> str:
    """The class of transformers that computes what `model` does; see `names.rows`."""
    if not model.classes:
        return "GPT2LMHeadModel"
    return "GPT2DoubleHeadsModel" if model.class_bias else "GPT2ForSequenceClassification"


def config_json(
    model: Model,
    *,
    eos_id: int | None,
    dtype: str = "float32",
    pad_id: int | None = None,
    labels: Sequence[str] = (),
) -> dict[str, Any]:
    """config.json: every field of GPT-2's.

    eos_id: of the token that begins and ends texts; None where no vocabulary is known.
    dtype: of the tensors beside it, "float32", "bfloat16" or "float16".
    pad_id: of the token that fills rows up, where there is one of its own.
    labels: names of the classes of a head, in their order; none are LABEL_0 and so on.
    """
    classes = list(labels) or [f"LABEL_{index}" for index in range(model.classes)]
    assert len(classes) == model.classes, f"{classes} of {model.classes} classes"
    of_head = {
        "num_labels": len(classes),
        "id2label": {str(index): name for index, name in enumerate(classes)},
        "label2id": {name: index for index, name in enumerate(classes)},
        "problem_type": "single_label_classification" if len(classes) > 1 else None,
    }
    return {
        "architectures": [architecture(model)],
        "model_type": "gpt2",
        "vocab_size": model.vocab,
        "n_positions": model.context,
        "n_ctx": model.context,
        "n_embd": model.width,
        "n_layer": model.layers,
        "n_head": model.heads,
        "n_inner": None if model.mlp == 4 * model.width else model.mlp,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": model.layer_norm_epsilon,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": model.scale_attn_by_layer,
        "reorder_and_upcast_attn": False,
        "attn_implementation": "eager",  # see the model card
        "add_cross_attention": False,
        "tie_word_embeddings": True,
        "embd_pdrop": model.dropout,
        "attn_pdrop": model.dropout,
        "resid_pdrop": model.dropout,
        "initializer_range": model.init_std,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,  # what releases before 4.56 read
        # Of heads: of the one that is there, or those that users can put on the decoder, and then
        # GPT-2's values.
        **{name: value for name, (value,) in SUMMARY.items()},
        "summary_first_dropout": 0.0 if model.classes else 0.1,
        **(of_head if classes else {}),
    }


def labels_of(settings: Mapping[str, Any], model: Model) -> tuple[str, ...]:
    """Names of the classes in a config.json that `model_of` took."""
    given = settings.get("id2label") or {}
    return tuple(given.get(str(index), f"LABEL_{index}") for index in range(model.classes))


def model_of(
    settings: Mapping[str, Any], file: Path, *, dtype: str, dropout: float | None = None
) -> Model:
    """The model that a config.json describes.

    settings: what is in it.
    file: where it is, for messages.
    dtype: of the tensors beside it: that of the computation where it is bfloat16, else float32.
    dropout: in place of the file's three.

    Raises:
      UserError: with every field that this model does not compute, that is unknown, or whose
        value can not be one; nothing is ignored.
    """
    wrong, given = list[str](), dict[str, Any]()
    for name, value in settings.items():
        known = ALIASES.get(name, name)
        if known in given and given[known] != value:
            wrong.append(f"{name}={value!r}, but {known}={given[known]!r}, its other name")
        given[known] = value
    fields = DEFAULTS | given
    for name, allowed in WANTED.items():
        if not any(type(fields[name]) is type(v) and fields[name] == v for v in allowed):
            shown = " or ".join(repr(value) for value in allowed)
            wrong.append(f"{name}={fields[name]!r} is not implemented, only {shown}")
    for name in given.keys() - DEFAULTS.keys() - HARMLESS - set(TOKENS) - {"n_ctx"}:
        wrong.append(f"{name}={given[name]!r} is no field that is known of GPT-2")
    wrong += _numbers(fields)
    # The older name of n_positions, read by no release of these years.
    if given.get("n_ctx") not in (None, fields["n_positions"]):
        wrong.append(f"n_ctx={given['n_ctx']!r}, but n_positions={fields['n_positions']!r}")
    rates = {name: fields[name] for name in DROPOUTS}
    if dropout is None and len(set(map(repr, rates.values()))) > 1:
        shown = ", ".join(f"{name}={rate!r}" for name, rate in rates.items())
        wrong.append(f"{shown} differ, and this model has one rate; give it with --dropout")
    classes, class_bias, of_head = _head(given, fields["architectures"])
    wrong += of_head
    if not wrong:
        wrong += _tokens(given, fields["vocab_size"])
    if wrong:
        raise UserError(f"{file} can not be loaded: {'; '.join(sorted(wrong))}")
    width = fields["n_embd"]
    return Model(
        layers=fields["n_layer"],
        width=width,
        heads=fields["n_head"],
        mlp=4 * width if fields["n_inner"] is None else fields["n_inner"],
        vocab=fields["vocab_size"],
        context=fields["n_positions"],
        dropout=float(rates["embd_pdrop"] if dropout is None else dropout),
        init_std=float(fields["initializer_range"]),
        layer_norm_epsilon=float(fields["layer_norm_epsilon"]),
        scale_attn_by_layer=fields["scale_attn_by_inverse_layer_idx"],
        compute_dtype="bfloat16" if dtype == "bfloat16" else "float32",
        classes=classes,
        class_bias=class_bias,
        lora_rank=0,
        lora_alpha=0.0,
        remat="named",
        attention="auto",
    )


def _head(given: Mapping[str, Any], architectures: Any) -> tuple[int, bool, list[str]]:
    """(classes, whether they have a bias, what is wrong with the fields of the head)."""
    wrong, names = list[str](), given.get("id2label")
    if architectures == ["GPT2DoubleHeadsModel"]:  # whose number of labels is 1, whatever is said
        for name, (wanted,) in SUMMARY.items():
            value = given.get(name, wanted)
            if type(value) is not type(wanted) or value != wanted:
                wrong.append(f"{name}={value!r} is not implemented, only {wanted!r}")
        return 1, True, wrong
    if architectures != ["GPT2ForSequenceClassification"]:
        return 0, False, []
    classes = given.get("num_labels")
    if names is not None:
        listed = isinstance(names, dict) and set(names) == {str(x) for x in range(len(names))}
        if not listed or not names or not all(isinstance(x, str) for x in names.values()):
            wrong.append(f"id2label={names!r} is no object of names by the numbers from 0 on")
        elif classes not in (None, len(names)):
            wrong.append(f"num_labels={classes!r}, but id2label has {len(names)}")
        classes = len(names) if listed and names else 1
    elif classes is None:
        classes = 2  # transformers' default
    if type(classes) is not int or classes < 1:
        wrong.append(f"num_labels={classes!r} is not a whole number of at least 1")
    if (kind := given.get("problem_type")) not in (None, "single_label_classification"):
        wrong.append(
            f"problem_type={kind!r} is not implemented, only 'single_label_classification'"
        )
    return classes, False, wrong  # pyright: ignore[reportReturnType]


def _numbers(fields: Mapping[str, Any]) -> list[str]:
    """What is wrong with the fields that become settings of `Model`."""
    wrong = []
    for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
        value = fields[name]
        if (name, value) != ("n_inner", None) and (type(value) is not int or value < 1):
            wrong.append(f"{name}={value!r} is not a whole number of at least 1")
    for name in ("initializer_range", "layer_norm_epsilon", *DROPOUTS):
        value = fields[name]
        real = type(value) in (int, float) and math.isfinite(value)
        if not real or (not 0 <= value < 1 if name in DROPOUTS else value <= 0):
            wrong.append(f"{name}={value!r} is not {'in [0, 1)' if name in DROPOUTS else '> 0'}")
    name = "scale_attn_by_inverse_layer_idx"
    if type(fields[name]) is not bool:
        wrong.append(f"{name}={fields[name]!r} is not true or false")
    width, heads = fields["n_embd"], fields["n_head"]
    if not wrong and width % heads:
        wrong.append(f"n_embd={width} does not split into n_head={heads}")
    return wrong


def _tokens(given: Mapping[str, Any], vocab: int) -> list[str]:
    """Ids that are no row of the embedding. Those that are left out are no setting of the file."""
    return [
        f"{name}={given[name]!r} is no token: there are ids 0 to {vocab - 1}; correct it in the "
        "file, or set it to null"
        for name in TOKENS
        if given.get(name) is not None
        and not (type(given[name]) is int and 0 <= given[name] < vocab)
    ]
