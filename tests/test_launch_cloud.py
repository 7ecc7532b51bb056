"""A launcher whose run is on gs://, where its hosts write: what is new is seen, and what is out of
reach keeps nothing from being deleted."""

import sys

import pytest

from launch import spec, tpu_api
from launch.lifecycle import SILENCE
from launch.tpu_api import Tpus
from tests.bucket import python, serving
from tests.fake_cloud_tpu import FakeCloudTpu
from tests.runs import Process, free_port

WATCHES = """
import json, os, pathlib, subprocess, sys
from launch import tpu_api
from tests.fake_cloud_tpu import FakeCloudTpu
from tests.test_launch_watch import Watched, active

HOSTS = '''
import json, sys
from biomedlm_jax import saves
from etils import epath
for line in sys.stdin:
    path, text = json.loads(line)
    epath.Path(path).write_text(text)
    print("written", flush=True)
'''
hosts = subprocess.Popen([sys.executable, "-c", HOSTS], stdin=-1, stdout=-1, text=True)

def write(path, text):
    print(json.dumps([f"gs://corpus/runs/one/{path}", text]), file=hosts.stdin, flush=True)
    hosts.stdout.readline()

def each(watched):
    if not active(watched):
        return
    looks.append(watched.watcher.known["saved"])
    write("launch/logs/run-a1/0-0.log", "line\\n" * len(looks))
    if len(looks) == 5:
        write("checkpoints/4/commit_success.txt", "")
        write("checkpoints/4/position/metadata", "{}")
    if len(looks) == 35:
        write("launch/ends/run-a1/0-0.json", json.dumps(dict(code=0)))
    if len(looks) == 37:
        write("launch/ends/run-a1/0-1.json", json.dumps(dict(code=0)))

looks, tmp = [], pathlib.Path(sys.argv[1])
with FakeCloudTpu(tmp / "cloud") as cloud:
    os.environ[tpu_api.ENDPOINT] = cloud.endpoint
    fields = dict(workdir="gs://corpus/runs/one", name="run", poll_seconds=60.0)
    watched = Watched(cloud, tmp, each, **fields)
    print(watched.over(), len(looks), looks[-1], watched.said.count("[0-0] line"))
hosts.stdin.close()
"""


def test_what_hosts_write_is_seen(tmp_path):
    """By a process that has looked before there was anything: lines in the logs for longer than
    silence may last, a checkpoint, and how one host and then the other ended."""
    assert SILENCE < 35 * 60
    with serving("corpus") as (environment, _):
        assert python(environment, WATCHES, tmp_path) == "done 37 4 37\n"


@pytest.mark.slow
def test_a_bucket_out_of_reach_keeps_nothing_from_being_deleted(tmp_path, monkeypatch):
    """Here nothing listens where it should be, and gcsfs tries for a minute at each look."""
    with FakeCloudTpu(tmp_path / "cloud") as cloud:
        flags = ["--project=my-project", "--zone=us-west4-a", "--accelerator=v4-16"]
        flags += ["--workdir=gs://corpus/run", "--poll_seconds=0.1", "--yes"]
        address = f"http://127.0.0.1:{free_port()}"
        more = {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}
        more |= {tpu_api.ENDPOINT: cloud.endpoint}
        monkeypatch.setenv(tpu_api.ENDPOINT, cloud.endpoint)
        fields = dict(project="my-project", zone="us-west4-a", accelerator="v4-16")
        launch = spec.read(spec.DEFAULT, {**fields, "workdir": "gs://corpus/run"})
        Tpus(launch).create("run-a1", "")
        line = [sys.executable, "-m", "launch.tpu", "delete", *flags]
        process = Process(line, tmp_path / "delete.log", more=more)
        assert process.wait() == 0, process.said
        assert cloud.names() == []
    assert "deleting nevertheless" in process.said
    assert "run-a1 is deleted" in process.said
    assert "Traceback" not in process.said
