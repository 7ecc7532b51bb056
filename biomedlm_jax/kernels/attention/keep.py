"""Which attention weights dropout keeps: a hash of (seed, row of the batch, head, query, key).

A kernel that keeps no mask must draw the same bits again in its backward pass, there with keys
where queries were, and on another mesh. So the mask depends on places, never on tiles. And it must
be cheap: one hash for each of T x T weights costs as much as their softmax. Queries and keys are
therefore hashed well, one by one, and a weight costs one xor and one product:

    a[query] = (base[query] ^ own_query) * (own_key | 1)
    b[key]   = (base'[key]  ^ own_key)   * (own_query | 1)
    kept     = (a ^ b) * (b | 1) >= threshold                    all modulo 2**32, as int32

A product by a constant in the last line would be cheaper still by nothing, and leaves a trace: the
four corners of a rectangle then agree too often, by 1 % at rate 0.1 and 5 % at 0.5, which
`tests/test_keep.py` would find.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Int32, UInt32

from biomedlm_jax.kernels.dropout import Seed, fold

HeadSeeds = UInt32[Array, "B N"]


def head_seeds(
    seed: Seed,
    batch: int,
    heads: int,
    first_row: Int[Array, ""] | int = 0,
    first_head: Int[Array, ""] | int = 0,
) -> HeadSeeds:
    """One seed for each row of the whole batch and each of all heads, from the first ones on.

    Flat until the end: XLA:TPU makes one small operation of it, where broadcasts make four.
    """
    place = jnp.arange(batch * heads)
    seeds = fold(fold(seed, first_row + place // heads), first_head + place % heads)
    return seeds.reshape(batch, heads)


def own(head_seeds: UInt32[Array, "*B"]) -> tuple[Int32[Array, "*B"], Int32[Array, "*B"]]:
    """(own_query, own_key) of a head."""
    return _signed(fold(head_seeds, 0)), _signed(fold(head_seeds, 1))


def bases(length: int) -> tuple[Int32[np.ndarray, "{length}"], Int32[np.ndarray, "{length}"]]:
    """The hashes of positions: as queries, as keys. The same for every head; constants."""
    of_queries, of_keys = (fold(np.uint32(seed), np.arange(length)) for seed in (0, 1))
    return of_queries.view(np.int32), of_keys.view(np.int32)


def side(
    base: Int32[Array, "..."] | Int32[np.ndarray, "..."],
    mine: Int32[Array, "..."],
    other: Int32[Array, "..."],
) -> Int32[Array, "..."]:
    """a of queries by (own_query, own_key), b of keys by (own_key, own_query); broadcast."""
    return jnp.bitwise_xor(base, mine) * (other | 1)


def kept(a: Int32[Array, "..."], b: Int32[Array, "..."], rate: float) -> Bool[Array, "..."]:
    """True with probability 1 - rate; a of queries and b of keys, broadcast."""
    return (a ^ b) * (b | 1) >= threshold(rate)


def threshold(rate: float) -> Int32[Array, ""]:
    return jnp.int32(min(round(rate * 2**32), 2**32 - 1) - 2**31)


def _signed(x: UInt32[Array, "*A"]) -> Int32[Array, "*A"]:
    return lax.bitcast_convert_type(x, jnp.int32)
