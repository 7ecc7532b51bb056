"""The events of a run in words, and the places in its code where they come from."""

import datetime
from typing import Any

from biomedlm_jax.metrics import duration
from biomedlm_jax.reports.charts import number, written
from biomedlm_jax.reports.page import folded, notes, table, text
from biomedlm_jax.reports.record import Line, Record, finite
from biomedlm_jax.reports.times import lost_steps

ROUTINE = ("save", "evaluation")  # many, and as they should be
DOCUMENTS = 8  # named in one cell
ROWS = 500  # in one table; a page with more is of no use
HEAD = ["time (UTC)", "since start", "step", "event", "what is known"]


def blocks(record: Record) -> list[Any]:
    if not record.events:
        return [text("The run has left no events.")]
    rare = [row for kind, row in _rows(record) if kind not in ROUTINE]
    usual = [row for kind, row in _rows(record) if kind in ROUTINE]
    found = [_table(rare)] if rare else []
    if usual:
        found.append(folded(f"Saves and evaluations ({len(usual):,})", _table(usual)))
    return found


def details(event: Line, lost: int | None = None) -> str:
    """What an event says besides its kind, step and time. lost: steps, by a restart."""
    known = {k: v for k, v in event.items() if k not in ("event", "step", "time")}
    match event["event"]:
        case "start":
            names = ("devices", "device_kind", "processes")
            place = " ".join(str(known.pop(name)) for name in names[:2] if name in known)
            if "processes" in known:
                place += f", processes: {known['processes']}"
            if lost is not None:
                place += f"; at least {lost:,} steps before it were not kept" if lost else ""
            return place.lstrip("; ")
        case "first_step" if isinstance(known.get("seconds"), dict):
            parts = {k: x for k, x in known["seconds"].items() if finite(x)}
            total = parts.pop("total", sum(parts.values()))
            longest = sorted(parts.items(), key=lambda part: -part[1])
            shown = ", ".join(f"{name} {number(float(x))}" for name, x in longest if x)
            return f"after {number(float(total))} s" + (f": {shown}" if shown else "")
        case "save" if finite(known.get("stall_seconds")):
            return f"training stood still for {number(float(known['stall_seconds']))} s"
        case "evaluation" if finite(known.get("seconds")):
            return f"{number(float(known['seconds']))} s"
    return "; ".join(f"{name}: {_value(value)}" for name, value in known.items())


def kind(event: Line, first: bool) -> str:
    name = event["event"]
    words = {"first_step": "first step", "host_lost": "host lost", "skipped": "update left out"}
    return words.get(name, name) if name != "start" or first else "restart"


def when(seconds: float) -> str:
    try:
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g}"
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _rows(record: Record) -> list[tuple[str, list[str]]]:
    lost, starts, rows = lost_steps(record), -1, []
    for event in record.events:
        starts += event["event"] == "start"
        own = lost.get(starts) if event["event"] == "start" else None
        since = duration(max(0.0, event["time"] - record.events[0]["time"]))
        what = details(event, own)
        name = kind(event, first=starts == 0)
        rows.append((event["event"], [when(event["time"]), since, event["step"], name, what]))
    return rows


def _table(rows: list[list[str]]) -> Any:
    shown = table(HEAD, rows[-ROWS:], right=[2], unbroken=[0, 1, 3])
    if len(rows) > ROWS:
        shown.addprevious(notes([f"The last {ROWS:,} of {len(rows):,}."]))
    return shown


def _value(value: Any) -> str:
    if isinstance(value, list):
        shown = ", ".join(written(x, 60) for x in value[:DOCUMENTS])
        more = len(value) - DOCUMENTS
        return shown + (f" and {more:,} more" if more > 0 else "")
    return written(float(value) if finite(value) and type(value) is float else value)
