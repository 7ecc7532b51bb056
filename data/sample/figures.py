"""Figures of an invented study: counts and means of two groups, with the statistics on them.

The statistics are the usual large-sample formulas, so that a percentage, an interval and a p value
always follow from the counts or means beside them. `study.py` uses these for every kind of study.
"""

import math
import random

from data.sample.words import Area

Z95 = 1.96  # standard normal quantile of a two-sided 95 % interval


def two_groups(
    rng: random.Random, area: Area, verdict: str, facts: dict[str, str], scale: int = 1
) -> list[list[str]]:
    n1 = scale * rng.randint(38, 160)
    n2 = n1 + rng.randint(-7, 7) * (1 if scale == 1 else 3 * scale)
    excluded = rng.randint(9, 70) * scale
    lost = rng.randint(2, 9) * scale
    sign = {"better": -1, "same": 0, "worse": 1}[verdict]
    e2 = round(n2 * rng.uniform(0.2, 0.42))
    z = sign * rng.uniform(2.2, 3.6) or rng.uniform(-1.2, 1.2)
    e1 = min(range(1, n1), key=lambda e: abs(_z_of_counts(e, n1, e2, n2) - z))
    ratio = (e1 / n1) / (e2 / n2)
    spread = Z95 * math.sqrt(1 / e1 - 1 / n1 + 1 / e2 - 1 / n2)
    facts |= {
        "n": str(n1 + n2),
        "n1": str(n1),
        "n2": str(n2),
        "screened": str(n1 + n2 + excluded),
        "excluded": str(excluded),
        "completed": str(n1 + n2 - lost),
        "lost": str(lost),
        "women": str(round((n1 + n2) * rng.uniform(0.38, 0.62))),
        "weeks": str(rng.choice([6, 8, 12, 16, 24, 26, 48, 52])),
        "event": rng.choice(area.events),
        "e1": str(e1),
        "e2": str(e2),
        "pc1": f"{100 * e1 / n1:.1f}%",
        "pc2": f"{100 * e2 / n2:.1f}%",
        "ratio": f"{ratio:.2f}",
        "ratio_ci": interval(ratio / math.exp(spread), ratio * math.exp(spread), 2),
        "p_event": p_value(facts, _z_of_counts(e1, n1, e2, n2)),
        "fewer": {"better": "fewer", "same": "as many", "worse": "more"}[verdict],
        "lower": {"better": "lower", "same": "similar", "worse": "higher"}[verdict],
    }
    rows = _means(rng, area, verdict, facts, n1, n2)
    head = ["Characteristic", f"Group 1 (n = {n1})", f"Group 2 (n = {n2})"]
    counts = [facts["event"].capitalize(), f"{e1} ({facts['pc1']})", f"{e2} ({facts['pc2']})"]
    return [head, counts, *rows]


def _means(
    rng: random.Random, area: Area, verdict: str, facts: dict[str, str], n1: int, n2: int
) -> list[list[str]]:
    measure = rng.choice(area.measures)
    good = 1 if measure.better == "higher" else -1
    sign = {"better": good, "same": 0, "worse": -good}[verdict]
    d = measure.decimals
    mean2 = round(rng.uniform(measure.low, measure.high), d)
    sd2 = round(rng.uniform(0.16, 0.24) * mean2, d + 1)
    sd1 = round(sd2 * rng.uniform(0.9, 1.1), d + 1)
    error = math.sqrt(sd1**2 / n1 + sd2**2 / n2)
    z = sign * rng.uniform(2.6, 4.4) or rng.uniform(-1, 1)
    mean1 = round(mean2 + z * error, d + 1)
    diff = round(mean1 - mean2, d + 1)
    facts |= {
        "measure": measure.name,
        "unit": measure.unit,
        "m1": f"{mean1:.{d + 1}f}",
        "m2": f"{mean2:.{d + 1}f}",
        "sd1": f"{sd1:.{d + 1}f}",
        "sd2": f"{sd2:.{d + 1}f}",
        "diff": _signed(f"{diff:.{d + 1}f}"),
        "diff_ci": interval(diff - Z95 * error, diff + Z95 * error, d + 1),
        "p": p_value(facts, diff / error),
        "higher": "no different" if not sign else "higher" if sign > 0 else "lower",
        "improved": {"better": "improved", "same": "did not change", "worse": "worsened"}[verdict],
    }
    ages = [
        f"{int(facts['age']) + rng.uniform(-1, 1):.1f} (SD {rng.uniform(8, 14):.1f})" for _ in "12"
    ]
    return [
        ["Age, years", *ages],
        [
            f"{measure.name.capitalize()}, {measure.unit}",
            f"{facts['m1']} (SD {facts['sd1']})",
            f"{facts['m2']} (SD {facts['sd2']})",
        ],
    ]


def _z_of_counts(e1: int, n1: int, e2: int, n2: int) -> float:
    pooled = (e1 + e2) / (n1 + n2)
    return (e1 / n1 - e2 / n2) / math.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n2))


def p_value(facts: dict[str, str], z: float) -> str:
    p = math.erfc(abs(z) / math.sqrt(2))
    sign, value = ("&lt;", "0.001") if p < 0.001 else ("=", f"{p:.3f}" if p < 0.01 else f"{p:.2f}")
    return facts["p_word"].format(sign, value)


def interval(low: float, high: float, decimals: int) -> str:
    return f"{_signed(f'{low:.{decimals}f}')} to {_signed(f'{high:.{decimals}f}')}"


def _signed(number: str) -> str:
    return number.replace("-", "\u2212") if float(number) else number.lstrip("-")


def share(part: int, total: int) -> str:
    """The percentage with Wilson's interval, which stays within 0 and 100."""
    p, z2 = part / total, Z95**2
    middle = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return f"{100 * p:.1f}% (95% CI {100 * (middle - half):.1f} to {100 * (middle + half):.1f})"
