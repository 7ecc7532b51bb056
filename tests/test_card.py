"""The data card: its numbers are the manifests', they add up, and no file can write into it."""

import collections
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import lxml.etree as etree
import lxml.html
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from biomedlm_jax.pipeline.store import SPLITS
from data import card, clean, documents, parse
from data.cards import charts as card_charts
from data.cards import facts as card_facts
from data.cards import numbers as card_numbers
from data.cards import rules as card_rules
from data.cards.page import Chart, Table
from data.cleaning.describe import Rules
from data.tokenize import tokenize
from tests.conftest import ROOT, SHARED, sentences
from tests.test_card_page import unescaped
from tests.test_jats import CC_BY, article
from tests.test_parse import citation, deletion

SCRIPT = "<script>alert(1)<!-- | `x` [y](javascript:z) _a_ *b*"
CLOSED = "<license><p>All rights reserved.</p></license>"
FILE = "<img src=x onerror=alert(2)>|.xml"
FOREIGN = "<Language>eng</Language>", "<Language>&lt;b&gt;</Language>"


def text(seed):
    return " ".join(sentences(4, seed=seed))


def write_input(folder):
    """Every end of both sources, a file with a hostile name and records that can not be read."""
    folder.mkdir()
    many = [citation(n, text(n)) for n in range(1, 31)]
    many += [
        citation(3, text(103)),
        citation(40, ""),
        citation(41, types=["Retracted Publication"]),
    ]
    many += [citation(42, text(4)), citation(43, text(43)).replace(*FOREIGN), deletion(5)]
    many += ["<PubmedArticle><PMID>1</PMID></PubmedArticle>"]
    many += [f"<PubmedArticle><PMID>{n}</PMID><x></y></PubmedArticle>" for n in (77, 78, 123456)]
    inside = f"<PubmedArticleSet>{''.join(many)}</PubmedArticleSet>"
    (folder / FILE).write_text(inside)
    (folder / "turned\u202e.xml").write_text("<notes/>")
    for n, licence in enumerate([CC_BY] * 6 + [CLOSED], start=201):
        body = f"<p>{text(n)} {text(n + 50)}</p>"
        (folder / f"PMC{n}.nxml").write_text(article(n, body, pmid=2, licence=licence))
    return folder


class Corpus(NamedTuple):
    """Folders: of documents, of those that stay, and of the store of these."""

    parsed: Path
    cleaned: Path
    store: Path


def make_corpus(folder, vocabulary):
    """What `write_input` has, cleaned, and with a test set that one abstract gives away."""
    made = Corpus(folder / "parsed", folder / "cleaned", folder / "store")
    parse.parse(write_input(folder / "input"), made.parsed, 100)
    (folder / "tests").mkdir()
    (folder / "tests" / "test.source").write_text(f"{sentences(4, seed=9)[1]}\n{text(999)}\n")
    (folder / "tests" / f"README{SCRIPT.replace('/', '')}.md").write_text("Words.")
    rules = Rules(least_words=5, least_english=0)
    clean.clean(made.parsed, made.cleaned, rules, folder / "tests")
    tokenize(made.cleaned, vocabulary, made.store)
    return made


