"""The backward pass over the layers that is written by hand is the gradient that JAX finds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from biomedlm_jax import step
from biomedlm_jax.kernels.dropout import step_seed
from biomedlm_jax.model import gpt, layers
from tests.conftest import TINY, changed, on, put, random_tokens, started

# Heads of 32 in whole columns of 128 lanes, sequences in whole tiles: what TPU kernels take as it
# lies in a stack.
WHOLE = changed(TINY, model__width=128, model__heads=4, model__mlp=256, model__context=128)
KERNELS = ["pallas_tpu_interpret", "pallas_gpu_interpret"]


def gradients(experiment, devices) -> tuple[float, dict]:
    """The loss and the gradients of a batch with dropout, by the code of a step."""
    graph = gpt.graph(experiment.model)
    specs = gpt.specs(experiment.model, devices.shape)

    def local(params, tokens, segments):
        weights = jnp.full(
            tokens[:, 1:].shape, 1 / (experiment.data.batch * tokens[:, 1:].shape[1])
        )

        def mean_loss(params, part):
            tokens, segments, rows = part
            found = step.loss(
                experiment,
                graph,
                params,
                step.Batch(tokens, segments),
                weights,
                step_seed(3, 0),
                rows,
            )
            return found[0], found[0]

        rows = jax.lax.axis_index(("data", "fsdp")) * len(tokens)
        parts = jax.tree.map(lambda x: x[None], (tokens, segments, rows))
        dtype = experiment.model.compute_dtype
        return step.gradients(mean_loss, params, specs, parts, dtype)

    batch = step.BATCH_SPEC
    run = jax.shard_map(
        local, mesh=devices, in_specs=(specs, batch, batch), out_specs=(PartitionSpec(), specs)
    )
    tokens = put(random_tokens(experiment, 0), devices)
    segments = None
    if experiment.data.segment_ids:
        rows = np.arange(experiment.model.context) // 50 + np.arange(experiment.data.batch)[:, None]
        segments = put(rows.astype(np.int32), devices)
    loss, found = jax.jit(run)(started(experiment, devices).params, tokens, segments)
    return float(loss), jax.device_get(found)


@functools.cache
def expected_of(experiment) -> tuple[float, dict]:
    """From the reference, with nothing computed twice, on one device."""
    plain = changed(experiment, model__remat="none", model__attention="reference")
    return gradients(*on(plain, 1, 1, 1))


def hold(experiment, mesh=(1, 1, 1), within=2e-5):
    expected_loss, expected = expected_of(
        changed(experiment, model__attention="auto", model__compute_dtype="float32")
    )
    loss, found = gradients(*on(changed(experiment, model__remat="named"), *mesh))
    assert loss == pytest.approx(expected_loss, rel=within / 20)
    for (path, ours), theirs in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        apart = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert apart < within, (jax.tree_util.keystr(path), apart)


@pytest.mark.parametrize("attention", ["reference", "cpu", *KERNELS])
@pytest.mark.parametrize("packed", [False, True], ids=["", "segments"])
def test_every_attention(attention, packed):
    dropped = changed(WHOLE, model__dropout=0.2, data__segment_ids=packed)
    hold(changed(dropped, model__attention=attention))


@pytest.mark.parametrize("attention", KERNELS)
def test_what_is_no_whole_tile(attention):
    """3 heads of 32 and 96 positions: the TPU kernels are given a layer cut out and padded."""
    small = changed(WHOLE, model__width=96, model__heads=3, model__context=96)
    hold(changed(small, model__dropout=0.2, model__attention=attention))


@pytest.mark.parametrize("mesh", [(2, 2, 1), (1, 2, 2), (2, 1, 1, 2), (4, 1, 1)], ids=str)
def test_every_mesh(mesh):
    hold(changed(WHOLE, model__dropout=0.2), mesh)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 1), (2, 1, 2, 2)], ids=str)
def test_in_bfloat16(mesh):
    """Where `data` stores the layers, kernels and their gradients are in bfloat16 all the way."""
    rounded = changed(WHOLE, model__dropout=0.2, model__compute_dtype="bfloat16")
    hold(rounded, mesh, within=0.03)


def test_one_layer():
    hold(changed(WHOLE, model__layers=1))


def test_the_gradient_of_a_standardised_row():
    x, slope = (jax.random.normal(jax.random.key(i), (2, 3, 16)) for i in (0, 1))
    norm = layers.LayerNorm(16, epsilon=1e-5)

    def by_hand(x):
        return (slope * layers.standardised(x, *norm.statistics(x))).sum()

    def plain(x):
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        return (slope * centred / jnp.sqrt(variance + 1e-5)).sum()

    np.testing.assert_allclose(jax.grad(by_hand)(x), jax.grad(plain)(x), rtol=1e-5, atol=1e-6)


def test_statistics_in_one_pass_are_as_good_as_their_numbers():
    """A mean of 30 deviations, which no residual stream has: rounding x to bfloat16 costs more."""
    draw = np.random.default_rng(0)
    exact = 30 + draw.standard_normal((1, 64, 2560))
    rounded = jnp.asarray(exact, jnp.bfloat16)
    _, rstd = layers.LayerNorm(2560, epsilon=0.0).statistics(rounded)
    of_rounded = 1 / np.asarray(rounded, np.float64).std(-1)
    from_one_pass = np.abs(rstd / of_rounded - 1).max()
    from_rounding = np.abs(of_rounded * exact.std(-1) - 1).max()
    assert from_one_pass < 1e-3
    assert from_one_pass < from_rounding


def test_a_frequent_token_has_its_gradient_summed_in_float32():
    """4,096 times 1/64 is 64; in bfloat16 the sum would stop at 4, where 1/64 is half a unit."""
    table = jnp.zeros((8, 4), jnp.bfloat16)
    tokens = jnp.full((1, 4096), 3)
    rows = lambda table: (layers._taken(table, tokens) / 64).sum()  # noqa: E731
    np.testing.assert_array_equal(jax.grad(rows)(table)[3].astype(np.float32), 64.0)
