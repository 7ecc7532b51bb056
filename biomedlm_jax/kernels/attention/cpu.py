"""Causal attention on CPU: the reference in another order of axes and of work, with a gradient of
its own.

Heads come before positions, as XLA:CPU's matrix products like them. Queries are taken in a few
blocks of rows, each with the keys up to its last row, so that almost half of the scores are never
computed. The backward pass computes a block's weights again from the logsumexp: cheaper than to
write them to fresh memory and read them back.
"""

import functools
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from biomedlm_jax.kernels.attention import keep

ROWS = 128  # of queries in a block, at least
BLOCKS = 4  # at most: each is a piece of the program of its own


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    **options,
) -> Float[Array, "B T N H"]:
    """See `api.attention`."""
    out_BNTH = _attend_by_head(*(x.swapaxes(1, 2) for x in (q, k, v)), **options)
    return out_BNTH.swapaxes(1, 2)


def attention_qkv(
    product: Float[Array, "B T N*3*H"], bias: Float[Array, "N*3*H"], *, head_dim: int, **options
) -> Float[Array, "B T N*H"]:
    """See `api.attention_qkv`."""
    qkv = product + bias
    parts = qkv.reshape(*qkv.shape[:2], -1, 3, head_dim).transpose(3, 0, 2, 1, 4)
    q, k, v = (part[0] for part in jnp.split(parts, 3))  # the gradient is put together once
    out_BNTH = _attend_by_head(q, k, v, **options)
    return out_BNTH.swapaxes(1, 2).reshape(*qkv.shape[:2], -1)


def forward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    **options,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """(out, logsumexp), which `backward` needs."""
    parts = (x.swapaxes(1, 2) for x in (q, k, v))
    out_BNTH, (*_, lse) = _attend_forward(*_arguments(*parts, **options))
    return out_BNTH.swapaxes(1, 2), lse


def backward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    out: Float[Array, "B T N H"],
    lse: Float[Array, "B N T"],
    dout: Float[Array, "B T N H"],
    **options,
) -> list[Float[Array, "B T N H"]]:
    """The gradients of q, k and v."""
    q, k, v, out, dout = (x.swapaxes(1, 2) for x in (q, k, v, out, dout))
    rate, *operands = _arguments(q, k, v, **options)
    grads = _attend_backward(rate, (*operands, out, lse), dout)[:3]
    return [x.swapaxes(1, 2) for x in grads]


def _attend_by_head(
    q: Float[Array, "B N T H"], k: Float[Array, "B N T H"], v: Float[Array, "B N T H"], **options
) -> Float[Array, "B N T H"]:
    return cast(Array, _attend(*_arguments(q, k, v, **options)))


def _arguments(
    q: Float[Array, "B N T H"],
    k: Float[Array, "B N T H"],
    v: Float[Array, "B N T H"],
    *,
    scale: Float[Array, ""] | float,
    segment_ids: Int[Array, "B T"] | None,
    dropout_rate: float,
    head_seeds: keep.HeadSeeds | None,
) -> tuple:
    """Of `_attend`."""
    return dropout_rate, q, k, v, jnp.asarray(scale, jnp.float32), segment_ids, head_seeds


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rate, q, k, v, scale, segment_ids, head_seeds) -> Array:
    return _attend_forward(rate, q, k, v, scale, segment_ids, head_seeds)[0]


def _attend_forward(rate, q, k, v, scale, segment_ids, head_seeds):
    outs, logsumexps = [], []
    for rows in _blocks(q.shape[2]):
        scores_BNTS = _scores(q, k, scale, segment_ids, rows)
        top_BNT = scores_BNTS.max(-1)
        weights_BNTS = jnp.exp(scores_BNTS - top_BNT[..., None])
        total_BNT = weights_BNTS.sum(-1)
        weights_BNTS = _dropped(weights_BNTS, rate, head_seeds, rows).astype(v.dtype)
        out_BNTH = _product("bnts,bnsh->bnth", weights_BNTS, v[:, :, : rows.stop])
        outs.append((out_BNTH / total_BNT[..., None]).astype(v.dtype))
        logsumexps.append(top_BNT + jnp.log(total_BNT))
    out, logsumexp = jnp.concatenate(outs, 2), jnp.concatenate(logsumexps, 2)
    return out, (q, k, v, scale, segment_ids, head_seeds, out, logsumexp)


def _attend_backward(rate, residuals, dout):
    q, k, v, scale, segment_ids, head_seeds, out, logsumexp = residuals
    # Of each query: the sum over keys of weight x its gradient, dropped ones left out.
    mean_BNT = (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    dq, dk, dv = [], jnp.float32(0), jnp.float32(0)
    for rows in _blocks(q.shape[2]):
        seen = slice(rows.stop)
        scores_BNTS = _scores(q, k, scale, segment_ids, rows)
        weights_BNTS = jnp.exp(scores_BNTS - logsumexp[:, :, rows, None])
        dweights_BNTS = _product("bnth,bnsh->bnts", dout[:, :, rows], v[:, :, seen])
        dweights_BNTS = _dropped(dweights_BNTS, rate, head_seeds, rows)
        dscores_BNTS = scale * weights_BNTS * (dweights_BNTS - mean_BNT[:, :, rows, None])
        dscores_BNTS = dscores_BNTS.astype(q.dtype)
        used_BNTS = _dropped(weights_BNTS, rate, head_seeds, rows).astype(dout.dtype)
        dq.append(_product("bnts,bnsh->bnth", dscores_BNTS, k[:, :, seen]))
        later = [(0, 0), (0, 0), (0, q.shape[2] - rows.stop), (0, 0)]
        dk += jnp.pad(_product("bnts,bnth->bnsh", dscores_BNTS, q[:, :, rows]), later)
        dv += jnp.pad(_product("bnts,bnth->bnsh", used_BNTS, dout[:, :, rows]), later)
    gradients = (x.astype(q.dtype) for x in (jnp.concatenate(dq, 2), dk, dv))
    return *gradients, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _blocks(length: int) -> list[slice]:
    """The rows of queries that are computed together; their keys are [:rows.stop]."""
    rows = max(ROWS, -(-length // BLOCKS))
    return [slice(first, min(first + rows, length)) for first in range(0, length, rows)]


def _scores(q, k, scale, segment_ids, rows: slice) -> Float[Array, "B N rows S"]:
    seen = slice(rows.stop)
    scores = scale * _product("bnth,bnsh->bnts", q[:, :, rows], k[:, :, seen])
    allowed = jnp.arange(rows.start, rows.stop)[:, None] >= jnp.arange(rows.stop)
    if segment_ids is not None:
        allowed &= segment_ids[:, None, rows, None] == segment_ids[:, None, None, seen]
    return jnp.where(allowed, scores, -jnp.inf)


def _dropped(x: Float[Array, "B N rows S"], rate, head_seeds, rows: slice) -> Array:
    """`x` where a weight is kept, over 1 - rate; 0 elsewhere. As in `reference`, to the bit."""
    if head_seeds is None:
        return x
    own_query_BN, own_key_BN = keep.own(head_seeds)
    base_query_T, base_key_S = keep.bases(rows.stop)
    a_BNT = keep.side(base_query_T[rows], own_query_BN[..., None], own_key_BN[..., None])
    b_BNS = keep.side(base_key_S, own_key_BN[..., None], own_query_BN[..., None])
    kept_BNTS = keep.kept(a_BNT[..., None], b_BNS[..., None, :], rate)
    return jnp.where(kept_BNTS, x / (1 - rate), 0)


def _product(axes: str, a: Array, b: Array) -> Float[Array, "..."]:
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)
