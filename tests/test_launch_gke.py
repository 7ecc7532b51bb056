"""Runs on Google Kubernetes Engine: manifests, what kubectl is told, and what a pod does."""

import copy
import dataclasses
import itertools
import re
import shutil
import subprocess
import sys
import time

import kubernetes_validate
import pytest

from biomedlm_jax import lock
from biomedlm_jax.entry import UserError
from launch import bundle, gke, jobset, machines, spec
from launch.bundle import Bundle
from tests import kubernetes
from tests.conftest import ROOT, TINY, changed
from tests.runs import assert_same, config_file, finish, free_port

COPY = Bundle("0123456789abcdef", b"", frozenset(), "", ())
CONTEXT = "gke_my-project_us-west4_tpus"
MACHINES = ["v4-32", "v5e-1", "v5e-8", "v5e-256", "v5p-256", "v6e-64", "h100-8", "h100-128"]
MACHINES += ["a100-40-2", "a100-40-128", "a100-80-16", "l4-1"]
STARTUP = "# What every host does when it starts"
needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl here")


def launched(accelerator="v5e-256", of_gke=None, **given) -> spec.Launch:
    """Of the launch file that the repository has, with other values."""
    values = dict(
        config="configs/pretrain_2p7b.py",
        workdir="gs://my-bucket/runs/pretrain-2p7b",
        project="my-project",
        zone="us-west4-a",
        accelerator=accelerator,
    )
    launch = spec.read(spec.DEFAULT, values | given)
    section = dataclasses.replace(launch.gke, **dict(cluster="tpus") | (of_gke or {}))
    return dataclasses.replace(launch, gke=section)


def manifest(launch, *settings):
    return jobset.jobset(
        launch, jobset.pod_script(launch, settings, COPY.path(launch.place), "abc")
    )


def job_of(found) -> dict:
    (replicated,) = found["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod_of(found) -> dict:
    return job_of(found)["template"]["spec"]


@pytest.mark.parametrize(
    ("accelerator", "capacity"),
    list(zip(MACHINES, itertools.cycle(["on-demand", "spot", "reserved"]), strict=False)),
)
def test_every_manifest_is_one(accelerator, capacity):
    """By JobSet's own schema, and Kubernetes' of an old version and of the newest; a field that
    they do not have is refused."""
    reservation = "ours" if capacity == "reserved" else ""
    more = dict(queue="ours", service_account="trainer")
    launch = launched(accelerator, more, capacity=capacity, reservation=reservation)
    found = jobset.validated(manifest(launch))
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "x"},
        "spec": job_of(found),
    }
    for version in ("1.31", "1.37"):
        kubernetes_validate.validate(job, version, strict=True)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["spec", "replicas"], 1, "spec.replicas is no field of it"),
        (["spec", "failurePolicy", "rules", 0, "on"], "x", r"rules\[0\].on is no field"),
        (
            ["spec", "replicatedJobs", 0, "template", "spec", "tasks"],
            1,
            "template.spec.tasks is no",
        ),
        (["spec", "replicatedJobs", 0, "replicas"], "two", "replicas: Input should be a valid int"),
        (["metadata", "title"], "x", "metadata.title is no field"),
    ],
)
def test_what_is_no_field_is_refused(path, value, message):
    found = manifest(launched())
    part = found
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    with pytest.raises(UserError, match=f"the manifest is no JobSet: .*{message}"):
        jobset.validated(found)
    pod = copy.deepcopy(manifest(launched()))
    pod_of(pod)["containers"][0]["argument"] = ["x"]
    with pytest.raises(UserError, match=r"containers\[0\].argument is no field"):
        jobset.validated(pod)


@pytest.mark.parametrize("accelerator", MACHINES)
def test_pods_are_as_many_as_hosts_and_take_all_chips(accelerator):
    machine = machines.named(accelerator)
    for slices in (1, 2) if machine.hosts > 1 else (1,):
        launch = launched(accelerator, slices=slices)
        assert not spec.problems(launch)
        assert not gke.problems(launch)
        found = manifest(launch)
        (replicated,) = found["spec"]["replicatedJobs"]
        job, pod = job_of(found), pod_of(found)
        assert job["completions"] == job["parallelism"]
        assert replicated["replicas"] * job["completions"] == launch.hosts
        ((resource, count),) = pod["containers"][0]["resources"]["limits"].items()
        assert resource == ("google.com/tpu" if machine.tpu else "nvidia.com/gpu")
        assert launch.hosts * int(count) == launch.chips
        assert replicated["replicas"] == (slices if machine.tpu else 1)


