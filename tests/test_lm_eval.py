"""EleutherAI's lm_eval opens an exported folder and runs a task on it, without a network: what it
finds likely is what our own forward pass finds likely."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from biomedlm_jax import step
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from tests import peer
from tests.conftest import ROOT, TINY, changed, on, put

pytest.importorskip("lm_eval", reason="needs torch, which is a test's need")

EXPERIMENT = changed(TINY, model__context=64, model__dropout=0.0, model__init_std=0.1)
# Invented, in the words of the tests' vocabulary, one answer longer than the other.
ITEMS = [
    {"question": "Kato risin dor?", "choices": [" yes", " no", " maybe kari"], "gold": 0},
    {"question": "Mel pa lu tori kato, kato?", "choices": [" toto", " rika", " \u03b2"], "gold": 2},
    {"question": "Dorpa", "choices": [" yes", " no", " lulu pasin dormel"], "gold": 1},
]
TASK = """\
task: invented
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def params():
    return peer.drawn(EXPERIMENT.model, seed=5, spread=0.1)


@pytest.mark.slow
def test_loglikelihoods_are_ours(params, vocabulary, tmp_path):
    folder = peer.exported(params, EXPERIMENT.model, vocabulary, tmp_path / "hf")
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    (tmp_path / "invented.yaml").write_text(TASK.format(file=tmp_path / "items.jsonl"))
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf"]
    command += ["--model_args", f"pretrained={folder},dtype=float32", "--device", "cpu"]
    command += ["--tasks", "invented", "--include_path", tmp_path, "--batch_size", "1"]
    command += ["--log_samples", "--output_path", tmp_path / "out"]
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    caches = {"HF_HOME": str(tmp_path / "cache"), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        command,
        env={**os.environ, **offline, **caches},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (samples,) = (tmp_path / "out").rglob("samples_invented*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    rows.sort(key=lambda row: row["doc_id"])
    assert [row["doc"]["question"] for row in rows] == [item["question"] for item in ITEMS]
    theirs = [float(response[0][0]) for row in rows for response in row["resps"]]
    texts = [(f"{x['question']}\nAnswer:", choice) for x in ITEMS for choice in x["choices"]]
    ours = loglikelihoods(params, vocabulary, texts)
    assert theirs == pytest.approx(ours, abs=1e-3)
    assert np.ptp(ours) > 1


def loglikelihoods(params, vocabulary, texts: list[tuple[str, str]]) -> list[float]:
    """Of each answer's tokens after its prompt, in nats, by `step.forward`."""
    experiment, devices = on(EXPERIMENT, 1, 1, 1)
    encode = Vocabulary(vocabulary).encode
    placed = jax.device_put(params, step.state_shardings(experiment, devices).params)
    wholes = [encode(prompt + answer) for prompt, answer in texts]
    rows = np.zeros((len(texts), EXPERIMENT.model.context), np.int32)
    for row, whole in zip(rows, wholes, strict=True):
        row[: len(whole)] = whole
    logits = step.forward(experiment, devices)(placed, put(rows, devices))
    log_chances = np.asarray(jax.nn.log_softmax(logits))
    return [
        float(sum(table[at - 1, whole[at]] for at in range(len(encode(prompt)), len(whole))))
        for table, whole, (prompt, _) in zip(log_chances, wholes, texts, strict=True)
    ]
