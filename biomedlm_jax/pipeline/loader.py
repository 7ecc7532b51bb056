"""Batches of tokens on the mesh, from a token store.

The training split is cut into blocks of exactly `config.model.context` tokens, document after
document, and the blocks are shuffled anew in every epoch. Which blocks make batch k is a pure
function of (seed, k): nothing depends on the number of hosts, on restarts, or on the batches
before it, and seeking to any step reads nothing of what it skips.

The end of an epoch falls where its last block is used, in the middle of a batch if need be; the
tokens after the last whole block (fewer than a block) are not used.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Bool, Int, UInt64

from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.store import TokenStore


class Loader:
    """Training batches int32 [batch, length], laid out as `sharding`.

    Raises:
      UserError: the store has fewer tokens than one block.
    """

    def __init__(
        self, store: TokenStore, *, batch: int, length: int, seed: int, sharding: NamedSharding
    ):
        self.blocks = store.tokens // length
        if not self.blocks:
            raise UserError(
                f"config.data.store={store.path} has {store.tokens} training tokens, less than one "
                f"block of config.model.context={length}; build it from a larger corpus"
            )
        self.store, self.seed, self.sharding = store, seed, sharding
        self.shape = (batch, length)

    def starts(self, step: int) -> Int[np.ndarray, "batch"]:
        """The first token of each row of batch `step`."""
        batch, length = self.shape
        return blocks_of(step, batch=batch, blocks=self.blocks, seed=self.seed)[1] * length

    def batch(self, step: int) -> jax.Array:
        """Batch `step`; each host reads the rows that its devices hold, and no others."""
        starts, rows = self.starts(step), {}

        def read(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # it is for arrays without a sharding
            key = index[0].indices(len(starts))
            if key not in rows:  # devices along `model` hold the same rows
                rows[key] = self.store.read(starts[index[0]], self.shape[1])
            return rows[key]

        return jax.make_array_from_callback(self.shape, self.sharding, read)

    def batches(self, first: int, last: int) -> Iterator[jax.Array]:
        """Batches first, ..., last - 1; the next one is read while the present one is used."""
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as reader:
            ahead = reader.submit(self.batch, first)
            for step in range(first, last):
                present = ahead.result()
                if step + 1 < last:
                    ahead = reader.submit(self.batch, step + 1)
                yield present


def blocks_of(
    step: int, *, batch: int, blocks: int, seed: int
) -> tuple[Int[np.ndarray, "batch"], Int[np.ndarray, "batch"]]:
    """The epoch of each row of batch `step`, and the block of [0, blocks) that it is."""
    epochs, index = np.divmod(step * batch + np.arange(batch), blocks)
    block = np.empty_like(index)
    for epoch in np.unique(epochs):
        now = epochs == epoch
        block[now] = shuffled(index[now], blocks, seed=seed, epoch=int(epoch))
    return epochs, block


def held_out(
    store: TokenStore, *, batch: int, length: int
) -> Iterator[tuple[Int[np.ndarray, "batch length"], Bool[np.ndarray, "batch length-1"]]]:
    """Windows over a whole split, and which of their labels are real.

    Neighbouring windows share one token, so every token of the split but the first is a label
    exactly once. Rows beyond the end, and tokens beyond it, are filled with eos and not real.
    """
    starts = np.arange(0, max(store.tokens - 1, 0), length - 1)
    for first in range(0, len(starts), batch):
        tokens = np.full((batch, length), store.eos_id, np.int32)
        real = np.zeros((batch, length - 1), bool)
        now = starts[first : first + batch]
        whole = now[now + length <= store.tokens]
        tokens[: len(whole)] = store.read(whole, length)
        real[: len(whole)] = True
        if len(whole) < len(now):
            left = store.tokens - int(now[-1])
            tokens[len(whole), :left] = store.read(now[-1:], left)[0]
            real[len(whole), : left - 1] = True
        yield tokens, real


def shuffled(
    index: Int[np.ndarray, "n"], size: int, *, seed: int, epoch: int
) -> Int[np.ndarray, "n"]:
    """Where `index` of [0, size) goes in a permutation keyed by (seed, epoch).

    A Feistel network of 8 rounds permutes the next power of four; what lands beyond `size` is put
    through again until it lands inside (cycle walking: Black and Rogaway, CT-RSA 2002). It needs
    no table of 30 million entries, and no library can change the order in a later version.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    key = _mix(_mix(np.array([seed % 2**64], np.uint64)) + np.uint64(epoch))
    round_keys = _mix(key + np.arange(8, dtype=np.uint64))
    x, outside = index.astype(np.uint64), np.ones(index.shape, bool)
    while outside.any():
        left, right = x[outside] >> np.uint64(half), x[outside] & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right + round_key) & mask)
        x[outside] = left << np.uint64(half) | right
        outside = x >= size
    return x.astype(np.int64)


def _mix(x: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """SplitMix64's output function (Steele, Lea and Flood, OOPSLA 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
