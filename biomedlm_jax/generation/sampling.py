"""Which token comes next, given logits: greedy, or drawn, with the usual ways to shape what is
drawn from. Each row has options of its own, so that requests with different ones share a batch.

In the order and with the meaning of `transformers`: repetition penalty (Keskar et al. 2019, arXiv
1909.05858), temperature, top-k, top-p (Holtzman et al. 2020, arXiv 1904.09751). Work that no row
asks for is not done.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32


class Options(NamedTuple):
    temperature: Float[Array, "B"]  # 0 is greedy
    top_k: Int[Array, "B"]  # 0 is all
    top_p: Float[Array, "B"]  # 1 is all
    repetition_penalty: Float[Array, "B"]  # 1 is none
    seed: UInt32[Array, "B"]


def choose(
    logits: Float[Array, "B V"],
    seen: Bool[Array, "B V"],
    options: Options,
    position: Int[Array, "B"],
) -> Int[Array, "B"]:
    """The token at `position` of each row, a pure function of the row's logits, options and
    position: no other row has an influence on it.

    logits: float32. seen: which tokens the row has had, of its prompt too; for the penalty.
    Greedy takes the first of equals; top-k and top-p keep all that are equal to the last kept.
    """
    penalty = options.repetition_penalty[:, None]
    logits = jax.lax.cond(
        (penalty != 1).any(),
        lambda x: jnp.where(seen, jnp.where(x < 0, x * penalty, x / penalty), x),
        lambda x: x,
        logits,
    )
    greedy = logits.argmax(-1).astype(jnp.int32)
    drawn = options.temperature > 0
    found = jax.lax.cond(
        drawn.any(), lambda x: _draw(x, options, position), lambda _: greedy, logits
    )
    return jnp.where(drawn, found, greedy)


def _draw(
    logits: Float[Array, "B V"], options: Options, position: Int[Array, "B"]
) -> Int[Array, "B"]:
    """The Gumbel-max way: the largest of logits + noise is a draw from their softmax."""
    x = logits / jnp.where(options.temperature > 0, options.temperature, 1)[:, None]
    top_k = jnp.where(options.top_k > 0, options.top_k, x.shape[1]).astype(jnp.float32)
    x = jax.lax.cond(
        (options.top_k > 0).any(), lambda x: _kept(x, jnp.ones_like, top_k), lambda x: x, x
    )
    top_p = jnp.where(options.top_p < 1, options.top_p, 2)  # what is larger may round to 1
    x = jax.lax.cond(
        (options.top_p < 1).any(), lambda x: _kept(x, jax.nn.softmax, top_p), lambda x: x, x
    )

    def noise(seed: UInt32[Array, ""], position: Int[Array, ""]) -> Float[Array, "V"]:
        return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), position), x.shape[1:])

    return (x + jax.vmap(noise)(options.seed, position)).argmax(-1).astype(jnp.int32)


def _kept(
    x: Float[Array, "B V"], measure: Callable[[Array], Array], limit: Float[Array, "B"]
) -> Float[Array, "B V"]:
    """`x` where those that are larger measure less than `limit` together, -inf elsewhere.

    The smallest that is kept is found by halving the range of all floats, 32 times, which takes a
    fraction of the time of sorting a vocabulary and is as exact.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    order = jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)  # as the floats, as integers
    sizes = measure(x)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends  # the smallest that is kept is in [low, high]
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
        larger = jnp.where(order > middle[:, None], sizes, 0).sum(-1)
        enough = larger < limit
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    whole = jnp.iinfo(jnp.int32)
    # Of the kind of x under `jax.shard_map`, as what the loop makes of it is.
    ends = (jnp.zeros_like(order[:, 0]) + whole.min, jnp.zeros_like(order[:, 0]) + whole.max)
    smallest, _ = jax.lax.fori_loop(0, 32, halve, ends)
    return jnp.where(order >= smallest[:, None], x, -jnp.inf)
