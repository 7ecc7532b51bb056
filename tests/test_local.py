"""The whole way on the sample corpus, by the commands that a user types."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

COMMAND = [
    sys.executable,
    "-m",
    "launch.local",
    "--config=configs/demo.py",
    "--corpus=data/sample",
    "--config.model.vocab=600",
    "--config.model.layers=2",
    "--config.run.steps=6",
    "--config.optimizer.warmup_steps=2",
    "--config.run.log_every=2",
    "--config.run.eval_every=6",
    "--config.run.eval_batches=1",
    "--config.mesh.model=1",
]


def shell(*flags: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [*COMMAND, *flags], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_from_ncbi_xml_to_a_hugging_face_folder(tmp_path):
    output = tmp_path / "out"
    first = shell(f"--output={output}")
    assert first.returncode == 0, first.stderr
    assert "bits per byte" in first.stdout
    assert "What to run next" in first.stdout
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
        assert (output / "hf" / name).is_file()
    assert (output / "run/loss.png").is_file()
    assert (output / "corpus/card.html").is_file()
    assert json.loads((output / "hf/config.json").read_text())["vocab_size"] == 600
    assert "xz -9e" in (output / "held_out.txt").read_text()

    again = shell(f"--output={output}")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(" is there\n") == 2  # corpus, hf
    assert "from step 6 to 6" in again.stdout

    seed = shell(f"--output={output}", "--config.run.seed=18")
    assert seed.returncode == 2
    assert "config.run.seed: 17 before, 18 now" in seed.stderr
    size = shell(f"--output={output}", "--config.model.vocab=500")
    assert size.returncode == 2
    assert "corpus was made by another command" in size.stderr


@pytest.mark.parametrize(
    ("corpus", "message"),
    [("nowhere", "--corpus=nowhere is no folder"), ("configs", "data.build ended with code 2")],
)
def test_a_corpus_that_is_missing_or_empty(corpus, message, tmp_path):
    found = shell(f"--output={tmp_path / 'out'}", f"--corpus={corpus}")
    assert found.returncode == 2
    assert message in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "out/corpus").exists()
