"""The drawings of scores, as SVG in the form of `reports/charts.py`: bars with intervals, and what
confidence is worth."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from biomedlm_jax.reports.charts import E, label, percent, rect, written

_ROW = 36  # pixels of a bar with its name
_TICKS = (0, 25, 50, 75, 100)


class Bar(NamedTuple):
    """value, low, high: shares; low and high are None where no interval is known. told: the value
    in per cent, as it is written. colour: as of a `charts.Curve`."""

    name: str
    value: float
    told: str
    low: float | None
    high: float | None
    colour: int


def bars(values: Sequence[Bar], rules: Sequence[tuple[str, float]]) -> Any:
    """Bars from 0 to 100 %, each with its interval.

    rules: (name, share) of a dashed line through all bars, such as chance.
    """
    top = 18 if rules else 0
    bottom = top + _ROW * len(values)
    parts = []
    for place, bar in enumerate(values):
        y = top + place * _ROW
        told = bar.told
        if bar.low is not None and bar.high is not None:
            told += f"  ({100 * bar.low:.1f} to {100 * bar.high:.1f})"
        name = written(bar.name, 60)
        parts += [
            label(0, y + 14, name, "start"),
            label(100, y + 14, told, "end"),
            rect(0, y + 19, 100, 11, "track"),
            rect(0, y + 19, 100 * bar.value, 11, f"c{bar.colour}", f"{name}: {told} %"),
        ]
        if bar.low is not None and bar.high is not None:
            low, high = 100 * max(bar.low, 0), 100 * min(bar.high, 1)  # Student's may be wider
            parts += [_line(low, y + 24.5, high, y + 24.5, "whisker")]
            parts += [_line(x, y + 21, x, y + 28, "whisker") for x in (low, high)]
        # Not through the names.
        parts += [_line(100 * x, y + 17, 100 * x, y + 33, "dashed") for _, x in rules]
    for name, share in rules:
        anchor = "start" if share < 0.5 else "end"
        parts.append(label(100 * share, 10, f"{name} {100 * share:.1f}", anchor))
    for tick in _TICKS:
        anchor = "start" if tick == 0 else "end" if tick == 100 else "middle"
        parts.append(label(tick, bottom + 14, f"{tick} %", anchor))
    said = "; ".join(f"{bar.name}: {bar.told} %" for bar in values)
    return _drawing(bottom + 20, said, parts)


def calibration(bins: Sequence[dict[str, Any]]) -> Any:
    """A column for each bin of confidence, as high as the share that is right; a line at its mean
    confidence, which is near the diagonal; and below, how many of the items are in it.

    bins: of `measures.Bin`.
    """
    height, below = 200, 44
    whole = sum(each["items"] for each in bins)
    most = max(each["items"] for each in bins)
    left = [label(100, 8 + height * (1 - tick / 100) + 4, f"{tick}%", "end") for tick in _TICKS]
    right = [rect(0, 8 + height * (1 - tick / 100), 100, 1, "track") for tick in _TICKS]
    for each in bins:
        x, wide = 100 * each["low"], 100 * (each["high"] - each["low"])
        tall = height * each["accuracy"]
        note = (
            f"confidence {100 * each['confidence']:.1f} %, right {100 * each['accuracy']:.1f} %, "
            f"{each['items']:,} items"
        )
        right.append(rect(x + 0.06 * wide, 8 + height - tall, 0.88 * wide, tall, "c0", note))
        y = 8 + height * (1 - each["confidence"])
        right.append(_line(x + 0.06 * wide, y, x + 0.94 * wide, y, "told"))
        share = max(below * each["items"] / most, 1)
        top = height + 34 + below - share
        right.append(rect(x + 0.06 * wide, top, 0.88 * wide, share, "c7", note))
    right.append(_line(0, 8 + height, 100, 8, "dashed"))
    left.append(label(100, height + 34 + below, "items", "end"))
    for tick in _TICKS:
        anchor = "start" if tick == 0 else "end" if tick == 100 else "middle"
        right.append(label(tick, height + 24, f"{tick}%", anchor))
    said = "; ".join(
        f"confidence {100 * each['confidence']:.0f} %: {100 * each['accuracy']:.0f} % right of "
        f"{percent(each['items'], whole)} of the items" for each in bins
    )  # fmt: skip
    sides = [
        E.svg({"width": "100%", "height": str(height + 40 + below)}, *side)
        for side in (left, right)
    ]
    return E.div({"class": "plot", "role": "img", "aria-label": said}, *sides)


def key(names: Sequence[tuple[str, int]]) -> Any:
    """(name, colour) of what bars mean."""
    spans = (E.span(E.i({"class": f"b{colour}"}), written(name)) for name, colour in names)
    return E.div({"class": "legend"}, *spans)


def _drawing(height: float, said: str, parts: Sequence[Any]) -> Any:
    attributes = {"width": "100%", "height": f"{height:.0f}", "role": "img"}
    return E.svg(attributes | {"aria-label": written(said, None)}, *parts)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Any:
    """x: per cent. y: pixels."""
    place = {"x1": f"{x1:.3f}%", "y1": f"{y1:.1f}", "x2": f"{x2:.3f}%", "y2": f"{y2:.1f}"}
    return E.line(place | {"class": kind})
