"""What fine-tuning learns of real questions: all of those it sees."""

import json

import jax
import numpy as np
import pytest

from biomedlm_jax import train
from biomedlm_jax.benchmarks.exam import Exam
from biomedlm_jax.benchmarks.prompts import Form
from biomedlm_jax.benchmarks.read import read
from biomedlm_jax.mesh import make
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from tests.conftest import SHARED, changed, fine_tuning

QUESTIONS, GPT2 = SHARED / "qa/medmcqa/dev.json", SHARED / "tokenizers/gpt2/tokenizer.json"
ITEMS, EPOCHS, BATCH = 200, 80, 40


@pytest.mark.slow
@pytest.mark.skipif(not QUESTIONS.is_file(), reason=f"{QUESTIONS} has the real questions")
def test_multiple_choice_learns_200_real_questions_by_heart(tmp_path):
    """From random weights; before, it is right by chance."""
    rows = QUESTIONS.read_text().splitlines()[:ITEMS]
    assert len({json.loads(row)["id"] for row in rows}) == ITEMS
    (tmp_path / "qa").mkdir()
    (tmp_path / "qa/train.json").write_text("\n".join(rows) + "\n")
    steps = EPOCHS * ITEMS // BATCH
    model = dict(layers=2, width=128, heads=2, mlp=512, vocab=50257 + 3, context=64, dropout=0.0)
    experiment = fine_tuning(
        "multiple_choice",
        model=model,
        benchmarks=str(tmp_path / "qa"),
        train="medmcqa",
        other_version=True,
        vocabulary=str(GPT2),
        length=64,
    )
    experiment = changed(
        experiment,
        run__steps=steps,
        run__log_every=steps,
        data__batch=BATCH,
        mesh__fsdp=-1,
        optimizer__peak_lr=1e-3,
        optimizer__warmup_steps=steps // 2,
        optimizer__decay="linear",
        optimizer__weight_decay=0.0,
    )
    split = read("medmcqa", tmp_path / "qa", "train", other_version=True)
    exam = Exam(
        experiment,
        make(experiment, jax.devices()),
        Form("multiple_choice", Vocabulary(GPT2), 64),
        split,
    )
    labels = np.array([item.label for item in split.items])

    def right(state) -> float:
        return float((exam(state.params).reshape(ITEMS, 4).argmax(1) == labels).mean())

    first = changed(experiment, optimizer__warmup_steps=0, run__steps=1)
    assert right(train.fit(first, tmp_path / "first")) < 0.5
    assert right(train.fit(experiment, tmp_path / "run")) == 1.0
