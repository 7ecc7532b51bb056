"""The benchmark of a training step on CPU: both sides train one model; how medians are taken."""

import dataclasses

import numpy as np
import pytest

from biomedlm_jax.speed import cpu
from tests.conftest import TINY, changed


def test_both_sides_have_the_same_losses(monkeypatch):
    torch = pytest.importorskip("torch", reason="the peer")
    pytest.importorskip("transformers")
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # of all tests after this one
    tiny = changed(cpu.EXPERIMENT, mesh__data=8, mesh__fsdp=1, optimizer__peak_lr=1e-3)
    tiny = dataclasses.replace(tiny, model=dataclasses.replace(TINY.model, dropout=0.0))
    ours, theirs = cpu.ours(tiny), cpu.pytorch(tiny)
    losses = np.array([(ours(), theirs()) for _ in range(3)])
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-4)
    assert losses[2, 0] < losses[0, 0] - 0.01  # updates were done, and not by one side alone


def test_medians_of_rounds():
    seconds = {"ours": (1.0, 2.0, 4.0), "pytorch": (2.0, 2.0, 2.0)}
    rounds = [{name: {"seconds": times[i]} for name, times in seconds.items()} for i in range(3)]
    found = cpu.summary(rounds, tokens=8)
    assert found == {"ours": 4, "pytorch": 4, "ratio": 1}


def test_a_batch_is_the_same_for_both():
    tokens = cpu.batch(cpu.EXPERIMENT)
    assert tokens.shape == (8, 256)
    assert (tokens == cpu.batch(cpu.EXPERIMENT)).all()
    assert tokens.min() >= 0
    assert tokens.max() < 8192
