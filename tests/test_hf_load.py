"""What others made, loaded: weights, tokenizers, and what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from biomedlm_jax import mesh as meshes
from biomedlm_jax import start
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf import load, read, save
from biomedlm_jax.hf.config import config_json
from biomedlm_jax.model import gpt
from biomedlm_jax.pipeline.vocabulary import END_OF_TEXT, Vocabulary
from tests.conftest import ROOT, SHARED, TINY, changed
from tests.runs import PATIENCE
from tests.test_hf_read import KINDS, theirs
from tests.test_hf_save import command, exported, tensors

GPT2 = SHARED / "tokenizers" / "gpt2"
MODEL = changed(TINY, model__width=8, model__heads=2, model__mlp=16).model


@pytest.fixture(scope="module")
def folder(vocabulary, tmp_path_factory):
    """Our own export, of random parameters."""
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: draw.normal(size=x.shape).astype(np.float32),
        jax.eval_shape(lambda: gpt.init(MODEL, jax.random.key(0))),
    )
    params["tokens"]["table"][MODEL.vocab :] = 0
    place = tmp_path_factory.mktemp("export") / "hf"
    save.save(params, MODEL, vocabulary, place, extra={})
    return place


@pytest.mark.parametrize("kind", KINDS)
def test_theirs_to_ours_to_theirs_is_byte_for_byte(kind, tmp_path):
    expected = theirs(kind, tmp_path / "theirs")
    loaded = load.load(str(tmp_path / "theirs"), tmp_path / "ours")
    assert (loaded.what, loaded.eos_id, loaded.vocabulary) == ("imported", 199, None)
    dtype = kind if "float" in kind else "float32"
    folder = exported(tmp_path / "ours", tmp_path / "again", dtype)
    found = tensors(folder)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        assert tensor.astype(np.float32).tobytes() == expected[name].tobytes(), name
    files = list((tmp_path / "theirs").glob("*.safetensors"))
    if dtype != "float32" and files:
        originals = tensors(tmp_path / "theirs")
        assert all(originals[name].tobytes() == x.tobytes() for name, x in found.items())


def test_a_record_of_what_was_loaded(folder, tmp_path):
    load.load(str(folder), tmp_path / "ours", dropout=0.3)
    about = json.loads((tmp_path / "ours/model.json").read_text())
    receipt = json.loads((folder / "receipt.json").read_text())
    assert about["checksums"] == receipt["checksums"]
    for name, digest in about["source"]["files"].items():
        assert receipt["files"][name] == digest
    assert {"model.safetensors", "config.json", "tokenizer.json", "sentencepiece.model"} <= set(
        about["source"]["files"]
    )
    assert about["model"]["dropout"] == 0.3
    pieces = list((tmp_path / "ours/params/params.blocks.up.kernel").glob("*.*.*"))
    assert len(pieces) == jax.device_count() == 8
    assert start.find(tmp_path / "ours").model.dropout == 0.3


def test_the_command_and_its_refusals(folder, tmp_path):
    ours = tmp_path / "ours"
    done = command("load", f"--source={folder}", f"--output={ours}")
    assert done.returncode == 0, done.stderr
    assert f"{MODEL.parameters:,} parameters, 2 layers of 8, 300 tokens" in done.stdout
    bad = shutil.copytree(folder, tmp_path / "bad")
    settings = json.loads((bad / "config.json").read_text())
    (bad / "config.json").write_text(json.dumps(settings | {"pad_token_id": 300}))
    for flags, message in [
        ([f"--source={ours}"], "is no Hugging Face folder; what it is can be used as it is"),
        ([f"--source={bad}"], "pad_token_id=300 is no token: there are ids 0 to 299"),
        ([f"--source={folder}", "--dropout=2"], "--dropout"),
    ]:
        done = command("load", *flags, f"--output={tmp_path / 'other'}")
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match="is not empty"):
        load.load(str(folder), ours)
    with pytest.raises(UserError, match="--dropout is for a Hugging Face folder"):
        start.find(ours, dropout=0.1)


def test_a_model_that_does_not_split_over_the_devices(tmp_path):
    theirs("whole", tmp_path / "hf", n_embd=36, n_inner=48)
    with pytest.raises(UserError, match=r"config\.model\.width is 36, which does not split"):
        load.load(str(tmp_path / "hf"), tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


SLOW = """
import runpy, sys, time
from biomedlm_jax import checksums
whole = checksums.checksums
def stop(tree):
    if sys._getframe(1).f_code.co_name == "load":
        print("nearly", flush=True)
        time.sleep(600)
    return whole(tree)
