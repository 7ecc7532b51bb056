"""Products for XLA:CPU: the values and gradients of plain ones, in the order they ask for."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biomedlm_jax.kernels.products import over_tokens, times_kernel

TALL, WIDE = (96, 32), (32, 96)


@pytest.mark.parametrize("shape", [TALL, WIDE])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_times_kernel_has_the_values_and_gradients_of_a_product(shape, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 5, shape[0]), dtype)
    kernel = jax.random.normal(keys[1], shape, dtype)
    slope = jax.random.normal(keys[2], (2, 5, shape[1]), dtype)
    for function in (times_kernel, jnp.matmul):
        y, back = jax.vjp(function, x, kernel)
        results = (y, *back(slope))
        assert [z.dtype for z in results] == [jnp.dtype(dtype)] * 3
        if function is times_kernel:
            found = results
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for ours, plain in zip(found, results, strict=True):
        ours, plain = (np.asarray(z, np.float32) for z in (ours, plain))
        np.testing.assert_allclose(ours, plain, rtol=tolerance, atol=tolerance * 10)


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_over_tokens_sums_in_float32(shape):
    a, b = (
        jax.random.normal(jax.random.key(n), (7, size), "bfloat16") for n, size in enumerate(shape)
    )
    found = over_tokens(a, b)
    assert found.dtype == jnp.float32
    exact = np.asarray(a, np.float64).T @ np.asarray(b, np.float64)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_the_compiler_leaves_the_products_the_way_round_they_are_wanted(shape):
    """The result of the product has no more rows than columns, whichever the kernel has."""
    x, slope = jnp.ones((4, 64, shape[0])), jnp.ones((4, 64, shape[1]))

    def gradient(x, slope):
        kernel = jnp.ones(shape)
        return jax.vjp(lambda kernel: times_kernel(x, kernel), kernel)[1](slope)[0]

    compiled = jax.jit(gradient).lower(x, slope).compile().as_text()
    assert compiled is not None
    assert re.findall(r"f32\[([\d,]+)\]\S* dot\(", compiled) == ["32,96"]
