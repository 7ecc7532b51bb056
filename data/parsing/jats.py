"""Full articles of PubMed Central in JATS, the XML of its open-access archives.

An article becomes its title, abstract and body: section titles, paragraphs, list items, the
captions of figures, and formulas where they are given as MathML. Left out are tables with their
captions and notes, the figures themselves, supplementary files, footnotes, the bibliography,
formulas that exist as TeX or as a picture only, and everything behind the body. The licence is
read here too; whether it suffices is decided by OPEN_LICENCES.

Namespaces do not matter. Articles come alone, in an answer of PMC's OAI service, or in a set as
efetch returns it.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import IO, Any

import lxml.etree as etree

from data.parsing.markup import SAFELY, MarkupError, Unreadable, collapse, plain, tag

ROOTS = ("article", "OAI-PMH", "pmc-articleset")
LARGEST = 32 << 20  # bytes of a file; it is read as a whole, and its tree is some times larger
MOST_TAGS = 2_000_000
OPEN_LICENCES = ("CC-BY", "CC0/public domain")

_LEFT_OUT = {
    "table-wrap",
    "table-wrap-group",
    "table",
    "table-wrap-foot",
    "fn",
    "fn-group",
    "ref-list",
    "supplementary-material",
    "inline-supplementary-material",
    "graphic",
    "inline-graphic",
    "media",
    "tex-math",
    "object-id",
    "alt-text",
    "long-desc",
    "sec-meta",
    "label",
    "permissions",
}
# Elements that stand between paragraphs, even where the publisher put them into one.
_BLOCKS = {
    "sec",
    "p",
    "list",
    "list-item",
    "def-list",
    "def-item",
    "disp-quote",
    "boxed-text",
    "statement",
    "fig",
    "fig-group",
    "floats-group",
    "caption",
    "verse-group",
    "speech",
}
_FLOATS = {"fig", "fig-group", "boxed-text"}

# JATS gives two letters and "en" where it gives none (a default of its DTD), PubMed gives three.
_LANGUAGES = {"en": "eng", "es": "spa", "fr": "fre", "de": "ger", "pt": "por", "it": "ita"}
_PMCIDS = ("pmcid", "pmc", "pmcaid", "pmcid-ver")  # PMC's own names for it over the years
_PMCID = re.compile(r"(?:PMC)?(\d{1,18})(?:\.\d+)?")
_XLINK = "http://www.w3.org/1999/xlink"
# A notice is an article of its own; the retracted one is marked by PMC with a link to it, by some
# publishers in the title alone.
_NOTICES = ("retraction", "withdrawal")
_RETRACTED_BY = {"retraction-forward", "retracted-by", "retraction"}
_TAKEN_BACK = ("retracted-article", "withdrawn-article")
_RETRACTED_TITLE = re.compile(r"\W*(?:retracted|withdrawn)(?:\s+article)?\s*[:\]]", re.IGNORECASE)
_XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"

_DATE = re.compile(r"\d{4}-\d\d-\d\d")  # oa_comm_xml.incr.2025-01-31.tar.gz
_CODE = re.compile(r"creativecommons\.org/(?:licen[sc]es?|publicdomain)/([a-z-]+)")
_OPEN_CODES = {"by", "zero", "mark", "publicdomain"}
_ATTRIBUTION = re.compile(r"creative commons (?:by )?attribution|\bcc[ -]by\b")
# A mention of commerce or derivatives closes the licence unless it is one of the known phrases that
# permit it: articles with a CC-BY link exist whose words forbid commercial use.
_PERMITTED = re.compile(
    r"even commercially|for commercial use, provided|other commercial organizations"
)
_FORBIDDEN = re.compile(r"commercial|not for profit|no.?deriv|share.?alike|\bnc\b|\bnd\b")


@dataclasses.dataclass(frozen=True)
class Article:
    pmcid: int
    version: int
    pmid: int | None
    doi: str | None
    date: str  # of first publication: "2015-03-07", "2015-03", "2015" or ""
    language: str
    licence: str
    journal: str
    types: tuple[str, ...]  # JATS's article-type, as it stands
    text: str  # paragraphs joined by empty lines; empty without abstract and body
    retracted: bool
    retraction_notice: bool
    retracts: tuple[int, ...]  # PMIDs that a notice names


def release_order(name: str) -> tuple[str, str]:
    """Sorts archives by the date in their names; loose files and undated archives are oldest."""
    found = _DATE.search(name)
    return found[0] if found else "", name


@dataclasses.dataclass(frozen=True)
class Withdrawal:
    """PMC's OAI service says that an article is no longer there."""

    pmcid: int


