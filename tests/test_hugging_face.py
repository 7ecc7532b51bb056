"""The folder for Hugging Face holds our model: every parameter, and every setting of it."""

import json
import logging
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors import safe_open

from biomedlm_jax.config import Model
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf import names, save
from biomedlm_jax.hf.config import config_json
from biomedlm_jax.model import gpt
from biomedlm_jax.pipeline.vocabulary import MODEL_FILE
from data import parse
from data import tokenizer as data_tokenizer

BIOMEDLM = Model(
    layers=32,
    width=2560,
    heads=20,
    mlp=10240,
    vocab=28896,
    context=1024,
    dropout=0.1,
    init_std=0.02,
    layer_norm_epsilon=1e-5,
    scale_attn_by_layer=True,
    compute_dtype="bfloat16",
    classes=0,
    class_bias=False,
    lora_rank=0,
    lora_alpha=0.0,
    remat="named",
    attention="auto",
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """As a user's is made, from the sample corpus."""
    folder = tmp_path_factory.mktemp("corpus")
    sample = Path(__file__).parents[1] / "data" / "sample"
    parse.parse(sample, folder / "documents", heldout_per_mille=0)
    options = data_tokenizer.Options(500, train_bytes=10**9)
    data_tokenizer.train(folder / "documents", folder / "vocabulary", options)
    return folder / "vocabulary" / MODEL_FILE


@pytest.fixture(scope="module")
def model():
    return Model(
        layers=3,
        width=32,
        heads=2,
        mlp=96,
        vocab=500,  # stored in 512 rows
        context=64,
        dropout=0.1,
        init_std=0.02,
        layer_norm_epsilon=1e-5,
        scale_attn_by_layer=True,
        compute_dtype="float32",
        classes=0,
        class_bias=False,
        lora_rank=0,
        lora_alpha=0.0,
        remat="none",
        attention="reference",
    )


@pytest.fixture(scope="module")
def params(model):
    """Every number another, also in the biases and scales, which `init` makes 0 and 1."""
    rng = np.random.default_rng(0)
    tree = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        jax.eval_shape(lambda: gpt.init(model, jax.random.key(0))),
    )
    tree["tokens"]["table"][model.vocab :] = 0
    return tree


@pytest.fixture(scope="module")
def folder(params, model, vocabulary, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model"
    save.save(params, model, vocabulary, path, extra={"step": 7})
    return path


@pytest.fixture
def complaints():
    """What transformers and the hub's library log from a warning on; they do not propagate."""
    records, handler = [], logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    for logger in loggers:
        logger.addHandler(handler)
    yield records
    for logger in loggers:
        logger.removeHandler(handler)


def test_table_names_every_parameter_of_the_model_once(model):
    tree = jax.eval_shape(lambda: gpt.init(model, jax.random.key(0)))
    flat: Any = traverse_util.flatten_dict(tree, sep="/")
    ours = [row.ours for row in names.TABLE]
    assert sorted(ours) == sorted(flat)
    assert {row.ours: row.shapes(model)[0] for row in names.TABLE} == {
        name: leaf.shape for name, leaf in flat.items()
    }


def test_table_names_every_tensor_of_hugging_face_once(model):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        theirs = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**config_json(model, eos_id=1))
        ).state_dict()
    assert theirs.pop("lm_head.weight").shape == (model.vocab, model.width)
    listed = [(name, row.shapes(model)[1]) for row in names.TABLE for name in row.names(model)]
    assert sorted(listed) == sorted((name, tuple(t.shape)) for name, t in theirs.items())


def flat(tree) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")  # pyright: ignore


def test_there_and_back_to_the_bit(params, model):
    """Also piece by piece, whatever the cuts: through heads, through the padding."""
    tensors, draw = dict(names.to_hf(params, model)), random.Random(0)
    for row in names.TABLE:
        whole = flat(params)[row.ours]
        for trial in range(30):
            cuts = [sorted(draw.choices(range(size + 1), k=2)) for size in whole.shape]
            index = tuple(slice(*cut) if trial else slice(None) for cut in cuts)
            piece = row.piece(index, model, lambda name, part: tensors[name][part])
            np.testing.assert_array_equal(piece, whole[index], row.ours)


