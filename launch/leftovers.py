"""What of a launch is in the cloud, what it costs an hour, and how all of it is ended.

A request can be there without anybody having seen it: the launcher was interrupted while it asked,
or the API lists it a moment later. Its name stands in WORKDIR/launch/events.jsonl, written before
it is asked for, and may be there until `SETTLED` seconds have passed without a trace of it.
"""

import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator

from etils import epath

from biomedlm_jax import journal
from biomedlm_jax.entry import UserError, unanswered
from launch import requests
from launch.lifecycle import AGAIN, SETTLED
from launch.prices import costs
from launch.spec import Launch
from launch.tpu_api import Patience, Tpus, Unanswered, name_of

EVENTS = "events.jsonl"  # in `Launch.place`
INTERRUPTED = 130  # exit code of a program that Ctrl-C ends
LIMIT = 1800.0  # seconds, after which what does not go is left to a person
TRIED = Patience().whole + Patience().answer  # seconds, at most, for which one request is tried
LAST_LOOK = Patience(whole=60.0)  # of somebody who waits for the prompt


def delete_command(launch: Launch) -> str:
    """That ends all by this launch's name."""
    return (
        f"python -m launch.tpu delete --name={launch.name} --project={launch.project} "
        f"--zone={launch.zone} --accelerator={launch.accelerator} --workdir={launch.workdir}"
    )


def asked_for(launch: Launch, now: float) -> tuple[str, float]:
    """(name, until when it may appear) of a request that was asked for last and that nobody may
    have seen; ("", 0.0) if there is none. Where the record is out of reach, the name says so."""
    try:
        lines = journal.read(epath.Path(launch.place) / EVENTS)
    except Exception as error:
        if not (isinstance(error, OSError) or unanswered(error)):
            raise
        return f"one that {EVENTS} could tell of, which can not be read,", now + SETTLED
    kind = lines[-1].get("event") if lines else ""
    if kind not in ("request", "asked", "unanswered", "interrupted"):
        return "", 0.0
    # A launcher that was killed while it asked may have tried for as long as it does.
    tried = TRIED if kind == "request" else 0.0
    until = lines[-1]["time"] + tried + SETTLED
    return (lines[-1]["name"], until) if now < until else ("", 0.0)


def left(launch: Launch, tpus: Tpus) -> str:
    """For people: what is there and what it costs."""
    try:
        found = tpus.of_launch(strict=False).values()
    except UserError as error:
        return f"whether requests by the name {launch.name}-aN are there is not known: {error}"
    names = [f"{one.name} ({name_of(one.state.state)})" for one in found]
    if names:
        return (
            f"{', '.join(names)} goes on without this command; {costs(launch)}; the same command "
            "watches it again"
        )
    name, _ = asked_for(launch, time.time())
    if name:
        return f"{name} was asked for, is not there yet, and may come; then {costs(launch)}"
    return "nothing is left running"


def delete_all(
    launch: Launch,
    tpus: Tpus,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
    told_all: Callable[[], None] = lambda: None,
) -> None:
    """Deletes all by the launch's name, each again where it does not go, and returns when it is
    gone and nothing more can come.

    told_all: called once, when all that is there has been told to go: the run's folder, which may
      be out of reach for minutes, comes after what costs money.

    Raises:
      UserError: something can not be deleted, or is there after `LIMIT`; the others are deleted.
    """
    began, told, gone = clock(), dict[str, float](), set[str]()
    late, until, said, first = "", 0.0, False, True
    while True:
        there = {
            requests.attempt_id(launch, number): name_of(request.state.state)
            for number, request in tpus.of_launch(strict=False).items()
        }
        for name in sorted(told.keys() - there.keys() - gone):
            print(f"{name} is deleted", flush=True)
            gone.add(name)
        refused: UserError | None = None
        for name, state in there.items():
            if state == "DELETING":
                told.setdefault(name, clock())
            if name in told and (state == "DELETING" or clock() - told[name] < AGAIN):
                continue
            try:
                tpus.delete(name)
                told[name] = clock()
            except Unanswered as error:  # tried again below
                print(error, file=sys.stderr, flush=True)
            except UserError as error:
                refused = error
        if refused is not None:
            raise refused
        if first:
            told_all()
            (late, until), first = asked_for(launch, clock()), False
        wait = until - clock() if late and late not in gone else 0.0
        if not there and wait <= 0:
            return
        if not there and not said:
            print(f"{late} was asked for and may still come; looking for {wait:.0f} s", flush=True)
            said = True
        if clock() - began > LIMIT:
            raise UserError(
                f"{', '.join(there)} was told to go {LIMIT / 60:.0f} minutes ago and is there "
                f"still; see the console, and try again: {delete_command(launch)}"
            )
        sleep(min(launch.poll_seconds, 5.0))


@contextlib.contextmanager
def named(launch: Launch, tpus: Tpus, delete: bool = False) -> Iterator[None]:
    """Whatever ends the block otherwise than well, Ctrl-C and SIGTERM too, the command that ends
    everything is said first, and then what is there.

    delete: on Ctrl-C, it is deleted.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        _say(f"\ninterrupted. What ends all of it:\n  {delete_command(launch)}")
        if delete:
            _say("deleting what is there (--delete_on_interrupt)")
            try:
                delete_all(launch, tpus)
            except (Exception, KeyboardInterrupt):
                _say("\nnot all is deleted")
                _say_left(launch, tpus)
                raise
        else:
            _say_left(launch, tpus)
        sys.exit(INTERRUPTED)
    except Exception:
        _say(f"What ends all of it:\n  {delete_command(launch)}")
        _say_left(launch, tpus)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _say_left(launch: Launch, tpus: Tpus) -> None:
    """At the very end, where nothing may hide what is on its way to a person."""
    whole = min(tpus.patience.whole, LAST_LOOK.whole)
    try:
        _say(left(launch, Tpus(launch, dataclasses.replace(tpus.patience, whole=whole))))
    except (Exception, KeyboardInterrupt) as error:
        _say(f"what is there is not known: {str(error) or type(error).__name__}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
