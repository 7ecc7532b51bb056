"""What leaves for Hugging Face, of a run or an import: to the bit, with a receipt, or not."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import traverse_util

from biomedlm_jax import arrays, hosts, start, step
from biomedlm_jax.checkpoint import Checkpoints
from biomedlm_jax.checksums import checksums
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf import load, names, read, save, write
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.pipeline.vocabulary import MODEL_FILE, Vocabulary
from tests.conftest import FORGIVEN, ROOT, TINY, changed, on, started
from tests.runs import PATIENCE

pytestmark = FORGIVEN


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """A run with two saves, on two devices, so that arrays lie in several files; and its states."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    settings = dict(data__store=str(store), optimizer__ema_decay=0.5)
    experiment, mesh = on(changed(TINY, **settings), 1, 2, 2)
    state = started(experiment, mesh)
    states = {}
    kept = Checkpoints(workdir, experiment, TokenStore(store, "train"))
    with contextlib.closing(kept):
        for number in (1, 2):
            draw = np.random.default_rng(number)
            average = jax.tree.map(
                lambda x, draw=draw: (x + draw.normal(size=x.shape)).astype(np.float32),
                jax.device_get(state.average),
            )
            average["tokens"]["table"][TINY.model.vocab :] = 0
            placed = jax.device_put(average, jax.tree.map(lambda x: x.sharding, state.average))
            states[number] = average
            kept.save(dataclasses.replace(state, step=state.step + number, average=placed), number)
    (workdir / "metrics.jsonl").write_text(
        "".join(
            f'{{"step": {done}, "held_out_loss": 3.5, "bits_per_byte": {bits}}}\n'
            for done, bits in [(1, 1.5), (2, 1.25), (3, 9)]
        )
    )
    return workdir, states


def command(module: str, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"biomedlm_jax.hf.{module}", *flags],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


def exported(place, output: Path, dtype: str = "float32", shard_gb: float = 5.0) -> Path:
    """As the command does it, in this process."""
    source = start.find(place)
    source.whole(
        lambda: save.export(
            lambda row: source.arrays.pieces(row.ours),
            source.arrays.compare,
            source.model,
            source.vocabulary,
            output,
            {"what": source.what, **source.facts},
            save.described(source)[0],
            eos_id=source.eos_id,
            special=source.special,
            labels=source.labels,
            dtype=dtype,
            shard_gb=shard_gb,
        )
    )
    return output


