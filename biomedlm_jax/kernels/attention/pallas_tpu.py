"""Attention on TPU: which inputs it takes, which kernels they get, and the gradient.

Operands are [B, T, N * H] as the projections leave them, or the fused product [B, T, N * 3 * H]
with columns (head, (q, k, v), head dim). A step of the grid takes 128 lanes of them by its
BlockSpec, so nothing is transposed or copied outside the kernels. Where T or N * H is not a
multiple of 128 they are padded: a query sees no later key, so padded keys are never seen, and
padded queries have no gradient.
"""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from biomedlm_jax.kernels.attention import block_sizes, keep, tpu_resident, tpu_streaming
from biomedlm_jax.kernels.attention.block_sizes import Resident
from biomedlm_jax.kernels.attention.tpu_resident import Stack
from biomedlm_jax.kernels.attention.tpu_tiles import LANES, Plan
from biomedlm_jax.kernels.varying import axes_of, marked

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
    return _padded(operands, None, q.shape[3], interpret, **options).reshape(q.shape)


def attention_qkv(
    product: Float[Array, "B T N*3*H"],
    bias: Float[Array, "N*3*H"],
    *,
    head_dim: int,
    interpret: bool | pltpu.InterpretParams = False,
    **options,
) -> Float[Array, "B T N*H"]:
    """See `api.attention_qkv`."""
    return _padded((product,), bias, head_dim, interpret, **options)


def forward_in_stack(
    qkv: Float[Array, "L B T N*3*H"],
    out: Float[Array, "L B T N*H"],
    lse: Float[Array, "L B M 1 S"],
    layer: Int32[Array, ""],
    *,
    head_dim: int,
    interpret: bool | pltpu.InterpretParams = False,
    **options,
) -> tuple[Array, Array]:
    """out and lse with those of `layer`, see `forward_qkv`, written."""
    p = _prepared(qkv, head_dim, **options)
    if p.in_place:
        stack = Stack(layer, (qkv,), out, lse)
        return tpu_resident.forward(p.plan, interpret, stack, *p.others)
    found = forward_qkv(qkv[layer], head_dim=head_dim, interpret=interpret, **options)
    return out.at[layer].set(found[0]), lse.at[layer].set(found[1])


