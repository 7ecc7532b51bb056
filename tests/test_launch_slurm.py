"""Runs under Slurm: the script of a job with stand-ins for Slurm's programs, and with Slurm where
it is installed; the sbatch line of a launch file; scripts in which shellcheck finds nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from biomedlm_jax import lock
from biomedlm_jax.entry import UserError
from launch import slurm, spec
from tests.conftest import ROOT
from tests.runs import assert_same
from tests.slurm import PROGRAMS, running

needs_slurm = pytest.mark.skipif(
    not all(map(shutil.which, PROGRAMS)), reason="there is no Slurm here: apt-get install slurm-wlm"
)
FLAGS = ("--config=configs/demo.py", "--workdir=/shared/run")
SRUN = """#!/bin/bash
# Two tasks, as srun starts them; it ends with the highest code.
while [[ $1 == --* ]]; do shift; done
SLURM_PROCID=0 "$@" & first=$!
SLURM_PROCID=1 "$@" & second=$!
wait $first; a=$?
wait $second; b=$?
exit $((a > b ? a : b))
"""


def standing_in(folder: Path, srun: str = SRUN, state: str = "RUNNING") -> dict[str, str]:
    """An environment as of a job, with programs that note in `folder`/asked what they are asked."""
    programs = folder / "programs"
    programs.mkdir()
    note = f'#!/bin/bash\necho "$(basename "$0") $*" >>{folder}/asked\n'
    for name, text in {
        "srun": srun,
        "squeue": f"{note}echo {state}\n",
        "scontrol": note,
        "scancel": note,
        "sleep": note,
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    for name in ("biomedlm_jax", "configs", "launch"):
        (folder / name).symlink_to(ROOT / name)
    return {
        "PATH": f"{programs}:/usr/bin:/bin",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "a,b",
        "SLURM_SUBMIT_DIR": str(folder),
        "PYTHON": str(folder / "python"),
    }


def python(folder: Path, text: str) -> None:
    """What tasks run in place of Python."""
    (folder / "python").write_text(f"#!/bin/bash\n{text}\n")
    (folder / "python").chmod(0o755)


def script(environment: dict[str, str], *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(ROOT / "launch/slurm.sh"), *(flags or FLAGS)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def asked(folder: Path) -> list[str]:
    file = folder / "asked"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize(
    ("codes", "ends_with", "again"),
    [
        ((0, 0), 0, False),
        ((75, 75), 75, True),
        ((76, 76), 76, True),
        ((69, 76), 76, True),  # one got no answer from gs://
        ((69, 69), 69, True),
        ((137, 76), 137, True),  # one was killed, the other missed it
        ((2, 2), 2, False),
        ((2, 76), 2, False),  # one has the mistake, and the other misses it
        ((76, 1), 1, False),
        ((134, 134), 134, False),
    ],
)
def test_what_becomes_of_the_job(codes, ends_with, again, tmp_path):
    environment = standing_in(tmp_path)
    python(tmp_path, f'codes=({codes[0]} {codes[1]}); exit "${{codes[$SLURM_PROCID]}}"')
    found = script(environment)
    assert found.returncode == ends_with, found.stderr
    assert ("scontrol requeue 7" in asked(tmp_path)) == again
    both = " ".join(map(str, sorted(set(codes))))
    assert f"job 7: srun ended with {max(codes)}, its processes with {both}" in found.stdout


def test_a_job_that_is_cancelled_or_has_begun_often_does_not_begin_again(tmp_path):
    (tmp_path / "one").mkdir()
    environment = standing_in(tmp_path / "one", state="COMPLETING")
    python(tmp_path / "one", "exit 75")
    assert "not put back into the queue: the job is COMPLETING" in script(environment).stdout
    (tmp_path / "two").mkdir()
    environment = standing_in(tmp_path / "two") | {"SLURM_RESTART_COUNT": "3", "RESTARTS": "3"}
    python(tmp_path / "two", "exit 76")
    found = script(environment)
    assert found.returncode == 76
    assert "begun again 3 times, as often as RESTARTS allows" in found.stderr
    assert "scontrol" not in "".join(asked(tmp_path / "one") + asked(tmp_path / "two"))


@pytest.mark.parametrize("code", [75, 143], ids=["saved", "too_early_to_save"])
def test_a_signal_goes_to_the_tasks_and_is_waited_for(code, tmp_path):
    environment = standing_in(tmp_path)
    # As scancel would, but there is no Slurm: the tasks' own shells and what they run get SIGTERM.
    tell = (
        f'#!/bin/bash\necho "scancel $*" >>{tmp_path}/asked\nkill -TERM $(cat {tmp_path}/*.pid)\n'
    )
    (tmp_path / "programs/scancel").write_text(tell)
    (tmp_path / "programs/sleep").unlink()
    python(
        tmp_path,
        f"""trap 'sleep 0.5; echo saved >{tmp_path}/saved-$SLURM_PROCID; exit {code}' TERM
