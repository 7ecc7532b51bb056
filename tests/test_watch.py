"""What watches over a run: hangs, SIGTERM, profiles."""

import os
import signal
import subprocess
import sys
import threading

import jax
import pytest

from biomedlm_jax import watch
from tests.conftest import ROOT

HANGS = """
import sys, time
from pathlib import Path
from biomedlm_jax.watch import Watchdog

dog = Watchdog(1, Path(sys.argv[1]))
if sys.argv[2] == "patient":
    with dog.paused():
        time.sleep(1.5)
    dog.allow(2.5)
    time.sleep(1.5)
print("so far", flush=True)
dog.beat("step 12")

def stuck():
    time.sleep(60)

stuck()
"""


@pytest.mark.parametrize(
    ("place", "before"), [("stacks.txt", "patient"), ("no such folder/stacks.txt", "at once")]
)
def test_a_hang_ends_with_the_stacks_of_all_threads(place, before, tmp_path):
    file = tmp_path / place
    found = subprocess.run(
        [sys.executable, "-c", HANGS, str(file), before], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 76
    assert found.stdout == "so far\n"
    assert "s: step 12, since 2" in found.stderr
    assert "in stuck" in found.stderr
    if file.parent == tmp_path:
        assert "step 12" in file.read_text().splitlines()[0]
        assert "in stuck" in file.read_text()
        assert f"above and in {file}" in found.stderr
    else:
        assert "can not be written (No such file or directory)" in found.stderr


def test_a_watchdog_of_0_seconds_never_bites():
    before = threading.active_count()
    dog = watch.Watchdog(0, None)
    dog.beat("step 1")
    assert threading.active_count() == before
    dog.close()


def test_sigterm_is_remembered_until_it_is_asked_for():
    before = signal.getsignal(signal.SIGTERM)
    preemption = watch.Preemption()
    assert not preemption.requested(0)
    os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.requested(1)
    assert preemption.requested(2)
    preemption.close()
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_signals_are_left_alone(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    found = []

    def work():
        preemption, profiler = watch.Preemption(), watch.Profiler(tmp_path, None)
        found.extend(signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1))
        assert not preemption.requested(0)
        preemption.close()
        profiler.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == before


def test_steps_are_profiled_when_asked(monkeypatch, capsys):
    calls, now = [], 0
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append((now, folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append((now, "end")))
    before = signal.getsignal(signal.SIGUSR1)
    profiler = watch.Profiler("gs://bucket/run/profile", at=3, steps=2)
    for now in range(12):
        if now == 7:
            os.kill(os.getpid(), signal.SIGUSR1)
        profiler.step(now)
    os.kill(os.getpid(), signal.SIGUSR1)
    profiler.step(12)
    now = 13
    profiler.close()
    assert signal.getsignal(signal.SIGUSR1) == before
    assert calls == [
        (3, "gs://bucket/run/profile/3"), (5, "end"),
        (7, "gs://bucket/run/profile/7"), (9, "end"),
        (11, "gs://bucket/run/profile/12"), (13, "end"),
    ]  # fmt: skip
    assert "gs://bucket/run/profile/7" in capsys.readouterr().out


def test_a_profile_is_a_folder_that_tensorboard_reads(tmp_path):
    profiler = watch.Profiler(tmp_path, at=0, steps=1)
    profiler.step(0)
    jax.block_until_ready(jax.numpy.ones(4) + 1)
    profiler.step(1)
    profiler.close()
    assert list((tmp_path / "0").rglob("*.xplane.pb"))
