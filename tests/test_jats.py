"""The text and the licence of PMC's articles, and the markup that PubMed's citations share."""

import io

import lxml.etree as etree
import pytest

from data.parsing import jats, pubmed
from data.parsing.markup import MarkupError, plain

XLINK = 'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mml="http://www.w3.org/1998/Math/MathML"'
CC_BY = (
    '<license xlink:href="http://creativecommons.org/licenses/by/4.0/"><p>Creative Commons '
    "Attribution License, which permits unrestricted use.</p></license>"
)


def article(pmcid, body="<p>Words.</p>", *, pmid=None, licence=CC_BY, kind="research-article"):
    number = f'<article-id pub-id-type="pmid">{pmid}</article-id>' if pmid else ""
    return f"""<article {XLINK} article-type="{kind}"><front><article-meta>
<article-id pub-id-type="pmc">{pmcid}</article-id>{number}
<title-group><article-title>A title<xref ref-type="fn">*</xref></article-title></title-group>
<pub-date pub-type="epub"><year>2009</year></pub-date>
<pub-date pub-type="pmc-release"><year>2004</year></pub-date>
<permissions><copyright-statement>(c) 2009</copyright-statement>{licence}</permissions>
</article-meta></front><body>{body}</body></article>"""


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("In <i>E. coli</i>,\n   <b>two</b>\t words", "In E. coli, two words"),
        ("10<sup>6</sup>, 10<sup>-3</sup> m<sup>2</sup>", "10^6, 10^-3 m2"),
        ("Ca<sup>2+</sup> and H<sub>2</sub>O", "Ca2+ and H2O"),
        ('women<sup><xref ref-type="bibr">12</xref></sup> and', "women and"),
        ('women<xref ref-type="bibr"><sup>12</sup></xref> and', "women and"),
        ('women [<xref ref-type="bibr">12</xref>] and', "women [12] and"),
        ("5\u202fmg\u00a0\u03b2 &lt; 3 &#945;", "5\u202fmg\u00a0\u03b2 < 3 \u03b1"),
        ("before <!-- hidden --><?pi x?>after", "before after"),
        (
            "is <mml:math><mml:mi>p</mml:mi><mml:mo>&lt;</mml:mo><mml:mfrac><mml:mn>1</mml:mn>"
            "<mml:mrow><mml:mi>n</mml:mi><mml:mo>+</mml:mo><mml:mn>2</mml:mn></mml:mrow>"
            "</mml:mfrac><mml:annotation>\\frac</mml:annotation></mml:math>.",
            "is p < 1/(n + 2).",
        ),
        ("<mml:msup><mml:mi>x</mml:mi></mml:msup>", "x"),
    ],
)
def test_markup_becomes_plain_text(markup, text):
    parser = etree.XMLParser(remove_comments=True, remove_pis=True)
    assert plain(etree.fromstring(f"<p {XLINK}>{markup}</p>", parser)) == text


def test_citation_text():
    source = b"""<MedlineCitationSet><MedlineCitation><PMID Version="2">5</PMID><Article>
<Journal><JournalIssue><PubDate><MedlineDate>1998 Dec-1999 Jan</MedlineDate></PubDate>
</JournalIssue></Journal><ArticleTitle>On <i>it</i>.</ArticleTitle><Abstract>
<AbstractText Label="BACKGROUND" NlmCategory="BACKGROUND">One.</AbstractText>
<AbstractText Label="UNLABELLED">Two.</AbstractText><AbstractText Label="EMPTY"/>
<CopyrightInformation>(c)</CopyrightInformation></Abstract><Language>fre</Language></Article>
<OtherAbstract><AbstractText>Autre.</AbstractText></OtherAbstract></MedlineCitation>
</MedlineCitationSet>"""
    (found,) = pubmed.read(io.BytesIO(source))
    assert isinstance(found, pubmed.Citation)
    assert found.text == "On it.\n\nBACKGROUND: One.\nTwo."
    assert (found.pmid, found.version, found.date, found.language) == (5, 2, "1998-12", "fre")
    assert [other.text for other in found.other_abstracts] == ["Autre."]