echo $$ $PPID >{tmp_path}/$SLURM_PROCID.pid
if [ -e {tmp_path}/0.pid ] && [ -e {tmp_path}/1.pid ] && mkdir {tmp_path}/told 2>/dev/null; then
  kill -TERM "$JOB_SHELL"
fi
for i in $(seq 600); do sleep 0.1; done""",
    )
    job = tmp_path / "job.sh"
    job.write_text(f'export JOB_SHELL=$$\nsource "{ROOT}/launch/slurm.sh"\n')
    found = subprocess.run(
        ["bash", str(job), *FLAGS], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == code, found.stderr
    assert asked(tmp_path)[0] == "scancel --signal=TERM 7"
    assert asked(tmp_path)[-1] == "scontrol requeue 7"
    assert (tmp_path / "saved-0").exists()
    assert (tmp_path / "saved-1").exists()


def test_a_lease_on_gs_is_waited_for_before_a_job_begins_again(tmp_path):
    environment = standing_in(tmp_path)
    python(tmp_path, "exit 0")
    script(environment, FLAGS[0], "--workdir=gs://my-bucket/run")
    assert "sleep 90" not in asked(tmp_path)
    script(environment | {"SLURM_RESTART_COUNT": "1"})
    assert "sleep 90" not in asked(tmp_path)
    script(environment | {"SLURM_RESTART_COUNT": "1"}, FLAGS[0], "--workdir=gs://my-bucket/run")
    assert f"sleep {lock.COUNTS:g}" in asked(tmp_path)


@pytest.mark.parametrize(
    ("flags", "changes", "message"),
    [
        (["--workdir=x"], {}, "--config= names no file"),
        (["--config=configs/none.py", "--workdir=x"], {}, "--config=configs/none.py names no file"),
        (["--config=configs/demo.py"], {}, "--workdir is missing"),
        (FLAGS, {"SLURM_JOB_ID": ""}, "this is no Slurm job; say sbatch launch/slurm.sh --config="),
        (FLAGS, {"SLURM_SUBMIT_DIR": "/"}, "/ is not the repository"),
        (FLAGS, {"PYTHON": "/none"}, "PYTHON=/none is no program"),
    ],
)
def test_mistakes_are_said_before_anything_starts(flags, changes, message, tmp_path):
    environment = standing_in(tmp_path) | changes
    python(tmp_path, "exit 0")
    found = script(environment, *flags)
    assert found.returncode == 2
    assert message in found.stderr
    assert not list(tmp_path.glob("*.code"))


def launched(accelerator: str, **given) -> spec.Launch:
    values = dict(config="configs/pretrain_2p7b.py", workdir="/shared/runs/pretrain-2p7b")
    return spec.read(spec.DEFAULT, values | given | {"accelerator": accelerator})


def test_golden_submissions(golden, tmp_path):
    of_slurm = dict(partition="gpus", account="biomed", hours=48)
    lines = []
    for launch in (
        launched("h100-128"),
        launched("a100-40-128", slurm=of_slurm, name="biomedlm"),
        launched("a100-80-2", config="configs/pretrain_125m.py"),
    ):
        settings = ["--config.data.store=/shared/pubmed/store"]
        lines.append(" ".join(slurm.submission(launch, settings)))
    environment = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(ROOT)}
    lines.append(script(environment, *FLAGS, "--dry_run").stdout)
    found = "\n".join(lines)
    assert found == golden("slurm.txt", found)


def test_a_tpu_is_not_asked_of_slurm():
    with pytest.raises(UserError, match="v5e-256: Slurm is for GPUs"):
        slurm.submission(launched("v5e-256"), [])


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("there is no shellcheck here")
    scripts = sorted(map(str, (ROOT / "launch").glob("*.sh")))
    assert len(scripts) >= 3
    found = subprocess.run(
        [program, "--shell=bash", *scripts], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with running(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@needs_slurm
@pytest.mark.slow
def test_what_slurm_itself_makes_of_it(cluster):
    """Of a job that a more urgent one displaces, of one with a mistake, and of one that is
    cancelled."""
    folder = cluster.folder
    python(folder, "trap 'exit 75' TERM; echo up; for i in $(seq 600); do sleep 0.1; done")
    long = cluster.submit(*FLAGS, PYTHON=str(folder / "python"))
    cluster.until(long, lambda: "up" in cluster.said(long, 0) and "up" in cluster.said(long, 1))
    line = ("--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=true")
    urgent = cluster.run("sbatch", "--parsable", *line).strip()
    cluster.until(long, lambda: cluster.state(long) == "PENDING 1")
    assert "srun ended with 75, its processes with 75" in cluster.said(long)
    cluster.until(urgent, lambda: cluster.state(urgent) == "COMPLETED 0")

    cluster.run("scontrol", "update", f"JobId={long}", "StartTime=now")  # else in two minutes
    cluster.until(long, lambda: "start 2" in cluster.said(long) and "RUNN" in cluster.state(long))
    cluster.until(long, lambda: cluster.said(long, 1).count("up") == 2)
    cluster.run("scancel", long)
    cluster.until(long, lambda: cluster.state(long) == "CANCELLED 1")

    python(folder, 'if [ "$SLURM_PROCID" = 0 ]; then sleep 1; exit 2; fi; exit 76')
    wrong = cluster.submit(*FLAGS, PYTHON=str(folder / "python"))
    cluster.until(wrong, lambda: cluster.state(wrong) == "FAILED 0")
    assert "srun ended with 76, its processes with 2 76" in cluster.said(wrong)


@needs_slurm
@pytest.mark.slow
def test_two_nodes_train_and_go_on_after_the_queue(cluster, store, tmp_path):
    """configs/demo.py, shortened, ends with the bits of a run that nothing came between."""
    shorter = [
        f"--config.data.store={store}",
        "--config.model.vocab=300",
        "--config.model.layers=2",
        "--config.mesh.model=1",
        "--config.optimizer.warmup_steps=2",
        "--config.run.steps=40",
        "--config.run.save_every=4",
        "--config.run.log_every=1",
        "--config.run.eval_every=0",
    ]
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    flags = ["--config=configs/demo.py", *shorter]
    before = cluster.submit(*flags, f"--workdir={whole}", PYTHON=sys.executable)
    cluster.until(before, lambda: cluster.state(before) in ("COMPLETED 0", "FAILED 0"))
    assert cluster.state(before) == "COMPLETED 0", cluster.said(before, 0)

    job = cluster.submit(*flags, f"--workdir={workdir}", PYTHON=sys.executable)
    cluster.until(job, lambda: "\nstep 4/40" in cluster.said(job, 0))
    cluster.run("scancel", "--signal=TERM", "--batch", job)  # as --signal=B:TERM@120 does
    cluster.until(job, lambda: cluster.state(job) == "PENDING 1")
    assert "stopped at step" in cluster.said(job, 0)
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    cluster.until(job, lambda: cluster.state(job) in ("COMPLETED 1", "FAILED 1"))
    assert cluster.state(job) == "COMPLETED 1", cluster.said(job, 0)
    assert cluster.said(job, 0).count(" parameters on ") == 2  # the log of both starts
    assert_same(workdir, whole)
