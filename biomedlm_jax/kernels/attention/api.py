"""The one attention of the project, in two forms, and which implementation answers it."""

import functools
import math
import types
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from absl import logging
from jax.core import Tracer
from jaxtyping import Array, Float, Int32

from biomedlm_jax.kernels.attention import (
    block_sizes,
    cpu,
    cudnn,
    keep,
    pallas_gpu,
    pallas_tpu,
    reference,
)
from biomedlm_jax.kernels.dropout import Seed
from biomedlm_jax.kernels.varying import axes_of, marked

# In the order that "auto" tries; the platform that each needs, None for any.
IMPLEMENTATIONS: dict[str, tuple[types.ModuleType, str | None]] = {
    "pallas_tpu": (pallas_tpu, "tpu"),
    "pallas_gpu": (pallas_gpu, "gpu"),
    "cudnn": (cudnn, "gpu"),
    "cpu": (cpu, "cpu"),
    "reference": (reference, None),
}
# The kernels run operation by operation on any machine: slow, to see what they compute.
INTERPRETED = {"pallas_tpu_interpret": pallas_tpu, "pallas_gpu_interpret": pallas_gpu}
SMALLEST_SCALE = 1e-20

T = TypeVar("T")


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    *,
    scale: Float[Array, ""] | float,
    segment_ids: Int32[Array, "B T"] | None = None,
    dropout_rate: float = 0.0,
    dropout_seed: Seed | None = None,
    first_row: Int32[Array, ""] | int = 0,
    first_head: Int32[Array, ""] | int = 0,
    impl: str = "auto",
) -> Float[Array, "B T N H"]:
    """softmax(scale * q k^T) v over keys at the same or an earlier position.

    scale: positive; may be traced, for this model's changes with the layer. It has no gradient.
      (Masked scores are -1e30 before it in the TPU kernels, so it is SMALLEST_SCALE at least.)
    segment_ids: a query sees only keys of its own segment; None is one segment.
    dropout_rate, dropout_seed: of the attention weights. Whether a weight is kept is a pure
      function of (seed, row of the batch, head, query, key), the same for every implementation.
    first_row, first_head: where q[0, :, 0] stands in the whole batch and among all heads, for a
      device that holds a part of them.
    impl: a name of IMPLEMENTATIONS or INTERPRETED, which then answers or raises, or "auto", the
      first that does not refuse.

    For the backward pass it keeps q, k, v, its result and float32 [B, N, T], the logsumexp; the
    reference keeps more. Kernels have no forward-mode derivative.

    Raises:
      ValueError: shapes or dtypes disagree, dropout has no seed.
      NotImplementedError: no implementation takes these inputs; the reasons are listed.
    """
    if not q.shape == k.shape == v.shape or q.ndim != 4 or 0 in q.shape:
        raise ValueError(f"q {q.shape}, k {k.shape}, v {v.shape} are not one shape [B, T, N, H]")
    if not q.dtype == k.dtype == v.dtype or not jnp.issubdtype(q.dtype, jnp.floating):
        raise ValueError(f"q {q.dtype}, k {k.dtype}, v {v.dtype} are not one floating dtype")
    options = options_of(
        q.shape[:3], scale, segment_ids, dropout_rate, dropout_seed, first_row, first_head
    )
    return _answer(impl, "attention", (q, k, v), options)