def test_article_text():
    body = """<sec><label>1</label><title>Methods</title>
  <p>We measured <xref ref-type="fig" rid="F1">Figure 1</xref><fig id="F1"><label>Figure 1</label>
    <caption><title>Flow.</title><p>Of patients.</p></caption><graphic xlink:href="g"/></fig> twice
    where <disp-formula><label>(1)</label><alternatives><tex-math>\\frac</tex-math><mml:math>
    <mml:msup><mml:mi>x</mml:mi><mml:mn>2</mml:mn></mml:msup></mml:math><graphic/></alternatives>
    </disp-formula>holds:<list><list-item><label>a</label><p>first</p></list-item>
    <list-item><p>second</p></list-item></list>and went on.</p>
  <table-wrap><caption><p>Table.</p></caption><table><tr><td>1</td></tr></table></table-wrap>
  <def-list><def-item><term>CI</term><def><p>interval</p></def></def-item></def-list>
  <sec><title>Nested</title><p>Last.<fn><p>Note.</p></fn></p></sec></sec>"""
    source = article(7, body).replace(
        "</article-meta>",
        "<abstract><sec><title>Aim</title><p>To see.</p></sec></abstract>"
        '<abstract abstract-type="toc"><p>Teaser.</p></abstract></article-meta>',
    )
    source = source.replace(
        "</article>", "<back><ref-list><ref>R</ref></ref-list></back></article>"
    )
    found = jats.read(source.encode())
    assert found.text.split("\n\n") == [
        "A title",
        "Aim",
        "To see.",
        "Methods",
        "We measured Figure 1 twice where x^2 holds:",
        "first",
        "second",
        "and went on.",
        "Flow.",
        "Of patients.",
        "CI: interval",
        "Nested",
        "Last.",
    ]
    assert (found.pmcid, found.pmid, found.date, found.language) == (7, None, "2009", "eng")


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        (CC_BY, "CC-BY"),
        ('<license xlink:href="http://creativecommons.org/licenses/by-nc/4.0"/>', "CC-BY-NC"),
        (
            "<license><p>Attribution <ext-link "
            'xlink:href="https://creativecommons.org/licenses/by-nc-nd/4.0/">link</ext-link></p>'
            "</license>",
            "CC-BY-NC-ND",
        ),
        (
            "<license><p>See <uri>http://creativecommons.org/licenses/by-sa/3.0/</uri></p>"
            "</license>",
            "CC-BY-SA",
        ),
        (
            CC_BY.replace(
                "</p>",
                " The CC0 waiver (http://creativecommons.org/publicdomain/zero/)"
                " applies to the data.</p>",
            ),
            "CC-BY",
        ),
        (
            '<license><p xlink:href="https://creativecommons.org/publicdomain/zero/1.0/"/>'
            "</license>",
            "CC0/public domain",
        ),
        (CC_BY.replace("unrestricted", "unrestricted non-commercial"), "restricted in words"),
        (CC_BY.replace("</p>", " But not for commercial gain.</p>"), "restricted in words"),
        (CC_BY.replace("</p>", " for any purpose, even commercially.</p>"), "CC-BY"),
        (CC_BY.replace("</p>", " No derivatives.</p>"), "restricted in words"),
        ("<license><p>This is an open access article.</p></license>", "unknown"),
        ("", "unknown"),
    ],
)
def test_licence(licence, expected):
    assert jats.read(article(1, licence=licence).encode()).licence == expected


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"<article><front>", "broken XML"),
        (b"<html/>", "root element is html"),
        (article("PMC-x").encode(), "article-id"),
    ],
)
def test_unreadable_articles_say_why(source, reason):
    with pytest.raises(MarkupError, match=reason):
        jats.read(source)
