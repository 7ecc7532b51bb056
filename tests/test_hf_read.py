"""Weights of Hugging Face folders on our mesh: ordinary ones, to the bit, and bad ones, refused."""

import dataclasses
import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding

from biomedlm_jax import start, step
from biomedlm_jax.config import Model
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf import names, read
from biomedlm_jax.hf.config import config_json
from biomedlm_jax.layout import all_layers
from biomedlm_jax.model import gpt
from tests.conftest import SHARED, TINY, changed, on, put

GOLDEN = SHARED / "checkpoints" / "loractl_tiny-gpt2"
MESHES = [(1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 8, 1)]
SETTINGS = {
    "vocab_size": 200,
    "n_positions": 24,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_inner": 48,
    "bos_token_id": 199,
    "eos_token_id": 199,
}


@pytest.fixture
def golden(tmp_path):
    """A GPT-2 that another project made with transformers, and what it computes."""
    if not GOLDEN.is_dir():
        pytest.skip(f"needs {GOLDEN}")
    found = json.loads((GOLDEN / "gpt2_tiny_golden.json").read_text())
    shutil.copy(GOLDEN / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(found["config"]))
    return tmp_path, found


def experiment_of(model: Model, **settings):
    return dataclasses.replace(changed(TINY, data__batch=8, **settings), model=model)


@pytest.mark.parametrize("shape", MESHES[:3], ids=str)
def test_the_logits_of_a_gpt2_of_others(shape, golden):
    folder, expected = golden
    source = start.find(folder)
    assert (source.what, source.vocabulary) == ("hugging_face", None)
    assert not source.model.scale_attn_by_layer
    experiment, mesh = on(experiment_of(source.model), *shape)
    ids = expected["input_ids"]
    tokens = np.zeros((8, source.model.context), np.int32)
    tokens[:, : len(ids)] = ids
    params = start.params(source, mesh)
    logits = step.forward(experiment, mesh)(params, put(tokens, mesh))
    wanted = np.reshape(expected["logits"], expected["logits_shape"])
    for row in np.asarray(logits):
        np.testing.assert_allclose(row[: len(ids)], wanted, atol=1e-5, rtol=0)


def test_the_hidden_states_of_a_gpt2_of_others(golden):
    """After the embedding, after the first block, and after the last LayerNorm: those of a model
    of no block, of one, and of all, whose LayerNorm changes nothing but the last."""
    folder, expected = golden
    source = start.find(folder)
    _, mesh = on(experiment_of(source.model), 1, 1, 1)
    params = start.params(source, mesh)
    ids, shape = expected["input_ids"], expected["hidden_shape"]
    table, positions = (np.asarray(x) for x in (params["tokens"]["table"], params["positions"]))
    embedded = table[ids] + positions[: len(ids)]
    wanted = {name: np.reshape(expected[f"hidden_{name}"], shape) for name in ("after_embed",)}
    np.testing.assert_allclose(embedded, wanted["after_embed"], atol=1e-6, rtol=0)

    whole = hidden(source.model, mesh, params, ids)
    np.testing.assert_allclose(
        whole, np.reshape(expected["hidden_after_lnf"], shape), atol=1e-5, rtol=0
    )
    first = dict(params, blocks=jax.tree.map(lambda x: x[:1], params["blocks"]))
    one = dataclasses.replace(source.model, layers=1)
    block0 = np.reshape(expected["hidden_after_block0"], shape)
    centred = block0 - block0.mean(-1, keepdims=True)
    norm = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + one.layer_norm_epsilon)
    scale, bias = (np.asarray(params["ln_f"][name]) for name in ("scale", "bias"))
    np.testing.assert_allclose(
        hidden(one, mesh, first, ids), norm * scale + bias, atol=1e-5, rtol=0
    )


def hidden(model, mesh, params, ids) -> np.ndarray:
    """What follows the last LayerNorm."""
    from flax import nnx
    from jax.sharding import PartitionSpec

    graph, specs = gpt.graph(model), gpt.specs(model, mesh.shape)
    run = jax.shard_map(
        lambda params, tokens: nnx.merge(graph, all_layers(params, specs, model.compute_dtype))(
            tokens
        ),
        mesh=mesh,
        in_specs=(specs, step.BATCH_SPEC),
        out_specs=PartitionSpec(("data", "fsdp"), "context"),
    )
    return np.asarray(jax.jit(run)(params, np.array([ids], np.int32)))[0]


# ---- Folders as transformers and torch write them, to the bit ------------------------------------


