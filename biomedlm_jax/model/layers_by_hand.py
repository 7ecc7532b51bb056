"""All layers, one after the other, with a backward pass over them that is written by hand.

JAX's own gradient of a scan stacks what the forward pass hands over, and cuts a layer out of each
stack for the backward pass. A matrix product reads and writes a stack in place; a kernel is given
copies, of qkv, of attention's result. Here both loops carry the stacks, and kernels are told the
layer (`kernels/attention/in_stack.py`). A loop by hand also decides in what order things happen.

What is by hand is that order alone. Layer l with input x is, in the parts that `gpt.Block` has,

  qkv = projected(x) + bias    attended = attention(qkv)    middle = joined(x, attended)
  up = raised(middle)          next x = lowered(middle, up)

and all of these are kept. With d(next x) at hand the chain rule goes from the last to the first:

  lowered gives d(middle), d(up);  raised adds to d(middle);  joined gives d(x), d(attended);
  attention gives d(qkv), whose sum over tokens is d(bias);  projected adds to d(x)

Each part's own gradient is `jax.vjp` of it at its kept inputs. That computes the part again, but
XLA drops what nobody asks for, which is every product; LayerNorm, GELU and dropout are cheap.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from biomedlm_jax.kernels.attention import in_stack
from biomedlm_jax.kernels.attention.in_stack import Stacks, at, put
from biomedlm_jax.kernels.varying import axes_of, unwritten
from biomedlm_jax.model.layers import Statistics


class Kept(NamedTuple):
    """Of all layers, for the backward pass. A layer's input is the output of the one before."""

    x: Float[Array, "L+1 B S D"]
    statistics_1: Statistics  # of x, [L + 1, B, S]
    attention: Stacks
    kernels: Float[Array, "L E D"]  # of `out`, gathered
    middle: Float[Array, "L B S D"]
    statistics_2: Statistics  # of middle
    up: Float[Array, "L B S F"]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def through(
    graph: nnx.GraphDef, params: dict, x: Float[Array, "B S D"], same: Any
) -> Float[Array, "B S D"]:
    """What the last layer makes of x.

    graph, params: of a `gpt.Block` whose parameters are stacks, [L, ...].
    same: gpt.Same.
    """

    def layer(x: Array, inputs: tuple) -> tuple[Array, None]:
        params, index = inputs
        return nnx.merge(graph, params)(x, index, same), None

    return jax.lax.scan(layer, x, (params, jnp.arange(_count(params))))[0]


def _forward(
    graph: nnx.GraphDef, params: dict, x: Float[Array, "B S D"], same: Any
) -> tuple[Float[Array, "B S D"], tuple]:
    layers = _count(params)

    def first_half(index: Int[Array, ""], kept: Kept) -> Kept:
        block, x = nnx.merge(graph, _of(params, index)), at(kept.x, index)
        product = block.projected(x, _of(kept.statistics_1, index))
        qkv = put(kept.attention.qkv, product + block.qkv_bias(x.dtype), index)
        how = block.attention(product, index, same)
        attention = in_stack.forward(replace(kept.attention, qkv=qkv), index, **how)
        return kept._replace(attention=attention)

    def second_half(index: Int[Array, ""], kept: Kept) -> Kept:
        block, x = nnx.merge(graph, _of(params, index)), at(kept.x, index)
        of_attention, of_mlp = block.dropouts(x, index, same)
        attended, kernel = at(kept.attention.out, index), at(kept.kernels, index)
        middle = block.joined(x, attended, of_attention, kernel)
        statistics = block.ln_2.statistics(middle)
        up = block.raised(middle, statistics)
        x = block.lowered(middle, up, of_mlp)
        return kept._replace(
            # With the next layer's statistics, which XLA can take as x leaves the product.
            x=put(kept.x, x, index + 1),
            statistics_1=_put(kept.statistics_1, block.ln_1.statistics(x), index + 1),
            middle=put(kept.middle, middle, index),
            statistics_2=_put(kept.statistics_2, statistics, index),
            up=put(kept.up, up, index),
        )

    # The first half of a layer comes right behind the second half of the one before. XLA:TPU
    # fetches a kernel while an earlier product of the same trip runs, and waits for what it needs
    # where a trip begins: that would be the kernel of qkv, and is now the small one of `out`. Those
    # are gathered once for all layers, and kept for the backward pass.
    kept = first_half(jnp.int32(0), _empty(graph, params, x, same))
    kept = jax.lax.fori_loop(
        0, layers - 1, lambda index, kept: first_half(index + 1, second_half(index, kept)), kept
    )
    kept = second_half(jnp.int32(layers - 1), kept)
    return kept.x[layers], (params, same, kept)