@pytest.fixture(scope="module")
def corpus(vocabulary, tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"), vocabulary)


class Card:
    """A card that was written, for reading."""

    def __init__(self, folder):
        self.markdown = (folder / card.MARKDOWN).read_text()
        self.page = (folder / card.PAGE).read_text()
        self.root = lxml.html.document_fromstring(self.page)
        self.text = " ".join(self.root.text_content().split())

    def tables(self, folded=True):
        """{first word of the head: rows of cells, the head first}, of the page."""
        found = {}
        for table in self.root.iter("table"):
            if folded or not list(table.iterancestors("details")):
                rows = [[cell.text_content() for cell in row] for row in table.iter("tr")]
                found[rows[0][0]] = rows
        return found

    def counts(self, name):
        """{row: {column: number}} of a table."""
        head, *rows = self.tables()[name]
        numbers = ((name, [float(re.sub("[,%<>]", "", n)) for n in rest]) for name, *rest in rows)
        return {name: dict(zip(head[1:], found, strict=True)) for name, found in numbers}


def write(store, folder, output):
    output.mkdir()
    card.write(epath.Path(store), folder and epath.Path(folder), epath.Path(output))
    return Card(output)


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    return write(corpus.store, corpus.cleaned, tmp_path_factory.mktemp("made") / "card")


@pytest.fixture(scope="module")
def manifest(corpus):
    return json.loads((corpus.store / "manifest.json").read_text())


class TestNumbers:
    def test_stages_are_the_manifests_and_add_up(self, made, manifest):
        counts = manifest["documents"]["counts"]
        names = {name: source for source, name in card_facts.NAMES.items()}
        for stage, prefix in (("settled", ""), ("cleaned", "clean ")):
            table = made.counts(stage)
            together = table.pop("together")
            for column, whole in together.items():
                numbers = {end: row[column] for end, row in table.items() if row[column]}
                assert sum(numbers.values()) == whole
                if column != "all":
                    assert numbers == counts[prefix + names[column]]
            assert sum(n for column, n in together.items() if column != "all") == together["all"]
        drawn = next(made.root.iter("svg")).get("aria-label").split("; ")
        for stage, drawing in zip(("settled", "cleaned"), drawn[:2], strict=True):
            ends = {end: row["all"] for end, row in made.counts(stage).items()}
            whole = ends.pop("together")
            assert drawing.split(": ")[0].endswith(f" {whole:.0f}")
            assert drawing.split(": ")[1] == ", ".join(f"{e} {n:.0f}" for e, n in ends.items())
        assert made.counts("settled")["kept"] == made.counts("cleaned")["together"]
        assert made.counts("divided")["both"]["documents"] == made.counts("cleaned")["kept"]["all"]
        assert made.counts("settled")["together"]["all"] == 35 + 7
        # What the input was made for.
        assert counts["abstract"] == {
            "deleted": 1, "full text is there": 1, "kept": 30, "no text": 1, "retracted": 1,
            "revised": 1,
        }  # fmt: skip
        assert counts["clean"]["same text"] == 1
        assert counts["clean"]["benchmark"] == 1
        assert "at least one of each pair of duplicates that was found is left out" in made.text

    def test_tokens_are_the_stores(self, made, manifest):
        units = ("documents", "bytes", "tokens")
        splits, tally = manifest["splits"], manifest["tally"]
        for name, split in zip(("train", "held out"), SPLITS, strict=True):
            assert made.counts("divided")[name] == {unit: splits[split][unit] for unit in units}
        assert splits["heldout"]["documents"] > 0
        for source, found in tally["source"].items():
            row = made.counts("source")[card_facts.NAMES[source]]
            assert {unit: row[unit] for unit in units} == found
            assert row["bytes per token"] == round(found["bytes"] / found["tokens"], 2)
        for field in ("year", "language", "licence"):
            rows = made.counts(field)
            assert {name: row["tokens"] for name, row in rows.items()} == {
                card_charts.written(name): units["tokens"] for name, units in tally[field].items()
            }
            assert sum(row["share"] for row in rows.values()) == pytest.approx(100, abs=0.2)
        assert set(made.counts("licence")) == {"PubMed", "CC-BY"}

    def test_files_hashes_and_vocabulary_are_named(self, made, manifest):
        documents = manifest["documents"]
        rows = made.tables()["file"]  # of test sets and of sources; the latter come last
        assert {row[0]: row[-1] for row in rows[1:]} == {
            card_charts.written(file["name"]): file["sha256"] for file in documents["files"]
        }
        assert sum(made.counts("kind")["together"][unit] for unit in ("files", "bytes")) == (
            len(documents["files"]) + sum(file["bytes"] for file in documents["files"])
        )
        for digest in (
            documents["sha256"],
            manifest["vocabulary"]["sha256"],
            *(manifest["splits"][split]["sha256"] for split in SPLITS),
        ):
            assert digest in made.text
            assert digest in made.markdown
        assert "SentencePiece" in made.text

    def test_duplicates_and_test_sets(self, made, manifest):
        assert made.counts("left out as")["the same words in the same order as another"] == {
            "documents": 1
        }
        counts = manifest["documents"]["benchmarks"]["items"]["meqsum test"]
        assert {name: counts[name] for name in card_facts.ITEM} == {
            "items": 2,
            "too short to look for": 0,
            "found": 1,
        }
        row = made.counts("test set and part")["meqsum test"]
        assert row == {**counts, "by PMID": 0, "by words": 1}

    def test_what_else_was_counted_reads_as_a_sentence(self, made):
        (listed,) = re.findall(r"Also counted there: ([^.]*)\.", made.text)
        among = listed.split(", ")
        assert {"1 deleted PMIDs", "5 unreadable"} <= set(among)
        assert all(re.fullmatch(r"[\d,]+ [a-zA-Z ]+", part) for part in among)

    def test_other_counts_of_test_sets_have_a_column_each(self, corpus):
        """Those of later versions of the cleaning, in whichever test sets they stand."""
        facts = card_facts.read(epath.Path(corpus.store), epath.Path(corpus.cleaned))
        items = facts.documents["benchmarks"]["items"]
        items["meqsum test"] |= {"common, left in": 3, "share": 0.5, "names": ["x"]}
        items["other test"] = {**items["meqsum test"], "found": 0, "new": 7}
        assert facts.contamination
        facts.contamination["other test"] = {"by pmid": {}, "by words": {}}
        (table,) = (
            t for t in card_rules.benchmarks(facts) if isinstance(t, Table) and not t.folded
        )
        first, *head = table.head
        assert first == "test set and part"
        rows = {name: dict(zip(head, numbers, strict=True)) for name, *numbers in table.rows}
        assert {"found", "by PMID", "by words", "common, left in", "new"} < set(head)
        assert not {"share", "names"} & set(head)
        assert [row["common, left in"] for row in rows.values()] == [3, 3, 6]
        assert [row["new"] for row in rows.values()] == [0, 7, 7]
        assert [row["found"] for row in rows.values()] == [1, 0, 1]

    def test_markdown_and_page_have_the_same_tables(self, made):
        page = [
            [[cell.text_content() for cell in row] for row in table.iter("tr")]
            for table in made.root.iter("table")
            if not list(table.iterancestors("details"))
        ]
        found = []
        for block in made.markdown.split("\n\n"):
            if block.startswith("| "):
                rows = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in block.splitlines()]
                found.append([[unescaped(cell) for cell in row] for row in [rows[0], *rows[2:]]])
        assert found == page
        assert len(found) > 10


