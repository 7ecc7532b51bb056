"""The decoder as generation runs it: keys and values of earlier positions are kept, so that a new
token costs one position and not a whole row.

As `gpt`, this is what one device computes under `jax.shard_map`, on a mesh whose `context` axis is
1. The arithmetic is `Block`'s own; only the way to attend differs. Layers are apart: a slice of a
stacked parameter would be copied at each token, which costs as much as to use it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from biomedlm_jax.config import Model
from biomedlm_jax.kernels.attention.api import attention_qkv
from biomedlm_jax.kernels.attention.cached import attend
from biomedlm_jax.layout import BATCH, IN_USE, STORED, in_use, parameter, spec
from biomedlm_jax.model import gpt

LINEAR = ("qkv", "out", "up", "down")  # what runs in the compute dtype


class Weights(NamedTuple):
    """What generation reads: `gpt.GPT`'s parameters with the layers apart, and the embedding
    table in the dtype that logits are computed in."""

    params: dict
    head: Float[Array, "V D"]


class Cache(NamedTuple):
    """Of each layer [B, N, S, H] in the compute dtype: row, head, place, head dim."""

    keys: list[Float[Array, "B N S H"]]
    values: list[Float[Array, "B N S H"]]


def weight_specs(model: Model) -> Weights:
    return Weights(gpt.specs(model, apart=True), spec("vd", STORED))  # pyright: ignore


def cache_specs(model: Model) -> Cache:
    of_layer = [
        PartitionSpec(BATCH, IN_USE["q"])
    ] * model.layers  # heads as the projection has them
    return Cache(of_layer, of_layer)  # pyright: ignore


def weights(params: dict, model: Model, mesh: Mesh) -> Weights:
    """Of `params` (float32, layers stacked, see `gpt.init`) on `mesh`, each part where it was.

    Kernels are cast to the compute dtype once, which is what training does at each use.
    """

    dtype = model.compute_dtype

    def apart(params: dict) -> Weights:
        blocks = dict(params["blocks"])
        for name in LINEAR:
            kernel, bias = (blocks[name][part].astype(dtype) for part in ("kernel", "bias"))
            blocks[name] = {"kernel": kernel.swapaxes(1, 2), "bias": bias}
        layers = {i: jax.tree.map(lambda x, i=i: x[i], blocks) for i in range(model.layers)}
        table = params["tokens"]["table"]
        return Weights({**params, "blocks": layers}, table.astype(dtype))

    def on(specs):
        is_leaf = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
        return jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=is_leaf)

    # The same devices in another order, perhaps; then they are told so, and nothing moves.
    params = jax.device_put(params, on(gpt.specs(model)))
    return jax.jit(apart, out_shardings=on(weight_specs(model)))(params)


def prompt(
    graph: nnx.GraphDef,
    weights: Weights,
    tokens: Int[Array, "B T"],
    last: Int[Array, "B"],
) -> tuple[Float[Array, "B V"], Cache]:
    """(logits of what comes after position `last` of each row, the cache of all T positions).

    logits: float32, of the rows of the table that this device holds.
    """
    cache = Cache([], [])

    def attention(block: gpt.Block, layer: Int[Array, ""], x: Float[Array, "B T D"]) -> Array:
        product, bias = block.qkv.product(x), in_use(block.qkv.bias, x.dtype)
        heads = (product + bias).reshape(*x.shape[:2], -1, 3, block.model.head_dim)
        cache.keys.append(heads[:, :, :, 1].swapaxes(1, 2))
        cache.values.append(heads[:, :, :, 2].swapaxes(1, 2))
        return attention_qkv(
            product,
            bias,
            head_dim=block.model.head_dim,
            scale=block.scale(layer),
            impl=block.model.attention,
        )

    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = _layers(graph, weights, tokens, positions, attention)
    found = hidden[jnp.arange(len(last)), last]
    return _logits(weights, found), cache


def token(
    graph: nnx.GraphDef,
    weights: Weights,
    tokens: Int[Array, "B"],
    position: Int[Array, "B"],
    cache: Cache,
) -> tuple[Float[Array, "B V"], Cache]:
    """(logits of what comes after `tokens`, which stand at `position` of their rows; the cache
    with their keys and values in it). See `prompt`."""
    after = Cache([], [])

    def with_newest(kept: Float[Array, "B N S H"], newest: Float[Array, "B N H"]) -> Array:
        # Row by row, which XLA does in place; of one scatter for all it makes copies of the cache.
        for row in range(len(newest)):
            one = newest[row, None, :, None]
            kept = jax.lax.dynamic_update_slice(kept, one, (row, 0, position[row], 0))
        return kept

    def attention(block: gpt.Block, layer: Int[Array, ""], x: Float[Array, "B 1 D"]) -> Array:
        qkv = block.qkv(x).reshape(len(tokens), -1, 3, block.model.head_dim)
        of_layer = len(after.keys)
        keys = with_newest(cache.keys[of_layer], qkv[:, :, 1])
        values = with_newest(cache.values[of_layer], qkv[:, :, 2])
        after.keys.append(keys)
        after.values.append(values)
        scale = block.scale(layer)
        out = attend(qkv[:, :, 0], keys, values, scale=scale, position=position)
        return out.reshape(len(tokens), 1, -1)

    hidden = _layers(graph, weights, tokens[:, None], position[:, None], attention)
    return _logits(weights, hidden[:, 0]), after


def _layers(
    graph: nnx.GraphDef,
    weights: Weights,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    attention: Callable,
) -> Float[Array, "B T D"]:
    model = nnx.merge(graph, weights.params)
    x = model.tokens(tokens) + in_use(model.positions, jnp.float32)[positions]
    x = x.astype(model.model.compute_dtype)
    for layer, block in enumerate(model.blocks):
        index = jnp.int32(layer)
        x = block.residual(x, lambda x, b=block, i=index: attention(b, i, x))
    return model.ln_f(x)


def _logits(weights: Weights, x: Float[Array, "B D"]) -> Float[Array, "B V"]:
    table = in_use(parameter("vd", weights.head), x.dtype)
    return jnp.einsum("vd,bd->vb", table, x, preferred_element_type=jnp.float32).T
