"""LoRA adapters in PEFT's format: what PEFT computes with them, merged as they are read."""

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from biomedlm_jax import start, step
from biomedlm_jax.claim import read_claim
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf import adapter_config, adapters, foreign, load, names, save
from biomedlm_jax.model import gpt
from tests.conftest import FORGIVEN, ROOT, TINY, changed, on, put
from tests.runs import config_file, finish, losses

pytestmark = FORGIVEN
MODEL = TINY.model
ALL = ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]
QKV = "blocks/qkv/kernel"


@pytest.fixture(scope="module")
def base(vocabulary, tmp_path_factory) -> Path:
    """Our own export of a random model, so that there are checksums of it."""
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: 0.2 * draw.normal(size=x.shape).astype(np.float32),
        jax.eval_shape(lambda: gpt.init(MODEL, jax.random.key(0))),
    )
    params["tokens"]["table"][MODEL.vocab :] = 0
    folder = tmp_path_factory.mktemp("base") / "base"
    save.save(params, MODEL, vocabulary, folder, extra={})
    return folder


@pytest.fixture
def made() -> dict[str, adapters.Adapter]:
    draw = np.random.default_rng(1)

    def of(row: names.Row, rank: int, scale: float) -> adapters.Adapter:
        layers, rows, columns = row.shapes(MODEL)[0]
        a, b = draw.normal(size=(layers, rows, rank)), draw.normal(size=(layers, rank, columns))
        return adapters.Adapter(a.astype(np.float32), b.astype(np.float32) / 9, scale)

    ranks = zip(adapters.ROWS.values(), (4, 4, 2, 4), (2.0, 2.0, 2.0, 1 / 3), strict=True)
    return {row.ours: of(row, rank, scale) for row, rank, scale in ranks}


@pytest.fixture
def folder(made, base, tmp_path) -> Path:
    adapters.write(made, MODEL, tmp_path / "adapters", str(base))
    return tmp_path / "adapters"