def test_tensors_are_contiguous_whatever_the_order_of_ours(params, model):
    # safetensors writes the memory from a tensor's first byte on, whatever its strides.
    columns_first = jax.tree.map(np.asfortranarray, params)
    for (name, tensor), (_, same) in zip(
        names.to_hf(columns_first, model), names.to_hf(params, model), strict=True
    ):
        assert tensor.flags.c_contiguous, name
        np.testing.assert_array_equal(tensor, same)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_columns_of_qkv(params, model, name):
    tensors, d, h = dict(names.to_hf(params, model)), model.width, model.head_dim
    for layer in range(model.layers):
        theirs = tensors[f"transformer.h.{layer}.attn.c_attn.{name}"]
        ours = params["blocks"]["qkv"]["kernel" if name == "weight" else "bias"][layer]
        for head in range(model.heads):
            for part in range(3):  # query, key, value
                a, b = (head * 3 + part) * h, part * d + head * h
                np.testing.assert_array_equal(ours[..., a : a + h], theirs[..., b : b + h])


def test_misfits_are_reported_together(params, model):
    broken = jax.tree.map(lambda x: x, params)
    del broken["ln_f"]["bias"]
    broken["positions"] = broken["positions"][:-1]
    broken["ln_f"]["scale"] = broken["ln_f"]["scale"].astype(np.float16)
    broken["head"] = np.zeros(3, np.float32)
    with pytest.raises(UserError) as ours:
        names.to_hf(broken, model)
    for part in ("ln_f/bias is missing", "(63, 32) instead of (64, 32)", "float16", "head is unk"):
        assert part in str(ours.value)

    tensors = dict(names.to_hf(params, model))
    tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")
    tensors["transformer.h.2.ln_1.bias"] = np.zeros(5, np.float32)
    tensors["transformer.h.3.ln_1.bias"] = tensors["transformer.h.1.ln_1.bias"]
    with pytest.raises(UserError) as theirs:
        names.match({name: x.shape for name, x in tensors.items()}, model, "the folder")
    for part in ("wte.weight is missing", "h.3.ln_1.bias is unknown", "(5,) instead of (32,)"):
        assert part in str(theirs.value)


def test_config_is_biomedlm_s():
    transformers = pytest.importorskip("transformers")
    biomedlm = transformers.GPT2Config(
        architectures=["GPT2LMHeadModel"],
        vocab_size=28896,
        n_embd=2560,
        n_layer=32,
        n_head=20,
        scale_attn_by_inverse_layer_idx=True,
        bos_token_id=28895,
        eos_token_id=28895,
        n_ctx=1024,
        dtype="float32",
    )
    ours = config_json(BIOMEDLM, eos_id=28895)
    assert transformers.GPT2Config(**ours).to_dict() == biomedlm.to_dict()
    general = set(transformers.PreTrainedConfig().to_dict())
    assert set(transformers.GPT2Config().to_dict()) - general <= set(ours), "a field left open"
    assert config_json(Model(**{**vars(BIOMEDLM), "mlp": 4096}), eos_id=1)["n_inner"] == 4096


def test_folder_opens_and_generates_without_a_warning(folder, params, model, complaints):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values()), report
    assert type(theirs) is transformers.GPT2LMHeadModel
    assert theirs.dtype == torch.float32
    assert theirs.config._attn_implementation == "eager"
    assert theirs.lm_head.weight is theirs.transformer.wte.weight
    np.testing.assert_array_equal(
        theirs.transformer.wte.weight.detach().numpy(), params["tokens"]["table"][: model.vocab]
    )
    prompt = transformers.AutoTokenizer.from_pretrained(folder)("in rats", return_tensors="pt")
    assert set(prompt) == {"input_ids", "attention_mask"}
    assert theirs.generation_config.pad_token_id == 1
    assert theirs.generate(**prompt, do_sample=False, max_new_tokens=3).shape[0] == 1
    assert complaints == []


def test_weights_are_stored_once_and_without_padding(folder, model):
    with safe_open(folder / "model.safetensors", framework="numpy") as tensors:
        assert tensors.metadata() == {"format": "pt"}
        assert "lm_head.weight" not in tensors.keys()  # noqa: SIM118
        stored = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    assert stored["transformer.wte.weight"] == [model.vocab, model.width]
    assert sum(int(np.prod(shape)) for shape in stored.values()) == model.parameters


def test_what_older_releases_of_transformers_go_by_is_written(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert settings["clean_up_tokenization_spaces"] is False
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "float32"


def test_all_files_can_be_read_by_the_same_people(folder):
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_card_tells_what_the_model_is(folder, model):
    card = (folder / "README.md").read_text()
    assert f"| parameters | {model.parameters:,} |" in card
    assert "| step | 7 |" in card
    assert "no medical advice" in card


def test_vocabulary_of_another_size_is_refused(params, model, vocabulary, tmp_path):
    other = Model(**{**vars(model), "vocab": 499})
    with pytest.raises(UserError, match=r"vocab=499.*500 pieces"):
        save.save(params, other, vocabulary, tmp_path / "export", extra={})
    assert list(tmp_path.iterdir()) == []