def articles(stream: IO[bytes]) -> Iterator[Article | Withdrawal | Unreadable]:
    """The articles of a file with one of ROOTS, and what could not be read."""
    source = stream.read(LARGEST + 1)
    if len(source) > LARGEST or source.count(b"<") > MOST_TAGS:
        size = f"over {LARGEST} bytes or {MOST_TAGS} tags"
        yield Unreadable("article", f"{size}; what holds several articles can be divided")
        return
    try:
        root = _root(source)
    except ValueError as error:
        yield Unreadable("article", str(error))
        return
    if tag(root) == "article":
        yield _or_unreadable(root, "article")
        return
    if tag(root) not in ROOTS:
        yield Unreadable("article", f"root element is {tag(root)}, not article")
        return
    number, answers = 0, 0
    for element in root.iter("article", "header", "error", "Reply"):
        answers += 1
        if tag(element) == "article":
            number += 1
            yield _or_unreadable(element, f"article {number}")
        elif tag(element) != "header":
            said = element.get("error") or collapse(element.text or "")
            yield Unreadable(f"answer {answers}", f"PMC answered with an error: {said}")
        elif element.get("status") == "deleted":
            id = element.findtext("identifier") or ""
            if found := re.search(r":(\d{1,18})$", id):
                yield Withdrawal(int(found[1]))
            else:
                yield Unreadable(f"record {id}", "deleted by PMC, but it is not said which")
    if not answers:
        yield Unreadable("start", "no article in it")


def read(source: bytes) -> Article:
    """The article of a file.

    Raises:
      MarkupError: broken XML, another root element, no PMCID, an undefined entity.
    """
    root = _root(source)
    if tag(root) != "article":
        raise MarkupError(f"root element is {tag(root)}, not article")
    return _article(root)


def _root(source: bytes) -> Any:
    try:
        root = etree.fromstring(source, etree.XMLParser(**SAFELY))
    except etree.XMLSyntaxError as error:
        raise MarkupError(f"broken XML: {error.msg}") from error
    if root.tag[0] == "{" or len(root.nsmap) > 0:
        for element in root.iter("{*}*"):
            element.tag = tag(element)
    return root


def _or_unreadable(element: Any, position: str) -> Article | Unreadable:
    try:
        return _article(element)
    except ValueError as error:  # MarkupError, or a name that lxml does not take
        return Unreadable(position, str(error))


def _article(root: Any) -> Article:
    meta = root.find("front/article-meta")
    if meta is None:
        raise MarkupError("no front/article-meta")
    ids = {e.get("pub-id-type"): collapse(e.text or "") for e in meta.iterfind("article-id")}
    found = (_PMCID.fullmatch(ids.get(name, "")) for name in _PMCIDS)
    pmcid = next((match[1] for match in found if match), None)
    if pmcid is None:
        raise MarkupError("no article-id of type pmc, pmcid or pmcaid")
    version = re.fullmatch(r"PMC\d+\.(\d{1,9})", ids.get("pmcid-ver", ""))
    pmid = ids.get("pmid", "")
    language = (root.get(_XML_LANG) or "en").lower()
    kind = root.get("article-type") or ""
    related = meta.findall("related-article")
    relations = {e.get("related-article-type") for e in related}
    title = meta.find("title-group/article-title")
    journal = root.find("front/journal-meta//journal-title")
    return Article(
        pmcid=int(pmcid),
        version=int(version[1]) if version else 1,
        pmid=int(pmid) if re.fullmatch("[0-9]{1,18}", pmid) else None,
        doi=ids.get("doi"),
        date=_date(meta),
        language=_LANGUAGES.get(language, language),
        licence=licence(meta.find("permissions")),
        journal="" if journal is None else plain(journal),
        types=(kind,) if kind else (),
        text=_text(root, meta),
        retracted=kind == "retracted-article"
        or bool(relations & _RETRACTED_BY)
        or bool(title is not None and _RETRACTED_TITLE.match(plain(title))),
        retraction_notice=kind in _NOTICES,
        retracts=_retracts(related) if kind in _NOTICES else (),
    )


def _retracts(related: list[Any]) -> tuple[int, ...]:
    """PMIDs of the articles that a notice takes back, where it gives them."""
    links = (
        e.get(f"{{{_XLINK}}}href") or ""
        for e in related
        if e.get("related-article-type") in _TAKEN_BACK and e.get("ext-link-type") == "pubmed"
    )
    return tuple(int(link) for link in links if re.fullmatch(r"\d{1,18}", link))