def backward_in_stack(
    qkv: Float[Array, "L B T N*3*H"],
    out: Float[Array, "L B T N*H"],
    lse: Float[Array, "L B M 1 S"],
    layer: Int32[Array, ""],
    dout: Float[Array, "B T N*H"],
    *,
    head_dim: int,
    interpret: bool | pltpu.InterpretParams = False,
    **options,
) -> tuple[Float[Array, "B T N*3*H"], Float[Array, "N*3*H"]]:
    """The gradients of `layer`'s product and of its bias."""
    p = _prepared(qkv, head_dim, **options)
    if p.in_place:
        stack = Stack(layer, (qkv,), out, lse)
        (grad,), dbias = tpu_resident.backward(p.plan, interpret, stack, *p.others, dout)
        return grad, cast(Array, dbias).astype(dout.dtype)
    operands = (_pad(qkv[layer], 0, p.rows, p.columns),)
    out, dout = (_pad(x, 0, p.rows, p.columns // 3) for x in (out[layer], dout))
    residuals = operands, *p.others, out, lse[layer]
    grads, dbias, *_ = _attend_backward(p.plan, interpret, residuals, dout)
    length, width = qkv.shape[2:]
    return grads[0][:, :length, :width], cast(Array, dbias)[:width]


def forward_qkv(
    qkv: Float[Array, "B T N*3*H"],
    *,
    head_dim: int,
    interpret: bool | pltpu.InterpretParams = False,
    **options,
) -> tuple[Float[Array, "B T N*H"], Float[Array, "B M 1 S"]]:
    """(out, logsumexp); M heads and S rows are whole tiles."""
    p = _prepared(qkv, head_dim, **options)
    operands = (_pad(qkv, 0, p.rows, p.columns),)
    if not isinstance(p.plan.blocks, Resident):
        _check_streaming(p.plan, interpret, operands, *p.others)
    out, (*_, lse) = _attend_forward(p.plan, interpret, operands, None, *p.others)
    return out[:, : qkv.shape[1], : qkv.shape[2] // 3], lse


class _Prepared(NamedTuple):
    """What kernels are called with: whole tiles of rows, whole columns of heads."""

    plan: Plan
    rows: int  # that are missing from whole tiles
    columns: int  # of an operand
    others: tuple[Array, Array | None, keep.HeadSeeds | None]  # scale, segment ids, seeds

    @property
    def in_place(self) -> bool:
        return isinstance(self.plan.blocks, Resident) and not self.rows and not self.columns


def _prepared(
    operand: jax.Array,
    head_dim: int,
    *,
    scale: Float[Array, ""] | float,
    segment_ids: Int32[Array, "B T"] | None,
    dropout_rate: float,
    head_seeds: keep.HeadSeeds | None,
    operands: int = 1,
) -> _Prepared:
    if head_dim not in HEAD_DIMS:
        raise NotImplementedError(f"head dim {head_dim} is not one of {HEAD_DIMS}")
    if operand.dtype.name not in DTYPES:
        raise NotImplementedError(f"{operand.dtype} is not one of {DTYPES}")
    length, width = operand.shape[-2:]
    heads = width * operands // (3 * head_dim)
    rows, missing_heads = -length % LANES, -heads % (LANES // head_dim)
    segment_ids = None if segment_ids is None else _pad(segment_ids, 0, rows)
    seeds = None if head_seeds is None else _pad(head_seeds, 0, missing_heads)
    _, kind = block_sizes.device()
    rate = 0.0 if seeds is None else dropout_rate
    plan: Plan = Plan(head_dim, rate, block_sizes.resident(kind))
    if not tpu_resident.takes(plan, length + rows, operand.dtype):
        plan = Plan(head_dim, rate, block_sizes.streaming(kind, head_dim, operand.dtype))
    others = jnp.asarray(scale, jnp.float32), segment_ids, seeds
    return _Prepared(plan, rows, missing_heads * width // heads, others)


def _padded(
    operands: tuple[jax.Array, ...],
    bias: jax.Array | None,
    head_dim: int,
    interpret: bool | pltpu.InterpretParams,
    **options: Any,
) -> Float[Array, "B T N*H"]:
    p = _prepared(operands[0], head_dim, operands=len(operands), **options)
    _, length, width = operands[0].shape
    operands = tuple(_pad(x, 0, p.rows, p.columns) for x in operands)
    bias = None if bias is None else _pad(bias, p.columns)
    if not isinstance(p.plan.blocks, Resident):
        _check_streaming(p.plan, interpret, operands, *p.others)
    out = cast(Array, _attend(p.plan, interpret, operands, bias, *p.others))
    return out[:, :length, : width * len(operands) // 3]


def _pad(x: jax.Array, *missing: int) -> jax.Array:
    return jnp.pad(x, [(0, m) for m in missing]) if any(missing) else x


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
        operands = (operands[0] + bias,)
    others = scale, segment_ids, seeds
    if isinstance(plan.blocks, Resident):
        out, lse = tpu_resident.forward(plan, interpret, _alone(operands), *others)
        out, lse = out[0], lse[0]
    else:
        parts = operands if len(operands) == 3 else _apart(operands[0], plan.head_dim)
        out, lse = tpu_streaming.forward(plan, interpret, parts, *others)
    return out, (operands, *others, out, lse)


def _attend_backward(plan, interpret, residuals, dout):
    operands, scale, segment_ids, seeds, out, lse = residuals
    others = scale, segment_ids, seeds
    if isinstance(plan.blocks, Resident):
        stack = _alone(operands, out, lse)
        grads, dbias = tpu_resident.backward(plan, interpret, stack, *others, dout)
    elif len(operands) == 3:
        grads, dbias = (
            tpu_streaming.backward(plan, interpret, operands, *others, out, lse, dout),
            None,
        )
    else:
        parts = _apart(operands[0], plan.head_dim)
        parts = tpu_streaming.backward(plan, interpret, parts, *others, out, lse, dout)
        heads = [x.reshape(*x.shape[:2], -1, plan.head_dim) for x in parts]
        grads = (jnp.stack(heads, 3).reshape(operands[0].shape),)
        dbias = grads[0].astype(jnp.float32).sum((0, 1))
    dbias = None if dbias is None else dbias.astype(dout.dtype)
    return grads, dbias, None, None, None


def _alone(operands: tuple[Array, ...], out: Any = None, lse: Any = None) -> Stack:
    """A stack of one layer."""
    layer = marked(jnp.int32(0), axes_of(operands))
    return Stack(layer, *jax.tree.map(lambda x: x[None], (operands, out, lse)))


def _apart(qkv: Float[Array, "B T N*3*H"], head_dim: int) -> tuple[jax.Array, ...]:
    """q, k, v [B, T, N * H]. A copy; at the lengths of the streaming kernels it is small work."""
    parts = qkv.reshape(*qkv.shape[:2], -1, 3, head_dim)
    return tuple(parts[..., i, :].reshape(*qkv.shape[:2], -1) for i in range(3))


_attend.defvjp(_attend_forward, _attend_backward)
