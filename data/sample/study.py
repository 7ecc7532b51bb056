"""The facts of one invented study: names from `words.py` and numbers that fit each other.

Groups add up to the total, percentages and intervals follow from the counts by the usual large
sample formulas, and numbers are drawn to bear out a verdict (better, same, worse), so that title,
results and conclusion of a text made from the facts agree. `grammar.py` turns facts into text.
"""

import dataclasses
import random
from collections.abc import Callable

from data.sample.figures import interval, p_value, share, two_groups
from data.sample.words import (
    AREAS,
    PROGRAMMES,
    TECHNIQUES,
    TOPICS,
    TOWNS,
    Area,
    Lexicon,
    disease,
)

VERDICTS = ("better", "better", "same", "worse")


@dataclasses.dataclass(frozen=True)
class Study:
    """`facts` fill the slots of sentence patterns; `tags` choose among them; `table` is a header
    row and its body rows, for a full-text article."""

    kind: str
    verdict: str
    area: Area
    facts: dict[str, str]
    table: list[list[str]]

    @property
    def tags(self) -> frozenset[str]:
        return frozenset((self.kind, self.verdict))


def draw(rng: random.Random, lexicon: Lexicon, kind: str) -> Study:
    area = rng.choice(AREAS)
    verdict = rng.choice(VERDICTS)
    year = rng.randint(2004, 2019)
    place, other = rng.sample(TOWNS, 2)
    facts = {
        "disease": disease(rng, area),
        "area": area.name,
        "organ": area.organ,
        "people": rng.choice(["adults", "young adults", "outpatients", "inpatients"]),
        "place": place,
        "other_place": other,
        "year": str(year),
        "last_year": str(year + rng.randint(1, 5)),
        "age": str(rng.randint(34, 71)),
        "sites": rng.choice(["two", "three", "four", "six", "eight"]),
        "drug": rng.choice(lexicon.drugs),
        "gene": rng.choice(lexicon.genes),
        "marker": rng.choice(lexicon.markers),
        "species": rng.choice(lexicon.species),
        "p_word": rng.choice(["<i>P</i> {} {}", "p {} {}", "<i>p</i>{}{}", "P{}{}"]),
    }
    table = KINDS[kind](rng, area, verdict, facts)
    return Study(kind, verdict, area, facts, table)


def _trial(rng: random.Random, area: Area, verdict: str, facts: dict[str, str]) -> list[list[str]]:
    facts["subject"] = facts["drug"]
    facts["control"] = rng.choice(["placebo", "standard treatment", "usual care"])
    facts["dose"] = f"{rng.choice([5, 10, 20, 25, 40, 50, 80, 100, 150])} mg"
    return two_groups(rng, area, verdict, facts)


def _surgery(
    rng: random.Random, area: Area, verdict: str, facts: dict[str, str]
) -> list[list[str]]:
    facts["subject"] = rng.choice(TECHNIQUES)
    facts["control"] = "the standard technique"
    facts["minutes"] = str(rng.randint(55, 140))
    facts["minutes_control"] = str(int(facts["minutes"]) + rng.randint(6, 30))
    facts["blood"] = str(10 * rng.randint(4, 30))
    return two_groups(rng, area, verdict, facts)


def _nursing(
    rng: random.Random, area: Area, verdict: str, facts: dict[str, str]
) -> list[list[str]]:
    facts["subject"] = rng.choice(PROGRAMMES)
    facts["control"] = rng.choice(["usual care", "routine care"])
    return two_groups(rng, area, verdict, facts)


def _cohort(rng: random.Random, area: Area, verdict: str, facts: dict[str, str]) -> list[list[str]]:
    facts["subject"] = rng.choice(
        [
            f"high serum {facts['marker']}",
            f"low dietary {facts['marker']}",
            f"carriage of {facts['species']}",
            f"previous treatment with {facts['drug']}",
        ]
    )
    facts["control"] = "no such exposure"
    facts["years"] = f"{rng.uniform(3, 11):.1f}"
    return two_groups(rng, area, verdict, facts, scale=8)