def licence(permissions: Any) -> str:
    """The class of a licence, from all words and links of the article's <permissions>.

    "CC-BY" and "CC0/public domain" (dedications and the public-domain mark) are open. Others are
    the code of a closed Creative Commons licence ("CC-BY-NC"), "restricted in words" (calls itself
    attribution or public domain, but speaks of commerce or derivatives) and "unknown".
    """
    if permissions is None:
        return "unknown"
    links = [value for e in permissions.iter() for value in e.attrib.values()]
    words = " ".join([*permissions.itertext(), *links])
    words = collapse(words).lower()
    codes = set(_CODE.findall(words))
    if closed := sorted(codes - _OPEN_CODES):
        return "CC-" + max(closed, key=len).upper()
    attribution = "by" in codes or _ATTRIBUTION.search(words)
    if not (attribution or codes or "public domain" in words):
        return "unknown"
    if _FORBIDDEN.search(_PERMITTED.sub("", words)):
        return "restricted in words"
    return "CC-BY" if attribution else "CC0/public domain"


def _date(meta: Any) -> str:
    """Of the first publication, as far as it is known; PMC's own release can be years later."""
    dates = [_iso(d) for d in meta.iterfind("pub-date") if d.get("pub-type") != "pmc-release"]
    years = [date[:4] for date in dates if date]
    # "2015" sorts before "2015-03": of the earliest year the most precise, then the earliest.
    first = [date for date in dates if date and date[:4] == min(years)]
    return min((d for d in first if len(d) == max(map(len, first))), default="")


def _iso(date: Any) -> str:
    parts = [(date.findtext(name) or "").strip() for name in ("year", "month", "day")]
    if not re.fullmatch(r"[12]\d{3}", parts[0]):
        return ""
    kept = parts[0]
    for part, most in zip(parts[1:], (12, 31), strict=True):
        if not (part.isdecimal() and 1 <= int(part) <= most):
            break
        kept += f"-{int(part):02}"
    return kept


def _text(root: Any, meta: Any) -> str:
    paragraphs: list[str] = []
    for abstract in meta.iterfind("abstract"):
        if abstract.get("abstract-type") in (None, "normal"):  # not summaries, teasers, pictures
            _walk(abstract, paragraphs)
    for part in ("body", "floats-group"):
        if (element := root.find(part)) is not None:
            _walk(element, paragraphs)
    title = meta.find("title-group/article-title")
    if paragraphs and title is not None and (heading := plain(title, _LEFT_OUT | {"xref"})):
        paragraphs.insert(0, heading)
    return "\n\n".join(paragraphs)


def _walk(element: Any, paragraphs: list[str]) -> None:
    """Appends the paragraphs of a container."""
    for child in element:
        if child.tag is etree.Entity or (name := tag(child)) in _LEFT_OUT:
            continue
        if name == "p":
            _paragraph(child, paragraphs)
        elif name == "def-item":
            parts = (plain(e, _LEFT_OUT) for e in child)
            _append(paragraphs, ": ".join(part for part in parts if part))
        elif name in _BLOCKS:
            _walk(child, paragraphs)
        else:
            _append(paragraphs, plain(child, _LEFT_OUT))


def _paragraph(element: Any, paragraphs: list[str]) -> None:
    """Appends a paragraph and the blocks inside it. A list splits it where it stands; a figure or
    box comes after it, for its place is only where the typesetter anchored it."""
    floats = [e for e in element if e.tag is not etree.Entity and tag(e) in _FLOATS]
    inline = etree.Element("p")
    inline.text = element.text
    for child in list(element):
        if child.tag is etree.Entity or tag(child) not in _BLOCKS:
            inline.append(child)  # takes its tail along
        elif child not in floats:
            _append(paragraphs, plain(inline, _LEFT_OUT))
            _walk(child, paragraphs)
            inline = etree.Element("p")
            inline.text = child.tail
        elif len(inline):
            inline[-1].tail = (inline[-1].tail or "") + (child.tail or "")
        else:
            inline.text = (inline.text or "") + (child.tail or "")
    _append(paragraphs, plain(inline, _LEFT_OUT))
    for block in floats:
        _walk(block, paragraphs)


def _append(paragraphs: list[str], text: str) -> None:
    if text:
        paragraphs.append(text)
