"""The form of a report: one file, no script, nothing from a network (its Content-Security-Policy
forbids both), light or dark as the reader's system is, and for paper. Whatever comes from a file is
text in it and never markup: lxml builds the page."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import lxml.etree as etree

from biomedlm_jax.reports.charts import Curve, E, legend, written

_WORD = 24  # letters, from which a word is long


class Section(NamedTuple):
    title: str
    blocks: Sequence[Any]  # elements


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = E.head(
        E.meta(charset="utf-8"),
        E.meta({"http-equiv": "Content-Security-Policy", "content": policy}),
        E.meta(name="viewport", content="width=device-width, initial-scale=1"),
        E.title(written(title)),
        E.style(STYLE),
    )
    links = [E.a(written(section.title), href=f"#{_anchor(section.title)}") for section in sections]
    main = E.main(E.h1(written(title)), E.p({"class": "under"}, written(subtitle)), E.nav(*links))
    for section in sections:
        heading = E.h2(written(section.title))
        main.append(E.section(heading, *section.blocks, id=_anchor(section.title)))
    root = E.html(head, E.body(main), lang="en")
    for element in root.iter():
        if element.tag in ("html", "head", "meta", "body", "h1", "h2", "h3", "nav", "section", "p",
                           "li", "tr", "table", "figure", "div", "details"):  # fmt: skip
            element.tail = "\n"
    doctype = "<!DOCTYPE html>"
    return etree.tostring(root, encoding="unicode", method="html", doctype=doctype)


def text(words: str) -> Any:
    return E.p(written(words, None))


def notes(lines: Sequence[str]) -> Any:
    return E.ul({"class": "notes"}, *(E.li(written(line)) for line in lines))


def figures(values: Sequence[tuple[str, str]]) -> Any:
    """The numbers that one looks for first: (name, value)."""
    tiles = (E.div(E.b(written(value)), E.span(written(name))) for name, value in values)
    return E.div({"class": "figures"}, *tiles)


def figure(caption: str, drawing: Any, curves: Sequence[Curve] = ()) -> Any:
    """curves: what a legend names, where there are several."""
    keys = [legend(curves)] if sum(bool(curve.points) for curve in curves) > 1 else []
    return E.figure(E.figcaption(written(caption)), *keys, drawing)


def grid(drawings: Sequence[Any], kind: str) -> Any:
    """kind: "two" or "three" beside each other where there is room."""
    return E.div({"class": kind}, *drawings)


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    right: Sequence[int] = (),
    unbroken: Sequence[int] = (),
) -> Any:
    """right: the columns that hold numbers. unbroken: those whose cells stay on one line. A
    wide table moves by itself, by keyboard too, and the page stays in its place."""

    def cell(make: Any, value: Any, column: int, **more: str) -> Any:
        words = written(value, None)
        long = any(len(word) > _WORD for word in words.split())
        kind = "long" if long else "unbroken" if column in unbroken else ""
        kind = "number" if column in right else kind
        return make(words, {"class": kind} if kind else {}, **more)

    names = (cell(E.th, name, column, scope="col") for column, name in enumerate(head))
    lines = (E.tr(*(cell(E.td, x, column) for column, x in enumerate(row))) for row in rows)
    made = E.table(E.thead(E.tr(*names)), E.tbody(*lines))
    return E.div({"class": "wide", "tabindex": "0"}, made)


def folded(summary: str, *content: Any) -> Any:
    return E.details(E.summary(written(summary)), *content)


def heading(words: str) -> Any:
    return E.h3(written(words))


def quote(prompt: str) -> Any:
    return E.blockquote(E.p(written(prompt, None)))


def settings(sections: dict[str, dict[str, Any]]) -> Any:
    """Names and values, a block for each section."""
    blocks = []
    for name, values in sections.items():
        pairs = [E.div(E.dt(written(n)), E.dd(written(str(v)))) for n, v in values.items()]
        blocks.append(E.div(E.h3(written(name)), E.dl(*pairs)))
    return E.div({"class": "settings"}, *blocks)


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")


_COLOURS = {  # light, dark
    0: ("#0072b2", "#4aa3e0"),
    1: ("#d55e00", "#f0803a"),
    2: ("#56b4e9", "#7cc6f0"),
    3: ("#009e73", "#2fc79b"),
    4: ("#cc79a7", "#d98fb8"),
    5: ("#e69f00", "#e9b33a"),
    6: ("#6a3d9a", "#a57fd0"),
    7: ("#8c8c8c", "#8c949c"),
}
_LIGHT = " ".join(f"--c{n}: {light};" for n, (light, _) in _COLOURS.items())
_DARK = " ".join(f"--c{n}: {dark};" for n, (_, dark) in _COLOURS.items())
_USES = "\n".join(
    f".c{n} {{ fill: var(--c{n}); }} .s{n} {{ stroke: var(--c{n}); }} "
    f".b{n} {{ background: var(--c{n}); }}"
    for n in _COLOURS
)
STYLE = f"""
:root {{ color-scheme: light dark; --ink: #1c1f23; --soft: #59616b; --page: #ffffff;
  --line: #d9dee4; --track: #e6eaee; --raised: #f6f8fa; --link: #0b5cad; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e6e9ed; --soft: #a3adb8; --page: #14171a;
  --line: #343b43; --track: #2a3037; --raised: #1b1f24; --link: #7cb8f2; {_DARK} }} }}
{_USES}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }}
main {{ max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }}
h1 {{ font-size: 1.7rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.25rem; margin: 2.6rem 0 0.6rem; padding-top: 0.8rem;
  border-top: 1px solid var(--line); }}
