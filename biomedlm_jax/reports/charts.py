"""The drawings of a report, as SVG, and how it writes numbers and text.

Widths are in per cent and heights in pixels, so a drawing fills a phone as it fills a desk and its
letters stay as they are; curves are stretched, their strokes are not. A pointer that rests on a
chart is shown the numbers there. Colours are classes, which `page.STYLE` fills for light and dark
with those of Okabe and Ito, which colour-blind people can tell apart.
"""

import bisect
import math
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lxml.builder import ElementMaker

from biomedlm_jax.reports.record import Points

E: Any = ElementMaker()

LONGEST = 300  # characters of a name or a reason
_POINTS = 400  # of a curve; beyond, each is the mean of several, in a band from least to most
_WIDE = 1000  # units of a plot's own width
_SMALLEST = 1e-30  # of 1 and of the largest, on a logarithmic scale
_ROW = 18  # pixels of a row of events


class Curve(NamedTuple):
    """colour: 0 to 8. dots: each point is marked, and none is averaged with others."""

    name: str
    points: Points
    colour: int
    dots: bool = False


def written(value: Any, longest: int | None = LONGEST) -> str:
    """For a reader: text on one line. Control and format characters, which may hide or turn around
    what stands beside them, are shown as U+FFFD."""
    if type(value) is int:
        return f"{value:,}"
    if type(value) is float:
        return number(value)
    text = " ".join(str(value).split())
    if longest and len(text) > longest:
        text = text[: longest - 1] + "…"
    hidden = ("Cc", "Cf", "Cs")  # and the two that are no characters, which no page may hold
    return "".join(
        "\ufffd" if unicodedata.category(x) in hidden or x in "\ufffe\uffff" else x for x in text
    )