def _genetics(
    rng: random.Random, area: Area, verdict: str, facts: dict[str, str]
) -> list[list[str]]:
    base, change = rng.choice(["G&gt;A", "C&gt;T", "A&gt;G", "T&gt;C"]), rng.randint(103, 988)
    facts["subject"] = f"the {facts['gene']} c.{change}{base} variant"
    facts["variant"] = f"c.{change}{base}"
    facts["control"] = "controls"
    return two_groups(rng, area, verdict, facts, scale=4)


def _diagnostic(
    rng: random.Random, area: Area, verdict: str, facts: dict[str, str]
) -> list[list[str]]:
    ill, well = rng.randint(48, 190), rng.randint(90, 320)
    low, high = {"better": (0.88, 0.97), "same": (0.68, 0.8), "worse": (0.42, 0.6)}[verdict]
    tp, tn = round(ill * rng.uniform(low, high)), round(well * rng.uniform(low, high))
    facts |= {
        "subject": f"serum {facts['marker']}",
        "control": "the reference standard",
        "n": str(ill + well),
        "ill": str(ill),
        "well": str(well),
        "tp": str(tp),
        "tn": str(tn),
        "fp": str(well - tn),
        "fn": str(ill - tp),
        "cutoff": f"{rng.uniform(2, 48):.1f} ng/mL",
        "sens": share(tp, ill),
        "spec": share(tn, well),
        "ppv": f"{100 * tp / (tp + well - tn):.1f}%",
        "npv": f"{100 * tn / (tn + ill - tp):.1f}%",
        "auc": f"{(tp / ill + tn / well) / 2:.2f}",
        "accuracy": {"better": "high", "same": "moderate", "worse": "poor"}[verdict],
    }
    return [
        ["Index test", "Disease present", "Disease absent"],
        ["Positive", str(tp), str(well - tn)],
        ["Negative", str(ill - tp), str(tn)],
        ["Total", str(ill), str(well)],
    ]


def _imaging(
    rng: random.Random, area: Area, verdict: str, facts: dict[str, str]
) -> list[list[str]]:
    n, lesions = rng.randint(32, 140), rng.randint(60, 210)
    low, high = {"better": (0.9, 0.98), "same": (0.72, 0.82), "worse": (0.4, 0.6)}[verdict]
    seen = round(lesions * rng.uniform(low, high))
    old = seen if verdict == "same" else round(lesions * rng.uniform(0.7, 0.8))
    kappa = rng.uniform(low, high)
    facts |= {
        "subject": rng.choice(
            [
                "low-dose computed tomography",
                "fast magnetic resonance imaging",
                "contrast ultrasound",
                "delayed-phase imaging",
            ]
        ),
        "control": "the conventional protocol",
        "n": str(n),
        "lesions": str(lesions),
        "seen": str(seen),
        "old": str(old),
        "seen_share": share(seen, lesions),
        "old_share": share(old, lesions),
        "kappa": f"{kappa:.2f}",
        "kappa_ci": interval(kappa - 0.07, min(kappa + 0.07, 0.99), 2),
        "agreement": "excellent" if kappa > 0.85 else "good" if kappa > 0.65 else "fair",
        "more": {
            "better": "more lesions than",
            "same": "as many lesions as",
            "worse": "fewer lesions than",
        }[verdict],
        "sign": rng.choice(area.signs),
        "readers": rng.choice(["two", "three", "four"]),
    }
    return [
        ["Protocol", "Lesions detected", "Lesions missed"],
        ["New", str(seen), str(lesions - seen)],
        ["Conventional", str(old), str(lesions - old)],
    ]


