"""Runs on gs://, over a way on which requests fail now and then."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from biomedlm_jax import entry, lock
from biomedlm_jax.checkpoint import Checkpoints
from biomedlm_jax.entry import UserError
from tests.bucket import COPY, python, serving
from tests.conftest import TINY, changed
from tests.runs import PATIENCE, Process, assert_same, config_file, ends, lines, running

SAVES = """
import contextlib, dataclasses, sys
import jax, numpy as np
from etils import epath
from biomedlm_jax import checkpoint, saves, step
from biomedlm_jax.checkpoint import Checkpoints
from biomedlm_jax.entry import UserError
from biomedlm_jax.lock import Lock
from biomedlm_jax.pipeline.store import TokenStore
from tests.conftest import TINY, changed, on, started

kept = dict(run__save_every=1, run__keep=1, run__keep_every=2)
experiment, mesh = on(changed(TINY, data__store="gs://corpus/store", **kept), 1, 2, 1)
store = TokenStore(experiment.data.store, "train")
workdir = epath.Path("gs://corpus/runs/one")
state = started(experiment, mesh)
forward = jax.jit(lambda s: dataclasses.replace(
    s, step=s.step + 1, params=jax.tree.map(lambda x: x + 1, s.params)))
with Lock(workdir) as lock:
    try:
        with Lock(workdir):
            pass
    except UserError as error:
        print("refused:", error)
    with contextlib.closing(Checkpoints(workdir, experiment, store)) as kept:
        assert kept.latest(mesh) is None
        states = [state]
        for number in range(1, 4):
            states.append(forward(states[-1]))
            kept.save(states[-1], number)
    print("kept:", saves.steps_in(workdir))
    (workdir / "checkpoints/3/position/metadata").unlink()
    lock.check()
    with contextlib.closing(Checkpoints(workdir, experiment, store)) as kept:
        found = kept.latest(mesh)
        same = jax.tree.map(np.array_equal, jax.device_get(found), jax.device_get(states[2]))
        print("went on from", int(found.step), all(jax.tree.leaves(same)), len(kept.damaged))
        kept.save(forward(found), 3)
print("kept:", saves.steps_in(workdir), (workdir / "lease.json").exists())
print("loaded:", checkpoint.load(workdir)[2], (workdir / "damaged/3/commit_success.txt").exists())
"""
REFUSED = """
import sys
from biomedlm_jax import entry
from biomedlm_jax.lock import Lock
from biomedlm_jax.saves import damage
for workdir in sys.argv[1:]:
    try:
        Lock(workdir).__enter__()
    except entry.UserError as error:
        print(error)
from biomedlm_jax.pipeline.store import TokenStore
try:
    TokenStore("gs://closed/store", "train")
except entry.UserError as error:
    print(error)
from gcsfs.retry import HttpError
try:
    with damage():
        raise HttpError({"code": 503, "message": ""})
except entry.UserError as error:
    print(error)
"""
RUN = "gs://corpus/run"


@pytest.fixture(scope="module")
def cloud(store):
    """The environment of a machine with a store on gs://, and its way there."""
    with serving("corpus", "closed", every=50) as (environment, way):
        python(environment, COPY, store, "gs://corpus/store")
        yield environment, way


@contextlib.contextmanager
def reading(logs, module, *flags):
    command = [sys.executable, "-m", f"biomedlm_jax.{module}", *flags]
    process = Process(command, logs / f"{module}.log")
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.wait()


@pytest.mark.slow
def test_saves_on_the_cloud(cloud):
    environment, way = cloud
    before = way.failed
    said = python(environment, SAVES).splitlines()
    assert way.failed - before >= 10
    assert said[0].startswith("refused: --workdir=gs://corpus/runs/one is in use by another run")
    assert "it ends by itself" in said[0]
    assert said[1] == "kept: [3, 2]"
    assert said[2].startswith("checkpoint 3 is damaged: FileNotFoundError: ")
    assert said[3:] == ["went on from 2 True 1", "kept: [3, 2] False", "loaded: 3 True"]


