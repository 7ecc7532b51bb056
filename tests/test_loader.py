"""Batches are a pure function of (seed, step), whoever asks and in whatever order."""

import itertools
import shutil
import threading

import numpy as np
import pytest
import scipy.stats
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline import store as store_format
from biomedlm_jax.pipeline.loader import Batch, Loader, blocks_of, held_out, shuffled
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.pipeline.store_writer import StoreWriter
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from biomedlm_jax.step import BATCH_SPEC
from tests.conftest import TINY, on

LENGTH = 32
GOLDEN_ORDER = [8, 10, 0, 11, 4, 9, 5, 2, 1, 3, 6, 7]


FORMS = list(itertools.product([True, False], repeat=2))  # separators, segment_ids


def loader(
    store,
    *,
    batch=8,
    seed=17,
    mesh=(1, 1, 1),
    length=LENGTH,
    separators=True,
    segment_ids=False,
):
    return Loader(
        TokenStore(store, "train"),
        batch=batch,
        length=length,
        separators=separators,
        segment_ids=segment_ids,
        seed=seed,
        sharding=NamedSharding(on(TINY, *mesh)[1], BATCH_SPEC),
    )


def equal(a: Batch, b: Batch) -> bool:
    return all((x is None and y is None) or np.array_equal(x, y) for x, y in zip(a, b, strict=True))


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
        assert np.array_equal(one.batch(step).tokens, expected)
        assert np.array_equal(eight.batch(step).tokens, expected)
        assert eight.batch(step).tokens.sharding.spec == BATCH_SPEC
        assert eight.batch(step).segments is None


@pytest.mark.parametrize(("separators", "segment_ids"), FORMS)
def test_going_on_gives_what_going_through_gave(store, separators, segment_ids):
    form = dict(separators=separators, segment_ids=segment_ids)
    through = list(loader(store, **form).batches(0, 9))
    on_again = list(loader(store, mesh=(2, 2, 2), **form).batches(4, 9))
    assert len(through) == 9
    assert all(equal(a, b) for a, b in zip(through[4:], on_again, strict=True))
    assert not equal(through[0], through[1])
    assert list(loader(store, **form).batches(9, 9)) == []


def year_of(number: int) -> int:
    return 2000 + number * 7 % 5


def write(folder, lengths) -> list[list[int]]:
    """A store of documents with that many tokens before their end; their tokens, no two alike as
    far as there are."""
    numbers = itertools.cycle(range(2, TINY.model.vocab))
    documents = [[next(numbers) for _ in range(length)] for length in lengths]
    model = Vocabulary(folder / "sentencepiece.model")
    rows = (
        (
            split,
            np.array([*document, model.eos_id]),
            f"PMC:{number + 1}",
            "full_text",
            10,
            year_of(number),
        )
        for split in store_format.SPLITS
        for number, document in enumerate(documents)
    )
    place = epath.Path(folder / "store")
    StoreWriter.of(place, place / "work", model).write_all(rows)
    return documents


def packed(documents, separators) -> tuple[list[int], list[int]]:
    """The stream of tokens, slowly, and the document that each is of."""
    tokens, owners = [], []
    for number, document in enumerate(documents):
        for token in [*document, 1] if separators else document:
            tokens.append(token)
            owners.append(number)
    return tokens, owners


