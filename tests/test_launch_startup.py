"""The script that hosts run when they start, as it is, with a small repository in place of this
one: what its program says stands in the log, and how it ended in a record, whatever happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import bundle, spec, startup
from tests.bucket import COPY, python, serving
from tests.conftest import ROOT
from tests.fake_cloud_tpu import Host
from tests.runs import PATIENCE

PROGRAM = """
import pathlib, signal, sys, time
print("run with", *sys.argv[1:])
print("of", sys.prefix, sys.version_info[:2])
code = int(pathlib.Path("code").read_text())
def told(*_):
    print("told to stop")
    sys.exit(75)
signal.signal(signal.SIGTERM, told)
if code < 0:
    print("waiting")
    time.sleep(600)
sys.exit(code)
"""


@pytest.fixture
def repository(tmp_path):
    """repository(code): a work tree whose program ends with that, or with -1 not by itself."""

    def make(code: int):
        root = tmp_path / "repository"
        (root / "biomedlm_jax").mkdir(parents=True)
        (root / "biomedlm_jax/main.py").write_text(PROGRAM)
        (root / "code").write_text(str(code))
        (root / "requirements.txt").write_text("")
        (root / "pyproject.toml").write_text(
            '[project]\nname = "small"\nversion = "1"\n[project.optional-dependencies]\ntpu = []\n'
            '[tool.setuptools]\npackages = ["biomedlm_jax"]\n'
        )
        for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "A program"]):
            user = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
            subprocess.run(["git", "-C", str(root), *user, *command], check=True)
        return root

    return make


@pytest.fixture
def start(tmp_path, repository):
    """start(code, ...): a host that runs the script. workdir: of the run. attributes: of the host
    in the metadata server. sha256: None is the right one. more: in its environment."""
    hosts = []

    def make(code, workdir=None, attributes=None, sha256=None, more=None, **fields):
        workdir = workdir or str(tmp_path / "run")
        given = {"config": "configs/demo.py", "workdir": workdir, "accelerator": "v4-8"}
        given |= {"python": sys.executable, "poll_seconds": 0.05, **fields}
        launch = spec.read(spec.DEFAULT, given)
        packed = bundle.make(repository(code))
        archive = packed.path(launch.place)
        if not launch.bucket:
            bundle.upload(packed, launch.place)
        script = startup.script(launch, ["--x=a b"], "run-a1", archive, sha256 or packed.sha256)
        known = {"agent-worker-number": "3", "tpu-env": "ZONE: 'z'\n", **(attributes or {})}

        def go():
            hosts.append(Host(tmp_path / "host", script, known, more or {}))
            return hosts[-1]

        return (packed, go) if launch.bucket else go()

    yield make
    for host in hosts:
        host.kill()


def left(tmp_path, name="0-3"):
    """(exit code on record, log)"""
    place = tmp_path / "run/launch"
    record = json.loads((place / f"ends/run-a1/{name}.json").read_text())
    assert record["host"] == name
    return record["code"], (place / f"logs/run-a1/{name}.log").read_text()


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("code", [0, 2, 75, 76])
def test_the_program_runs_and_its_end_is_on_record(code, start, tmp_path):
    assert start(code).process.wait(PATIENCE) == code
    found, log = left(tmp_path)
    assert found == code
    command = f"--config=configs/demo.py --workdir={tmp_path / 'run'} --x=a b"
    assert f"run with {command}\n" in log
    assert log.endswith(f"host 0-3 of run-a1 ends with code {code}\n")


def test_a_host_of_a_second_slice_has_another_name(start, tmp_path):
    slices = {"tpu-env": "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"}
    assert start(0, attributes=slices).process.wait(PATIENCE) == 0
    assert left(tmp_path, "1-3")[0] == 0


def test_an_archive_that_is_not_what_was_sent_is_not_run(start, tmp_path):
    assert start(0, sha256="0" * 64).process.wait(PATIENCE) == 2
    code, log = left(tmp_path)
    assert code == 2
    assert "is not what was sent" in log
    assert "run with" not in log


def test_a_log_can_be_followed_and_a_file_stops_the_run(start, tmp_path):
    host = start(-1)
    log = tmp_path / "run/launch/logs/run-a1/0-3.log"
    until(lambda: log.exists() and "waiting" in log.read_text())
    (tmp_path / "run/launch/stop").touch()
    assert host.process.wait(PATIENCE) == 75
    code, log = left(tmp_path)
    assert code == 75
    assert "told to stop" in log


def test_a_machine_that_shuts_down_lets_the_run_save(start, tmp_path):
    host = start(-1)
    log = tmp_path / "run/launch/logs/run-a1/0-3.log"
    until(lambda: log.exists() and "waiting" in log.read_text())
    host.process.send_signal(signal.SIGTERM)
    assert host.process.wait(PATIENCE) == 75
    assert left(tmp_path)[0] == 75


def test_a_machine_that_shuts_down_while_it_installs_has_not_done_the_run(start, tmp_path):
    """uv goes with the machine, which tells every process."""
    began = tmp_path / "bin/began"
    began.parent.mkdir()
    (tmp_path / "bin/python3").write_text(f"#!/bin/sh\ntouch {began}\nexec sleep 600\n")
    (tmp_path / "bin/python3").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    host = start(0, more={"PATH": path}, python="")
    until(began.exists)
    os.killpg(host.process.pid, signal.SIGTERM)
    assert host.process.wait(PATIENCE) == 75
    assert left(tmp_path)[0] == 75


def test_how_it_ended_is_tried_until_it_is_on_record(start, tmp_path):
    """For as long as the folder is out of reach; without the record nobody would know."""
    ends = tmp_path / "run/launch/ends"
    ends.parent.mkdir(parents=True)
    ends.touch()  # no folder, so that nothing can be put into it
    host = start(0)
    log = tmp_path / "run/launch/logs/run-a1/0-3.log"
    until(lambda: log.exists() and "ends with code 0" in log.read_text())
    host.process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert host.process.poll() is None
    ends.unlink()
    assert host.process.wait(PATIENCE) == 0
    assert left(tmp_path)[0] == 0


def test_a_machine_that_starts_again_runs_again(start, tmp_path):
    assert start(0).process.wait(PATIENCE) == 0
    shutil.rmtree(tmp_path / "repository")
    assert start(0).process.wait(PATIENCE) == 0
    assert left(tmp_path)[1].count("run with") == 2


def test_the_same_with_a_bucket(start, tmp_path):
    with serving("corpus", every=7) as (environment, way):
        more = {"STORAGE_EMULATOR_HOST": environment["STORAGE_EMULATOR_HOST"]}
        packed, go = start(-1, workdir="gs://corpus/runs/one", more=more)
        (tmp_path / "archive").write_bytes(packed.data)
        upload = "import sys; from etils import epath; from biomedlm_jax.pipeline import store;"
        upload += "p = epath.Path(sys.argv[2]); p.write_bytes(open(sys.argv[1], 'rb').read())"
        archive = packed.path("gs://corpus/runs/one/launch")
        python(environment, upload, tmp_path / "archive", archive)
        host = go()
        home = tmp_path / "host/home/run-a1.log"
        until(lambda: home.exists() and "waiting" in home.read_text())
        (tmp_path / "stop").write_text("stop")
        python(environment, upload, tmp_path / "stop", "gs://corpus/runs/one/launch/stop")
        assert host.process.wait(PATIENCE) == 75
        python(environment, COPY, "gs://corpus/runs/one", tmp_path / "run")
        assert way.failed
    code, log = left(tmp_path)
    assert code == 75
    assert "told to stop" in log


@pytest.mark.slow
def test_an_environment_is_made_where_none_is_named(start, tmp_path, monkeypatch):
    """Once, with what requirements.txt and pyproject.toml ask for, in the Python that is asked for:
    here this one, which need not be fetched."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    monkeypatch.setattr(startup, "PYTHON_VERSION", version)
    here = {"PATH": f"{sys.base_prefix}/bin:{os.environ['PATH']}", "UV_PYTHON_DOWNLOADS": "never"}
    for _ in range(2):
        assert start(0, python="", more=here).process.wait(PATIENCE) == 0, left(tmp_path)[1]
        shutil.rmtree(tmp_path / "repository")
    log = left(tmp_path)[1]
    assert log.count("run with") == 2
    prefix = tmp_path / "host/home/biomedlm-"
    assert log.count(f"of {prefix}") == 2
    assert str(sys.version_info[:2]) in log


