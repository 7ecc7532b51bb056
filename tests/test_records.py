"""What is kept of a record beside its text, and records of every kind: citations, chapters of
books, articles alone and in sets, The Pile's lines."""

import gzip
import io
import json
import tarfile

import pytest
import zstandard

from data import documents, parse
from data.parsing import jats, pile, pubmed
from data.parsing.markup import Unreadable
from tests.test_jats import article

CITATION = """<PubmedArticle><MedlineCitation Status="MEDLINE"><PMID Version="2">31</PMID>
<Article><Journal><JournalIssue><PubDate>{date}</PubDate></JournalIssue>
<Title>Annals of <i>Nothing</i></Title></Journal><ArticleTitle>On m&#252;sli.</ArticleTitle>
<ELocationID EIdType="doi" ValidYN="N">10.1/old</ELocationID>
<ELocationID EIdType="doi" ValidYN="Y">10.1/new</ELocationID>
<Abstract><AbstractText Label="AIM">One.</AbstractText><AbstractText>Two.</AbstractText></Abstract>
<Language>ger</Language><Language>eng</Language>
<PublicationTypeList><PublicationType>Journal Article</PublicationType>
<PublicationType>Review</PublicationType></PublicationTypeList></Article>
<OtherAbstract Type="Publisher" Language="spa"><AbstractText>Uno.</AbstractText></OtherAbstract>
<OtherAbstract Type="plain-language-summary"><AbstractText>Simply.</AbstractText></OtherAbstract>
</MedlineCitation><PubmedData><ArticleIdList><ArticleId IdType="pubmed">31</ArticleId>
<ArticleId IdType="pmc">PMC77</ArticleId></ArticleIdList><ReferenceList><Reference><ArticleIdList>
<ArticleId IdType="pmc">PMC1</ArticleId><ArticleId IdType="doi">10.1/cited</ArticleId>
</ArticleIdList></Reference></ReferenceList></PubmedData></PubmedArticle>"""
BOOK = """<PubmedBookArticle><BookDocument><PMID Version="1">20</PMID><Book><BookTitle>GeneReviews
</BookTitle><PubDate><Year>1993</Year></PubDate></Book><ArticleTitle>A chapter</ArticleTitle>
<Language>eng</Language><PublicationType>Review</PublicationType>
<Abstract><AbstractText>It says.</AbstractText></Abstract>
<ContributionDate><Year>2007</Year><Month>02</Month><Day>22</Day></ContributionDate>
</BookDocument></PubmedBookArticle>"""


def citations(text):
    return list(pubmed.read(io.BytesIO(f"<PubmedArticleSet>{text}</PubmedArticleSet>".encode())))


def parsed(folder, **files):
    """The documents, by id, and manifest and quarantine of {name: bytes}."""
    (folder / "in").mkdir()
    for name, content in files.items():
        (folder / "in" / name).write_bytes(content)
    manifest = parse.parse(folder / "in", folder / "out", 0)
    found = {document.id: document for document in documents.read(folder / "out")}
    lines = (folder / "out/quarantine.jsonl").read_text().splitlines()
    return found, manifest, [json.loads(line) for line in lines]


def test_all_that_is_kept_of_a_citation(tmp_path):
    source = CITATION.format(date="<Year>2015</Year><Month>Mar</Month><Day>7</Day>")
    file = f"<PubmedArticleSet>{source}</PubmedArticleSet>".encode()
    found, manifest, _ = parsed(tmp_path, **{"pubmed25n0001.xml": file})
    assert found["PMID:31"] == documents.Document(
        id="PMID:31",
        source="abstract",
        date="2015-03-07",
        language="ger",
        licence="PubMed",
        text="On m\u00fcsli.\n\nAIM: One.\nTwo.",
        journal="Annals of Nothing",
        types=("Journal Article", "Review"),
        pmid=31,
        pmcid=77,
        doi="10.1/new",
        version=2,
        other_abstracts=(
            {"type": "Publisher", "language": "spa", "text": "Uno."},
            {"type": "plain-language-summary", "language": "eng", "text": "Simply."},
        ),
    )
    assert manifest["counts"]["read"] == {
        "citations": 1,
        "with abstract": 1,
        "with other abstracts": 1,
        "with structured abstract": 1,
    }


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("<Year>2015</Year><Month>03</Month>", "2015-03"),
        ("<Year>2015</Year><Season>Spring</Season>", "2015"),
        ("<MedlineDate>2000 Nov-Dec</MedlineDate>", "2000-11"),
        ("<MedlineDate>1998 Dec 14-1999 Jan 3</MedlineDate>", "1998-12-14"),
        ("<MedlineDate>Winter 1975-1976</MedlineDate>", "1975"),
        ("<MedlineDate>0000</MedlineDate>", ""),
        ("<Year>2015</Year><Month>13</Month><Day>99</Day>", "2015"),
        ("", ""),
    ],
)
def test_dates_as_far_as_they_are_known(date, expected):
    (found,) = citations(CITATION.format(date=date))
    assert found.date == expected


