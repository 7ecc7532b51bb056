"""What is done about what is seen: the state machine by itself, and what answers of Google mean."""

import dataclasses
import itertools
import re

import pytest

from launch import lifecycle, refusals
from tests.test_launch_watch import FULL, QUOTA

POLICY = lifecycle.Policy(
    restarts=2, backoff=10, longest=60, least=0, queue=3600, seed="run", hosts=2
)
RUNNING = lifecycle.Run("running", 1, since=0.0)
ILL = lifecycle.Run("running", 2, since=0.0, heard=5, quiet=1e3, ill=1e3)
QUIET = lifecycle.Run("running", 2, since=0.0, heard=5, quiet=1e3)


def test_pauses_double_up_to_a_limit_and_are_the_same_for_the_same_seed():
    pauses = [POLICY.pause(1, failures) for failures in range(6)]
    assert pauses == [POLICY.pause(1, failures) for failures in range(6)]
    assert all(a <= b for a, b in itertools.pairwise(pauses))
    assert pauses[-1] <= 60
    assert POLICY.pause(2, 1) != POLICY.pause(1, 1)


@pytest.mark.parametrize(
    ("run", "seen", "now", "action", "why"),
    [
        (RUNNING, lifecycle.Seen("ACTIVE", heard=1), 1e6, "wait", ""),
        (RUNNING, lifecycle.Seen("ACTIVE", heard=None), 1e6, "wait", ""),
        (RUNNING, lifecycle.Seen("ACTIVE"), 1e3, "wait", ""),
        (RUNNING, lifecycle.Seen("ACTIVE"), 2e3, "delete", "has written a word for 30 minutes"),
        (QUIET, lifecycle.Seen("ACTIVE", heard=5), 2e3, "wait", ""),
        (QUIET, lifecycle.Seen("ACTIVE", heard=5), 3e3, "delete", "has written a word"),
        (QUIET, lifecycle.Seen("ACTIVE", heard=6, others={1: "ACTIVE"}), 3e3, "clear", ""),
        (ILL, lifecycle.Seen("ACTIVE", heard=5, ill="node x is ill"), 2e3, "delete", "node x"),
        (ILL, lifecycle.Seen("ACTIVE", heard=6, ill="node x is ill"), 2e3, "wait", ""),
        (RUNNING, lifecycle.Seen("ACTIVE", ends={"0-0": 76}), 1.0, "wait", ""),
        (RUNNING, lifecycle.Seen("ACTIVE", ends={"0-0": 0}), 1e3, "wait", ""),
        (
            lifecycle.Run("running", 1, since=0.0, ended=1.0),
            lifecycle.Seen("ACTIVE", ends={"0-0": 76}),
            62.0,
            "delete",
            r"missed another host \(code 76\)",
        ),
        (
            lifecycle.Run("running", 1, since=0.0, ended=1.0),
            lifecycle.Seen("ACTIVE", ends={"0-0": 0}),
            1e3,
            "delete",
            "come to its end",
        ),
        (
            RUNNING,
            lifecycle.Seen("SUSPENDED", ends={"0-0": 0, "0-1": 0}),
            1.0,
            "delete",
            "come to its end",
        ),
        (
            lifecycle.Run("requested", 1, since=0.0),
            lifecycle.Seen("WAITING_FOR_RESOURCES"),
            5e3,
            "delete",
            "no slice came within 1 hours",
        ),
        (
            lifecycle.Run("leaving", 1, since=0.0),
            lifecycle.Seen("ACTIVE"),
            200.0,
            "delete",
            "",
        ),
        (lifecycle.Run("leaving", 1, since=0.0), lifecycle.Seen("DELETING"), 9e9, "wait", ""),
    ],
)
def test_what_is_done_about_what_is_seen(run, seen, now, action, why):
    after, found = lifecycle.step(POLICY, run, seen, now)
    assert found == action
    assert not why or re.search(why, after.why)


def test_one_look_that_finds_nothing_is_not_believed():
    """The API may forget for a moment: of a run that works, and of a request that is to go."""
    for phase, after_two in [("running", "leaving"), ("leaving", "over")]:
        run = dataclasses.replace(RUNNING, phase=phase, known=True, outcome="done")
        for then, now_phase in [("", phase), ("ACTIVE", phase), ("", phase), ("", after_two)]:
            run, _ = lifecycle.step(POLICY, run, lifecycle.Seen(then, heard=1), now=1.0)
            assert run.phase == now_phase


