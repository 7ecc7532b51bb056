"""The corpus on Dataflow: the command, what workers get, and what is seen before it costs money."""

import subprocess
import sys

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from biomedlm_jax.entry import UserError
from launch import dataflow, spec
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
    words = found.stdout.split()
    assert words[:3] == ["python", "-m", "data.build"]
    own = {x for x in words[3:] if not x.startswith("--beam=")}
    assert own == {*CORPUS, "--near=0.7", "--runner=DataflowRunner"}
    assert "--least_words" not in found.stdout  # not given, so data.build's own


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input=ncbi"], "--input=ncbi is not on gs://"),
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
        ("europe-west4", {}, r"--input=.* is in europe-west4, the workers in us-west4: every byte"),
        ("europe-west4", dict(cross_region=True), "is not there"),
    ],
)
def test_buckets_are_looked_at(place, more, message, monkeypatch, tmp_path):
    monkeypatch.setattr(dataflow.preflight, "location", lambda bucket: place)
    monkeypatch.setattr(dataflow.epath, "Path", lambda path: tmp_path / "none")
    with pytest.raises(UserError, match=message):
        dataflow.check(launched(**more), "gs://my-bucket/ncbi", "gs://my-bucket/pubmed")


def test_workers_get_all_that_they_import(tmp_path):
    wheel = dataflow.make_wheel(tmp_path, SHA256)
    assert dataflow.make_wheel(tmp_path, SHA256) == wheel  # the same code is packed once
    assert [file.name for file in tmp_path.iterdir()] == [dataflow.wheel_name(SHA256)]
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
