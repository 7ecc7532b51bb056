"""One update from the same weights and gradients as PyTorch's AdamW, and as Composer's formula."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from biomedlm_jax.config import Experiment
from biomedlm_jax.model import gpt
from biomedlm_jax.optimizer import adamw, schedule
from biomedlm_jax.settings import build
from tests.conftest import ROOT, TINY, changed, on, put, random_tokens, started
from tests.test_config import config_file

RECIPE = build(Experiment, config_file(ROOT / "configs/pretrain_2p7b.py"))
STEPS = 5  # with gradients of other sizes each, in the steepest part of the schedule


def problem() -> tuple[dict, list[dict]]:
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: gpt.init(TINY.model, jax.random.key(0)))

    def tree(scale: float) -> dict:
        return jax.tree.map(
            lambda x: (scale * draw.standard_normal(x.shape)).astype(np.float32), shapes
        )

    return tree(0.02), [tree(10.0**-n) for n in range(STEPS)]


def ours(params: dict, grads: list[dict]) -> dict:
    tx, rate = adamw(RECIPE), schedule(RECIPE)
    state = tx.init(params)
    for step, grad in enumerate(grads):
        directions, state = tx.update(grad, state, params)
        lr = rate(step + 50)
        params = optax.apply_updates(params, jax.tree.map(lambda x: -lr * x, directions))  # noqa: B023
    return params


def test_updates_are_those_of_pytorch():
    torch = pytest.importorskip("torch", reason="torch is a test's need, not a run's")
    params, grads = problem()
    chosen, rate = RECIPE.optimizer, schedule(RECIPE)
    theirs = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in jax.tree.leaves(params)]
    tx = torch.optim.AdamW(
        theirs,
        betas=(chosen.b1, chosen.b2),
        eps=chosen.eps,
        weight_decay=chosen.weight_decay,
    )
    for step, grad in enumerate(grads):
        tx.param_groups[0]["lr"] = float(rate(step + 50))
        for leaf, value in zip(theirs, jax.tree.leaves(grad), strict=True):
            leaf.grad = torch.tensor(value)
        tx.step()
    for leaf, expected in zip(jax.tree.leaves(ours(params, grads)), theirs, strict=True):
        np.testing.assert_allclose(
            leaf, expected.detach().numpy(), rtol=0, atol=3e-8
        )  # an update is 1e-4


def test_updates_are_those_of_composer():
    """DecoupledAdamW: p *= 1 - lr / initial_lr * wd, then Adam's step of lr, wd = 1.6e-5; here in
    float64."""
    params, grads = problem()
    chosen, rate = RECIPE.optimizer, schedule(RECIPE)
    composers = 1.6e-5
    assert composers == pytest.approx(chosen.peak_lr * chosen.weight_decay)
    for leaf, found, *grad in zip(
        *map(jax.tree.leaves, (params, ours(params, grads), *grads)), strict=True
    ):
        p, m, v = leaf.astype(np.float64), 0.0, 0.0
        for step, g in enumerate(grad):
            lr = float(rate(step + 50))
            m, v = chosen.b1 * m + (1 - chosen.b1) * g, chosen.b2 * v + (1 - chosen.b2) * g**2.0
            p *= 1 - lr / chosen.peak_lr * composers
            corrected = np.sqrt(v) / math.sqrt(1 - chosen.b2 ** (step + 1)) + chosen.eps
            p -= lr / (1 - chosen.b1 ** (step + 1)) * m / corrected
        np.testing.assert_allclose(found, p, rtol=0, atol=3e-8)  # an update is 1e-4


def test_only_matrices_decay_where_that_is_asked_for():
    chosen = changed(TINY, optimizer__weight_decay_on="matrices")
    params = jax.tree.map(jnp.ones_like, gpt.init(TINY.model, jax.random.key(0)))
    zeros = jax.tree.map(jnp.zeros_like, params)
    directions, _ = adamw(chosen).update(zeros, adamw(chosen).init(params), params)
    decayed = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree.leaves_with_path(directions)
        if leaf.any()
    }
    blocks = {f"blocks/{name}/kernel" for name in ("qkv", "out", "up", "down")}
    assert decayed == {"tokens/table", "positions"} | blocks
    everywhere, _ = adamw(TINY).update(zeros, adamw(TINY).init(params), params)
    for leaf in jax.tree.leaves(everywhere):
        np.testing.assert_allclose(leaf, TINY.optimizer.weight_decay)


def test_the_average_follows_the_parameters():
    from biomedlm_jax import step

    experiment, mesh = on(changed(TINY, optimizer__ema_decay=0.9), 2, 2, 2)
    state = started(experiment, mesh)
    train_step = step.train_step(experiment, mesh)
    expected = jax.device_get(state.params)
    for number in range(3):
        state, _ = train_step(state, put(random_tokens(TINY, number), mesh))
        now = jax.device_get(state.params)
        expected = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, expected, now)
    for found, wanted in zip(*map(jax.tree.leaves, (state.scored, expected)), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-7)
