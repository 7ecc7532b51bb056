"""What a watcher does about what it sees: a state machine without a clock, a network or a disk.

    waiting --create--> requested --ACTIVE--> running --all hosts ended well--> leaving --> over
       ^                    |                    | preempted, failed, a host ended otherwise
       +------ gone --------+----- leaving <-----+

`step` is given what was seen and says what to do. An attempt is one request for slices. Attempts
that fail in a row without a new checkpoint are counted, and the pauses before the next double.
Nothing is asked for, and nothing is over, while a request of another attempt is there.
"""

import dataclasses
import random
from collections.abc import Mapping
from typing import Literal

from biomedlm_jax.entry import HOST_LOST, PREEMPTED, UNAVAILABLE, USER_ERROR
from launch import refusals

Phase = Literal["waiting", "requested", "running", "leaving", "over"]
Action = Literal["wait", "create", "delete", "clear"]  # clear: delete all others

COMING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "STATE_UNSPECIFIED")
GOING = ("SUSPENDING", "SUSPENDED")
GRACE = 60.0  # seconds, after the first host that ended badly, for others to say why they do
SILENCE = 1800.0  # in which some host of an active slice must write something
SETTLED = 120.0  # after which a request that the API does not know will not appear any more
ILL = 900.0  # seconds for which a node may be unhealthy
AGAIN = 120.0  # seconds, until what is to be deleted and does not go is deleted again
LOOKS = 2  # in a row that find nothing, before what was there counts as gone
LATE = 900.0  # seconds after the end of the queueing policy, when the API has said nothing


@dataclasses.dataclass(frozen=True)
class Policy:
    """restarts: in a row without a new checkpoint. backoff, longest: seconds, of the pause before
    the first and of the longest; least: of any. queue: seconds that a request may wait. seed: of
    the jitter. hosts: of all slices together."""

    restarts: int
    backoff: float
    longest: float
    least: float
    queue: float
    seed: str
    hosts: int

    def pause(self, attempt: int, failures: int) -> float:
        """Before the request after `attempt`; between half and all of the doubled backoff."""
        whole = min(self.longest, self.backoff * 2 ** max(failures - 1, 0))
        jitter = random.Random(f"{self.seed} {attempt}").uniform(0.5, 1.0)
        return max(self.least, whole * jitter)


@dataclasses.dataclass(frozen=True)
class Seen:
    """One look. state: of the request, "" where there is none of that name; error: of a FAILED one,
    its code and message. lost: a node that is no more, in words; ill: one that is unhealthy. ends:
    {host: exit code} of this attempt. heard: bytes that its hosts have written, None where that can
    not be read. others: {attempt: state} of requests that are there besides. saved: the newest
    checkpoint's step. stopping: a person wants the run to save and end."""

    state: str
    error: tuple[int, str] = (0, "")
    lost: str = ""
    ill: str = ""
    ends: Mapping[str, int] = dataclasses.field(default_factory=dict)
    heard: int | None = 0
    others: Mapping[int, str] = dataclasses.field(default_factory=dict)
    saved: int = 0
    stopping: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    """attempt: of the request that is, or was last, there. since: when the phase began. until: when
    waiting ends. failures: in a row. saved: the newest checkpoint when the attempt was asked for.
    asked: whether the API has taken its request; known: whether that was seen; absent: looks in a
    row that did not find it. ended, ill: when the first host ended, when a node was first ill; 0 is
    not. heard: as last seen; quiet: when that was new. mistaken: the attempt before ended with an
    error of the user's. refused: requests in a row for which there were no chips; seeking: when the
    first of them was made. why: the phase began.
    outcome: how all of it ends, "" while that is open: "done", "stopped" (it has saved),
    "withdrawn" (nothing ran when it was to stop), or the reason why it was given up."""

    phase: Phase
    attempt: int
    since: float
    until: float = 0.0
    failures: int = 0
    saved: int = 0
    asked: bool = False
    known: bool = False
    absent: int = 0
    ended: float = 0.0
    ill: float = 0.0
    heard: int = 0
    quiet: float = 0.0
    mistaken: bool = False
    refused: int = 0
    seeking: float = 0.0
    why: str = ""
    outcome: str = ""


def step(policy: Policy, run: Run, seen: Seen, now: float) -> tuple[Run, Action]:
    """What the run is after a look at `now`, and what to do."""
    run, action = _step(policy, run, seen, now)
    return run, "clear" if action == "wait" and seen.others else action