def tensors(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= safetensors.numpy.load_file(file)
    return found


def test_a_run_leaves_by_the_command_and_without_torch(run, tmp_path):
    workdir, states = run
    folder = tmp_path / "hf"
    script = "import runpy, sys; sys.modules['torch'] = None\n"
    script += "runpy.run_module('biomedlm_jax.hf.save', run_name='__main__', alter_sys=True)"
    flags = [f"--checkpoint={workdir}", f"--output={folder}", "--shard_gb=1e-4"]
    subprocess.run([sys.executable, "-c", script, *flags], cwd=ROOT, check=True)
    assert not (tmp_path / "hf.partial").exists()
    found, expected = tensors(folder), dict(names.to_hf(states[2], TINY.model))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, name)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    count = len(files)
    assert count > 3
    assert files == [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    for name in files:
        inside = safetensors.numpy.load_file(folder / name)
        assert len(inside) == 1 or sum(x.nbytes for x in inside.values()) <= 1e5

    card = (folder / "README.md").read_text()
    assert "| step | 2 |" in card
    assert "| model.layers | `2` |" in card
    assert "| bits_per_byte | 1.2500 |" in card  # of step 2, not of the one after it
    assert "no medical advice" in card


def test_the_receipt_is_true(run, tmp_path):
    workdir, states = run
    folder = exported(workdir, tmp_path / "hf", shard_gb=1e-4)
    receipt = json.loads((folder / "receipt.json").read_text())
    listed = {path.name for path in folder.iterdir()} - {"receipt.json"}
    assert receipt["files"].keys() == listed
    for name, digest in receipt["files"].items():
        content = (folder / name).read_bytes()
        assert digest == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert receipt["source"]["step"] == 2
    assert receipt["parameters"] == TINY.model.parameters
    assert receipt["tensors"] == len(tensors(folder))
    assert receipt["rounded_to_zero"] == 0
    assert receipt["vocabulary_padding_removed"] == 384 - 300
    assert receipt["checksums"] == checksums({"params": states[2]})


def test_an_index_is_as_transformers_writes_it(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = exported(run[0], tmp_path / "hf", shard_gb=1e-4)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values()), report
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    ours, again = (
        json.loads((place / read.INDEX).read_text()) for place in (folder, tmp_path / "theirs")
    )
    assert ours["metadata"] == again["metadata"]
    assert ours["weight_map"].keys() == again["weight_map"].keys()
    assert list(ours["weight_map"]) == list(again["weight_map"])


def test_a_run_comes_back_to_the_bit(run, tmp_path):
    """Run, Hugging Face, import, Hugging Face: the same arrays and vocabulary, on any mesh."""
    workdir, states = run
    first = exported(workdir, tmp_path / "first")
    imported = load.load(str(first), tmp_path / "imported")
    assert imported.what == "imported"
    second = exported(tmp_path / "imported", tmp_path / "second", shard_gb=1e-4)
    assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()
    a, b = tensors(first), tensors(second)
    assert a.keys() == b.keys()
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)
    for place in (workdir, first, f"hf:{first}", tmp_path / "imported", second):
        source = start.find(place)
        # What has no influence on the function is not in config.json.
        kept = dict(remat="none", compute_dtype="float32", attention="auto")
        assert dataclasses.replace(source.model, **kept) == TINY.model
        assert source.vocabulary is not None
        opened = Vocabulary(source.vocabulary)
        assert opened.path.name == MODEL_FILE
        assert start.same_encoding(opened, Vocabulary(workdir / "vocabulary"))
        for shape in [(1, 1, 1), (1, 2, 2), (1, 4, 2)]:
            _, mesh = on(TINY, *shape)
            found = jax.device_get(start.params(source, mesh))
            jax.tree.map(np.testing.assert_array_equal, found, states[2])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_are_rounded_once(dtype, run, tmp_path):
    workdir, states = run
    folder = exported(workdir, tmp_path / "hf", dtype)
    numbers = dict(bfloat16=ml_dtypes.bfloat16, float16=np.float16)[dtype]
    with safetensors.safe_open(folder / read.SINGLE, framework="numpy") as opened:
        for name, tensor in names.to_hf(states[2], TINY.model):
            assert opened.get_tensor(name).tobytes() == tensor.astype(numbers).tobytes()
    settings = json.loads((folder / "config.json").read_text())
    assert settings["dtype"] == settings["torch_dtype"] == dtype
    # And once more: nothing is left to round.
    again = exported(folder, tmp_path / "again", dtype)
    same = [(place / read.SINGLE).read_bytes() for place in (folder, again)]
    assert same[0] == same[1]
    wanted = "bfloat16" if dtype == "bfloat16" else "float32"
    assert start.find(folder).model.compute_dtype == wanted


def in_memory(states) -> dict:
    return jax.tree.map(np.array, states[2])


@pytest.mark.parametrize(
    ("name", "value", "dtype", "message"),
    [
        (
            "blocks/up/kernel",
            70_000.0,
            "float16",
            r"mlp\.c_fc\.weight .* too large for --dtype=f",
        ),
        ("blocks/up/kernel", 3.4e38, "bfloat16", r"mlp\.c_fc\.weight .* too large for --dtype=bfl"),
        ("blocks/qkv/bias", np.nan, "float32", r"attn\.c_attn\.bias .* not finite"),
        ("tokens/table", -np.inf, "float16", r"wte\.weight .* not finite"),
    ],
)
def test_numbers_that_can_not_leave_are_named(
    name, value, dtype, message, run, vocabulary, tmp_path
):
    params = in_memory(run[1])
    traverse_util.flatten_dict(params, sep="/")[name].flat[5] = value
    with pytest.raises(UserError, match=message):
        save.save(params, TINY.model, vocabulary, tmp_path / "hf", extra={}, dtype=dtype)
    assert not (tmp_path / "hf").exists()


def test_numbers_that_become_zero_are_counted(run, vocabulary, tmp_path):
    params = in_memory(run[1])
    params["positions"][0, :3] = [1e-8, -1e-9, 0.0]
    for dtype, count in (("float16", 2), ("bfloat16", 0)):
        save.save(params, TINY.model, vocabulary, tmp_path / dtype, extra={}, dtype=dtype)
        receipt = json.loads((tmp_path / dtype / "receipt.json").read_text())
        assert receipt["rounded_to_zero"] == count


def test_padding_that_is_not_zero_is_refused(run, vocabulary, tmp_path):
    params = in_memory(run[1])
    params["tokens"]["table"][383, 0] = 1e-30
    with pytest.raises(UserError, match=r"rows of padding, from 300 on, that are not zero"):
        save.save(params, TINY.model, vocabulary, tmp_path / "hf", extra={})


