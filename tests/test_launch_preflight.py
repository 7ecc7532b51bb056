"""What is wrong is said before anything is created: all of it, each in one message."""

import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from biomedlm_jax import claim
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.store import TokenStore
from launch import bundle, machines, preflight, prices, spec, tpu_api
from launch.bundle import Bundle
from launch.tpu_api import Patience, Tpus
from tests.bucket import python, serving
from tests.conftest import ROOT, changed
from tests.fake_cloud_tpu import FakeCloudTpu

RIGHT = {
    "config": "configs/demo.py",
    "workdir": "gs://my-bucket/runs/one",
    "project": "my-project",
    "zone": "us-west4-a",
    "accelerator": "v4-16",
}
CLEAN = Bundle("0123456789abcdef", b"", "", ())


def launch(**fields):
    return spec.read(spec.DEFAULT, {**RIGHT, **fields})


@pytest.fixture(scope="module")
def tpus(tmp_path_factory):
    """tpus(launch) of a local Cloud TPU."""
    with FakeCloudTpu(tmp_path_factory.mktemp("cloud")) as cloud:
        os.environ[tpu_api.ENDPOINT] = cloud.endpoint
        try:
            yield lambda launch: Tpus(launch, Patience(first=0.01, longest=0.02, whole=0.1))
        finally:
            del os.environ[tpu_api.ENDPOINT]


@pytest.fixture
def experiment(store):
    return spec.experiment(launch(), [f"--config.data.store={store}", "--config.model.vocab=300"])


def said(checks, name):
    [check] = [check for check in checks if check.name == name]
    return check.verdict, check.said


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "My_Run"}, "--name='My_Run' would be refused by Google Cloud: .* 'my-run' would"),
        ({"name": "2p7b"}, "'run-2p7b' would do"),
        ({"name": "x" * 41}, "at most 40 in all"),
        ({"project": ""}, "--project is missing; for example --project=my-project"),
        ({"project": "No"}, "--project='No' is no project of Google Cloud"),
        ({"zone": ""}, "--zone is missing"),
        (
            {"zone": "us-west4"},
            "--zone='us-west4' is no zone of Google Cloud; one is as us-west4-a",
        ),
        ({"workdir": ""}, "--workdir is missing; for example --workdir=gs://my-bucket/runs/one"),
        ({"workdir": "gs://A/run"}, "'A' is no name of a bucket"),
        ({"workdir": "gs://my-bucket/a b"}, "has other characters"),
        ({"config": ""}, "--config is missing"),
        ({"config": "configs/none.py"}, "--config=configs/none.py names no config file"),
        ({"accelerator": ""}, "--accelerator is missing"),
        ({"accelerator": "v5e-250"}, "--accelerator='v5e-250' .*; nearest are v5e-256 and v5e-128"),
        ({"accelerator": "v5lite-16"}, "nearest are v5e-16 and v5e-8"),
        ({"accelerator": "v5p256"}, "did you mean v5p-256"),
        ({"accelerator": "h100-12"}, "h100 comes as h100-8, any multiple of 8"),
        ({"accelerator": "v4-8"}, "does not give the 4 devices"),
        ({"slices": 3}, "does not give the 24 devices"),
    ],
)
def test_names_and_settings(fields, message):
    wrong = pytest.raises(UserError, match=message)
    with wrong:
        preflight.conclude(preflight.local(launch(**fields), [], CLEAN))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"slices": 0}, "launch.slices=0 is not positive"),
        ({"restarts": -1}, "launch.restarts=-1 is not 0 or more"),
        ({"backoff_limit_seconds": 1.0}, "is less than launch.backoff_seconds"),
        ({"capacity": "reserved"}, "a reservation is named where capacity is 'reserved'"),
        ({"capacity": "cheap"}, "launch.capacity='cheap'; allowed are 'on-demand', 'spot'"),
        ({"acelerator": "v5e-8"}, "launch.acelerator is no setting; did you mean accelerator"),
    ],
)
def test_a_launch_file_is_checked_as_a_config_is(fields, message):
    with pytest.raises(UserError, match=message):
        launch(**fields)


def test_all_is_said_at_once():
    checks = preflight.local(launch(name="A", project="", accelerator="v9-1"), [], CLEAN)
    with pytest.raises(UserError, match=r"^3 things are wrong, and nothing was created:\n  \* --n"):
        preflight.conclude(checks)
    assert preflight.table(checks).count("WRONG") == 3


