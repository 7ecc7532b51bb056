"""The dropout mask of attention weights, tested as a random generator."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biomedlm_jax.kernels.attention import keep

LENGTH, ROWS, HEADS = 1024, 2, 12


@pytest.fixture(scope="module", params=[0.1, 0.5])
def drawn(request) -> tuple[float, np.ndarray]:
    """(rate, which weights are dropped [B * N, T, T], centred and scaled to variance 1)."""
    rate = request.param

    @jax.jit
    def masks():
        seeds = keep.head_seeds(jnp.uint32(17), ROWS, HEADS).reshape(-1)
        own_query, own_key = keep.own(seeds)
        base_query, base_key = keep.bases(LENGTH)
        a = keep.side(base_query, own_query[:, None], own_key[:, None])
        b = keep.side(base_key, own_key[:, None], own_query[:, None])
        return ~keep.kept(a[:, :, None], b[:, None, :], rate)

    return rate, (np.asarray(masks()) - rate) / np.sqrt(rate * (1 - rate))


def z_of_mean(x: np.ndarray) -> np.ndarray:
    """How many standard errors the mean of independent numbers of variance 1 is from 0."""
    return x.sum() / np.sqrt(x.size)


def test_the_rate_is_the_rate_in_all_and_in_every_row_and_column(drawn):
    _, dropped = drawn
    assert abs(z_of_mean(dropped)) < 4
    for axis in (1, 2):
        sums = dropped.sum(axis) / np.sqrt(LENGTH)  # each about normal, mean 0, variance 1
        assert np.abs(sums).max() < 6
        assert abs(np.square(sums).mean() - 1) < 5 * np.sqrt(2 / sums.size)


@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (0, 128), (128, 0)])
def test_neighbours_are_dropped_independently(drawn, shift):
    _, dropped = drawn
    moved = np.roll(dropped, shift, axis=(1, 2))
    assert abs(z_of_mean(dropped * moved)) < 4.5


def test_heads_and_rows_of_the_batch_are_independent(drawn):
    _, dropped = drawn
    for one, other in itertools.combinations(range(len(dropped)), 2):
        assert abs(z_of_mean(dropped[one] * dropped[other])) < 5
        assert abs(z_of_mean(dropped[one] * dropped[other].T)) < 5


def test_the_corners_of_a_rectangle_are_independent(drawn):
    """Of two queries the weights of all keys are correlated as of random masks, on average: the sum
    over pairs of keys of the product of four corners is then 0."""
    _, dropped = drawn
    excess = []
    for one in dropped:
        inner = one @ one.T / np.sqrt(LENGTH)
        pairs = inner[np.triu_indices(LENGTH, 1)]  # each of mean 0 and variance 1
        excess.append(np.square(pairs).mean() - 1)
    error = np.std(excess) / np.sqrt(len(excess))
    assert abs(np.mean(excess)) < 4 * error + 1e-4
    assert np.abs(excess).max() < 0.02


def test_another_seed_row_or_head_is_another_mask():
    seeds = {
        int(seed)
        for start in (0, 1, 2, 2**31)
        for seed in keep.head_seeds(jnp.uint32(start), 16, 20).reshape(-1)
    }
    assert len(seeds) == 4 * 16 * 20


def test_a_part_has_the_seeds_of_the_whole():
    whole = keep.head_seeds(jnp.uint32(3), 8, 20)
    part = keep.head_seeds(jnp.uint32(3), 2, 5, first_row=4, first_head=10)
    np.testing.assert_array_equal(part, whole[4:6, 10:15])
