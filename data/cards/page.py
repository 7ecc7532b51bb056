"""The form of a data card: sections of blocks, written as Markdown and as a page, for `card.py`.

Both are made of the same blocks, so they can not differ in a number. The page is one file: no
script, nothing from a network (its Content-Security-Policy forbids both), light or dark as the
reader's system is, and for paper. Whatever comes from a file is text in it and never markup: lxml
builds the page, `reports/markdown.py` escapes the Markdown.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import lxml.etree as etree

from biomedlm_jax.reports import markdown as markdown_form
from data.cards.charts import LONGEST, E, percent, written

_WORD = 24  # letters, from which a word is long


class Text(NamedTuple):
    """A paragraph. link: (words, address) after it."""

    text: str
    link: tuple[str, str] | None = None


class Points(NamedTuple):
    """A list."""

    points: list[str]


class Figures(NamedTuple):
    """The numbers that one looks for first: (name, value)."""

    values: list[tuple[str, Any]]


class Table(NamedTuple):
    """left: how many columns hold words; the others hold numbers. folded: words to click on, of a
    table that only the page has."""

    head: list[str]
    rows: list[list[Any]]
    left: int = 1
    folded: str = ""


class Chart(NamedTuple):
    """On the page only; a table beside it has its numbers. drawing: of `cards/charts.py`."""

    drawing: Any
    caption: str


Block = Text | Points | Figures | Table | Chart


class Section(NamedTuple):
    title: str
    blocks: Sequence[Block]


def ranked(values: dict[str, dict[str, int]]) -> list[str]:
    """Those with the most tokens first."""
    return sorted(values, key=lambda value: (-values[value]["tokens"], value))


def folded(
    head: list[str], values: list[tuple[str, list[int]]], most: int = 15, name: str = "others"
) -> Table:
    """A table of the values with the largest last number, and all others as one row with their
    sum; a last column gives the shares of it."""
    values = sorted(values, key=lambda value: (-value[1][-1], value[0]))
    whole = sum(numbers[-1] for _, numbers in values)
    shown, rest = values[:most], values[most:]
    if len(rest) == 1:
        shown, rest = values, []
    if rest:
        sums = [sum(column) for column in zip(*(numbers for _, numbers in rest), strict=True)]
        shown = [*shown, (f"{len(rest):,} {name}", sums)]
    rows = [[value, *numbers, percent(numbers[-1], whole)] for value, numbers in shown]
    return Table([*head, "share"], rows)


def markdown(title: str, sections: Sequence[Section]) -> str:
    lines = [f"# {_escaped(title)}", ""]
    for section in sections:
        lines += [f"## {_escaped(section.title)}", ""]
        for block in section.blocks:
            match block:
                case Text(text, link):
                    after = f" [{_escaped(link[0])}]({link[1]})." if link else ""
                    lines += [_escaped(text, None) + after, ""]
                case Points(points):
                    lines += [*(f"- {_escaped(point, None)}" for point in points), ""]
                case Figures(values):
                    lines += [*(f"- {_escaped(n)}: **{_escaped(v)}**" for n, v in values), ""]
                case Table(head, rows, left, "") if rows:
                    cells = [[_escaped(cell) for cell in row] for row in [head, *rows]]
                    numbers = range(left, len(head))
                    lines += [*markdown_form.table(cells[0], cells[1:], numbers), ""]
    return "\n".join(lines)


def page(title: str, sections: Sequence[Section]) -> str:
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = E.head(
        E.meta(charset="utf-8"),
        E.meta({"http-equiv": "Content-Security-Policy", "content": policy}),
        E.meta(name="viewport", content="width=device-width, initial-scale=1"),
        E.title(written(title)),
        E.style(STYLE),
    )
    links = [E.a(written(s.title), href=f"#{_anchor(s.title)}") for s in sections]
    main = E.main(E.h1(written(title)), E.nav(*links))
    for section in sections:
        part = E.section(E.h2(written(section.title)), id=_anchor(section.title))
        part.extend(element for block in section.blocks for element in _elements(block))
        main.append(part)
    root = E.html(head, E.body(main), lang="en")
    for element in root.iter():
        if element.tag in ("html", "head", "meta", "body", "h1", "h2", "nav", "section", "p", "li",
                           "tr", "table", "figure", "rect", "div", "details"):  # fmt: skip
            element.tail = "\n"
    doctype = "<!DOCTYPE html>"
    return etree.tostring(root, encoding="unicode", method="html", doctype=doctype)


def _elements(block: Block) -> list[Any]:
    match block:
        case Text(text, link):
            after = [" ", E.a(written(link[0]), href=link[1]), "."] if link else []
            return [E.p(written(text, None), *after)]
        case Points(points):
            return [E.ul(*(E.li(written(point, None)) for point in points))]
        case Figures(values):
            tiles = (E.div(E.b(written(value)), E.span(written(name))) for name, value in values)
            return [E.div({"class": "figures"}, *tiles)]
        case Chart(drawing, caption):
            return [E.figure(E.figcaption(written(caption)), drawing)]
        case Table(head, rows, left, summary):
            if not rows:
                return []
            names = (E.th(*_cell(name, i < left), scope="col") for i, name in enumerate(head))
            lines = (E.tr(*(E.td(*_cell(c, i < left)) for i, c in enumerate(row))) for row in rows)
            table = E.table(E.thead(E.tr(*names)), E.tbody(*lines))
            # A wide table moves by itself, by keyboard too, and the page stays in its place.
            wrapped = E.div({"class": "wide", "tabindex": "0"}, table)
            return [E.details(E.summary(written(summary)), wrapped)] if summary else [wrapped]


def _cell(value: Any, words: bool) -> tuple[str, dict[str, str]]:
    """What is in a cell, and its class: only long words are broken where a table has no room."""
    text = written(value)
    long = any(len(word) > _WORD for word in text.split())
    kind = ("long" if long else "") if words else "number"
    return text, {"class": kind} if kind else {}


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def _escaped(value: Any, longest: int | None = LONGEST) -> str:
    return markdown_form.escaped(written(value, longest))


STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --soft: #59616b; --page: #ffffff;
  --line: #d9dee4; --track: #eef1f4; --ribbon: #e8f2f9; --link: #0b5cad; --c0: #0072b2;
  --c1: #e69f00; --c2: #56b4e9; --c3: #d55e00; --c4: #cc79a7; --c5: #f0e442; --c6: #8c8c8c;
  --c7: #6a3d9a; --c8: #009e73; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #a3adb8; --page: #14171a;
  --line: #343b43; --track: #252a30; --ribbon: #19283a; --link: #7cb8f2; --c0: #3d9bd8;
  --c7: #a57fd0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 46rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 0.6rem; padding-top: 0.8rem;
  border-top: 1px solid var(--line); }
a { color: var(--link); }
p, li { overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; font-size: 0.9rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: 0.7rem; margin: 1.2rem 0; }
.figures div { border: 1px solid var(--line); border-radius: 6px; padding: 0.6rem 0.8rem; }
.figures b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.figures span, figcaption, summary { color: var(--soft); font-size: 0.9rem; }
figure { margin: 1.4rem 0; break-inside: avoid; }
figcaption { margin-bottom: 0.6rem; }
svg { display: block; overflow: visible; font-size: 13px; font-variant-numeric: tabular-nums; }
svg text { fill: var(--ink); } svg .strong { font-weight: 600; font-size: 14px; }
.track { fill: var(--track); } .ribbon { fill: var(--ribbon); } .cut { stroke: var(--page); }
.c0 { fill: var(--c0); } .c1 { fill: var(--c1); } .c2 { fill: var(--c2); }
.c3 { fill: var(--c3); } .c4 { fill: var(--c4); } .c5 { fill: var(--c5); }
.c6 { fill: var(--c6); } .c7 { fill: var(--c7); } .c8 { fill: var(--c8); }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; width: 100%; }
th, td { padding: 0.28rem 0.7rem 0.28rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
.long { overflow-wrap: anywhere; min-width: 11rem; }
.number { text-align: right; padding-right: 0; padding-left: 0.7rem; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; } th.number { white-space: normal; }
tr { break-inside: avoid; }
summary { cursor: pointer; }
@media (max-width: 30rem) { table { font-size: 0.8rem; }
  th, td { padding-right: 0.4rem; } .number { padding-left: 0.4rem; padding-right: 0; } }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #333; --page: #fff; --line: #bbb;
    --track: #eee; --ribbon: #e8f2f9; --link: #000; --c0: #0072b2; --c7: #6a3d9a; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } nav { display: none; }
  .wide { overflow: visible; } h2 { break-after: avoid; }
  rect { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