def attention_qkv(
    product: Float[Array, "B T N*3*H"],
    bias: Float[Array, "N*3*H"],
    *,
    head_dim: int,
    scale: Float[Array, ""] | float,
    segment_ids: Int32[Array, "B T"] | None = None,
    dropout_rate: float = 0.0,
    dropout_seed: Seed | None = None,
    first_row: Int32[Array, ""] | int = 0,
    first_head: Int32[Array, ""] | int = 0,
    impl: str = "auto",
) -> Float[Array, "B T N*H"]:
    """`attention` of a fused projection, product + bias, with columns (head, (q, k, v), head dim).

    On TPU the kernels read the projection and write its gradient as they are, and sum up the bias'
    gradient in float32 as they go; taken apart, [.., 3, H] would be copied, which costs more than
    the product.
    """
    if not isinstance(head_dim, int) or head_dim < 1:
        raise ValueError(f"head_dim={head_dim} is not a number of lanes")
    if product.ndim != 3 or product.shape[2] % (3 * head_dim) or 0 in product.shape:
        raise ValueError(
            f"product {product.shape} is not [B, T, N * 3 * H] of whole heads of {head_dim}"
        )
    width = product.shape[2]
    if bias.shape != (width,):
        raise ValueError(f"bias {bias.shape} does not go with product {product.shape}")
    if product.dtype != bias.dtype or not jnp.issubdtype(product.dtype, jnp.floating):
        raise ValueError(f"product {product.dtype}, bias {bias.dtype} are not one floating dtype")
    shape = (*product.shape[:2], width // (3 * head_dim))
    options = options_of(
        shape, scale, segment_ids, dropout_rate, dropout_seed, first_row, first_head
    )
    return _answer(impl, "attention_qkv", (product, bias), options | {"head_dim": head_dim})


def options_of(
    shape: tuple[int, ...],
    scale: Float[Array, ""] | float,
    segment_ids: Int32[Array, "B T"] | None = None,
    dropout_rate: float = 0.0,
    dropout_seed: Seed | None = None,
    first_row: Int32[Array, ""] | int = 0,
    first_head: Int32[Array, ""] | int = 0,
) -> dict:
    """What every implementation takes besides its operands; shape is [B, T, N]."""
    if jnp.shape(scale):
        raise ValueError(f"scale of shape {jnp.shape(scale)} is not one number")
    if not isinstance(scale, Tracer) and not SMALLEST_SCALE <= float(scale) < math.inf:
        raise ValueError(f"scale={scale} is not a positive number, {SMALLEST_SCALE} at least")
    for name, first in (("first_row", first_row), ("first_head", first_head)):
        if jnp.shape(first) or not jnp.issubdtype(jnp.result_type(first), jnp.integer):
            raise ValueError(f"{name}={first} is not one integer")
    if segment_ids is not None:
        segment_ids = jnp.asarray(segment_ids)
        if segment_ids.shape != shape[:2]:
            raise ValueError(f"segment_ids {segment_ids.shape} are not [B, T], here {shape[:2]}")
        if segment_ids.dtype != jnp.int32:
            raise ValueError(f"segment_ids of dtype {segment_ids.dtype} are not int32")
    if not isinstance(dropout_rate, int | float) or not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate={dropout_rate} is not in [0, 1)")
    if dropout_rate > 0 and dropout_seed is None:
        raise ValueError(f"dropout_rate={dropout_rate} needs a dropout_seed")
    if dropout_seed is not None and (
        jnp.shape(dropout_seed) or jnp.result_type(dropout_seed) != jnp.uint32
    ):
        raise ValueError(
            f"dropout_seed {jnp.result_type(dropout_seed)} {jnp.shape(dropout_seed)} is not one "
            "uint32"
        )
    seeds = None
    if dropout_seed is not None and dropout_rate > 0:
        seeds = keep.head_seeds(dropout_seed, shape[0], shape[2], first_row, first_head)
    return {
        "scale": scale if isinstance(scale, int | float) else jax.lax.stop_gradient(scale),
        "segment_ids": segment_ids,
        "dropout_rate": dropout_rate,
        "head_seeds": seeds,
    }


def _answer(impl: str, form: str, operands: tuple, options: dict) -> jax.Array:
    operands, options = marked((operands, options), axes_of((operands, options)))

    def attempt(module: types.ModuleType, interpret: dict) -> jax.Array:
        if hasattr(module, form):
            return getattr(module, form)(*operands, **options, **interpret)
        product, bias = operands
        rest = {name: value for name, value in options.items() if name != "head_dim"}
        out = module.attention(*apart(product + bias, options["head_dim"]), **rest, **interpret)
        return out.reshape(*product.shape[:2], -1)

    return first_that_takes(impl, operands[0].shape, attempt)[1]


def first_that_takes(
    impl: str, shape: tuple[int, ...], attempt: Callable[[types.ModuleType, dict], T]
) -> tuple[str, T]:
    """The name of the implementation that answers, and what attempt(its module, what it takes to
    be interpreted) gives.

    Raises:
      ValueError: `impl` is no name.
      NotImplementedError: `attempt` raises it with each that there is; the reasons are listed.
    """
    platform, kind = block_sizes.device()
    if impl in INTERPRETED:
        return impl, attempt(INTERPRETED[impl], {"interpret": True})
    if impl != "auto" and impl not in IMPLEMENTATIONS:
        names = ", ".join(["auto", *IMPLEMENTATIONS, *INTERPRETED])
        raise ValueError(f"impl={impl!r} is not one of {names}")
    refusals = []
    for name in IMPLEMENTATIONS if impl == "auto" else [impl]:
        module, needed = IMPLEMENTATIONS[name]
        try:
            if needed not in (None, platform):
                raise NotImplementedError(f"is for {needed}, this is {platform} ({kind})")
            found = attempt(module, {})
        except NotImplementedError as reason:
            refusals.append(f"{name}: {reason}")
            continue
        _say(f"attention {shape} runs as {name}. " + "; ".join(refusals))
        return name, found
    raise NotImplementedError("no attention takes these inputs:\n  " + "\n  ".join(refusals))


def apart(qkv: Float[Array, "B T N*3*H"], head_dim: int) -> Float[Array, "3 B T N H"]:
    """q, k and v of a fused projection."""
    return jnp.moveaxis(qkv.reshape(*qkv.shape[:2], -1, 3, head_dim), 3, 0)


@functools.cache
def _say(message: str) -> None:
    """Once for each different message, however often a shape is traced."""
    logging.info(message)