@pytest.mark.parametrize("part", ["the last byte", "a tensor"])
def test_what_is_written_is_read_back(part, run, vocabulary, tmp_path, monkeypatch):
    """A disk that changes what it is given is noticed before the folder is whole."""
    whole, last = write.Writer._out, TINY.model.width * 4

    def changed_on_the_way(self, data):
        data = np.array(data)
        if part == "a tensor" or data.nbytes == last:
            data[-1] ^= 1
        whole(self, data)

    monkeypatch.setattr(write.Writer, "_out", changed_on_the_way)
    with pytest.raises(UserError, match=r"read back .* ln_f/bias\[0:64\] differs|no whole safe"):
        save.save(in_memory(run[1]), TINY.model, vocabulary, tmp_path / "hf", extra={})
    assert list(tmp_path.iterdir()) == []


def test_what_the_disk_says_while_it_still_writes_counts(run, vocabulary, tmp_path, monkeypatch):
    def fails(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(write, "SYNC", 1 << 14)
    monkeypatch.setattr(os, "fdatasync", fails)
    with pytest.raises(UserError, match=r"hf was not written, .*Input/output error"):
        save.save(in_memory(run[1]), TINY.model, vocabulary, tmp_path / "hf", extra={})
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_is_not_in_the_way(tmp_path, monkeypatch):
    """It is gone before it is asked what room there is; and any error leaves nothing."""

    def interrupted(folder):
        (folder / "file").touch()
        raise KeyboardInterrupt

    (tmp_path / "hf.partial").mkdir()
    left = tmp_path / "hf.partial/file"
    left.touch()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage._replace(free=0 if left.exists() else 10)
    )
    with write.written(tmp_path / "hf", 10) as folder:
        (folder / "file").write_text("x")
    assert (tmp_path / "hf/file").read_text() == "x"
    wanted = pytest.raises(UserError, match="it takes 11 bytes, 10 are free")
    with wanted, write.written(tmp_path / "more", 11):
        raise AssertionError
    with pytest.raises(KeyboardInterrupt), write.written(tmp_path / "more", 0) as folder:
        interrupted(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


# ---- Damage, kills and full disks ----------------------------------------------------------------


def flipped(folder: Path, part: str) -> None:
    """One bit of the largest file of an array."""
    files = [path for path in (folder / part).rglob("*") if path.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_save_is_passed_over(run, tmp_path, capsys):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    flipped(workdir / "checkpoints/2/state", "average.blocks.up.kernel")
    source = start.find(workdir)
    assert source.step == 2
    folder = exported(workdir, tmp_path / "hf")
    assert "checkpoint 2 is damaged and passed over: the checksum of average" in (
        capsys.readouterr().err
    )
    assert json.loads((folder / "receipt.json").read_text())["source"]["step"] == 1
    expected = dict(names.to_hf(run[1][1], TINY.model))
    assert all(np.array_equal(x, expected[name]) for name, x in tensors(folder).items())
    assert source.step == 2
    _, mesh = on(TINY, 1, 2, 2)
    start.params(source, mesh)
    assert source.step == 1
    flipped(workdir / "checkpoints/1/state", "average.ln_f.scale")
    with pytest.raises(UserError, match="none of them is whole"):
        exported(workdir, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_all_hosts_take_the_save_that_the_first_one_sees(run, monkeypatch):
    """Also where one finds the position of a save damaged that the others can read."""
    said = {"steps": ["[1]", "[2]"]}
    monkeypatch.setattr(hosts, "gather", lambda name, value, _: said.get(name, [value]))
    assert start.find(run[0]).step == 1
    said["steps"] = ["[2, 1]", "[1]"]
    assert start.find(run[0]).step == 2
    said["start-position"] = [json.dumps(["", ""]), json.dumps(["damaged", "by process 1"])]
    with pytest.raises(UserError, match=r"none of them is whole(.*\n)*.*2: by process 1"):
        start.find(run[0])


def test_damage_of_an_import_and_of_an_export_is_named(run, tmp_path):
    first = exported(run[0], tmp_path / "first")
    load.load(str(first), tmp_path / "imported")
    _, mesh = on(TINY, 1, 2, 1)
    for change in ("flip", "cut", "remove"):
        place = shutil.copytree(tmp_path / "imported", tmp_path / change)
        array = place / "params/params.blocks.down.kernel"
        file = max(array.iterdir(), key=lambda path: path.stat().st_size)
        if change == "flip":
            flipped(place / "params", array.name)
        elif change == "cut":
            os.truncate(file, file.stat().st_size - 4)
        else:
            file.unlink()
        with pytest.raises(UserError, match="is damaged"):
            start.params(start.find(place), mesh)
        with pytest.raises(UserError, match="is damaged"):
            exported(place, tmp_path / "other")
    flipped(first, "")
    with pytest.raises(UserError, match=r"receipt\.json; remove that file if others changed them"):
        start.params(start.find(first), mesh)
    with pytest.raises(UserError, match=r"damaged|not those of its receipt\.json"):
        load.load(str(first), tmp_path / "again")
    (first / "receipt.json").unlink()
    load.load(str(first), tmp_path / "again")


SLOW = """
import runpy, sys, time
from biomedlm_jax.hf import write
whole = write.Writer.add
def add(self, name, values):
    if name.endswith("ln_f.weight"):
        print("nearly", flush=True)
        time.sleep(600)
    return whole(self, name, values)
write.Writer.add = add
runpy.run_module("biomedlm_jax.hf.save", run_name="__main__", alter_sys=True)
"""


def test_a_kill_leaves_nothing_that_looks_whole(run, tmp_path):
    """Nearly all is written when it comes; the same command then begins anew."""
    folder = tmp_path / "hf"
    flags = [f"--checkpoint={run[0]}", f"--output={folder}"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "nearly\n"
        time.sleep(0.2)  # for what was handed to the disk
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.stdout.close()
    left = tmp_path / "hf.partial"
    assert (left / read.SINGLE).stat().st_size > 0
    assert not folder.exists()
    with pytest.raises(UserError, match="is no model"):
        start.find(left)
    assert command("save", *flags).returncode == 0
    assert not left.exists()
    assert start.find(folder).model.vocab == 300


def test_a_full_disk_is_an_error_and_leaves_nothing(run, tmp_path):
    size = (exported(run[0], tmp_path / "whole") / read.SINGLE).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        with pytest.raises(UserError, match=r"hf was not written, nothing is left of it: .*large"):
            exported(run[0], tmp_path / "hf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_small_disk_is_refused_before_anything_is_written(run, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a disk")
    try:
        done = command("save", f"--checkpoint={run[0]}", f"--output={disk / 'hf'}")
        assert done.returncode == 2
        assert "error: no space left for --output=" in done.stderr
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_model_is_never_in_memory(tmp_path, monkeypatch):
    """Of 13 MB, with pieces of 60 KB, a fraction of the largest array."""
    monkeypatch.setattr(arrays, "PIECE", 60_000)  # a cut falls in the rows of padding, at 936
    model = dataclasses.replace(TINY.model, layers=64, width=64, heads=4, mlp=256, vocab=900)
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: draw.normal(size=x.shape).astype(np.float32),
        jax.eval_shape(lambda: step.gpt.init(model, jax.random.key(0))),
    )
    params["tokens"]["table"][900:] = 0
    save.save(params, model, None, tmp_path / "first", extra={})
    load.load(str(tmp_path / "first"), tmp_path / "imported")
    largest = max(x.nbytes for x in jax.tree.leaves(params))
    assert largest > 4e6
    del params
    for place in ("imported", "first"):
        tracemalloc.start()
        exported(tmp_path / place, tmp_path / f"of_{place}")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2e6, place


# ---- The files -----------------------------------------------------------------------------------


def test_a_plan_keeps_the_order_and_the_limit():
    listed = [(str(n), (size,)) for n, size in enumerate([3, 3, 10, 1, 1, 1])]
    shards = write.plan(listed, "float32", 24)
    assert [[name for name, _ in shard.tensors] for shard in shards] == [
        ["0", "1"],
        ["2"],
        ["3", "4", "5"],
    ]
    assert write.plan(listed, "bfloat16", 40)[0].file == "model.safetensors"


def test_what_is_written_is_what_the_library_reads(tmp_path):
    draw = np.random.default_rng(0)
    given = {name: draw.normal(size=(7, 5)).astype(np.float16) for name in ("b", "a", "µ")}
    shards = write.plan([(name, x.shape) for name, x in given.items()], "float16", 10**9)
    writer = write.Writer(tmp_path, shards, "float16")
    with contextlib.closing(writer):
        for name, tensor in given.items():
            assert not writer.add(name, tensor[:3])
            assert writer.add(name, tensor[3:])
        writer.sync()
    file = tmp_path / "model.safetensors"
    found = safetensors.numpy.load_file(file)
    assert found.keys() == given.keys()
    assert all(np.array_equal(found[name], given[name]) for name in given)
    content = file.read_bytes()
    assert writer.files == {file.name: write.digest(content)}
    assert int.from_bytes(content[:8], "little") % 8 == 0


def test_an_output_that_is_there_is_refused_first(run, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/file").touch()
    done = command("save", f"--checkpoint={run[0]}", f"--output={tmp_path / 'hf'}")
    assert done.returncode == 2
    assert "is not empty; name another folder" in done.stderr
    for flag, message in [
        ("--dtype=float64", "--dtype"),
        ("--shard_gb=0", "--shard_gb"),
        (f"--checkpoint={tmp_path}", "is no model; name the --workdir of a run"),
    ]:
        done = command("save", f"--checkpoint={run[0]}", f"--output={tmp_path / 'x'}", flag)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