def test_where_pods_go():
    """Labels of nodes, as GKE's pages "TPUs in GKE" and "GPUs in GKE" have them."""
    assert pod_of(manifest(launched("v5p-256")))["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x8",
    }
    assert pod_of(manifest(launched("h100-128")))["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-h100-80gb",
        "node.kubernetes.io/instance-type": "a3-highgpu-8g",
    }
    spot = pod_of(manifest(launched("v6e-64", capacity="spot")))
    assert spot["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert spot["tolerations"][0]["key"] == "cloud.google.com/gke-spot"
    reserved = launched("v6e-64", capacity="reserved", reservation="ours")
    assert pod_of(manifest(reserved))["nodeSelector"]["cloud.google.com/reservation-name"] == "ours"


def test_what_kubernetes_asks_of_a_failure_policy_beyond_its_schema():
    """pkg/apis/batch/validation of Kubernetes and the webhook of JobSet."""
    found = manifest(launched())
    job, pod = job_of(found), pod_of(found)
    assert pod["restartPolicy"] == "Never"
    (rule,) = job["podFailurePolicy"]["rules"]
    codes = rule["onExitCodes"]
    assert codes["values"] == sorted(set(codes["values"]) - {0})
    assert codes["containerName"] in [container["name"] for container in pod["containers"]]
    (rule,) = found["spec"]["failurePolicy"]["rules"]
    assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    # 1 and 2 fail a Job by this policy, and that fails the JobSet; 75 and 76 fail it by its
    # backoffLimit, which no rule names, and JobSet then begins all again.
    assert codes["values"] == [1, 2]
    assert job["backoffLimit"] == 0
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert found["spec"]["failurePolicy"]["maxRestarts"] == jobset.RESTARTS


def test_the_longest_name_makes_names_that_kubernetes_takes():
    launch = launched("v5e-256", name="a" + 38 * "-" + "b", slices=999)
    assert not spec.problems(launch)
    longest = f"{launch.name}-{jobset.JOB}-998-{launch.machine.hosts - 1}-abcde"
    assert re.fullmatch("[a-z]([-a-z0-9]{0,61}[a-z0-9])?", longest)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(name="Run_2.7B"), "'run-2-7b' would do"),
        (dict(capacity="best-effort"), "for GKE say spot, or on-demand"),
        (dict(accelerator="v5e-8", slices=2), "v5e-8 is one; take a larger slice"),
        (dict(of_gke=dict(image="")), "launch.gke.image is empty"),
        (dict(accelerator="v5e-255"), "nearest are v5e-256 and v5e-128"),
        (dict(project="My Project"), "is no project of Google Cloud; one is as my-project"),
    ],
)
def test_what_would_be_refused_is_said_before(given, message):
    launch = launched(**given)
    assert message in "\n".join(spec.problems(launch) or gke.problems(launch))


def without_startup(text: str) -> str:
    """The script's own lines are the same in all, and tested elsewhere."""
    pattern = rf"( *){STARTUP}.*?\n( +COORDINATOR=.*?\n +LEASE=\d+\n).*?\n( +env:\n)"
    found, count = re.subn(pattern, r"\1...\n\2\1...\n\3", text, flags=re.DOTALL)
    assert count == 1
    return found


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("v5e_256", dict(accelerator="v5e-256")),
        ("v5p_256", dict(accelerator="v5p-256", zone="us-east5-a")),
        ("2x_v5e_256_spot", dict(accelerator="v5e-256", slices=2, capacity="spot")),
        ("h100_128", dict(accelerator="h100-128", zone="us-central1-a")),
    ],
)
def test_golden_dry_runs(name, given, golden):
    store = "--config.data.store=gs://my-bucket/pubmed/store"
    found = without_startup(gke.dry_run(launched(**given), [store], COPY))
    assert found == golden(f"gke_2p7b_{name}.txt", found)


