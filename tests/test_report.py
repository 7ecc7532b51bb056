"""The report of a run: of one with all kinds of events, one that goes on, one that has only begun,
and of files with anything in them."""

import dataclasses
import json
import math
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import lxml.html
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from biomedlm_jax import report
from biomedlm_jax.checkpoint import Claim
from biomedlm_jax.entry import UserError
from biomedlm_jax.reports import charts, happened, record, sections, times
from biomedlm_jax.reports.charts import Curve
from tests.conftest import TINY, changed

HOSTILE = "<script>alert(1)</script>\u202e\x00 &amp; \"'"
BEGAN = 1_700_000_000.0
STEPS = 4000
RUN = changed(TINY, run__steps=STEPS, run__log_every=10, run__eval_every=200, run__save_every=500)
LAYERS = list(sections.LAYERS)


def train_lines(last: int, every: int = 10) -> list[dict]:
    draw, lines = random.Random(1), []
    for step in range(every, last + 1, every):
        loss = 2.4 + 6 * math.exp(-step / 300) + draw.gauss(0, 0.03)
        norms = {f"grad_norm/{name}": 0.3 / (1 + i) + 0.02 * draw.random()
                 for i, name in enumerate(LAYERS)}  # fmt: skip
        updates = {f"update_norm/{name}": 1e-3 / (1 + i) for i, name in enumerate(LAYERS)}
        lines.append(
            {"step": step, "loss": loss, "learning_rate": 3e-4 * min(1, step / 200),
             "grad_norm": 0.5 + 0.1 * draw.random(), "update_norm": 2e-3, "param_norm": 80 + step,
             "skipped": 0, "tokens_per_second": 51_000 + 900 * draw.gauss(0, 1),
             "tokens_per_second_per_device": 12_750, "mfu_6n": 0.38, "mfu_6n_12ldt": 0.41,
             "step_seconds": 2.0, "data_wait": 0.01, "save_stall": 0.005,
             "device_memory_bytes": 17_000_000_000, **norms, **updates}
        )  # fmt: skip
    return lines


def evaluation_lines(last: int, every: int = 200) -> list[dict]:
    def line(step: int) -> dict:
        bits = 0.9 + 1.5 * math.exp(-step / 300)
        years = {f"bits_per_byte/year_{2015 + n}": bits + 0.02 * n for n in range(8)}
        return {"step": step, "held_out_loss": 2.5 + 6 * math.exp(-step / 300),
                "bits_per_byte": bits, "bits_per_byte/abstract": bits - 0.05,
                "bits_per_byte/full_text": bits + 0.04, **years}  # fmt: skip

    return [line(step) for step in range(0, last + 1, every)]


def events() -> list[dict]:
    """2 s a step; killed at 1,230 and again from 1,000; preempted at 2,500; to the end."""
    versions = {"python": "3.11.9", "jax": "0.10.2", "biomedlm-jax": "0.1.0"}
    start = {"event": "start", "processes": 2, "devices": 8, "device_kind": "TPU v5 lite",
             "mesh": {"data": 1, "fsdp": 8, "model": 1, "context": 1}, "versions": versions,
             "parameters": 2_700_000_000, "peak_flops": 197e12 * 8, "peak_source": HOSTILE}  # fmt: skip
    seconds = {"import": 4.0, "connect": 6.0, "data": 2.0, "restore": 8.0, "compile": 70.0,
               "first_step": 2.0, "total": 92.0}  # fmt: skip
    now, found = BEGAN, []

    def add(event: str, step: int, **values) -> None:
        found.append({"time": now, "event": event, "step": step, **values})

    def process(first: int, last: int) -> None:
        nonlocal now
        found.append({**start, "time": now + 15, "step": first})
        now += 92
        add("first_step", first + 1, seconds=seconds)
        for step in range(first + 10, last + 1, 10):
            now += 20
            if step % 200 == 0:
                now += 9
                add("evaluation", step, seconds=9.0)
            if step % 500 == 0:
                add("save", step, stall_seconds=3.0)
            if step == 800:
                add("spike", step, loss=9.1, mean=3.0, sigma=0.1,
                    documents=[f"PMID:{n}" for n in range(20)])  # fmt: skip
            if step == 2040:
                add("skipped", step, loss="nan", grad_norm="inf", documents=[HOSTILE])

    process(0, 1230)
    now += 400
    add("host_lost", 1230, host="worker-3", reason=HOSTILE)
    add("damaged", 1000, reason="piece 3 of params is cut", moved_to="checkpoints/damaged")
    process(1000, 2500)
    add("preempted", 2500)
    now += 600
    process(2500, STEPS)
    add("end", STEPS, goodput=0.87)
    return found


def samples() -> list[dict]:
    prompts = [("The patients were randomly assigned to receive", "PMID:31"),
               (f"Mutations of {HOSTILE}", "PMC:9")]  # fmt: skip
    return [
        {"step": step, "prompt": prompt, "text": f"a continuation made at {step}", "document": id}
        for step in range(0, STEPS + 1, 200)
        for prompt, id in prompts
    ]


def write_lines(file: Path, lines: list[dict], rest: str = "") -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)


@pytest.fixture(scope="module")
def empty(tmp_path_factory, store) -> Path:
    """Settings and nothing else."""
    folder = tmp_path_factory.mktemp("begun")
    tokens = json.loads((store / "manifest.json").read_text())["splits"]["train"]["sha256"]
    claim = Claim(
        experiment=changed(RUN, data__store=str(store)),
        vocabulary_sha256="0" * 64,
        tokens_sha256=tokens,
    )
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(claim)))
    return folder


@pytest.fixture(scope="module")
def whole(empty, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run<b>"
    shutil.copytree(empty, folder)
    write_lines(folder / "metrics.jsonl", train_lines(STEPS) + evaluation_lines(STEPS))
    write_lines(folder / "events.jsonl", events())
    write_lines(folder / "samples.jsonl", samples())
    return folder


def page_of(folder: Path) -> lxml.html.HtmlElement:
    return lxml.html.document_fromstring(report.write(epath.Path(folder)).read_text())


def words(root: lxml.html.HtmlElement) -> str:
    return " ".join(root.text_content().split())