def _case(rng: random.Random, area: Area, verdict: str, facts: dict[str, str]) -> list[list[str]]:
    woman = rng.random() < 0.5
    days = rng.randint(2, 21)
    level = rng.uniform(60, 180)
    change = {"better": 0.2, "same": 0.9, "worse": 1.5}[verdict]
    facts |= {
        "subject": facts["drug"],
        "person": "woman" if woman else "man",
        "she": "she" if woman else "he",
        "her": "her" if woman else "his",
        "n": "1",
        "symptom": rng.choice(area.symptoms),
        "sign": rng.choice(area.signs),
        "days": str(days),
        "months": str(rng.randint(3, 24)),
        "level": f"{level:.0f} ng/mL",
        "level_after": f"{level * change:.0f} ng/mL",
        "dose": f"{rng.choice([10, 20, 40, 50])} mg",
        "other_disease": disease(rng, area),
    }
    return [
        ["Day", f"Serum {facts['marker']}, ng/mL", "Reference"],
        ["1", facts["level"][:-6], "&lt; 40"],
        [str(days), facts["level_after"][:-6], "&lt; 40"],
    ]


def _lab(rng: random.Random, area: Area, verdict: str, facts: dict[str, str]) -> list[list[str]]:
    fold = {
        "better": rng.uniform(0.2, 0.6),
        "same": rng.uniform(0.95, 1.05),
        "worse": rng.uniform(1.6, 4),
    }
    mice = rng.randint(6, 14)
    facts |= {
        "subject": f"{facts['gene']}",
        "control": "wild-type littermates",
        "n": str(2 * mice),
        "n1": str(mice),
        "n2": str(mice),
        "fold": f"{fold[verdict]:.1f}",
        "fold_sd": f"{rng.uniform(0.1, 0.3):.1f}",
        "p": p_value(
            facts, {"better": -3.4, "same": 0.6, "worse": 3.7}[verdict] * rng.uniform(0.8, 1.1)
        ),
        "cells": rng.choice(
            ["epithelial cells", "fibroblasts", "macrophages", "endothelial cells"]
        ),
        "lower": {"better": "lower", "same": "unchanged", "worse": "higher"}[verdict],
        "reduced": {"better": "reduced", "same": "did not alter", "worse": "increased"}[verdict],
        "micromolar": str(rng.choice([1, 2, 5, 10, 20])),
    }
    return [
        ["Group", "Animals", f"{facts['marker'].capitalize()}, fold"],
        ["Wild type", str(mice), "1.0"],
        ["Knockout", str(mice), facts["fold"]],
    ]


def _micro(rng: random.Random, area: Area, verdict: str, facts: dict[str, str]) -> list[list[str]]:
    n = rng.randint(80, 420)
    low, high = {"better": (0.02, 0.08), "same": (0.2, 0.35), "worse": (0.5, 0.8)}[verdict]
    resistant = round(n * rng.uniform(low, high))
    blood = round(n * rng.uniform(0.4, 0.6))
    facts |= {
        "subject": f"resistance to {facts['drug']}",
        "n": str(n),
        "resistant": str(resistant),
        "susceptible": str(n - resistant),
        "resistant_share": share(resistant, n),
        "blood": str(blood),
        "wound": str(n - blood),
        "mic50": str(2 ** rng.randint(-1, 1))
        if verdict == "better"
        else str(2 ** rng.randint(2, 4)),
        "mic90": str(2 ** rng.randint(2, 3))
        if verdict == "better"
        else str(2 ** rng.randint(5, 7)),
        "carriers": str(round(resistant * rng.uniform(0.5, 0.95))),
        "rare": {"better": "rare", "same": "moderate", "worse": "common"}[verdict],
    }
    return [
        ["Source", "Isolates"],
        ["Blood", str(blood)],
        ["Wound", str(n - blood)],
        ["Total", str(n)],
    ]


