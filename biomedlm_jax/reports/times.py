"""Where the time of a run went, from its events and metrics alone."""

import dataclasses
import itertools

from biomedlm_jax.reports.record import PROGRESS, Line, Record, finite

TRAINING, WAITING, SAVES = "training", "waiting for data", "saves"
EVALUATION, COMPILING, STARTING = "evaluation", "compiling", "starting"
LOST, OTHER = "lost to restarts", "not accounted for"
PARTS = (TRAINING, WAITING, SAVES, EVALUATION, COMPILING, STARTING, LOST, OTHER)


@dataclasses.dataclass(frozen=True)
class Process:
    """One start of the run. ready: its first step was done, None if it never was."""

    events: list[Line]  # its start and all up to the next one
    begin: float
    ready: float | None
    compiling: float
    starting: float


def processes(record: Record) -> list[Process]:
    starts = [at for at, event in enumerate(record.events) if event["event"] == "start"]
    found = []
    for at, following in itertools.pairwise([*starts, len(record.events)]):
        events = record.events[at:following]
        begin, ready, compiling, starting = float(events[0]["time"]), None, 0.0, 0.0
        for event in events:
            if event["event"] == "first_step" and isinstance(event.get("seconds"), dict):
                parts = {k: float(x) for k, x in event["seconds"].items() if finite(x)}
                parts.pop("total", None)
                compiling = parts.pop("compile", 0.0)
                starting, ready = sum(parts.values()), float(event["time"])
                begin = min(begin, ready - compiling - starting)  # it was imported before
                # What was evaluated before the first step is in these parts too.
                early = events[: events.index(event)]
                evaluated = sum(_seconds(x, "seconds") for x in early if x["event"] == "evaluation")
                starting = max(0.0, starting - evaluated)
                break
        found.append(Process(events, begin, ready, compiling, starting))
    return found


def lost_steps(record: Record) -> dict[int, int]:
    """For each restart, by its place among the starts: how many steps were done and not kept, as
    far as events tell."""
    found, runs = {}, processes(record)
    for place in range(1, len(runs)):
        events = runs[place - 1].events
        furthest = max(event["step"] for event in events if event["event"] in PROGRESS)
        found[place] = max(0, furthest - runs[place].events[0]["step"])
    return found


def budget(record: Record) -> dict[str, float] | None:
    """Seconds of each of PARTS since the first process began; None without a start.

    A restart loses what came after the save that it goes on from, and the time until it is there.
    Nothing is lost between the end of a run and a start that finds it ended.
    """
    runs = processes(record)
    if not runs:
        return None
    parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    idle, gaps = 0.0, []
    for before, after in itertools.pairwise(runs):
        step = after.events[0]["step"]
        ended = [e["time"] for e in before.events if e["event"] == "end"]
        saved = [e["time"] for e in before.events if e["event"] == "save" and e["step"] == step]
        gap = (float((ended or saved or [before.ready or before.begin])[-1]), after.begin)
        if ended:
            idle += max(0.0, gap[1] - gap[0])
        elif gap[1] > gap[0]:
            gaps.append(gap)
    parts[LOST] = sum(end - begin for begin, end in gaps)
    for run in runs:
        parts[COMPILING] += run.compiling
        parts[STARTING] += run.starting
    for event in record.of("save", "evaluation"):
        name = SAVES if event["event"] == "save" else EVALUATION
        seconds = _seconds(event, "stall_seconds" if name == SAVES else "seconds")
        if not any(a < event["time"] <= b for a, b in gaps):
            parts[name] += seconds

    last, after = record.of(*PROGRESS)[-1], 0.0
    for line, seconds in intervals(record):
        waiting, saving = (_share(line, name) for name in ("data_wait", "save_stall"))
        parts[WAITING] += seconds * waiting
        parts[TRAINING] += seconds * max(0.0, 1 - waiting - saving)
        if line["step"] > last["step"]:  # a run that goes on: its metrics are ahead of its events
            after += seconds
    whole = float(last["time"]) + after - runs[0].begin - idle
    parts[OTHER] = max(0.0, whole - sum(parts.values()))
    return parts


def intervals(record: Record) -> list[tuple[Line, float]]:
    """Each line of training and the seconds from the one before: those of evaluations are not in
    them, nor those up to the first step of a process."""
    firsts = sorted({event["step"] for event in record.of("first_step")})
    found, before = [], 0
    for line in record.train:
        since = max([before, *(step for step in firsts if step < line["step"])])
        before = line["step"]
        if finite(line.get("step_seconds")):
            found.append((line, float(line["step_seconds"]) * (line["step"] - since)))
    return found


def goodput(record: Record) -> float | None:
    """Share of all time in which steps were made that count: as the run itself found it at its end
    or with its last metrics, else by `budget`."""
    told = [x.get("goodput") for x in [*record.train, *record.of("end")]]
    if told := [float(x) for x in told if x is not None and finite(x)]:
        return told[-1]
    parts = budget(record)
    whole = sum(parts.values()) if parts else 0
    return parts[TRAINING] / whole if parts and whole else None


def _seconds(event: Line, name: str) -> float:
    return max(0.0, float(event[name])) if finite(event.get(name)) else 0.0


def _share(line: Line, name: str) -> float:
    return min(1.0, max(0.0, float(line[name]))) if finite(line.get(name)) else 0.0
