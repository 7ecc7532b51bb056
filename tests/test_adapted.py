"""Runs with adapters: what is trained and kept, and the model that leaves, merged or apart."""

import dataclasses
import json
import warnings

import jax
import numpy as np
import optax
import pytest
import safetensors.numpy

from biomedlm_jax import adapted, arrays, start, step
from biomedlm_jax.checkpoint import scored
from biomedlm_jax.checksums import checksums
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf import save, save_adapters
from biomedlm_jax.model.additions import without_adapters
from tests import tuned
from tests.conftest import FORGIVEN, changed, fine_tuning, on, put, random_tokens, started
from tests.test_hf_save import command, exported

pytestmark = FORGIVEN
MESHES = [(1, 1, 1), (2, 2, 2), (1, 4, 2)]


@pytest.fixture(scope="module")
def run(vocabulary, tmp_path_factory):
    """(experiment, parameters, workdir) of a classification with adapters."""
    experiment = tuned.lora(tuned.experiment_of("classification", vocabulary))
    workdir = tmp_path_factory.mktemp("run") / "run"
    return experiment, tuned.saved(experiment, vocabulary, workdir), workdir


def by_hand(params: dict, experiment) -> dict[str, np.ndarray]:
    """Merged in float64."""
    flat = tuned.flat(params)
    for name in [name for name in flat if name.endswith("/a")]:
        layer = name.removesuffix("/a")
        a, b = (flat.pop(f"{layer}/{part}").astype(np.float64) for part in "ab")
        flat[f"{layer}/kernel"] = flat[f"{layer}/kernel"] + 2.0 * a @ b
    return flat


def test_a_run_opens_merged_with_the_same_bits_everywhere(run, tmp_path, monkeypatch):
    experiment, params, workdir = run
    source = start.find(workdir)
    assert source.model == without_adapters(experiment.model)
    wanted, bits = by_hand(params, experiment), dict[str, bytes]()
    for shape in MESHES:
        found = tuned.flat(start.params(source, on(experiment, *shape)[1]))
        assert found.keys() == wanted.keys()
        for name, array in found.items():
            np.testing.assert_allclose(array, wanted[name], atol=1e-5, rtol=0, err_msg=name)
            assert bits.setdefault(name, array.tobytes()) == array.tobytes(), name
    host = tuned.flat(source.arrays.restore())
    assert all(bits[name] == array.tobytes() for name, array in host.items())
    whole = exported(workdir, tmp_path / "whole")
    monkeypatch.setattr(arrays, "PIECE", 4096)  # a layer at a time
    cut = exported(workdir, tmp_path / "cut")
    (a, b) = (safetensors.numpy.load_file(x / "model.safetensors") for x in (whole, cut))
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)
    folder = tuned.flat(start.params(start.find(cut), on(experiment, 1, 1, 1)[1]))
    assert all(bits[name] == array.tobytes() for name, array in folder.items())
    receipt = json.loads((cut / "receipt.json").read_text())
    assert receipt["checksums"] == checksums({"params": source.arrays.restore()})


def added(params: dict, model) -> dict[str, np.ndarray]:
    """Kernels with alpha / rank * a b, in float64; all but adapters, by their paths."""
    flat = tuned.flat(params)
    found = {name: x for name, x in flat.items() if name.split("/")[-1] not in ("a", "b")}
    for name in [name.removesuffix("/a") for name in flat if name.endswith("/a")]:
        product = flat[f"{name}/a"].astype(np.float64) @ flat[f"{name}/b"]
        found[f"{name}/kernel"] = (
            flat[f"{name}/kernel"] + product * model.lora_alpha / model.lora_rank
        )
    return found


