"""The loss against its definition, and where a run starts."""

import math

import jax
import numpy as np
import pytest

from biomedlm_jax import step
from biomedlm_jax.model import gpt
from biomedlm_jax.objective import continues
from tests.conftest import TINY, changed, on, put, random_tokens, started


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 1, 2), (1, 2, 4)])
def test_nats_are_those_of_a_softmax_over_the_real_vocabulary(mesh):
    experiment, devices = on(TINY, *mesh)
    params, tokens = started(experiment, devices).params, random_tokens(TINY)
    logits = np.asarray(step.forward(experiment, devices)(params, put(tokens, devices)), float)
    assert logits.shape == (8, 32, 300)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nats = -np.take_along_axis(log_p[:, :-1], tokens[:, 1:, None], -1)[..., 0]
    real = np.random.default_rng(0).random(nats.shape) < 0.5
    found = step.eval_step(experiment, devices, groups=1)(
        params, put(tokens, devices), None, put(np.where(real, 0, -1), devices)
    )
    assert float(found.sum()) == pytest.approx(nats[real].sum(), rel=1e-6)


def test_a_label_continues_the_document_of_the_token_before_it():
    segments = np.array([[0, 0, 1, 1, 1], [0, 1, 3, 3, 4], [0, 0, 0, 0, 0]])
    expected = [[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1]]
    assert continues(jax.numpy.asarray(segments)).tolist() == np.array(expected, bool).tolist()


@pytest.mark.parametrize(("width", "vocab"), [(128, 2048), (768, 28_896), (2560, 28_896)])
def test_the_first_loss_is_that_of_gpt2(width, vocab):
    """ln V + d std^2 / 2: rows of the tied table are N(0, std^2) in d places and meet a hidden
    state of squared length d, so logits are normal with variance d std^2, which adds half of it
    to the log of the sum of exponentials."""
    model = dict(layers=1, width=width, heads=width // 64, mlp=4 * width, vocab=vocab, context=64)
    experiment = changed(
        TINY, **{f"model__{name}": value for name, value in model.items()}, data__batch=4
    )
    experiment, devices = on(experiment, 1, 1, 1)
    params = jax.jit(lambda: gpt.init(experiment.model, jax.random.key(0)))()
    tokens = random_tokens(experiment)
    real = np.ones((4, 63), bool)
    nats = step.eval_step(experiment, devices, groups=1)(
        params, put(tokens, devices), None, put(np.where(real, 0, -1), devices)
    )
    expected = math.log(vocab) + width * 0.02**2 / 2
    assert float(nats.sum()) / real.size == pytest.approx(expected, rel=0.01)


def test_the_z_loss_is_made_small_and_is_not_in_the_loss():
    """Z is the log of the sum of exponentials, which the loss alone leaves where it starts."""
    reported, z = {}, {}
    for weight in (0.0, 1.0):
        experiment, devices = on(changed(TINY, optimizer__z_loss=weight), 1, 1, 2)
        state, train_step = started(experiment, devices), step.train_step(experiment, devices)
        batch = put(random_tokens(TINY), devices)
        for _ in range(5):
            state, metrics = train_step(state, batch)
            reported.setdefault(weight, metrics)
        logits = step.forward(experiment, devices)(state.params, batch)
        z[weight] = float(jax.nn.logsumexp(logits, axis=-1).mean())
    assert float(reported[1.0]["loss"]) == pytest.approx(float(reported[0.0]["loss"]), rel=1e-6)
    assert float(reported[1.0]["grad_norm"]) > 2 * float(reported[0.0]["grad_norm"])
    assert z[1.0] < z[0.0] - 0.2


def test_padding_rows_stay_zero_and_have_no_gradient():
    experiment, devices = on(TINY, 1, 2, 2)
    state = started(experiment, devices)
    train_step = step.train_step(experiment, devices)
    for number in range(3):
        state, _ = train_step(state, put(random_tokens(TINY, number), devices))
    table = np.asarray(state.params["tokens"]["table"])
    assert table.shape == (384, 64)
    assert not table[300:].any()
    assert table[:300].all(axis=1).all()
