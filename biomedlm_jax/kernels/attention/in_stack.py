"""Attention of one layer of a stack, and its gradient, for a loop over layers written by hand.

Such a loop keeps what the backward pass needs in arrays [L, ...]. The TPU kernels read and write
those where they lie; the other implementations get a layer cut out. One that has no rule for its
gradient is run again in the backward pass.
"""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Shaped

from biomedlm_jax.kernels.attention.api import (
    IMPLEMENTATIONS,
    INTERPRETED,
    apart,
    first_that_takes,
    options_of,
)
from biomedlm_jax.kernels.varying import axes_of, marked, unwritten


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stacks:
    """What all layers keep. by: the implementation, a name of `api`. lse: the logsumexp as that
    implementation has it; None where it keeps none."""

    qkv: Float[Array, "L B T N*3*H"]
    out: Float[Array, "L B T N*H"]
    lse: Float[Array, "L ..."] | None
    by: str = dataclasses.field(metadata=dict(static=True))


def empty(
    layers: int, qkv: Float[Array, "B T N*3*H"], *, head_dim: int, impl: str, **options: Any
) -> Stacks:
    """Stacks without values, for products like `qkv`, of the first implementation that takes them.

    options: see `api.attention_qkv`, of any layer.

    Raises:
      NotImplementedError: none does; the reasons are listed.
    """
    chosen = _options(qkv, head_dim, options)

    def stack(x: Any) -> Array:
        return unwritten((layers, *x.shape), x.dtype, axes_of((qkv, chosen)))

    def attempt(module: types.ModuleType, interpret: dict) -> tuple[Any, Any]:
        # Numbers that are not traced stay numbers, as they will be in the loop.
        traced = {name: x for name, x in chosen.items() if not isinstance(x, int | float)}
        rest = {name: x for name, x in chosen.items() if name not in traced} | interpret
        forward = lambda qkv, traced: _forward(module, qkv, head_dim, rest | traced)  # noqa: E731
        return jax.eval_shape(forward, qkv, traced)

    by, (out, lse) = first_that_takes(impl, qkv.shape, attempt)
    return Stacks(stack(qkv), stack(out), None if lse is None else stack(lse), by)


def forward(stacks: Stacks, layer: Int32[Array, ""], *, head_dim: int, **options: Any) -> Stacks:
    """The same with out and lse of `layer`, from its qkv. options: see `api.attention_qkv`."""
    module, chosen = _asked(stacks, head_dim, options)
    kept = stacks.qkv, stacks.out, stacks.lse
    if hasattr(module, "forward_in_stack"):
        out, lse = module.forward_in_stack(*kept, layer, head_dim=head_dim, **chosen)
        return dataclasses.replace(stacks, out=out, lse=lse)
    found = _forward(module, at(stacks.qkv, layer), head_dim, chosen)
    out, lse = jax.tree.map(lambda stack, x: put(stack, x, layer), kept[1:], found)
    return dataclasses.replace(stacks, out=out, lse=lse)


def backward(
    stacks: Stacks,
    layer: Int32[Array, ""],
    dout: Float[Array, "B T N*H"],
    *,
    head_dim: int,
    **options: Any,
) -> tuple[Float[Array, "B T N*3*H"], Float[Array, "N*3*H"]]:
    """The gradients of the fused product of `layer`, and of its bias."""
    module, chosen = _asked(stacks, head_dim, options)
    kept = stacks.qkv, stacks.out, stacks.lse
    if hasattr(module, "backward_in_stack"):
        return module.backward_in_stack(*kept, layer, dout, head_dim=head_dim, **chosen)
    qkv, out, lse = jax.tree.map(lambda stack: at(stack, layer), kept)
    if hasattr(module, "backward"):
        heads = (*apart(qkv, head_dim), _by_head(out, head_dim), lse, _by_head(dout, head_dim))
        grads = module.backward(*heads, **chosen)
        dqkv = jnp.stack(grads, 3).reshape(qkv.shape)
    else:
        (dqkv,) = jax.vjp(lambda x: _forward(module, x, head_dim, chosen)[0], qkv)[1](dout)
    return dqkv, dqkv.astype(jnp.float32).sum((0, 1)).astype(dqkv.dtype)


def at(stack: Shaped[Array, "L ..."], layer: Int32[Array, ""]) -> Shaped[Array, "..."]:
    return jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False)


def put(
    stack: Shaped[Array, "L ..."], x: Shaped[Array, "..."], layer: Int32[Array, ""]
) -> Shaped[Array, "L ..."]:
    return jax.lax.dynamic_update_index_in_dim(stack, x, layer, 0)


def _forward(
    module: types.ModuleType, qkv: Float[Array, "B T N*3*H"], head_dim: int, options: dict
) -> tuple[Array, Array | None]:
    """out and lse of one layer."""
    if hasattr(module, "forward_qkv"):
        return module.forward_qkv(qkv, head_dim=head_dim, **options)
    heads, lse = apart(qkv, head_dim), None
    if hasattr(module, "forward"):
        out, lse = module.forward(*heads, **options)
    else:
        out = module.attention(*heads, **options)
    return out.reshape(*qkv.shape[:2], -1), lse


def _by_head(x: Float[Array, "B T N*H"], head_dim: int) -> Float[Array, "B T N H"]:
    return x.reshape(*x.shape[:2], -1, head_dim)


def _asked(stacks: Stacks, head_dim: int, options: dict) -> tuple[types.ModuleType, dict]:
    """The implementation, and its options, of one kind with the stacks."""
    chosen = _options(stacks.qkv, head_dim, options)
    chosen = marked(chosen, axes_of((stacks, chosen)))
    if stacks.by in INTERPRETED:
        return INTERPRETED[stacks.by], {**chosen, "interpret": True}
    return IMPLEMENTATIONS[stacks.by][0], chosen


def _options(qkv: Float[Array, "... B T N*3*H"], head_dim: int, options: dict) -> dict:
    *_, batch, length, width = qkv.shape
    return options_of((batch, length, width // (3 * head_dim)), **options)
