"""What is kept of a record beside its text, and records of every kind: citations, chapters of
books, articles alone and in sets, The Pile's lines."""

import io
import json

import pytest

from biomedlm_jax.entry import UserError
from data import documents, parse
from data.parsing import jats, pubmed
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
    returns them in one file. What it has deleted goes, from whatever file it came."""
    oai = f"""<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><ListRecords><record>
<header status="deleted"><identifier>oai:pubmedcentral.nih.gov:5</identifier></header></record>
<record><header><identifier>oai:pubmedcentral.nih.gov:6</identifier></header><metadata>
{article(6).replace("<article ", '<article xmlns="https://jats.nlm.nih.gov/ns/archiving/1.3/" ')}
</metadata></record></ListRecords></OAI-PMH>"""
    efetch = f"<pmc-articleset>{article(7)}<article/>{article(8)}</pmc-articleset>"
    alone = b"\xef\xbb\xbf" + article(9).encode()
    files = {"oai.xml": oai.encode(), "set.xml": efetch.encode(), "PMC9.xml": alone}
    files["PMC5.xml"] = article(5).encode()
    found, manifest, aside = parsed(tmp_path, **files)
    assert found.keys() == {"PMC:6", "PMC:7", "PMC:8", "PMC:9"}
    assert [(line["position"], line["reason"]) for line in aside] == [
        ("article 2", "no front/article-meta"),
    ]
    assert manifest["counts"]["read"]["withdrawn articles"] == 1
    assert manifest["counts"]["full_text"] == {"deleted": 1, "kept": 4}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ('<pmc-articleset><Reply Id="1" error="not open"/></pmc-articleset>', "error: not open"),
        ('<OAI-PMH><error code="x">no such record</error></OAI-PMH>', "error: no such record"),
        ("<OAI-PMH><ListRecords/></OAI-PMH>", "no article in it"),
        ("<n:article/>", "not XML"),
        ("<article>" + "<b/>" * 2_000_001 + "</article>", "2000000 tags"),
    ],
)
def test_answers_without_an_article_are_named(tmp_path, source, reason):
    _, _, aside = parsed(tmp_path, **{"a.xml": source.encode(), "b.xml": article(1).encode()})
    (line,) = aside
    assert (line["file"], reason in line["reason"]) == ("a.xml", True), line


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


class TestLinks:
    """An abstract and its article are known to be one by either's number of the other."""

    def run(self, tmp_path, *, types="Journal Article", kind="research-article"):
        one = CITATION.replace("Journal Article", types).format(date="")
        file = f"<PubmedArticleSet>{one}</PubmedArticleSet>".encode()
        return parsed(
            tmp_path,
            **{"pubmed25n0001.xml": file, "PMC77.xml": article(77, kind=kind).encode(),
               "PMC78.xml": article(78).encode()},
        )  # fmt: skip

    def test_the_citation_names_the_article(self, tmp_path):
        found, manifest, _ = self.run(tmp_path)
        assert found.keys() == {"PMC:77", "PMC:78"}
        assert (found["PMC:77"].pmid, found["PMC:78"].pmid) == (31, None)
        assert manifest["counts"]["abstract"] == {"full text is there": 1}

    @pytest.mark.parametrize(
        "mark", [{"types": "Retracted Publication"}, {"kind": "retracted-article"}]
    )
    def test_a_retraction_of_one_is_of_both(self, tmp_path, mark):
        found, manifest, _ = self.run(tmp_path, **mark)
        assert found.keys() == {"PMC:78"}
        assert manifest["counts"]["abstract"] == {"retracted": 1}
        assert manifest["counts"]["full_text"] == {"kept": 1, "retracted": 1}


def test_comments_are_no_records():
    delete = "<DeleteCitation><PMID>31</PMID></DeleteCitation>"
    found = citations(
        f"<!-- {delete} --><!-- a <PubmedArticle> is one -->{CITATION.format(date='')}"
        f"<![CDATA[{delete}]]>" + " " * 200
    )
    assert [type(item).__name__ for item in found] == ["Citation"]


@pytest.mark.parametrize(
    "behind", ["", " " * 200, "<!-- the end -->", "\n<!--" + "x" * 10**6 + "-->\n"]
)
def test_what_stands_behind_the_end_does_not_matter(behind):
    file = f"<PubmedArticleSet>{CITATION.format(date='')}</PubmedArticleSet>{behind}"
    assert [type(item).__name__ for item in pubmed.read(io.BytesIO(file.encode()))] == ["Citation"]


def test_one_bad_number_does_not_cancel_the_others():
    found = citations("<DeleteCitation><PMID>1</PMID><PMID>x</PMID><PMID>2</PMID></DeleteCitation>")
    assert found == [pubmed.Deletion((1, 2)), Unreadable("DeleteCitation", "'x' is not a PMID")]


@pytest.mark.parametrize(
    "change",
    [
        ('Version="2"', 'Version="99999999999"'),
        (">31<", f">{'3' * 5000}<"),
        ("<Language>", "<n:Language/><Language>"),
        ("</Article>", "<i/>" * 1_000_001 + "</Article>"),
    ],
)
def test_a_value_that_can_not_be_costs_its_record(tmp_path, change):
    bad = CITATION.format(date="").replace(*change)
    file = f"<PubmedArticleSet>{bad}{CITATION.format(date='').replace('>31<', '>32<')}"
    found, _, aside = parsed(
        tmp_path, **{"pubmed25n0001.xml": (file + "</PubmedArticleSet>").encode()}
    )
    assert found.keys() == {"PMID:32"}
    assert len(aside) == 1


@pytest.mark.parametrize("pmid", ["\u00b2", "3" * 25, "3" * 5000])
def test_an_article_without_a_usable_pmid_has_none(pmid):
    assert jats.read(article(1, pmid=pmid).encode()).pmid is None


def test_files_that_are_empty_or_passed_over_are_named(tmp_path):
    files = {
        "pubmed25n0001.xml.gz": b"",
        "a.jsonl.zst": b"",
        "b.XML": b"x",
        "c.tar": b"x",
        "d.md5": b"",
    }
    found, manifest, aside = parsed(tmp_path, **files, **{"PMC1.xml": article(1).encode()})
    assert found.keys() == {"PMC:1"}
    assert {line["file"]: line["reason"] for line in aside} == {
        "pubmed25n0001.xml.gz": "the file is empty",
        "a.jsonl.zst": "the file is empty",
    }
    assert manifest["passed_over"] == {".XML": 1, ".md5": 1, ".tar": 1}


def test_a_folder_that_links_to_itself_is_read_once(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/PMC1.xml").write_text(article(1))
    manifest = parse.parse(tmp_path / "in", tmp_path / "out", 0)
    assert len(manifest["files"]) == 1


def test_a_link_to_nothing_is_one_clear_error(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/PMC1.xml").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"--input=.*: PMC1\.xml: No such file"):
        parse.parse(tmp_path / "in", tmp_path / "out", 0)
    assert not list(tmp_path.glob("out*"))
