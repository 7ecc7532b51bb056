"""Batches of tokens on the mesh, from a token store.

The training split is one long stream, document after document, with the token that ends a document
between them (`config.data.separators`) or without. It is cut into blocks of exactly
`config.model.context` tokens, and the blocks are shuffled anew in every epoch. Which blocks make
batch k is a pure function of (seed, k): nothing depends on the number of hosts, on restarts, or on
the batches before it, and seeking to any step reads nothing of what it skips.

The end of an epoch falls where its last block is used, in the middle of a batch if need be; the
tokens after the last whole block (fewer than a block) are not used.
"""

import itertools
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Int, UInt64

from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.store import TokenStore

T = TypeVar("T")


class Batch(NamedTuple):
    """int32 [batch, length] each. segments: which document of its row a token is of, rising from 0;
    None without `config.data.segment_ids`, where all of a row is one."""

    tokens: jax.Array
    segments: jax.Array | None


class Loader:
    """Training batches, laid out as `sharding`.

    separators: the token that ends a document is in the stream.
    segment_ids: batches have segments.

    Attributes:
      blocks: in an epoch.

    Raises:
      UserError: the store has fewer tokens than one block.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        batch: int,
        length: int,
        separators: bool,
        segment_ids: bool,
        seed: int,
        sharding: NamedSharding,
    ):
        self.blocks = blocks_in(store, length, separators)
        self.store, self.seed, self.sharding = store, seed, sharding
        self.separators, self.segment_ids = separators, segment_ids
        self.shape = (batch, length)

    def starts(self, step: int) -> Int[np.ndarray, "batch"]:
        """Where in the stream each row of batch `step` begins."""
        batch, length = self.shape
        return blocks_of(step, batch=batch, blocks=self.blocks, seed=self.seed)[1] * length

    def documents(self, step: int) -> list[str]:
        """The ids of the documents in batch `step`, each once, in the order of the rows."""
        starts = self.starts(step).tolist()
        found = (self.store.ids(start, self.shape[1], self.separators) for start in starts)
        return list(dict.fromkeys(itertools.chain.from_iterable(found)))

    def batch(self, step: int) -> Batch:
        """Batch `step`; each host reads the rows that its devices hold, once and all together, and
        no others."""
        places = self.sharding.addressable_devices_indices_map(self.shape).values()
        held = np.unique(np.concatenate([self._rows(place) for place in places]))
        tokens, segments = windows(
            self.store,
            self.starts(step)[held],
            self.shape[1],
            separators=self.separators,
            segment_ids=self.segment_ids,
        )

        def whole(part: Int[np.ndarray, "n length"]) -> jax.Array:
            return jax.make_array_from_callback(
                self.shape,
                self.sharding,
                lambda place: part[np.searchsorted(held, self._rows(place))],
            )

        return Batch(whole(tokens), None if segments is None else whole(segments))

    def _rows(self, place: tuple[slice, ...] | None) -> Int[np.ndarray, "n"]:
        """The rows of the batch at a device's place in it."""
        assert place is not None  # it is for arrays without a sharding
        return np.arange(*place[0].indices(self.shape[0]))

    def batches(self, first: int, last: int) -> Generator[Batch, None, None]:
        """Batches first, ..., last - 1; the next one is read while the present one is used. An
        error in reading is raised where its batch is due; closing the iterator ends its thread."""
        with closing(self.coming(first, last)) as coming:
            for batch in coming:
                yield batch.result()

    def coming(self, first: int, last: int) -> Generator[Future[Batch], None, None]:
        """The same, each perhaps still being read."""
        return ahead(self.batch, first, last)


def ahead(batch: Callable[[int], T], first: int, last: int) -> Generator[Future[T], None, None]:
    """batch(first), ..., batch(last - 1), each begun while the one before it is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="loader") as reader:
        coming = None
        for step in range(first, last):
            present = coming or reader.submit(batch, step)
            coming = reader.submit(batch, step + 1) if step + 1 < last else None
            yield present


def blocks_in(store: TokenStore, length: int, separators: bool) -> int:
    """How many blocks of `length` tokens a split has.

    Raises:
      UserError: not one.
    """
    tokens = store.length(separators)
    if tokens < length:
        raise UserError(
            f"config.data.store={store.path} has {tokens} training tokens, less than one block of "
            f"config.model.context={length}; build it from a larger corpus"
        )
    return tokens // length


def windows(
    store: TokenStore,
    starts: Int[np.ndarray, "n"],
    length: int,
    *,
    separators: bool,
    segment_ids: bool,
) -> tuple[Int[np.ndarray, "n length"], Int[np.ndarray, "n length"] | None]:
    """Tokens of the stream, and their segments if they are asked for."""
    if separators and not segment_ids:
        return store.read(starts, length), None  # nobody has to know where documents lie
    tokens, segments = store.windows(starts, length, separators)
    return tokens, segments if segment_ids else None


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


class HeldOut(NamedTuple):
    """Windows over a split, and what each of their labels is counted with: `TokenStore.groups` of
    the document that it is of, -1 where it is none."""

    tokens: Int[np.ndarray, "batch length"]
    segments: Int[np.ndarray, "batch length"] | None
    group: Int[np.ndarray, "batch length-1"]


def held_out(
    store: TokenStore, *, batch: int, length: int, separators: bool, segment_ids: bool
) -> Iterator[HeldOut]:
    """A whole split in the form of training's batches.

    Neighbouring windows share one token, so every token of the stream but the first is a label
    exactly once; with `segment_ids` every token but the first of its document. Rows beyond the end,
    and tokens beyond it, are filled with eos in a segment of their own and no labels.
    """
    stream = store.length(separators)
    starts = np.arange(0, max(stream - 1, 0), length - 1)
    documents, groups = store.documents[:, 0], store.groups[1].astype(np.int32)
    if not separators:  # every document before has one token that does not count
        documents = documents - np.arange(store.rows)
    for first in range(0, len(starts), batch):
        tokens = np.full((batch, length), store.eos_id, np.int32)
        segments = np.zeros((batch, length), np.int32)
        group = np.full((batch, length - 1), -1, np.int32)
        now = starts[first : first + batch]
        labels = now[:, None] + np.arange(1, length)
        of = groups[np.searchsorted(documents, labels, side="right") - 1]
        group[: len(now)] = np.where(labels < stream, of, -1)
        count = int((now + length <= stream).sum())
        parts = [(slice(count), length)]
        if count < len(now):
            parts.append((slice(count, len(now)), stream - int(now[-1])))
        for rows, width in parts:
            found, segment = windows(
                store, now[rows], width, separators=separators, segment_ids=segment_ids
            )
            tokens[rows, :width] = found
            if segment is not None:
                segments[rows, :width] = segment
                segments[rows, width:] = segment[:, -1:] + 1
        if segment_ids:
            group[segments[:, 1:] != segments[:, :-1]] = -1
        yield HeldOut(tokens, segments if segment_ids else None, group)


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
