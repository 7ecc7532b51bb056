"""Causal attention in a few lines of jax.numpy: the definition that every kernel is held to."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from biomedlm_jax.kernels.attention import keep


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
    """See `api.attention`. Scores and softmax are float32 [B, N, T, S], products in q's dtype."""
    length = q.shape[1]
    scores_BNTS = scale * jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.float32)
    allowed_TS = jnp.tril(jnp.ones((length, length), bool))
    if segment_ids is not None:
        same_BNTS = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
        allowed_TS = allowed_TS & same_BNTS
    weights_BNTS = jax.nn.softmax(jnp.where(allowed_TS, scores_BNTS, -jnp.inf), axis=-1)
    if head_seeds is not None:
        own_query_BN, own_key_BN = keep.own(head_seeds)
        base_query_T, base_key_S = keep.bases(length)
        a_BNT = keep.side(base_query_T, own_query_BN[..., None], own_key_BN[..., None])
        b_BNS = keep.side(base_key_S, own_key_BN[..., None], own_query_BN[..., None])
        kept_BNTS = keep.kept(a_BNT[..., None], b_BNS[..., None, :], dropout_rate)
        weights_BNTS = jnp.where(kept_BNTS, weights_BNTS / (1 - dropout_rate), 0)
        # Without it XLA:TPU (libtpu 0.0.42.1, the 2.7B step) fuses the hash into the product below
        # and overflows its stack while compiling.
        weights_BNTS = jax.lax.optimization_barrier(weights_BNTS)
    return jnp.einsum("bnts,bsnh->btnh", weights_BNTS.astype(v.dtype), v)