def theirs(base: Path, folder: Path | None = None, **settings):
    """PEFT's model of a base: of a folder, or a new one with random A and B."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        if folder is not None:
            return peft.PeftModel.from_pretrained(model, folder).eval()
        torch.manual_seed(0)
        given = dict(task_type="CAUSAL_LM", fan_in_fan_out=True, init_lora_weights=False)
        return peft.get_peft_model(model, peft.LoraConfig(**(given | settings))).eval()


def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, MODEL.vocab, (8, MODEL.context), np.int32)


def their_logits(model) -> np.ndarray:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(torch.tensor(tokens(), dtype=torch.long)).logits.numpy()


def our_logits(place: Path, shape=(1, 1, 1)) -> np.ndarray:
    source = start.find(place)
    experiment, mesh = on(dataclasses.replace(changed(TINY), model=source.model), *shape)
    params = start.params(source, mesh)
    found = step.forward(experiment, mesh)(params, put(tokens(), mesh))
    return np.asarray(found)[..., : MODEL.vocab]


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def exported(place: Path, output: Path) -> Path:
    script = "import sys; sys.modules['torch'] = sys.modules['peft'] = None\nimport runpy\n"
    script += "runpy.run_module('biomedlm_jax.hf.save', run_name='__main__', alter_sys=True)"
    flags = [f"--checkpoint={place}", f"--output={output}"]
    subprocess.run([sys.executable, "-c", script, *flags], cwd=ROOT, check=True)
    return output


@pytest.mark.parametrize(
    "settings",
    [
        dict(r=4, lora_alpha=8, target_modules=ALL),
        dict(r=3, target_modules=["c_attn"], layers_to_transform=[1], use_rslora=True),
        dict(
            r=4,
            target_modules=r".*(attn\.c_attn|mlp\.c_fc)",
            rank_pattern={r"h\.1\.attn\.c_attn": 2},
            alpha_pattern={"c_fc": 3, r"0\.attn\.c_attn": 5},
        ),
    ],
    ids=["all", "one layer", "patterns"],
)
def test_pefts_logits_and_merged_tensors(settings, base, tmp_path):
    pytest.importorskip("torch")
    peer = theirs(base, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer.save_pretrained(tmp_path / "peft")
    expected = their_logits(peer)
    assert np.abs(expected - their_logits(theirs(base, **settings).unload())).max() > 0.1
    np.testing.assert_allclose(our_logits(tmp_path / "peft"), expected, atol=1e-5, rtol=1e-5)
    merged = {name: x.detach().numpy() for name, x in peer.merge_and_unload().named_parameters()}
    found = tensors(exported(tmp_path / "peft", tmp_path / "merged"))
    assert found.keys() == merged.keys()
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, merged[name], atol=1e-6, rtol=0, err_msg=name)
    transformers = pytest.importorskip("transformers")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    np.testing.assert_allclose(their_logits(again), expected, atol=1e-5, rtol=1e-5)


def test_peft_loads_what_is_written(base, folder):
    pytest.importorskip("torch")
    np.testing.assert_allclose(
        our_logits(folder), their_logits(theirs(base, folder)), atol=1e-5, rtol=1e-5
    )


def test_what_is_written_is_read_to_the_bit(made, folder, base, tmp_path):
    for name, adapter in adapters.read(folder, MODEL).items():
        assert adapter.scale == made[name].scale
        np.testing.assert_array_equal(adapter.a, made[name].a)
        np.testing.assert_array_equal(adapter.b, made[name].b)
    # Of some layers, and with a scale for each.
    one = made[QKV]
    some = dataclasses.replace(one, a=one.a * np.float32([[[1]], [[0]]]))
    some = dataclasses.replace(some, b=one.b * np.float32([[[1]], [[0]]]))
    two = dataclasses.replace(one, scale=np.array([0.5, 3.0]))
    for name, adapter in (("some", some), ("two", two)):
        adapters.write({QKV: adapter}, MODEL, tmp_path / name, str(base))
        (found,) = adapters.read(tmp_path / name, MODEL).values()
        np.testing.assert_array_equal(found.a, adapter.a)
        np.testing.assert_array_equal(found.b, adapter.b)
        np.testing.assert_array_equal(found.scale, adapter.scale)
    settings = json.loads((tmp_path / "some/adapter_config.json").read_text())
    assert settings["target_modules"] == ["transformer.h.0.attn.c_attn"]


def test_any_mesh_an_export_and_an_import_have_the_same_bits(made, folder, base, tmp_path):
    def expected(name: str, array: np.ndarray) -> np.ndarray:
        if (adapter := made.get(name)) is None:
            return array
        return array + np.float32(adapter.scale) * (adapter.a @ adapter.b)

    _, mesh = on(TINY, 1, 1, 1)
    plain = jax.device_get(start.params(start.find(base), mesh))
    wanted = dict(
        names.to_hf(
            jax.tree_util.tree_map_with_path(
                lambda path, x: expected("/".join(key.key for key in path), x), plain
            ),
            MODEL,
        )
    )
    load.load(str(folder), tmp_path / "imported")
    for place in (folder, f"hf:{folder}", tmp_path / "imported"):
        for shape in [(1, 1, 1), (2, 2, 2), (1, 4, 2)]:
            source = start.find(place)
            _, mesh = on(dataclasses.replace(TINY, model=source.model), *shape)
            found = dict(names.to_hf(jax.device_get(start.params(source, mesh)), MODEL))
            for name, tensor in found.items():
                np.testing.assert_array_equal(tensor, wanted[name], name)
    whole = start.find(folder).arrays.restore()
    assert all(np.array_equal(x, wanted[name]) for name, x in names.to_hf(whole, MODEL))
    found = tensors(exported(folder, tmp_path / "merged"))
    assert all(np.array_equal(found[name], x) for name, x in wanted.items())


def test_receipts_name_both(folder, base, tmp_path):
    source = start.find(folder)
    assert (source.what, source.step) == ("adapters", None)
    assert source.facts["base"] == str(base)
    assert {len(x) for x in source.facts["adapters"].values()} == {64}
    assert set(source.facts["adapters"]) == {adapter_config.CONFIG, adapters.WEIGHTS}
    plain = start.find(base)
    assert source.facts.items() > plain.facts.items()
    assert source.eos_id == plain.eos_id
    load.load(str(folder), tmp_path / "imported")
    kept = json.loads((tmp_path / "imported/model.json").read_text())["source"]
    assert kept["adapters"] == source.facts["adapters"]


@pytest.mark.parametrize("name", ["attn.c_attn.weight", "ln_1.bias"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_a_base_that_is_damaged_is_refused(name, shape, folder, base, tmp_path):
    """By its own checksums, also where adapters were added to what was read."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in base.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    found = tensors(base)
    found[f"transformer.h.1.{name}"].reshape(-1)[5] += 1
    safetensors.numpy.save_file(found, broken / "model.safetensors", metadata={"format": "pt"})
    change(folder, base_model_name_or_path="../broken")  # relative to its own folder
    source = start.find(folder)
    _, mesh = on(TINY, *shape)
    with pytest.raises(UserError, match=r"adapters is damaged: .*receipt\.json"):
        start.params(source, mesh)
    if "attn" in name:
        assert len(list(source.arrays.pieces(QKV))) == 1  # as an export takes them
        with pytest.raises(foreign.DamagedError, match="qkv/kernel"):
            source.arrays.compare(QKV, 0)