def _step(policy: Policy, run: Run, seen: Seen, now: float) -> tuple[Run, Action]:
    match run.phase:
        case "over":
            return run, "wait"
        case "waiting":
            if seen.others:
                return run, "wait"
            if seen.stopping:
                return _over(run, seen, "withdrawn", now), "wait"
            return run, "create" if now >= run.until else "wait"
        case "leaving":
            run = dataclasses.replace(run, absent=0 if seen.state else run.absent + 1)
            if not seen.state:
                gone = run.absent >= LOOKS and not seen.others
                return _gone(policy, run, seen, now) if gone else run, "wait"
            if seen.state not in ("DELETING", "SUSPENDING") and now - run.since > AGAIN:
                return dataclasses.replace(run, since=now), "delete"
            return run, "wait"
    if not seen.state and not run.known:
        if now - run.since <= SETTLED:
            return run, "wait"
        why = "it was asked for, and the API does not know it"
        return _failed(policy, run, seen, why, now), "delete"
    run = dataclasses.replace(run, known=True, absent=0 if seen.state else run.absent + 1)
    if not seen.state and run.absent < LOOKS:
        return run, "wait"
    if not seen.state or seen.state == "DELETING":
        why = "its request was deleted by somebody else"
        return _leaving(run, why, now, outcome=why), "wait"
    whole = len(seen.ends) == policy.hosts
    if whole and not any(seen.ends.values()):  # also where it was taken away since
        return _leaving(run, "the run has come to its end", now, outcome="done"), "delete"
    if whole and seen.stopping and set(seen.ends.values()) <= {0, PREEMPTED}:
        return _leaving(run, "it has saved and ended", now, outcome="stopped"), "delete"
    if seen.state == "FAILED" and run.phase == "running":
        why = f"its request failed: {seen.error[1] or 'no reason is given'}"
        return _failed(policy, run, seen, why, now), "delete"
    saving = seen.stopping and set(seen.ends.values()) <= {0, PREEMPTED}
    if seen.state in GOING and run.phase == "running" and saving:
        run = run if run.ended else dataclasses.replace(run, ended=now)
        if now - run.ended < GRACE:
            return run, "wait"
        if seen.ends:  # a save is of all hosts together
            return _leaving(run, "it has saved and ended", now, outcome="stopped"), "delete"
    if seen.state in GOING:
        how = "" if run.phase == "running" else " while they were made"
        return _failed(policy, run, seen, f"its slices were taken away{how}", now), "delete"
    if seen.state == "FAILED":
        return _refused(policy, run, seen, now), "delete"
    if seen.lost:
        return _failed(policy, run, seen, seen.lost, now), "delete"
    if seen.state in COMING:
        return _coming(policy, run, seen, now)
    if run.phase == "requested":
        run = dataclasses.replace(
            run, phase="running", since=now, quiet=now, why="", refused=0, seeking=0.0
        )
    return _running(policy, run, seen, now)


def created(run: Run, saved: int, now: float, asked: bool = True) -> Run:
    """The next attempt's request is in the queue; without `asked` it may be, for the API's answer
    has not come."""
    return dataclasses.replace(
        Run("requested", run.attempt + 1, now, failures=run.failures, saved=saved, asked=asked),
        mistaken=run.mistaken,
        refused=run.refused,
        seeking=run.seeking,
    )


def not_created(policy: Policy, run: Run, saved: int, why: str, now: float) -> Run:
    """The next attempt's request was refused, for lack of chips."""
    seen = Seen("", saved=saved)
    asked = dataclasses.replace(run, attempt=run.attempt + 1, since=now, saved=saved)
    return _gone(policy, _unserved(policy, asked, seen, why, now), seen, now)


def _coming(policy: Policy, run: Run, seen: Seen, now: float) -> tuple[Run, Action]:
    if seen.stopping:
        return _leaving(run, "it is to stop", now, outcome="withdrawn"), "delete"
    if run.phase == "requested" and now - run.since > policy.queue + LATE:
        hours = policy.queue / 3600
        why = f"no slice came within {hours:g} hours (launch.queue_hours)"
        return _leaving(run, why, now, outcome=why), "delete"
    return run, "wait"


