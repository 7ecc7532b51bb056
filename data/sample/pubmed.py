"""Citations in the XML of NCBI's baseline and update files, from records that `generate.py` plans.
The order of elements follows NLM's DTD of 2025."""

import dataclasses
import random
import re
from collections.abc import Iterable

from data.sample.study import Study
from data.sample.writer import Section, people

HEAD = (
    '<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE PubmedArticleSet PUBLIC '
    '"-//NLM//DTD PubMedArticle, 1st January 2025//EN" '
    '"https://dtd.nlm.nih.gov/ncbi/pubmed/out/pubmed_250101.dtd">\n<PubmedArticleSet>\n'
)
MATHML = (
    '<mml:math xmlns:mml="http://www.w3.org/1998/Math/MathML"><mml:mrow><mml:mi>R</mml:mi>'
    "<mml:mo>=</mml:mo><mml:mfrac><mml:msub><mml:mi>p</mml:mi><mml:mn>1</mml:mn></mml:msub>"
    "<mml:msub><mml:mi>p</mml:mi><mml:mn>0</mml:mn></mml:msub></mml:mfrac></mml:mrow></mml:math>"
)
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
TYPES = {
    "Journal Article": "D016428",
    "Randomized Controlled Trial": "D016449",
    "Comparative Study": "D003160",
    "Observational Study": "D064888",
    "Case Reports": "D002363",
    "Systematic Review": "D000078182",
    "Meta-Analysis": "D017418",
    "Letter": "D016422",
    "Editorial": "D016421",
    "Comment": "D016420",
    "English Abstract": "D004740",
    "Retracted Publication": "D016441",
    "Retraction of Publication": "D016440",
}
KIND_TYPES = {
    "trial": ("Randomized Controlled Trial",),
    "surgery": ("Comparative Study",),
    "cohort": ("Observational Study",),
    "case": ("Case Reports",),
    "review": ("Systematic Review", "Meta-Analysis"),
}
MESH = {"Humans": "D006801", "Male": "D008297", "Female": "D005260", "Adult": "D000328"}
ANIMAL_MESH = {"Animals": "D000818", "Mice": "D051379"}
NO_MESH = {"micro": {}, "review": {"Humans": "D006801"}, "lab": ANIMAL_MESH}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What is chosen for one citation; `seed` fixes names and dates, so that a revision of a
    record keeps them."""

    pmid: int
    seed: int
    study: Study
    title: str
    journal: tuple[str, str]
    year: int
    version: int = 1
    sections: tuple[Section, ...] = ()
    structured: bool = False
    markup: bool = True  # otherwise 10(9) for 10<sup>9</sup>, as records of before 2016 have it
    types: tuple[str, ...] = ()
    medline_date: bool = False
    language: str = "eng"
    vernacular: str = ""
    other: tuple[str, str, str] | None = None  # Type, Language and text of an OtherAbstract
    corrections: tuple[tuple[str, str, int], ...] = ()  # RefType, RefSource, PMID
    copyright: bool = False
    pmc: int | None = None
    revised: int | None = None  # year of a later revision


def article_set(records: Iterable[Record], deleted: Iterable[int] = ()) -> bytes:
    parts = [HEAD, *map(_article, records)]
    if gone := "".join(f'    <PMID Version="1">{pmid}</PMID>\n' for pmid in deleted):
        parts.append(f"  <DeleteCitation>\n{gone}  </DeleteCitation>\n")
    return "".join([*parts, "</PubmedArticleSet>\n"]).encode()


def source(record: Record) -> str:
    """How another record refers to this one, for example "Norvale J Cardi. 2015;12:101-8"."""
    return f"{record.journal[1]}. {record.year};{record.year - 1990}:101-8"


def _article(record: Record) -> str:
    rng = random.Random(record.seed)
    month, first = rng.randint(0, 11), rng.randint(11, 900)
    authors = people(rng, rng.randint(2, 6))
    volume = record.year - 1990
    title = record.title if record.markup else old_form(record.title)
    foreign = record.language != "eng"
    title = f"[{title}]." if foreign else f"{title}."
    changed = record.revised or record.year + 1
    lines = [
        "<PubmedArticle>",
        f'<MedlineCitation Status="MEDLINE" Owner="NLM"><PMID Version="{record.version}">'
        f"{record.pmid}</PMID>",
        _date("DateCompleted", record.year + 1, month),
        _date("DateRevised", changed, month),
        '<Article PubModel="Print"><Journal><ISSN IssnType="Print">0000-0000</ISSN>'
        f'<JournalIssue CitedMedium="Print"><Volume>{volume}</Volume>'
        f"<Issue>{month + 1}</Issue><PubDate>{_pub_date(record, month)}</PubDate></JournalIssue>",
        f"<Title>{record.journal[0]}</Title>"
        f"<ISOAbbreviation>{record.journal[1]}</ISOAbbreviation></Journal>",
        f"<ArticleTitle>{title}</ArticleTitle>",
        f"<Pagination><MedlinePgn>{first}-{first + 7}</MedlinePgn></Pagination>",
        f'<ELocationID EIdType="doi" ValidYN="Y">10.5555/sample.{record.pmid}</ELocationID>',
        *_abstract(record),
        '<AuthorList CompleteYN="Y">',
        *(_author(record, family, given) for family, given in authors),
        "</AuthorList>",
        f"<Language>{record.language}</Language><PublicationTypeList>",
        *(f'<PublicationType UI="{TYPES[t]}">{t}</PublicationType>' for t in record.types),
        "</PublicationTypeList>",
        f"<VernacularTitle>{record.vernacular}</VernacularTitle>" if record.vernacular else "",
        "</Article>",
        f"<MedlineJournalInfo><MedlineTA>{record.journal[1]}</MedlineTA>"
        "<NlmUniqueID>0000000</NlmUniqueID></MedlineJournalInfo>",
        *_corrections(record),
        *_mesh(record),
        *_other(record),
        f'<KeywordList Owner="NOTNLM"><Keyword MajorTopicYN="N">{record.study.facts["disease"]}'
        f'</Keyword><Keyword MajorTopicYN="N">{record.study.area.name}</Keyword></KeywordList>',
        "</MedlineCitation>",
        "<PubmedData><PublicationStatus>ppublish</PublicationStatus><ArticleIdList>",
        f'<ArticleId IdType="pubmed">{record.pmid}</ArticleId>',
        f'<ArticleId IdType="pmc">PMC{record.pmc}</ArticleId>' if record.pmc else "",
        f'<ArticleId IdType="doi">10.5555/sample.{record.pmid}</ArticleId>',
        "</ArticleIdList></PubmedData>",
        "</PubmedArticle>",
    ]
    return "".join(f"  {line}\n" for line in lines if line)


def old_form(text: str) -> str:
    """Text as PubMed had it before it kept markup: 10(9) for 10<sup>9</sup>, no italics."""
    return re.sub(r"</?i>", "", re.sub(r"<su[bp]>(.*?)</su[bp]>", r"(\1)", text))


def _abstract(record: Record) -> list[str]:
    if not record.sections:
        return []
    sections = record.sections
    if not record.markup:
        sections = [(label, category, old_form(text)) for label, category, text in sections]
    if record.structured:
        texts = [
            f'<AbstractText Label="{label}" NlmCategory="{category}">{text}</AbstractText>'
            for label, category, text in sections
        ]
    else:
        texts = [f"<AbstractText>{' '.join(text for *_, text in sections)}</AbstractText>"]
    if record.copyright:
        texts.append(
            f"<CopyrightInformation>Copyright \u00a9 {record.year} {record.journal[0]}."
            "</CopyrightInformation>"
        )
    return ["<Abstract>", *texts, "</Abstract>"]


def _author(record: Record, family: str, given: str) -> str:
    return (
        f'<Author ValidYN="Y"><LastName>{family}</LastName><ForeName>{given}</ForeName>'
        f"<Initials>{given[0]}</Initials><AffiliationInfo><Affiliation>Department of "
        f"{record.study.area.specialty}, University of {record.study.facts['place']}."
        "</Affiliation></AffiliationInfo></Author>"
    )


def _corrections(record: Record) -> list[str]:
    if not record.corrections:
        return []
    items = (
        f'<CommentsCorrections RefType="{kind}"><RefSource>{where}</RefSource>'
        f'<PMID Version="1">{pmid}</PMID></CommentsCorrections>'
        for kind, where, pmid in record.corrections
    )
    return ["<CommentsCorrectionsList>", *items, "</CommentsCorrectionsList>"]


def _mesh(record: Record) -> list[str]:
    if not (headings := NO_MESH.get(record.study.kind, MESH)):
        return []
    items = (
        f'<MeshHeading><DescriptorName UI="{ui}" MajorTopicYN="N">{name}</DescriptorName>'
        "</MeshHeading>"
        for name, ui in headings.items()
    )
    return ["<MeshHeadingList>", *items, "</MeshHeadingList>"]


def _other(record: Record) -> list[str]:
    if record.other is None:
        return []
    kind, language, text = record.other
    return [
        f'<OtherAbstract Type="{kind}" Language="{language}"><AbstractText>{text}</AbstractText>'
        "</OtherAbstract>"
    ]


def _pub_date(record: Record, month: int) -> str:
    if record.medline_date:
        second = MONTHS[min(month + 1, 11)]
        return f"<MedlineDate>{record.year} {MONTHS[min(month, 10)]}-{second}</MedlineDate>"
    return f"<Year>{record.year}</Year><Month>{MONTHS[month]}</Month>"


def _date(tag: str, year: int, month: int) -> str:
    return f"<{tag}><Year>{year}</Year><Month>{month + 1:02}</Month><Day>15</Day></{tag}>"