def change(folder: Path, **settings) -> None:
    file = folder / adapter_config.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(peft_type="LOHA"), "peft_type='LOHA' is not implemented, only 'LORA'"),
        (dict(peft_type=None), "peft_type=None is not implemented"),
        (dict(task_type="SEQ_CLS"), "task_type='SEQ_CLS' is not"),
        (dict(bias="lora_only"), "bias='lora_only' is not implemented, only 'none'"),
        (dict(use_dora=True), "use_dora=True is not"),
        (dict(lora_bias=True), "lora_bias=True is not"),
        (dict(use_qalora=True), "use_qalora=True is not"),
        (dict(modules_to_save=["wte"]), r"modules_to_save=\['wte'\] is not"),
        (dict(target_parameters=["x"]), "target_parameters="),
        (dict(layer_replication=[[0, 2]]), "layer_replication="),
        (dict(trainable_token_indices=[3]), "trainable_token_indices="),
        (dict(alora_invocation_tokens=[3]), "alora_invocation_tokens="),
        (dict(use_bdlora={"nblocks": 2}), "use_bdlora="),
        (dict(arrow_config={}), "arrow_config="),
        (dict(kasa_config={}), "kasa_config="),
        (dict(monteclora_config={}), "monteclora_config="),
        (dict(megatron_config={}), "megatron_config="),
        (dict(init_lora_weights="pissa"), "init_lora_weights='pissa' is not"),
        (dict(use_new=True), "use_new=True is no setting that is known of LoRA"),
        (dict(r=0), "rank 0 of r or rank_pattern is not"),
        (dict(lora_alpha="8"), "'8' of lora_alpha or alpha_pattern is no finite number"),
        (dict(use_rslora="yes"), "use_rslora='yes' is not true or false"),
        (dict(alpha_pattern={"(": 3}), r"'\(' is no regular expression"),
        (dict(target_modules=None), "target_modules=None is neither"),
        (dict(target_modules=["attn.c_attn"]), r"h\.1\.mlp\.c_fc: target_modules has it not"),
        (
            dict(r=5, rank_pattern={}),
            r"c_attn\.lora_A\.weight has shape \(4, 64\) instead of \(5, ",
        ),
        (dict(use_dora=True, bias="all"), "bias='all' .*; use_dora=True"),
        (dict(base_model_name_or_path="openai/gpt2"), "'openai/gpt2', which is no.*no.*downloaded"),
        (dict(base_model_name_or_path=None), "base_model_name_or_path=None, which is no"),
        (dict(base_model_name_or_path="."), "base_model_name_or_path='.', which is no"),
    ],
    ids=str,
)
def test_settings_that_are_refused(settings, message, folder):
    change(folder, **settings)
    with pytest.raises(UserError, match=message):
        start.find(folder)