def number(value: float) -> str:
    """Four digits: 0.9134, 12,340, 3e-4, 2.7 B."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    for unit, name in ((1e12, " T"), (1e9, " B"), (1e6, " M")):
        if size >= unit:
            return f"{value / unit:.4g}{name}"
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 0.001 or not size:
        return f"{value:.4g}"
    digits, power = f"{value:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"


def percent(part: float, whole: float = 1.0) -> str:
    share = 100 * part / whole if whole else 0.0
    return "<0.1%" if 0 < share < 0.1 else f"{share:.1f}%"


def plot(
    curves: Sequence[Curve],
    end: int,
    *,
    height: int = 240,
    logarithmic: bool = False,
    form: Callable[[float], str] = number,
    rules: Sequence[int] = (),
    rows: Sequence[tuple[str, Sequence[int], int]] = (),
) -> Any:
    """Curves over the steps 0 to `end`.

    logarithmic: the scale of values, where all are positive and none is next to nothing.
    rules: steps with a line from top to bottom.
    rows: (name, steps, colour) of what is marked below the plot.
    """
    curves = [curve for curve in curves if curve.points]
    values = [value for curve in curves for _, value in curve.points]
    logarithmic = logarithmic and min(values) > _SMALLEST * max(1.0, *values)
    low, high, ticks = _scale(min(values), max(values), logarithmic, height)
    end = max(end, 1, *(curve.points[-1][0] for curve in curves))

    def y(value: float) -> float:
        if logarithmic:
            return height * math.log(high / value) / math.log(high / low)
        return height * (high - value) / (high - low)

    left = [label(100, 8 + y(tick) + 4, form(tick), "end") for tick in ticks]
    right = [rect(0, 8 + y(tick), 100, 1, "track") for tick in ticks]
    right += [rect(100 * step / end, 8, 0, height, "rule") for step in rules]
    lines = [line for curve in curves for line in _drawn(curve, end, y)]
    stretched = {"x": "0", "y": "8", "width": "100%", "height": str(height)}
    stretched |= {"viewBox": f"0 0 {_WIDE} {height}", "preserveAspectRatio": "none"}
    right.append(E.svg(stretched, *lines))
    below = height + 8
    for place, (name, steps, colour) in enumerate(rows):
        top = below + 8 + place * _ROW
        left.append(label(100, top + 11, name, "end"))
        right.append(rect(0, top, 100, _ROW - 4, "track"))
        for step in _thinned(steps, end):
            right.append(_tick(100 * step / end, top, _ROW - 4, colour))
    bottom = below + (8 + len(rows) * _ROW if rows else 0)
    right += _steps(end, bottom, most=5 if height > 200 else 2)
    right += _notes(curves, end, height, form)
    parts = [f"{c.name} from {form(c.points[0][1])} to {form(c.points[-1][1])}" for c in curves]
    parts += [f"{name} at {len(steps)} steps" for name, steps, _ in rows if steps]
    described = {
        "class": "plot marked" if rows else "plot",
        "role": "img",
        "aria-label": "; ".join(parts),
    }
    names = [E.svg({"width": "100%", "height": str(bottom + 24)}, *side) for side in (left, right)]
    return E.div(described, *names)


def legend(curves: Sequence[Curve]) -> Any:
    keys = (E.span(E.i({"class": f"b{c.colour}"}), written(c.name)) for c in curves if c.points)
    return E.div({"class": "legend"}, *keys)


def columns(values: dict[int, float], unit: str) -> Any:
    """A column for each year from the first to the last, from zero."""
    first, last, top = min(values), max(values), max([*values.values(), 1e-9])
    width, height, parts = 100 / (last - first + 1), 160, []
    for year in range(first, last + 1):
        place = (year - first) * width
        if year in values:
            tall, note = height * values[year] / top, f"{year}: {number(values[year])} {unit}"
            parts.append(
                rect(place + 0.1 * width, 20 + height - tall, 0.8 * width, tall, "c0", note)
            )
            if width > 8:
                parts.append(label(place + width / 2, 14 + height - tall, f"{values[year]:.3f}"))
        if (year - first) % max(1, math.ceil((last - first) / 10)) == 0:
            parts.append(label(place + width / 2, height + 38, str(year)))
    described = "; ".join(f"{year}: {number(value)} {unit}" for year, value in values.items())
    return E.svg(
        {"width": "100%", "height": str(height + 46), "role": "img", "aria-label": described},
        *parts,
    )


def bars(values: Sequence[tuple[str, float, str]], colours: bool = False) -> Any:
    """(name, value, how the value is written) each with a bar from zero; with `colours`, before
    them one bar of all, cut into them."""
    values = [(written(name, 60), value, text) for name, value, text in values]
    top, whole = max([*(v for _, v, _ in values), 1e-9]), sum(v for _, v, _ in values)
    parts, y, begin = [], 0, 0.0
    if colours:
        for place, (name, value, text) in enumerate(values):
            wide = 100 * value / max(whole, 1e-9)
            parts.append(rect(begin, 0, wide, 30, f"c{place} cut", f"{name}: {text}"))
            begin += wide
        y = 44
    for place, (name, value, text) in enumerate(values):
        if colours:
            swatch = {"x": "0", "y": str(y + 4), "width": "12", "height": "12"}
            parts += [E.rect(swatch | {"class": f"c{place}"}), E.text({"x": "20", "y": str(y + 15)},
                      name), label(100, y + 15, text, "end")]  # fmt: skip
            y += 24
        else:
            parts += [label(0, y + 15, name, "start"), label(100, y + 15, text, "end"),
                      rect(0, y + 22, 100, 10, "track"),
                      rect(0, y + 22, 100 * value / top, 10, "c0", f"{name}: {text}")]  # fmt: skip
            y += 42
    described = "; ".join(f"{name}: {text}" for name, _, text in values)
    return E.svg(
        {"width": "100%", "height": str(y), "role": "img", "aria-label": described}, *parts
    )


def _scale(
    low: float, high: float, logarithmic: bool, height: int
) -> tuple[float, float, list[float]]:
    """Ends of the axis, and the values that it names."""
    most = max(2, height // 45)
    if logarithmic and high > 5 * low:
        low, high = low / (high / low) ** 0.04, high * (high / low) ** 0.04
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digits in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            ticks = [d * 10.0**p for p in powers for d in digits if low <= d * 10.0**p <= high]
            if len(ticks) <= most + 1:
                return low, high, ticks
        return low, high, ticks[:: math.ceil(len(ticks) / most)]
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    floor = max(low - room, low / 2) if logarithmic else low - room  # a logarithm needs it above 0
    bottom = 0.0 if low >= 0 and not logarithmic and low < 0.3 * high else floor
    top = high + room
    return bottom, top, _round_values(bottom, top, most)


def _round_values(low: float, high: float, most: int) -> list[float]:
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(s * step for s in (1, 2, 2.5, 5, 10, 20) if (high - low) / (s * step) <= most)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [float(f"{step * place:.12g}") for place in range(first, last + 1)]


def _drawn(curve: Curve, end: int, y: Callable[[float], float]) -> list[Any]:
    def at(points: Points) -> str:
        return " ".join(f"{_WIDE * step / end:.1f},{y(value):.1f}" for step, value in points)

    parts, points = [], curve.points
    if len(points) > _POINTS and not curve.dots:
        size = math.ceil(len(points) / _POINTS)
        bins = [points[first : first + size] for first in range(0, len(points), size)]
        middle = [part[len(part) // 2][0] for part in bins]
        most = [max(v for _, v in part) for part in bins]
        least = [min(v for _, v in part) for part in bins]
        edge = [*zip(middle, most, strict=True), *list(zip(middle, least, strict=True))[::-1]]
        parts.append(E.polygon({"points": at(edge), "class": f"c{curve.colour} band"}))
        means = [sum(v for _, v in part) / len(part) for part in bins]
        points = list(zip(middle, means, strict=True))
    if len(points) > 1:
        parts.append(E.polyline({"points": at(points), "class": f"s{curve.colour} line"}))
    if curve.dots or len(points) == 1:
        places = (f"{_WIDE * step / end:.1f} {y(value):.1f}" for step, value in points)
        marks = " ".join(f"M {place} h 0" for place in places)
        parts.append(E.path({"d": marks, "class": f"s{curve.colour} line dots"}))
    return parts


def _notes(
    curves: Sequence[Curve], end: int, height: int, form: Callable[[float], str]
) -> list[Any]:
    """Invisible columns, each with the numbers nearest to its middle."""
    most = max(len(curve.points) for curve in curves)
    count = min(most, 60 if height > 150 else 24)
    width, parts = 100 / count, []
    steps = [[step for step, _ in curve.points] for curve in curves]
    for place in range(count):
        middle, words = (place + 0.5) * end / count, []
        for curve, known in zip(curves, steps, strict=True):
            right = bisect.bisect(known, middle)
            near = curve.points[max(0, right - 1) : right + 1]
            step, value = min(near, key=lambda point: abs(point[0] - middle))
            if abs(step - middle) <= max(end / count, end / most):
                words.append(f"{curve.name} {form(value)} (step {step:,})")
        if words:
            parts.append(rect(place * width, 8, width, height, "note", "\n".join(words)))
    return parts


def _steps(end: int, y: float, most: int) -> list[Any]:
    """Round numbers of steps, below the plot."""
    parts = []
    for step in _round_values(0, end, most):
        if step == int(step):
            place = 100 * step / end
            anchor = "start" if place < 4 else "end" if place > 96 else "middle"
            parts.append(label(place, y + 18, f"{int(step):,}", anchor))
    return parts


def _thinned(steps: Sequence[int], end: int) -> list[int]:
    """One of those that would be drawn in one place."""
    return sorted({round(300 * step / end): step for step in steps if step <= end}.values())


def _tick(x: float, y: float, height: float, colour: int) -> Any:
    found = rect(x, y, 0, height, f"c{colour}")
    found.set("width", "3")
    found.set("transform", "translate(-1.5 0)")
    return found


def rect(x: float, y: float, width: float, height: float, kind: str, note: str = "") -> Any:
    """x, width: per cent; no width is a pixel. y, height: pixels. note: shown to a pointer."""
    found = E.rect({"x": f"{x:.3f}%", "y": f"{y:.1f}", "width": f"{width:.3f}%" if width else "1",
                    "height": f"{height:.1f}", "class": kind})  # fmt: skip
    if note:
        found.append(E.title(note))
    return found


def label(x: float, y: float, text: str, anchor: str = "middle") -> Any:
    return E.text({"x": f"{x:.3f}%", "y": f"{y:.1f}", "text-anchor": anchor}, text)