def command(*flags: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "launch.gke", "--config=configs/pretrain_2p7b.py", *flags],
        cwd=ROOT,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "JAX_PLATFORMS": "cpu"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


FLAGS = ["--accelerator=v5e-256", "--project=my-project", "--zone=us-west4-a", "--cluster=tpus"]


def test_the_command_line(tmp_path):
    found = command(*FLAGS, f"--workdir={tmp_path}/one", "--dry_run", "--config.run.seed=18")
    assert found.returncode == 0, found.stderr
    assert "--config.run.seed=18" in found.stdout
    assert not (tmp_path / "one").exists()
    neither = command(*FLAGS, f"--workdir={tmp_path}/one")
    assert neither.returncode == 2
    assert "say --dry_run" in neither.stderr
    unknown = command(*FLAGS, f"--workdir={tmp_path}/one", "--dry_run", "--config.run.sed=18")
    assert unknown.returncode == 2
    assert "config.run.sed is no setting; did you mean seed" in unknown.stderr


@needs_kubectl
def test_kubectl_creates_it_once(store, tmp_path):
    """The real kubectl, which asks a server that validates."""
    config = tmp_path / "config"
    flags = [*FLAGS, f"--workdir={tmp_path}/one", f"--config.data.store={store}", "--noplan"]
    flags.append("--apply")
    environment = {"KUBECONFIG": str(config), "HOME": str(tmp_path)}
    with kubernetes.serving(config, CONTEXT) as server:
        unanswered = command(*flags, **environment)
        assert unanswered.returncode == 2
        assert "Create it? [y/N]" in unanswered.stdout
        assert "nothing was created, for nobody said yes" in unanswered.stderr
        assert not (tmp_path / "one").exists()

        flags.append("--yes")
        server.refusing = "exceeded quota: tpus"
        refused = command(*flags, **environment)
        assert refused.returncode == 2
        assert "exceeded quota: tpus" in refused.stderr
        (left,) = (tmp_path / "one/launch/archives").glob("*.tar.gz")
        assert f"gcloud storage rm {left} removes it" in refused.stderr
        assert not server.jobsets

        server.refusing = ""
        first = command(*flags, **environment)
        assert first.returncode == 0, first.stderr
        assert "jobset.jobset.x-k8s.io/one created" in first.stdout
        delete = f"kubectl --context={CONTEXT} --namespace=default delete jobset one"
        assert delete in first.stdout
        script = pod_of(server.jobsets["one"])["containers"][0]["command"][2]
        assert str(left) in script

        second = command(*flags, **environment)
        assert second.returncode == 2
        assert "there is a JobSet of this name" in second.stderr
        assert delete in second.stderr


@needs_kubectl
def test_a_cluster_that_is_not_there_is_said_by_kubectl(store, tmp_path):
    environment = {"KUBECONFIG": str(tmp_path / "none"), "HOME": str(tmp_path)}
    flags = [*FLAGS, f"--workdir={tmp_path}/one", f"--config.data.store={store}", "--noplan"]
    found = command(*flags, "--apply", "--yes", **environment)
    assert found.returncode == 2
    assert CONTEXT in found.stderr
    assert not (tmp_path / "one").exists()