@given(
    st.dictionaries(st.integers(1780, 2030), st.integers(0, 10**9), max_size=80), st.integers(0, 9)
)
def test_years_are_folded_and_none_is_lost(tokens, undated):
    tally = {str(y): {"documents": 1, "tokens": n} for y, n in tokens.items()}
    if undated:
        tally["None"] = {"documents": 1, "tokens": undated}
    (table,) = (block for block in card_numbers.years(tally) if isinstance(block, Table))
    assert sum(row[1] for row in table.rows) == len(tally)
    assert sum(row[2] for row in table.rows) == sum(tokens.values()) + undated
    assert len(table.rows) <= 10 + 26 + 1


def test_a_decade_is_named_by_the_years_that_are_there():
    tally = {str(year): {"documents": 1, "tokens": year} for year in (1, 5, 1983, 1989, 1990, 2001)}
    (table,) = (block for block in card_numbers.years(tally) if isinstance(block, Table))
    assert [row[:3] for row in table.rows] == [
        ["2001", 1, 2001],
        ["1990", 1, 1990],
        ["1983 to 1989", 2, 1983 + 1989],
        ["1 to 5", 2, 6],
    ]


def test_misprinted_years_do_not_press_the_drawing():
    tally = {str(year): {"documents": 1, "tokens": 10_000} for year in range(1990, 2020)}
    tally |= {str(year): {"documents": 1, "tokens": 5} for year in (1001, 1850, 9999)}
    blocks = card_numbers.years(tally)
    (drawn,) = (block for block in blocks if isinstance(block, Chart))
    (table,) = (block for block in blocks if isinstance(block, Table))
    assert "before 1990 and after 2019, 15 tokens together, are in the table only" in drawn.caption
    assert len([r for r in drawn.drawing if r.get("class") == "c0"]) == 30
    assert sum(row[2] for row in table.rows) == 300_015


