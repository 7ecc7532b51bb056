"""Dropout bits: fair, independent as far as a model can tell, and the same on every mesh."""

import jax.numpy as jnp
import numpy as np
import pytest

from biomedlm_jax.kernels.dropout import dropout, fold, kept, step_seed

ROWS, COLUMNS, RATE = 2048, 1024, 0.1
SIGMA = np.sqrt(RATE * (1 - RATE))


def dropped(seed: int) -> np.ndarray:
    """[ROWS, COLUMNS], mean 0 and variance 1 where the bits are fair."""
    rows = fold(jnp.uint32(seed), jnp.arange(ROWS))
    return (RATE - np.asarray(~kept(rows, COLUMNS, RATE))) / SIGMA


@pytest.mark.parametrize("seed", [0, 1, 17, 2**32 - 1])
def test_the_share_that_is_dropped_is_the_rate(seed):
    z = dropped(seed)
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    # Sums of rows and of columns vary as those of independent draws: chi-square per degree of
    # freedom is 1, with a standard deviation of sqrt(2 / n).
    assert abs((z.sum(1) ** 2 / COLUMNS).mean() - 1) < 4 * np.sqrt(2 / ROWS)
    assert abs((z.sum(0) ** 2 / ROWS).mean() - 1) < 4 * np.sqrt(2 / COLUMNS)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("neighbour row", lambda z, _: (z[1:], z[:-1])),
        ("neighbour column", lambda z, _: (z[:, 1:], z[:, :-1])),
        ("diagonal", lambda z, _: (z[1:, 1:], z[:-1, :-1])),
        ("next seed", lambda z, y: (z, y)),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_neighbours_are_uncorrelated(one, other):
    a, b = other(dropped(5), dropped(6))
    assert abs((a * b).mean()) < 4 / np.sqrt(a.size), one


def test_steps_and_layers_draw_different_masks():
    seeds = [int(fold(step_seed(17, step), layer)) for step in range(200) for layer in range(50)]
    assert len(set(seeds)) == len(seeds)


def test_a_part_of_the_batch_is_dropped_as_in_the_whole():
    x = jnp.ones((8, 5, 16))
    whole = dropout(x, rate=0.3, seed=jnp.uint32(3), first_row=0)
    part = dropout(x[4:], rate=0.3, seed=jnp.uint32(3), first_row=4)
    assert (part == whole[4:]).all()
    assert set(np.unique(whole)) == {np.float32(0), np.float32(1 / np.float32(0.7))}


def test_no_seed_means_no_dropout():
    x = jnp.ones((2, 3, 4))
    assert dropout(x, rate=0.5, seed=None, first_row=0) is x
