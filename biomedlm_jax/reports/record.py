"""What a run has left in its folder, read as it is: in progress, cut short, or with files missing.

A line that is not whole, or is no line of its file, is counted and left out; the page says so.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard, cast

from etils import epath

from biomedlm_jax.claim import Claim, read_claim

Line = dict[str, Any]
Points = list[tuple[int, float]]

# Events whose step is how far the run was. A damaged save may be of a later one.
PROGRESS = ("start", "first_step", "save", "evaluation", "spike", "skipped", "preempted", "end")


@dataclasses.dataclass(frozen=True)
class Record:
    """train, evaluations: lines of metrics.jsonl by step, the later one where a step was done
    twice. events: as they were written. manifest: of the run's store, None where it is not to be
    had. notes: what is missing, in sentences."""

    workdir: str
    claim: Claim
    train: list[Line]
    evaluations: list[Line]
    events: list[Line]
    samples: list[Line]
    manifest: Line | None
    notes: list[str]

    @property
    def step(self) -> int:
        """The last one that anything is known of."""
        events = self.of(*PROGRESS)
        starts = [at for at, event in enumerate(events) if event["event"] == "start"]
        since = events[starts[-1] :] if starts else []  # before it, steps may have been lost
        return max([line["step"] for line in [*self.train, *self.evaluations, *since]], default=0)

    def of(self, *kinds: str) -> list[Line]:
        return [event for event in self.events if event["event"] in kinds]


def read(workdir: epath.Path) -> Record:
    """The record of the run in `workdir`.

    Raises:
      UserError: there is none.
    """
    claim, notes = read_claim(cast(Path, workdir)), []

    def lines(name: str, whole: Callable[[Line], bool], purpose: str) -> list[Line]:
        file = workdir / name
        if not file.exists():
            notes.append(f"{name} is not there: {purpose}.")
            return []
        found, damaged = parsed(file.read_text(), whole)
        if damaged:
            count = "1 line is" if damaged == 1 else f"{damaged:,} lines are"
            notes.append(f"{name}: {count} damaged and left out.")
        if not found:
            notes.append(f"{name} is empty: {purpose}.")
        return found

    metrics = lines("metrics.jsonl", _has_step, "no curves")
    train = {line["step"]: line for line in metrics if "loss" in line}
    evaluations = {line["step"]: line for line in metrics if "held_out_loss" in line}
    return Record(
        workdir=str(workdir),
        claim=claim,
        train=[train[step] for step in sorted(train)],
        evaluations=[evaluations[step] for step in sorted(evaluations)],
        events=lines("events.jsonl", _is_event, "no events, no times, no environment"),
        samples=lines("samples.jsonl", _is_sample, "no continuations"),
        manifest=None if claim.experiment.task else _manifest(claim.experiment.data.store, notes),
        notes=notes,
    )


def parsed(text: str, whole: Callable[[Line], bool]) -> tuple[list[Line], int]:
    """The lines that are JSON objects and `whole`, and how many are not. The last one may have been
    cut as the process ended, which is no damage."""
    found, damaged = [], 0
    rows = text.split("\n")
    for row in rows:
        if not row.strip():
            continue
        try:
            line = json.loads(row)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and whole(line):
            found.append(line)
        elif row is not rows[-1]:
            damaged += 1
    return found, damaged


def _has_step(line: Line) -> bool:
    return type(line.get("step")) is int and 0 <= line["step"] < 1 << 53


def _is_event(line: Line) -> bool:
    return _has_step(line) and isinstance(line.get("event"), str) and finite(line.get("time"))


def _is_sample(line: Line) -> bool:
    return _has_step(line) and all(
        isinstance(line.get(name), str) for name in ("prompt", "text", "document")
    )


def finite(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)


def series(lines: list[Line], name: str) -> Points:
    """(step, value) where a line has a number of that name."""
    return [(line["step"], float(line[name])) for line in lines if finite(line.get(name))]


def _manifest(store: str, notes: list[str]) -> Line | None:
    file = epath.Path(store) / "manifest.json"
    try:
        found = json.loads(file.read_text())
        if isinstance(found, dict):
            return found
        notes.append(f"{file} is no manifest of a token store: no data card.")
    except ValueError:
        notes.append(f"{file} is damaged: no data card.")
    except Exception as error:  # of many classes, on gs:// also those of its client and of HTTP
        reason = type(error).__name__
        notes.append(f"The token store is not reachable ({reason}: {file}): no data card.")
    return None