class TestPage:
    def test_what_comes_from_files_is_text(self, made):
        tags = collections.Counter(element.tag for element in made.root.iter())
        assert not {"script", "img", "b-", "iframe", "object", "link"} & set(tags)
        assert FILE in made.text
        assert "<b>" in made.tables()["language"][-1][0] + made.tables()["language"][1][0]
        assert "<script>alert(1)<!--" in made.text
        assert not re.search(r"<(?!/?\w+[^<>]*>)", made.markdown)
        assert "<" not in made.markdown
        assert "\u202e" not in made.page + made.markdown
        assert "turned\ufffd.xml" in made.text

    def test_no_drawing_where_there_is_one_value(self, made):
        assert len(list(made.root.iter("svg"))) == 5  # flow, source, year, language, licence
        blocks = card_numbers.years({"2001": {"documents": 2, "tokens": 3}})
        assert not [block for block in blocks if isinstance(block, Chart)]

    def test_nothing_is_loaded(self, made):
        """One file without a script, and its only link leads to NLM's terms."""
        for drawing in re.findall(r"<svg.*?</svg>", made.page, re.DOTALL):
            etree.fromstring(drawing)
        outside = [
            value
            for element in made.root.iter()
            for name, value in element.attrib.items()
            if name in ("src", "href", "data", "srcset", "style") and not value.startswith("#")
        ]
        assert outside == ["https://www.nlm.nih.gov/databases/download/terms_and_conditions.html"]
        assert made.page.count("://") == made.markdown.count("://") == 1
        assert "url(" not in made.page
        assert "@import" not in made.page
        (policy,) = made.root.xpath("//meta[@http-equiv]/@content")
        assert policy == "default-src 'none'; style-src 'unsafe-inline'"
        ids = {element.get("id") for element in made.root.iter("section")}
        assert {a.get("href")[1:] for a in made.root.iter("a")} - ids == {outside[0][1:]}
        assert all(drawing.get("aria-label") for drawing in made.root.iter("svg"))


class TestSameCard:
    def test_from_anywhere(self, made, corpus, tmp_path):
        """The bytes depend on the corpus, not on where or when."""
        other = tmp_path / "elsewhere"
        shutil.copytree(corpus.store, other / "store")
        shutil.copytree(corpus.cleaned, other / "cleaned")
        again = write(other / "store", other / "cleaned", tmp_path / "card")
        assert again.page == made.page
        assert again.markdown == made.markdown
        assert str(tmp_path) not in again.page
        assert str(corpus.store.parent) not in made.page + made.markdown

    def test_in_place_of_an_older_one(self, corpus, made, tmp_path):
        for name in (card.MARKDOWN, card.PAGE):
            (tmp_path / name).write_text("old")
        card.write(*map(epath.Path, (corpus.store, corpus.cleaned, tmp_path)))
        assert Card(tmp_path).page == made.page
        assert sorted(file.name for file in tmp_path.iterdir()) == [card.PAGE, card.MARKDOWN]


class TestQuarantine:
    def test_like_reasons_are_counted_together(self, made, corpus):
        lines = (corpus.cleaned / documents.QUARANTINE).read_text().splitlines()
        rows = made.tables()["reason (N: any number)"][1:]
        assert sum(int(row[2]) for row in rows) == len(lines) == 5
        assert rows[0][2] == "3"  # the same fault in three places
        assert rows[0][1].count(FILE) == 3
        assert "record" in rows[0][1]
        assert len(rows) == 3

    def test_without_the_folder(self, corpus, tmp_path):
        found = write(corpus.store, None, tmp_path / "card")
        assert "5 records or files could not be read" in found.text
        assert "was not at hand" in found.text
        assert not {"by PMID", "by words"} & set(found.tables()["test set and part"][0])


