"""How the next token is chosen, beside a few lines of numpy."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from biomedlm_jax.generation.sampling import Options, _kept, choose

VOCAB, DRAWS = 50, 2000
LOGITS = np.random.default_rng(0).normal(size=VOCAB).astype(np.float32) * 2


@jax.jit
def chosen(logits, seen, options, position):
    return choose(logits, seen, options, position)


def draw(logits=LOGITS, *, rows=DRAWS, seen=(), first_seed=0, position=0, **given) -> np.ndarray:
    """The choices of rows that differ in their seed alone."""
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0} | given
    kinds = {"temperature": "f4", "top_k": "i4", "top_p": "f4", "repetition_penalty": "f4"}
    columns = {name: jnp.full(rows, settings[name], kind) for name, kind in kinds.items()}
    options = Options(**columns, seed=first_seed + jnp.arange(rows, dtype=jnp.uint32))
    had = np.zeros((rows, len(logits)), bool)
    had[:, list(seen)] = True
    many = jnp.broadcast_to(jnp.asarray(logits), (rows, len(logits)))
    return np.asarray(chosen(many, had, options, jnp.full(rows, position)))


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max())
    return weights / weights.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_are_distributed_as_the_softmax(temperature):
    expected = DRAWS * softmax(LOGITS / temperature)
    counts = np.bincount(draw(temperature=temperature), minlength=VOCAB)
    often = expected > 5
    statistic = ((counts - expected)[often] ** 2 / expected[often]).sum()
    assert statistic < often.sum() + 6 * np.sqrt(2 * often.sum())  # six sigmas of chi squared


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (5, 1.0), (0, 0.1), (0, 0.6), (8, 0.9)])
def test_draws_are_from_what_is_kept(top_k, top_p):
    order = np.argsort(-LOGITS)
    kept = order[: top_k or VOCAB]
    sizes = softmax(LOGITS[kept])
    kept = kept[np.cumsum(sizes) - sizes < top_p]
    assert set(draw(top_k=top_k, top_p=top_p)) <= set(kept.tolist())
    assert kept[0] in draw(top_k=top_k, top_p=top_p)


@hypothesis.given(
    st.lists(
        st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False), min_size=1, max_size=30
    ),
    st.integers(1, 40),
)
def test_the_largest_k_are_kept_and_all_that_equal_the_last(values, k):
    x = np.array(values, np.float32) + 0  # there is one zero
    found = np.asarray(_kept(x[None], jnp.ones_like, jnp.float32([k])))[0]
    last = np.sort(x)[::-1][min(k, len(x)) - 1]
    np.testing.assert_array_equal(found, np.where(x >= last, x, -np.inf))


def test_temperature_0_is_greedy_beside_rows_that_draw():
    rows = jnp.broadcast_to(jnp.asarray(LOGITS), (2, VOCAB))
    options = Options(
        jnp.float32([0, 5]), jnp.int32([0, 0]), jnp.float32([1, 1]), jnp.float32([1, 1]),
        jnp.uint32([3, 3]),
    )  # fmt: skip
    found = chosen(rows, jnp.zeros((2, VOCAB), bool), options, jnp.int32([0, 0]))
    assert int(found[0]) == LOGITS.argmax()
    assert (draw(temperature=0.0, rows=3) == LOGITS.argmax()).all()


def test_equal_logits_go_to_the_first():
    assert draw(np.zeros(VOCAB, np.float32), temperature=0.0, rows=1) == 0


def test_the_penalty_is_for_what_was_seen():
    x = np.float32([2.0, 1.5, -1.0, -1.2])
    assert draw(x, rows=1, temperature=0.0, repetition_penalty=1.5, seen=[0]) == 1  # 2 / 1.5
    below = np.float32([-1.0, -1.2])
    assert draw(below, rows=1, temperature=0.0, repetition_penalty=1.5, seen=[0]) == 1  # -1 * 1.5
    assert draw(x, rows=1, temperature=0.0, repetition_penalty=1.5) == 0


def test_a_draw_is_of_its_seed_and_position():
    assert (draw() == draw()).all()
    assert (draw(first_seed=1)[:-1] == draw()[1:]).all()
    assert (draw(position=1) != draw()).any()
