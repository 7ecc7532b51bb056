"""What is wrong is said before anything is created: all of it, each in one message."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from biomedlm_jax import claim
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.store import TokenStore
from launch import bundle, checks, machines, preflight, prices, spec, tpu_api
from launch.bundle import Bundle
from launch.quotas import Quotas
from launch.tpu_api import Patience, Tpus
from tests.bucket import python, serving
from tests.conftest import changed
from tests.fake_cloud_tpu import FakeCloudTpu

RIGHT = {
    "config": "configs/demo.py",
    "workdir": "gs://my-bucket/runs/one",
    "project": "my-project",
    "zone": "us-west4-a",
    "accelerator": "v4-16",
}
FILES = frozenset(["configs/demo.py", "configs/pretrain_2p7b.py"])
CLEAN = Bundle("0123456789abcdef", b"", FILES, "", ())


def launch(**fields):
    return spec.read(spec.DEFAULT, {**RIGHT, **fields})


@pytest.fixture(scope="module")
def tpus(tmp_path_factory):
    """tpus(launch) of a local Cloud TPU; tpus.cloud is that."""

    def made(launch):
        return Tpus(launch, Patience(first=0.01, longest=0.02, whole=0.1))

    with FakeCloudTpu(tmp_path_factory.mktemp("cloud")) as cloud:
        os.environ[tpu_api.ENDPOINT] = cloud.endpoint
        made.cloud = cloud
        try:
            yield made
        finally:
            del os.environ[tpu_api.ENDPOINT]


@pytest.fixture
def experiment(store):
    return spec.experiment(launch(), [f"--config.data.store={store}", "--config.model.vocab=300"])


def said(found, name):
    [check] = [check for check in found if check.name == name]
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
        ({"workdir": "gs:///run"}, "'' is no name of a bucket"),
        ({"workdir": "runs/one"}, "--workdir=runs/one means another folder on each host"),
        ({"network": "A B"}, "--network='A B' is no name that Google Cloud has"),
        ({"workdir": "gs://my-bucket/a b"}, "has other characters"),
        ({"config": ""}, "--config is missing"),
        ({"config": "configs/none.py"}, "--config=configs/none.py names no config file"),
        ({"config": "configs/small.py"}, "--config=configs/small.py is no file that git tracks"),
        ({"config": "./configs/small.py"}, "hosts get those alone; git add ./configs/small.py"),
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
        checks.conclude(preflight.local(launch(**fields), [], CLEAN))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"slices": 0}, "launch.slices=0 is not positive"),
        ({"queue_hours": 1e300}, "launch.queue_hours=1e[+]300 is more than a year"),
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
    found = preflight.local(launch(name="A", project="", accelerator="v9-1"), [], CLEAN)
    with pytest.raises(UserError, match=r"^3 things are wrong, and nothing was created:\n  \* --n"):
        checks.conclude(found)
    assert checks.table(found).count("WRONG") == 3


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

    git("config", "color.ui", "always")
    git("config", "diff.external", "/bin/true")
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
    (tmp_path / "tree/run").unlink()
    (tmp_path / "tree/run").mkdir()
    with pytest.raises(UserError, match="run is a folder where git has a file"):
        bundle.make(tmp_path / "tree")


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
    found = looked(asked, experiment, tpus)
    verdict, text = said(found, name)
    assert (verdict, message in text) == ("wrong", True), text


def test_all_is_right(tpus, experiment, tmp_path):
    asked = launch(workdir=str(tmp_path / "run"))
    found = looked(asked, experiment, tpus)
    checks.conclude(found)
    right = ["zone", "accelerator", "runtime", "quota", "workdir", "data", "requests"]
    assert {check.name: check.verdict for check in found} == {
        **dict.fromkeys(right, "ok"),
        "bucket": "note",
    }


@pytest.mark.parametrize(
    ("fields", "limits", "verdict", "message"),
    [
        ({}, {}, "ok", "TPUV4sPodPerProjectPerZoneForTPUAPI and TPUV4sPodPerProjectPerRegionFor"),
        (
            {},
            {"TPUV4sPodPerProjectPerZoneForTPUAPI": 7},
            "wrong",
            "--accelerator=v4-16 needs 8 chips, and the project's quota TPUV4sPodPerProjectPerZone"
            "ForTPUAPI is 7 in us-west4-a; ask for more at IAM & Admin > Quotas",
        ),
        ({}, {"TPUV4sPodPerProjectPerRegionForTPUAPI": 0}, "wrong", "ForTPUAPI is 0 in us-west4-a"),
        ({}, {"TPUV4sPodPerProjectPerZoneForTPUAPI": -1}, "ok", "suffice"),
        ({}, {"TPUV4sPodPerProjectPerZoneForTPUAPI": None}, "ok", "TPUV4sPodPerProjectPerRegion"),
        (
            {},
            dict.fromkeys(
                ["TPUV4sPodPerProjectPerZoneForTPUAPI", "TPUV4sPodPerProjectPerRegionForTPUAPI"]
            ),
            "note",
            "not known before it is asked for: Cloud Quotas API is disabled; 8 chips of v4 are",
        ),
        (
            {"capacity": "spot", "accelerator": "v5e-16"},
            {"TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI": 0},
            "wrong",
            "--accelerator=v5e-16 needs 16 chips",
        ),
        # Of one host, either kind of v5e's quota may be that which counts.
        (
            {"accelerator": "v5e-4"},
            {"TPUV5sLitepodPerProjectPerZoneForTPUAPI": 0},
            "ok",
            "TPUV5sLitepodServingPer",
        ),
        ({"capacity": "reserved", "reservation": "mine"}, {}, "ok", "that of the reservation"),
    ],
)
def test_quota_is_known_before_anything_is_asked_for(
    fields, limits, verdict, message, tpus, experiment, tmp_path
):
    tpus.cloud.quotas = limits
    asked = launch(workdir=str(tmp_path / "run"), **fields)
    found = said(looked(asked, experiment, tpus), "quota")
    tpus.cloud.quotas = {}
    assert found[0] == verdict
    assert message in found[1]


def looked(asked, experiment, tpus):
    limit = Quotas(asked).limit
    return preflight.cloud(asked, experiment, tpus(asked), limit, lambda bucket: "us-west4")


@pytest.mark.parametrize(
    ("where", "verdict"),
    [
        ("us-west4", "ok"),
        ("us-central1+us-west4", "ok"),
        ("us", "note"),
        ("us-east1", "wrong"),
        ("nam4", "wrong"),
        ("eu", "wrong"),
    ],
)
def test_a_bucket_in_another_region_costs_and_is_refused(where, verdict, experiment):
    check = checks.tried("bucket", lambda: preflight._bucket(launch(), experiment, lambda b: where))
    assert check.verdict == verdict
    if verdict == "note":
        assert (
            f"several regions ({where}), from which a GB that is read may cost $0.02" in check.said
        )
    if verdict == "wrong":
        assert f"--workdir={RIGHT['workdir']} is in {where}, the machines in us-west4" in check.said
        assert "cost at least $" in check.said
        assert check.said.endswith("take a bucket in us-west4, or say --cross_region")
        forced = launch(cross_region=True)
        assert preflight._bucket(forced, experiment, lambda b: where).verdict == "note"


@pytest.mark.parametrize(
    ("zone", "where", "verdict"),
    [
        ("us-central1-a", "nam4", "ok"),
        ("europe-west4-b", "eur4", "ok"),
        ("europe-west4-b", "eu", "note"),
        ("europe-west2-b", "eu", "wrong"),
        ("us-central1-ai1a", "us-central1", "ok"),
        ("northamerica-northeast1-a", "us", "wrong"),
    ],
)
def test_buckets_of_several_regions(zone, where, verdict, experiment):
    asked = launch(zone=zone)
    check = checks.tried("bucket", lambda: preflight._bucket(asked, experiment, lambda b: where))
    assert check.verdict == verdict


def test_data_in_another_region_cost_as_well(experiment, monkeypatch):
    monkeypatch.setattr(preflight.epath, "Path", lambda path: Path(__file__).parent)
    far = changed(experiment, data__store="gs://far/store")
    wrong = r"config.data.store=gs://far/store is in eu, .* GB and costs at least \$"
    with pytest.raises(UserError, match=wrong):
        preflight._data(launch(), far, lambda bucket: "eu")


def test_the_cost_of_another_region_is_that_of_checkpoints():
    """300,000 steps of the 2.7B with a save each 1,000."""
    changes = ["--config.run.save_every=1000", "--config.run.keep_every=0"]
    big = spec.experiment(launch(config="configs/pretrain_2p7b.py"), changes)
    count, gigabytes = big.run.steps // 1000, 2_594_247_680 * 12 / 1e9
    expected = f"{count} checkpoints of {gigabytes:.1f} GB between regions cost at least "
    assert f"{expected}${count * gigabytes * prices.EGRESS_GB:,.2f}" in preflight._crossing(big)


def test_buckets_say_where_they_are():
    with serving("corpus", "closed", every=0) as (environment, _):
        code = "import sys; from launch import buckets; print(buckets.location('')(sys.argv[1]))"
        assert python(environment, code, "corpus").strip() == "us-central1"
        for name, what in {
            "nowhere": "gcloud storage buckets create gs://nowhere --location=REGION",
            "closed": "you may not see gs://closed; let its owner give you the role",
        }.items():
            refused = f"""