def test_a_changed_tree_is_said_and_saved(tmp_path):
    def git(*command):
        user = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
        subprocess.run(["git", "-C", str(tmp_path / "tree"), *user, *command], check=True)

    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").write_text("one\n")
    (tmp_path / "tree/run").write_text("#!/bin/sh\n")
    (tmp_path / "tree/run").chmod(0o755)
    git("init", "-q")
    with pytest.raises(UserError, match="no git repository with a commit"):
        bundle.make(tmp_path / "tree")
    git("add", ".")
    git("commit", "-qm", "one")
    clean = bundle.make(tmp_path / "tree")
    assert said(preflight.local(launch(), [], clean), "tree")[0] == "ok"
    (tmp_path / "tree/a").touch()
    (tmp_path / "tree/run").touch()
    assert bundle.make(tmp_path / "tree").data == clean.data  # whenever it is made

    (tmp_path / "tree/a").write_text("two\n")
    (tmp_path / "tree/new").write_text("")
    changed = bundle.make(tmp_path / "tree")
    assert changed.name != clean.name
    verdict, text = said(preflight.local(launch(), [], changed), "tree")
    assert verdict == "note"
    assert f"saved as {changed.name}.diff; not in it: new, which git does not track" in text
    place = str(tmp_path / "place")
    archive = Path(bundle.upload(changed, place))
    assert archive.name == f"{changed.name}.tar.gz"
    assert "+two" in (archive.parent / f"{changed.name}.diff").read_text()
    before = archive.stat().st_mtime_ns
    assert bundle.upload(changed, place) == str(archive)
    assert archive.stat().st_mtime_ns == before
    subprocess.run(["tar", "-xzf", str(archive), "-C", str(tmp_path)], check=True)
    assert (tmp_path / "a").read_text() == "two\n"
    assert os.access(tmp_path / "run", os.X_OK)


@pytest.mark.parametrize(
    ("fields", "name", "message"),
    [
        (
            {"zone": "us-west4-c"},
            "zone",
            "--zone=us-west4-c has no TPUs; nearest that have: us-west4-a, us-west4-b",
        ),
        ({"zone": "us-est5-a"}, "zone", "nearest that have: us-east5-a"),
        (
            {"accelerator": "v5e-128"},
            "accelerator",
            "--accelerator=v5e-128 is not in us-west4-a; it has v5litepod-16, v5litepod-4, "
            "v5litepod-1",
        ),
        (
            {"accelerator": "v6e-16"},
            "accelerator",
            "--accelerator=v6e-16 is not in us-west4-a; it has v4, v5litepod, v5p",
        ),
        ({"runtime": "v2-alpha-tpuv5lite"}, "runtime", "nearest: v2-alpha-tpuv5-lite"),
    ],
)
def test_what_is_not_there_in_the_cloud(fields, name, message, tpus, experiment, tmp_path):
    asked = launch(workdir=str(tmp_path / "run"), **fields)
    checks = preflight.cloud(asked, experiment, tpus(asked), lambda bucket: "us-west4")
    verdict, text = said(checks, name)
    assert (verdict, message in text) == ("wrong", True), text


def test_all_is_right(tpus, experiment, tmp_path):
    asked = launch(workdir=str(tmp_path / "run"))
    checks = preflight.cloud(asked, experiment, tpus(asked), lambda bucket: "us-west4")
    preflight.conclude(checks)
    assert {check.name: check.verdict for check in checks} == {
        **dict.fromkeys(["zone", "accelerator", "runtime", "workdir", "data", "requests"], "ok"),
        **dict.fromkeys(["bucket", "quota"], "note"),
    }


@pytest.mark.parametrize(
    ("where", "verdict"),
    [("us-west4", "ok"), ("us", "ok"), ("us-east1", "wrong"), ("eu", "wrong")],
)
def test_a_bucket_in_another_region_costs_and_is_refused(where, verdict, experiment):
    check = preflight._tried(
        "bucket", lambda: preflight._bucket(launch(), experiment, lambda b: where)
    )
    assert check.verdict == verdict
    if verdict == "wrong":
        assert f"gs://my-bucket is in {where}, the chips in us-west4" in check.said
        assert "cost at least $" in check.said
        assert check.said.endswith("take a bucket in us-west4, or say --cross_region")
        forced = launch(cross_region=True)
        assert preflight._bucket(forced, experiment, lambda b: where).verdict == "note"


def test_a_folder_that_is_another_one_on_each_host(experiment):
    with pytest.raises(UserError, match=r"--workdir=runs/one means another folder on each host"):
        preflight._bucket(launch(workdir="runs/one"), experiment, lambda bucket: "")


def test_the_cost_of_another_region_is_that_of_checkpoints():
    """300,000 steps of the 2.7B with a save each 1,000."""
    changes = ["--config.run.save_every=1000", "--config.run.keep_every=0"]
    big = spec.experiment(launch(config="configs/pretrain_2p7b.py"), changes)
    count, gigabytes = big.run.steps // 1000, 2_594_247_680 * 12 / 1e9
    expected = f"{count} checkpoints of {gigabytes:.1f} GB between regions cost at least "
    assert f"{expected}${count * gigabytes * prices.EGRESS_GB:,.2f}" in preflight._crossing(big)


