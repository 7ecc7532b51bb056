"""The first losses of configs/demo.py, from NCBI's XML on: what a neutral change leaves alone."""

import itertools

import numpy as np
import pytest
from jax.sharding import NamedSharding

from biomedlm_jax import mesh, step
from biomedlm_jax.config import Experiment
from biomedlm_jax.pipeline.loader import Loader
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.settings import build
from data.build import build as build_corpus
from data.tokenizer import Options
from tests.conftest import ROOT, started
from tests.test_config import config_file

STEPS = 20


def test_golden_curve_of_the_demo(golden, tmp_path):
    """Dropout, clipping, warm-up and a mesh of 2 x 2 x 2 are in it. Every digit of a float32 is
    kept; what another compiler or processor rounds otherwise is allowed for."""
    experiment = build(Experiment, config_file(ROOT / "configs/demo.py"))
    options = Options(size=experiment.model.vocab)
    corpus = build_corpus(ROOT / "data/sample", tmp_path / "corpus", options)
    devices = mesh.make(experiment)
    loader = Loader(
        TokenStore(corpus / "store", "train"),
        batch=experiment.data.batch,
        length=experiment.model.context,
        separators=experiment.data.separators,
        segment_ids=experiment.data.segment_ids,
        seed=experiment.run.seed,
        sharding=NamedSharding(devices, step.BATCH_SPEC),
    )
    state, train_step = started(experiment, devices), step.train_step(experiment, devices)
    losses = []
    for batch in itertools.islice(loader.batches(0, STEPS), STEPS):
        state, metrics = train_step(state, *batch)
        losses.append(np.asarray(metrics["loss"]))
    found = "".join(f"{loss:.9g}\n" for loss in losses)
    expected = np.loadtxt(golden("demo_losses.txt", found).splitlines(), dtype=np.float32)
    np.testing.assert_allclose(losses, expected, rtol=2e-6)
    assert losses[0] == pytest.approx(np.log(2048), abs=0.1)
    assert losses[-1] < losses[0] - 1
