"""Full-text articles in JATS, as PubMed Central packs them, from the same records as citations."""

import itertools
import random
import re
from collections.abc import Sequence

from data.sample.expand import say
from data.sample.pubmed import Record
from data.sample.writer import ABSTRACT, BODY, Section, facts_of, people

HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE article PUBLIC "-//NLM//DTD JATS (Z39.96) '
    'Journal Archiving and Interchange DTD v1.2 20190208//EN" "JATS-archivearticle1.dtd">\n'
    '<article xmlns:xlink="http://www.w3.org/1999/xlink" '
    'xmlns:mml="http://www.w3.org/1998/Math/MathML" article-type="research-article">\n'
)
LICENCES = {
    "CC BY": (
        "http://creativecommons.org/licenses/by/4.0/",
        "This is an open access article distributed under the terms of the Creative Commons "
        "Attribution License, which permits unrestricted use, distribution, and reproduction in "
        "any medium, provided the original work is properly cited.",
    ),
    "CC0": (
        "https://creativecommons.org/publicdomain/zero/1.0/",
        "The authors waive all rights under the Creative Commons Public Domain Dedication (CC0).",
    ),
    "CC BY-NC": (
        "http://creativecommons.org/licenses/by-nc/4.0/",
        "This is an open access article under the Creative Commons Attribution-NonCommercial "
        "License, which permits use in any medium, provided it is not for commercial purposes.",
    ),
}
FORMULA = (
    '<disp-formula id="M1"><label>(1)</label><mml:math><mml:mrow><mml:mi>n</mml:mi>'
    "<mml:mo>=</mml:mo><mml:mfrac><mml:mrow><mml:mn>2</mml:mn><mml:msup><mml:mi>\u03c3</mml:mi>"
    "<mml:mn>2</mml:mn></mml:msup><mml:msup><mml:mi>z</mml:mi><mml:mn>2</mml:mn></mml:msup>"
    "</mml:mrow><mml:msup><mml:mi>\u03b4</mml:mi><mml:mn>2</mml:mn></mml:msup></mml:mfrac>"
    "</mml:mrow></mml:math></disp-formula>"
)
EARLIER = 6  # sentences on what the first references found
# Sections of the body: type, title, and for each paragraph the pools with how many at most;
# None says every sentence that the abstract's grammar has for the part.
BODY_PLAN = (
    ("intro", "Introduction", (("background", None), ("intro", 7)), (("intro", 8), ("aim", None))),
    ("methods", "Methods", (("methods", None), ("people", 9)), (("ethics", 1), ("analysis", 8))),
    ("results", "Results", (("overview", 1), ("results", None)), (("results", 11),)),
    (
        "discussion",
        "Discussion",
        (("restart", 1), ("discussion", 12)),
        (("earlier", EARLIER),),
        (("discussion", 13),),
    ),
    ("limits", "Limitations", (("limits_lead", 1), ("limits", 9), ("implications", 3))),
    ("conclusions", "Conclusions", (("conclusion", None), ("implications", 1))),
)


def article(record: Record, licence: str, others: Sequence[Record]) -> bytes:
    """The article of a record that has a PMCID, about 1,000 to 1,800 words of body; its
    references are drawn from `others`."""
    rng = random.Random(record.seed + 1)
    cited = rng.sample(others, rng.randint(18, 28))
    parts = [HEAD, _front(rng, record, licence), "<body>\n"]
    parts += _body(rng, record, cited)
    parts += ["</body>\n", _back(rng, record, cited), "</article>\n"]
    return _jats("".join(parts)).encode()


def _jats(text: str) -> str:
    return re.sub(r"<(/?)i>", r"<\1italic>", text)


def _front(rng: random.Random, record: Record, licence: str) -> str:
    name, short = record.journal
    address, terms = LICENCES[licence]
    authors = people(random.Random(record.seed), 3)
    place = record.study.facts["place"]
    contributors = "".join(
        '<contrib contrib-type="author"><name>'
        f"<surname>{family}</surname><given-names>{given}</given-names></name>"
        '<xref ref-type="aff" rid="aff1">1</xref></contrib>'
        for family, given in authors
    )
    return (
        f'<front><journal-meta><journal-id journal-id-type="nlm-ta">{short}</journal-id>'
        f"<journal-title-group><journal-title>{name}</journal-title></journal-title-group>"
        '<issn pub-type="epub">0000-0000</issn></journal-meta>\n<article-meta>'
        f'<article-id pub-id-type="pmid">{record.pmid}</article-id>'
        f'<article-id pub-id-type="pmc">{record.pmc}</article-id>'
        f'<article-id pub-id-type="doi">10.5555/sample.{record.pmid}</article-id>\n'
        '<article-categories><subj-group subj-group-type="heading"><subject>Research Article'
        "</subject></subj-group></article-categories>\n"
        f"<title-group><article-title>{record.title}</article-title></title-group>\n"
        f'<contrib-group>{contributors}</contrib-group><aff id="aff1"><label>1</label>'
        f"Department of {record.study.area.specialty}, University of {place}</aff>\n"
        f'<pub-date pub-type="epub"><day>{rng.randint(1, 28)}</day><month>{rng.randint(1, 12)}'
        f"</month><year>{record.year}</year></pub-date><volume>{record.year - 1990}</volume>\n"
        f"<permissions><copyright-statement>\u00a9 {record.year} The authors</copyright-statement>"
        f"<copyright-year>{record.year}</copyright-year>"
        f'<license license-type="open-access" xlink:href="{address}"><license-p>{terms}'
        f"</license-p></license></permissions>\n{_abstract(record.sections, record.structured)}"
        f"<kwd-group><kwd>{record.study.facts['disease']}</kwd><kwd>{record.study.area.name}</kwd>"
        "</kwd-group></article-meta></front>\n"
    )


