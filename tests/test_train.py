"""A run as a person starts it: it goes on where it stopped, and refuses what would harm it."""

import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from biomedlm_jax import checkpoint, held_out, journal, step
from biomedlm_jax.claim import read_claim
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.pipeline.store_writer import StoreWriter
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from biomedlm_jax.train import fit
from tests.conftest import ROOT, TINY, changed, on
from tests.runs import config_file

ON_DEVICES = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__model": 2}


@pytest.fixture(scope="module")
def experiment(store):
    return changed(TINY, data__store=str(store), run__save_every=3, run__eval_every=5, **ON_DEVICES)


@pytest.fixture(scope="module")
def uninterrupted(experiment, tmp_path_factory):
    """(folder, final state as numpy) of a run of 10 steps."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, jax.device_get(fit(experiment, workdir))


def equal(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_people_look_for(uninterrupted):
    workdir, state = uninterrupted
    assert int(state.step) == 10
    lines = metrics(workdir)
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, 11))
    first, *_, last = (line for line in lines if "loss" in line)
    assert {
        "loss",
        "grad_norm",
        "param_norm",
        "learning_rate",
        "skipped",
        "grad_norm/qkv",
        "update_norm",
        "update_norm/ln_f",
        "tokens_per_second",
        "tokens_per_second_per_device",
        "mfu_6n",
        "mfu_6n_12ldt",
        "step_seconds",
        "data_wait",
        "save_stall",
        "goodput",
    } <= last.keys()
    assert last["tokens_per_second"] == pytest.approx(8 * last["tokens_per_second_per_device"])
    assert last["mfu_6n"] < last["mfu_6n_12ldt"]
    assert 0 < last["goodput"] < 1
    assert "tokens_per_second" not in first  # it was compiled, which is no speed
    assert [line["step"] for line in lines if "bits_per_byte" in line] == [0, 5, 10]
    assert last["loss"] < first["loss"] - 1
    assert (workdir / "loss.png").read_bytes().startswith(b"\x89PNG")
    board = EventAccumulator(str(workdir / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in board.Scalars("loss")]
    assert shown == [(x["step"], pytest.approx(x["loss"])) for x in lines if "loss" in x]
    events = journal.read(epath.Path(workdir / "events.jsonl"))
    assert [(event["event"], event["step"]) for event in events] == [
        *[("start", 0), ("evaluation", 0), ("first_step", 1), ("save", 3)],
        *[("evaluation", 5), ("save", 6), ("save", 9)],
        *[("evaluation", 10), ("save", 10), ("end", 10)],
    ]
    assert set(events[2]["seconds"]) >= {"imports and hosts", "state", "compile", "first step"}
    kept = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert kept == [9, 10]
    _, params, done = checkpoint.load(workdir)
    assert done == 10
    assert equal(params, state.params)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))


def test_the_same_command_again_does_nothing(uninterrupted, experiment, capsys):
    workdir, state = uninterrupted
    before = metrics(workdir)
    assert equal(fit(experiment, workdir), state)
    assert "from step 10 to 10" in capsys.readouterr().out
    assert metrics(workdir) == before


@pytest.fixture(scope="module")
def command(experiment, store, tmp_path_factory):
    """command(workdir): the shell command of the experiment's run, from a config file."""
    file = tmp_path_factory.mktemp("config") / "tiny.py"
    config_file(experiment, file)

    def make(workdir, *flags):
        return [
            sys.executable,
            "-m",
            "biomedlm_jax.main",
            f"--config={file}",
            f"--workdir={workdir}",
            *flags,
        ]

    return make


def shell(command, **options):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, **options
    )


@pytest.mark.parametrize("at", [pytest.param(3, marks=pytest.mark.slow), 7])
def test_a_killed_run_ends_with_the_same_bits(at, command, uninterrupted, tmp_path):
    """SIGKILL once step `at` has been logged, perhaps in the middle of a save; then again."""
    workdir = tmp_path / "run"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command(workdir), cwd=ROOT, env=environment, text=True,
                               stdout=subprocess.PIPE)  # fmt: skip
    for line in process.stdout:
        if line.startswith(f"step {at}/10  loss"):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    again = shell(command(workdir))
    assert again.returncode == 0, again.stderr
    _, whole = uninterrupted
    _, params, done = checkpoint.load(workdir)
    assert done == 10
    assert equal(params, whole.params)
    expected = [(x["step"], x["loss"]) for x in metrics(uninterrupted[0]) if "loss" in x]
    assert [(x["step"], x["loss"]) for x in metrics(workdir) if "loss" in x] == expected


