"""A watcher and what can happen to it, against a local Cloud TPU whose slices have no hosts: what
these would write to the run's folder is written here. Time is pushed by its sleeps."""

import json
from collections.abc import Callable

import grpc
import pytest
from google.cloud import tpu_v2alpha1 as tpu

from biomedlm_jax.entry import UserError
from biomedlm_jax.lock import Unrenewed
from launch import lifecycle, spec, tpu_api, watch
from launch.logs import Logs
from launch.tpu_api import Patience, Tpus
from launch.watch import Shipped, Watcher
from tests.fake_cloud_tpu import FakeCloudTpu

Code = grpc.StatusCode
FULL = 'There is no more capacity in the zone "us-west4-a"; you can try in another zone'
QUOTA = "Quota limit 'TPUV4sPreemptiblePodPerProjectPerZone' has been exceeded. Limit: 0"


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    with FakeCloudTpu(tmp_path / "cloud") as cloud:
        monkeypatch.setenv(tpu_api.ENDPOINT, cloud.endpoint)
        yield cloud


class Watched:
    """A watcher in a world where `sleep` is all that takes time. each: called at each sleep. whole:
    seconds for which passing errors are tried again."""

    def __init__(
        self, cloud: FakeCloudTpu, tmp_path, each: Callable | None = None, whole=60.0, **fields
    ):
        given = {
            "config": "configs/demo.py",
            "workdir": str(tmp_path / "run"),
            "project": "my-project",
            "zone": "us-west4-a",
            "accelerator": "v4-16",
            "poll_seconds": 10.0,
            **fields,
        }
        self.launch = spec.read(spec.DEFAULT, given)
        self.cloud, self.each = cloud, each or (lambda watched: None)
        self.now, self.slept, self.said = 1e9, list[float](), list[str]()
        (tmp_path / "run/launch").mkdir(parents=True, exist_ok=True)
        self.place = tmp_path / "run/launch"
        self.tpus = Tpus(self.launch, Patience(first=0.01, longest=0.02, whole=whole))
        shipped = Shipped([], "/nowhere.tar.gz", "0" * 64)
        self.watcher = Watcher(
            self.launch, shipped, self.tpus, lambda: self.now, self.sleep, self.said.append
        )

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)
        assert len(self.slept) < 20_000, self.said
        self.each(self)

    def over(self) -> str:
        return self.watcher.until_over().outcome

    def ends(self, *codes: int, hosts: int = 2) -> None:
        """What hosts of the newest request write as they end; those without a code do not."""
        folder = self.place / "ends" / self.watcher.identifier
        folder.mkdir(parents=True, exist_ok=True)
        for worker, code in enumerate(codes or [0] * hosts):
            (folder / f"0-{worker}.json").write_text(json.dumps({"code": code}))

    def saves(self, step: int) -> None:
        (self.place.parent / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)

    def events(self, kind: str) -> list[dict]:
        lines = (self.place / "events.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == kind]


def active(watched: Watched) -> bool:
    return watched.watcher.run.phase == "running"


def ends_well(watched: Watched) -> None:
    if active(watched):
        watched.ends(0, 0)


def test_a_request_comes_through_its_states_and_goes_when_the_run_has_ended(cloud, tmp_path):
    watched = Watched(cloud, tmp_path, ends_well)
    assert watched.over() == "done"
    assert cloud.names() == []
    [request] = [request for name, request in cloud.calls if name == "CreateQueuedResource"]
    node = request.queued_resource.tpu.node_spec[0]
    assert (node.node_id, node.node.accelerator_type) == ("run-a1", "v4-16")
    assert "ATTEMPT='run-a1'" in node.node.metadata["startup-script"]
    [deletion] = [request for name, request in cloud.calls if name == "DeleteQueuedResource"]
    assert deletion.force
    assert [x["attempt"] for x in watched.events("active")] == [1]


def test_missing_quota_is_one_message_and_asked_for_once(cloud, tmp_path):
    cloud.fail("CreateQueuedResource", Code.RESOURCE_EXHAUSTED, QUOTA)
    watched = Watched(cloud, tmp_path)
    with pytest.raises(UserError, match=r"could not ask for run-a1 in us-west4-a .*Limit: 0; ask "):
        watched.over()
    assert cloud.count("CreateQueuedResource") == 1
    assert cloud.names() == []


def test_missing_quota_that_is_found_later_is_given_up_and_deleted(cloud, tmp_path):
    cloud.plans.append(["ACCEPTED", f"FAILED: 8 {QUOTA}"])
    watched = Watched(cloud, tmp_path)
    assert "IAM & Admin > Quotas" in watched.over()
    assert cloud.names() == []


def test_stock_outs_are_waited_for_ever_longer(cloud, tmp_path):
    cloud.fail("CreateQueuedResource", Code.RESOURCE_EXHAUSTED, FULL, times=2)
    cloud.plans.append(["ACCEPTED", f"FAILED: 8 {FULL}"])
    watched = Watched(cloud, tmp_path, ends_well, backoff_seconds=100.0)
    assert watched.over() == "done"
    assert [x["name"] for x in watched.events("request")] == [f"run-a{n}" for n in (1, 2, 3, 4)]
    pauses = [watched.watcher.policy.pause(n, n) for n in (1, 2, 3)]
    assert all(50 * 2**n <= pause <= 100 * 2**n for n, pause in enumerate(pauses))
    asked = [f"asking again in {pause:.0f} s, {n} times in" for n, pause in enumerate(pauses, 1)]
    for line in asked:
        assert any(line in said for said in watched.said), watched.said
    assert cloud.names() == []


def test_stock_outs_are_waited_for_as_long_as_requests_wait(cloud, tmp_path):
    """However many: they are no failures of the run."""
    cloud.fail("CreateQueuedResource", Code.RESOURCE_EXHAUSTED, FULL, times=1000)
    watched = Watched(cloud, tmp_path, restarts=2, queue_hours=10.0)
    began = watched.now
    assert watched.over().startswith("no chips came within 10 hours (launch.queue_hours): could")
    assert 10 * 3600 < watched.now - began < 11 * 3600
    assert watched.events("over")
    assert "asking again in 0 s" not in watched.said[-1]
    assert cloud.count("CreateQueuedResource") > 20


def test_attempts_that_come_to_nothing_have_a_limit(cloud, tmp_path):
    cloud.plans.extend([["ACCEPTED", "PROVISIONING", "FAILED: 13 internal error"]] * 9)
    watched = Watched(cloud, tmp_path, restarts=2)
    outcome = watched.over()
    assert outcome.startswith("3 attempts in a row made no new checkpoint (launch.restarts=2)")
    assert "internal error" in outcome
    assert cloud.count("CreateQueuedResource") == 3
    assert cloud.names() == []


def test_a_new_checkpoint_makes_the_count_begin_anew(cloud, tmp_path):
    def each(watched):
        if active(watched) and watched.watcher.run.attempt < 6:
            watched.saves(watched.watcher.run.attempt)
            watched.ends(76, 76)
        elif active(watched):
            watched.ends(0, 0)

    watched = Watched(cloud, tmp_path, each, restarts=1)
    assert watched.over() == "done"
    lost = watched.events("lost")
    assert [line["saved"] for line in lost] == [1, 2, 3, 4, 5, 5]
    assert all(line["failures"] == 0 for line in lost)
    assert lost[0]["why"] == "host 0-0 missed another host (code 76), as did 1 more"


@pytest.mark.parametrize(
    ("method", "code", "message"),
    [
        ("CreateQueuedResource", Code.RESOURCE_EXHAUSTED, "Quota 'requests per minute' exceeded"),
        ("CreateQueuedResource", Code.UNAVAILABLE, "The service is currently unavailable."),
        ("GetQueuedResource", Code.RESOURCE_EXHAUSTED, "Too many requests"),
        ("GetQueuedResource", Code.UNAVAILABLE, "502: Bad Gateway"),
        ("DeleteQueuedResource", Code.INTERNAL, "internal error"),
        ("ListNodes", Code.DEADLINE_EXCEEDED, "Deadline Exceeded"),
    ],
)
def test_passing_errors_are_tried_again(method, code, message, cloud, tmp_path, capsys):
    cloud.fail(method, code, message, times=2)
    watched = Watched(cloud, tmp_path, ends_well)
    assert watched.over() == "done"
    assert message in capsys.readouterr().err
    requests = {r.request_id for name, r in cloud.calls if name == "CreateQueuedResource"}
    assert len(requests) == 1
    assert [x["name"] for x in watched.events("request")] == ["run-a1"]


@pytest.mark.parametrize("method", ["CreateQueuedResource", "DeleteQueuedResource"])
def test_a_request_whose_answer_is_lost_is_not_done_twice(method, cloud, tmp_path):
    cloud.lose(method)
    watched = Watched(cloud, tmp_path, ends_well)
    assert watched.over() == "done"
    assert cloud.names() == []
    assert [x["name"] for x in watched.events("request")] == ["run-a1"]


def test_an_api_that_is_away_for_long_is_waited_for(cloud, tmp_path):
    """The slices go on without it."""
    failed = []

    def each(watched):
        if active(watched) and not failed:
            failed.append(cloud.fail("GetQueuedResource", Code.UNAVAILABLE, "away", times=30))
        elif active(watched) and not cloud.faults["GetQueuedResource"]:
            watched.ends(0, 0)

    watched = Watched(cloud, tmp_path, each, whole=0.05)
    assert watched.over() == "done"
    assert any("away" in line and line.endswith("watching on") for line in watched.said)


@pytest.mark.parametrize(
    "plan",
    [
        ["ACCEPTED", "PROVISIONING", "SUSPENDING", "SUSPENDED"],
        ["ACCEPTED", "PROVISIONING", "FAILED: 13 an internal error"],
        ["ACCEPTED", "FAILED: 14 unavailable"],
    ],
)
def test_a_slice_that_dies_while_it_is_made_is_asked_for_again(plan, cloud, tmp_path):
    cloud.plans.append(plan)
    watched = Watched(cloud, tmp_path, ends_well)
    assert watched.over() == "done"
    [first, last] = watched.events("lost")
    assert (first["failures"], last["why"]) == (1, "the run has come to its end")
    assert cloud.count("DeleteQueuedResource") == 2
    assert cloud.names() == []


def test_a_node_that_is_lost_or_ill_for_long_ends_the_attempt(cloud, tmp_path):
    def each(watched):
        if not active(watched):
            return
        node = cloud.only().nodes[0]
        if watched.watcher.run.attempt == 1:
            node.state = tpu.Node.State.TERMINATED
        elif watched.watcher.run.attempt == 2:
            node.health = tpu.Node.Health.TIMEOUT
            node.health_description = "no answer"
        else:
            watched.ends(0, 0)

    watched = Watched(cloud, tmp_path, each)
    assert watched.over() == "done"
    assert [line["why"] for line in watched.events("lost")] == [
        "node run-a1 is TERMINATED",
        "node run-a2 is unhealthy, TIMEOUT: no answer",
        "the run has come to its end",
    ]


def test_an_error_that_a_restart_does_not_repair_is_the_end(cloud, tmp_path):
    """Also where the others noticed first that a host was gone."""

    def each(watched):
        if active(watched):
            watched.ends(76, 2)

    watched = Watched(cloud, tmp_path, each)
    assert watched.over() == (
        "host 0-1 ended with an error that a restart does not repair (code 2)"
    )
    assert cloud.count("CreateQueuedResource") == 1
    assert cloud.names() == []


def test_a_stop_deletes_what_has_saved(cloud, tmp_path):
    def each(watched):
        if active(watched):
            (watched.place / "stop").write_text("")
            watched.ends(75, 75)

    assert Watched(cloud, tmp_path, each).over() == "stopped"
    assert cloud.names() == []


def test_a_stop_before_a_slice_is_there(cloud, tmp_path):
    watched = Watched(cloud, tmp_path, lambda watched: (watched.place / "stop").write_text(""))
    assert watched.over() == "withdrawn"
    assert watched.events("active") == []
    assert cloud.names() == []


def test_a_request_that_somebody_else_deletes_is_not_made_again(cloud, tmp_path):
    def each(watched):
        if active(watched):
            watched.tpus.delete("run-a1")

    assert Watched(cloud, tmp_path, each).over() == "its request was deleted by somebody else"
    assert cloud.count("CreateQueuedResource") == 1


def test_logs_out_of_reach_do_not_end_a_run(cloud, tmp_path):
    def each(watched):
        (watched.place / "logs").mkdir(exist_ok=True)
        (watched.place / "logs/run-a1").touch()  # which is no folder
        ends_well(watched)

    watched = Watched(cloud, tmp_path, each)
    assert watched.over() == "done"
    lost = [line for line in watched.said if "the logs of the run is out of reach now" in line]
    assert len(lost) == 1, watched.said


def test_a_watcher_that_is_started_again_goes_on(cloud, tmp_path):
    """With the request that is there; what is left of older ones is deleted."""
    first = Watched(cloud, tmp_path)
    first.watcher.until_over(created=True)
    first.tpus.create("run-a2", "")
    first.tpus.create("other-run-a1", "")
    second = Watched(cloud, tmp_path, ends_well)
    assert second.over() == "done"
    assert "run-a1 is left of another attempt; deleting it" in second.said
    assert cloud.names() == ["other-run-a1"]
    assert cloud.count("CreateQueuedResource") == 3


def test_a_watcher_that_is_started_while_a_request_goes_asks_for_the_next(cloud, tmp_path):
    """The one before had deleted it for a loss; nobody else did."""
    first = Watched(cloud, tmp_path)
    first.watcher.until_over(created=True)
    first.tpus.delete("run-a1")
    second = Watched(cloud, tmp_path, ends_well)
    assert second.over() == "done"
    assert second.watcher.identifier == "run-a2"
    assert cloud.names() == []


def test_a_request_that_does_not_go_is_told_again(cloud, tmp_path):
    """And the run is not over before, nor is another asked for."""

    def each(watched):
        if active(watched):
            watched.ends(76, 76) if watched.watcher.run.attempt == 1 else watched.ends(0, 0)
        assert len(cloud.names()) <= 1

    cloud.ignore("DeleteQueuedResource")
    cloud.fail("DeleteQueuedResource", Code.FAILED_PRECONDITION, "it is being made")
    watched = Watched(cloud, tmp_path, each)
    assert watched.over() == "done"
    assert cloud.count("DeleteQueuedResource") == 4
    assert cloud.names() == []


def test_a_request_that_is_seen_late_is_waited_for(cloud, tmp_path):
    cloud.hide = 5
    assert Watched(cloud, tmp_path, ends_well).over() == "done"
    assert cloud.count("CreateQueuedResource") == 1


def test_requests_that_never_appear_have_a_limit(cloud, tmp_path):
    cloud.ignore("CreateQueuedResource", times=9)
    watched = Watched(cloud, tmp_path, restarts=2)
    assert watched.over().endswith("it was asked for, and the API does not know it")
    assert cloud.count("CreateQueuedResource") == 3


def test_an_api_that_never_answers_requests_is_given_up(cloud, tmp_path):
    """While it answers all else."""
    cloud.fail("CreateQueuedResource", Code.UNAVAILABLE, "502: Bad Gateway", times=10_000)
    watched = Watched(cloud, tmp_path, restarts=1, whole=0.1)
    assert "2 attempts in a row made no new checkpoint" in watched.over()
    assert [x["name"] for x in watched.events("request")] == ["run-a1", "run-a2"]
    assert any(line.endswith("looking whether it is there") for line in watched.said)


def test_a_request_all_of_whose_answers_are_lost_is_found(cloud, tmp_path):
    cloud.lose("CreateQueuedResource", times=10_000)
    watched = Watched(cloud, tmp_path, ends_well, whole=0.1)
    assert watched.over() == "done"
    assert [x["name"] for x in watched.events("request")] == ["run-a1"]


@pytest.mark.parametrize("comes", [True, False])
def test_a_request_at_which_a_launcher_was_interrupted_is_looked_for(comes, cloud, tmp_path):
    """Before the next is asked for: two attempts would be in each other's way."""
    first = Watched(cloud, tmp_path)
    first.watcher._event("request", attempt=1, name="run-a1")

    def each(watched):
        ends_well(watched)
        if comes and len(watched.slept) == 3:
            first.tpus.create("run-a1", "")

    second = Watched(cloud, tmp_path, each)
    assert second.over() == "done"
    assert second.watcher.identifier == ("run-a1" if comes else "run-a2")
    assert cloud.names() == []


def test_what_was_to_go_for_good_goes_and_is_not_asked_for_again(cloud, tmp_path):
    """By a launcher that was interrupted while it deleted the slices of a run that was done."""
    first = Watched(cloud, tmp_path, ends_well)
    cloud.ignore("DeleteQueuedResource")
    while not first.events("lost"):
        first.watcher._once(None)
        first.sleep(10)
    second = Watched(cloud, tmp_path)
    assert second.over() == "done"
    assert cloud.count("CreateQueuedResource") == 1
    assert cloud.names() == []


def test_a_launcher_that_was_overtaken_while_it_looked_does_nothing(cloud, tmp_path):
    """Its network was away, and another has taken over."""
    first = Watched(cloud, tmp_path)
    first.watcher.until_over(created=True)
    first.tpus.delete("run-a1")
    assert first.tpus.of_launch()
    second = Watched(cloud, tmp_path)
    second.watcher.until_over(created=True)
    assert cloud.names() == ["run-a2"]
    with pytest.raises(UserError, match="run-a2 was asked for by another launcher, so this one"):
        first.watcher.until_over()
    late = Held(1)
    before = first.watcher.run
    first.watcher.run = lifecycle.Run("waiting", 2, since=0.0)
    first.watcher._once(late)
    assert cloud.names() == ["run-a2"]
    assert before.phase != "over"


def test_nothing_is_asked_for_before_it_is_known_whether_to_stop(cloud, tmp_path, monkeypatch):
    watched = Watched(cloud, tmp_path)
    (watched.place / "stop").write_text("")
    exists, away = type(watched.watcher.place).exists, [True] * 5

    def look(path):
        if path.name == "stop" and away:
            away.pop()
            raise OSError("no way there")
        return exists(path)

    monkeypatch.setattr(type(watched.watcher.place), "exists", look)
    assert watched.over() == "withdrawn"
    assert cloud.count("CreateQueuedResource") == 0


def test_one_loss_is_counted_once(cloud, tmp_path):
    """Also by a launcher that is started again before the slices are gone."""
    first = Watched(cloud, tmp_path)
    first.each = lambda w: w.ends(76, 76) if active(w) else None
    while not first.events("lost"):
        first.watcher._once(None)
        first.sleep(10)
    cloud.only().become("ACTIVE")
    cloud.only().coming.clear()  # the deletion has come to nothing
    second = Watched(cloud, tmp_path, ends_well)
    assert second.over() == "done"
    assert [x["failures"] for x in second.events("lost")] == [1, 1]
    assert second.watcher.identifier == "run-a2"


def test_what_an_end_means_waits_for_what_was_saved(cloud, tmp_path, monkeypatch):
    """A launcher that is started again where the run has saved and can not be read at first."""
    Watched(cloud, tmp_path).watcher.until_over(created=True)
    watched = Watched(
        cloud, tmp_path, lambda w: w.ends(2, 76) if not w.events("lost") else ends_well(w)
    )
    watched.saves(500)
    steps_in, away = watch.saves.steps_in, [True] * 9

    def look(workdir):
        if away:
            away.pop()
            raise OSError("no way there")
        return steps_in(workdir)

    monkeypatch.setattr(watch.saves, "steps_in", look)
    assert watched.over() == "done"


def test_a_damaged_record_of_an_end_is_an_end(cloud, tmp_path):
    def each(watched):
        if active(watched) and watched.watcher.run.attempt == 1:
            watched.ends(76, 76)
            (watched.place / "ends/run-a1/0-0.json").write_text("")
        else:
            ends_well(watched)

    watched = Watched(cloud, tmp_path, each)
    assert watched.over() == "done"
    assert watched.events("lost")[0]["why"] == "host 0-0 failed (code 1), as did 1 more"


def test_create_is_not_over_before_the_api_knows(cloud, tmp_path):
    cloud.fail("CreateQueuedResource", Code.UNAVAILABLE, "away", times=10_000)
    watched = Watched(cloud, tmp_path, restarts=0, whole=0.1)
    assert watched.watcher.until_over(created=True).phase == "over"


def test_names_whose_hosts_have_left_records_are_not_used_again(cloud, tmp_path):
    """Also where the record of events is lost: those of an older host would end the new run."""
    (tmp_path / "run/launch/logs/run-a7").mkdir(parents=True)
    watched = Watched(cloud, tmp_path, ends_well)
    assert watched.over() == "done"
    assert watched.watcher.identifier == "run-a8"


def test_another_run_of_the_same_name_is_left_alone(cloud, tmp_path):
    """It was begun while nothing of this one was to be seen."""
    other = Watched(cloud, tmp_path / "other")

    def each(watched):
        ends_well(watched)
        if not cloud.names():
            other.tpus.create("run-a9", "")

    watched = Watched(cloud, tmp_path, each)
    watched.watcher.run = lifecycle.Run("waiting", 1, since=0.0, until=watched.now + 30)
    assert watched.over() == "done"
    assert cloud.names() == ["run-a9"]


def test_a_record_that_can_not_be_written_ends_nothing(cloud, tmp_path):
    """What is lost is deleted, but nothing is asked for under a name that is not on record."""
    record = tmp_path / "run/launch/events.jsonl"

    def each(watched):
        if active(watched) and watched.watcher.run.attempt == 1:
            record.rename(record.with_name("kept"))
            record.mkdir()
            watched.ends(76, 76)
        elif active(watched):
            watched.ends(0, 0)
        elif record.is_dir() and watched.watcher.run.phase == "waiting" and not cloud.names():
            assert cloud.count("CreateQueuedResource") == 1
            if len(watched.slept) > 30:
                record.rmdir()
                record.with_name("kept").rename(record)

    watched = Watched(cloud, tmp_path, each)
    assert watched.over() == "done"
    assert (
        len([line for line in watched.said if "the record of the run is out of reach" in line]) == 1
    )
    kinds = [json.loads(line)["event"] for line in record.read_text().splitlines()]
    assert kinds == ["request", "asked", "active", "lost"] * 2 + ["over"]
    assert cloud.names() == []


class Held:
    """A lock of which it is not known whether it is held, for so many questions."""

    def __init__(self, times: int, error: type[UserError] = Unrenewed):
        self.times, self.error = times, error

    def check(self) -> None:
        self.times -= 1
        if self.times >= 0:
            raise self.error("lease.json could not be renewed in time")


def test_a_lease_that_is_late_is_waited_for(cloud, tmp_path):
    watched = Watched(cloud, tmp_path, ends_well)
    assert watched.watcher.until_over(Held(3)).outcome == "done"
    assert (
        len([line for line in watched.said if "the lease of the run is out of reach" in line]) == 1
    )
    with pytest.raises(UserError, match="could not be renewed"):
        Watched(cloud, tmp_path).watcher.until_over(Held(1, UserError))


def test_two_launchers_of_one_run_are_one_too_many(cloud, tmp_path):
    watched = Watched(cloud, tmp_path)
    second = pytest.raises(UserError, match=r"another launcher watches the run in .*: process \d+")
    with watch.alone(watched.launch), second, watch.alone(watched.launch):
        pass
    with watch.alone(watched.launch):
        pass


def test_runs_of_one_name_in_two_folders_are_kept_apart(cloud, tmp_path):
    """Neither is gone on with, or deleted, for the other."""
    first = Watched(cloud, tmp_path / "a")
    first.watcher.until_over(created=True)
    wrong = r"queuedResources/run-a1 is of a run in another --workdir than .*/b/run; give this one "
    with pytest.raises(UserError, match=wrong):
        Watched(cloud, tmp_path / "b")
    assert cloud.names() == ["run-a1"]


def test_of_two_runs_of_one_name_that_start_at_once_the_second_is_refused(cloud, tmp_path):
    """Both saw nothing when they started."""
    first, second = (Watched(cloud, tmp_path / folder) for folder in "ab")
    first.watcher.until_over(created=True)
    with pytest.raises(UserError, match=r"run-a1 is of a run in another --workdir than .*/b/run;"):
        second.watcher.until_over(created=True)
    assert cloud.names() == ["run-a1"]
    assert first.tpus.get("run-a1") is not None


def test_logs_of_pods_in_the_same_folder_are_no_attempts(tmp_path):
    for name in ("run-a10", "run-a9", "run-0"):
        (tmp_path / "logs" / name).mkdir(parents=True)
    assert Logs(str(tmp_path), print).attempts() == ["run-a9", "run-a10"]


def test_several_slices_are_one_request(cloud, tmp_path):
    def each(watched):
        if active(watched):
            folder = watched.place / "ends/run-a1"
            folder.mkdir(parents=True, exist_ok=True)
            for host in ("0-0", "0-1", "1-0", "1-1"):
                (folder / f"{host}.json").write_text('{"code": 0}')

    watched = Watched(cloud, tmp_path, each, slices=2)
    names = []
    watched.each = lambda w: (each(w), names.extend(node.name for node in w.tpus.nodes("run-a1")))
    assert watched.over() == "done"
    assert {name.rpartition("/")[2] for name in names} == {"run-a1-0", "run-a1-1"}


def test_a_login_that_has_expired_ends_the_watch_with_what_to_do(cloud, tmp_path):
    expired = "Getting metadata from plugin failed with error: Reauthentication is needed."
    cloud.fail("GetQueuedResource", Code.UNAVAILABLE, expired)
    with pytest.raises(UserError, match="log in: gcloud auth application-default login"):
        Watched(cloud, tmp_path).over()
    assert cloud.names() == ["run-a1"]


def test_an_operation_is_waited_for(cloud, tmp_path):
    cloud.late_operations = True
    assert Watched(cloud, tmp_path, ends_well).over() == "done"
    assert cloud.count("GetOperation") == 1


def test_an_operation_that_fails_is_as_a_request_that_does(cloud, tmp_path):
    cloud.fail_operation("CreateQueuedResource", 8, FULL)
    watched = Watched(cloud, tmp_path, ends_well)
    assert watched.over() == "done"
    assert [x["name"] for x in watched.events("request")] == ["run-a1", "run-a2"]