def _kinetics(
    rng: random.Random, area: Area, verdict: str, facts: dict[str, str]
) -> list[list[str]]:
    n = 2 * rng.randint(6, 18)
    dose, peak = rng.choice([5, 10, 20, 50]), rng.uniform(20, 300)
    factor = {"better": 2.0, "same": 1.5, "worse": 2.9}[verdict]
    facts |= {
        "subject": facts["drug"],
        "n": str(n),
        "half": str(n // 2),
        "dose": f"{dose} mg",
        "double": f"{2 * dose} mg",
        "peak": f"{peak:.0f} ng/mL",
        "peak_double": f"{peak * factor:.0f} ng/mL",
        "area_low": f"{peak * 6:.0f}",
        "area_high": f"{peak * 6 * factor:.0f}",
        "half_life": f"{rng.uniform(3, 28):.1f} h",
        "hours": f"{rng.uniform(0.8, 4):.1f} h",
        "proportion": {
            "better": "in proportion to",
            "same": "less than in proportion to",
            "worse": "more than in proportion to",
        }[verdict],
        "events": str(rng.randint(2, n // 2)),
    }
    return [
        ["Dose", "C<sub>max</sub>", "AUC, ng h/mL"],
        [facts["dose"], facts["peak"], facts["area_low"]],
        [facts["double"], facts["peak_double"], facts["area_high"]],
    ]


def _survey(rng: random.Random, area: Area, verdict: str, facts: dict[str, str]) -> list[list[str]]:
    sent = rng.randint(240, 980)
    n = round(sent * rng.uniform(0.42, 0.81))
    low, high = {"better": (0.7, 0.9), "same": (0.45, 0.55), "worse": (0.12, 0.3)}[verdict]
    yes = round(n * rng.uniform(low, high))
    nurses = round(n * rng.uniform(0.5, 0.7))
    odds = rng.uniform(1.5, 3.2)
    facts |= {
        "subject": rng.choice(TOPICS),
        "sent": str(sent),
        "n": str(n),
        "rate": f"{100 * n / sent:.0f}%",
        "yes": str(yes),
        "no": str(n - yes),
        "yes_share": share(yes, n),
        "nurses": str(nurses),
        "physicians": str(n - nurses),
        "odds": f"{odds:.1f}",
        "odds_ci": interval(odds * 0.72, odds * 1.4, 1),
        "most": {"better": "most", "same": "about half of the", "worse": "few"}[verdict],
        "theme": rng.choice(["lack of time", "unclear roles", "poor signage", "missing feedback"]),
        "theme2": rng.choice(["support from colleagues", "local leadership", "short meetings"]),
        "interviews": str(rng.randint(14, 38)),
    }
    return [
        ["Answer", "Respondents"],
        ["Agree", str(yes)],
        ["Do not agree", str(n - yes)],
        ["Total", str(n)],
    ]


def _review(rng: random.Random, area: Area, verdict: str, facts: dict[str, str]) -> list[list[str]]:
    found, doubles = rng.randint(600, 4800), rng.randint(60, 400)
    studies = rng.randint(7, 34)
    trials = rng.randint(3, studies - 2)
    ratio = {
        "better": rng.uniform(0.55, 0.8),
        "same": rng.uniform(0.97, 1.04),
        "worse": rng.uniform(1.3, 1.8),
    }[verdict]
    facts |= {
        "subject": facts["drug"],
        "control": rng.choice(["placebo", "usual care", "other treatment"]),
        "found": str(found),
        "unique": str(found - doubles),
        "doubles": str(doubles),
        "studies": str(studies),
        "trials": str(trials),
        "observational": str(studies - trials),
        "n": str(rng.randint(1200, 9800)),
        "event": rng.choice(area.events),
        "ratio": f"{ratio:.2f}",
        "ratio_ci": interval(ratio * 0.86, ratio * 1.15, 2),
        "i2": f"{rng.randint(8, 78)}%",
    }
    drug, control = facts["drug"], facts["control"]
    facts["lower_than"] = {
        "better": f"lower with {drug} than with {control}",
        "same": f"similar with {drug} and with {control}",
        "worse": f"higher with {drug} than with {control}",
    }[verdict]
    return [
        ["Design", "Studies"],
        ["Randomized trials", str(trials)],
        ["Observational studies", str(studies - trials)],
        ["Total", str(studies)],
    ]


Facts = Callable[[random.Random, Area, str, dict[str, str]], list[list[str]]]
KINDS: dict[str, Facts] = {
    "trial": _trial,
    "surgery": _surgery,
    "nursing": _nursing,
    "cohort": _cohort,
    "genetics": _genetics,
    "diagnostic": _diagnostic,
    "imaging": _imaging,
    "case": _case,
    "lab": _lab,
    "micro": _micro,
    "kinetics": _kinetics,
    "survey": _survey,
    "review": _review,
}
