"""The decoder as generation runs it: keys and values of earlier positions are kept, so that a new
token costs one position and not a whole row.

As `gpt`, this is what one device computes under `jax.shard_map`, on a mesh whose `context` axis is
1. The arithmetic is `Block`'s own; only the way to attend differs. Layers are apart: a slice of a
stacked parameter would be copied at each token, which costs as much as to use it.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from biomedlm_jax.config import Model
from biomedlm_jax.kernels.attention.api import attention_qkv
from biomedlm_jax.kernels.attention.block_sizes import device
from biomedlm_jax.kernels.attention.cached import attend
from biomedlm_jax.kernels.products import times_turned
from biomedlm_jax.layout import BATCH, IN_USE, in_use, parameter, stored
from biomedlm_jax.model import gpt
from biomedlm_jax.model.layers import rows_of

LINEAR = ("qkv", "out", "up", "down")  # what runs in the compute dtype


class Weights(NamedTuple):
    """What generation reads: `gpt.GPT`'s parameters with the layers apart, and the embedding
    table in the dtype that logits are computed in."""

    params: dict
    head: Float[Array, "V D"]


class Cache(NamedTuple):
    """Of each layer: heads row by row (M = B x N), place, head dim. See `cache_dtype`."""

    keys: list[Float[Array, "M S H"]]
    values: list[Float[Array, "M S H"]]


def weight_specs(model: Model, axes: Mapping[str, int]) -> Weights:
    return Weights(gpt.specs(model, axes, apart=True), stored("vd"))  # pyright: ignore


def cache_dtype(model: Model) -> jnp.dtype:
    """The compute dtype. CPUs keep those numbers as float32: they attend twice as fast to it."""
    return jnp.dtype("float32" if device()[0] == "cpu" else model.compute_dtype)


def cache_specs(model: Model) -> Cache:
    of_layer = [PartitionSpec(BATCH + IN_USE["q"])] * model.layers  # a device's rows, its heads
    return Cache(of_layer, of_layer)  # pyright: ignore


def weights(params: dict, model: Model, mesh: Mesh) -> Weights:
    """Of `params` (float32, layers stacked, see `gpt.init`), on the devices of `mesh` already. What
    a device has of a layer stays there; layers that `data` stores are brought to all of it.

    Kernels are cast to the compute dtype once, which is what training does at each use.
    """
    # The same devices in another order, perhaps; then they are told so, and nothing moves.
    return _apart(model, mesh)(jax.device_put(params, _places(gpt.specs(model, mesh.shape), mesh)))


@functools.cache
def _apart(model: Model, mesh: Mesh) -> Callable[[dict], Weights]:
    dtype = model.compute_dtype

    def apart(params: dict) -> Weights:
        blocks = dict(params["blocks"])
        for name in LINEAR:
            kernel, bias = (blocks[name][part].astype(dtype) for part in ("kernel", "bias"))
            blocks[name] = {"kernel": kernel.swapaxes(1, 2), "bias": bias}
        layers = {i: jax.tree.map(lambda x, i=i: x[i], blocks) for i in range(model.layers)}
        table = params["tokens"]["table"]
        rest = {name: value for name, value in params.items() if name != "head"}  # of classes
        return Weights({**rest, "blocks": layers}, table.astype(dtype))

    return jax.jit(apart, out_shardings=_places(weight_specs(model, mesh.shape), mesh))


def _places(specs: Any, mesh: Mesh) -> Any:
    is_leaf = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    return jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=is_leaf)


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
        for part, kept in enumerate(cache, start=1):
            one = heads[:, :, :, part].swapaxes(1, 2).astype(cache_dtype(block.model))
            kept.append(one.reshape(-1, *one.shape[2:]))
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

    def with_newest(kept: Float[Array, "M S H"], newest: Float[Array, "B N H"]) -> Array:
        # Row by row, which XLA does in place; of one scatter for all it makes copies of the cache.
        heads = newest.shape[1]
        for row in range(len(newest)):
            one = newest[row, :, None].astype(kept.dtype)
            kept = jax.lax.dynamic_update_slice(kept, one, (row * heads, position[row], 0))
        return kept

    def attention(block: gpt.Block, layer: Int[Array, ""], x: Float[Array, "B 1 D"]) -> Array:
        qkv = block.qkv(x).reshape(len(tokens), -1, 3, block.model.head_dim)
        q, *newest = (qkv[:, :, part] for part in range(3))
        of_layer = len(after.keys)
        for before, kept, one in zip(cache, after, newest, strict=True):
            kept.append(with_newest(before[of_layer], one))
        out = attend(
            q.reshape(-1, q.shape[2]),
            after.keys[of_layer],
            after.values[of_layer],
            scale=block.scale(layer),
            position=jnp.repeat(position, q.shape[1]),
        )
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
    table = model.tokens.gathered(model.model.compute_dtype)
    x = rows_of(table, tokens).astype(jnp.float32)
    x = (x + in_use(model.positions, jnp.float32)[positions]).astype(model.model.compute_dtype)
    for layer, block in enumerate(model.blocks):
        middle = block.joined(x, attention(block, jnp.int32(layer), block.ln_1(x)))
        x = block.lowered(middle, block.raised(middle))
    return model.ln_f(x)


def _logits(weights: Weights, x: Float[Array, "B D"]) -> Float[Array, "B V"]:
    table = in_use(parameter("vd", weights.head), x.dtype)
    return times_turned(x, table, jnp.float32)