def _running(policy: Policy, run: Run, seen: Seen, now: float) -> tuple[Run, Action]:
    bad = {host: code for host, code in seen.ends.items() if code}
    if seen.ends and not run.ended:
        run = dataclasses.replace(run, ended=now)
    # A host that has ended well, and can not say so, is not waited for: the others could not have.
    if seen.ends and not bad and now - run.ended > ILL:
        return _leaving(run, "the run has come to its end", now, outcome="done"), "delete"
    if bad:
        # The settings are those with which it has saved, where it has: then it is tried once more.
        tried = not seen.saved or (seen.saved <= run.saved and run.mistaken)
        if USER_ERROR in bad.values() and tried:
            host = next(host for host, code in bad.items() if code == USER_ERROR)
            why = f"host {host} ended with an error that a restart does not repair (code 2)"
            return _leaving(run, why, now, outcome=why), "delete"
        if len(seen.ends) < policy.hosts and now - run.ended < GRACE:
            return run, "wait"
        if seen.stopping and set(bad.values()) == {PREEMPTED}:
            return _leaving(run, "it has saved and ended", now, outcome="stopped"), "delete"
        return _failed(policy, run, seen, ended(bad), now), "delete"
    working = seen.heard is not None and seen.heard != run.heard
    if working or seen.heard is None:
        run = dataclasses.replace(run, heard=seen.heard or run.heard, quiet=now)
    if now - run.quiet > SILENCE:
        why = f"no host has written a word for {SILENCE / 60:.0f} minutes"
        return _failed(policy, run, seen, why, now), "delete"
    if not seen.ill or working:
        return dataclasses.replace(run, ill=0.0), "wait"
    run = run if run.ill else dataclasses.replace(run, ill=now)
    if now - run.ill > ILL:
        return _failed(policy, run, seen, seen.ill, now), "delete"
    return run, "wait"


def ended(bad: Mapping[str, int]) -> str:
    """In words, hosts that did not end well."""
    names = {
        PREEMPTED: "was preempted",
        HOST_LOST: "missed another host",
        UNAVAILABLE: "got no answer",
    }
    host, code = min(bad.items(), key=lambda end: (end[1] in names, end[0]))
    more = f", as did {len(bad) - 1} more" if bad.keys() - {host} else ""
    return f"host {host} {names.get(code, 'failed')} (code {code}){more}"


def _refused(policy: Policy, run: Run, seen: Seen, now: float) -> Run:
    """Of a request that FAILED."""
    code, message = seen.error
    why = f"the request failed: {message or 'no reason is given'}"
    if code and refusals.kind(code, message) in ("quota", "refused"):
        why = f"{why}; {refusals.advice(code, message)}"
        return _leaving(run, why, now, outcome=why)
    if code and refusals.kind(code, message) == "stock-out":
        return _unserved(policy, run, seen, why, now)
    return _failed(policy, run, seen, why, now)


def _unserved(policy: Policy, run: Run, seen: Seen, why: str, now: float) -> Run:
    """There are no chips, which is no failure of the run's, for as long as requests may wait."""
    seeking, outcome = run.seeking or run.since, ""
    if now - seeking > policy.queue:
        outcome = f"no chips came within {policy.queue / 3600:g} hours (launch.queue_hours): {why}"
    if seen.stopping:
        outcome = "withdrawn"
    run = dataclasses.replace(run, refused=run.refused + 1, seeking=seeking)
    return _leaving(run, why, now, outcome)


def _failed(policy: Policy, run: Run, seen: Seen, why: str, now: float) -> Run:
    """The attempt is to be deleted; whether another follows is decided here."""
    failures = 0 if seen.saved > run.saved else run.failures + 1
    outcome = ""
    if failures > policy.restarts:
        outcome = (
            f"{failures} attempts in a row made no new checkpoint (launch.restarts="
            f"{policy.restarts}); the last one: {why}"
        )
    if seen.stopping and run.phase == "requested":
        outcome = "withdrawn"
    elif seen.stopping:
        outcome = (
            f"it was to save and stop, and did not: {why}; its newest checkpoint is of step "
            f"{seen.saved}"
        )
    mistaken = USER_ERROR in seen.ends.values()
    run = dataclasses.replace(run, failures=failures, mistaken=mistaken)
    return _leaving(run, why, now, outcome)


def _leaving(run: Run, why: str, now: float, outcome: str = "") -> Run:
    return dataclasses.replace(run, phase="leaving", since=now, why=why, outcome=outcome, absent=0)


def _gone(policy: Policy, run: Run, seen: Seen, now: float) -> Run:
    if run.outcome:
        return _over(run, seen, run.outcome, now)
    until = now + policy.pause(run.attempt, run.failures + run.refused)
    return dataclasses.replace(run, phase="waiting", since=now, until=until, ended=0.0, ill=0.0)


def _over(run: Run, seen: Seen, outcome: str, now: float) -> Run:
    return dataclasses.replace(run, phase="over", since=now, outcome=outcome, saved=seen.saved)
