"""The commands of launch.tpu as a person gives them, against a local Cloud TPU; and what they would
send, word for word, in tests/golden."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time

import grpc
import pytest

from launch import spec, tpu
from launch.watch import Shipped
from tests.conftest import ROOT
from tests.fake_cloud_tpu import FakeCloudTpu
from tests.runs import PATIENCE, Process

HERE = ["--project=my-project", "--zone=us-west4-a", "--accelerator=v4-16", "--poll_seconds=0.1"]
SMALL = ["--config=configs/demo.py", "--config.model.vocab=300", "--yes", "--noplan"]


@pytest.fixture
def cloud(tmp_path):
    with FakeCloudTpu(tmp_path / "cloud") as cloud:
        yield cloud


@pytest.fixture
def start(cloud, tmp_path):
    """start("run", ...): a process of launch.tpu."""
    started = []

    def make(*command: str) -> Process:
        log = tmp_path / f"{len(started)}.log"
        flags = [*HERE, f"--workdir={tmp_path / 'run'}"]
        line = [sys.executable, "-m", "launch.tpu", *command, *flags]
        started.append(Process(line, log, more={"BIOMEDLM_TPU_ENDPOINT": cloud.endpoint}))
        return started[-1]

    yield make
    for process in started:
        process.popen.kill()
        process.popen.wait()


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_an_interrupted_launcher_says_what_still_costs_and_how_to_end_it(
    cloud, start, store, tmp_path
):
    """Ctrl-C, two launchers, status, logs, and the very command that it says."""
    settings = [*SMALL, f"--config.data.store={store}"]
    run = start("run", *settings)
    run.until("^run-a1 is there; 8 chips cost ")
    second = start("run", *settings)
    assert second.wait() == 2, second.said
    assert re.search(r"another launcher watches the run in .*: process \d+ on ", second.said)
    place = tmp_path / "run/launch"
    (place / "logs/run-a1").mkdir(parents=True)
    (place / "logs/run-a1/0-1.log").write_text("a line\nand half a")
    run.until(r"^\[0-1\] a line$")

    shown, log = start("status"), start("logs", "--host=0-1")
    nobody = start("logs", "--host=0-0", "--attempt=run-a7")
    run.send(signal.SIGINT)
    assert run.wait() == 130, run.said
    assert "Traceback" not in run.said
    command, last = run.said.partition("interrupted. What ends all of it:\n  ")[2].splitlines()
    assert last.startswith(
        "projects/my-project/locations/us-west4-a/queuedResources/run-a1 (ACTIVE) goes on"
    )
    assert "8 chips cost $25.76 an hour" in last
    assert cloud.names() == ["run-a1"]
    assert [process.wait() for process in (shown, log, nobody)] == [0, 0, 0]
    assert "queuedResources/run-a1  ACTIVE\n  run-a1  READY  HEALTHY\n" in shown.said
    assert "newest checkpoint  0\n" in shown.said
    assert log.said == "[0-1] a line\n"
    assert nobody.said == ""

    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "launch.tpu"]
    line = [sys.executable, *words[1:], "--poll_seconds=0.1"]
    endpoint = {"BIOMEDLM_TPU_ENDPOINT": cloud.endpoint}
    refused = Process(line, tmp_path / "refused.log", more=endpoint)  # for nobody says yes
    assert refused.wait() == 2
    assert "nothing was deleted" in refused.said
    done = Process([*line, "--yes"], tmp_path / "delete.log", more=endpoint)
    assert done.wait() == 0, done.said
    assert done.said == "run-a1 is deleted\n"
    assert cloud.names() == []


def test_an_interrupted_launcher_deletes_where_it_is_told_to(cloud, start, store):
    settings = [*SMALL, f"--config.data.store={store}", "--delete_on_interrupt"]
    run = start("run", *settings)
    run.until("^run-a1 is there")
    run.send(signal.SIGINT)
    assert run.wait() == 130, run.said
    assert run.said.endswith("run-a1 is deleted\n")
    assert cloud.names() == []


def test_what_an_interrupted_launcher_can_not_delete_is_named(cloud, start, store):
    run = start("run", *SMALL, f"--config.data.store={store}", "--delete_on_interrupt")
    run.until("^run-a1 is there")
    cloud.fail("DeleteQueuedResource", grpc.StatusCode.PERMISSION_DENIED, "it is protected")
    run.send(signal.SIGINT)
    assert run.wait() == 2, run.said
    assert "could not delete run-a1 in us-west4-a of my-project: it is protected" in run.said
    assert re.search("not all is deleted\n.*/run-a1 .ACTIVE. goes on without this", run.said)
    assert "launch.tpu delete --name=run --project=my-project" in run.said
    assert cloud.names() == ["run-a1"]


def test_what_is_created_is_stopped_without_a_watcher(cloud, start, store, tmp_path):
    """`stop` sees to it itself."""
    created = start("create", *SMALL, f"--config.data.store={store}")
    assert created.wait() == 0, created.said
    assert "Nobody watches it: python -m launch.tpu run" in created.said
    assert "launch.tpu delete --name=run --project=my-project" in created.said
    assert list((tmp_path / "run/launch/archives").glob("biomedlm-*.tar.gz"))
    [(name, request)] = cloud.queued.items()
    while request.coming:
        cloud._advance(name, request)
    stopped = start("stop")
    stopped.until("see .*run/launch/stop within 0.1 s, save and end")
    folder = tmp_path / "run/launch/ends/run-a1"
    folder.mkdir(parents=True)
    for worker in range(2):
        (folder / f"0-{worker}.json").write_text('{"code": 75}')
    assert stopped.wait() == 0, stopped.said
    assert stopped.said.endswith("the run has saved and stopped, and nothing is left running\n")
    assert cloud.names() == []
    again = start("stop")
    assert again.wait() == 0
    assert again.said.endswith("nothing runs by the name run\n")
    assert not (tmp_path / "run/launch/stop").exists()


@pytest.mark.parametrize("end", ["stop", "delete"])
def test_between_two_attempts_as_well(end, cloud, start, store, tmp_path):
    """The launcher that waits asks for nothing more."""
    cloud.plans.append(["ACCEPTED", "FAILED: 13 an internal error"])
    (tmp_path / "run/checkpoints/5000").mkdir(parents=True)
    long = ["--backoff_seconds=3600", "--backoff_limit_seconds=3600"]
    run = start("run", *SMALL, *long, f"--config.data.store={store}")
    run.until("asking again in")
    ended = start(end, "--yes")
    assert ended.wait() == 0, ended.said
    assert re.search(r"another launcher watches the run in .*: process \d+ on ", ended.said)
    assert run.wait() == 0, run.said
    assert run.said.endswith("nothing runs, and nothing is asked for; the newest checkpoint is "
                             "of step 5,000\n")  # fmt: skip
    assert cloud.count("CreateQueuedResource") == 1
    assert cloud.names() == []


def test_a_launcher_that_is_interrupted_while_it_asks_says_what_may_come(
    cloud, start, store, tmp_path
):
    going = cloud.hold("CreateQueuedResource")
    run = start("run", *SMALL, f"--config.data.store={store}")
    until(lambda: cloud.count("CreateQueuedResource"))
    run.send(signal.SIGTERM)
    assert run.wait() == 130, run.said
    assert "run-a1 was asked for, is not there yet, and may come; then 8 chips" in run.said
    assert "launch.tpu delete --name=run --project=my-project" in run.said
    ended = start("delete", "--yes")
    ended.until("^run-a1 was asked for and may still come; looking for")
    going.set()
    assert ended.wait() == 0, ended.said
    assert ended.said.endswith("run-a1 is deleted\n")
    assert cloud.names() == []
    events = (tmp_path / "run/launch/events.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["event"] for line in events]
    assert kinds == ["request", "interrupted", "deleted"]  # so that nobody looks for it again


def test_what_was_deleted_by_a_person_is_not_asked_for_again(cloud, start, store):
    run = start("run", *SMALL, f"--config.data.store={store}")
    run.until("^run-a1 is there")
    ended = start("delete", "--yes")
    assert ended.wait() == 0, ended.said
    assert run.wait() == 2, run.said
    assert run.said.endswith("given up, and nothing is left running: its request was deleted by "
                             "somebody else\n")  # fmt: skip
    assert cloud.names() == []


def test_a_folder_without_a_run_has_nothing_to_stop(start, tmp_path):
    stopped = start("stop")
    assert stopped.wait() == 2
    assert f"--workdir={tmp_path / 'run'} has no run of launch.tpu" in stopped.said
    assert not (tmp_path / "run").exists()


def test_what_is_given_up_leaves_nothing_and_says_why(cloud, start, store):
    cloud.plans.append(["ACCEPTED", "FAILED: 8 Quota limit 'TPUV4' has been exceeded. Limit: 0"])
    run = start("run", *SMALL, f"--config.data.store={store}")
    assert run.wait() == 2
    assert "error: given up, and nothing is left running: the request failed: Quota" in run.said
    assert cloud.names() == []


@pytest.mark.parametrize("command", ["create", "delete"])
def test_all_that_is_wrong_is_said_at_once(command):
    flags = ["--accelerator=v5e-250", "--name=A", "--project=P", "--workdir=gs://my-bucket/run"]
    line = [sys.executable, "-m", "launch.tpu", command, *flags, "--config=configs/demo.py"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    for said in (
        "--accelerator='v5e-250' is nothing that can be rented; nearest are v5e-256 and",
        "--name='A' would be refused",
        "--project='P' is no project",
        "--zone is missing",
    ):
        assert said in done.stderr
    gpus = [*line[:4], "--accelerator=h100-8", "--project=my-project", "--zone=us-west4-a"]
    gpus += ["--workdir=gs://my-bucket/run", "--config=configs/demo.py"]
    done = subprocess.run(gpus, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--accelerator=h100-8 is no TPU; GPUs are launch.gke's" in done.stderr


def test_commands_that_are_none():
    for command, message in [
        (["crate"], "'crate' is no command of launch.tpu; say one of create, run, status"),
        ([], "'nothing' is no command of launch.tpu"),
    ]:
        line = [sys.executable, "-m", "launch.tpu", *command]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert message in done.stderr


LAUNCHES = {
    "v5e_256_spot": dict(accelerator="v5e-256", zone="us-west4-a", capacity="spot"),
    "v5p_256_reserved": dict(
        accelerator="v5p-256", zone="us-east5-a", capacity="reserved", reservation="my-reservation"
    ),
    "two_v5e_256": dict(accelerator="v5e-256", zone="us-west4-a", slices=2),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_golden_requests_of_the_published_recipe(name, golden):
    launch = spec.read(
        spec.DEFAULT,
        {
            "config": "configs/pretrain_2p7b.py",
            "project": "my-project",
            "workdir": "gs://my-bucket/runs/pretrain-2p7b",
            **LAUNCHES[name],
        },
    )
    store = "--config.data.store=gs://my-bucket/pubmed/store"
    archive = f"{launch.place}/archives/biomedlm-0123456789ab-0123456789ab.tar.gz"
    found = tpu.dry_create(launch, Shipped([store], archive, "0123456789ab" + "0" * 52))
    assert found == golden(f"launch_tpu_{name}.txt", found)


OTHERS = """
import sys
from absl import flags
from launch import tpu
tpu.define_flags()
flags.FLAGS(sys.argv)
for command in ("status", "logs", "stop", "delete"):
    print(f"$ python -m launch.tpu {command}", *sys.argv[1:])
    tpu.main(command, [])
    print()
"""


def test_golden_requests_of_the_other_commands(golden):
    """No server is there, so that nothing can be asked."""
    flags = ["--dry_run", "--project=my-project", "--zone=us-west4-a", "--accelerator=v5e-256"]
    flags.append("--workdir=gs://my-bucket/runs/pretrain-2p7b")
    line = [sys.executable, "-c", OTHERS, *flags]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == golden("launch_tpu_others.txt", done.stdout)