h3 {{ font-size: 1rem; margin: 1.4rem 0 0.3rem; }}
a {{ color: var(--link); }}
p, li {{ overflow-wrap: anywhere; }}
.under {{ color: var(--soft); margin: 0.3rem 0 1rem; }}
nav {{ display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; font-size: 0.9rem; }}
.notes {{ color: var(--soft); font-size: 0.9rem; padding-left: 1.2rem; }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(12rem, 45%), 1fr));
  gap: 0.7rem; margin: 1.2rem 0; }}
.figures div {{ border: 1px solid var(--line); border-radius: 6px; padding: 0.6rem 0.8rem;
  background: var(--raised); }}
.figures b {{ display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }}
.figures span, figcaption, summary, .legend {{ color: var(--soft); font-size: 0.9rem; }}
figure {{ margin: 1.2rem 0; break-inside: avoid; min-width: 0; }}
figcaption {{ margin-bottom: 0.3rem; }}
.two, .three {{ display: grid; gap: 0 1.6rem; }}
.two {{ grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }}
.three {{ grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); }}
.two figure, .three figure {{ margin: 0.6rem 0; }}
.legend {{ display: flex; flex-wrap: wrap; gap: 0 1.2rem; margin-bottom: 0.3rem; }}
.legend i {{ display: inline-block; width: 0.9rem; height: 0.25rem; border-radius: 2px;
  margin-right: 0.4rem; vertical-align: middle; print-color-adjust: exact; }}
.plot {{ display: grid; grid-template-columns: 2.9rem minmax(0, 1fr); gap: 0.5rem; }}
.marked {{ grid-template-columns: 4rem minmax(0, 1fr); }}
.plot > svg:first-child {{ color: var(--soft); }}
svg {{ display: block; overflow: visible; font-size: 12px; font-variant-numeric: tabular-nums; }}
svg text {{ fill: var(--soft); }} figure > svg text {{ fill: var(--ink); font-size: 13px; }}
.track {{ fill: var(--track); }} .rule {{ fill: var(--c4); opacity: 0.8; }}
.cut {{ stroke: var(--page); }} .band {{ opacity: 0.25; }}
.line {{ fill: none; stroke-width: 1.8px; stroke-linejoin: round; vector-effect: non-scaling-stroke;
  stroke-linecap: round; }}
.dots {{ stroke-width: 6px; }}
.dashed {{ stroke: var(--ink); stroke-dasharray: 4 3; opacity: 0.8; }}
.whisker {{ stroke: var(--ink); stroke-width: 1.5px; }}
.told {{ stroke: var(--c1); stroke-width: 3px; }}
.note {{ fill: transparent; }} .note:hover {{ fill: var(--soft); opacity: 0.15; }}
blockquote {{ margin: 0.5rem 0; padding: 0.1rem 0.9rem; border-left: 3px solid var(--c0);
  background: var(--raised); }}
blockquote p {{ margin: 0.4rem 0; }}
.wide {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; font-size: 0.9rem; width: 100%; }}
th, td {{ padding: 0.28rem 0.9rem 0.28rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }}
.long {{ overflow-wrap: anywhere; min-width: 11rem; }}
.number {{ text-align: right; }} .number, .unbroken {{ white-space: nowrap; width: 1%; }}
th {{ color: var(--soft); font-weight: 600; }}
tr {{ break-inside: avoid; }}
summary {{ cursor: pointer; margin: 0.5rem 0; }}
.settings {{ columns: 17rem; column-gap: 2rem; }}
.settings > div {{ break-inside: avoid; }} .settings h3 {{ margin-top: 0; }}
dl {{ margin: 0 0 1.2rem; font-size: 0.9rem; }}
dl div {{ display: flex; justify-content: space-between; gap: 1rem;
  border-bottom: 1px solid var(--line); padding: 0.15rem 0; }}
dt {{ color: var(--soft); }} dd {{ margin: 0; text-align: right; overflow-wrap: anywhere; }}
@media (max-width: 30rem) {{ table {{ font-size: 0.8rem; }} th, td {{ padding-right: 0.5rem; }}
  svg {{ font-size: 11px; }} .unbroken {{ white-space: normal; }} }}
@media print {{
  :root {{ color-scheme: light; --ink: #000; --soft: #333; --page: #fff; --line: #bbb;
    --track: #e6eaee; --raised: #fff; --link: #000; {_LIGHT} }}
  body {{ font-size: 10.5pt; }} main {{ max-width: none; padding: 0; }} nav {{ display: none; }}
  .wide {{ overflow: visible; }} h2, h3, blockquote {{ break-after: avoid; }}
  .three {{ grid-template-columns: repeat(3, minmax(0, 1fr)); }}
  .figures {{ grid-template-columns: repeat(4, 1fr); }}
  rect, i {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
}}
"""
