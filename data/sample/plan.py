"""Which citations the sample corpus has: the plain ones, and the cases made on purpose.

`records` is the first PubMed file, `update` the second; `generate.py` writes both, and the full
texts of the first records. README.md lists the cases with their numbers.
"""

import dataclasses
import random

from data.sample import study as studies
from data.sample.pubmed import KIND_TYPES, MATHML, Record, source
from data.sample.words import Lexicon
from data.sample.writer import abstract, journal, title

FIRST_PMID, FIRST_PMCID = 90000001, 9000001
CITATIONS = 420  # elements of the first file
ARTICLES = 36  # the first records have full texts
ADDED, UPDATED_PMID = 30, 90000501
RETRACTED, NOTICE = 30, 200  # places in the first file
TWO_VERSIONS = 150  # this place and the next are versions 1 and 2 of one PMID
REPEATS = ((300, 101), (302, 103))  # (place, place whose abstract it repeats)
REVISED = range(40, 415, 15)
LATER_RETRACTED, LATER_NOTICE = 55, 29  # a place of REVISED; a place among the added
DELETED = range(47, 407, 30)

VERNACULAR = {
    "fre": "\u00c9tude de {n} cas observ\u00e9s \u00e0 {place}",
    "ger": "\u00dcber {n} F\u00e4lle aus {place}: Ergebnisse einer pr\u00fcfenden Studie",
    "spa": "Evaluaci\u00f3n de {n} casos: experiencia en {place}",
}
TRANSLATED = {
    "fre": "Nous pr\u00e9sentons une \u00e9tude de {n} observations recueillies \u00e0 {place}. "
    "Les r\u00e9sultats principaux sont d\u00e9crits et compar\u00e9s \u00e0 d'autres centres.",
    "spa": "Se presenta un estudio de {n} casos recogidos en {place}. Se describen los resultados "
    "principales y se comparan con los de otros centros.",
}
NOTES = (
    ("Letter", "Comments on {subject} in {disease}"),
    ("Letter", "{subject} and {disease}: questions about follow-up"),
    ("Editorial", "What is still unknown about {disease}"),
    ("Editorial", "Time to rethink the care of {people} with {disease}"),
    ("Comment", "{disease}: reply to the authors"),
)


def records(rng: random.Random, lexicon: Lexicon) -> list[Record]:
    """The first file, in the order of its PMIDs."""
    found = [_citation(rng, lexicon, place) for place in range(CITATIONS)]
    for place, original in REPEATS:
        found[place] = dataclasses.replace(
            found[place],
            study=found[original].study,
            title=found[original].title,
            sections=found[original].sections,
        )
    first = found[TWO_VERSIONS]
    found[TWO_VERSIONS + 1] = _reworded(rng, first, first.year + 1, version=2)
    _retract(found, RETRACTED, found, NOTICE)
    return found


def update(
    rng: random.Random, lexicon: Lexicon, before: list[Record]
) -> tuple[list[Record], list[int]]:
    """The second file: revisions of records `before` and new ones, and the PMIDs it deletes."""
    revised = [_reworded(rng, before[place], 2025) for place in REVISED]
    first = UPDATED_PMID - FIRST_PMID
    added = [_citation(rng, lexicon, first + place) for place in range(ADDED)]
    _retract(revised, REVISED.index(LATER_RETRACTED), added, LATER_NOTICE)
    return revised + added, [before[place].pmid for place in DELETED]


def _citation(rng: random.Random, lexicon: Lexicon, place: int) -> Record:
    full_text = place < ARTICLES
    kinds = [kind for kind in studies.KINDS if kind != "case" or not full_text]
    study = studies.draw(rng, lexicon, rng.choice(kinds))
    record = Record(
        pmid=FIRST_PMID + place,
        pmc=FIRST_PMCID + place if full_text else None,
        seed=rng.getrandbits(32),
        study=study,
        title=title(rng, study),
        journal=journal(rng, study),
        year=min(int(study.facts["last_year"]) + rng.randint(1, 2), 2024),
        sections=tuple(abstract(rng, study)),
        structured=rng.random() < 0.45,
        markup=full_text or rng.random() < 0.6,
        types=("Journal Article", *KIND_TYPES.get(study.kind, ())),
        medline_date=place % 7 == 3,
        copyright=place % 5 == 2,
    )
    if full_text or place in (*REVISED, *DELETED, TWO_VERSIONS, NOTICE, *sum(REPEATS, ())):
        return record
    return _special(rng, record, place)


def _special(rng: random.Random, record: Record, place: int) -> Record:
    study = record.study
    facts = study.facts
    if place % 9 == 4:
        kind, form = rng.choice(NOTES)
        text = form.format(**facts)
        heading = text if text.startswith("<") else text[0].upper() + text[1:]
        return dataclasses.replace(record, title=heading, types=(kind,), sections=())
    if place % 35 == 11:
        language = ("fre", "ger", "spa")[place // 35 % 3]
        return dataclasses.replace(
            record,
            language=language,
            vernacular=VERNACULAR[language].format(**facts),
            types=(*record.types, "English Abstract"),
        )
    if place % 28 == 17:
        language = ("fre", "spa")[place // 28 % 2]
        other = ("Publisher", language, TRANSLATED[language].format(**facts))
        return dataclasses.replace(record, other=other)
    if place % 80 == 60:
        formula = f"The ratio of proportions was {MATHML} throughout."
        return _longer(record, formula, markup=True)
    if place % 40 == 33:
        return _longer(record, "(ABSTRACT TRUNCATED AT 250 WORDS)", structured=False)
    return record


def _longer(record: Record, text: str, **changes: bool) -> Record:
    *before, (label, category, last) = record.sections
    sections = (*before, (label, category, f"{last} {text}"))
    return dataclasses.replace(record, sections=sections, **changes)


def _reworded(rng: random.Random, record: Record, year: int, version: int = 1) -> Record:
    """The same study with its abstract said in other words."""
    sections = tuple(abstract(rng, record.study))
    return dataclasses.replace(record, sections=sections, revised=year, version=version)


def _retract(there: list[Record], place: int, notices: list[Record], notice: int) -> None:
    """Makes one record retracted and another its notice, each pointing to the other."""
    old, new = there[place], notices[notice]
    there[place] = dataclasses.replace(
        old,
        types=(*old.types, "Retracted Publication"),
        corrections=(("RetractionIn", source(new), new.pmid),),
    )
    notices[notice] = dataclasses.replace(
        new,
        study=old.study,
        title=f"Retraction: {old.title}",
        sections=(),
        types=("Retraction of Publication",),
        corrections=(("RetractionOf", source(old), old.pmid),),
    )
