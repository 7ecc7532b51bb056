"""Batches are a pure function of (seed, step), whoever asks and in whatever order."""

import itertools
import shutil

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.loader import Loader, blocks_of, held_out, shuffled
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.step import BATCH_SPEC
from tests.conftest import TINY, on

LENGTH = 32
GOLDEN_ORDER = [8, 10, 0, 11, 4, 9, 5, 2, 1, 3, 6, 7]


def loader(store, *, batch=8, seed=17, mesh=(1, 1, 1), length=LENGTH):
    sharding = NamedSharding(on(TINY, *mesh)[1], BATCH_SPEC)
    split = TokenStore(store, "train")
    return Loader(split, batch=batch, length=length, seed=seed, sharding=sharding)


@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 1000))
def test_shuffled_is_a_permutation(size, seed, epoch):
    order = shuffled(np.arange(size), size, seed=seed, epoch=epoch)
    assert np.array_equal(np.sort(order), np.arange(size))


def test_shuffled_needs_no_neighbours():
    size = 33_800_000  # blocks of the original's corpus
    index = np.array([0, 1, size - 1, 12_345_678])
    together = shuffled(index, size, seed=1, epoch=2)
    alone = [shuffled(index[i : i + 1], size, seed=1, epoch=2)[0] for i in range(len(index))]
    assert together.tolist() == alone


def test_shuffled_is_a_fair_shuffle():
    """Over many epochs each place takes each index equally often, and so do neighbours' gaps."""
    size, epochs = 10, 4000
    orders = [shuffled(np.arange(size), size, seed=3, epoch=e) for e in range(epochs)]
    counts = np.zeros((size, size))
    for order in orders:
        counts[np.arange(size), order] += 1
    expected, freedom = epochs / size, (size - 1) ** 2
    assert abs(((counts - expected) ** 2 / expected).sum() - freedom) < 5 * np.sqrt(2 * freedom)
    gaps = np.bincount([(order[1] - order[0]) % size for order in orders], minlength=size)[1:]
    expected, freedom = epochs / (size - 1), size - 2
    assert abs(((gaps - expected) ** 2 / expected).sum() - freedom) < 5 * np.sqrt(2 * freedom)


def test_the_order_never_changes():
    assert shuffled(np.arange(12), 12, seed=17, epoch=0).tolist() == GOLDEN_ORDER


def test_every_block_once_an_epoch_and_another_order_in_the_next(store):
    batches = loader(store)
    starts = np.concatenate([batches.starts(step) for step in range(batches.blocks)])
    epochs = starts[: batches.blocks * 8].reshape(8, batches.blocks)
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.arange(batches.blocks) * LENGTH)
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], loader(store, seed=18).starts(0)[: batches.blocks])


def test_batches_are_the_store_and_do_not_depend_on_the_mesh(store):
    one, eight = loader(store), loader(store, mesh=(2, 2, 2))
    split = TokenStore(store, "train")
    for step in (0, 3, 1_000_000):
        expected = split.read(one.starts(step), LENGTH)
        assert np.array_equal(one.batch(step), expected)
        assert np.array_equal(eight.batch(step), expected)
        assert eight.batch(step).sharding.spec == BATCH_SPEC


def test_going_on_gives_what_going_through_gave(store):
    through = [np.asarray(batch) for batch in loader(store).batches(0, 9)]
    on_again = [np.asarray(batch) for batch in loader(store).batches(4, 9)]
    assert len(through) == 9
    assert all(np.array_equal(a, b) for a, b in zip(through[4:], on_again, strict=True))


@pytest.mark.parametrize(("batch", "length"), [(1, 2), (3, 7), (8, 32), (2, 5000)])
def test_held_out_windows_label_every_token_once(store, batch, length):
    split = TokenStore(store, "heldout")
    labels = [tokens[:, 1:][real] for tokens, real in held_out(split, batch=batch, length=length)]
    whole = split.read(np.array([0]), split.tokens)[0]
    assert np.array_equal(np.concatenate(labels), whole[1:])


def test_a_corpus_smaller_than_a_block_is_refused(make_store):
    with pytest.raises(UserError, match=r"less than one block of config\.model\.context=65536"):
        loader(make_store(documents=1), length=65536)


def test_a_damaged_store_is_an_error_and_never_a_batch(store, tmp_path):
    copy = shutil.copytree(store, tmp_path / "store")
    batches = loader(copy).batches(0, 2)
    (shard,) = (copy / "train/tokens/c").iterdir()
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="can not be read, copy the store again"):
        next(batches)


@pytest.mark.parametrize("size", [1000, 4096, 34_567])
def test_the_order_is_a_good_shuffle(size):
    """What a uniform permutation shows, tested at one in 10,000; the seeds are fixed, so a result
    never changes by chance."""
    epochs = [shuffled(np.arange(size), size, seed=17, epoch=epoch) for epoch in range(4)]
    for order in epochs:
        # Where the first tenth went, in 20 parts of equal size.
        counts = np.bincount(order[: size // 10] * 20 // size, minlength=20)
        assert scipy.stats.chisquare(counts).pvalue > 1e-4
        # Neighbours: the distance of two uniform numbers is triangular.
        distance = np.abs(np.diff(order))[::2] / size
        triangular = scipy.stats.triang(c=0).cdf
        assert scipy.stats.kstest(distance, triangular).pvalue > 1e-4
        # The order has nothing of the order on disk.
        assert abs(scipy.stats.spearmanr(order, np.arange(size)).statistic) < 4 / size**0.5
    for first, second in itertools.combinations(epochs, 2):
        assert abs(scipy.stats.spearmanr(first, second).statistic) < 4 / size**0.5
        assert (first == second).sum() < 12  # one is expected


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**64 - 1))
def test_each_block_comes_once_an_epoch(blocks, batch, seed):
    steps = -(-3 * blocks // batch)
    parts = [blocks_of(step, batch=batch, blocks=blocks, seed=seed) for step in range(steps)]
    epochs, order = (np.concatenate(part) for part in zip(*parts, strict=True))
    assert (np.diff(epochs) >= 0).all()
    for epoch in range(3):
        assert sorted(order[epochs == epoch]) == list(range(blocks))


def test_each_document_comes_once_an_epoch(store):
    """But for the tokens after the last whole block."""
    split, batches = TokenStore(store, "train"), loader(store)
    firsts = split.documents[:, 0]
    _, order = blocks_of(0, batch=batches.blocks, blocks=batches.blocks, seed=17)
    places = (order[:, None] * LENGTH + np.arange(LENGTH)).ravel()
    found = np.bincount(np.searchsorted(firsts, places, side="right") - 1, minlength=len(firsts))
    ends = np.minimum(np.append(firsts[1:], split.tokens), batches.blocks * LENGTH)
    assert np.array_equal(found, np.maximum(ends - firsts, 0))