def theirs(kind: str, folder: Path, **settings):
    """A random GPT-2 in a folder of that kind; its tensors by name, float32 or bfloat16."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(**SETTINGS | settings)
    torch.manual_seed(0)
    made = transformers.GPT2LMHeadModel(config)
    for parameter in made.parameters():  # biases and scales too, which start as 0 and 1
        torch.nn.init.normal_(parameter)
    if kind == "bfloat16":
        made = made.to(torch.bfloat16)
    if kind == "float16":
        made = made.to(torch.float16)
    if kind == "sharded":
        made.save_pretrained(folder, max_shard_size="20KB")
        assert (folder / read.INDEX).is_file()
    elif kind == "without prefix":
        made.transformer.save_pretrained(folder)
    elif kind in ("bin", "sharded bin", "bin with masks"):
        made.config.save_pretrained(folder)
        found = made.state_dict()  # lm_head.weight among them
        if kind == "bin with masks":
            for layer in range(config.n_layer):
                found[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 24, 24).tril().bool()
                found[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        if kind == "sharded bin":
            placed = {name: f"pytorch_model-{n % 2}.bin" for n, name in enumerate(found)}
            for file in set(placed.values()):
                torch.save({n: x for n, x in found.items() if placed[n] == file}, folder / file)
            (folder / read.TORCH_INDEX).write_text(json.dumps({"weight_map": placed}))
        else:
            torch.save(found, folder / read.TORCH)
    else:
        made.save_pretrained(folder)
    return {
        name: x.detach().float().numpy()
        for name, x in made.state_dict().items()
        if name != names.HEAD
    }


KINDS = ["whole", "sharded", "without prefix", "bfloat16", "float16"]
KINDS += ["bin", "sharded bin", "bin with masks"]


@pytest.mark.parametrize("kind", KINDS)
def test_folders_of_transformers_on_a_mesh(kind, tmp_path):
    """Every piece on every device, whatever the mesh; and back to the same tensors."""
    tensors = theirs(kind, tmp_path)
    source = start.find(tmp_path)
    assert source.model.mlp == 48
    assert source.model.compute_dtype == ("bfloat16" if kind == "bfloat16" else "float32")
    for shape in MESHES:
        _, mesh = on(experiment_of(source.model), *shape)
        params = start.params(source, mesh)
        specs = gpt.specs(source.model, mesh.shape)
        expected = jax.tree.map(partial(NamedSharding, mesh), specs)
        assert jax.tree.map(lambda x: x.sharding, params) == expected
        back = dict(names.to_hf(jax.device_get(params), source.model))
        assert back.keys() == tensors.keys()
        for name, tensor in back.items():
            np.testing.assert_array_equal(tensor, tensors[name], name)
        assert not np.asarray(params["tokens"]["table"])[source.model.vocab :].any()


def test_logits_are_those_of_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    for scaled in (False, True):
        folder = tmp_path / str(scaled)
        theirs(
            "whole",
            folder,
            scale_attn_by_inverse_layer_idx=scaled,
            attn_implementation="eager",
            activation_function="gelu_pytorch_tanh",
        )
        peer = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager"
        )
        source = start.find(folder)
        assert source.model.scale_attn_by_layer == scaled
        experiment, mesh = on(experiment_of(source.model), 1, 2, 2)
        tokens = np.random.default_rng(0).integers(0, 200, (8, 24), np.int32)
        ours = step.forward(experiment, mesh)(start.params(source, mesh), put(tokens, mesh))
        with torch.no_grad():
            expected = peer.eval()(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
        np.testing.assert_allclose(np.asarray(ours), expected, rtol=1e-4, atol=1e-3)
        assert expected.std() > 5


# ---- What is refused --------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path) -> tuple[Path, dict[str, Any]]:
    """A folder with random tensors, written without torch, and config.json to change."""
    settings = SETTINGS | {"model_type": "gpt2"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    write(tmp_path)
    return tmp_path, settings


def write(folder: Path, change=lambda tensors: None, file: str = read.SINGLE) -> None:
    model = read.model_of(SETTINGS, folder / "config.json", dtype="float32")
    draw = np.random.default_rng(0)
    tensors = {
        name: draw.normal(size=row.shapes(model)[1]).astype(np.float32)
        for row in names.TABLE
        for name in row.names(model)
    }
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn=True is not implemented"),
        ({"add_cross_attention": True}, "add_cross_attention=True is not implemented"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False is not implemented, only True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False is not implemented"),
        ({"activation_function": "gelu"}, "activation_function='gelu' is not .* 'gelu_new' or"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is not"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads="),
        ({"is_encoder_decoder": True}, "is_encoder_decoder=True is not implemented"),
        ({"model_type": "gpt_neo"}, "model_type='gpt_neo' is not implemented, only 'gpt2'"),
        ({"architectures": ["GPT2ForSequenceClassification"]}, "score.weight is missing"),
        ({"architectures": ["GPT2ForQuestionAnswering"]}, "architectures="),
        ({"auto_map": {"AutoModel": "x.py"}}, "auto_map=.* is no field that is known"),
        ({"rotary_dim": 64}, "rotary_dim=64 is no field that is known of GPT-2"),
        ({"attn_pdrop": 0.2}, "embd_pdrop=0.1, attn_pdrop=0.2, resid_pdrop=0.1 differ.*--dropout"),
        ({"attn_pdrop": 1.0}, r"attn_pdrop=1.0 is not in \[0, 1\)"),
        ({"n_ctx": 12}, "n_ctx=12, but n_positions=24"),
        ({"hidden_size": 64}, "hidden_size=64, but n_embd=32, its other name"),
        ({"n_head": 5}, "n_embd=32 does not split into n_head=5"),
        ({"n_layer": 2.5}, "n_layer=2.5 is not a whole number"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon=0 is not > 0"),
        ({"scale_attn_by_inverse_layer_idx": 1}, "is not true or false"),
        ({"pad_token_id": 200}, "pad_token_id=200 is no token: there are ids 0 to 199"),
        ({"eos_token_id": -1}, "eos_token_id=-1 is no token"),
        ({"bos_token_id": 50256, "pad_token_id": 200}, "bos_token_id=50256.*pad_token_id=200"),
        ({"rotary_dim": 1, "add_cross_attention": True, "n_ctx": 1}, "add_cross.*n_ctx.*rotary"),
    ],
)
def test_settings_that_this_model_does_not_compute_are_named(settings, message, plain):
    folder, found = plain
    (folder / "config.json").write_text(json.dumps(found | settings))
    with pytest.raises(UserError, match=message):
        start.find(folder)


def test_fields_that_change_nothing_and_those_left_out(plain):
    folder, found = plain
    model = start.find(folder).model
    assert (model.dropout, model.layer_norm_epsilon, model.scale_attn_by_layer) == (
        0.1,
        1e-5,
        False,
    )
    more = {"torch_dtype": "float32", "summary_type": "cls_index", "top_k": 50, "n_ctx": 24}
    renamed = {"hidden_size": 32, "num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(found | more | renamed | {"attn_pdrop": 0.3}))
    assert start.find(folder, dropout=0.0).model == dataclasses.replace(model, dropout=0.0)


def test_a_config_is_the_inverse_of_a_model(tmp_path):
    model = dataclasses.replace(TINY.model, mlp=100, remat="named")
    settings = config_json(model, eos_id=7)
    assert read.model_of(settings, tmp_path, dtype="float32") == model
    settings["n_inner"] = None
    assert read.model_of(settings, tmp_path, dtype="float32").mlp == 256


def test_tensors_that_do_not_fit_are_named_together(plain):
    folder, _ = plain

    def change(tensors):
        del tensors["transformer.h.1.ln_2.bias"]
        tensors["transformer.h.3.ln_2.bias"] = np.zeros(32, np.float32)
        tensors["transformer.wpe.weight"] = np.zeros((23, 32), np.float32)
        tensors["score.weight"] = np.zeros((2, 32), np.float32)
        tensors["transformer.h.0.attn.bias"] = np.ones((24, 24), np.float32)  # a mask

    write(folder, change)
    with pytest.raises(UserError) as refused:
        start.find(folder)
    said = str(refused.value)
    for part in (
        "h.1.ln_2.bias is missing",
        "h.3.ln_2.bias is unknown",
        "wpe.weight has shape (23, 32) instead of (24, 32)",
        "score.weight is unknown",
    ):
        assert part in said
    assert "attn.bias" not in said


def test_numbers_that_are_not_finite_are_named(plain):
    folder, _ = plain
    for bad in (np.nan, np.inf, -np.inf):

        def change(tensors, bad=bad):
            tensors["transformer.h.2.mlp.c_fc.weight"][31, 47] = bad

        write(folder, change)
        source = start.find(folder)
        _, mesh = on(experiment_of(source.model), 1, 2, 2)
        with pytest.raises(UserError, match=r"h\.2\.mlp\.c_fc\.weight in .* not finite"):
            start.params(source, mesh)


def test_a_head_that_is_not_the_embedding(plain):
    folder, _ = plain
    write(folder, lambda x: x.update({names.HEAD: x[names.EMBEDDING].copy()}))
    assert start.find(folder).model.vocab == 200

    def change(tensors):
        head = tensors[names.EMBEDDING].copy()
        head[199, 31] = np.nextafter(head[199, 31], np.float32(9))  # one bit
        tensors[names.HEAD] = head

    write(folder, change)
    with pytest.raises(UserError, match=r"lm_head\.weight that is not its wte\.weight"):
        start.find(folder)


@pytest.mark.parametrize("dtype", ["float64", "int8"])
def test_other_dtypes_are_named(dtype, plain):
    folder, _ = plain
    name = "transformer.ln_f.bias"
    write(folder, lambda x: x.update({name: x[name].astype(dtype)}))
    with pytest.raises(UserError, match=rf"ln_f\.bias is {dtype[0].upper()}\d+; convert"):
        start.find(folder)


@pytest.mark.parametrize("size", [0, 4, 100, 60_000, -1])
def test_a_cut_file_is_named(size, plain):
    folder, _ = plain
    file = folder / read.SINGLE
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    with pytest.raises(UserError, match=r"model\.safetensors is no whole safetensors file"):
        start.find(folder)
    file.write_bytes(b"\xff" * 8 + whole[8:])
    with pytest.raises(UserError, match=r"model\.safetensors is no whole safetensors file"):
        start.find(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {"a": "../a.safetensors"}}, r"outside of its folder: \.\./a"),
        ({"weight_map": {"a": "none.safetensors"}}, r"not there: none\.safetensors"),
        ({"weight_map": {"a": "part.safetensors"}}, "a is not in part.*ln_f.bias is in part"),
    ],
)
def test_an_index_that_does_not_fit_its_files(index, message, plain):
    folder, _ = plain
    (folder / read.SINGLE).rename(folder / "part.safetensors")
    (folder / read.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        start.find(folder)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is no JSON"), ("[1]", "is no JSON object"), (None, "is no model")]
)
def test_a_folder_that_is_none(text, message, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        start.find(tmp_path)


def test_a_folder_without_weights(plain):
    folder, _ = plain
    (folder / read.SINGLE).unlink()
    with pytest.raises(UserError, match=r"has no weights; looked for model\.safetensors, .*\.bin"):
        start.find(folder)
    with pytest.raises(UserError, match="is not there, so it is no model"):
        start.find(folder / "none")
    with pytest.raises(UserError, match="is no folder; name a Hugging Face folder"):
        start.find(f"hf:{folder / 'none'}")


def test_more_layers_than_tensors(plain):
    folder, settings = plain
    (folder / "config.json").write_text(json.dumps(settings | {"n_layer": 10**9}))
    with pytest.raises(UserError, match=r"n_layer=1,000,000,000 layers, and there are 40 tensors"):
        start.find(folder)


class Malicious:
    """What a pickle does to whoever loads it as objects."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_refused_and_does_nothing(legacy, plain):
    torch = pytest.importorskip("torch")
    folder, _ = plain
    (folder / read.SINGLE).unlink()
    file = folder / read.TORCH
    bait = {"transformer.wte.weight": torch.ones(2), "x": Malicious(folder / "executed")}
    torch.save(bait, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"pytorch_model\.bin (holds more than|can not be read)"):
        start.find(folder)
    assert not (folder / "executed").exists()
    # The bait works: who loads it as objects does execute it.
    torch.load(file, weights_only=False)
    assert (folder / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "can not be read"),
        (b"PK\x03\x04 and no more", "can not be read"),
        ([1, 2], "holds a list, not tensors by name"),
        ({"epoch": 3}, "holds what is no tensor: epoch"),
    ],
)
def test_a_file_of_torch_that_is_no_weights(content, message, plain):
    torch = pytest.importorskip("torch")
    folder, _ = plain
    (folder / read.SINGLE).unlink()
    if isinstance(content, bytes):
        (folder / read.TORCH).write_bytes(content)
    else:
        torch.save(content, folder / read.TORCH)
    with pytest.raises(UserError, match=rf"pytorch_model\.bin {message}"):
        start.find(folder)


@pytest.mark.parametrize(
    "what", ["tensors whose names are no text: 3", "sparse tensors: x; make them"]
)
def test_tensors_of_torch_that_are_none_of_ours(what, plain):
    torch = pytest.importorskip("torch")
    folder, _ = plain
    (folder / read.SINGLE).unlink()
    sparse = torch.eye(2).to_sparse_coo()
    torch.save({3: torch.ones(2)} if "text" in what else {"x": sparse}, folder / read.TORCH)
    with pytest.raises(UserError, match=rf"pytorch_model\.bin has {what}"):
        start.find(folder)


def test_without_torch_the_error_says_what_to_install(plain, monkeypatch):
    folder, _ = plain
    (folder / read.SINGLE).unlink()
    (folder / read.TORCH).write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="not installed: `pip install torch`, or use a folder"):
        start.find(folder)