checksums.checksums = stop
runpy.run_module("biomedlm_jax.hf.load", run_name="__main__", alter_sys=True)
"""


def test_a_kill_leaves_nothing_that_looks_whole(folder, tmp_path):
    """All but the last file is written when it comes; the same command then begins anew."""
    ours = tmp_path / "ours"
    flags = [f"--source={folder}", f"--output={ours}"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *flags],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "nearly\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.stdout.close()
    left = tmp_path / "ours.partial"
    assert (left / "params/_METADATA").is_file()
    assert not ours.exists()
    with pytest.raises(UserError, match="is no model"):
        start.find(left)
    assert load.load(str(folder), ours).model.vocab == 300
    assert not left.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("checksums"), "is not what this version of hf.load writes: 'checksums'"),
        (lambda x: x["model"].pop("layers"), "lacks layers"),
        (lambda x: x.update(vocabulary_sha256="0"), "is not the file that was loaded"),
        (lambda x: x.update(source="hf"), "version .*: checksums and source are no"),
        (
            lambda x: x.update(checksums=[1]),
            "version .*: checksums and source are no",
        ),
        (lambda x: x.update(model=None), "is not what this version of hf.load writes"),
        (lambda x: x.update(eos_id="1"), "eos_id='1'"),
    ],
)
def test_a_record_that_was_changed(change, message, folder, tmp_path):
    load.load(str(folder), tmp_path / "ours")
    file = tmp_path / "ours/model.json"
    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))
    with pytest.raises(UserError, match=message):
        start.find(tmp_path / "ours")


def test_a_vocabulary_that_is_gone(folder, tmp_path):
    load.load(str(folder), tmp_path / "ours")
    shutil.rmtree(tmp_path / "ours/vocabulary")
    with pytest.raises(UserError, match="ours/vocabulary is missing; load it again"):
        start.find(tmp_path / "ours")


@pytest.mark.parametrize("name", ["checksums", "files"])
def test_a_receipt_of_another_form(name, folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "hf")
    about = json.loads((place / "receipt.json").read_text())
    (place / "receipt.json").write_text(json.dumps(about | {name: ["x"]}))
    with pytest.raises(UserError, match=f"is not what hf.save writes, for {name} is no object"):
        load.load(str(place), tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


# ---- Tokenizers -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A tiny model of GPT-2's 50,257 tokens, without a tokenizer."""
    if not GPT2.is_dir():
        pytest.skip(f"needs {GPT2}")
    place = tmp_path_factory.mktemp("gpt2") / "hf"
    model = changed(TINY, model__width=8, model__heads=2, model__mlp=16, model__vocab=50_257).model
    params = jax.tree.map(
        lambda x: np.zeros(x.shape, np.float32),
        jax.eval_shape(lambda: gpt.init(model, jax.random.key(0))),
    )
    save.save(params, model, None, place, extra={})
    (place / "config.json").write_text(json.dumps(config_json(model, eos_id=50_256)))
    (place / "receipt.json").unlink()
    return place