def _abstract(sections: tuple[Section, ...], structured: bool) -> str:
    if structured:
        inside = "".join(
            f"<sec><title>{label.capitalize()}</title><p>{text}</p></sec>"
            for label, _, text in sections
        )
    else:
        inside = f"<p>{' '.join(text for *_, text in sections)}</p>"
    return f"<abstract>{inside}</abstract>\n"


def _body(rng: random.Random, record: Record, cited: Sequence[Record]) -> list[str]:
    study = record.study
    facts = facts_of(rng, study)
    places = itertools.count(EARLIER)
    shared = {
        part: say(rng, ABSTRACT, part, study.tags, facts)
        for part in ("background", "aim", "methods", "results", "conclusion")
    }
    pools = {"earlier": _earlier(rng, cited)}
    parts = []
    for number, (kind, heading, *paragraphs) in enumerate(BODY_PLAN, start=1):
        parts.append(f'<sec id="S{number}" sec-type="{kind}"><title>{heading}</title>\n')
        for plan in paragraphs:
            sentences = []
            for pool, count in plan:
                if count is None:
                    sentences += shared[pool]
                    continue
                if pool not in pools:
                    pools[pool] = _shuffled(rng, study.tags, pool, facts)
                sentences += [pools[pool].pop() for _ in range(min(count, len(pools[pool])))]
            text = re.sub(
                "<cite/>", lambda _: _citation(next(places) % len(cited)), " ".join(sentences)
            )
            parts.append(f"<p>{text}</p>\n")
        if kind == "methods":
            lead = say(rng, BODY, "formula_text", study.tags, facts, 1)[0]
            parts.append(
                f"<sec><title>Sample size</title><p>{lead} {FORMULA} where \u03c3 is the standard "
                "deviation and \u03b4 the difference to be detected "
                '(<xref ref-type="disp-formula" rid="M1">1</xref>).</p></sec>\n'
            )
        if kind == "results":
            parts += [_table(rng, record, facts), _figure(rng, record, facts)]
        parts.append("</sec>\n")
    return parts


def _shuffled(
    rng: random.Random, tags: frozenset[str], pool: str, facts: dict[str, str]
) -> list[str]:
    size = sum(len(s.patterns) for s in BODY if s.applies(pool, tags))
    return say(rng, BODY, pool, tags, facts, size)


def _earlier(rng: random.Random, cited: Sequence[Record]) -> list[str]:
    """What the first references found, each with its own place in the list."""
    sentences = []
    for place, other in enumerate(cited[:EARLIER]):
        facts = facts_of(rng, other.study) | {"cite": _citation(place)}
        sentences += say(rng, BODY, "earlier", other.study.tags, facts, 1)
    return sentences


def _citation(place: int) -> str:
    number = place + 1
    return f'[<xref ref-type="bibr" rid="B{number}">{number}</xref>]'


def _table(rng: random.Random, record: Record, facts: dict[str, str]) -> str:
    head, *rows = record.study.table
    caption = say(rng, BODY, "table_title", record.study.tags, facts, 1)[0]
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<table-wrap id="T1"><label>Table 1</label><caption><p>{caption}.</p></caption>'
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></table-wrap>\n"
    )


def _figure(rng: random.Random, record: Record, facts: dict[str, str]) -> str:
    caption = say(rng, BODY, "caption", record.study.tags, facts, 1)[0]
    return (
        f'<fig id="F1"><label>Figure 1</label><caption><p>{caption}</p></caption>'
        f'<graphic xlink:href="sample-{record.pmc}-g001"/></fig>\n'
    )


def _back(rng: random.Random, record: Record, cited: Sequence[Record]) -> str:
    funding = say(rng, BODY, "funding", record.study.tags, record.study.facts, 1)[0]
    items = []
    for number, other in enumerate(cited, start=1):
        names = "".join(
            f"<name><surname>{family}</surname><given-names>{given[0]}</given-names></name>, "
            for family, given in people(random.Random(other.seed), 2)
        )
        items.append(
            f'<ref id="B{number}"><label>{number}</label>'
            '<mixed-citation publication-type="journal">'
            f"{names}<article-title>{other.title}</article-title>. "
            f"<source>{other.journal[1]}</source> <year>{other.year}</year>;"
            f"<volume>{other.year - 1990}</volume> "
            f'<pub-id pub-id-type="pmid">{other.pmid}</pub-id></mixed-citation></ref>\n'
        )
    return (
        f"<back><ack><p>{funding}</p></ack>\n<ref-list><title>References</title>\n"
        f"{''.join(items)}</ref-list></back>\n"
    )
