"""PubMed's citation files, as NLM publishes them once a year and updates them every day.

A file holds citations (MedlineCitation, wrapped in PubmedArticle since 2002's DTDs), chapters of
NCBI's books (PubmedBookArticle) and, in an update, the numbers of citations that are to be deleted.
Which of several versions of a citation counts is decided in `settle.py`; here one file is read,
record by record (`records.py`).
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import IO, Any

import lxml.etree as etree

from data.parsing import records
from data.parsing.markup import SAFELY, MarkupError, Unreadable, plain, tag

MOST_TAGS = 1_000_000  # of a record; each takes 100 bytes and more

_RELEASE = re.compile(r"(\d\d)n(\d{4,})\.xml")
_RETRACTED = {"Retracted Publication"}
_NOTICE = {"Retraction of Publication", "Retraction Notice"}  # until 2024, and since

# Lets entities stand as they are, for `markup.plain`; nothing is loaded.
_DOCTYPE = b'<!DOCTYPE record SYSTEM "pubmed.dtd">'
_PMID = re.compile(rb"<PMID\b[^>]*>\s*(\d+)")
_NUMBER = re.compile(r"\s*[0-9]{1,18}\s*")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


@dataclasses.dataclass(frozen=True)
class OtherAbstract:
    type: str  # who wrote it, or for whom: "Publisher", "plain-language-summary"
    language: str
    text: str


@dataclasses.dataclass(frozen=True)
class Citation:
    pmid: int
    version: int
    date: str  # of publication: "2015-03-07", "2015-03", "2015" or ""
    language: str  # NLM's three letters, the first where there are several
    title: str
    abstract: str  # empty if there is none
    structured: bool  # has several sections
    retracted: bool
    retraction_notice: bool
    retracts: tuple[int, ...]  # PMIDs of what a notice retracts, where it gives them
    other_abstracts: tuple[OtherAbstract, ...]
    journal: str  # or the title of the book
    types: tuple[str, ...]
    pmcid: int | None
    doi: str | None

    @property
    def text(self) -> str:
        return f"{self.title}\n\n{self.abstract}" if self.title else self.abstract


@dataclasses.dataclass(frozen=True)
class Deletion:
    pmids: tuple[int, ...]


def release_order(name: str) -> tuple[int, int, str]:
    """Sorts files by the order in which NLM published them: pubmed25n0002.xml.gz is year 25,
    number 2. A file with no such name, single records say, is older than all that have one."""
    if found := _RELEASE.search(name):
        return int(found[1]), int(found[2]), name
    return -1, -1, name


def read(stream: IO[bytes]) -> Iterator[Citation | Deletion | Unreadable]:
    """The citations and deletions of a file, in its order, and what could not be read.

    A file that breaks off gives what comes before the break and then an Unreadable.
    """
    parser = etree.XMLParser(**SAFELY)
    for record in records.cut(stream):
        if isinstance(record, Unreadable):
            yield record
            continue
        number, position, source = record
        found = _PMID.search(source)
        where = (
            f"record {number}, byte {position}, PMID {found[1].decode() if found else 'unknown'}"
        )
        if source.count(b"<") > MOST_TAGS:
            yield Unreadable(where, f"over {MOST_TAGS} tags")
            continue
        try:
            yield from _items(etree.fromstring(_DOCTYPE + source, parser))
        except etree.XMLSyntaxError as error:
            yield Unreadable(where, f"broken XML: {error.msg}")
        except ValueError as error:  # MarkupError, or a name that lxml does not take
            yield Unreadable(where, str(error))


def _items(element: Any) -> Iterator[Citation | Deletion | Unreadable]:
    name = tag(element)
    if name in ("DeleteCitation", "DeleteDocument"):
        texts = [e.text for e in element.iter("PMID")]
        bad = [text for text in texts if not _NUMBER.fullmatch(text or "")]
        yield Deletion(tuple(int(text) for text in texts if text not in bad))
        for text in bad:
            yield Unreadable(name, f"{text!r} is not a PMID")
    elif name == "PubmedBookArticle":
        yield _book(element)
    else:
        yield _wrapped(element)


def _wrapped(element: Any) -> Citation:
    name = tag(element)
    citation = element if name == "MedlineCitation" else element.find("MedlineCitation")
    if citation is None:
        raise MarkupError("a PubmedArticle without MedlineCitation")
    return _citation(citation, element.find("PubmedData"))


def _citation(element: Any, data: Any) -> Citation:
    pmid, article = element.find("PMID"), element.find("Article")
    if pmid is None or article is None:
        raise MarkupError("a citation must have PMID and Article")
    types = _types(article.iterfind("PublicationTypeList/PublicationType"))
    notes = element.findall("CommentsCorrectionsList/CommentsCorrections")
    retracts = [e.findtext("PMID") for e in notes if e.get("RefType") == "RetractionOf"]
    relations = {e.get("RefType") for e in notes}
    journal = article.find("Journal")
    ids = _ids(data)
    return Citation(
        pmid=_number(pmid.text),
        version=_version(pmid),
        date=_date(article.find("Journal/JournalIssue/PubDate")),
        language=article.findtext("Language") or "und",
        title=_title(article.find("ArticleTitle")),
        abstract=_abstract(article.find("Abstract")),
        structured=len(article.findall("Abstract/AbstractText")) > 1,
        retracted=bool(_RETRACTED.intersection(types)) or "RetractionIn" in relations,
        retraction_notice=bool(_NOTICE.intersection(types)) or bool(retracts),
        retracts=tuple(_number(p) for p in retracts if p),
        other_abstracts=tuple(_other(e) for e in element.iterfind("OtherAbstract")),
        journal=_first_text(journal, "Title", "ISOAbbreviation"),
        types=types,
        pmcid=_pmcid(ids.get("pmc")),
        doi=ids.get("doi") or _doi(article),
    )


def _book(element: Any) -> Citation:
    """A chapter, or a whole book, of NCBI's Bookshelf."""
    document = element.find("BookDocument")
    if document is None or (pmid := document.find("PMID")) is None:
        raise MarkupError("a book record must have BookDocument and PMID")
    book = document.find("Book")
    title = document.find("ArticleTitle")
    if title is None:
        title = document.find("Book/BookTitle")
    dates = (document.find("ContributionDate"), document.find("Book/PubDate"))
    return Citation(
        pmid=_number(pmid.text),
        version=_version(pmid),
        date=next((found for d in dates if (found := _date(d))), ""),
        language=document.findtext("Language") or "und",
        title=_title(title),
        abstract=_abstract(document.find("Abstract")),
        structured=len(document.findall("Abstract/AbstractText")) > 1,
        retracted=False,
        retraction_notice=False,
        retracts=(),
        other_abstracts=(),
        journal=_first_text(book, "BookTitle"),
        types=_types(document.iterfind("PublicationType")),
        pmcid=None,
        doi=_ids(document).get("doi"),
    )