A, B = (f"base_model.model.transformer.h.1.attn.c_attn.lora_{x}.weight" for x in "AB")


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (lambda x: x.pop(B), [r"h\.1\.attn\.c_attn\.lora_B\.weight is missing"]),
        (lambda x: (x.pop(A), x.pop(B)), [r"h\.1\.attn\.c_attn: there are no tensors of it"]),
        (
            lambda x: x.update({B: x[B][1:]}),
            [r"lora_B\.weight has shape \(191, 4\) instead of \(1"],
        ),
        (
            lambda x: x.update({A: x[A] * np.nan}),
            [r"lora_A\.weight has values that are not finite"],
        ),
        (lambda x: x.update({A: x[A].astype(np.float64)}), [r"lora_A\.weight is F64"]),
        (lambda x: x.update({A.replace("1.", "2."): x[A]}), [r"h\.2\.attn.* layers 0 to 1"]),
        (
            lambda x: x.update({"base_model.model.lm_head.lora_A.weight": x[A]}),
            [r"lm_head\.lora_A\.weight is none of .*; embeddings, the head .* no adapters here"],
        ),
        (
            lambda x: x.update({"base_model.model.transformer.wte.lora_embedding_A": x[A]}),
            ["wte.lora_embedding_A is none of"],
        ),
        (
            lambda x: x.update({A: x[A] * np.inf, "x": x.pop(B)}),
            ["lora_A.weight has values", "x is none of", "lora_B.weight is missing"],
        ),
    ],
)
def test_tensors_that_are_refused_are_named_together(change, messages, folder):
    found = safetensors.numpy.load_file(folder / adapters.WEIGHTS)
    change(found)
    safetensors.numpy.save_file(found, folder / adapters.WEIGHTS)
    for message in messages:
        with pytest.raises(UserError, match=message):
            start.find(folder)


def test_files_that_are_refused(folder, tmp_path, vocabulary):
    file = folder / adapters.WEIGHTS
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    with pytest.raises(UserError, match="is no whole safetensors file"):
        start.find(folder)
    file.unlink()
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors; write it with"):
        start.find(folder)
    (folder / adapters.PICKLED).write_bytes(b"never read")
    with pytest.raises(UserError, match=r"a pickle, which is never opened; .*safe_serialization"):
        start.find(folder)
    file.write_bytes(content)
    own = folder / "sentencepiece.model"
    own.write_bytes(vocabulary.read_bytes())
    assert start.find(folder).vocabulary is not None
    text = bytearray(vocabulary.read_bytes())
    at = text.index(b"ka")
    text[at : at + 2] = b"zq"
    own.write_bytes(bytes(text))
    with pytest.raises(UserError, match="gives other ids than that of its base"):
        start.find(folder)


def test_what_is_not_written_leaves_nothing(made, tmp_path, monkeypatch):
    out = tmp_path / "out"
    one = made[QKV]
    for bad, message in [
        ({QKV: dataclasses.replace(one, a=one.a * np.float32(np.nan))}, "not of finite float32"),
        ({"tokens/table": one}, "tokens/table .* is no kernel of the model"),
        ({QKV: dataclasses.replace(one, b=one.b[..., 1:])}, "is no kernel of the model"),
        ({QKV: dataclasses.replace(one, a=one.a * 0, b=one.b * 0)}, "all are zero"),
        ({QKV: dataclasses.replace(one, scale=np.inf)}, "scale"),
    ]:
        with pytest.raises(UserError, match=message):
            adapters.write(bad, MODEL, out, "base")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(UserError, match="nothing is left of it"):
        adapters.write(made, MODEL, out, "base")
    assert not list(tmp_path.iterdir())
    out.mkdir()
    (out / "x").touch()
    with pytest.raises(UserError, match="is not empty"):
        adapters.write(made, MODEL, out, "base")


@pytest.mark.slow
def test_two_processes_start_from_adapters(folder, store, tmp_path):
    """Each reads its part of the base and of its checksums; both come to what one comes to."""
    settings = dict(data__store=str(store), mesh__fsdp=2, run__steps=2)
    here = changed(TINY, start=f"hf:{folder}", optimizer__warmup_steps=0, **settings)
    file = config_file(here, tmp_path / "tiny.py")
    for name, count in (("one", 1), ("two", 2)):
        finish(file, tmp_path / name, processes=count)
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    kept = [read_claim(tmp_path / name).weights for name in ("one", "two")]
    assert kept[0] == kept[1]
    assert kept[0]["what"] == "adapters"
