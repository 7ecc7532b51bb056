"""Causal attention by cuDNN's fused kernels, through JAX's own interface to them.

They take less than the contract asks for: no dropout with bits of ours, no segments without a bias
of T x T, no float32. What they can not do exactly is refused while tracing.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from biomedlm_jax.kernels.attention import block_sizes, keep

DTYPES = (jnp.bfloat16, jnp.float16)
LARGEST_HEAD_DIM = 128  # on every GPU that has fused attention; 256 from Hopper on


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    *,
    scale: Float[Array, ""] | float,
    segment_ids: Int[Array, "B T"] | None,
    dropout_rate: float,
    head_seeds: keep.HeadSeeds | None,
) -> Float[Array, "B T N H"]:
    """See `api.attention`.

    scale: a Python number costs nothing. cuDNN has no operand for a traced one, so what it differs
      from 1 / sqrt(H) by multiplies q in float32, and q is rounded to its dtype a second time. In
      this model, where scale is 1 / sqrt(H) / (layer + 1), that is exact where layer + 1 is a power
      of two; elsewhere the scores have 3 roundings (q, q scaled, k) where they had 2.

    Raises:
      NotImplementedError: cuDNN is missing, or can not do this exactly.
    """
    if head_seeds is not None and dropout_rate > 0:
        raise NotImplementedError(
            f"dropout_rate={dropout_rate}: cuDNN draws bits of its own, which no other device or "
            "implementation could draw again; set it to 0 or choose another implementation"
        )
    if segment_ids is not None:
        raise NotImplementedError(
            "segment_ids: cuDNN would need a bias of T x T; choose another implementation"
        )
    if not q.dtype == k.dtype == v.dtype or q.dtype not in DTYPES:
        found = f"{q.dtype}, {k.dtype}, {v.dtype}"
        raise NotImplementedError(f"q, k, v are {found}; cuDNN takes bfloat16 or float16")
    head_dim = q.shape[3]
    if head_dim % 8 or head_dim > LARGEST_HEAD_DIM:
        raise NotImplementedError(
            f"head dim {head_dim}; cuDNN takes multiples of 8 up to {LARGEST_HEAD_DIM}"
        )
    platform, kind = block_sizes.device()
    if platform not in ("gpu", "cuda"):
        raise NotImplementedError(f"cuDNN needs an NVIDIA GPU; this is {platform} ({kind})")
    if not isinstance(scale, int | float):
        usual = 1 / math.sqrt(head_dim)
        q = (q.astype(jnp.float32) * (scale / usual)).astype(q.dtype)
        scale = usual
    try:
        return jax.nn.dot_product_attention(
            q, k, v, scale=scale, is_causal=True, implementation="cudnn"
        )
    except RuntimeError as error:  # it asks the library for its version while tracing
        raise NotImplementedError(f"cuDNN can not be used: {error}") from error
