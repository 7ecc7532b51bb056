"""Scored answers as table.md and as a page: every number where it belongs, any text only text."""

import dataclasses
import re
import subprocess
import sys

import lxml.html
import pytest
from etils import epath

from biomedlm_jax.entry import UserError
from biomedlm_jax.scoring import beside, drawings, folder, page, record, tables
from biomedlm_jax.scoring.contamination import Contamination, Found
from biomedlm_jax.scoring.drawings import Bar
from tests import scored as small
from tests.conftest import ROOT

STORE = {"path": "store", "tokens_sha256": "ef" * 32, "tokens": 10, "documents": 2}
NOTHING = Contamination(STORE, {}, (), ())
HOSTILE = "<script>alert(1)</script>|\u202e\x00 &amp; \"'"
MEDQA = small.choice([0, 1, 2, 3, 0, 1], benchmark="medqa")
MMLU = small.choice([0, 1, 2], subjects=["anatomy", "college_biology", "anatomy"], benchmark="mmlu")
PUBMEDQA = small.classified(["yes", "no", "maybe", "yes"])
MEQSUM = small.generated(["what is a cold", "how long is it", "is it so"])


def dirty(*ids: str, passage: str = "thirteen words") -> Contamination:
    found = Found(("PMID:1",), ("PMC:2",), 3, passage)
    return Contamination(STORE, dict.fromkeys(ids, found), (), ())


ASKED = (
    (small.choosing(MEDQA, [0, 1, 2, 3, 3, 3], "option texts, per byte"), NOTHING),
    (small.choosing(MEDQA, [0, 1, 3, 2, 3, 3], "letters"), dirty("test-2", "test-3")),
    (small.choosing(MMLU, [0, 0, 0], "letters"), None),
    (small.choosing(PUBMEDQA, [2, 1, 0, 0], seed=1), dirty("1")),
    (small.choosing(PUBMEDQA, [2, 1, 1, 2], seed=2), dirty("1")),
    (
        small.written(PUBMEDQA, ["yes", "no, it is", "perhaps", "who knows"]),
        dirty("1", "2", "3", "4"),
    ),
    (small.written(MEQSUM, ["what is a cold", "how long", "no"]), dirty("0")),
)


def records() -> list[record.Record]:
    return [record.record(answers, why) for answers, why in ASKED]


@pytest.fixture
def place(tmp_path):
    folder_ = epath.Path(tmp_path / "scores")
    for answers, why in ASKED:
        folder.add(folder_, answers, why)
    return folder_


def test_the_table_is_the_golden_one(golden):
    found = tables.markdown(records())
    assert golden("scores.md", found) == found


def test_a_bar_is_as_long_as_its_value_and_its_interval_lies_on_it():
    values = [Bar("ours", 0.4, "40.0", 0.3, 0.52, 1), Bar("theirs", 0.7, "70.0", None, None, 7)]
    drawn = drawings.bars(values, [("chance", 0.25)])
    widths = {x.get("class"): x.get("width") for x in drawn.iter("rect")}
    assert (widths["c1"], widths["c7"]) == ("40.000%", "70.000%")
    lines = [(x.get("x1"), x.get("x2"), x.get("class")) for x in drawn.iter("line")]
    assert lines.count(("30.000%", "52.000%", "whisker")) == 1
    assert lines.count(("25.000%", "25.000%", "dashed")) == 2
    told = [x.text for x in drawn.iter("text")]
    assert {"ours", "40.0  (30.0 to 52.0)", "70.0", "chance 25.0"} <= set(told)
    assert drawn.get("aria-label") == "ours: 40.0 %; theirs: 70.0 %"


def test_what_confidence_is_worth_is_drawn_to_scale():
    """200 pixels from 0 to 1: right half of the time is a column of 100."""
    bins = [
        {"low": 0.2, "high": 0.4, "items": 5, "confidence": 0.3, "accuracy": 0.5},
        {"low": 0.8, "high": 1.0, "items": 10, "confidence": 0.9, "accuracy": 0.9},
    ]
    drawn = drawings.calibration(bins)
    columns = [x for x in drawn.iter("rect") if x.get("class") == "c0"]
    assert [float(x.get("height")) for x in columns] == [100, 180]
    assert columns[0].get("x") == "21.200%"
    told = [x for x in drawn.iter("line") if x.get("class") == "told"]
    assert [float(x.get("y1")) for x in told] == [148, 28]
    counts = [float(x.get("height")) for x in drawn.iter("rect") if x.get("class") == "c7"]
    assert counts[1] == 2 * counts[0]
    assert "confidence 30 %: 50 % right of 33.3% of the items" in drawn.get("aria-label")