@pytest.mark.parametrize(
    ("saved", "before", "mistaken", "final"),
    [
        (0, 0, False, True),  # it never worked with these settings
        (20, 10, True, False),  # it worked until now
        (10, 10, False, False),  # it has worked with them
        (10, 10, True, True),  # twice in a row
    ],
)
def test_an_error_of_the_users_is_tried_again_where_the_run_has_worked(
    saved, before, mistaken, final
):
    run = dataclasses.replace(RUNNING, saved=before, failures=1, mistaken=mistaken)
    seen = lifecycle.Seen("ACTIVE", ends={"0-0": 2, "0-1": 76}, saved=saved)
    after, action = lifecycle.step(POLICY, run, seen, now=1.0)
    assert action == "delete"
    assert bool(after.outcome) == final
    assert final or after.mistaken
    assert lifecycle.created(after, saved, now=2.0).mistaken == after.mistaken


def test_chips_that_are_taken_back_are_no_stock_out():
    """However long the run has had them."""
    seen = lifecycle.Seen("FAILED", error=(8, FULL), saved=7)
    after, action = lifecycle.step(POLICY, RUNNING, seen, now=1e6)
    assert (action, after.outcome, after.refused, after.failures) == ("delete", "", 0, 0)


def test_a_run_that_is_to_stop_and_is_taken_away_is_given_time_to_save():
    run, stop = RUNNING, dict(saved=7, stopping=True)
    for ends, now, then in [({}, 1.0, "wait"), ({"0-0": 75}, 50.0, "wait"), ({}, 90.0, "delete")]:
        run, action = lifecycle.step(
            POLICY, run, lifecycle.Seen("SUSPENDED", ends=ends, **stop), now
        )
        assert action == then
    assert "it was to save and stop, and did not" in run.outcome
    run = dataclasses.replace(RUNNING, ended=1.0)
    seen = lifecycle.Seen("SUSPENDED", ends={"0-0": 75}, **stop)
    assert lifecycle.step(POLICY, run, seen, now=90.0)[0].outcome == "stopped"


@pytest.mark.parametrize(
    ("state", "ends", "outcome"),
    [
        ("ACTIVE", {"0-0": 75, "0-1": 75}, "stopped"),
        ("SUSPENDED", {"0-0": 75, "0-1": 75}, "stopped"),
        ("ACTIVE", {"0-0": 75, "0-1": 0}, "stopped"),
        ("ACTIVE", {"0-0": 0, "0-1": 0}, "done"),
        ("ACTIVE", {"0-0": 1, "0-1": 76}, "did not: host 0-0 failed (code 1), as did 1 more; its"),
        ("SUSPENDED", {"0-0": 76}, "did not: its slices were taken away; its newest checkpoint is"),
        ("ACTIVE", {"0-0": 75, "0-1": 2}, "did not: host 0-1 failed (code 2), as did 1 more; its"),
    ],
)
def test_only_what_has_saved_counts_as_stopped(state, ends, outcome):
    seen = lifecycle.Seen(state, ends=ends, saved=7, stopping=True)
    after, action = lifecycle.step(POLICY, RUNNING, seen, now=1.0)
    assert action == "delete"
    assert outcome in after.outcome


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (8, FULL, "stock-out"),
        (8, QUOTA, "quota"),
        (8, "Insufficient quota for v5e", "quota"),
        (8, "Quota exceeded for quota metric 'Create requests' and limit 'per minute'", "passing"),
        (8, "Insufficient capacity for this accelerator", "stock-out"),
        (8, "RATE_LIMIT_EXCEEDED", "passing"),
        (14, "The zone does not have enough resources", "stock-out"),
        (14, "Getting metadata from plugin failed with error: Reauthentication is needed", "login"),
        (14, "Getting metadata from plugin failed with error: timed out", "passing"),
        (14, "('invalid_grant: Bad Request', {'error': 'invalid_grant'})", "login"),
        (16, "Request had invalid authentication credentials", "login"),
        (9, "it is being made", "not now"),
        (9, "Quota 'TPUS' exceeded", "quota"),
        (3, "no such accelerator", "refused"),
    ],
)
def test_what_an_answer_means(code, message, kind):
    assert refusals.kind(code, message) == kind
    advice = {"quota": "ask for more", "stock-out": "another --zone", "login": "log in: gcloud"}
    assert advice.get(kind, "") in refusals.advice(code, message)
