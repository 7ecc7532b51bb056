"""The decoder over a text and several that each go on from it, with the text in it once.

A row has a stem and, one behind the other, its branches. A token of a branch sees the whole stem
and what is before it in its own branch, and stands where it would stand behind the stem alone. All
but attention is the same for both, so stem and branches are one array; attention of the stem is the
kernel of training. As `gpt`, this is what one device computes under `jax.shard_map`, on a mesh
whose `context` axis is 1. It has no dropout, and nothing is kept for a gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from biomedlm_jax.kernels.attention.api import attention_qkv
from biomedlm_jax.kernels.attention.block_sizes import device
from biomedlm_jax.layout import in_use
from biomedlm_jax.model.gpt import GPT, Block
from biomedlm_jax.model.layers import rows_of


def forked(
    decoder: GPT,
    stems: Int[Array, "B S"],
    lengths: Int[Array, "B"],
    branches: Int[Array, "B R"],
    owners: Int[Array, "B R"],
    places: Int[Array, "B R"],
    table: Float[Array, "V D"],
) -> Float[Array, "B S+R D"]:
    """What follows the last LayerNorm, of stems and of branches.

    lengths: of each stem; what stands behind it is padding, that nobody sees.
    owners: of each token of `branches`, which branch of its row it is of.
    places: where it stands in the sequence, counted from the first token of the stem.
    table: `tokens.gathered` in the compute dtype.
    """
    model = decoder.model
    width, rest = stems.shape[1], branches.shape[1]
    positions = jnp.concatenate([jnp.broadcast_to(jnp.arange(width), stems.shape), places], 1)
    x = rows_of(table, jnp.concatenate([stems, branches], 1)).astype(jnp.float32)
    x = (x + in_use(decoder.positions, jnp.float32)[positions]).astype(model.compute_dtype)

    before = jnp.arange(rest)[:, None] >= jnp.arange(rest)
    own = (owners[:, :, None] == owners[:, None]) & before
    stem = jnp.arange(width) < lengths[:, None, None]
    seen = jnp.concatenate([jnp.broadcast_to(stem, (len(stems), rest, width)), own], 2)

    def layer(x: Float[Array, "B S+R D"], inputs: tuple[Block, Array]) -> tuple[Array, None]:
        block, index = inputs
        product, bias = block.projected(x), block.qkv_bias(x.dtype)
        scale = block.scale(index)
        attended = attention_qkv(
            product[:, :width], bias, head_dim=model.head_dim, scale=scale, impl=model.attention
        )
        if rest:
            apart = _of_branches(product + bias, seen, model.head_dim, scale)
            attended = jnp.concatenate([attended, apart], 1)
        middle = block.joined(x, attended)
        return block.lowered(middle, block.raised(middle)), None

    # XLA:CPU copies all that goes in and out of a loop.
    unroll = model.layers if device()[0] == "cpu" else 1
    layers = (decoder.blocks, jnp.arange(model.layers))
    x, _ = jax.lax.scan(layer, x, layers, unroll=unroll)  # pyright: ignore  (blocks are stacked)
    return decoder.ln_f(x)


def _of_branches(
    qkv: Float[Array, "B S+R Q"],
    seen: Bool[Array, "B R S+R"],
    head_dim: int,
    scale: Float[Array, ""] | float,
) -> Float[Array, "B R A"]:
    """softmax(scale q k^T) v over what is seen, in float32."""
    heads = qkv.reshape(*qkv.shape[:2], -1, 3, head_dim)
    q, k, v = (heads[:, :, :, part] for part in range(3))
    q = q[:, -seen.shape[1] :]
    exact = dict(preferred_element_type=jnp.float32)
    scores = scale * jnp.einsum("brnh,btnh->bnrt", q, k, **exact)
    chances = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
    out = jnp.einsum("bnrt,btnh->brnh", chances.astype(v.dtype), v, **exact)
    return out.reshape(*out.shape[:2], -1).astype(qkv.dtype)