@pytest.mark.slow
def test_an_environment_that_can_not_be_made_may_be_made_later(start, tmp_path, monkeypatch):
    """The code is not that of an error in the settings, after which nothing is tried again."""
    monkeypatch.setattr(startup, "PYTHON_VERSION", "3.5")
    assert start(0, python="", more={"UV_PYTHON_DOWNLOADS": "never"}).process.wait(PATIENCE) == 1
    code, log = left(tmp_path)
    assert code == 1
    assert "run with" not in log


def test_the_script_is_clean(tmp_path):
    """By shellcheck's own rules, as it is and with values in it."""
    shellcheck = Path(sys.executable).with_name("shellcheck")
    given = {"config": "configs/demo.py", "workdir": "gs://my-bucket/it", "accelerator": "v4-8"}
    launch = spec.read(spec.DEFAULT, given)
    file = tmp_path / "script"
    file.write_text(startup.script(launch, ["--x='a b'"], "run-a1", "gs://a/b.tar.gz", "0"))
    for path in (ROOT / "launch/startup.sh", file):
        subprocess.run([shellcheck, str(path)], check=True)


def test_values_are_quoted(tmp_path):
    values = {"A": "it's $HOME", "B": ""}
    script = startup.rendered(values, "run 'a b'").split("\n# What", 1)[0]
    shown = subprocess.run(
        ["bash", "-c", script + '\nprintf "%s|" "$A" "$B" "${COMMAND[@]}"'],
        env={**os.environ}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout == "it's $HOME||run|a b|"
