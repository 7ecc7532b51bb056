"""The drawings of the data card, as SVG for its page, and how the card writes numbers and names.

Widths are in per cent and heights in pixels, so a drawing fills a phone as it fills a desk and its
letters stay as they are. Colours are classes, which `card_page.STYLE` fills for light and dark with
those of Okabe and Ito, which colour-blind people can tell apart; each is named beside its number.
"""

import math
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

from lxml.builder import ElementMaker

E: Any = ElementMaker()

COLOURS = 8  # of what is lost: classes c1 to c8; c0 is what stays
LONGEST = 300  # characters of a name or a reason from a file
_LABEL = 30  # characters that fit beside a number on a phone
_LOGARITHMIC = 100  # times the least, from which the most would hide it
_ROW = 22
_TICKS = (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000)


class Stage(NamedTuple):
    """name: of what happens. kept: (name, count) of what goes on. lost: of what does not, each."""

    name: str
    kept: list[tuple[str, int]]
    lost: list[tuple[str, int]]

    @property
    def total(self) -> int:
        return sum(count for _, count in [*self.kept, *self.lost])


def written(value: Any, longest: int | None = LONGEST) -> str:
    """For a reader: numbers with thousands separators, text on one line. Control and format
    characters, which may hide or turn around what stands beside them, are shown as U+FFFD."""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.2f}"
    text = " ".join(str(value).split())
    if longest and len(text) > longest:
        text = text[: longest - 1] + "…"
    return "".join("\ufffd" if _hidden(character) else character for character in text)


def _hidden(character: str) -> bool:
    """Also the two that are no characters, which no page may hold."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs") or character in "\ufffe\uffff"


def percent(part: int, whole: int) -> str:
    if not whole:
        return ""
    if 0 < part < whole / 1000:
        return "<0.1%"
    if whole * 0.999 < part < whole:
        return ">99.9%"
    return f"{100 * part / whole:.1f}%"


def bars(values: Sequence[tuple[str, int]], unit: str) -> tuple[Any, bool]:
    """A bar for each value, and whether their lengths are logarithms: where the largest is over
    _LOGARITHMIC times the smallest one."""
    values = [(written(name), number) for name, number in values]
    numbers = [number for _, number in values if number]
    top, low = max(numbers, default=1), min(numbers, default=1)
    logarithmic = top > _LOGARITHMIC * low
    parts = []
    for place, (name, number) in enumerate(values):
        share = number / top
        if logarithmic and number:
            # The smallest has a tenth of the width: its logarithm is no zero to begin at.
            share = 0.1 + 0.9 * math.log(number / low) / math.log(top / low)
        y = place * 2 * _ROW
        parts += [
            _text(0, y + 15, _short(name)),
            _text(100, y + 15, f"{number:,} {unit}", "end"),
            _rect(0, y + 22, 100, 12, "track"),
            _rect(0, y + 22, 100 * share, 12, "c0", f"{name}: {number:,} {unit}"),
        ]
    described = "; ".join(f"{name}: {number:,} {unit}" for name, number in values)
    return _drawing(len(values) * 2 * _ROW, described, parts), logarithmic


def columns(values: dict[int, int], unit: str) -> Any:
    """A column for each year from the first to the last, also those with nothing."""
    first, last, top = min(values), max(values), max([*values.values(), 1])
    height, width = 200, 100 / (last - first + 1)
    parts = []
    step = 10 ** math.floor(math.log10(top))
    step = next(s for s in (step // 2 or 1, step, 2 * step, 5 * step) if top / s <= 5)
    for level in range(0, top + 1, step):
        y = 20 + height - height * level / top
        parts += [_rect(0, y, 100, 1, "track"), _text(0, y - 4, f"{level:,}" if level else "")]
    for year in range(first, last + 1):
        number = values.get(year, 0)
        tall = height * number / top
        place = (year - first) * width
        note = f"{year}: {number:,} {unit}"
        parts.append(_rect(place + 0.1 * width, 20 + height - tall, 0.8 * width, tall, "c0", note))
    apart = next((s for s in _TICKS if (last - first) / s <= 6), _TICKS[-1])
    for year in range(first + -first % apart, last + 1, apart):
        place = (year - first + 0.5) * width
        anchor = "start" if place < 5 else "end" if place > 95 else "middle"
        parts.append(_text(place, height + 38, str(year), anchor))
    peak = max(values, key=lambda year: (values[year], year))
    described = f"{unit} by year from {first} to {last}, most in {peak}: {top:,}"
    return _drawing(height + 46, described, parts)


def flow(stages: Sequence[Stage]) -> Any:
    """Stages below each other, all to the scale of the first: a bar of what came in, cut into what
    goes on, which reaches down to the next bar, and what is lost."""
    whole = max(stages[0].total, 1)
    parts, words, y = [], [], 0
    for place, stage in enumerate(stages):
        ends = [(n, c, f"c{i % 2 * 8}") for i, (n, c) in enumerate(stage.kept)]
        ends += [(written(n), c, f"c{1 + i % COLOURS}") for i, (n, c) in enumerate(stage.lost)]
        rows = len(ends) * _ROW
        if place + 1 < len(stages):
            wide = 100 * stage.kept[0][1] / whole
            parts.append(_rect(0, y + 50, wide, rows + 42, "ribbon"))
        parts += [_text(0, y + 16, stage.name, strong=True),
                  _text(100, y + 16, f"{stage.total:,}", "end", strong=True)]  # fmt: skip
        begin = 0.0
        for row, (name, count, colour) in enumerate(ends):
            wide = 100 * count / whole
            label = f"{name}: {count:,}"
            parts.append(_rect(begin, y + 26, wide, 24, f"{colour} cut", label))
            begin += wide
            line = y + 70 + row * _ROW
            # The swatch is as far from the edge on every screen.
            parts += [
                E.rect({"x": "6", "y": f"{line - 11}", "width": "12", "height": "12",
                        "class": colour}),
                E.text({"x": "26", "y": f"{line}"}, name),
                _text(100, line, f"{count:,}  ({percent(count, stage.total)})", "end"),
            ]  # fmt: skip
        words.append(
            f"{stage.name} {stage.total:,}: " + ", ".join(f"{n} {c:,}" for n, c, _ in ends)
        )
        y += 92 + rows
    return _drawing(y - 24, "; ".join(words), parts)


def _short(name: str) -> str:
    return name if len(name) <= _LABEL else name[: _LABEL - 1] + "…"


def _drawing(height: int, described: str, parts: list[Any]) -> Any:
    attributes = {"width": "100%", "height": str(height), "role": "img", "aria-label": described}
    return E.svg(attributes, *parts)


def _rect(x: float, y: float, width: float, height: float, kind: str, note: str = "") -> Any:
    """x, width: per cent. y, height: pixels. note: shown where a pointer rests."""
    found = E.rect({"x": f"{x:.3f}%", "y": f"{y:.1f}", "width": f"{width:.3f}%",
                    "height": f"{height:.1f}", "class": kind})  # fmt: skip
    if note:
        found.append(E.title(note))
    return found


def _text(x: float, y: float, text: str, anchor: str = "start", strong: bool = False) -> Any:
    attributes = {"x": f"{x:.3f}%", "y": f"{y:.1f}", "text-anchor": anchor}
    return E.text(attributes | ({"class": "strong"} if strong else {}), text)
