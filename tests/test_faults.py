"""What can happen to a run, done to real processes: each ends as it should, with nothing lost.

`faulty.py` has what goes wrong inside of a process. `make test-faults` runs all; most are slow.
"""

import shutil
import signal
import socket
import subprocess

import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding

from biomedlm_jax import checkpoint, step
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.loader import Loader
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.pipeline.store_writer import StoreWriter
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from tests.conftest import TINY, changed, on
from tests.runs import (
    assert_same,
    config_file,
    ends,
    finish,
    free_port,
    lines,
    losses,
    running,
)

HERE = socket.gethostname()
TWO = {"mesh__data": 2, "run__save_every": 3, "run__eval_every": 5, "run__wait_seconds": 20}

SLOW = {0: "slow=0.2", 1: "slow=0.2"}


@pytest.fixture(scope="module")
def experiment(store):
    return changed(TINY, data__store=str(store), run__steps=12, **TWO)


@pytest.fixture(scope="module")
def file(experiment, tmp_path_factory):
    return config_file(experiment, tmp_path_factory.mktemp("config") / "tiny.py")


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory):
    """The folder of a run to which nothing has happened, of one process, which gives the same bits
    on the same mesh: of two numbers there is only one sum."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(file, workdir, processes=1)
    return workdir


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "run"


def one_error(said: str) -> str:
    """The one line for people; there is no traceback. That process 0 is gone can be said twice: by
    the computation that fails, and when JAX aborts for it meanwhile."""
    assert "Traceback" not in said, said
    found, *again = (line for line in said.splitlines() if line.startswith("error: "))
    assert all(line.startswith("error: no answer from process 0 ") for line in again), said
    return found


def event(workdir, kind: str) -> dict:
    (found,) = (line for line in lines(workdir, "events") if line["event"] == kind)
    return found


def test_a_killed_process_is_named_and_the_run_goes_on(file, whole, workdir):
    with running(file, workdir, faults=SLOW) as (first, second):
        first.until("^step 4/12 ")
        second.send(signal.SIGKILL)
        assert second.wait() == -signal.SIGKILL
        assert first.wait() == 76, first.said
    assert f"no answer from process 1 (host {HERE})" in one_error(first.said)
    finish(file, workdir)
    assert_same(workdir, whole)


@pytest.mark.slow
def test_process_0_is_named_too(file, whole, workdir):
    with running(file, workdir, faults=SLOW) as (first, second):
        first.until("^step 4/12 ")
        first.send(signal.SIGKILL)
        assert second.wait() == 76, second.said
    assert f"no answer from process 0 (host {HERE})" in one_error(second.said)
    finish(file, workdir)
    assert_same(workdir, whole)


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_stops_both(file, whole, workdir):
    with running(file, workdir, faults={0: "slow=1", 1: "slow=1"}) as run:
        run[0].until("^step 4/12 ")  # JAX looks for signals once a second
        run[1].send(signal.SIGTERM)
        assert ends(run) == [75, 75], run[0].said + run[1].said
    step = event(workdir, "preempted")["step"]
    assert 4 <= step < 12
    assert checkpoint.load(workdir)[2] == step
    for process in run:
        assert process.said.splitlines()[-1].startswith(f"stopped at step {step} as asked, and")
    finish(file, workdir)
    assert_same(workdir, whole)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["^scoring$", " parameters on "], ids=["scoring", "start"])
def test_sigterm_in_the_evaluation_and_before_the_first_step(when, file, whole, workdir):
    with running(file, workdir, faults={0: "scoring=1", 1: "scoring=1"}) as run:
        run[0].until(when)
        run[1].send(signal.SIGTERM)
        assert ends(run) == [75, 75], run[0].said + run[1].said
    assert "step 12/12" not in run[0].said
    finish(file, workdir)
    assert_same(workdir, whole)


@pytest.mark.slow
def test_a_step_that_hangs_is_shown_with_the_stacks_of_all_threads(file, whole, workdir):
    flags = ["--config.run.hang_seconds=15", "--config.run.eval_every=0"]
    with running(file, workdir, *flags, faults={1: "hang=7"}) as run:
        assert ends(run) == [76, 76], run[0].said + run[1].said
    assert "error: no sign of life for " in run[1].said
    assert "in never_ends" in run[1].said  # where its loader stands
    assert "in never_ends" in (workdir / "stacks_1.txt").read_text()
    assert "no sign of life" in (workdir / "stacks_0.txt").read_text()
    finish(file, workdir)
    assert_same(workdir, whole)


@pytest.mark.slow
def test_a_nan_is_left_out_or_stops_the_run_with_its_documents(file, experiment, workdir):
    nan = {0: "nan=7", 1: "nan=7"}
    _, mesh = on(experiment, 2, 1, 1)
    data = experiment.data
    documents = Loader(
        TokenStore(data.store, "train"),
        batch=data.batch,
        length=experiment.model.context,
        separators=data.separators,
        segment_ids=data.segment_ids,
        seed=experiment.run.seed,
        sharding=NamedSharding(mesh, step.BATCH_SPEC),
    ).documents(7)
    with running(file, workdir, faults=nan) as run:
        assert ends(run) == [2, 2], run[0].said + run[1].said
    for process in run:
        error = one_error(process.said)
        assert "grad_norm is nan at step 8; that is 1 updates in a row" in error
        assert "The last save is of step 6. Its batch has " + ", ".join(documents[:5]) in error
    assert event(workdir, "skipped")["documents"] == documents
    assert checkpoint.load(workdir)[2] == 6

    with running(file, workdir, "--config.run.max_skipped=1", faults=nan) as run:
        assert ends(run) == [0, 0], run[0].said + run[1].said
    assert "step 8: grad_norm is nan; the update was left out" in run[0].said
    assert [line["step"] for line in lines(workdir) if line.get("skipped")] == [8]
    assert [number for number, _ in losses(workdir)] == list(range(1, 13))
    assert checkpoint.load(workdir)[2] == 12


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_a_damaged_newest_save_is_moved_aside_and_the_one_before_is_used(how, file, whole, workdir):
    with running(file, workdir, faults=SLOW) as run:
        run[0].until("^step 10/12 ")  # the save of step 9 has begun, so that of 6 is done
        for process in run:
            process.send(signal.SIGKILL)
        ends(run)
    saves = sorted((workdir / "checkpoints").glob("*[0-9]"), key=lambda path: int(path.name))
    newest = saves[-1]
    assert len(saves) >= 2
    largest = max(newest.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes({"cut": content[:-9], "flipped": content, "empty": b""}[how])

    with running(file, workdir) as run:
        assert ends(run) == [0, 0], run[0].said + run[1].said
    assert f"checkpoint {newest.name} is damaged: " in run[0].said
    moved = workdir / "damaged" / newest.name
    assert (moved / largest.relative_to(newest)).stat().st_size == {"cut": len(content) - 9}.get(
        how, len(content) if how == "flipped" else 0
    )
    found = event(workdir, "damaged")
    assert (found["step"], found["moved_to"]) == (int(newest.name), str(moved))
    assert_same(workdir, whole)


@pytest.mark.parametrize("part", ["tokens/c/0", "documents/c/0/0", "index/c/0"])
def test_a_shard_that_goes_after_the_store_was_opened_is_not_read_as_zeros(part, store, tmp_path):
    copy = shutil.copytree(store, tmp_path / "store")
    split = TokenStore(copy, "train")
    (copy / "train" / part).unlink()
    with pytest.raises(UserError, match=r"train can not be read, copy the store again: NOT_FOUND"):
        split.read(np.array([0]), 5), split.ids(0, 5)


@pytest.mark.slow
def test_a_shard_that_disappears_is_named(file, experiment, vocabulary, tmp_path, workdir):
    """It is read as zeros by whoever does not look."""
    place, draw = epath.Path(tmp_path / "store"), np.random.default_rng(0)
    rows = []
    for number in range(104):
        tokens = np.append(draw.integers(2, 300, 30_000 if number < 100 else 300), 1)
        split = "train" if number < 100 else "heldout"
        rows.append((split, tokens, f"PMID:{number + 1}", "abstract", 9, 2001))
    StoreWriter.of(place, place / "work", Vocabulary(vocabulary)).write_all(rows)
    shard, store = tmp_path / "store/train/tokens/c/0", f"--config.data.store={place}"
    with running(file, workdir, store, faults={1: f"gone=5:{shard}"}) as run:
        codes = ends(run)
    # Both read it, ahead of their steps: the one that comes to it first names it, and the other
    # does as well or misses the first.
    assert set(codes) in ({2}, {2, 76}), run[0].said + run[1].said
    for code, process in zip(codes, run, strict=True):
        error = one_error(process.said)
        if code == 2:
            assert f"{place}/train can not be read, copy the store again: " in error
    with running(file, workdir, store) as run:  # it is missed before anything else happens
        assert ends(run) == [2, 2]
    assert f"{shard} is missing; the store is not whole" in one_error(run[0].said)
    shard.with_name("0.gone").rename(shard)
    finish(file, workdir, store)
    finish(file, tmp_path / "whole", store, processes=1)
    assert_same(workdir, tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with room for a run and little more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20000000", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system can not be mounted here: {done.stderr}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_between_saves(file, whole, small_disk):
    """While metrics are written; what a save then needs is asked for in test_train."""
    workdir, filler = small_disk / "run", small_disk / "filler"
    never = "--config.run.save_every=0"
    with running(file, workdir, never, faults={0: f"full=3:{filler}"}) as run:
        assert ends(run) == [2, 76], run[0].said + run[1].said
    error = one_error(run[0].said)  # metrics or TensorBoard, whichever came to the end first
    assert "can not be written to " in error
    assert ": No space left on device" in error
    assert f"process 0 (host {HERE})" in one_error(run[1].said)
    filler.unlink()
    finish(file, workdir)
    assert_same(workdir, whole)


@pytest.mark.slow
def test_a_second_run_in_the_folder_is_refused(file, whole, workdir):
    with running(file, workdir, faults={0: "slow=30", 1: "slow=30"}) as run:
        run[0].until(" parameters on ")
        with running(file, workdir) as other:
            assert ends(other) == [2, 76], other[0].said + other[1].said
        error = one_error(other[0].said)
        assert f"--workdir={workdir} is in use by another run: process {run[0].popen.pid}" in error
        for process in run:
            process.send(signal.SIGKILL)
    finish(file, workdir)  # the lock of a process that was killed holds nobody up
    assert_same(workdir, whole)


@pytest.mark.slow
def test_hosts_that_differ_are_refused_on_both(file, workdir):
    with running(file, workdir, extra={1: ["--config.run.seed=18"]}) as run:
        assert ends(run) == [2, 2]
    for process in run:
        assert (
            f"process 1 (host {HERE}) has config.run.seed 18, process 0 (host {HERE}) has 17"
            in (process.said)
        )
    assert not workdir.exists()


@pytest.mark.slow
def test_another_store_and_a_port_in_use_are_refused(file, make_store, workdir):
    other = [f"--config.data.store={make_store(seed=5)}"]
    with running(file, workdir, extra={1: other}) as run:
        assert ends(run) == [2, 2]
    for process in run:
        assert f"process 1 (host {HERE}) has tokens of sha256 " in process.said
    with socket.create_server(("", free_port())) as taken:
        port = taken.getsockname()[1]
        flags = [f"--coordinator=localhost:{port}", "--config.run.wait_seconds=5"]
        with running(file, workdir, extra={0: flags, 1: flags}) as run:
            assert ends(run) == [2, 2]
        for process in run:
            assert f"--coordinator=localhost:{port}" in one_error(process.said)
    assert not workdir.exists()


@pytest.mark.slow
def test_a_folder_that_can_not_be_written_or_goes_away(file, whole, small_disk):
    workdir = small_disk / "run"
    for mode in ("ro", "rw"):
        subprocess.run(["mount", "-o", f"remount,{mode}", str(small_disk)], check=True)
        if mode == "ro":
            with running(file, workdir) as run:
                assert ends(run) == [2, 76], run[0].said + run[1].said
            assert f"--workdir={workdir} can not be written: " in one_error(run[0].said)
    with running(file, workdir, faults=SLOW) as run:
        run[0].until("^step 4/12 ")
        workdir.rename(small_disk / "elsewhere")
        codes = ends(run)
    assert codes in ([2, 2], [2, 76]), run[0].said + run[1].said
    assert f"{workdir}" in one_error(run[0].said)
    assert not workdir.exists()
    (small_disk / "elsewhere").rename(workdir)
    finish(file, workdir)
    assert_same(workdir, whole)
