"""Products of two matrices, the way XLA:CPU is quick at them; on chips they are the plain ones.

Weight gradients, a^T b over all tokens, are a third of a training step's work. On CPU they go to
Eigen, which is up to a quarter faster where the result has more columns than rows. So those with
more rows are computed as the transpose of b^T a.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from biomedlm_jax.kernels.attention.block_sizes import device
from biomedlm_jax.kernels.varying import axes_of, marked

LEAST_ROWS = 8  # that XLA:CPU multiplies in bfloat16 by the units made for it


def times_kernel(
    x: Float[Array, "B T In"], kernel: Float[Array, "In Out"]
) -> Float[Array, "B T Out"]:
    """x kernel, both of one dtype, which the gradients have too. On CPU there is no forward-mode
    derivative where the kernel has more rows than columns."""
    if device()[0] != "cpu":
        return x @ kernel
    # As two matrices: from three axes XLA:CPU makes a copy for the gradient of the kernel, and a
    # product at two thirds of its speed.
    rows = x.reshape(-1, x.shape[2])
    if kernel.shape[0] > kernel.shape[1]:
        y = _flipped(*marked((rows, kernel), axes_of((rows, kernel))))
    else:
        y = rows @ kernel
    return y.reshape(*x.shape[:2], -1)


def times_turned(
    x: Float[Array, "N In"], kernel: Float[Array, "Out In"], dtype: jnp.dtype
) -> Float[Array, "N Out"]:
    """x kernel^T of one dtype, summed in float32 and then of `dtype`: for few rows of x."""
    rows = x
    on_cpu = device()[0] == "cpu"
    if on_cpu and x.dtype == jnp.bfloat16 and len(x) < LEAST_ROWS:
        rows = jnp.pad(x, ((0, LEAST_ROWS - len(x)), (0, 0)))
    y = jnp.einsum("oi,ni->on", kernel, rows, preferred_element_type=jnp.float32)
    if on_cpu:
        # The small x is turned and the large kernel stays as it is. Without the barrier XLA does it
        # the other way, and each product begins with a copy of the kernel.
        y = jax.lax.optimization_barrier(y)
    return y[:, : len(x)].T.astype(dtype)


def over_tokens(
    a: Float[Array, "N P"],
    b: Float[Array, "N Q"],
    *,
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "P Q"]:
    """a^T b, float32."""

    def product(axes: str, *operands: Array) -> Array:
        return jnp.einsum(axes, *operands, precision=precision, preferred_element_type=jnp.float32)

    if device()[0] == "cpu" and a.shape[1] > b.shape[1]:
        # The barrier keeps XLA from turning the product round again.
        return jax.lax.optimization_barrier(product("nq,np->qp", b, a)).T
    return product("np,nq->pq", a, b)


@jax.custom_vjp
def _flipped(rows: Float[Array, "N In"], kernel: Float[Array, "In Out"]) -> Array:
    return rows @ kernel


def _forward(rows: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return rows @ kernel, (rows, kernel)


def _backward(operands: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    rows, kernel = operands
    return slope @ kernel.T, over_tokens(rows, slope).astype(kernel.dtype)


_flipped.defvjp(_forward, _backward)