@pytest.fixture(scope="module")
def plain(corpus, vocabulary, tmp_path_factory):
    """The card of a store that was neither cleaned nor divided, with texts of The Pile."""
    folder = tmp_path_factory.mktemp("plain")
    shutil.copytree(corpus.parsed.parent / "input", folder / "input")
    pieces = [("PubMed Abstracts", 1), ("PubMed Abstracts", 1), ("PubMed Central", 2), (SCRIPT, 3)]
    lines = ({"text": text(seed), "meta": {"pile_set_name": name}} for name, seed in pieces)
    (folder / "input/00.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    parse.parse(folder / "input", folder / "documents", 0)
    tokenize(folder / "documents", vocabulary, folder / "store")
    return write(folder / "store", folder / "documents", folder / "card")


class TestPlainStore:
    def test_says_what_was_not_done(self, plain):
        for text in (plain.text, plain.markdown):
            assert "The documents were not cleaned" in text
            assert "no test set was kept out of this corpus" in text
            assert "Nothing else was looked for" in text
            assert "the same text may stand on both sides" in text
        assert "cleaned" not in plain.tables()
        assert "documents before cleaning" not in plain.text

    def test_the_pile(self, plain):
        assert "35 citations and 7 articles and 3 pieces" in plain.text
        settled = plain.counts("settled")
        assert settled["same text"]["The Pile's PubMed Abstracts"] == 1
        assert settled["together"]["all"] == 35 + 7 + 3
        assert plain.counts("year")["no date"]["documents"] == 2
        assert plain.counts("licence")["The Pile"]["documents"] == 2
        rows = plain.tables()["set of The Pile that is not used"]
        assert rows[1:] == [[SCRIPT, "1", "100.0%"]]
        assert "The Pile gives no number, date, language or licence" in plain.text

    def test_nothing_held_out(self, plain):
        assert plain.counts("divided")["held out"] == {"documents": 0, "bytes": 0, "tokens": 0}
        assert "Held out: 0 of 1,000 documents" in plain.text
        assert "0 of the documents are held out" in plain.text


class TestCommand:
    @staticmethod
    def run(*flags, room=None):
        limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}));" if room else ""
        code = f"import resource, runpy; {limit} runpy.run_module('data.card', run_name='__main__')"
        command = [sys.executable, "-B", "-c", code, *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    def test_from_documents_to_a_card(self, made, corpus, tmp_path):
        output = tmp_path / "new" / "card"
        found = self.run(
            f"--store={corpus.store}", f"--documents={corpus.cleaned}", f"--output={output}"
        )
        assert (found.returncode, found.stderr) == (0, "")
        assert found.stdout == f"{output}/card.md\n{output}/card.html\n"
        assert Card(output).page == made.page

    @pytest.mark.parametrize("room", [1000, 20_000])  # for neither, for card.md alone
    def test_no_room(self, corpus, made, tmp_path, room):
        assert len(made.markdown.encode()) < 20_000 < len(made.page.encode())
        found = self.run(f"--store={corpus.store}", f"--output={tmp_path}", room=room)
        assert found.returncode == 2
        (line,) = found.stderr.splitlines()
        assert re.match(r"error: --output=.* can not be written: File too large; make room", line)
        assert not (tmp_path / card.MARKDOWN).exists()
        assert not (tmp_path / card.PAGE).exists()

    def test_no_folder(self, corpus, tmp_path):
        (tmp_path / "file").write_text("x")
        found = self.run(f"--store={corpus.store}", f"--output={tmp_path}/file")
        assert found.returncode == 2
        assert "is a file; name a folder" in found.stderr


@pytest.mark.skipif(not (SHARED / "pubmed_xml").is_dir(), reason=f"{SHARED}/pubmed_xml is missing")
def test_real_citations(vocabulary, tmp_path):
    parse.parse(SHARED / "pubmed_xml", tmp_path / "documents", 20)
    clean.clean(tmp_path / "documents", tmp_path / "cleaned")
    tokenize(tmp_path / "cleaned", vocabulary, tmp_path / "store")
    found = write(tmp_path / "store", tmp_path / "cleaned", tmp_path / "card")
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    total = sum(split["tokens"] for split in manifest["splits"].values())
    assert f"Data card: PubMed abstracts, {total:,} tokens" in found.text
    assert sum(row["tokens"] for row in found.counts("year").values()) == total