def test_merged_and_unmerged_say_the_same(run):
    experiment, params, workdir = run
    tokens = random_tokens(experiment)[:, :16]
    ends = np.full(len(tokens), 15, np.int32)
    source, found = start.find(workdir), []
    plain = dataclasses.replace(experiment, model=source.model)
    for one, shape in [(experiment, (1, 1, 1)), (plain, (1, 1, 1)), (plain, (2, 2, 2))]:
        here, mesh = on(one, *shape)
        shardings = step.state_shardings(here, mesh).params
        given = start.params(source, mesh) if one is plain else jax.device_put(params, shardings)
        scores = step.scores(here, mesh)(given, put(tokens, mesh), ends)
        found.append(np.asarray(scores))
    assert np.ptp(found[0]) > 0.1
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-5, rtol=1e-5)
    on_device = added(params, experiment.model)
    for name, array in tuned.flat(source.arrays.restore()).items():
        np.testing.assert_allclose(on_device[name], array, atol=1e-5, rtol=0, err_msg=name)


@pytest.mark.parametrize("name", ["qkv.kernel", "qkv.a", "up.b", "ln_1.scale"])
def test_what_was_saved_is_checked_before_it_is_merged(name, vocabulary, tmp_path, capsys):
    experiment = tuned.lora(tuned.experiment_of("classification", vocabulary))
    tuned.saved(experiment, vocabulary, tmp_path / "run")
    (part,) = (tmp_path / "run/checkpoints/1/state").glob(f"params.blocks.{name}")
    file = next(path for path in part.iterdir() if path.name[0].isdigit())
    content = bytearray(file.read_bytes())
    content[4] ^= 1
    file.write_bytes(content)
    source = start.find(tmp_path / "run")
    with pytest.raises(UserError, match="checksum"):
        start.params(source, on(experiment, 1, 2, 2)[1])
    with pytest.raises(UserError, match="checksum"):
        exported(tmp_path / "run", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    capsys.readouterr()


def test_an_average_is_merged_where_there_is_one(vocabulary, tmp_path):
    experiment = tuned.lora(tuned.experiment_of("generation", vocabulary))
    experiment = changed(experiment, optimizer__ema_decay=0.5)
    params = tuned.saved(experiment, vocabulary, tmp_path / "run")
    found = tuned.flat(start.find(tmp_path / "run").arrays.restore())
    for name, array in by_hand(params, experiment).items():
        np.testing.assert_allclose(found[name], array, atol=1e-5, rtol=0, err_msg=name)


def test_too_large_a_sum_is_refused(vocabulary, tmp_path, monkeypatch):
    experiment = tuned.lora(tuned.experiment_of("generation", vocabulary))
    tuned.saved(experiment, vocabulary, tmp_path / "run")
    saved = scored(tmp_path / "run", experiment, 1)
    model = dataclasses.replace(experiment.model, lora_alpha=1e39)
    with np.errstate(all="ignore"), pytest.raises(UserError, match="values that are not finite"):
        adapted.Adapted(saved, model).restore()


def test_only_adapters_and_the_head_have_state(vocabulary):
    experiment = tuned.lora(tuned.experiment_of("classification", vocabulary), rank=4)
    model = experiment.model
    opt_state = jax.eval_shape(lambda: step.init(experiment)).opt_state
    (moments,) = (x for x in opt_state if isinstance(x, optax.ScaleByAdamState))
    adapters_of_a_layer = sum(
        4 * (rows + columns)
        for rows, columns in [
            (model.width, 3 * model.width),
            (model.width, model.width),
            (model.width, model.mlp),
            (model.mlp, model.width),
        ]
    )
    wanted = model.layers * adapters_of_a_layer + model.width * model.classes
    for tree in (moments.mu, moments.nu):
        assert sum(x.size for x in jax.tree.leaves(tree)) == wanted
        assert {name.split("/")[-1] for name in tuned.names_of(tree)} == {"a", "b", "kernel"}
        assert [x for x in tuned.names_of(tree) if x.endswith("kernel")] == ["head/kernel"]


@pytest.mark.parametrize("rank", [0, 4])
def test_what_is_frozen_does_not_move(rank):
    """With adapters every kernel, LayerNorm and embedding; with frozen_layers=1 the embeddings and
    layer 0, of adapters too."""
    experiment = fine_tuning("classification")
    experiment = changed(experiment, optimizer__frozen_layers=1, optimizer__warmup_steps=0)
    here, mesh = on(tuned.lora(experiment, rank) if rank else experiment, 2, 1, 1)
    state = started(here, mesh)
    before = tuned.flat(state.params)
    tokens = random_tokens(here)
    ends, labels = np.full(len(tokens), 31, np.int32), np.arange(len(tokens), dtype=np.int32) % 3
    update = step.train_step(here, mesh)
    for _ in range(2):  # b is zero at first, and a has no gradient then
        state, _ = update(state, put(tokens, mesh), ends=ends, labels=labels)
    after = tuned.flat(state.params)
    for name, array in after.items():
        moved = np.array([np.any(x != y) for x, y in zip(array, before[name], strict=True)])
        if name.startswith("blocks/"):
            learns = not rank or name.endswith(("/a", "/b"))
            assert moved.tolist() == [False, learns], name
        elif name.startswith(("tokens", "positions")) or (rank and name.startswith("ln_f")):
            assert not moved.any(), name
        else:
            assert moved.any(), name


@pytest.fixture(scope="module")
def apart(vocabulary, tmp_path_factory):
    """(base, workdir) of a run that learned plain text with adapters beside an exported base."""
    folder = tmp_path_factory.mktemp("apart")
    experiment = tuned.lora(tuned.experiment_of("next_token", vocabulary))
    params = tuned.drawn(experiment)
    model = without_adapters(experiment.model)
    base = jax.tree.map(lambda x: x, params)
    for layer in ("qkv", "out", "up", "down"):
        base["blocks"][layer] = {k: params["blocks"][layer][k] for k in ("kernel", "bias")}
    save.save(base, model, vocabulary, folder / "base", extra={})
    known = start.weights(start.find(folder / "base"), base)
    experiment = changed(experiment, start=str(folder / "base"))
    tuned.saved(experiment, vocabulary, folder / "run", known)
    return folder / "base", folder / "run"


def test_adapters_leave_for_peft(apart, tmp_path):
    base, workdir = apart
    flags = [f"--checkpoint={workdir}", f"--output={tmp_path / 'adapters'}"]
    done = command("save", *flags, f"--base={base}")
    assert done.returncode == 2
    assert "is of --adapters, which was not given" in done.stderr
    done = command("save", *flags, "--adapters")
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "adapters/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base)
    assert (settings["r"], settings["lora_alpha"]) == (4, 8)
    merged_here, merged_there = (
        tuned.flat(start.find(place).arrays.restore()) for place in (workdir, tmp_path / "adapters")
    )
    for name, array in merged_here.items():
        np.testing.assert_array_equal(array, merged_there[name], name)


def test_peft_says_what_the_run_says(apart, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    base, workdir = apart
    save_adapters.write(start.find(workdir), None, tmp_path / "adapters")
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it asks transformers by an old name
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapters").eval()
    whole = exported(workdir, tmp_path / "whole")
    again = transformers.AutoModelForCausalLM.from_pretrained(whole).eval()
    tokens = torch.arange(90).reshape(3, 30)
    with torch.no_grad():
        found = theirs(tokens).logits
        torch.testing.assert_close(again(tokens).logits, found, atol=1e-5, rtol=1e-5)
        with theirs.disable_adapter():
            assert (theirs(tokens).logits - found).abs().max() > 0.1


def test_adapters_that_peft_could_not_use_are_refused(run, apart, vocabulary, tmp_path):
    _, _, classification = run
    base, workdir = apart
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"added the tokens \[PAD\].* and a head"):
        save_adapters.write(start.find(classification), None, out)
    with pytest.raises(UserError, match="--adapters is for a run with config"):
        save_adapters.write(start.find(base), None, out)
    with pytest.raises(UserError, match="is no Hugging Face folder, to which"):
        save_adapters.write(start.find(workdir), str(workdir), out)
    other = exported(workdir, tmp_path / "other")
    with pytest.raises(UserError, match="has other weights than the run"):
        save_adapters.write(start.find(workdir), str(other), out)
    random = tuned.lora(tuned.experiment_of("next_token", vocabulary))
    tuned.saved(random, vocabulary, tmp_path / "random")
    with pytest.raises(UserError, match="began with random weights"):
        save_adapters.write(start.find(tmp_path / "random"), None, out)
    assert not out.exists()