def _backward(graph: nnx.GraphDef, residuals: tuple, dx: Float[Array, "B S D"]) -> tuple:
    params, same, kept = residuals
    layers = _count(params)

    def layer(done: Int[Array, ""], carry: tuple[Array, dict]) -> tuple[Array, dict]:
        (dx, grads), index = carry, layers - 1 - done
        mine = _of(params, index)
        x, middle, up = (at(stack, index) for stack in (kept.x, kept.middle, kept.up))
        block = nnx.merge(graph, mine)
        of_attention, of_mlp = block.dropouts(x, index, same)

        def pulled(part: Callable, names: tuple[str, ...], dy: Array, *inputs: Array) -> tuple:
            """The gradients of the parameters under `names`, and of the inputs, of one part."""

            def run(own: dict, *inputs: Array) -> Array:
                return part(nnx.merge(graph, mine | own), *inputs)

            return jax.vjp(run, {name: mine[name] for name in names}, *inputs)[1](dy)

        lowered, dmiddle, dup = pulled(
            lambda block, middle, up: block.lowered(middle, up, of_mlp), ("down",), dx, middle, up
        )
        statistics_1, statistics_2 = _of((kept.statistics_1, kept.statistics_2), index)
        raised, more = pulled(
            lambda block, x: block.raised(x, statistics_2), ("ln_2", "up"), dup, middle
        )
        joined, dx, dattended, dkernel = pulled(
            lambda block, x, attended, kernel: block.joined(x, attended, of_attention, kernel),
            ("out",),
            dmiddle + more,
            x,
            at(kept.attention.out, index),
            at(kept.kernels, index),
        )
        (scattered,) = pulled(lambda block: block.out.gathered(x.dtype), ("out",), dkernel)
        how = block.attention(kept.attention.qkv[0], index, same)
        dqkv, dbias = in_stack.backward(kept.attention, index, dattended, **how)
        projected, more = pulled(
            lambda block, x: block.projected(x, statistics_1), ("ln_1", "qkv"), dqkv, x
        )
        (biased,) = pulled(lambda block: block.qkv_bias(x.dtype), ("ln_1", "qkv"), dbias)
        found = lowered | raised | _sum(joined, scattered) | _sum(projected, biased)
        return dx + more, _put(grads, found, index)

    grads = jax.tree.map(lambda p: unwritten(p.shape, p.dtype, axes_of(p)), params)
    dx, grads = jax.lax.fori_loop(0, layers, layer, (dx, grads))
    return grads, dx, None


through.defvjp(_forward, _backward)


def _empty(graph: nnx.GraphDef, params: dict, x: Float[Array, "B S D"], same: Any) -> Kept:
    """Stacks, of which only the first x has a value. What a layer makes is computed for its shape
    alone, and dropped."""
    block, layers = nnx.merge(graph, _of(params, jnp.int32(0))), _count(params)
    product, up = block.projected(x), block.raised(x)
    how = block.attention(product, jnp.int32(0), same)

    def stack(like: Array, layers: int = layers) -> Array:
        return unwritten((layers, *like.shape), like.dtype, axes_of(like))

    def begun(first: Array) -> Array:
        return put(stack(first, layers + 1), first, jnp.int32(0))

    statistics = block.ln_1.statistics(x)
    return Kept(
        x=begun(x),
        statistics_1=jax.tree.map(begun, statistics),
        attention=in_stack.empty(layers, product, impl=block.model.attention, **how),
        kernels=jax.vmap(lambda of: nnx.merge(graph, of).out.gathered(x.dtype))(params),
        middle=stack(x),
        statistics_2=jax.tree.map(stack, statistics),
        up=stack(up),
    )


def _put(stacks: Any, of_layer: Any, layer: Int[Array, ""]) -> Any:
    return jax.tree.map(lambda stack, x: put(stack, x, layer), stacks, of_layer)


def _sum(a: dict, b: dict) -> dict:
    return jax.tree.map(jnp.add, a, b)


def _of(stacks: Any, layer: Int[Array, ""]) -> Any:
    return jax.tree.map(lambda stack: at(stack, layer), stacks)


def _count(params: dict) -> int:
    return len(jax.tree.leaves(params)[0])
