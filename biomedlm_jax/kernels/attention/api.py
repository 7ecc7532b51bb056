"""The one attention of the project, in two forms, and which implementation answers it."""

import functools
import math
import types

import jax
import jax.numpy as jnp
from absl import logging
from jax.ad_checkpoint import checkpoint_name
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

    For the backward pass it keeps q, k, v, its result and float32 [B, N, T], the logsumexp, under
    the names "attended" and "logsumexp" of `jax.ad_checkpoint`; the reference keeps more. Kernels
    have no forward-mode derivative.

    Raises:
      ValueError: shapes or dtypes disagree, dropout has no seed.
      NotImplementedError: no implementation takes these inputs; the reasons are listed.
    """
    if not q.shape == k.shape == v.shape or q.ndim != 4 or 0 in q.shape:
        raise ValueError(f"q {q.shape}, k {k.shape}, v {v.shape} are not one shape [B, T, N, H]")
    if not q.dtype == k.dtype == v.dtype or not jnp.issubdtype(q.dtype, jnp.floating):
        raise ValueError(f"q {q.dtype}, k {k.dtype}, v {v.dtype} are not one floating dtype")
    options = _options(
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
    the product. What is kept of it for the backward pass is named "qkv".
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
    options = _options(shape, scale, segment_ids, dropout_rate, dropout_seed, first_row, first_head)
    return _answer(impl, "attention_qkv", (product, bias), options | {"head_dim": head_dim})


def _options(shape, scale, segment_ids, rate, seed, first_row, first_head) -> dict:
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
    if not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ValueError(f"dropout_rate={rate} is not in [0, 1)")
    if rate > 0 and seed is None:
        raise ValueError(f"dropout_rate={rate} needs a dropout_seed")
    if seed is not None and (jnp.shape(seed) or jnp.result_type(seed) != jnp.uint32):
        raise ValueError(
            f"dropout_seed {jnp.result_type(seed)} {jnp.shape(seed)} is not one uint32"
        )
    seeds = None
    if seed is not None and rate > 0:
        seeds = keep.head_seeds(seed, shape[0], shape[2], first_row, first_head)
    return {
        "scale": scale if isinstance(scale, int | float) else jax.lax.stop_gradient(scale),
        "segment_ids": segment_ids,
        "dropout_rate": rate,
        "head_seeds": seeds,
    }


def _answer(impl: str, form: str, operands: tuple, options: dict) -> jax.Array:
    platform, kind = block_sizes.device()
    operands, options = marked((operands, options), axes_of((operands, options)))
    if impl in INTERPRETED:
        return _call(INTERPRETED[impl], form, operands, options | {"interpret": True})
    if impl != "auto" and impl not in IMPLEMENTATIONS:
        names = ", ".join(["auto", *IMPLEMENTATIONS, *INTERPRETED])
        raise ValueError(f"impl={impl!r} is not one of {names}")
    refusals = []
    for name in IMPLEMENTATIONS if impl == "auto" else [impl]:
        module, needed = IMPLEMENTATIONS[name]
        try:
            if needed not in (None, platform):
                raise NotImplementedError(f"is for {needed}, this is {platform} ({kind})")
            out = _call(module, form, operands, options)
        except NotImplementedError as reason:
            refusals.append(f"{name}: {reason}")
            continue
        _say(f"attention {operands[0].shape} runs as {name}. " + "; ".join(refusals))
        return out
    raise NotImplementedError("no attention takes these inputs:\n  " + "\n  ".join(refusals))


def _call(module: types.ModuleType, form: str, operands: tuple, options: dict) -> jax.Array:
    if hasattr(module, form):
        return getattr(module, form)(*operands, **options)
    product, bias = operands
    head_dim = options["head_dim"]
    rest = {name: value for name, value in options.items() if name != "head_dim"}
    qkv = checkpoint_name(product + bias, "qkv")
    q, k, v = jnp.moveaxis(qkv.reshape(*qkv.shape[:2], -1, 3, head_dim), 3, 0)
    out = module.attention(q, k, v, **rest)
    out = out.reshape(*qkv.shape[:2], -1)
    return out if module is pallas_gpu else checkpoint_name(out, "attended")  # it has named its own


@functools.cache
def _say(message: str) -> None:
    """Once for each different message, however often a shape is traced."""
    logging.info(message)