@pytest.mark.slow
def test_a_whole_run_on_the_cloud(cloud, store, tmp_path, monkeypatch):
    """Killed on the way, it comes to the losses and weights of the same run on a disk; what reads a
    run reads this one."""
    environment, way = cloud
    before = way.failed
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = dict(run__steps=6, run__save_every=2, run__eval_every=3, run__sample_tokens=4)
    here, there = (
        config_file(changed(TINY, data__store=place, **settings), tmp_path / f"{name}.py")
        for name, place in (("here", str(store)), ("there", "gs://corpus/store"))
    )
    with running(there, RUN, processes=1) as [killed]:
        with running(here, tmp_path / "run", processes=1) as local:
            assert ends(local) == [0], local[0].said
        killed.until("^step 5/6")  # the save of step 2 is whole before that of step 4 begins
        killed.send(signal.SIGKILL)
        killed.wait()
    with running(there, RUN, processes=1) as [again]:
        assert again.wait() == 0, again.said
        assert "from step 2 to 6" in again.said or "from step 4 to 6" in again.said
        assert "gcsfs" not in again.said
    with (
        reading(tmp_path, "report", f"--workdir={RUN}") as report,
        reading(tmp_path, "held_out", f"--checkpoint={RUN}") as held_out,
        reading(tmp_path, "hf.save", f"--checkpoint={RUN}", f"--output={tmp_path / 'hf'}") as hf,
    ):
        for process in (report, held_out, hf):
            assert process.wait() == 0, process.said
        assert "model at step 6" in held_out.said
    assert (tmp_path / "hf/model.safetensors").is_file()
    assert way.failed - before >= 10
    python(environment, COPY, RUN, tmp_path / "copy")
    assert (tmp_path / "copy/report.html").stat().st_size > 10_000
    (tmp_path / "copy/report.html").unlink()
    assert_same(tmp_path / "copy", tmp_path / "run")
    for name in ("samples", "events"):
        assert lines(tmp_path / "copy", name)
    board = EventAccumulator(str(tmp_path / "copy/tensorboard")).Reload()
    assert [point.step for point in board.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_buckets_that_are_not_ours_are_refused(cloud):
    environment, _ = cloud
    found = python(environment, REFUSED, "gs://nowhere/run", "gs://closed/run").splitlines()
    *said, store, damage = found
    assert store.startswith("config.data.store=gs://closed/store can not be read: Forbidden")
    for bucket, line in zip(("nowhere", "closed"), said, strict=True):
        assert line.startswith(f"--workdir=gs://{bucket}/run can not be written: "), line
    assert "says nothing about whether it is whole" in damage


@pytest.fixture
def lease(tmp_path, monkeypatch):
    """lease() makes one that would be on gs://, here on a disk, which also has versions."""
    monkeypatch.setattr(lock, "RENEWED", 0.01)
    made = []

    def make():
        new = lock._Lease(epath.Path("gs://corpus/run"))
        new.spec = {"driver": "file", "path": f"{tmp_path}/"}
        made.append(new)
        return new

    yield make
    for each in made:
        each.ended.set()


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def written(tmp_path):
    return json.loads((tmp_path / lock.LEASE).read_text())


def refusal(held):
    try:
        held.check()
    except UserError as error:
        return str(error)
    return ""


def test_a_lease_is_renewed_and_taken_when_it_is_old(lease, tmp_path, monkeypatch):
    first = lease()
    first.take()
    began = written(tmp_path)["written"]
    until(lambda: written(tmp_path)["written"] > began)
    with pytest.raises(UserError, match="in use by another run: process"):
        lease().take()
    # The first one stops for longer than it counts, and goes on when another has come.
    going, stopped, write = threading.Event(), threading.Event(), first._write
    monkeypatch.setattr(first, "_write", lambda _: (stopped.set(), going.wait(), write(9))[-1])
    until(stopped.is_set)
    now = time.time
    second = lease()
    with monkeypatch.context() as later:
        later.setattr(lock.time, "time", lambda: now() + 2 * lock.COUNTS)
        second.take()
    going.set()
    until(lambda: "another run has taken" in refusal(first))
    first.release()  # which leaves the other's alone
    assert written(tmp_path)["id"] == second.mine["id"]
    assert refusal(second) == ""
    second.release()
    assert not (tmp_path / lock.LEASE).exists()


def test_a_write_whose_answer_was_lost_is_known_again(lease):
    held = lease()
    held.take()
    before = held.generation
    assert held._write(9)
    held.generation = before
    assert held._write(9)
    held.release()


@pytest.mark.parametrize("fails", [True, False])
def test_a_lease_that_can_not_be_renewed_is_lost(fails, lease, monkeypatch):
    """Whether the storage says so or says nothing."""
    held, end = lease(), threading.Event()
    held.take()

    def write(_):
        if not fails:
            end.wait()
        raise OSError("no way there")

    monkeypatch.setattr(held, "_write", write)
    assert refusal(held) == ""
    monkeypatch.setattr(lock, "COUNTS", 0.1)
    until(lambda: f"{lock.LEASE} could not be renewed in time" in refusal(held))
    end.set()
    held.release()


def test_a_lease_that_is_late_may_be_renewed_yet(lease, monkeypatch):
    """Where nobody has taken it since; then it is as if nothing had been."""
    held, away = lease(), [True]
    held.take()
    write = held._write

    def later(seconds):
        if away:
            raise OSError("no way there")
        return write(seconds)

    monkeypatch.setattr(held, "_write", later)
    monkeypatch.setattr(lock, "COUNTS", 0.1)
    with pytest.raises(lock.Unrenewed, match="could not be renewed in time: no way there"):
        until(lambda: held.check())
    away.clear()
    monkeypatch.setattr(lock, "COUNTS", 90.0)
    until(lambda: held.failure == "" and refusal(held) == "")
    held.release()


def test_a_lease_ends_with_its_process_on_the_same_machine(lease, tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    holder = lock._holder() | {"pid": other.pid, "written": time.time(), "id": "theirs"}
    place = tmp_path / lock.LEASE

    def refused(machine):
        place.write_text(json.dumps(holder | {"machine": machine}))
        try:
            lease().take()
        except UserError as error:
            return "in use by another run" in str(error)
        return False

    assert lock._machine()
    assert refused(lock._machine())
    other.communicate(b"\n")
    assert refused("elsewhere")
    assert refused("")
    assert not refused(lock._machine())


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ValueError("UNAVAILABLE: Error reading x"), True),
        (ValueError("DEADLINE_EXCEEDED: Error writing x"), True),
        (ValueError("ABORTED: All 32 retry attempts failed: UNAVAILABLE: HTTP 503"), True),
        (ConnectionResetError("reset by peer"), True),
        (TimeoutError(), True),
        (lock.Unrenewed("late"), True),
        (ValueError("PERMISSION_DENIED: Error writing x: HTTP 403"), False),
        (OSError(28, "No space left on device"), False),
        (UserError("no answer: UNAVAILABLE"), False),
    ],
)
def test_what_may_pass_ends_with_a_code_of_its_own(error, passes, tmp_path, capsys):
    """For launchers, which try it again; whoever of the storage's clients has said it."""
    assert entry.passes(error) == passes
    assert not entry.passes(ValueError("a bug"))
    ours = isinstance(error, (UserError, OSError))
    holder = SimpleNamespace(workdir=epath.Path(tmp_path))
    said = contextlib.nullcontext() if ours else Checkpoints._reported(holder)
    with pytest.raises(SystemExit) as ended, entry.reported(), said:
        raise error
    assert ended.value.code == (entry.UNAVAILABLE if passes else entry.USER_ERROR)
    assert capsys.readouterr().err.startswith("error: ")
