"""A run of two processes that is killed again and again, and runs of other shapes that give the
same losses."""

import collections
import random
import signal
import time

import jax
import numpy as np
import pytest

from biomedlm_jax import hosts
from biomedlm_jax.entry import UserError
from tests.conftest import TINY, changed
from tests.runs import Process, assert_same, config_file, ends, finish, lines, losses, running


def place(first: Process, workdir) -> str:
    """Where a run is, from what process 0 has said last."""
    if list((workdir / "checkpoints").glob("*tmp*")):
        return "save"
    said = first.said
    for text, name in {
        "\nstep ": "steps",
        " parameters on ": "compilation and first step",
        "Rank 0 is connected": "restore",
    }.items():
        if text in said:
            return name
    return "start"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (jax.errors.JaxRuntimeError("INTERNAL: Gloo all-reduce failed: ... reset by peer"), True),
        (ValueError("UNKNOWN: Gloo AllGather failed: ... Connection closed by peer [::1]:1"), True),
        (UserError("config.x: Connection closed by peer"), False),
        (ValueError("shapes do not match"), False),
    ],
)
def test_how_a_collective_fails_without_its_other_end(error, expected):
    assert hosts.lost(error) == expected


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, 40])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(kills, store, tmp_path):
    """Of two processes, one or both; two thirds of the kills are at any instant until the first
    step is done, the others up to half as long after it."""
    settings = dict(mesh__data=2, run__steps=300, run__save_every=3, run__wait_seconds=12)
    experiment = changed(TINY, data__store=str(store), **settings)
    file = config_file(experiment, tmp_path / "tiny.py")
    whole, workdir = tmp_path / "whole/run", tmp_path / "killed/run"
    for folder in (whole, workdir):
        folder.parent.mkdir()

    start = time.monotonic()
    with running(file, whole) as run:
        run[0].until("^step 1 was done ")
        reach = time.monotonic() - start
        assert ends(run) == [0, 0], run[0].said + run[1].said

    draw, where, survivors = random.Random(kills), collections.Counter(), collections.Counter()
    slow, waits, reached = {0: "slow=0.3", 1: "slow=0.3"}, [], []
    while where.total() < kills:
        with running(file, workdir, faults=slow) as run:
            early, late = draw.random(), draw.random()
            victims = draw.choice([[0], [1], [0, 1], [0, 1]])
            if draw.random() < 2 / 3:
                start = time.monotonic()
                while time.monotonic() - start < early * reach:
                    time.sleep(0.01)
                    if " was done " in run[0].said:  # sooner than the first time: it was compiled
                        reach = time.monotonic() - start
            else:
                run[0].until(" was done ")
                time.sleep(late * reach / 2)
            assert [process.popen.poll() for process in run] == [None, None], (
                run[0].said + run[1].said
            )
            where[place(run[0], workdir)] += 1
            for index in victims:
                run[index].send(signal.SIGKILL)
            killed = time.monotonic()
            for index, process in enumerate(run):
                code = process.wait()
                if index in victims:
                    assert code == -signal.SIGKILL
                    continue
                # 2 where process 0 never was there to be reached
                assert code == 76 or (code, index) == (2, 1), process.said
                assert "Traceback" not in process.said
                survivors[code] += 1
                waits.append(time.monotonic() - killed)
            steps = [line for line in run[0].said.splitlines() if line.startswith("step ")]
            reached.append(steps[-1].split(" ")[1] if steps else "none")
            print(
                where.total(), victims, dict(where), reached[-1], f"{sum(waits):.0f} s", flush=True
            )
    resumed = {line["step"] for line in lines(workdir, "events") if line["event"] == "start"}
    assert len(resumed) > 1, "no save was ever gone on from: the kills come too early"
    print(
        f"{kills} kills, in {dict(where)}; survivors ended with {dict(survivors)} after at most "
        f"{max(waits, default=0):.0f} s; last steps {', '.join(reached)}; "
        f"starts from {sorted(resumed)}"
    )
    finish(file, workdir)
    assert_same(workdir, whole)
    assert not (workdir / "damaged").exists()


@pytest.mark.slow
def test_losses_do_not_depend_on_processes_and_meshes(store, tmp_path):
    """Of 1, 2 and 4 processes with dropout; that their batches are the same is in test_hosts."""
    experiment = changed(TINY, data__store=str(store), run__steps=6)
    file = config_file(experiment, tmp_path / "tiny.py")
    assert experiment.model.dropout > 0
    found = {}
    for processes, data, fsdp, model in [
        *[(1, 1, 1, 1), (1, 2, 1, 4), (2, 2, 4, 1), (2, 2, 1, 4), (4, 4, 1, 2), (4, 4, 2, 1)],
        *[(4, 2, 2, 2), (2, 8, 1, 1)],
    ]:
        mesh = [
            f"--config.mesh.{n}={x}" for n, x in dict(data=data, fsdp=fsdp, model=model).items()
        ]
        folder = tmp_path / f"{processes}-{data}-{fsdp}-{model}"
        folder.mkdir()
        finish(file, folder / "run", *mesh, processes=processes)
        found[folder.name] = losses(folder / "run")
    (_, one), *others = found.items()
    assert [step for step, _ in one] == list(range(1, 7))
    for name, other in others:
        assert [step for step, _ in other] == list(range(1, 7)), name
        np.testing.assert_allclose(*[[x for _, x in run] for run in (other, one)], rtol=1e-5)
