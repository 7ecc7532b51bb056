"""Attention against its formula in float64 numpy, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biomedlm_jax.kernels.attention.api import attention

SHAPE = (2, 24, 3, 16)


def inputs(dtype=jnp.float32):
    return [jax.random.normal(jax.random.key(i), SHAPE).astype(dtype) for i in range(3)]


def formula(q, k, v, scale, segments=None):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(SHAPE)
    for b, t, n in np.ndindex(*SHAPE[:3]):
        seen = [s for s in range(t + 1) if segments is None or segments[b, s] == segments[b, t]]
        scores = np.array([scale * q[b, t, n] @ k[b, s, n] for s in seen])
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights / weights.sum() @ v[b, seen, n]
    return out


@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_equals_the_formula(dtype, atol):
    q, k, v = inputs(dtype)
    out = attention(q, k, v, scale=jnp.float32(0.25))
    assert out.dtype == dtype
    np.testing.assert_allclose(out.astype(jnp.float32), formula(q, k, v, 0.25), atol=atol)


def test_segments_do_not_see_each_other():
    q, k, v = inputs()
    segments = np.repeat([[0, 0, 1], [0, 1, 1]], 8, axis=1)
    out = attention(q, k, v, scale=0.25, segment_ids=jnp.asarray(segments))
    np.testing.assert_allclose(out, formula(q, k, v, 0.25, segments), atol=1e-5)


def test_dropout_of_a_part_is_that_of_the_whole_and_keeps_the_mean():
    q, k, v = inputs()
    options = dict(scale=0.25, dropout_rate=0.2)
    whole = attention(q, k, v, dropout_seed=jnp.uint32(1), **options)
    part = attention(
        q[1:, :, 2:],
        k[1:, :, 2:],
        v[1:, :, 2:],
        dropout_seed=jnp.uint32(1),
        first_row=1,
        first_head=2,
        **options,
    )
    np.testing.assert_allclose(part, whole[1:, :, 2:], atol=1e-6)
    seeds = jnp.arange(400, dtype=jnp.uint32)
    drawn = jax.vmap(lambda seed: attention(q, k, v, dropout_seed=seed, **options))(seeds)
    error = drawn.mean(0) - formula(q, k, v, 0.25)
    assert jnp.abs(error / (drawn.std(0) / 20 + 1e-3)).max() < 6


def test_refusals_say_what_was_found():
    q, k, v = inputs()
    with pytest.raises(ValueError, match="are not one shape"):
        attention(q, k[:, :3], v, scale=1.0)
    with pytest.raises(ValueError, match="needs a dropout_seed"):
        attention(q, k, v, scale=1.0, dropout_rate=0.1)
    with pytest.raises(NotImplementedError, match="impl='flash'; there are auto, reference"):
        attention(q, k, v, scale=1.0, impl="flash")