def test_the_page_has_all_numbers_and_needs_no_network(place):
    (_, file) = page.write(place)
    text = file.read_text()
    root = lxml.html.document_fromstring(text)
    titles = [heading.text_content() for heading in root.iter("h2")]
    assert titles == ["In short", "MedQA", "MMLU, medical subjects", "PubMedQA", "Written texts",
                      "What was scored"]  # fmt: skip
    cells = [tuple(cell.text_content() for cell in row) for row in root.iter("tr")]
    assert (
        "tuned at step 500, letters",
        "test",
        "33.3",
        "9.7 to 70.0",
        "6",
        "50.0 of 4",
        "",
    ) in cells
    assert any(
        row[:3] == ("BioMedLM 2.7B, fine-tuned, with MedMCQA", "test", "54.7") for row in cells
    )
    assert ("medqa test, letters", "medqa test, option texts, per byte", "0", "2", "0.5") in cells
    assert ("yes", "2", "1", "1", "66.7") in cells  # a class, of what was written
    assert ("1", "PMID:1", "3", "PMC:2", "thirteen words") in cells
    assert not re.findall(r"(?:src|href)=\"(?!#)|<script|@import|url\(", text)
    assert "default-src 'none'" in text


def test_the_best_of_each_benchmark_comes_first():
    root = lxml.html.document_fromstring(page.html(records(), []))
    (tiles,) = root.find_class("figures")
    assert [(tile[1].text_content(), tile[0].text_content()) for tile in tiles] == [
        ("MedQA test, option texts, per byte, best of 2 forms", "66.7 %"),
        ("MMLU, medical subjects test, letters", "33.3 %"),
        ("PubMedQA test, classifier, mean of 2 seeds, best of 2 forms", "75.0 %"),
        ("ROUGE-1, MeQSum test, generated", "55.6"),
    ]


def test_the_same_seed_is_compared_and_another_split_is_not(place):
    found = page.pairs(place, folder.read(place))
    assert [(pair.first.form, pair.second.form) for pair in found] == [
        ("letters", "option texts, per byte")
    ]
    assert found[0].found == (0, 2, 0.5)


def test_bars_of_several_splits_say_which():
    def bars(*answers) -> list[str]:
        """Names of our own, the longest first."""
        contest, *_ = beside.contests([record.record(one, None) for one in answers])
        return [bar.name for bar in page._bars(contest.rows) if bar.name.startswith("letters")]

    test = small.choosing(small.choice([0, 1]), [0, 1], "letters")
    dev = small.choosing(small.choice([0, 1], name="dev"), [0, 0], "letters")
    assert bars(test) == ["letters"]
    assert bars(dev, test) == ["letters, test", "letters, dev"]


def test_any_text_is_only_text(tmp_path):
    place = epath.Path(tmp_path / "scores")
    items = tuple(
        dataclasses.replace(item, id=f"{n} {HOSTILE}", subject=f"{HOSTILE} {n}")
        for n, item in enumerate(MEDQA.items)
    )
    split = dataclasses.replace(MEDQA, benchmark=f"odd {HOSTILE}", items=items)
    answers = small.choosing(split, [0] * 6, f"form {HOSTILE}", place=f"runs/x {HOSTILE}")
    folder.add(place, answers, dirty(items[0].id, passage=HOSTILE))
    table, file = page.write(place)
    root = lxml.html.document_fromstring(file.read_text())
    assert not list(root.iter("script"))
    assert "<script>alert(1)</script>" in root.text_content()
    assert "\u202e" not in file.read_text() + table.read_text()
    assert "<script" not in table.read_text()
    lines = [line for line in table.read_text().splitlines() if line.startswith("|")]
    counts = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    assert set(counts) == {len(tables.HEAD) + 1, len(tables.MADE) + 1}


def test_the_same_folder_gives_the_same_bytes_and_a_damaged_one_leaves_the_old(place):
    made = page.write(place)
    before = [file.read_bytes() for file in made]
    assert [file.read_bytes() for file in page.write(place)] == before
    (place / folder.FOLDER / "medqa_test_letters.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="is not the answers of medqa test, letters"):
        page.write(place)
    assert [file.read_bytes() for file in made] == before


def test_an_empty_folder_has_no_page(tmp_path):
    (tmp_path / folder.FILE).write_text("[]")
    with pytest.raises(UserError, match="no scored answers yet"):
        page.write(epath.Path(tmp_path))


def test_the_command(place):
    command = [sys.executable, "-m", "biomedlm_jax.scoring.page"]
    run = subprocess.run([*command, f"--scores={place}"], cwd=ROOT, capture_output=True, text=True,
                         check=True)  # fmt: skip
    assert run.stdout.splitlines() == [f"{place}/table.md", f"{place}/report.html"]
    run = subprocess.run([*command, f"--scores={ROOT}"], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"error: {ROOT} has no scores.json")
