"""Saves: what stays, what damage does to them, and one run in a folder at a time.

    python -m tests.test_checkpoint WORKDIR STORE OUTPUT ADDRESS INDEX

is one of two hosts of a run in WORKDIR, of which the second can not read its part of step 2.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biomedlm_jax import arrays, checkpoint, checksums, entry, hosts, lock, saves, step
from biomedlm_jax.checkpoint import Checkpoints
from biomedlm_jax.entry import UserError
from biomedlm_jax.lock import Lock
from biomedlm_jax.pipeline.store import TokenStore
from tests.conftest import FORGIVEN, ROOT, TINY, changed, on, started

pytestmark = FORGIVEN


def equal(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def at(state: step.State, number: int) -> step.State:
    """A state of that step: every step has other numbers."""
    return dataclasses.replace(
        jax.tree.map(lambda x: x + number if x.ndim else x, state), step=state.step + number
    )


@pytest.fixture(scope="module")
def experiment(store):
    return changed(TINY, data__store=str(store), run__save_every=1)


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    """(folder with steps 1 and 2, their states, mesh)."""
    experiment, mesh = on(experiment, 2, 2, 1)
    workdir = tmp_path_factory.mktemp("saves") / "run"
    states = [at(started(experiment, mesh), number) for number in (0, 1, 2)]
    with opened(experiment, workdir) as kept:
        for number in (1, 2):
            kept.save(states[number], number)
            assert kept.stalled > 0
    return workdir, [jax.device_get(state) for state in states], mesh


def opened(experiment, workdir):
    return contextlib.closing(
        Checkpoints(workdir, experiment, TokenStore(experiment.data.store, "train"))
    )


def files(workdir) -> list[str]:
    return sorted(str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file())


# ---- Checksums ------------------------------------------------------------------------------


def test_a_checksum_is_the_same_on_every_mesh(experiment, run):
    state = run[1][1]
    expected = checksums.checksums(state)
    assert len(expected) == len(jax.tree.leaves(state))
    assert len(set(expected.values())) > 10
    for shape in [(1, 1, 1), (2, 2, 2), (1, 4, 1), (1, 1, 4)]:
        there, mesh = on(experiment, *shape)
        placed = jax.device_put(state, step.state_shardings(there, mesh))
        assert checksums.checksums(placed) == expected
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    leaves = {str(n): x for n, x in enumerate(jax.tree.leaves(placed))}
    found = jax.device_get(checksums._on_devices(whole, leaves))
    assert [int(found[name]) for name in leaves] == list(expected.values())


@pytest.mark.parametrize("dtype", ["float32", "int32", "bfloat16"])
def test_every_bit_counts(dtype):
    array = np.random.default_rng(0).normal(size=(5, 7, 3)).astype(jnp.dtype(dtype))
    before = checksums.checksums({"x": array})
    bits = array.view(f"u{array.dtype.itemsize}")
    for position in range(0, array.size, 13):
        for bit in range(8 * array.dtype.itemsize):
            bits.reshape(-1)[position] ^= 1 << bit
            assert checksums.checksums({"x": array}) != before
            bits.reshape(-1)[position] ^= 1 << bit
    assert checksums.checksums({"x": array}) == before
    assert checksums.checksums({"x": array[::-1]}) != before
    assert checksums.checksums({"x": np.float32(1)}) != checksums.checksums({"x": np.float32(2)})


def test_copies_that_differ_have_no_checksum():
    devices = jax.devices()[:2]
    mesh = jax.sharding.Mesh(np.array(devices), ("x",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    pieces = [jax.device_put(np.full(3, n, np.float32), d) for n, d in enumerate(devices)]
    array = jax.make_array_from_single_device_arrays((3,), everywhere, pieces)
    assert checksums.checksums([array]) == {"0": checksums.MIXED}


# ---- What stays -----------------------------------------------------------------------------


def test_the_newest_stay_and_some_for_good(experiment, run, tmp_path):
    """Also when the state is used up, and its memory written over, while a save goes on."""
    kept = changed(experiment, run__keep=2, run__keep_every=3)
    kept, mesh = on(kept, 2, 2, 1)
    state = jax.device_put(run[1][0], step.state_shardings(kept, mesh))
    forward = jax.jit(lambda s: at(s, 1), donate_argnums=0)
    with opened(kept, tmp_path / "run") as checkpoints:
        for number in range(1, 8):
            state = forward(state)
            expected = jax.device_get(jax.tree.map(jnp.copy, state))
            checkpoints.save(state, number)
    names = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert names == ["3", "6", "7"]
    with opened(kept, tmp_path / "run") as checkpoints:
        assert equal(checkpoints.latest(mesh), expected)


def test_a_save_in_few_large_files_as_on_gs_is_read_as_well(experiment, run, tmp_path, monkeypatch):
    _, states, mesh = run
    with monkeypatch.context() as patched:
        patched.setattr(saves, "in_cloud", lambda _: True)
        with opened(experiment, tmp_path / "run") as kept:
            kept.save(states[1], 1)
    assert (tmp_path / "run/checkpoints/1/state/manifest.ocdbt").exists()
    with opened(experiment, tmp_path / "run") as kept:
        assert equal(kept.latest(mesh), states[1])
    assert equal(checkpoint.load(tmp_path / "run")[1], states[1].params)


def test_what_a_kill_leaves_is_cleaned(experiment, run, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    cut = workdir / "checkpoints/3.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints/2/state", cut / "state")
    with opened(experiment, workdir) as checkpoints:
        assert equal(checkpoints.latest(run[2]), run[1][2])
        assert not checkpoints.damaged
    assert not cut.exists()


# ---- Damage ---------------------------------------------------------------------------------


def biggest(folder):
    return max(folder.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())


def cut_short(folder):
    file = biggest(folder / "state")
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(folder):
    file = biggest(folder / "state")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def empty_all(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def remove_data(folder):
    biggest(folder / "state").unlink()


def remove_state(folder):
    shutil.rmtree(folder / "state")


def remove_position(folder):
    (folder / "position/metadata").unlink()


def garbage_position(folder):
    (folder / "position/metadata").write_text('{"next_batch": 2}')


def garbage_metadata(folder):
    (folder / "state/_METADATA").write_bytes(b"\xff{")


def garbage_marker(folder):
    """Of orbax; nothing in it is needed, so the save is whole."""
    (folder / "_CHECKPOINT_METADATA").write_bytes(b"\xff{")


def garbage_shape(folder):
    file = folder / "state/params.tokens.table/.zarray"
    file.write_bytes(file.read_bytes()[::-1])


def other_step(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "1", folder)


DAMAGES = [
    (cut_short, "ValueError: OUT_OF_RANGE|DATA_LOSS|ValueError"),
    (flip_a_bit, "the checksum of .* is not the one that was saved"),
    (empty_all, "Error"),
    (remove_data, "Error|checksum"),
    (remove_state, "does not exist"),
    (remove_position, "FileNotFound"),
    (garbage_position, "its position is not what this version writes"),
    (garbage_metadata, "Error"),
    (garbage_shape, "Error"),
    (other_step, "it is the save of step 1"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES, ids=lambda x: getattr(x, "__name__", ""))
def test_a_damaged_save_is_moved_aside_and_the_one_before_is_used(
    damage, reason, experiment, run, tmp_path, capsys
):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    damage(workdir / "checkpoints/2")
    before = files(workdir)
    _, params, number = checkpoint.load(workdir)
    assert files(workdir) == before
    assert equal(params, run[1][number].params)
    if number == 2:  # it reads the parameters alone, and these may be whole
        assert damage in (cut_short, flip_a_bit, remove_data)
    else:
        assert "checkpoint 2 is damaged and passed over: " in capsys.readouterr().err
    with opened(experiment, workdir) as checkpoints:
        state = checkpoints.latest(run[2])
        assert equal(state, run[1][1])
        (found,) = checkpoints.damaged
        assert found["step"] == 2
        assert found["moved_to"] == str(workdir / "damaged/2")
        assert re.search(reason, found["reason"]), found
        assert f"moved to {workdir}/damaged/2, going on from 1" in capsys.readouterr().out
        assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["1"]
        if damage is flip_a_bit:  # the manager has forgotten it, and the name is free
            checkpoints.save(at(state, 1), 2)
    if damage is flip_a_bit:
        flip_a_bit(workdir / "checkpoints/2")
        with opened(experiment, workdir) as checkpoints:
            assert equal(checkpoints.latest(run[2]), run[1][1])
            assert checkpoints.damaged[0]["moved_to"].endswith("damaged/2-2")


def test_what_is_not_needed_may_be_damaged(experiment, run, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    garbage_marker(workdir / "checkpoints/2")
    with opened(experiment, workdir) as checkpoints:
        assert equal(checkpoints.latest(run[2]), run[1][2])


def test_a_run_whose_saves_are_all_damaged_does_not_start_anew(experiment, run, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    remove_state(workdir / "checkpoints/1")
    remove_position(workdir / "checkpoints/2")
    before = files(workdir)
    message = r"none of them is whole; nothing was moved or removed(.*\n)+  2: File(.*\n)+  1: File"
    with opened(experiment, workdir) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.latest(run[2])
    with pytest.raises(UserError, match=message):
        checkpoint.load(workdir)
    assert files(workdir) == before
    (workdir / "damaged").mkdir()
    shutil.rmtree(workdir / "checkpoints")
    message = "has no checkpoint but damaged ones"
    with opened(experiment, workdir) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.latest(run[2])


def test_a_storage_that_does_not_answer_is_no_damage(experiment, run, tmp_path, monkeypatch):
    workdir = shutil.copytree(run[0], tmp_path / "run")

    def fail(*_):
        raise ValueError("UNAVAILABLE: Error reading ...")

    for reads in (checkpoint, arrays):
        monkeypatch.setattr(reads, "restored", fail)
    with opened(experiment, workdir) as checkpoints:
        with pytest.raises(UserError, match="says nothing about whether it is whole"):
            checkpoints.latest(run[2])
        assert saves.steps_in(checkpoints.workdir) == [2, 1]
    with pytest.raises(UserError, match="says nothing about whether it is whole"):
        checkpoint.load(workdir)


def test_a_folder_that_is_removed_during_the_run(experiment, run, tmp_path):
    workdir = tmp_path / "run"
    there, mesh = on(experiment, 2, 2, 1)
    with opened(there, workdir) as checkpoints:
        state = checkpoints.latest(mesh)
        assert state is None
        shutil.rmtree(workdir)
        state = jax.device_put(run[1][1], step.state_shardings(there, mesh))
        with pytest.raises(UserError, match=f"--workdir={workdir} is gone"):
            checkpoints.save(state, 1)


# ---- Lock -----------------------------------------------------------------------------------

HOLD = """
import os, sys, time
from biomedlm_jax.lock import Lock
with Lock(sys.argv[1]):
    if os.fork() == 0:
        os.close(0), os.close(1)  # a child that outlives its parent, as one of a pool may
        time.sleep(5)
        os._exit(0)
    print("held", flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), 9)
