"""A run that starts from a model: its weights to the bit, its vocabulary, or a refusal by name."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from biomedlm_jax import settings, start, step, train
from biomedlm_jax.claim import read_claim
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf import load, save
from biomedlm_jax.model import gpt
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.pipeline.vocabulary import BYTE_LEVEL_FILE, Vocabulary
from biomedlm_jax.train import fit
from tests.conftest import FORGIVEN, TINY, changed, on
from tests.runs import config_file, ends, finish, lines, losses, running

pytestmark = FORGIVEN


@pytest.fixture(scope="module")
def params():
    draw = np.random.default_rng(0)
    found = jax.tree.map(
        lambda x: 0.02 * draw.normal(size=x.shape).astype(np.float32),
        jax.eval_shape(lambda: gpt.init(TINY.model, jax.random.key(0))),
    )
    found["tokens"]["table"][TINY.model.vocab :] = 0
    return found


@pytest.fixture(scope="module")
def places(params, vocabulary, tmp_path_factory) -> dict[str, str]:
    """The same model as a Hugging Face folder and as what was loaded from it."""
    folder = tmp_path_factory.mktemp("source")
    save.save(params, TINY.model, vocabulary, folder / "hf", extra={})
    load.load(str(folder / "hf"), folder / "imported")
    return {"hf": f"hf:{folder / 'hf'}", "imported": str(folder / "imported")}


@pytest.fixture(scope="module")
def experiment(store):
    settings = dict(optimizer__warmup_steps=0, run__steps=2, run__save_every=1)
    return changed(TINY, data__store=str(store), mesh__fsdp=-1, **settings)


def vocabulary_of(experiment) -> Vocabulary:
    return Vocabulary(TokenStore(experiment.data.store, "train").vocabulary_path)


def same(ours, theirs) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, jax.device_get(ours), theirs)))


@pytest.mark.parametrize("kind", ["hf", "imported"])
def test_a_run_starts_with_the_weights_of_a_model(kind, places, params, experiment):
    """On any mesh; the optimizer's state is a new one's, the average a copy."""
    given = changed(experiment, start=places[kind], optimizer__ema_decay=0.9)
    for shape in [(1, 1, 1), (2, 2, 2)]:
        here, mesh = on(given, *shape)
        source = start.of_run(here, vocabulary_of(here), "the store")
        state = train.started(here, mesh, start.params(source, mesh))
        assert same(state.params, params)
        assert same(state.average, params)
        fresh = jax.device_get(jax.eval_shape(lambda: step.init(here)))  # noqa: B023
        assert jax.tree.structure(state) == jax.tree.structure(fresh)
        assert not any(np.any(x) for x in jax.tree.leaves(jax.device_get(state.opt_state)))
        assert int(state.step) == int(state.skipped) == 0
        expected = step.state_shardings(here, mesh)
        assert jax.tree.map(lambda x: x.sharding, state) == expected


def test_a_run_that_is_going_on_does_not_read_it_again(
    places, params, experiment, tmp_path, capsys
):
    source = shutil.copytree(places["imported"], tmp_path / "source")
    given = changed(experiment, start=str(source))
    state = fit(changed(given, run__steps=2), tmp_path / "run")
    assert not same(state.params, params)
    assert "from step 0 to 2" in capsys.readouterr().out
    shutil.rmtree(source)
    fit(given, tmp_path / "run")
    assert "from step 2 to 2" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"config\.start: '.*source' before, '' now"):
        fit(changed(given, start=""), tmp_path / "run")

    # And a run is a place to start from: with the parameters of its newest save, whole.
    other = changed(experiment, start=str(tmp_path / "run"), run__seed=3)
    here, mesh = on(other, 1, 2, 1)
    found = start.of_run(here, vocabulary_of(here), "the store")
    assert (found.what, found.step) == ("run", 2)
    assert same(
        train.started(here, mesh, start.params(found, mesh)).params, jax.device_get(state.params)
    )


@pytest.mark.slow
def test_what_a_run_began_with_is_kept(experiment, tmp_path, monkeypatch):
    """A start that ends before the first save begins with the same weights again, or says so."""
    fit(experiment, tmp_path / "first")
    given = changed(experiment, start=str(tmp_path / "first"), run__seed=3)
    saves = tmp_path / "first/checkpoints"
    (saves / "2").rename(tmp_path / "2")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.steps, "train_step", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(given, tmp_path / "run")
    kept = read_claim(tmp_path / "run").weights
    assert (kept["what"], kept["save"], len(kept["sha256"])) == ("run", 1, 64)
    events = [x for x in lines(tmp_path / "run", "events") if x["event"] == "weights"]
    assert [{name: event[name] for name in kept} for event in events] == [kept, kept]

    (tmp_path / "2").rename(saves / "2")  # the other run goes on
    with pytest.raises(UserError, match="no longer what it began with: save 1 of it then, save 2"):
        fit(given, tmp_path / "run")
    assert read_claim(tmp_path / "run").weights == kept
    about = json.loads((tmp_path / "run/config.json").read_text())
    del about["weights"]  # as runs were that began before these were recorded
    del about["experiment"]["run"]["tpu_vmem_mib"]
    (tmp_path / "run/config.json").write_text(json.dumps(about))
    with pytest.raises(KeyboardInterrupt):
        fit(given, tmp_path / "run")
    assert read_claim(tmp_path / "run").weights["save"] == 2
    assert read_claim(tmp_path / "run").weights["sha256"] != kept["sha256"]


@pytest.mark.parametrize("what", ["damaged", "not finite"])
def test_weights_that_are_refused_leave_no_run(what, places, experiment, tmp_path):
    if what == "damaged":
        source = shutil.copytree(places["imported"], tmp_path / "source")
        folder = source / "params/params.blocks.up.kernel"
        file = max(folder.iterdir(), key=lambda path: path.stat().st_size)
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(bytes(content))
    else:
        source = shutil.copytree(places["hf"].removeprefix("hf:"), tmp_path / "source")
        (source / "receipt.json").unlink()
        file = source / "model.safetensors"
        tensors = safetensors.numpy.load_file(file)
        tensors["transformer.wpe.weight"][3, 3] = np.inf
        safetensors.numpy.save_file(tensors, file)
    with pytest.raises(UserError, match=f"source (is damaged|has values that are {what})"):
        fit(changed(experiment, start=str(source)), tmp_path / "run")
    assert not list((tmp_path / "run").glob("*"))


def test_random_starts_are_what_they_were(experiment):
    here, mesh = on(experiment, 1, 1, 1)
    assert experiment.start == ""
    plain = jax.jit(lambda: step.init(here))()
    assert same(train.started(here, mesh, None), jax.device_get(plain))


def test_another_model_is_refused_with_all_differences(places, experiment, tmp_path):
    other = changed(
        experiment,
        start=places["hf"],
        model__layers=3,
        model__mlp=128,
        model__layer_norm_epsilon=1e-6,
        model__scale_attn_by_layer=False,
        model__dropout=0.0,  # this and what follows are for the run to say
        model__init_std=0.1,
        model__remat="full",
    )
    with pytest.raises(UserError) as refused:
        fit(other, tmp_path / "run")
    assert str(refused.value).endswith(
        " is another model than the run's: config.model.layers=3, but 2 there; config.model.mlp=128"
        ", but 256 there; config.model.layer_norm_epsilon=1e-06, but 1e-05 there; "
        "config.model.scale_attn_by_layer=False, but True there"
    )
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_another_vocabulary_is_refused(places, experiment, params, tmp_path, vocabulary):
    text = bytearray(vocabulary.read_bytes())
    at = text.index(b"ka")
    place = tmp_path / "other"
    shutil.copytree(places["hf"].removeprefix("hf:"), place)
    text[at : at + 2] = b"zq"
    (place / "sentencepiece.model").write_bytes(bytes(text))
    assert Vocabulary(place / "sentencepiece.model").size == 300
    with pytest.raises(UserError, match=r"has another vocabulary than config\.data\.store="):
        fit(changed(experiment, start=str(place)), tmp_path / "run")
    for name in ("sentencepiece.model", "tokenizer.json"):
        (place / name).unlink()
    with pytest.raises(UserError, match="has no vocabulary, so nobody knows what its ids mean"):
        fit(changed(experiment, start=str(place)), tmp_path / "run")
    with pytest.raises(UserError, match="is not there, so it is no model"):
        fit(changed(experiment, start=str(tmp_path / "none")), tmp_path / "run")


def test_encodings_are_compared_and_not_files(tmp_path):
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())

    def written(folder: str, merges: list[tuple[str, str]], indent: int | None) -> Vocabulary:
        tokens = [*alphabet, *(a + b for a, b in merges)]
        vocab = {token: n for n, token in enumerate(tokens)}
        made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        made.add_special_tokens([tokenizers.AddedToken("<|endoftext|>", special=True)])
        file = tmp_path / folder / BYTE_LEVEL_FILE
        file.parent.mkdir()
        file.write_text(json.dumps(json.loads(made.to_str()), indent=indent))
        return Vocabulary(file)

    one = written("one", [("a", "b"), ("c", "d")], None)
    two = written("two", [("a", "b"), ("c", "d")], 4)
    other = written("other", [("c", "d"), ("a", "b")], None)
    assert one.sha256 != two.sha256
    assert start.same_encoding(one, two)
    assert not start.same_encoding(one, other)


@pytest.mark.slow
def test_the_setting_on_the_command_line(places, experiment, tmp_path):
    file = config_file(experiment, tmp_path / "tiny.py")
    flag = f"--config.start={places['hf']}"
    with running(file, tmp_path / "run", flag, processes=1) as run:
        assert ends(run) == [0], run[0].said
    assert "from step 0 to 2" in run[0].said
    kept = json.loads((tmp_path / "run/config.json").read_text())
    assert kept["experiment"]["start"] == places["hf"]
    here, mesh = on(changed(experiment, start=places["hf"]), 1, 1, 1)
    assert settings.flat(here)["start"] == places["hf"]
    assert lines(tmp_path / "run")[0]["loss"] == pytest.approx(first_loss(here, mesh), rel=1e-6)


def first_loss(experiment, mesh) -> float:
    """Of the first batch of a run from config.start."""
    from jax.sharding import NamedSharding

    from biomedlm_jax.pipeline.loader import Loader

    store = TokenStore(experiment.data.store, "train")
    loader = Loader(
        store,
        batch=experiment.data.batch,
        length=experiment.model.context,
        separators=experiment.data.separators,
        segment_ids=experiment.data.segment_ids,
        seed=experiment.run.seed,
        sharding=NamedSharding(mesh, step.BATCH_SPEC),
    )
    params = start.params(start.of_run(experiment, vocabulary_of(experiment), "the store"), mesh)
    state = train.started(experiment, mesh, params)
    return float(step.train_step(experiment, mesh)(state, *loader.batch(0))[1]["loss"])


@pytest.mark.slow
def test_two_processes_start_from_a_model(places, experiment, tmp_path):
    """Each reads its part; they come to what one process comes to, to the bit."""
    here = changed(experiment, start=places["hf"], mesh__fsdp=2)
    file = config_file(here, tmp_path / "tiny.py")
    for name, count in (("one", 1), ("two", 2)):
        finish(file, tmp_path / name, processes=count)
    assert losses(tmp_path / "one") == losses(tmp_path / "two")


def test_overrides_of_a_setting_without_a_section():
    assert settings.overrides(["--config.start=x"]) == ["--config.start=x"]
    with pytest.raises(UserError, match=r"config\.start\.x is no setting"):
        settings.overrides(["--config.start.x=1"])
    with pytest.raises(UserError, match=r"config\.strat is no setting; did you mean start"):
        settings.overrides(["--config.strat=1"])
    other = dataclasses.replace(TINY, start="x")
    assert settings.differences(other, TINY) == ["config.start: '' before, 'x' now"]
    assert next(iter(settings.flat(TINY))) == "start"