def test_a_run_goes_on_on_another_mesh(experiment, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    fit_until(experiment, workdir, 6)
    other = changed(experiment, mesh__data=8, mesh__fsdp=1, mesh__model=1)
    state = jax.device_get(fit(other, workdir))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        state.params,
        uninterrupted[1].params,
    )
    losses = [[x["loss"] for x in metrics(w) if "loss" in x] for w in (workdir, uninterrupted[0])]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def fit_until(experiment, workdir, step_number):
    """The first steps of a run, by an error in the loader that comes after a save."""
    from biomedlm_jax.pipeline.loader import Loader

    class StoppedError(Exception):
        pass

    coming = Loader.coming

    def cut(self, first, last):
        for number, batch in enumerate(coming(self, first, last), first):
            if number == step_number:
                raise StoppedError
            yield batch

    Loader.coming = cut
    try:
        with pytest.raises(StoppedError):
            fit(experiment, workdir)
    finally:
        Loader.coming = coming


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("model__dropout", 0.2, r"config\.model\.dropout: 0\.1 before, 0\.2 now"),
        ("run__seed", 18, r"config\.run\.seed: 17 before, 18 now"),
        ("data__separators", False, r"config\.data\.separators: True before, False now"),
        ("data__segment_ids", True, r"config\.data\.segment_ids: False before, True now"),
        ("optimizer__peak_lr", 1e-3, r"config\.optimizer\.peak_lr: 0\.003 before, 0\.001 now"),
    ],
)
def test_the_workdir_of_another_experiment_is_refused(
    setting, value, message, experiment, uninterrupted
):
    before = sorted(path.name for path in uninterrupted[0].rglob("*"))
    with pytest.raises(UserError, match=message):
        fit(changed(experiment, **{setting: value}), uninterrupted[0])
    assert sorted(path.name for path in uninterrupted[0].rglob("*")) == before


def test_other_tokens_are_refused(experiment, uninterrupted, make_store):
    other = changed(experiment, data__store=str(make_store(seed=5)))
    with pytest.raises(UserError, match="does not have the tokens of the run in"):
        fit(other, uninterrupted[0])


def test_the_store_may_move(experiment, uninterrupted, store, tmp_path):
    workdir = shutil.copytree(uninterrupted[0], tmp_path / "run")
    moved = shutil.copytree(store, tmp_path / "moved")
    fit(changed(experiment, data__store=str(moved)), workdir)
    assert read_claim(workdir).experiment.data.store == str(moved)