"""


def test_the_second_run_in_a_folder_is_refused(tmp_path):
    """Until the first is dead, however it died and whoever of its children lives."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout.readline() == "held\n"
        who = rf"--workdir=.* process {first.pid} on {socket.gethostname()}, started 20\d\d-"
        with pytest.raises(UserError, match=who), Lock(tmp_path / "run"):
            pass
        first.stdin.write("\n")
        first.stdin.flush()
        assert first.stdout.read() == ""
        first.wait()
        with Lock(tmp_path / "run") as held:
            held.check()
            with pytest.raises(UserError, match=f"process {os.getpid()} on"):
                lock._File(tmp_path / "run").take()
    assert files(tmp_path) == []


def test_a_run_that_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(KeyError), Lock(tmp_path / "a/run"):
        raise KeyError
    assert not (tmp_path / "a/run").exists()
    with Lock(tmp_path / "a/run"):
        (tmp_path / "a/run/config.json").write_text("{}")
    assert files(tmp_path) == ["a/run/config.json"]


def test_a_lock_on_a_folder_that_is_gone(tmp_path):
    with Lock(tmp_path / "run") as held:
        held.check()
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(UserError, match="was removed or replaced while the run was in it"):
            held.check()


def test_a_folder_that_can_not_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file/run", "/proc/run"):
        with pytest.raises(UserError, match=f"--workdir={workdir} can not be written: "):
            Lock(workdir).__enter__()