@pytest.mark.parametrize("files", [["tokenizer.json"], ["vocab.json", "merges.txt"]], ids=str)
def test_a_byte_level_tokenizer_in_either_form(files, gpt2, tmp_path):
    place = shutil.copytree(gpt2, tmp_path / "hf")
    for name in files:
        shutil.copy(GPT2 / name, place)
    source = start.find(place)
    assert source.vocabulary is not None
    found, whole = Vocabulary(source.vocabulary), Vocabulary(GPT2 / "tokenizer.json")
    assert start.same_encoding(found, whole)
    text = f" Aspirin  (75 mg/kg)\n\n\u03b2-cells {END_OF_TEXT}\u2581\U0001f52c"
    assert found.encode(text) == whole.encode(text)
    assert (found.size, source.eos_id) == (50_257, 50_256)
    loaded = load.load(str(place), tmp_path / "ours")
    assert loaded.vocabulary is not None
    assert Vocabulary(loaded.vocabulary).encode(text) == whole.encode(text)


def test_a_folder_without_a_tokenizer(gpt2, tmp_path):
    source = start.find(gpt2)
    assert (source.vocabulary, source.eos_id) == (None, 50_256)
    again = exported(gpt2, tmp_path / "again")
    assert json.loads((again / "config.json").read_text())["eos_token_id"] == 50_256
    assert "No tokenizer came with these weights" in (again / "README.md").read_text()
    assert not list(again.glob("tokenizer*"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config.json": '{"add_prefix_space": true}'}, "has add_prefix_space"),
        ({"tokenizer_config.json": "{"}, "is no JSON"),
        ({"merges.txt": None}, r"merges\.txt is missing"),
        ({"vocab.json": '{"a": 0}'}, r"are no vocabulary: "),
        ({"added_tokens.json": '{"<|pad|>": 50257}'}, r"adds tokens to its vocabulary: <\|pad\|>"),
        *(
            ({"tokenizer_config.json": f'{{"added_tokens_decoder": {x}}}'}, "has an added_tokens_d")
            for x in ("[1]", '{"5": "x"}', '{"5": {}}')
        ),
        ({"config.json": {"eos_token_id": 5}}, "eos_token_id=5, but the end of text is 50256"),
        ({"config.json": {"vocab_size": 50_300}}, "wte.weight has shape"),
        ({"tokenizer.json": "{}"}, "is no tokenizer file"),
    ],
    ids=str,
)
def test_tokenizers_that_give_other_ids_are_refused(files, message, gpt2, tmp_path):
    place = shutil.copytree(gpt2, tmp_path / "hf")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(GPT2 / name, place)
    for name, content in files.items():
        if content is None:
            (place / name).unlink()
        elif isinstance(content, dict):
            settings = json.loads((place / name).read_text()) | content
            (place / name).write_text(json.dumps(settings))
        else:
            (place / name).write_text(content)
    with pytest.raises(UserError, match=message):
        start.find(place)


def test_a_tokenizer_of_another_size_is_refused(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "hf")
    (place / "receipt.json").unlink()
    settings = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(settings | {"vocab_size": 299}))
    found = safetensors.numpy.load_file(place / read.SINGLE)
    name = "transformer.wte.weight"
    safetensors.numpy.save_file(found | {name: found[name][:299].copy()}, place / read.SINGLE)
    with pytest.raises(UserError, match=r"a tokenizer of 300 tokens and .* vocab_size=299"):
        start.find(place)


def test_the_exported_tokenizer_still_opens_quietly(folder, caplog):
    transformers = pytest.importorskip("transformers")
    assert (folder / "sentencepiece.model").is_file()
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Vocabulary(folder / "sentencepiece.model")
    assert theirs("Kari tomel.")["input_ids"] == ours.encode("Kari tomel.")
    assert caplog.records == []


def test_everywhere_takes_all_devices():
    assert dict(meshes.everywhere(TINY.model).shape) == dict(data=1, fsdp=8, model=1, context=1)


def test_places_are_told_apart(folder, tmp_path):
    assert start.find(f"hf:{folder}").what == start.find(Path(folder)).what == "hugging_face"
    load.load(str(folder), tmp_path / "ours")
    assert start.find(str(tmp_path / "ours")).what == "imported"
    with pytest.raises(UserError, match=r"config\.json is missing"):
        start.find(f"hf:{tmp_path / 'ours'}")
    with pytest.raises(UserError, match="gs://, from where no Hugging Face folder is read"):
        start.find("hf:gs://bucket/folder")