def test_chapters_of_books(tmp_path):
    file = f"<PubmedBookArticleSet>{BOOK}</PubmedBookArticleSet>".encode()
    found, manifest, aside = parsed(tmp_path, **{"books.xml": file})
    assert found["PMID:20"].text == "A chapter\n\nIt says."
    assert (found["PMID:20"].journal, found["PMID:20"].date) == ("GeneReviews", "2007-02-22")
    assert not aside
    assert manifest["files"][0]["kind"] == "citations"


def test_a_broken_record_costs_itself_alone():
    good, bad = CITATION.format(date=""), "<PubmedArticle><MedlineCitation>&</PubmedArticle>"
    found = citations(good + bad + good + "<PubmedArticle/>" + BOOK)
    assert [type(item).__name__ for item in found] == [
        "Citation", "Unreadable", "Citation", "Unreadable", "Citation",
    ]  # fmt: skip
    assert found[1].position.startswith("record 2, byte ")


def test_articles_in_sets_and_namespaces(tmp_path):
    """PMC's OAI service puts articles into a namespace and says which it has deleted; efetch
    returns them in one file."""
    oai = f"""<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><ListRecords><record>
<header status="deleted"><identifier>oai:pubmedcentral.nih.gov:5</identifier></header></record>
<record><header><identifier>oai:pubmedcentral.nih.gov:6</identifier></header><metadata>
{article(6).replace("<article ", '<article xmlns="https://jats.nlm.nih.gov/ns/archiving/1.3/" ')}
</metadata></record></ListRecords></OAI-PMH>"""
    efetch = f"<pmc-articleset>{article(7)}<article/>{article(8)}</pmc-articleset>"
    alone = b"\xef\xbb\xbf" + article(9).encode()
    files = {"oai.xml": oai.encode(), "set.xml": efetch.encode(), "PMC9.xml": alone}
    found, _, aside = parsed(tmp_path, **files)
    assert found.keys() == {"PMC:6", "PMC:7", "PMC:8", "PMC:9"}
    assert [(line["position"], line["reason"]) for line in aside] == [
        ("record oai:pubmedcentral.nih.gov:5", "deleted by PMC"),
        ("article 2", "no front/article-meta"),
    ]


def test_all_that_is_kept_of_an_article():
    source = article(12, pmid=31, kind="review-article").replace(
        "<front>",
        "<front><journal-meta><journal-title-group><journal-title>Annals</journal-title>"
        "</journal-title-group></journal-meta>",
    )
    source = source.replace("<title-group>", '<article-id pub-id-type="doi">10.1/x</article-id>'
                            "<title-group>")  # fmt: skip
    found = jats.read(source.encode())
    assert (found.pmcid, found.pmid, found.doi) == (12, 31, "10.1/x")
    assert (found.journal, found.types, found.date) == ("Annals", ("review-article",), "2009")
    assert (found.language, found.licence, found.version) == ("eng", "CC-BY", 1)


@pytest.mark.parametrize(
    "mark",
    [
        ('article-type="research-article"', 'article-type="retracted-article"'),
        ("<title-group>", '<related-article related-article-type="retraction-forward"/>'
         "<title-group>"),
        ("A title", "RETRACTED: A title"),
    ],
)  # fmt: skip
def test_retracted_articles_however_they_are_marked(tmp_path, mark):
    marked = article(1).replace(*mark)
    assert marked != article(1)
    found, manifest, _ = parsed(
        tmp_path, **{"PMC1.xml": marked.encode(), "PMC2.xml": article(2).encode()}
    )
    assert found.keys() == {"PMC:2"}
    assert manifest["counts"]["full_text"] == {"kept": 1, "retracted": 1}


def test_a_notice_takes_back_abstract_and_article(tmp_path):
    """By the PMID that it names, in whatever file the others are."""
    notice = article(3, kind="retraction").replace(
        "<title-group>",
        '<related-article related-article-type="retracted-article" ext-link-type="pubmed" '
        'xlink:href="31"/><title-group>',
    )
    abstract = f"<PubmedArticleSet>{CITATION.format(date='')}</PubmedArticleSet>"
    found, manifest, _ = parsed(
        tmp_path,
        **{
            "PMC3.xml": notice.encode(),
            "PMC1.xml": article(1, pmid=31).encode(),
            "PMC2.xml": article(2, pmid=32).encode(),
            "pubmed25n0001.xml": abstract.encode(),
        },
    )
    assert found.keys() == {"PMC:2"}
    assert manifest["counts"]["abstract"] == {"retracted": 1}
    ends = {"kept": 1, "retracted": 1, "retraction notices": 1}
    assert manifest["counts"]["full_text"] == ends


