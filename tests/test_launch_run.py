"""A run of two hosts that are processes here, on a Cloud TPU that is one as well: it is preempted
three times, and ends as a run that was not."""

import json
import sys
import time

import jax
import numpy as np
import pytest

from biomedlm_jax import checkpoint
from tests.conftest import ROOT
from tests.fake_cloud_tpu import FakeCloudTpu
from tests.runs import PATIENCE, Process, ends, lines, losses, running

SHORT = [
    "--config.model.vocab=300",
    "--config.model.layers=2",
    "--config.model.context=32",
    "--config.data.batch=8",
    "--config.run.steps=60",
    "--config.run.save_every=10",
    "--config.run.eval_every=30",
    "--config.run.eval_batches=1",
    "--config.run.sample_tokens=0",
    "--config.run.wait_seconds=20",
    "--config.optimizer.warmup_steps=5",
]
LAUNCH = [
    "--project=my-project",
    "--zone=us-west4-a",
    "--accelerator=v4-16",
    "--spot",
    f"--python={sys.executable}",
    "--poll_seconds=0.3",
    "--backoff_seconds=0.1",
    "--backoff_limit_seconds=0.2",
]


def launched(cloud: FakeCloudTpu, log, command: str, *flags: str) -> Process:
    return Process(
        [sys.executable, "-m", "launch.tpu", command, *LAUNCH, *flags],
        log,
        more={"BIOMEDLM_TPU_ENDPOINT": cloud.endpoint},
    )


def saved(workdir) -> int:
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


@pytest.mark.slow
def test_three_preemptions_leave_the_parameters_as_they_would_have_been(store, tmp_path):
    settings = [*SHORT, f"--config.data.store={store}"]
    workdir, whole = tmp_path / "preempted/run", tmp_path / "whole/run"
    whole.parent.mkdir()
    with running(ROOT / "configs/demo.py", whole, *settings, logs=tmp_path) as undisturbed:
        assert ends(undisturbed) == [0, 0], undisturbed[0].said
    with FakeCloudTpu(tmp_path / "cloud", hosts=True) as cloud:
        flags = ["--config=configs/demo.py", f"--workdir={workdir}", "--yes", "--noplan"]
        run = launched(cloud, tmp_path / "run.log", "run", *flags, *settings)
        try:
            for how in ("all", "last", "gently"):
                before, deadline = saved(workdir), time.monotonic() + PATIENCE
                while saved(workdir) <= before:
                    assert run.popen.poll() is None, run.said
                    assert time.monotonic() < deadline, run.said
                    time.sleep(0.01)
                cloud.preempt(how)
                attempts = cloud.count("CreateQueuedResource")
                while cloud.count("CreateQueuedResource") == attempts:
                    assert run.popen.poll() is None, run.said
                    assert time.monotonic() < deadline, run.said
                    time.sleep(0.01)
            assert run.wait() == 0, run.said
        finally:
            run.popen.kill()
            run.popen.wait()
        assert cloud.names() == []
    assert losses(workdir) == losses(whole)
    (_, ours, step), (_, theirs, last) = checkpoint.load(workdir), checkpoint.load(whole)
    assert step == last == 60
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, ours, theirs)))

    said = run.said
    assert "[0-0] step 60/60" in said
    assert "[0-1] " in said
    assert said.endswith("the run is done, and nothing is left running\n")
    events = [json.loads(x) for x in (workdir / "launch/events.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds == ["request", "asked", "active", "lost"] * 4 + ["over"]
    lost = [event for event in events if event["event"] == "lost"]
    assert [event["saved"] for event in lost] == sorted(event["saved"] for event in lost)
    assert all(0 < event["goodput"] < 1 for event in lost)
    assert events[-1]["outcome"] == "done"
    codes = {
        path.parent.name: json.loads(path.read_text())["code"]
        for path in sorted((workdir / "launch/ends").glob("*/0-0.json"))
    }
    assert codes == {"run-a2": 76, "run-a3": 75, "run-a4": 0}


@pytest.mark.slow
def test_two_slices_are_one_run(store, tmp_path):
    """Of one host each, which find each other by what the metadata server says of slices."""
    settings = [*SHORT, f"--config.data.store={store}", "--config.run.steps=10"]
    workdir = tmp_path / "run"
    with FakeCloudTpu(tmp_path / "cloud", hosts=True) as cloud:
        flags = ["--config=configs/demo.py", f"--workdir={workdir}", "--yes", "--noplan"]
        flags += ["--accelerator=v4-8", "--slices=2"]
        run = launched(cloud, tmp_path / "run.log", "run", *flags, *settings)
        try:
            assert run.wait() == 0, run.said
        finally:
            run.popen.kill()
            run.popen.wait()
        assert cloud.names() == []
    assert "[0-0] step 10/10" in run.said
    assert "[1-0] host 1-0 of run-a1 ends with code 0" in run.said
    [start] = [line for line in lines(workdir, "events") if line["event"] == "start"]
    assert (start["processes"], start["devices"]) == (2, 8)
