"""Dropout whose bits are a pure function of a seed and of an element's place in the whole array.

A device that holds rows 512 to 1023 draws for them what one device would have drawn, so a loss
does not depend on the mesh, and a kernel can draw again in the backward pass what it drew in the
forward pass instead of storing it. A counter hashed where it is used is also cheaper than a random
number generator: XLA fuses it into the product before it.

The hash is MurmurHash3's 32-bit finaliser (Appleby, public domain) over a Weyl sequence, the
construction of SplitMix (Steele, Lea and Flood, OOPSLA 2014) in 32 bits.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

Seed = UInt32[Array, ""]

WEYL = 0x9E3779B9  # 2**32 / golden ratio, odd


def fold(
    seed: UInt32[Array, "..."] | np.uint32,
    index: Int[Array, "..."] | UInt32[Array, "..."] | Int[np.ndarray, "..."] | int,
) -> Any:
    """A new seed for each index, uint32, broadcast over both arguments' shapes; numpy in numpy."""
    index = index if isinstance(index, np.ndarray) else jnp.asarray(index)
    x = seed + (index.astype(np.uint32) + np.uint32(1)) * np.uint32(WEYL)
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def kept(row_seeds: UInt32[Array, "*R"], columns: int, rate: float) -> Bool[Array, "*R {columns}"]:
    """True with probability 1 - rate; element [..., c] depends on row_seeds[...] and c alone."""
    bits = fold(row_seeds[..., None], jnp.arange(columns))
    return bits >= jnp.uint32(round(rate * 2**32))


def dropout(
    x: Float[Array, "B T D"],
    *,
    rate: float,
    seed: Seed | None,
    first_row: Int[Array, ""] | int,
    first_position: Int[Array, ""] | int = 0,
) -> Float[Array, "B T D"]:
    """`x` with a share `rate` of its elements zeroed and the others divided by 1 - rate.

    seed: None switches dropout off.
    first_row, first_position: where x[0, 0] stands in the whole batch.
    """
    if seed is None or rate == 0:
        return x
    rows = first_row + jnp.arange(x.shape[0])
    positions = first_position + jnp.arange(x.shape[1])
    row_seeds = fold(fold(seed, rows)[:, None], positions)
    keep = kept(row_seeds, x.shape[2], rate)
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros_like(x))


def step_seed(seed: int, step: Int[Array, ""] | int) -> Seed:
    """The dropout seed of one training step."""
    return fold(jnp.uint32(seed % 2**32), jax.lax.convert_element_type(step, jnp.uint32))
