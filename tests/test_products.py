"""Products for XLA:CPU: the values and gradients of plain ones, in the order they ask for."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biomedlm_jax.kernels.products import over_tokens, times_kernel, times_turned

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


@pytest.mark.parametrize("rows", [1, 7, 8, 20])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_times_turned_sums_in_float32(rows, dtype, wanted):
    x = jax.random.normal(jax.random.key(0), (rows, 48), dtype)
    kernel = jax.random.normal(jax.random.key(1), (80, 48), dtype)
    found = times_turned(x, kernel, jnp.dtype(wanted))
    assert found.dtype == jnp.dtype(wanted)
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64).T
    tolerance = 1e-5 if wanted == "float32" else 2**-8
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=tolerance, atol=1e-4)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_times_turned_does_not_turn_the_kernel(dtype):
    """On CPU: nothing makes another array of its size, and rows are the columns of the product."""
    shapes = [
        jax.ShapeDtypeStruct(shape, {"f32": "float32", "bf16": "bfloat16"}[dtype])
        for shape in ((16, 128), (384, 128))
    ]
    turned = jax.jit(lambda x, kernel: times_turned(x, kernel, jnp.dtype("float32")))
    compiled = turned.lower(*shapes).compile().as_text()
    assert compiled is not None
    assert re.findall(r"f32\[([\d,]+)\]\S* dot\(", compiled) == ["384,16"]
    made = re.findall(dtype + r"\[(?:384,128|128,384)\]\S* ([\w-]+)\(", compiled)
    assert set(made) <= {"parameter", "bitcast"}