def test_without_kubectl(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    launch = launched(workdir=str(tmp_path / "one"))
    with pytest.raises(UserError, match="there is no kubectl; install it, or --dry_run prints"):
        gke.apply(launch, [], COPY)
    assert not (tmp_path / "one").exists()


def test_an_interruption_while_it_is_created_says_what_may_be_there(tmp_path, monkeypatch):
    def run(launch, *arguments, given=""):
        if arguments[0] == "create":
            raise KeyboardInterrupt
        return ""

    monkeypatch.setattr(gke, "_run", run)
    with pytest.raises(
        UserError, match=r"^interrupted\nIf a JobSet was created all the same"
    ) as said:
        gke.apply(launched(workdir=str(tmp_path / "one")), [], COPY)
    assert f"kubectl --context={CONTEXT} --namespace=default delete jobset one" in str(said.value)


class Pods:
    """The pods of a JobSet as processes of this machine, where bash is their container."""

    def __init__(self, folder, launch, file, restarts: int, path: str = "/usr/bin:/bin"):
        self.port = free_port()
        whole = bundle.make(ROOT)
        archive = bundle.upload(whole, launch.place)
        script = jobset.pod_script(launch, [], archive, whole.sha256)
        # One machine has one name and a repository of its own, and nobody waits for its lease.
        coordinator = f"{launch.name}-{jobset.JOB}-0-0.{launch.name}:{jobset.PORT}"
        assert (coordinator in script) == (launch.hosts > 1)
        script = script.replace(coordinator, f"localhost:{self.port}")
        script = script.replace("LEASE=90", "LEASE=0").replace(launch.config, str(file))
        self.popens = []
        for index in range(launch.hosts):
            home = folder / f"host{index}"
            home.mkdir(exist_ok=True)
            environment = {
                "PATH": path,
                "HOME": str(home),
                "BIOMEDLM_HOME": str(home),
                "JAX_PLATFORMS": "cpu",
                "NAME": f"0-{index}",
                "SHOW": "yes",
                "RESTARTS": str(restarts),
                "JOB_COMPLETION_INDEX": str(index),
            }
            with (home / f"stdout{restarts}").open("w") as stdout:
                popen = subprocess.Popen(
                    ["bash", "-c", script],
                    env=environment,
                    stdout=stdout,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self.popens.append(popen)
        self.said = [folder / f"host{i}/stdout{restarts}" for i in range(launch.hosts)]

    def ends(self) -> list[tuple[int, int]]:
        """(pod, exit code) in the order in which they end."""
        found, deadline = [], time.monotonic() + 300
        while len(found) < len(self.popens):
            assert time.monotonic() < deadline, [said.read_text() for said in self.said]
            for index, popen in enumerate(self.popens):
                if popen.poll() is not None and index not in [i for i, _ in found]:
                    found.append((index, popen.returncode))
            time.sleep(0.05)
        return found


def test_a_pod_that_can_not_install_begins_again(tmp_path):
    """For what is wrong with a package server may pass."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "python3").write_text("#!/bin/bash\necho no server; exit 1\n")
    (programs / "python3").chmod(0o755)
    launch = launched("h100-8", workdir=str(tmp_path / "run"), poll_seconds=0.2)
    pods = Pods(tmp_path, launch, launch.config, 0, path=f"{programs}:/usr/bin:/bin")
    assert pods.ends() == [(0, 76)]
    assert "no server" in pods.said[0].read_text()
    (end,) = (tmp_path / "run/launch/ends").glob("*/0-0.json")
    assert end.parent.name == "run-0"


@pytest.mark.slow
def test_two_pods_train_through_a_preemption_and_a_mistake_is_heard_first(store, tmp_path):
    settings = dict(data__store=str(store), mesh__data=2, run__steps=12, run__save_every=4)
    file = config_file(changed(TINY, **settings), tmp_path / "tiny.py")
    whole, workdir = tmp_path / "whole/run", tmp_path / "run"
    finish(file, whole)
    launch = launched("h100-16", workdir=str(workdir), python=sys.executable, poll_seconds=0.2)

    first = Pods(tmp_path, launch, file, 0)
    while "step 4/12" not in first.said[0].read_text():
        assert first.popens[0].poll() is None, first.said[0].read_text()
        time.sleep(0.02)
    first.popens[1].terminate()  # as the kubelet does; process 1 of the container is bash
    assert sorted(first.ends()) == [(0, 75), (1, 75)], first.said[1].read_text()
    again = Pods(tmp_path, launch, file, 1)
    assert sorted(again.ends()) == [(0, 0), (1, 0)], again.said[0].read_text()
    (workdir / "launch").rename(tmp_path / "launch")
    assert_same(workdir, whole)

    # A mistake that process 0 alone can see. The other misses it, and would end before it does.
    with lock.Lock(workdir):
        wrong = Pods(tmp_path, launch, file, 2)
        ends = wrong.ends()
    assert ends == [(0, 2), (1, 76)], [said.read_text() for said in wrong.said]
    assert "is in use by another run" in wrong.said[0].read_text()
