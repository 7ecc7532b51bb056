"""Answers as one page, in the form of a run's report."""

from collections.abc import Sequence
from typing import Any

from biomedlm_jax.planning import times, words
from biomedlm_jax.planning.answer import Answer
from biomedlm_jax.planning.words import UNKNOWN, gigabytes, milliseconds
from biomedlm_jax.reports import page as form
from biomedlm_jax.reports.charts import bars, number, percent
from biomedlm_jax.reports.page import Section, figure, figures, grid, notes, table, text
from biomedlm_jax.settings import flat

COLOURS = 8  # of the drawings


def page(answers: Sequence[Answer], front: Sequence[Answer] | None, command: str) -> str:
    """front: of a sweep, which is then what is shown in full."""
    shown = answers if front is None else front
    sections = [Section("Compared", _compared(answers, front))] if len(answers) > 1 else []
    for answer in shown:
        sections.append(Section(_title(answer), _one(answer)))
    if shown:
        sections.append(Section("Settings", [form.settings(_settings(shown[0]))]))
    title = "Predicted: " + ", ".join(dict.fromkeys(a.target.machine.name for a in answers))
    return form.page(title, f"{command}. Compiled, not run: no time in it was measured.", sections)


def _title(answer: Answer) -> str:
    return f"{answer.target.machine.name}, {answer.target.settings}"


def _compared(answers: Sequence[Answer], front: Sequence[Answer] | None) -> list[Any]:
    blocks: list[Any] = [table(words.HEAD, [words.row(a) for a in answers], right=(2, 3, 4, 5))]
    chosen = [a for a in (answers if front is None else front) if a.memory and a.predicted]
    if front is not None:
        said = "these are beaten by none in both memory and predicted speed"
        blocks.insert(0, text(f"Of {len(answers)} settings that were compiled {said}."))
    if chosen:
        held = [(_title(a), a.memory["needed"] / 1e9, gigabytes(a.memory["needed"]))
                for a in chosen if a.memory]  # fmt: skip
        speed = [(_title(a), a.predicted["tokens_per_second_per_chip"],
                  words.row(a)[4]) for a in chosen if a.predicted]  # fmt: skip
        pair = [
            figure("Memory of a chip", bars(held)),
            figure("Predicted tokens per second and chip", bars(speed)),
        ]
        blocks.append(grid(pair, "two"))
    return blocks


def _one(answer: Answer) -> list[Any]:
    if answer.refused:
        return [text(f"Does not compile: {answer.refused}")]
    blocks: list[Any] = [figures(_first(answer)), *_memory(answer)]
    if answer.figures:
        blocks += [*_time(answer), *_links(answer), *_dearest(answer)]
    lines = [line for line in words.lines(answer) if line[1] or line[2]]
    blocks.append(form.folded("All figures", table(("", "", ""), lines, right=(1,))))
    if answer.figures:
        blocks.append(notes(times.assumptions(answer.target, answer.figures)))
    return blocks


def _first(answer: Answer) -> list[tuple[str, str]]:
    told, held = answer.predicted or {}, answer.memory or {}
    known = bool(told)
    found = [
        ("fits", "yes" if answer.fits else "no"),
        ("memory of a chip", f"{gigabytes(held['needed'])} of {gigabytes(held['limit'])}"),
        (f"predicted step{words.source(answer)}", words.step(answer)),
        (
            "predicted tokens/s/chip",
            number(told["tokens_per_second_per_chip"]) if known else UNKNOWN,
        ),
    ]
    if not known:
        return found
    found += [(f"predicted MFU ({name})", percent(share)) for name, share in told["mfu"].items()]
    found.append(("predicted run", words.duration(24 * told["days"])))
    if told["cost"] is not None:
        found.append(("predicted dollars", f"{told['cost']:,.0f}"))
    return found


def _memory(answer: Answer) -> list[Any]:
    held = answer.memory or {}
    parts = [(part, size / 1e9, gigabytes(size)) for part, size in held["parts"].items() if size]
    if answer.fits:
        left = held["limit"] - held["needed"]
        parts.append(("free", left / 1e9, gigabytes(left)))
    return [figure("Memory of a chip", bars(parts, colours=len(parts) <= COLOURS))]


def _time(answer: Answer) -> list[Any]:
    built = times.parts(answer.target, answer.figures or {})
    line = times.roofline(answer.target, answer.figures or {})
    drawings = []
    if built:
        parts = [(part, seconds, milliseconds(seconds)) for part, seconds in built.items()]
        drawings.append(figure("Predicted step", bars(parts, colours=True)))
    if line["seconds"]:
        parts = [
            (part, value, milliseconds(value)) for part, value in list(line.items())[:3] if value
        ]
        drawings.append(figure("Roofline: what each needs at its peak", bars(parts)))
    return [grid(drawings, "two")] if drawings else []


def _links(answer: Answer) -> list[Any]:
    totals = times.totals(answer.target, answer.figures or {})
    if not totals:
        return []
    name = times.link(answer.target.machine)
    parts = [(kind, total.wire / 1e9, gigabytes(total.wire)) for kind, total in totals.items()]
    alone = [(kind, total.alone / 1e9, gigabytes(total.alone)) for kind, total in totals.items()]
    pair = [
        figure(f"Bytes over {name}, a chip and step", bars(parts)),
        figure("of them in stand-alone operations", bars(alone)),
    ]
    return [grid(pair, "two")]


def _dearest(answer: Answer) -> list[Any]:
    found = (answer.figures or {})["dearest"]
    if not found:
        return []
    rows = [
        (
            f"{one['cycles'] / 1e6:,.2f}",
            f"{one['runs']:,}",
            one["opcode"],
            one["shape"],
            one["operation"],
        )
        for one in found[:20]
    ]
    head = ("Mcycles", "runs", "operation", "result", "from")
    made = table(head, rows, right=(0, 1))
    return [form.folded("The most expensive operations, by XLA's estimate", made)]


def _settings(answer: Answer) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, value in flat(answer.target.experiment).items():
        section, _, field = name.partition(".")
        found.setdefault(section if field else "", {})[field or section] = value
    return found
