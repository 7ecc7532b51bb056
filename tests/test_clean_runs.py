"""Whole runs of data.clean: killed and gone on with, on several processes, over real data."""

import collections
import csv
import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from data import clean, documents, parse
from data.stages import Runner
from tests.conftest import ROOT, SHARED
from tests.test_clean import Cleaned, document, text, write
from tests.test_clean_benchmarks import MEDQA, lines

needs_real = pytest.mark.skipif(
    not (SHARED / "qa").is_dir() or not (SHARED / "pmc_jats").is_dir(),
    reason=f"{SHARED}/qa or {SHARED}/pmc_jats is missing",
)


def many(draw, count):
    """Shards in which most documents have a likeness somewhere."""
    texts = [text(draw, 150) for _ in range(count // 4)]
    found = []
    for number in range(1, count + 1):
        own = list(draw.choice(texts))
        own[draw.randrange(150)] = draw.choice(["alpha", "beta"])
        source = draw.choice(["abstract", "full_text", "pile_abstract"])
        found.append(document(number, " ".join(own), source))
    return [found[i::7] for i in range(7)]


def contents(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    """It is killed while it describes shards, and again while it copies them; the third run comes
    to the same bytes as one that was not disturbed."""
    write(tmp_path / "in", *many(random.Random(0), 1400))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "dev.jsonl").write_text(lines(MEDQA))
    command = [
        sys.executable, "-m", "data.clean", f"--input={tmp_path}/in", "--runner=serial",
        f"--benchmarks={tmp_path}/tests",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for killed_in in ("describe/00001.json", "clean/00002.json"):
        run = subprocess.Popen([*command, f"--output={tmp_path}/out"], cwd=ROOT, env=environment,
                               stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # fmt: skip
        seen = tmp_path / "out.partial" / "work" / killed_in
        while not seen.exists() and run.poll() is None:
            time.sleep(0.001)
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        assert not (tmp_path / "out").exists()
        assert seen.exists()
    subprocess.run([*command, f"--output={tmp_path}/out"], cwd=ROOT, env=environment, check=True,
                   capture_output=True)  # fmt: skip
    clean.clean(tmp_path / "in", tmp_path / "whole", None, tmp_path / "tests")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_finished_items_are_not_done_again(tmp_path, monkeypatch):
    """A failure in the last step but one; nothing before it is called by the next run."""
    write(tmp_path / "in", *many(random.Random(0), 70))
    monkeypatch.setattr(clean.choose, "near", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        clean.clean(tmp_path / "in", tmp_path / "out")
    monkeypatch.undo()
    for name in ("contained", "choose", "candidates"):
        monkeypatch.setattr(clean.choose, name, lambda *_: 1 / 0)
    monkeypatch.setattr(clean.describe, "describe", lambda *_: 1 / 0)
    clean.clean(tmp_path / "in", tmp_path / "out")
    assert sum(Cleaned(tmp_path / "out").manifest["counts"]["clean"].values()) == 70


@pytest.mark.slow
def test_processes_come_to_the_same_bytes_as_one(tmp_path):
    write(tmp_path / "in", *many(random.Random(0), 700))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "dev.jsonl").write_text(lines(MEDQA))
    for name, runner in (("one", Runner()), ("two", Runner("DirectRunner", 2))):
        clean.clean(tmp_path / "in", tmp_path / name, None, tmp_path / "tests", runner)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.slow
@needs_real
def test_real_overlap_with_benchmarks(tmp_path):
    """The PMIDs that both have are looked up in the raw files as well: no more and no fewer are
    found. Words that are found beside are read by hand: none is of a test item's own text."""
    parse.parse(SHARED / "pmc_jats", tmp_path / "documents", 20)
    clean.clean(tmp_path / "documents", tmp_path / "out", benchmarks=SHARED / "qa")
    result = Cleaned(tmp_path / "out")
    with (SHARED / "pmc_jats" / "manifest.csv").open(encoding="utf-8") as rows:
        ours = {int(row["pmid"]) for row in csv.DictReader(rows) if row["pmid"]}
    gold = set()
    for file in (SHARED / "qa" / "bioasq").glob("*/*.json.gz"):
        with gzip.open(file, "rt") as raw:
            gold |= {int(n) for n in re.findall(r"pubmed/(\d+)\"[,\]\s]", raw.read())}
    asked = {int(pmid) for pmid in json.loads((SHARED / "qa/pubmedqa/ori_pqal.json").read_text())}
    assert ours & asked == set()
    report = json.loads((result.folder / clean.CONTAMINATION).read_text())
    by_pmid = {id for entry in report.values() for ids in entry["by pmid"].values() for id in ids}
    pmids = {one.id: one.pmid for one in documents.read(tmp_path / "documents")}
    assert {pmids[id] for id in by_pmid} == ours & gold == {26064192}
    assert sum(entry["found"] for entry in report.values()) == report["bioasq test"]["found"] == 3
    assert result.manifest["counts"]["clean"] == {"benchmark": 3, "kept": 1762, "not English": 1}
    assert result.dropped["PMC:2651656"]["reason"] == "not English"  # a list of authors


@pytest.mark.slow
@needs_real
def test_real_abstracts(tmp_path):
    """PubMed has one abstract twice, under two numbers: a paper and the same paper again."""
    parse.parse(SHARED / "pubmed_xml", tmp_path / "documents", 20)
    clean.clean(tmp_path / "documents", tmp_path / "out", benchmarks=SHARED / "qa")
    result = Cleaned(tmp_path / "out")
    assert result.manifest["counts"]["clean"] == {
        "kept": 903, "near duplicate": 1, "too short": 2,
    }  # fmt: skip
    assert result.dropped["PMID:11524736"]["kept"] == "PMID:11748851"
    assert all(not any(e["by pmid"].values()) for e in json.loads(
        (result.folder / clean.CONTAMINATION).read_text()).values())  # fmt: skip
    # English abstracts of articles in other languages stay.
    languages = collections.Counter(d.language for d in documents.read(tmp_path / "out"))
    assert sum(languages.values()) - languages["eng"] == 17
