"""Log-likelihoods of continuations: what the forward pass says of them, whatever they are asked
with and on whatever mesh; truncation and windows as lm_eval has them."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biomedlm_jax import likelihood, step
from biomedlm_jax.entry import UserError
from biomedlm_jax.likelihood import LogLikelihood, Pair, windows
from tests.conftest import TINY, changed, on, put, started

EXPERIMENT = changed(TINY, model__dropout=0.0, model__init_std=0.2)
CONTEXT, VOCAB = EXPERIMENT.model.context, EXPERIMENT.model.vocab


def asker(*shape, **changes) -> LogLikelihood:
    experiment, devices = on(changed(EXPERIMENT, **changes), *shape)
    return LogLikelihood(experiment.model, started(experiment, devices).params, devices)


@functools.cache
def one_device() -> LogLikelihood:
    return asker(1, 1, 1)


@pytest.fixture(scope="module")
def alone() -> LogLikelihood:
    return one_device()


@pytest.fixture(scope="module")
def table():
    """table(tokens) gives float64 log p [T, V] after each token of a row, by `step.forward`."""
    experiment, devices = on(EXPERIMENT, 1, 1, 1)
    params = started(experiment, devices).params
    forward = step.forward(experiment, devices)

    def of(tokens) -> np.ndarray:
        row = np.zeros((1, CONTEXT), np.int32)
        row[0, : len(tokens)] = tokens
        logits = np.asarray(forward(params, put(row, devices)), np.float64)[0, : len(tokens)]
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    return of


def drawn(seed: int, lengths) -> list[Pair]:
    draw = np.random.default_rng(seed)
    return [
        Pair(draw.integers(0, VOCAB, a).tolist(), draw.integers(0, VOCAB, b).tolist())
        for a, b in lengths
    ]


def expected(pair: Pair, table) -> tuple[float, list[bool]]:
    whole = [*pair.context, *pair.continuation][-CONTEXT - 1 :]
    after = table(whole[:-1])[-len(pair.continuation) :]
    said = after[np.arange(len(after)), pair.continuation]
    return said.sum(), (after.argmax(1) == pair.continuation).tolist()


# Of one token and more, as long as the context, cut from the left, a continuation that fills it.
LENGTHS = [(1, 1), (3, 2), (5, 9), (20, 12), (31, 2), (40, 3), (100, 1), (7, 32), (12, 20), (1, 31)]


def agrees(found, pairs, table):
    for one, pair in zip(found, pairs, strict=True):
        nats, greedy = expected(pair, table)
        assert one.nats == pytest.approx(nats, abs=2e-4)
        assert one.greedy.tolist() == greedy
        assert one.tokens == len(pair.continuation)


def test_it_is_what_the_forward_pass_says(alone, table):
    pairs = drawn(0, LENGTHS)
    counted: list[int] = []
    agrees(alone(pairs, counted.append), pairs, table)
    assert sum(counted) == len(pairs)
    assert len(counted) == 2  # batches, of eight rows and of two
    assert alone([]) == []


def test_the_likeliest_tokens_are_greedy(alone, table):
    context = [5, 17, 200]
    first = int(table(context)[-1].argmax())
    second = int(table([*context, first])[-1].argmax())
    other = (second + 1) % VOCAB
    found = alone([Pair(context, [first, second]), Pair(context, [first, other])])
    assert [one.greedy.tolist() for one in found] == [[True, True], [True, False]]


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 1, 2, 2)])
def test_any_mesh_says_the_same(shape, alone):
    pairs = drawn(1, LENGTHS * 3)
    theirs = asker(*shape)(pairs)
    for one, other in zip(alone(pairs), theirs, strict=True):
        assert other.nats == pytest.approx(one.nats, abs=2e-4)
        assert other.greedy.tolist() == one.greedy.tolist()


def test_what_is_asked_with_it_changes_nothing(alone):
    pairs = drawn(2, LENGTHS)
    together = alone(pairs)
    for pair, one in zip(pairs, together, strict=True):
        (apart,) = alone([pair])
        assert apart.nats == pytest.approx(one.nats, abs=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 2, 2)])
def test_what_follows_one_context_is_one_row(shape, table):
    """Letters, texts of several lengths, one twice, one that begins as another; but not where the
    context has to lose its beginning."""
    first, second = [1, 2, 3], list(range(20))
    texts = [[40], [41], [42, 43], [42, 44], [42, 43, 44, 45], [50] * 17, [42, 43]]
    pairs = [Pair(first, text) for text in texts] + [Pair(second, text) for text in texts]
    pairs += [Pair(first, [9] * 30), Pair([1, 2], [3, 44]), Pair(second, [9])]
    asked = asker(*shape)
    rows = asked._folded(pairs)
    # What is cut, the 30 nines and what is before 44 are rows of their own; the fifties are too
    # many for the row of the first texts, and [42, 43] after them is alone.
    stems = sorted(len(row.stem) for row in rows)
    assert stems == [3, 3, 4, 19, 20, 32, CONTEXT]
    assert {len(row.stem): row.branched for row in rows if row.branches} == {3: 4, 20: 4}
    agrees(asked(pairs), pairs, table)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_branches_do_not_see_each_other(data):
    """Whatever contexts and continuations come together, each is what it is alone."""
    tokens = st.integers(0, VOCAB - 1)
    contexts = data.draw(
        st.lists(st.lists(tokens, min_size=1, max_size=20), min_size=1, max_size=3)
    )
    pairs = [
        Pair(context, continuation)
        for context in contexts
        for continuation in data.draw(
            st.lists(st.lists(tokens, min_size=1, max_size=13), min_size=1, max_size=4)
        )
    ]
    asked = one_device()
    for pair, one in zip(pairs, asked(pairs), strict=True):
        (apart,) = asked([pair])
        assert apart.nats == pytest.approx(one.nats, abs=2e-4)
        assert apart.greedy.tolist() == one.greedy.tolist()


def test_branches_of_a_row_are_not_more_than_its_context(alone, table):
    """Texts behind one token, as those that are asked whole, stay rows of their own."""
    texts = drawn(9, [(1, 20)] * 30)
    pairs = [Pair([7], text.continuation) for text in texts]
    pairs += [Pair(list(range(20)), text.continuation[:6]) for text in texts]
    rows = alone._folded(pairs)
    assert len(rows) == 30 + 8  # of four continuations, five tokens each in a branch
    assert {row.branched for row in rows} == {0, 20, 10}
    agrees(alone(pairs), pairs, table)


def test_logits_in_parts_are_the_same(alone, monkeypatch):
    pairs = drawn(3, LENGTHS)
    whole = alone(pairs)
    monkeypatch.setattr(likelihood, "LOGITS", 1 << 13)
    for one, other in zip(asker(1, 2, 2)(pairs), whole, strict=True):
        assert one.nats == pytest.approx(other.nats, abs=2e-4)
        assert one.greedy.tolist() == other.greedy.tolist()


def test_products_in_bfloat16(alone):
    pairs = drawn(4, LENGTHS)
    found = asker(1, 1, 1, model__compute_dtype="bfloat16", model__remat="named")(pairs)
    for one, exact in zip(found, alone(pairs), strict=True):
        assert one.nats == pytest.approx(exact.nats, rel=0.03, abs=0.1)


def test_all_probabilities_are_one(alone):
    """Over the tokens that exist: rows of the table from 300 on are padding."""
    found = alone([Pair([3, 4], [token]) for token in range(VOCAB)])
    assert sum(np.exp(one.nats) for one in found) == pytest.approx(1, abs=1e-5)
    assert sum(one.greedy.all() for one in found) == 1


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (Pair([], [1]), "pair 1 has no context; begin with the end of text"),
        (Pair([1], []), "pair 1 has no continuation"),
        (Pair([1], [1] * 33), "continuation of 33 tokens, and config.model.context is 32"),
        (Pair([1], [300]), "an id that is not in the vocabulary of 300"),
        (Pair([-1], [0]), "an id that is not in the vocabulary of 300"),
    ],
)
def test_what_can_not_be_asked_is_refused(alone, pair, said):
    with pytest.raises(UserError, match=said):
        alone([Pair([1], [2]), pair])


@given(st.integers(0, 50), st.integers(1, 12))
def test_windows_have_every_token_once(length, context):
    text = list(range(100, 100 + length))
    found = list(windows(text, 7, context))
    assert [token for pair in found for token in pair.continuation] == text
    for pair in found:
        assert 1 <= len(pair.context) + len(pair.continuation) - 1 <= context
    if length > context:
        assert len(found[-1].context) + len(found[-1].continuation) == context + 1


@given(st.integers(0, 50), st.integers(1, 12))
def test_windows_are_those_of_lm_eval(length, context):
    utils = pytest.importorskip("lm_eval.utils", reason="lm_eval is a test's need")
    text = list(range(100, 100 + length))
    theirs = utils.get_rolling_token_windows(text, 7, context, 1)
    pairs = [utils.make_disjoint_window(window) for window in theirs]
    assert [(list(a), list(b)) for a, b in windows(text, 7, context)] == pairs


def test_a_long_text_is_the_sum_of_its_windows(alone, table):
    draw = np.random.default_rng(5)
    texts = [draw.integers(0, VOCAB, length).tolist() for length in (0, 1, 32, 33, 90)]
    found = alone.rolling(texts, prefix=1)
    assert found[0] == 0
    for nats, text in zip(found, texts, strict=True):
        wanted = sum(expected(pair, table)[0] for pair in windows(text, 1, CONTEXT))
        assert nats == pytest.approx(wanted, abs=1e-3)


def test_devices_are_asked_for_few_widths(alone):
    """Rows of any lengths make as many programs as there are widths of 32 and counts."""
    few = asker(1, 1, 1, model__context=96, model__layers=1)
    pairs = drawn(6, [(length, 1 + length % 7) for length in range(1, 60)])
    few(pairs)
    assert few._ask._cache_size() <= 3
    few([Pair(pair.context, pair.continuation[:n]) for pair in pairs for n in (1, 2, 3)])
    assert few._ask._cache_size() <= 6  # with branches: none, 16
    assert jax.tree.leaves(few._params)[0].dtype == np.float32
