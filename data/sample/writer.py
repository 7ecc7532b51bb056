"""Abstracts, titles and names of people from the facts of a study: what PubMed records and full
texts have in common. `pubmed.py` and `jats.py` put them into their XML."""

import random
import re

from data.sample import article_grammar, grammar
from data.sample.expand import parse, say
from data.sample.study import Study
from data.sample.words import GIVEN, SURNAMES, TOWNS

ABSTRACT, TITLES = parse(grammar.ABSTRACT), parse(grammar.TITLES)
FINDINGS, BODY = parse(grammar.FINDINGS), parse(article_grammar.BODY)
NO_PEOPLE = ("case",)  # has no methods to describe

# Label, NlmCategory and parts of a structured abstract, as journals have them.
LABELS = (
    (
        ("BACKGROUND", "BACKGROUND", ("background", "aim")),
        ("METHODS", "METHODS", ("methods",)),
        ("RESULTS", "RESULTS", ("results",)),
        ("CONCLUSIONS", "CONCLUSIONS", ("conclusion",)),
    ),
    (
        ("BACKGROUND", "BACKGROUND", ("background",)),
        ("OBJECTIVE", "OBJECTIVE", ("aim",)),
        ("METHODS", "METHODS", ("methods",)),
        ("RESULTS", "RESULTS", ("results",)),
        ("CONCLUSION", "CONCLUSIONS", ("conclusion",)),
    ),
    (
        ("INTRODUCTION", "BACKGROUND", ("background",)),
        ("AIMS", "OBJECTIVE", ("aim",)),
        ("MATERIALS AND METHODS", "METHODS", ("methods",)),
        ("FINDINGS", "RESULTS", ("results",)),
        ("INTERPRETATION", "CONCLUSIONS", ("conclusion",)),
    ),
)
CASE_LABELS = (
    ("BACKGROUND", "BACKGROUND", ("background",)),
    ("CASE PRESENTATION", "METHODS", ("case_report",)),
    ("CONCLUSIONS", "CONCLUSIONS", ("conclusion",)),
)

Section = tuple[str, str, str]  # label, NlmCategory, text as an XML fragment


def facts_of(rng: random.Random, study: Study) -> dict[str, str]:
    """The facts with the main finding among them, as a clause that can follow "that"."""
    found = say(rng, FINDINGS, "finding", study.tags, study.facts)[0]
    known = found.startswith(study.facts["gene"])
    clause = found if known else re.sub(r"^((?:<i>)?)(\w)(?=[a-z])", _small, found)
    return study.facts | {"finding": clause, "cite": "<cite/>"}


def _small(match: re.Match[str]) -> str:
    return match[0] if match[1] else match[2].lower()


def abstract(rng: random.Random, study: Study) -> list[Section]:
    facts, case = facts_of(rng, study), study.kind in NO_PEOPLE
    labels = CASE_LABELS if case else rng.choice(LABELS)
    pools = {"conclusion": ("implications", rng.randint(0, 1))}
    if not case:
        pools |= {"methods": ("people", rng.randint(1, 3)), "results": ("results", 2)}
    sections = []
    for label, category, roles in labels:
        sentences = []
        for role in roles:
            sentences += say(rng, ABSTRACT, role, study.tags, facts)
            pool, count = pools.get(role, ("", 0))
            sentences += say(rng, BODY, pool, study.tags, facts, count) if count else []
            if role == "methods":
                sentences += say(rng, BODY, "analysis", study.tags, facts, 1)
        sections.append((label, category, " ".join(sentences)))
    return sections


def title(rng: random.Random, study: Study) -> str:
    return say(rng, TITLES, "title", study.tags, study.facts)[0]


def people(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Pairs of family and given name."""
    return [(name, rng.choice(GIVEN)) for name in rng.sample(SURNAMES, count)]


def journal(rng: random.Random, study: Study) -> tuple[str, str]:
    """The full title of a journal of the study's field and the short one."""
    town = rng.choice(TOWNS)
    form, short = rng.choice([("{} Journal of {}", "{} J {}"), ("{} Archives of {}", "{} Arch {}")])
    specialty = study.area.specialty
    brief = " ".join(word[:5] for word in specialty.split() if word not in ("and", "of"))
    return form.format(town, specialty), short.format(town, brief)