def check(folder, documents, separators, segment_ids, length, batch=4):
    """Every batch of an epoch and more, and all of the held-out split, against `packed`."""
    tokens, owners = packed(documents, separators)
    form = dict(separators=separators, segment_ids=segment_ids)
    if len(tokens) < length:
        with pytest.raises(UserError, match=f"has {len(tokens)} training tokens, less than one"):
            loader(folder, batch=batch, length=length, **form)
    else:
        made = loader(folder, batch=batch, length=length, **form)
        assert made.blocks == len(tokens) // length
        for step in range(made.blocks // batch + 2):
            found = made.batch(step)
            _, blocks = blocks_of(step, batch=batch, blocks=made.blocks, seed=17)
            for row, block in enumerate(blocks.tolist()):
                here = slice(block * length, (block + 1) * length)
                assert found.tokens[row].tolist() == tokens[here]
                if segment_ids:
                    first = owners[here][0]
                    assert found.segments[row].tolist() == [n - first for n in owners[here]]
            assert (found.segments is None) == (not segment_ids)
    split = TokenStore(folder, "heldout")
    labels, years = [], []
    for window in held_out(split, batch=batch, length=length, **form):
        assert window.tokens.shape == (batch, length)
        real = window.group >= 0
        labels += window.tokens[:, 1:][real].tolist()
        years += split.groups[0][window.group[real], 1].tolist()
        if segment_ids:
            assert (np.diff(window.segments) >= 0).all()
        else:
            assert window.segments is None
    scored = [t for t in range(1, len(tokens)) if not segment_ids or owners[t] == owners[t - 1]]
    assert labels == [tokens[t] for t in scored]
    assert years == [year_of(owners[t]) for t in scored]


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(0, 3) | st.integers(0, 40), min_size=1, max_size=60),
    length=st.integers(2, 50),
)
def test_batches_are_documents_packed_by_hand(lengths, length, vocabulary, tmp_path_factory):
    """Documents of no token and of one among them, a table in pieces of four, all four forms."""
    folder = tmp_path_factory.mktemp("packed")
    shutil.copy(vocabulary, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_format, "DOCUMENT_PIECE", 4)
        patch.setattr(store_format, "DOCUMENT_SHARD", 16)
        documents = write(folder, lengths)
        for separators, segment_ids in FORMS:
            check(folder / "store", documents, separators, segment_ids, length)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def many(vocabulary, tmp_path_factory):
    """A store of 20,000 documents, whose table has three pieces."""
    folder = tmp_path_factory.mktemp("many")
    shutil.copy(vocabulary, folder)
    lengths = np.random.default_rng(0).integers(0, 12, 20_000)
    assert len(lengths) > 2 * store_format.DOCUMENT_PIECE
    return folder / "store", write(folder, lengths.tolist())


@pytest.mark.parametrize(("separators", "segment_ids"), FORMS)
def test_a_table_of_several_pieces(many, separators, segment_ids):
    check(*many, separators, segment_ids, length=1000)


@pytest.mark.parametrize("separators", [True, False])
def test_training_never_reads_the_whole_table(many, separators, monkeypatch):
    """Nor any of it, where nobody has to know where documents lie."""
    made = loader(many[0], separators=separators, length=64)
    table, read = made.store._table, []

    class Watched:
        def __getitem__(self, place):
            read.append(place[0])
            return table[place]

    monkeypatch.setattr(made.store, "_table", Watched())
    made.batch(123)
    assert "documents" not in vars(made.store)
    assert (len(read) == 0) == separators
    piece = store_format.DOCUMENT_PIECE
    assert all(place.stop - place.start <= piece for place in read)
    assert len({(place.start, place.stop) for place in read}) == len(read)


@pytest.mark.parametrize(("separators", "segment_ids"), FORMS)
@pytest.mark.parametrize(("batch", "length"), [(1, 2), (3, 7), (8, 32), (2, 5000)])
def test_held_out_windows_label_every_token_once(store, batch, length, separators, segment_ids):
    split = TokenStore(store, "heldout")
    form = dict(separators=separators, segment_ids=segment_ids)
    windows = held_out(split, batch=batch, length=length, **form)
    labels = [window.tokens[:, 1:][window.group >= 0] for window in windows]
    whole, documents = split.windows(np.array([0]), split.length(separators), separators)
    scored = np.diff(documents[0]) == 0 if segment_ids else slice(None)
    assert np.array_equal(np.concatenate(labels), whole[0, 1:][scored])


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


def threads() -> int:
    return sum(thread.name.startswith("loader") for thread in threading.enumerate())


def test_the_thread_ends_with_its_reader(store):
    """When all was read, when the reader stops early, and when it was never begun."""
    made = loader(store)
    assert len(list(made.batches(0, 3))) == 3
    assert threads() == 0
    early = made.batches(0, 1000)
    next(early)
    assert threads() == 1
    early.close()
    assert threads() == 0
    made.batches(0, 1000).close()
    assert threads() == 0


def test_an_error_in_the_thread_comes_when_its_batch_is_due(store, monkeypatch):
    made, whole = loader(store), Loader.batch

    def broken(self, step):
        if step == 2:
            raise UserError("a shard is damaged")
        return whole(self, step)

    monkeypatch.setattr(Loader, "batch", broken)
    batches = made.batches(0, 5)
    assert equal(next(batches), whole(made, 0))
    assert equal(next(batches), whole(made, 1))
    with pytest.raises(UserError, match="a shard is damaged"):
        next(batches)
    assert threads() == 0
    assert next(batches, None) is None


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