# ---- Hosts ----------------------------------------------------------------------------------


def host(workdir: str, store: str, output: str, address: str, index: str) -> None:
    jax.config.update("jax_platforms", "cpu")
    hosts.connect(address, 2, int(index), 60, cpu_devices=lambda processes: 1)
    experiment, mesh = on(changed(TINY, data__store=store, run__save_every=1), 1, 2, 1)
    read = checkpoint.restored

    def partly(folder, restore):
        if index == "1" and folder.parent.name == "2":
            raise OSError(5, "Input/output error")
        return read(folder, restore)

    checkpoint.restored = partly
    with opened(experiment, workdir) as checkpoints:
        state = checkpoints.latest(mesh)
        first = int(state.step)
        checkpoints.save(jax.jit(lambda s: at(s, 1))(state), 2)
    with opened(experiment, workdir) as checkpoints:
        checkpoint.restored = read
        again = int(checkpoints.latest(mesh).step)
    damaged = json.dumps([first, again, [x["reason"] for x in checkpoints.damaged]])
    (saves.absolute(output) / index).write_text(damaged)
    assert entry.leave
    entry.leave(0)
    jax.distributed.shutdown()


def test_a_piece_that_one_host_can_not_read(run, store, tmp_path):
    """All of them go on from the save before, none waits for another, and they save together."""
    workdir = shutil.copytree(run[0], tmp_path / "run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.test_checkpoint", workdir, store, tmp_path, address]
    processes = [
        subprocess.Popen(
            [*map(str, command), str(index)], cwd=ROOT, text=True, stderr=subprocess.PIPE
        )
        for index in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    for index in "01":
        assert json.loads((tmp_path / index).read_text()) == [1, 2, []]
    assert sorted(p.name for p in (workdir / "damaged").iterdir()) == ["2"]
    _, params, number = checkpoint.load(workdir)
    assert number == 2
    assert equal(params, jax.tree.map(lambda x: x + 1, run[1][1].params))


if __name__ == "__main__":
    host(*sys.argv[1:])