class TestGzip:
    """NLM's files can be gzip of several members; a cut one gives what comes before the cut."""

    source = "".join(CITATION.replace(">31<", f">{n}<").format(date="") for n in range(100, 300))

    def halves(self):
        whole = f"<PubmedArticleSet>{self.source}</PubmedArticleSet>".encode()
        return gzip.compress(whole[: len(whole) // 2]), gzip.compress(whole[len(whole) // 2 :])

    def test_several_members(self, tmp_path):
        found, _, aside = parsed(tmp_path, **{"pubmed25n0001.xml.gz": b"".join(self.halves())})
        assert len(found) == 200
        assert not aside

    @pytest.mark.parametrize("kept", [5, 100, 0.5, 0.9])
    def test_the_second_member_is_cut(self, tmp_path, kept):
        first, second = self.halves()
        second = second[: int(kept * len(second)) if kept < 1 else kept]
        found, manifest, aside = parsed(tmp_path, **{"pubmed25n0001.xml.gz": first + second})
        assert 99 <= len(found) < 200
        assert len(aside) == manifest["quarantined"] == 1
        assert aside[0]["file"] == "pubmed25n0001.xml.gz"
        assert "damaged file" in aside[0]["reason"]
        assert manifest["files"][0]["bytes"] == len(first + second)

    def test_a_cut_archive(self, tmp_path):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w:gz") as archive:
            for n in range(1, 60):
                content = article(n, f"<p>{'words ' * n * 20}</p>").encode()
                member = tarfile.TarInfo(f"PMC{n}.nxml")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        cut = raw.getvalue()[: len(raw.getvalue()) // 2]
        found, _, aside = parsed(tmp_path, **{"oa_comm_xml.PMC000xxxxxx.tar.gz": cut})
        assert 0 < len(found) < 59
        assert "damaged file" in aside[-1]["reason"]


class TestPile:
    """The Pile's JSONL, plain or through zstd in one frame or several."""

    lines = (
        {"text": "An abstract.", "meta": {"pile_set_name": "PubMed Abstracts"}},
        {"text": "A paper.\n\nIts body.", "meta": {"pile_set_name": "PubMed Central"}},
        {"text": "Code.", "meta": {"pile_set_name": "Github"}},
        {"text": "An abstract.", "meta": {"pile_set_name": "PubMed Abstracts"}},
        {"text": " \n", "meta": {"pile_set_name": "PubMed Abstracts"}},
    )

    def content(self):
        return "".join(json.dumps(line) + "\n" for line in self.lines).encode()

    def test_what_counts(self, tmp_path):
        packed = zstandard.compress(self.content()[:100]) + zstandard.compress(self.content()[100:])
        files = {"00.jsonl.zst": packed, "01.jsonl": self.content() + b"{broken\n"}
        found, manifest, aside = parsed(tmp_path, **files)
        assert sorted((d.source, d.text) for d in found.values()) == [
            ("pile_abstract", "An abstract."),
            ("pile_full_text", "A paper.\n\nIts body."),
        ]
        assert manifest["counts"]["pile_abstract"] == {"kept": 1, "same text": 3}
        assert manifest["other_sets"] == {"Github": 2}
        assert [(line["file"], line["position"]) for line in aside] == [
            ("00.jsonl.zst", "line 5"), ("01.jsonl", "line 5"), ("01.jsonl", "line 6"),
        ]  # fmt: skip

    def test_a_cut_file(self, tmp_path):
        packed = zstandard.compress(self.content() * 1000)
        found, _, aside = parsed(
            tmp_path, **{"00.jsonl.zst": packed[:-30], "1.jsonl": self.content()}
        )
        assert len(found) == 2
        assert any("cut" in line["reason"] for line in aside)

    def test_other_jsonl_gets_one_word_and_not_one_a_line(self):
        found = list(pile.read(io.BytesIO(b'{"question": "?"}\n' * 1000)))
        assert len(found) == 1
        assert isinstance(found[0], Unreadable)

    def test_a_line_without_end_is_passed_over(self, monkeypatch):
        monkeypatch.setattr(pile, "LONGEST", 1000)
        long = json.dumps({"text": "x" * 5000, "meta": {"pile_set_name": "PubMed Central"}})
        found = list(pile.read(io.BytesIO(long.encode() + b"\n" + self.content())))
        assert found[0] == Unreadable("line 1", "over 1000 bytes long")
        assert [type(item).__name__ for item in found[1:]] == [
            "Piece", "Piece", "Other", "Piece", "Unreadable",
        ]  # fmt: skip