def test_another_vocabulary_is_refused(experiment, uninterrupted, store, tmp_path):
    with pytest.raises(UserError, match=r"vocab=200, .* has 300 tokens"):
        fit(changed(experiment, model__vocab=200), tmp_path / "run")
    claim = json.loads((uninterrupted[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(claim | {"vocabulary_sha256": "0"}))
    with pytest.raises(UserError, match="does not have the vocabulary of the run in"):
        fit(experiment, tmp_path)
    with pytest.raises(UserError, match="does not have the vocabulary of the run in"):
        held_out.main(tmp_path)


@pytest.mark.parametrize(
    "content", ["{}", "[1]", "{", '{"experiment": 3}', '{"model_type": "gpt2"}']
)
def test_a_folder_of_something_else_is_refused(content, experiment, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json is not what a run of this version writes"):
        fit(experiment, tmp_path)
    assert (tmp_path / "config.json").read_text() == content


def test_metrics_of_an_unknown_run_are_left_alone(experiment, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 99}\n')
    with pytest.raises(
        UserError, match=r"has metrics\.jsonl but no config\.json, so it is no run's"
    ):
        fit(experiment, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 99}\n'


def test_no_held_out_text_is_refused_before_anything_is_written(experiment, make_store, tmp_path):
    empty = changed(experiment, data__store=str(make_store(heldout=0)))
    with pytest.raises(UserError, match="has no held-out documents; build it with a larger"):
        fit(empty, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_save_that_was_cut_is_passed_over(experiment, uninterrupted, tmp_path):
    """What a kill in the middle of a save leaves: a folder under orbax's temporary name."""
    workdir = tmp_path / "run"
    fit_until(experiment, workdir, 5)
    cut = workdir / "checkpoints/6.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints/3/state", cut / "state")
    assert equal(jax.device_get(fit(experiment, workdir)), uninterrupted[1])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.data.store=nowhere"], "config.data.store=nowhere is no token store"),
        (["--config.mesh.fsdp=3"], "config.data.batch=8 does not split"),
        (["--config.model.layer=3"], "config.model.layer is no setting; did you mean layers"),
        (["surplus"], "unexpected 'surplus'"),
        (["--config.run.steps=1e5"], "--config.run.steps=1e5"),
        (["--wrkdir=x"], "Unknown command line flag 'wrkdir'"),
        (["--wandb_project=x"], "--wandb_project=x needs Weights & Biases, which is not here"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(flags, message, command, tmp_path):
    found = shell(command(tmp_path / "run", *flags))
    assert found.returncode == 2
    assert message in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "run").exists()


def test_validate_only_describes_the_published_run(tmp_path):
    main = [sys.executable, "-m", "biomedlm_jax.main", f"--workdir={tmp_path / 'run'}"]
    found = shell([*main, "--config=configs/pretrain_2p7b.py", "--validate_only"])
    assert found.returncode == 0, found.stderr
    for expected in [
        "2,594,247,680",
        "1,048,576 tokens (1,024 x 1,024)",
        "learning rate   0 at step 0\n",
        "8e-05 at step 50\n",
        "0.00016 at step 100\n",
        "0.00012404 at step 100,000\n",
        "8.8038e-05 at step 150,000\n",
        "1.6e-05 at step 300,000\n",
    ]:
        assert expected in found.stdout
    assert not (tmp_path / "run").exists()


def test_a_run_that_has_lost_its_numbers_stops_and_is_not_saved(experiment, tmp_path):
    wild = changed(experiment, optimizer__peak_lr=1e30, run__save_every=1)
    said = r"param_norm is inf, .* at step 2; no state from here on was saved\. The last save is of"
    with pytest.raises(UserError, match=said + " step 1"):
        fit(wild, tmp_path / "run")
    _, params, done = checkpoint.load(tmp_path / "run")
    assert done == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_the_average_is_what_is_exported(experiment, tmp_path):
    averaged = changed(experiment, optimizer__ema_decay=0.5, run__steps=3, run__eval_every=0)
    state = jax.device_get(fit(averaged, tmp_path / "run"))
    _, params, done = checkpoint.load(tmp_path / "run")
    assert done == 3
    assert equal(params, state.average)
    assert not equal(params, state.params)


@pytest.fixture
def small_disk(uninterrupted, tmp_path):
    """A file system of its own with room for a run and little more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = 3 * 512 * sum(path.stat().st_blocks for path in uninterrupted[0].rglob("*"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system can not be mounted here: {done.stderr}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before(command, experiment, uninterrupted, small_disk):
    workdir, filler = small_disk / "run", small_disk / "filler"
    fit_until(experiment, workdir, 5)
    room = os.statvfs(small_disk)
    filler.write_bytes(bytes(room.f_bavail * room.f_bsize - 1_000_000))  # of the 1.5 MB needed

    full = shell(command(workdir))
    assert full.returncode == 2, full.stderr
    (error,) = (line for line in full.stderr.splitlines() if line.startswith("error: "))
    assert "error: no space left in" in error
    assert "Make room and give the same command again" in error
    assert "Traceback" not in full.stderr
    assert checkpoint.load(workdir)[2] == 3

    filler.unlink()
    again = shell(command(workdir))
    assert again.returncode == 0, again.stderr
    assert equal(checkpoint.load(workdir)[1], uninterrupted[1].params)


@pytest.mark.parametrize("devices", [1, 2])
def test_compiled_programs_are_kept_of_one_cpu_alone(command, devices, tmp_path, monkeypatch):
    """Of several, what is loaded computes something else: `hosts.keep_programs`."""
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    shape = dict(data=1, fsdp=devices, model=1)
    flags = [f"--config.mesh.{axis}={size}" for axis, size in shape.items()]
    found = shell(command(tmp_path, "--config.run.steps=3", *flags))
    assert found.returncode == 0, found.stderr
    assert bool(list(tmp_path.glob("compilation_cache/*"))) == (devices == 1)


@pytest.mark.parametrize("separators", [True, False])
@pytest.mark.parametrize("segment_ids", [True, False])
def test_held_out_score_counts_every_byte_once(separators, segment_ids, uninterrupted, store):
    """But for tokens that are no label: the first of all, with segments the first of a document."""
    experiment, params, _ = checkpoint.load(uninterrupted[0])
    experiment = changed(experiment, data__separators=separators, data__segment_ids=segment_ids)
    split = TokenStore(store, "heldout")
    experiment, devices = on(experiment, 2, 1, 1)
    params = jax.device_put(params, step.state_shardings(experiment, devices).params)
    found = held_out.Evaluator(experiment, devices, split)(params)[held_out.TOTAL]
    vocabulary = Vocabulary(split.vocabulary_path)
    documents = [vocabulary.encode(text) for text in held_out.text(split)]
    first = [document[0] for document in documents[: None if segment_ids else 1]]
    tokens = sum(len(document) + separators for document in documents)
    assert found.labels == tokens - len(first)
    unscored = sum(vocabulary.token_bytes()[first])
    assert found.bytes == split.text_bytes - unscored
    assert sum(len(text.encode()) for text in held_out.text(split)) == split.text_bytes
    assert 0 < found.bits_per_byte < 8


def test_held_out_table(uninterrupted, capsys):
    """Beside xz, by source, and by year in rising order; the run wrote the same names."""
    held_out.main(uninterrupted[0])
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert words[0][:3] == ["4", "held-out", "documents,"]
    assert " ".join(words[1][:4]) == "model at step 10"
    assert words[2][:2] == ["xz", "-9e"]
    parts = [row[0] for row in words[3:] if row[0] != "the"]
    assert parts == ["abstract", "1999", "2000", "2001", "unknown"]
    (last,) = (x for x in metrics(uninterrupted[0]) if x["step"] == 10 and "bits_per_byte" in x)
    years = {f"bits_per_byte/year_{year}" for year in parts[1:4]}  # 2 batches do not reach the last
    assert set(last) == {"step", "held_out_loss", "bits_per_byte", "bits_per_byte/abstract"} | years
    assert last["bits_per_byte"] == last["bits_per_byte/abstract"]


@pytest.mark.slow
def test_a_run_on_packed_documents_ends_as_if_it_had_not_stopped(experiment, tmp_path):
    packed = changed(experiment, data__separators=False, data__segment_ids=True)
    whole = jax.device_get(fit(packed, tmp_path / "whole"))
    fit_until(packed, tmp_path / "again", 5)
    assert equal(jax.device_get(fit(packed, tmp_path / "again")), whole)
    lines = metrics(tmp_path / "whole")
    assert [x["step"] for x in lines if "bits_per_byte" in x] == [0, 5, 10]
    losses = [x["loss"] for x in lines if "loss" in x]
    assert losses[-1] < losses[0] - 1


def test_held_out_text_that_is_no_label_is_refused(experiment, vocabulary, tmp_path):
    """Documents of one token, of which none has another of its own before it."""
    place = epath.Path(tmp_path / "store")
    rows = [("train", np.full(400, 5), "PMID:1", "abstract", 9, 2001)]
    rows += [("heldout", np.array([5, 1]), f"PMID:{n}", "abstract", 9, 2001) for n in range(2, 5)]
    rows[0][1][-1] = 1
    StoreWriter.of(place, place / "work", Vocabulary(vocabulary)).write_all(rows)
    settings = dict(data__store=str(place), data__separators=False, data__segment_ids=True)
    with pytest.raises(UserError, match="has no held-out document of two tokens of text"):
        fit(changed(experiment, **settings), tmp_path / "run")
