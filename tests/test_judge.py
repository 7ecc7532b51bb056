"""What is said of a step whose numbers are not finite, or whose loss jumps."""

import math

import numpy as np
import pytest

from biomedlm_jax.entry import UserError
from biomedlm_jax.judge import WINDOW, Judge
from tests.conftest import TINY, changed


class Run:
    """A judge with the steps that it has seen, and what it wrote."""

    def __init__(self, **settings):
        run = changed(TINY, **{f"run__{name}": value for name, value in settings.items()}).run
        self.events = []
        self.judge = Judge(run, lambda batch: [f"PMID:{batch}"] * 7, self.event, print)

    def event(self, kind, step, **values):
        self.events.append((kind, step, values))

    def look(self, step, loss, norm=1.0, skipped=0, saved=None, **more):
        self.judge.look(step, dict(loss=loss, grad_norm=norm, skipped=skipped, **more), saved)


def test_updates_are_left_out_until_there_are_too_many_in_a_row(capsys):
    run = Run(max_skipped=2)
    run.look(1, 5.0)
    run.look(2, math.nan, skipped=1)
    assert "step 2: loss is nan; the update was left out. Its batch has PMID:1, " in (
        capsys.readouterr().out
    )
    run.look(3, 5.0, norm=math.inf, skipped=2)
    with pytest.raises(UserError) as error:
        run.look(4, math.nan, norm=math.nan, skipped=3, saved=1)
    message = str(error.value)
    assert "loss is nan and grad_norm is nan at step 4; that is 3 updates in a row" in message
    assert "config.run.max_skipped=2 allows no more. The last save is of step 1." in message
    assert "Its batch has PMID:3, PMID:3, PMID:3, PMID:3, PMID:3 and 2 more documents" in message
    assert "biomedlm_jax.pipeline.inspect --step=3" in message
    assert [(kind, step) for kind, step, _ in run.events] == [("skipped", n) for n in (2, 3, 4)]
    assert run.events[1][2] == {
        "loss": 5.0,
        "grad_norm": "inf",
        "documents": ["PMID:2"] * 7,
    }


def test_parameters_that_are_lost_end_the_run():
    with pytest.raises(UserError, match=r"param_norm is inf at step 3; .* There is no save"):
        Run(max_skipped=9).look(3, 5.0, param_norm=math.inf)


def test_a_spike_is_named_with_its_documents(capsys):
    run, draw = Run(spike_sigmas=6.0), np.random.default_rng(0)
    losses = 3 + 0.1 * draw.standard_normal(4 * WINDOW)
    losses[2 * WINDOW] = 4.0  # ten deviations
    losses[3 * WINDOW] = 3.4  # four
    for step, loss in enumerate(losses, 1):
        run.look(step, float(loss))
    ((kind, step, values),) = run.events
    assert (kind, step, values["loss"]) == ("spike", 2 * WINDOW + 1, 4.0)
    assert values["documents"] == [f"PMID:{2 * WINDOW}"] * 7
    assert values["mean"] == pytest.approx(3, abs=0.05)
    assert values["sigma"] == pytest.approx(0.1, rel=0.3)
    assert "standard deviations above the" in capsys.readouterr().out


def test_spikes_can_be_left_unreported():
    run = Run(spike_sigmas=0.0)
    for step in range(1, 3 * WINDOW):
        run.look(step, 3.0 if step < 2 * WINDOW else 30.0)
    assert not run.events
