"""The sample corpus: what ships is what `data.sample.generate` writes, it parses, and the counts
that its README states are those of the files."""

import gzip
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

from data.sample.generate import write

SAMPLE = Path(__file__).parent.parent / "data" / "sample"
FILES = (
    "pubmed/pubmed26n0001.xml.gz",
    "pubmed/pubmed26n0002.xml.gz",
    "pmc/oa_comm_xml.PMC009xxxxxx.tar.gz",
)
LICENCE = "{http://www.w3.org/1999/xlink}href"
MATHML = "namespace-uri()='http://www.w3.org/1998/Math/MathML'"
# What the README calls a number, and the condition that a MedlineCitation meets.
COUNTED = {
    "citations": "true()",
    "with abstract": "Article/Abstract",
    "with structured abstract": "Article/Abstract/AbstractText/@Label",
    "with OtherAbstract": "OtherAbstract",
    "not in English": "Article/Language != 'eng'",
    "with inline markup": "Article//i or Article//sup or Article//sub",
    "with MathML": f"Article//*[{MATHML}]",
    "with CopyrightInformation": "Article/Abstract/CopyrightInformation",
    "with MedlineDate": ".//MedlineDate",
    "retracted": ".//PublicationType = 'Retracted Publication'",
    "retraction notices": ".//PublicationType = 'Retraction of Publication'",
    "of Version 2": "PMID/@Version = '2'",
    "with a full text": "../PubmedData//ArticleId/@IdType = 'pmc'",
}


def citations(name: str) -> etree._Element:
    return etree.fromstring(gzip.decompress((SAMPLE / name).read_bytes()))


@pytest.fixture(scope="module")
def first() -> etree._Element:
    return citations(FILES[0])


@pytest.fixture(scope="module")
def update() -> etree._Element:
    return citations(FILES[1])


@pytest.fixture(scope="module")
def articles() -> dict[str, etree._Element]:
    with tarfile.open(SAMPLE / FILES[2]) as tar:
        return {m.name: etree.parse(tar.extractfile(m)).getroot() for m in tar}


def abstracts(root: etree._Element) -> dict[str, str]:
    """The text of the last abstract of each PMID, empty where there is none."""
    return {
        c.findtext("PMID"): "".join(c.xpath("Article/Abstract/AbstractText//text()"))
        for c in root.iter("MedlineCitation")
    }


def stated() -> dict[str, list[int]]:
    rows = re.findall(r"^\| ([^|`]+) \| ([\d| ]+) \|$", (SAMPLE / "README.md").read_text(), re.M)
    return {name: [int(cell) for cell in cells.split("|")] for name, cells in rows}


@pytest.mark.parametrize("name", FILES)
def test_shipped_files_are_what_generate_writes(tmp_path, name):
    write(tmp_path)
    ours, shipped = (tmp_path / name).read_bytes(), (SAMPLE / name).read_bytes()
    # Content, not compressed bytes: those differ between zlib and its replacements.
    assert gzip.decompress(ours) == gzip.decompress(shipped)
    assert ours[:10] == shipped[:10], "the gzip header holds a time or a name"


def test_command_writes_the_same_bytes_twice(tmp_path):
    for output in (tmp_path / "a", tmp_path / "b"):
        command = [sys.executable, "-m", "data.sample.generate", f"--output={output}"]
        subprocess.run(command, check=True, cwd=SAMPLE.parent.parent)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("arguments", [[], ["--output=pyproject.toml"], ["--output=data"]])
def test_command_refuses_a_missing_or_used_output(arguments):
    command = [sys.executable, "-m", "data.sample.generate", *arguments]
    done = subprocess.run(command, cwd=SAMPLE.parent.parent, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --output")


def test_readme_states_the_counts_of_citations(first, update):
    rows = stated()
    for name, condition in COUNTED.items():
        found = [len(root.xpath(f"//MedlineCitation[{condition}]")) for root in (first, update)]
        assert rows[name] == found, name
    deleted = [len(root.findall("DeleteCitation/PMID")) for root in (first, update)]
    assert rows["deleted PMIDs"] == deleted == [0, 12]
    assert rows["citations"][0] >= 300
    readme = (SAMPLE / "README.md").read_text()
    after = abstracts(first) | abstracts(update)
    for gone in update.iterfind("DeleteCitation/PMID"):
        del after[gone.text]
    assert f"there are {len(after)} PMIDs" in readme
    assert f"of which {sum(map(bool, after.values()))} have an abstract" in readme


def test_readme_states_the_counts_of_full_texts(articles):
    rows = stated()
    licences = [a.find(".//license").get(LICENCE) for a in articles.values()]
    assert rows["articles"] == [len(articles)]
    assert len(articles) >= 24
    assert rows["CC BY"] == [sum("/licenses/by/" in name for name in licences)]
    assert rows["CC0"] == [sum("/zero/" in name for name in licences)]
    assert rows["CC BY-NC"] == [sum("/by-nc/" in name for name in licences)] == [2]


def test_update_revises_adds_and_deletes(first, update):
    before, after = abstracts(first), abstracts(update)
    revised = before.keys() & after.keys()
    assert stated()["revised PMIDs"] == [0, len(revised)]
    assert stated()["new PMIDs"] == [len(before), len(after.keys() - before.keys())]
    assert all(before[pmid] != after[pmid] for pmid in revised)
    deleted = {element.text for element in update.iterfind("DeleteCitation/PMID")}
    assert deleted <= before.keys() - after.keys()


def test_both_ends_of_a_retraction_point_to_each_other(first, update):
    pairs = set()
    for root in (first, update):
        for citation in root.iter("MedlineCitation"):
            for link in citation.iter("CommentsCorrections"):
                pmids = (citation.findtext("PMID"), link.findtext("PMID"))
                old, new = pmids if link.get("RefType") == "RetractionIn" else pmids[::-1]
                pairs.add((old, new, link.get("RefType")))
    assert pairs == {
        ("90000031", "90000201", "RetractionIn"),
        ("90000031", "90000201", "RetractionOf"),
        ("90000056", "90000530", "RetractionIn"),
        ("90000056", "90000530", "RetractionOf"),
    }


def test_full_texts_have_what_a_parser_meets(first, articles):
    titles = {
        c.findtext("PMID"): "".join(c.find("Article/ArticleTitle").itertext())
        for c in first.iter("MedlineCitation")
    }
    for name, article in articles.items():
        ids = {i.get("pub-id-type"): i.text for i in article.iter("article-id")}
        assert name == f"PMC009xxxxxx/PMC{ids['pmc']}.xml"
        assert titles[ids["pmid"]] == "".join(article.find(".//article-title").itertext()) + "."
        for tag in ("table-wrap", "fig", "disp-formula", "abstract", "permissions"):
            assert article.find(f".//{tag}") is not None, (name, tag)
        known = set(article.xpath("//@id"))
        assert set(article.xpath("//xref/@rid")) <= known
        words = sum(len("".join(p.itertext()).split()) for p in article.findall("body//p"))
        assert 1000 <= words <= 1800, name


def test_numbers_within_an_abstract_fit_each_other(first):
    groups = counts = 0
    for text in abstracts(first).values():
        if found := re.search(r"(\d+) were randomized: (\d+) to .*? and (\d+) to", text):
            total, one, two = map(int, found.groups())
            assert total == one + two
            groups += 1
        for part, total, share in re.findall(r" in (\d+) of (\d+) patients \(([\d.]+)%\)", text):
            assert f"{100 * int(part) / int(total):.1f}" == share
            counts += 1
    assert groups > 3
    assert counts > 20