from biomedlm_jax.entry import UserError
from launch import buckets, spec
launch = spec.read(spec.DEFAULT, {{"project": "my-project", "zone": "us-west4-a"}})
try:
    where = buckets.location("my-project")
    buckets.placed(launch, "--input=gs://{name}/a", "input", where, "all")
except UserError as error:
    print(error)
"""
            found = python(environment, refused)
            assert found.startswith(f"--input=gs://{name}/a: ")
            assert what in found


def test_a_workdir_of_another_run(experiment, store, tmp_path):
    workdir = tmp_path / "run"
    claim.claim(workdir, experiment, TokenStore(str(store), "train"))
    asked = launch(workdir=str(workdir))
    check = preflight.workdir(asked, experiment)
    assert (check.verdict, check.said) == ("ok", f"{workdir} goes on from step 0")
    wrong = r"belongs to a run with other settings: config.run.steps: 300 before, 400 now; name"
    with pytest.raises(UserError, match=wrong):
        preflight.workdir(asked, changed(experiment, run__steps=400))


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (
            "demo",
            [],
            "config.data.store=runs/demo/corpus/store is a folder of this machine, which h",
        ),
        (
            "finetune_pubmedqa",
            ["--config.task.benchmarks=gs://my-bucket/b"],
            "config.start=runs/BioMedLM is a folder of this machine, which hosts do not have",
        ),
    ],
)
def test_data_that_hosts_do_not_have(config, changes, message):
    """Nor weights to begin with; which is seen without asking anybody."""
    files = Bundle("0123456789abcdef", b"", frozenset([f"configs/{config}.py"]), "", ())
    found = preflight.local(launch(config=f"configs/{config}.py"), changes, files)
    assert said(found, "data")[0] == "wrong"
    assert message in said(found, "data")[1]


def test_folders_that_are_not_there(experiment, tmp_path):
    asked, where = launch(workdir=str(tmp_path / "run")), lambda bucket: "us-west4"
    with pytest.raises(UserError, match=r"config.data.store=.* is no store: it has no manifest"):
        preflight._data(asked, changed(experiment, data__store=str(tmp_path)), where)
    with pytest.raises(UserError, match=r"config.start=.*/weights is not there; copy it there"):
        preflight._data(asked, changed(experiment, start=f"hf:{tmp_path}/weights"), where)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "--config={file} makes no config: it has no get_config"),
        ("get_config = lambda: 1 / 0", r"--config={file} makes no config: ZeroDivisionError"),
        ("def", r"--config={file} makes no config: SyntaxError"),
        ("get_config = lambda: 5", "--config={file} : "),
    ],
)
def test_what_makes_no_config(text, message, monkeypatch, tmp_path):
    asked = launch(config="mine.py")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError) as found:
        spec.experiment(asked, [])
    assert message.format(file="mine.py") in str(found.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe\x00", "can not be read as YAML"),
        (b"zone: 2020-13-45", "can not be read as YAML"),
        (b"1: a", "is no list of settings"),
    ],
)
def test_what_is_no_launch_file(text, message, tmp_path):
    (tmp_path / "launch.yaml").write_bytes(text)
    with pytest.raises(UserError, match=message):
        spec.read(str(tmp_path / "launch.yaml"))


def test_storage_that_does_not_answer_leaves_the_other_findings():
    def away():
        raise ValueError("invalid")  # as gcsfs does

    check = checks.tried("data", away)
    assert (check.verdict, "can not be looked at (invalid)" in check.said) == ("wrong", True)
    with pytest.raises(ZeroDivisionError):
        checks.tried("data", lambda: 1 / 0)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, EOFError, RuntimeError("input(): lost sys.stdin")]
)
def test_no_answer_is_no_yes(error, monkeypatch):
    def asked(question):
        raise error

    monkeypatch.setattr("builtins.input", asked)
    assert not checks.confirmed("Create it?")


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
        Path(file).write_text(json.dumps({"answers": [answer]}))
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
    rare = spec.experiment(two, ["--config.run.log_every=5000"])
    check = preflight.planned(two, [], rare)
    assert check.verdict == "wrong"
    assert "config.run.log_every=5000 is a line of the log in 38 minutes; hosts that" in check.said


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
