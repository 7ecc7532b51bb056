"""lm_eval's tasks on a JAX checkpoint: the numbers, item by item, of lm_eval's own model of the
exported folder, without a network."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from biomedlm_jax import harness
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf import load
from tests.conftest import ROOT, TINY, changed

EXPERIMENT = changed(TINY, model__context=64, model__dropout=0.0, model__init_std=0.1)
# Invented, in the words of the tests' vocabulary: answers of several lengths, a question and a text
# longer than the context, and what is to be written.
ITEMS = [
    {"question": "Kato risin dor?", "choices": ["yes", "no", "maybe kari"], "gold": 0},
    {"question": "Mel pa lu tori kato, kato?", "choices": ["toto", "rika", "\u03b2"], "gold": 2},
    {"question": "Dorpa", "choices": ["yes", "no", "lulu pasin dormel"], "gold": 1},
    {"question": "kato risin dorpa " * 20, "choices": ["mel", "lulu sinto", "ka"], "gold": 1},
]
HEAD = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: {name}
"""
TASKS = {
    "multiple_choice": """\
doc_to_text: "{{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list:
  - metric: acc
  - metric: acc_norm
  - metric: acc_bytes
""",
    "loglikelihood_rolling": """\
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
""",
    "generate_until": """\
doc_to_text: "{{question}}\\nAnswer:"
doc_to_target: "{{choices[gold]}}"
generation_kwargs:
  until: ["k"]
  max_gen_toks: 24
  do_sample: false
metric_list:
  - metric: exact_match
""",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """hf, the exported folder; jax, the checkpoint made of it; tasks, with their items."""
    peer = pytest.importorskip("tests.peer", reason="needs torch, which is a test's need")
    folder = tmp_path_factory.mktemp("harness")
    vocabulary = peer.vocabulary_of(TINY.model.vocab, folder)
    params = peer.drawn(EXPERIMENT.model, seed=5, spread=0.1)
    peer.exported(params, EXPERIMENT.model, vocabulary, folder / "hf")
    load.load(folder / "hf", folder / "jax")
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    (folder / "tasks").mkdir()
    for name, rest in TASKS.items():
        head = HEAD.format(name=name, file=folder / "items.jsonl")
        (folder / "tasks" / f"{name}.yaml").write_text(head + rest)
    return folder


def run(place, *command) -> str:
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    caches = dict.fromkeys(("HF_HOME", "HF_DATASETS_CACHE"), str(place / "cache"))
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        env={**os.environ, **offline, **caches, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def samples(file) -> list:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [row["resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]


@pytest.mark.slow
def test_numbers_are_those_of_their_own_model(place):
    pytest.importorskip("lm_eval", reason="needs torch, which is a test's need")
    asked = ["--include_path", place / "tasks", "--tasks", ",".join(TASKS)]
    said = run(place, "biomedlm_jax.harness", f"--checkpoint={place / 'jax'}",
               *asked, f"--output={place / 'ours'}")  # fmt: skip
    run(place, "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "1",
        "--model_args", f"pretrained={place / 'hf'},dtype=float32", *asked, "--log_samples",
        "--output_path", place / "theirs")  # fmt: skip
    (file,) = (place / "theirs").rglob("results_*.json")
    theirs = json.loads(file.read_text())["results"]
    ours = json.loads((place / "ours" / harness.RESULTS).read_text())["results"]
    assert set(ours) == set(theirs) == set(TASKS)
    compared = 0
    for task, metrics in theirs.items():
        for name, value in metrics.items():
            if isinstance(value, float):
                assert ours[task][name] == pytest.approx(value, rel=1e-3), (task, name)
                compared += 1
    assert compared >= 7
    assert "multiple_choice" in said

    found = {}
    for task in TASKS:
        (file,) = (place / "theirs").rglob(f"samples_{task}_*.jsonl")
        found[task] = samples(place / "ours" / harness.SAMPLES.format(task)), samples(file)
    for one, other in zip(*found["multiple_choice"], strict=True):
        for (nats, greedy), (their_nats, their_greedy) in zip(
            [x[0] for x in one], [x[0] for x in other], strict=True
        ):
            assert float(nats) == pytest.approx(float(their_nats), abs=1e-4)
            assert str(greedy) == str(their_greedy)  # they write numbers and bools as texts
    for one, other in zip(*found["loglikelihood_rolling"], strict=True):
        assert float(one[0][0]) == pytest.approx(float(other[0][0]), rel=1e-5)
    texts, their_texts = found["generate_until"]
    assert texts == their_texts
    assert len({text for ((text,),) in texts}) > 1


@pytest.fixture(scope="module")
def model(place):
    return harness.Model(str(place / "jax"))


def test_texts_end_where_they_are_told_to(model):
    (whole,) = model.until([("Dorpa", {"max_gen_toks": 20})], quiet=True)
    (again, cut) = model.until(
        [("Dorpa", {"max_new_tokens": 20, "until": []}), ("Dorpa", {"until": whole[3:5]} | MORE)],
        quiet=True,
    )
    assert again == whole
    assert cut == whole[: whole.index(whole[3:5])]
    assert model.until([("", MORE)], quiet=True) == model.until([("", MORE)], quiet=True)


MORE = {"max_gen_toks": 20, "temperature": 0.0, "do_sample": False}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"do_sample": True}, "here they are greedy"),
        ({"num_beams": 4}, "generation_kwargs has num_beams; known are until"),
        ({}, "texts of 256 tokens, and config.model.context is 64; set its max_gen_toks to 63"),
    ],
)
def test_what_is_not_done_is_refused(model, settings, said):
    with pytest.raises(UserError, match=re.escape(said)):
        model.until([("Dorpa", settings)], quiet=True)


def test_texts_as_a_whole(model):
    short, none, long = model.rolling(["Dorpa", "", "kato risin " * 30], quiet=True)
    assert long < short < none == 0


def test_where_there_is_no_lm_eval_it_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    harness.model_class.cache_clear()
    with pytest.raises(UserError, match=r"pip install lm_eval==0\.4\.13, which needs no torch"):
        harness.model_class()


def test_a_folder_of_tasks_that_is_none_is_refused(tmp_path):
    pytest.importorskip("lm_eval")
    run = dict(include_path=str(tmp_path / "x"), shots=None, limit=None)
    with pytest.raises(UserError, match=r"--include_path=\S*/x is no folder"):
        harness.run("", ["invented"], tmp_path / "out", **run)
    run["include_path"] = str(tmp_path)
    with pytest.raises(UserError, match="--tasks=invented: lm_eval has no invented"):
        harness.run("", ["invented"], tmp_path / "out", **run)


def test_the_version_is_the_tested_one():
    assert f"lm_eval[hf]=={harness.VERSION};" in (ROOT / "requirements-dev.txt").read_text()


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not there")
def test_the_adapter_needs_no_torch():
    script = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
    script += "from biomedlm_jax import harness; made = harness.model_class()\n"
    script += "from lm_eval import simple_evaluate\n"
    script += "from lm_eval.api.registry import get_model\n"
    script += "assert get_model(harness.NAME) is made, get_model(harness.NAME)\n"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
