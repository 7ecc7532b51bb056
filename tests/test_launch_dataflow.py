"""The corpus on Dataflow: the command, what workers get, and what is seen before it costs money."""

import subprocess
import sys
import zipfile

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from biomedlm_jax.entry import UserError
from launch import bundle, checks, dataflow, spec
from tests.conftest import ROOT

CORPUS = ["--input=gs://my-bucket/ncbi", "--output=gs://my-bucket/pubmed", "--size=28896"]
SHA256 = "0123456789abcdef" * 4


def launched(**given) -> spec.Launch:
    return spec.read(spec.DEFAULT, dict(project="my-project", zone="us-west4-a") | given)


def command(launch: spec.Launch, image: str = "") -> list[str]:
    return dataflow.build_command(
        launch,
        CORPUS,
        "gs://my-bucket/pubmed",
        image=image,
        machine="n2-standard-8",
        workers=100,
        wheel=f"{dataflow.WHEELS}/{dataflow.wheel_name(SHA256)}",
    )


def shell(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "launch.dataflow", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_golden_commands(golden):
    image = "us-docker.pkg.dev/my-project/biomedlm/workers:1"
    network = dict(subnetwork="ours", external_ips=False, name="pubmed-2026")
    lines = [command(launched()), command(launched(**network), image)]
    found = "\n\n".join(" \\\n  ".join(["python -m", *line]) for line in lines) + "\n"
    assert found == golden("dataflow.txt", found)


@pytest.mark.parametrize("image", ["", "us-docker.pkg.dev/my-project/biomedlm/workers:1"])
def test_beam_knows_every_option(image):
    """data.build refuses one that Beam does not know, but only when it has begun."""
    launch = launched(subnetwork="ours", external_ips=False, network="net", service_account="me")
    given = [x.removeprefix("--beam=") for x in command(launch, image) if x.startswith("--beam=")]
    known, asked = (
        PipelineOptions(given).get_all_options(True, retain_unknown_options=retain)
        for retain in (False, True)
    )
    assert len(given) == len(asked) == len(known)
    assert known["subnetwork"] == "regions/us-west4/subnetworks/ours"
    assert known["use_public_ips"] is False


def test_the_command_line_gives_data_build_its_flags_and_no_others():
    found = shell(*CORPUS, "--near=0.7", "--project=my-project", "--zone=us-west4-a", "--dry_run")
    assert found.returncode == 0, found.stderr
    packed, made, line = found.stdout.splitlines()
    assert packed.startswith("# packs the code (commit ")
    words = line.split()
    assert f"--beam=--extra_package={made.removeprefix('#').strip()}" in words
    assert words[:3] == ["python", "-m", "data.build"]
    own = {x for x in words[3:] if not x.startswith("--beam=")}
    assert own == {*CORPUS, "--near=0.7", "--runner=DataflowRunner"}
    assert "--least_words" not in found.stdout  # not given, so data.build's own


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input=ncbi"], "--input=ncbi is not on gs://"),
        (["--output=gs://bucket"], "--output=gs://bucket is not gs://BUCKET/FOLDER"),
        (["--output=gs://my-bucket/ncbi/x"], "is in --input=gs://my-bucket/ncbi"),
        (["--vocabulary=gs://my-bucket/v"], "say --size=28896, tokens of a vocabulary to make, or"),
        (["--benchmarks=runs/b"], "--benchmarks=runs/b is not on gs://"),
        (["--output=runs/corpus"], "--output=runs/corpus is not on gs://"),
        (["--zone=mars"], "--zone='mars' is no zone of Google Cloud; one is as us-west4-a"),
        (["--project="], "--project is missing; for example --project=my-project"),
        (["--name=Pub_Med"], "'pub-med' would do"),
        (["--size=ten"], "flag --size=ten"),
    ],
)
def test_what_is_wrong_is_said_before(flags, message):
    found = shell(*CORPUS, "--project=my-project", "--zone=us-west4-a", "--dry_run", *flags)
    assert found.returncode == 2
    assert message in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("place", "more", "message"),
    [
        ("us-west4", {}, "--input=gs://my-bucket/ncbi is not there"),
        ("us", {}, "is not there"),
        (
            "europe-west4",
            {},
            r"--input=.* is in europe-west4, the machines in us-west4: every byte that is read",
        ),
        ("europe-west4", dict(cross_region=True), "is not there"),
    ],
)
def test_buckets_are_looked_at(place, more, message, monkeypatch, tmp_path):
    monkeypatch.setattr(dataflow.epath, "Path", lambda path: tmp_path / "none")
    found = dataflow.preflight(
        launched(**more),
        "gs://my-bucket/ncbi",
        "gs://my-bucket/pubmed",
        "n2-standard-8",
        100,
        lambda bucket: place,
    )
    with pytest.raises(UserError, match=message):
        checks.conclude(found)


@pytest.mark.parametrize(
    ("machine", "cost"),
    [
        # 8 x $0.056 + 32 GB x $0.003557 + 100 GB x $0.000054
        ("n2-standard-8", "at most 10 workers n2-standard-8 at $0.57 an hour, $5.67 in all"),
        ("n2-custom-4-5120", "at an unknown price (list"),
    ],
)
def test_what_workers_cost_is_said_and_asked_about(machine, cost, tmp_path):
    """By the command itself, with everything that Google says as it should be."""
    line = [*CORPUS, "--project=my-project", "--zone=us-west4-a", "--workers=10"]
    for answer in ("n\n", ""):
        found = subprocess.run(
            [sys.executable, "-c", ALL_IS_WELL, *line, f"--worker_machine={machine}"],
            cwd=ROOT, input=answer, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert found.returncode == 2
        assert cost in found.stdout
        assert "Start it? [y/N]" in found.stdout
        assert "nothing was started, for nobody said yes" in found.stderr


ALL_IS_WELL = """
import pathlib, runpy
from etils import epath
from data import build
from launch import buckets, login
from launch.checks import Check
login.credentials = lambda: Check("credentials", "ok", "")
buckets.location = lambda project: lambda bucket: "us-west4"
epath.Path = lambda path: pathlib.Path("/")
runpy.run_module("launch.dataflow", run_name="__main__")
"""


def test_workers_get_all_that_they_import(tmp_path):
    """And only what git tracks, by which the wheel has its name."""
    stray = ROOT / "data/stray_of_a_test.py"
    stray.write_text("")
    try:
        copy = bundle.make(ROOT)
        wheel = dataflow.make_wheel(tmp_path, copy)
    finally:
        stray.unlink()
    assert dataflow.make_wheel(tmp_path, copy) == wheel  # the same code is packed once
    assert [file.name for file in tmp_path.iterdir()] == [dataflow.wheel_name(copy.sha256)]
    names = zipfile.ZipFile(wheel).namelist()
    assert "data/build.py" in names
    assert "data/parsing/jats.py" in names
    assert "data/stray_of_a_test.py" not in names
    script = f"""
import sys
sys.path.insert(0, {str(wheel)!r})
import biomedlm_jax
from data import build
assert build.__file__.startswith({str(wheel)!r}), build.__file__
assert biomedlm_jax.__file__.startswith({str(wheel)!r})
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


def test_what_goes_on_without_the_launcher_is_said():
    said = dataflow.left(launched(), "pubmed")
    assert "gcloud dataflow jobs cancel --project=my-project --region=us-west4" in said
    assert "--filter=name=pubmed" in said