def _number(text: str | None) -> int:
    if not _NUMBER.fullmatch(text or ""):
        raise MarkupError(f"{text!r} is not a PMID")
    return int(text or "")


def _version(pmid: Any) -> int:
    text = pmid.get("Version", "1")
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", text):
        raise MarkupError(f"{text!r} is not the version of a citation")
    return int(text)


def _title(element: Any) -> str:
    title = "" if element is None else plain(element)
    return "" if title.strip("[].") == "Not Available" else title


def _abstract(element: Any) -> str:
    """One line per section, begun by its label; NLM's "UNLABELLED" says that it has none."""
    if element is None:
        return ""
    lines = []
    for section in element.iterfind("AbstractText"):
        if text := plain(section):
            label = section.get("Label", "")
            lines.append(text if label in ("", "UNLABELLED") else f"{label}: {text}")
    return "\n".join(lines)


def _other(element: Any) -> OtherAbstract:
    return OtherAbstract(
        element.get("Type", ""), element.get("Language", "eng"), _abstract(element)
    )


def _types(elements: Any) -> tuple[str, ...]:
    return tuple(e.text for e in elements if e.text)


def _first_text(element: Any, *names: str) -> str:
    """The text of the first child that has any."""
    if element is None:
        return ""
    children = (element.find(name) for name in names)
    return next((text for c in children if c is not None and (text := plain(c))), "")


def _ids(element: Any) -> dict[str, str]:
    """The article's own ids; those of its references stand deeper."""
    if element is None:
        return {}
    found = element.iterfind("ArticleIdList/ArticleId")
    return {e.get("IdType", ""): (e.text or "").strip() for e in found}


def _pmcid(text: str | None) -> int | None:
    found = re.fullmatch(r"PMC(\d{1,18})", text or "")
    return int(found[1]) if found else None


def _doi(article: Any) -> str | None:
    for e in article.iterfind("ELocationID"):
        if e.get("EIdType") == "doi" and e.get("ValidYN", "Y") == "Y" and e.text:
            return e.text.strip()
    return None


def _date(date: Any) -> str:
    """PubDate as ISO 8601, as far as it is known: of "2000 Nov-Dec" that is "2000-11"."""
    if date is None:
        return ""
    parts = (date.findtext(name) or "" for name in ("Year", "Month", "Day"))
    words = date.findtext("MedlineDate") or " ".join(parts)
    year = re.search(r"\d{4}", words)
    if not year or year[0] == "0000":
        return ""
    rest = words[year.end() :]
    found = re.match(r"\s+(?:([A-Za-z]{3})[a-z]*|(\d{1,2}))(?:\s+(\d{1,2})(?!\d))?", rest)
    if not found:
        return year[0]
    name = (found[1] or "").lower()
    month = _MONTHS.index(name) + 1 if name in _MONTHS else int(found[2] or 0)
    if not 1 <= month <= 12:
        return year[0]
    day = int(found[3] or 0)
    return f"{year[0]}-{month:02}" + (f"-{day:02}" if 1 <= day <= 31 else "")
