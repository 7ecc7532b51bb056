"""All by a launch's name is deleted, whatever the API makes of that; and what is there is said."""

import dataclasses
import types

import pytest
from grpc import StatusCode as Code

from biomedlm_jax.entry import UserError
from launch import leftovers, tpu_api
from launch.leftovers import TRIED
from launch.lifecycle import AGAIN, SETTLED
from launch.tpu_api import Tpus
from tests.fake_cloud_tpu import FakeCloudTpu
from tests.test_launch_watch import Watched


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    with FakeCloudTpu(tmp_path / "cloud") as cloud:
        monkeypatch.setenv(tpu_api.ENDPOINT, cloud.endpoint)
        yield cloud


@pytest.fixture
def watched(cloud, tmp_path, monkeypatch):
    """With two requests that are there, and two of other runs."""
    found = Watched(cloud, tmp_path)
    monkeypatch.setattr(leftovers, "time", types.SimpleNamespace(time=lambda: found.now))
    for name in ("run-a1", "run-a2", "other-run-a1", "run-b1"):
        found.tpus.create(name, "")
    return found


def delete_all(watched: Watched) -> None:
    leftovers.delete_all(watched.launch, watched.tpus, watched.sleep, lambda: watched.now)


def test_all_are_told_first_and_then_waited_for(cloud, watched, capsys):
    delete_all(watched)
    assert cloud.names() == ["other-run-a1", "run-b1"]
    calls = [name for name, _ in cloud.calls]
    first = calls.index("DeleteQueuedResource")
    assert calls[first : first + 2] == ["DeleteQueuedResource"] * 2
    assert capsys.readouterr().out == "run-a1 is deleted\nrun-a2 is deleted\n"


def test_what_does_not_go_is_told_again(cloud, watched):
    cloud.ignore("DeleteQueuedResource")
    cloud.fail("DeleteQueuedResource", Code.FAILED_PRECONDITION, "it is being made")
    began = watched.now
    delete_all(watched)
    assert cloud.names() == ["other-run-a1", "run-b1"]
    assert AGAIN <= watched.now - began < 2 * AGAIN


def test_what_never_goes_is_named_with_the_command(cloud, watched):
    cloud.ignore("DeleteQueuedResource", times=1000)
    never = (
        r"run-a1, run-a2 was told to go 30 minutes ago.*: python -m launch.tpu delete --name=run"
    )
    with pytest.raises(UserError, match=never):
        delete_all(watched)


def test_one_that_is_refused_does_not_keep_the_others(cloud, watched):
    cloud.fail("DeleteQueuedResource", Code.PERMISSION_DENIED, "not yours")
    with pytest.raises(UserError, match=r"could not delete run-a1 .* not yours"):
        delete_all(watched)
    assert cloud.queued[next(x for x in cloud.queued if x.endswith("/run-a2"))].coming[0] == "gone"


@pytest.mark.parametrize("comes", [True, False])
def test_one_that_was_asked_for_just_now_is_waited_for(comes, cloud, watched, capsys):
    """By a launcher that was interrupted."""
    watched.watcher._event("request", attempt=3, name="run-a3")
    began = watched.now
    watched.each = lambda w: w.tpus.create("run-a3", "") if comes and len(w.slept) == 9 else None
    delete_all(watched)
    assert cloud.names() == ["other-run-a1", "run-b1"]
    said = capsys.readouterr().out
    assert ("run-a3 is deleted" in said) == comes
    assert (watched.now - began >= TRIED + SETTLED) != comes
    assert "run-a3 was asked for and may still come; looking for" in said


def test_what_is_left_is_said(cloud, watched):
    def said() -> str:
        return leftovers.left(watched.launch, watched.tpus)

    assert "/run-a1 (ACCEPTED), projects/" in said()
    assert "/run-a2 (ACCEPTED) goes on without this command; 8 chips cost $25.76 an h" in said()
    delete_all(watched)
    assert said() == "nothing is left running"
    for kind, seconds in {"request": TRIED + SETTLED, "interrupted": SETTLED}.items():
        watched.watcher._event(kind, attempt=3, name="run-a3")
        watched.now += seconds - 1
        assert "run-a3 was asked for, is not there yet, and may come; then 8 chips" in said()
        watched.now += 2
        assert said() == "nothing is left running"
    cloud.fail("ListQueuedResources", Code.PERMISSION_DENIED, "not yours")
    assert "by the name run-aN are there is not known: could not list" in said()
    (watched.place / "events.jsonl").unlink()
    (watched.place / "events.jsonl").mkdir()  # which can not be read
    assert "one that events.jsonl could tell of, which can not be read, was asked for, is" in said()


def test_one_of_another_run_is_no_reason_to_leave_ones_own(cloud, watched):
    foreign = dataclasses.replace(watched.launch, workdir="/other")
    Tpus(foreign).create("run-a9", "")
    assert "/run-a2 (ACCEPTED) goes on" in leftovers.left(watched.launch, watched.tpus)
    delete_all(watched)
    assert cloud.names() == ["other-run-a1", "run-b1", "run-a9"]


def test_a_damaged_record_keeps_nothing_from_being_deleted(cloud, watched):
    (watched.place / "events.jsonl").write_bytes(b"\0" * 99 + b"\n{]\n3\n")
    delete_all(watched)
    assert cloud.names() == ["other-run-a1", "run-b1"]


@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt])
def test_the_command_is_said_before_anything_is_looked_at(
    error, cloud, watched, monkeypatch, capsys
):
    def left(launch, tpus):
        assert "launch.tpu delete --name=run --project=my-project" in capsys.readouterr().err
        raise KeyboardInterrupt

    monkeypatch.setattr(leftovers, "left", left)
    with pytest.raises((UserError, SystemExit)), leftovers.named(watched.launch, watched.tpus):
        raise error
    assert "what is there is not known: KeyboardInterrupt" in capsys.readouterr().err