def test_buckets_say_where_they_are():
    with serving("corpus", "closed", every=0) as (environment, _):
        code = "import sys; from launch import preflight; print(preflight.location(sys.argv[1]))"
        assert python(environment, code, "corpus").strip() == "us-central1"
        for name in ("nowhere", "closed"):
            refused = f"""
from biomedlm_jax.entry import UserError
from launch import preflight
try:
    preflight.location({name!r})
except UserError as error:
    print(error)
"""
            found = python(environment, refused)
            assert found.startswith(f"gs://{name}: ")
            assert f"gcloud storage buckets create gs://{name} --location=REGION" in found


def test_a_workdir_of_another_run(experiment, store, tmp_path):
    workdir = tmp_path / "run"
    claim.claim(workdir, experiment, TokenStore(str(store), "train"))
    asked = launch(workdir=str(workdir))
    check = preflight._workdir(asked, experiment)
    assert (check.verdict, check.said) == ("ok", f"{workdir} goes on from step 0")
    wrong = r"belongs to a run with other settings: config.run.steps: 300 before, 400 now; name"
    with pytest.raises(UserError, match=wrong):
        preflight._workdir(asked, changed(experiment, run__steps=400))


def test_data_that_hosts_do_not_have(experiment):
    with pytest.raises(
        UserError, match=r"config.data.store=.* is a folder of this machine, which "
    ):
        preflight._data(launch(), experiment)


def test_no_permission_is_one_message(tmp_path, monkeypatch):
    with FakeCloudTpu(tmp_path) as cloud:
        monkeypatch.setenv(tpu_api.ENDPOINT, cloud.endpoint)
        cloud.fail("ListLocations", grpc.StatusCode.PERMISSION_DENIED, "Permission denied on it")
        cloud.fail("ListAcceleratorTypes", grpc.StatusCode.UNAUTHENTICATED, "No token")
        found = Tpus(launch())
        with pytest.raises(
            UserError, match=r"Permission denied on it; let an owner .*roles/tpu.adm"
        ):
            found.zones()
        with pytest.raises(UserError, match="No token; log in: gcloud auth application-default"):
            found.accelerator_types()


def test_no_credentials_is_one_message(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != tpu_api.ENDPOINT}
    environment |= {"HOME": str(tmp_path), "NO_GCE_CHECK": "true", "JAX_PLATFORMS": "cpu"}
    environment.pop("GOOGLE_APPLICATION_CREDENTIALS", None)
    flags = [f"--{name}={value}" for name, value in RIGHT.items()]
    done = subprocess.run(
        [sys.executable, "-m", "launch.tpu", "create", *flags, "--yes"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "there are no credentials for Google Cloud" in done.stderr
    assert "gcloud auth application-default login" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_plan_is_asked_for_one_slice(monkeypatch):
    """With its share of the batch; what it says comes back in one line."""
    asked = {}

    def run(command, **_):
        asked["command"] = command
        file = next(flag for flag in command if flag.startswith("--json=")).removeprefix("--json=")
        answer = {
            "fits": True,
            "memory": {"needed": 8.5e9, "limit": 16.9e9},
            "predicted": {"seconds": 0.45, "days": 1.5, "cost": 0},
        }
        Path(file).write_text(preflight.json.dumps({"answers": [answer]}))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(preflight.subprocess, "run", run)
    monkeypatch.setattr(preflight.child, "missing", lambda platform: None)
    two = launch(config="configs/pretrain_2p7b.py", accelerator="v5e-256", slices=2)
    check = preflight.planned(two, [], spec.experiment(two, []))
    assert "--config.data.batch=512" in asked["command"]
    assert "--topology=v5e:16x16" in asked["command"]
    assert check.verdict == "ok"
    assert "fits, 8.5 of 16.9 GB a chip; 0.45 s a step, 36.0 hours, $22,118 at $1.20" in check.said
    assert "list price of" in check.said


@pytest.mark.slow
def test_the_plan_is_asked_for_real(monkeypatch):
    """What it needs may not be installed: then it is said to be unknown."""
    small = launch(config="configs/pretrain_125m.py", accelerator="v5e-8")
    check = preflight.planned(small, [], spec.experiment(small, []))
    if check.verdict == "note":
        assert "not known" in check.said
        pytest.skip(check.said)
    assert check.verdict == "ok", check.said
    assert "predicted, nothing was measured" in check.said


def test_every_machine_has_its_facts():
    for machine in machines.SLICES.values():
        assert machine.hosts * machine.chips_of_host == machine.chips
        assert machines.named(machine.api_type) is machine
        assert prices.chip_hour(machine) > 0
        assert preflight.named(machine.plan_topology).devices == machine.chips
    big = machines.named("v5p-256")
    assert (big.chips, big.hosts, big.plan_topology) == (128, 32, "v5p:4x4x8")
    assert machines.named("v5litepod-256").hosts == 64
    gpus = machines.named("h100-64")
    assert (gpus.hosts, gpus.machine_type, gpus.extra) == (8, "a3-highgpu-8g", "cuda")
    assert preflight.named(gpus.plan_topology).devices == 64
