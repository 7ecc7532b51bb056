"""PubMed's citation files, as NLM publishes them once a year and updates them every day.

A file holds citations (MedlineCitation, wrapped in PubmedArticle since 2002's DTDs) and, in an
update, the numbers of citations that are to be deleted. Which of several versions of a citation
counts is decided in `parse.py`; here one file is read, in constant memory.
"""

import dataclasses
import re
import zlib
from collections.abc import Iterator
from typing import IO, Any

import lxml.etree as etree

from data.markup import SAFELY, MarkupError, Unreadable, plain, tag

ROOTS = ("PubmedArticleSet", "MedlineCitationSet")

_RELEASE = re.compile(r"(\d\d)n(\d{4,})\.xml")
_RETRACTED = {"Retracted Publication"}
_NOTICE = {"Retraction of Publication", "Retraction Notice"}  # until 2024, and since


@dataclasses.dataclass(frozen=True)
class Citation:
    pmid: int
    version: int
    year: int | None
    language: str  # NLM's three letters, the first where there are several
    title: str
    abstract: str  # empty if there is none
    retracted: bool
    retraction_notice: bool
    retracts: tuple[int, ...]  # PMIDs of what a notice retracts, where it gives them

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
    wanted = ("MedlineCitation", "DeleteCitation", "PubmedArticle", "PubmedBookArticle")
    try:
        for _, element in etree.iterparse(stream, events=("end",), tag=wanted, **SAFELY):
            if tag(element) in ("MedlineCitation", "DeleteCitation"):
                yield _item(element)
            element.clear()
            while element.getprevious() is not None:
                del element.getparent()[0]
    except etree.XMLSyntaxError as error:
        yield Unreadable(f"line {error.lineno}", f"broken XML: {error.msg}")
    except (OSError, EOFError, zlib.error) as error:
        yield Unreadable("end", f"damaged file: {error}")


def _item(element: Any) -> Citation | Deletion | Unreadable:
    try:
        if tag(element) == "DeleteCitation":
            return Deletion(tuple(_number(e.text) for e in element.iter("PMID")))
        return _citation(element)
    except MarkupError as error:
        pmid = element.findtext("PMID") or "unknown"
        return Unreadable(f"line {element.sourceline}, PMID {pmid}", str(error))


def _citation(element: Any) -> Citation:
    pmid, article = element.find("PMID"), element.find("Article")
    if pmid is None or article is None:
        raise MarkupError("a citation must have PMID and Article")
    types = {e.text for e in article.iterfind("PublicationTypeList/PublicationType")}
    notes = element.findall("CommentsCorrectionsList/CommentsCorrections")
    retracts = [e.findtext("PMID") for e in notes if e.get("RefType") == "RetractionOf"]
    relations = {e.get("RefType") for e in notes}
    return Citation(
        pmid=_number(pmid.text),
        version=_number(pmid.get("Version", "1")),
        year=_year(article.find("Journal/JournalIssue/PubDate")),
        language=article.findtext("Language") or "und",
        title=_title(article.find("ArticleTitle")),
        abstract=_abstract(article.find("Abstract")),
        retracted=bool(types & _RETRACTED) or "RetractionIn" in relations,
        retraction_notice=bool(types & _NOTICE) or bool(retracts),
        retracts=tuple(_number(p) for p in retracts if p),
    )


def _number(text: str | None) -> int:
    if not re.fullmatch(r"\s*[0-9]+\s*", text or ""):
        raise MarkupError(f"{text!r} is not a PMID or its version")
    return int(text or "")


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


def _year(date: Any) -> int | None:
    if date is None:
        return None
    found = re.search(r"\d{4}", date.findtext("Year") or date.findtext("MedlineDate") or "")
    return int(found[0]) if found else None
