"""Several processes as one run: real ones, of two CPU devices each, that meet, compare, stop
together, and lose each other. What they do is in `process.py`.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest
from jax._src import clusters

from biomedlm_jax import entry, hosts, roll_call
from biomedlm_jax.entry import HostLost, Preempted, UserError
from biomedlm_jax.pipeline.store import TokenStore
from tests.conftest import TINY, changed
from tests.runs import free_port

ROOT = Path(__file__).parent.parent


def play(scene: str, wait_seconds: int, folder: Path) -> list[tuple[int, str]]:
    """Exit code and output of each of two processes."""
    command = [sys.executable, "-m", "tests.process", scene, f"localhost:{free_port()}", "2"]
    running, logs = [], [folder / str(index) for index in range(2)]
    for index, log in enumerate(logs):
        with log.open("w") as output:
            running.append(
                subprocess.Popen(
                    [*command, str(index), str(wait_seconds)],
                    cwd=ROOT,
                    env={**os.environ, "JAX_PLATFORMS": "cpu"},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        codes = [process.wait(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [(code, log.read_text()) for code, log in zip(codes, logs, strict=True)]


def test_processes_compare_wait_and_stop_at_the_same_step(tmp_path):
    (code_0, said_0), (code_1, said_1) = play("talk", 60, tmp_path)
    here = socket.gethostname()
    for said in (said_0, said_1):
        assert f"process 1 (host {here}) has jax 0.11, process 0 (host {here}) has 0.10" in said
    assert f"process 1 (host {here}) did not come to 'the save' within 1 s" in said_0
    assert "did not come" not in said_1
    assert (code_0, code_1) == (75, 75), said_0 + said_1
    assert said_0.splitlines()[-1] == said_1.splitlines()[-1]
    assert said_0.splitlines()[-1].startswith("stopped at tick ")


def test_a_process_that_is_killed_is_named_by_the_other(tmp_path):
    (code, said), (killed, _) = play("killed", 5, tmp_path)
    assert killed == -signal.SIGKILL
    assert code == 76, said
    assert f"no answer from process 1 (host {socket.gethostname()})" in said
    assert "Traceback" not in said


def test_process_0_is_named_too(tmp_path):
    (killed, _), (code, said) = play("first_killed", 5, tmp_path)
    assert killed == -signal.SIGKILL
    assert code == 76, said
    assert f"no answer from process 0 (host {socket.gethostname()})" in said


def test_an_error_of_one_process_ends_the_others(tmp_path):
    (code_0, said_0), (code_1, said_1) = play("failed", 60, tmp_path)
    assert code_0 == 2, said_0
    assert "error: no room for the save" in said_0
    assert code_1 == 76, said_1
    assert f"process 0 (host {socket.gethostname()})" in said_1


def roll(*who: tuple[int, int], seconds: int = 20, port: int | None = None) -> list:
    """What `roll_call.call` gives or raises, for each (processes, process_id)."""
    found: list = [None] * len(who)
    address = f"localhost:{port or free_port()}"

    def one(place: int, processes: int, index: int) -> None:
        try:
            found[place] = roll_call.call(address, processes, index, seconds)
        except (UserError, HostLost) as error:
            found[place] = error

    threads = [threading.Thread(target=one, args=[i, *x]) for i, x in enumerate(who)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_roll_call_gives_all_host_names():
    assert roll((3, 2), (3, 0), (3, 1)) == [[socket.gethostname()] * 3] * 3


def test_who_did_not_come_is_named_on_all_that_did():
    for error in roll((4, 0), (4, 2), seconds=2):
        assert isinstance(error, HostLost)
        assert "process 1, 3 of 4 did not come to process 0 on" in str(error)


def test_an_id_that_is_given_twice_is_refused_on_both():
    for error in roll((3, 0), (3, 1), (3, 1)):
        assert isinstance(error, UserError)
        assert "--process_id=1 was given twice" in str(error)


def test_processes_that_count_differently_are_refused():
    for error in roll((2, 0), (3, 1)):
        assert isinstance(error, UserError)
        assert "has --processes=3, process 0 on" in str(error)


def test_a_port_in_use_is_refused_on_both_sides():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        (error,) = roll((2, 0), port=port)
        assert f"--coordinator=localhost:{port}: port {port} can not be had" in str(error)
        threading.Thread(target=lambda: taken.accept()[0].close(), daemon=True).start()
        (error,) = roll((2, 1), port=port, seconds=1)
        assert f"--coordinator=localhost:{port} can not be reached" in str(error)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("localhost:1", None, 0), "--processes is missing"),
        ((None, 2, None), "--coordinator, --process_id is missing"),
        (("localhost:1", 2, 2), "--process_id=2 with --processes=2; ids are from 0 to 1"),
        (("localhost", 2, 0), "--coordinator=localhost is not host:port"),
    ],
)
def test_flags_that_do_not_fit_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        hosts.connect(*given, wait_seconds=1)


def test_a_cluster_is_asked_who_is_there(monkeypatch):
    assert hosts._cluster(1) is None
    slurm = dict(
        SLURM_JOB_ID="7", SLURM_STEP_NODELIST="node[03-04]", SLURM_NTASKS="2", SLURM_PROCID="1",
        SLURM_LOCALID="0", SLURM_STEP_TASKS_PER_NODE="1(x2)",
    )  # fmt: skip
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert hosts._cluster(1) == ("node03:61447", 2, 1, None)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2")
    assert hosts._cluster(1) == ("node03:61447", 2, 1, [0])
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert hosts._cluster(1) is None
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="Open MPI started several processes"):
        hosts._cluster(1)


@pytest.mark.parametrize(
    ("end", "code"), [(Preempted("stopped"), 75), (HostLost("gone"), 76), (UserError("no"), 2)]
)
def test_each_end_has_its_exit_code(end, code, capsys):
    with pytest.raises(SystemExit) as found, entry.reported():
        raise end
    assert found.value.code == code
    said = capsys.readouterr()
    assert (said.out, said.err) == (("stopped\n", "") if code == 75 else ("", f"error: {end}\n"))


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [10.0.0.2]:21163", True),
        ("UNKNOWN: Gloo context initialization failed: UNAVAILABLE: Socket closed", True),
        (
            "INTERNAL: NCCL operation failed: remote process exited or there was a network error",
            True,
        ),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes", False),
    ],
)
def test_a_computation_that_another_process_left_is_known_by_its_error(message, lost):
    assert hosts.lost(jax.errors.JaxRuntimeError(message)) == lost
    assert not hosts.lost(RuntimeError(message))


def test_a_cloud_tpu_that_can_not_ask_says_so(monkeypatch):
    def unreachable() -> bool:
        raise ConnectionError("no route")

    monkeypatch.setattr(clusters.GceTpuCluster, "is_env_present", unreachable)
    with pytest.raises(UserError, match=r"no route.*TPU_SKIP_MDS_QUERY=1"):
        hosts._cluster(1)


def test_alone_there_is_nobody_to_wait_for(store):
    hosts.connect(None, None, None, 1)
    assert hosts.primary()
    assert hosts.gather("x", "1", 1) == ["1"]
    hosts.barrier("x", 1)
    facts = hosts.facts(TINY, TokenStore(store, "train"))
    hosts.agree(facts, 1)
    assert facts["jax"] == jax.__version__
    assert facts["config.run.seed"] == "17"
    moved = changed(TINY, data__store="elsewhere")
    assert hosts.facts(moved, TokenStore(store, "train")) == facts
    with pytest.raises(ZeroDivisionError), hosts.naming_lost_hosts():
        _ = 1 / 0
