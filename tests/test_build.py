"""The whole build: the same as its parts, on any number of processes, after any interruption."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.store import SPLITS, TokenStore
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from data import documents, stages
from data.build import build
from data.clean import clean
from data.parse import Parse, parse
from data.stages import Runner
from data.tokenize import tokenize
from data.tokenizer import Options, train
from tests.conftest import ROOT

SAMPLE = ROOT / "data/sample"
OPTIONS = Options(size=600, train_bytes=10**9)
FLAGS = [f"--input={SAMPLE}", "--size=600", f"--train_bytes={10**9}"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return Path(build(SAMPLE, tmp_path_factory.mktemp("built") / "corpus", OPTIONS))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def command(output: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "data.build", *FLAGS, f"--output={output}", *more]


def test_is_what_its_parts_make(built, tmp_path):
    parse(SAMPLE, tmp_path / "parsed", 20)
    clean(tmp_path / "parsed", tmp_path / "documents")
    train(tmp_path / "documents", tmp_path / "vocabulary", OPTIONS)
    tokenize(tmp_path / "documents", tmp_path / "vocabulary", tmp_path / "store")
    for part in ("documents", "vocabulary", "store"):
        assert contents(built / part) == contents(tmp_path / part), part
    assert {path.name for path in built.iterdir()} == {
        "documents",
        "vocabulary",
        "store",
        "card.md",
        "card.html",
        "manifest.json",
    }


def test_the_store_holds_the_documents(built):
    for split in SPLITS:
        store = TokenStore(built / "store", split)
        vocabulary = Vocabulary(store.vocabulary_path)
        (whole,) = store.read(np.array([0]), store.tokens)
        texts = [d.text for d in documents.read(built / "documents", split)]
        parts = np.split(whole, store.documents[1:, 0])
        assert [vocabulary.decode(part.tolist()) for part in parts] == texts
        tally = store.manifest["tally"]["split"][split]
        assert tally["tokens"] == store.tokens
        assert tally["documents"] == len(texts)


def test_with_a_vocabulary_that_is_there(built, tmp_path):
    again = build(SAMPLE, tmp_path / "corpus", built / "vocabulary")
    assert contents(Path(again / "store")) == contents(built / "store")
    assert not (again / "vocabulary").exists()


@pytest.mark.slow
def test_beam_makes_the_same(built, tmp_path):
    again = build(SAMPLE, tmp_path / "corpus", OPTIONS, runner=Runner("DirectRunner", 2))
    assert contents(Path(again)) == contents(built)


def test_killed_builds_go_on(built, tmp_path):
    """SIGKILL after every nine items: nothing that was finished is done twice,
    and the end is the same to the byte."""
    output, partial = tmp_path / "corpus", tmp_path / "corpus.partial"
    finished: dict[str, tuple[int, int]] = {}
    kills = 0
    while not output.exists():
        run = subprocess.Popen(
            command(output, "--runner=serial"),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        goal = len(finished) + 9
        while run.poll() is None and len(summaries(partial)) < goal:
            time.sleep(0.002)
        if run.poll() is None:
            run.send_signal(signal.SIGKILL)
            kills += 1
        run.wait()
        assert run.returncode in (0, -signal.SIGKILL)
        if not output.exists():
            now = summaries(partial)
            assert finished.items() <= now.items(), "an item was done again"
            finished = now
        assert kills < 30
    assert kills >= 3
    assert contents(output) == contents(built)


def summaries(partial: Path) -> dict[str, tuple[int, int]]:
    """What marks an item as finished, with what changes when it is written again."""
    found = {}
    for folder, _, names in os.walk(partial):
        for name in names:
            if Path(folder).parent.name == stages.WORK and name.endswith(".json"):
                with contextlib.suppress(FileNotFoundError):  # the folder has got its name
                    status = (Path(folder) / name).stat()
                    found[f"{folder}/{name}"] = (status.st_ino, status.st_mtime_ns)
    return found


def test_other_settings_begin_again(built, tmp_path):
    """What was made with other settings is not gone on with."""
    output = tmp_path / "corpus"
    with pytest.raises(UserError, match="more than the training text"):
        build(SAMPLE, output, Options(size=60_000))
    assert (tmp_path / "corpus.partial/documents/manifest.json").exists()
    assert not output.exists()
    assert contents(Path(build(SAMPLE, output, OPTIONS))) == contents(built)


def test_other_input_begins_again(tmp_path, capsys):
    """A file that has changed since, or is gone, is noticed."""
    source, output = shutil.copytree(SAMPLE / "pubmed", tmp_path / "in"), tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parse, "_settle", interrupted)
        with pytest.raises(KeyboardInterrupt):
            parse(source, output, 20)
    assert (tmp_path / "out.partial/work/read/00000.json").exists()
    (source / "pubmed26n0002.xml.gz").unlink()
    manifest = parse(source, output, 20)
    assert [file["name"] for file in manifest["files"]] == ["pubmed26n0001.xml.gz"]
    assert "other settings, input or code than before" in capsys.readouterr().out


def interrupted(*_):
    raise KeyboardInterrupt


def test_what_is_not_ours_stays(tmp_path):
    """Neither a folder that only has the name of an unfinished one, nor what is in the output."""
    for name in ("out.partial", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and no build that was begun"):
        parse(SAMPLE, tmp_path / "out", 20)
    with pytest.raises(UserError, match="is not empty"):
        parse(SAMPLE, tmp_path / "other", 20)
    for name in ("out.partial", "other"):
        assert (tmp_path / name / "thesis.txt").read_text() == "mine"


def test_two_builds_of_one_output(tmp_path):
    """The second is refused, with whatever settings; the first is not disturbed."""
    settings = {"a": 1}
    with stages.building(epath.Path(tmp_path / "out"), settings) as folder:
        (folder / "kept").write_text("x")
        for other in (settings, {"a": 2}):
            with (
                pytest.raises(UserError, match="is being built by another run"),
                stages.building(epath.Path(tmp_path / "out"), other),
            ):
                pass
        (folder / "half.123.partial").write_text("of a killed run")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept"]


def test_this_folder_as_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match=r"--output=.* is not empty"):
        parse(SAMPLE, ".", 20)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.slow
def test_a_full_disk_is_one_clear_error_and_then_goes_on(built, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a disk")
    try:
        run = command(disk / "corpus", "--workers=2")
        full = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
        assert full.returncode == 2
        (line,) = [x for x in full.stderr.splitlines() if x.startswith("error: ")]
        assert "No space left on device" in line
        assert "Traceback" not in full.stderr
        assert not (disk / "corpus").exists()
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        subprocess.run(run, cwd=ROOT, capture_output=True, check=True)
        assert contents(disk / "corpus") == contents(built)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_clear_error(built, tmp_path):
    """As the system does to the largest process where memory runs out."""
    output = tmp_path / "corpus"
    run = subprocess.Popen(
        command(output, "--workers=2"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while run.poll() is None and len(summaries(tmp_path / "corpus.partial")) < 4:
        time.sleep(0.002)
    for worker in workers_of(run.pid):
        os.kill(worker, signal.SIGKILL)
    said = run.communicate()[1]
    assert run.returncode == 2
    assert "error: a worker process was ended from outside" in said
    assert "Traceback" not in said
    subprocess.run(command(output), cwd=ROOT, check=True, capture_output=True)
    assert contents(output) == contents(built)


def workers_of(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    children = [int(line) for line in found.stdout.split()]
    return [*children, *(below for child in children for below in workers_of(child))]


@pytest.mark.parametrize("more", [[], ["--vocabulary=somewhere", "--size=600"]])
def test_asks_for_one_vocabulary(tmp_path, more):
    arguments = [f"--input={SAMPLE}", f"--output={tmp_path / 'out'}", *more]
    run = [sys.executable, "-m", "data.build", *arguments]
    found = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr.startswith("error: either --size=28896")


def test_manifest_names_what_was_made(built):
    manifest = json.loads((built / "manifest.json").read_text())
    for split in SPLITS:
        assert manifest["store"][split] == TokenStore(built / "store", split).sha256
    assert not list(built.rglob(stages.WORK))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--runner=NoRunner", "--runner=NoRunner can not be used: Unexpected pipeline runner"),
        ("--runner=DataflowRunner", "Missing required option: project"),
        ("--beam=--nosuch=3", "--beam=--nosuch is no option of Apache Beam's"),
        ("--beam=--direct_num_workers=x", "can not read a value"),
    ],
)
def test_runners_that_can_not_be_used(tmp_path, flag, message):
    run = command(tmp_path / "out", flag)
    found = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert message in found.stderr
    assert "Traceback" not in found.stderr
