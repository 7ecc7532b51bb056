"""Attention on TPU: which inputs it takes, which kernels they get, and the gradient.

Operands are [B, T, N * H] as the projections leave them, or the fused product [B, T, N * 3 * H]
with columns (head, (q, k, v), head dim). A step of the grid takes 128 lanes of them by its
BlockSpec, so nothing is transposed or copied outside the kernels. Where T or N * H is not a
multiple of 128 they are padded: a query sees no later key, so padded keys are never seen, and
padded queries have no gradient.
"""

import functools
from typing import cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from biomedlm_jax.kernels.attention import block_sizes, keep, tpu_resident, tpu_streaming
from biomedlm_jax.kernels.attention.block_sizes import Resident
from biomedlm_jax.kernels.attention.tpu_tiles import LANES, Plan

HEAD_DIMS = (32, 64, 128)
DTYPES = ("bfloat16", "float32")


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    *,
    interpret: bool | pltpu.InterpretParams = False,
    **options,
) -> Float[Array, "B T N H"]:
    """See `api.attention`."""
    operands = tuple(x.reshape(*x.shape[:2], -1) for x in (q, k, v))
    heads, head_dim = q.shape[2:]
    return _padded(operands, None, heads, head_dim, interpret, **options).reshape(q.shape)


def attention_qkv(
    product: Float[Array, "B T N*3*H"],
    bias: Float[Array, "N*3*H"],
    *,
    head_dim: int,
    interpret: bool | pltpu.InterpretParams = False,
    **options,
) -> Float[Array, "B T N*H"]:
    """See `api.attention_qkv`."""
    heads = product.shape[2] // (3 * head_dim)
    return _padded((product,), bias, heads, head_dim, interpret, **options)


def _padded(
    operands: tuple[jax.Array, ...],
    bias: jax.Array | None,
    heads: int,
    head_dim: int,
    interpret: bool | pltpu.InterpretParams,
    *,
    scale: Float[Array, ""],
    segment_ids: Int32[Array, "B T"] | None,
    dropout_rate: float,
    head_seeds: keep.HeadSeeds | None,
) -> Float[Array, "B T N*H"]:
    if head_dim not in HEAD_DIMS:
        raise NotImplementedError(f"head dim {head_dim} is not one of {HEAD_DIMS}")
    if operands[0].dtype.name not in DTYPES:
        raise NotImplementedError(f"{operands[0].dtype} is not one of {DTYPES}")
    length = operands[0].shape[1]
    rows = -length % LANES
    missing_heads = -heads % (LANES // head_dim)
    columns = missing_heads * operands[0].shape[2] // heads

    def pad(x: jax.Array, *missing: int) -> jax.Array:
        return jnp.pad(x, [(0, m) for m in missing]) if any(missing) else x

    operands = tuple(pad(x, 0, rows, columns) for x in operands)
    bias = None if bias is None else pad(bias, columns)
    segment_ids = None if segment_ids is None else pad(segment_ids, 0, rows)
    seeds = None if head_seeds is None else pad(head_seeds, 0, missing_heads)
    _, kind = block_sizes.device()
    rate = 0.0 if seeds is None else dropout_rate
    scale = jnp.asarray(scale, jnp.float32)
    plan = Plan(head_dim, rate, block_sizes.resident(kind))
    if not tpu_resident.takes(plan, length + rows, operands[0].dtype):
        blocks = block_sizes.streaming(kind, head_dim, operands[0].dtype)
        plan = Plan(head_dim, rate, blocks)
        _check_streaming(plan, interpret, operands, scale, segment_ids, seeds)
    out = cast(Array, _attend(plan, interpret, operands, bias, scale, segment_ids, seeds))
    return out[:, :length, : heads * head_dim]


def _check_streaming(plan, interpret, operands, scale, segment_ids, seeds) -> None:
    """Raises NotImplementedError where the backward pass would, which needs more memory than the
    forward pass: whoever asks for a gradient later has no other implementation by then."""
    batch, length, width = operands[0].shape
    width = width // 3 if len(operands) == 1 else width
    part = jax.ShapeDtypeStruct((batch, length, width), operands[0].dtype)
    lse = jax.ShapeDtypeStruct((batch, width // plan.head_dim, 1, length), jnp.float32)
    backward = functools.partial(tpu_streaming.backward, plan, interpret)
    others = [
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        for x in (scale, segment_ids, seeds)
    ]
    jax.eval_shape(backward, (part,) * 3, *others, part, lse, part)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(plan, interpret, operands, bias, scale, segment_ids, seeds) -> Array:
    return _attend_forward(plan, interpret, operands, bias, scale, segment_ids, seeds)[0]


def _attend_forward(plan, interpret, operands, bias, scale, segment_ids, seeds):
    if bias is not None:  # for XLA a last touch to the product; its gradient is the kernel's
        operands = (checkpoint_name(operands[0] + bias, "qkv"),)
    others = scale, segment_ids, seeds
    if isinstance(plan.blocks, Resident):
        out, lse = tpu_resident.forward(plan, interpret, operands, *others)
    else:
        parts = operands if bias is None else _apart(operands[0], plan.head_dim)
        out, lse = tpu_streaming.forward(plan, interpret, parts, *others)
    out, lse = checkpoint_name(out, "attended"), checkpoint_name(lse, "logsumexp")
    return out, (operands, *others, out, lse)


def _attend_backward(plan, interpret, residuals, dout):
    operands, scale, segment_ids, seeds, out, lse = residuals
    others = scale, segment_ids, seeds, out, lse, dout
    if isinstance(plan.blocks, Resident):
        grads, dbias = tpu_resident.backward(plan, interpret, operands, *others)
    elif len(operands) == 3:
        grads, dbias = tpu_streaming.backward(plan, interpret, operands, *others), None
    else:
        parts = _apart(operands[0], plan.head_dim)
        parts = tpu_streaming.backward(plan, interpret, parts, *others)
        heads = [x.reshape(*x.shape[:2], -1, plan.head_dim) for x in parts]
        grads = (jnp.stack(heads, 3).reshape(operands[0].shape),)
        dbias = grads[0].astype(jnp.float32).sum((0, 1))
    dbias = None if dbias is None else dbias.astype(dout.dtype)
    return grads, dbias, None, None, None


def _apart(qkv: Float[Array, "B T N*3*H"], head_dim: int) -> tuple[jax.Array, ...]:
    """q, k, v [B, T, N * H]. A copy; at the lengths of the streaming kernels it is small work."""
    parts = qkv.reshape(*qkv.shape[:2], -1, 3, head_dim)
    return tuple(parts[..., i, :].reshape(*qkv.shape[:2], -1) for i in range(3))


_attend.defvjp(_attend_forward, _attend_backward)
