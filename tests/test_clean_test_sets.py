"""Documents that give test items away: they go with all that is like them, however often an item
is copied; what is common speech stays and is reported."""

import json
import random

from data import clean
from tests.test_clean import TESTS, changed, cleaned, document, prose, text
from tests.test_clean_benchmarks import MEDQA, PUBMEDQA, VIGNETTE, lines

__all__ = ["cleaned"]  # a fixture


def test_what_gives_test_items_away_goes(cleaned):
    draw = random.Random(0)
    before, behind = prose(draw), prose(draw)
    asked = text(draw, 300)
    found = [
        document(11, " ".join(asked), pmid=11),
        document(12, prose(draw), "full_text", pmid=12),
        document(13, f"{before} {VIGNETTE.upper().replace(',', ' ...').replace(' ', chr(10))}"),
        document(14, f"{VIGNETTE.replace('knee', 'elbow of training')[-70:]} {prose(draw)}"),
        document(15, VIGNETTE[:60] + behind),  # 12 words of it
        document(16, " ".join(changed(draw, asked, 0.93)), "pile_abstract", language="und"),
        document(17, " ".join(asked).title(), "pile_abstract", language="und"),
        document(18, " ".join([*text(draw, 500), *asked]), "pile_full_text", language="und"),
        document(19, f"{prose(draw)} {PUBMEDQA['QUESTION']}", "pile_abstract", language="und"),
    ]
    result = cleaned(found, tests=TESTS)
    assert result.kept == ["PMID:14", "PMID:15"]
    assert set(result.reasons.values()) == {"benchmark"}
    ways = {id: line["like"] for id, line in result.dropped.items()}
    assert {id: like for id, like in ways.items() if like} == {
        "PILEA:16": "PILEC:18",  # the nearly same text stands in it
        "PILEA:17": "PMID:11",
        "PILEC:18": "PMID:11",
    }
    assert all(line["kept"] is None for line in result.dropped.values())
    report = json.loads((result.folder / clean.CONTAMINATION).read_text())
    assert report == {
        "medqa dev": {
            "items": 1,
            "too short to look for": 0,
            "found": 1,
            "common, left in": 0,
            "by pmid": {},
            "by words": {"dev-00000": ["PMID:13"]},
            "left in": {},
        },
        "pubmedqa dev": {
            "items": 2,
            "too short to look for": 0,
            "found": 2,
            "common, left in": 0,
            "by pmid": {"11": ["PMID:11"], "12": ["PMC:12"]},
            "by words": {"11": ["PILEA:19"], "12": ["PILEA:19"]},
            "left in": {},
        },
    }
    assert result.manifest["benchmarks"]["items"]["medqa dev"] == {
        "items": 1, "too short to look for": 0, "found": 1, "common, left in": 0,
    }  # fmt: skip
    clean_before = cleaned(found)
    assert clean_before.manifest["benchmarks"] is None
    assert not (clean_before.folder / clean.CONTAMINATION).exists()


PASSAGES = {  # by item: number of texts, words of its 40 that each has, how many texts stay
    "dev-00000": (10, 13, 0),
    "dev-00001": (11, 13, 11),  # a run or two that so many texts have is common speech
    "dev-00002": (11, 24, 11),  # 12 of the item's 28 runs
    "dev-00003": (11, 25, 0),  # 13 of them
    "dev-00004": (11, 40, 0),
}


def test_words_of_more_than_ten_texts_are_common_but_not_a_whole_passage(cleaned):
    draw = random.Random(0)
    asked = {id: [f"{id[-1]}q{n}" for n in range(40)] for id in PASSAGES}
    rows = [{**MEDQA, "question": " ".join(own), "options": {}} for own in asked.values()]
    found, staying = [], []
    for id, (count, length, left) in PASSAGES.items():
        passage = " ".join(asked[id][40 - length :])
        first = len(found) + 1
        texts = [f"{prose(draw)} {passage} {prose(draw)}" for _ in range(count)]
        found += [document(first + n, text) for n, text in enumerate(texts)]
        staying += [one.id for one in found[len(found) - left :]] if left else []
    result = cleaned(found, tests={"dev.jsonl": lines(*rows)})
    assert result.kept == staying
    report = json.loads((result.folder / clean.CONTAMINATION).read_text())["medqa dev"]
    assert report["left in"] == {id: left for id, (_, _, left) in PASSAGES.items() if left}
    assert report["common, left in"] == 2
    assert {id: len(given) for id, given in report["by words"].items()} == {
        id: count for id, (count, _, left) in PASSAGES.items() if not left
    }


def test_what_many_items_have_shows_none_of_them(cleaned):
    """The last words of a dozen questions, in a dozen documents; and one has a whole question."""
    draw = random.Random(0)
    end = "which of the following is the most likely cause of all of this patient's symptoms"
    asked = [f"{' '.join(f'v{i}x{n}' for i in range(16))} {end}" for n in range(12)]
    rows = [{**MEDQA, "question": question, "options": {}} for question in asked]
    found = [document(n, f"{prose(draw)} {end}") for n in range(1, 13)]
    found.append(document(20, f"{prose(draw)} {asked[0]}"))
    result = cleaned(found, tests={"dev.jsonl": lines(*rows)})
    assert [line["id"] for line in result.dropped.values()] == ["PMID:20"]
    assert result.manifest["benchmarks"]["items"]["medqa dev"] == {
        "items": 12, "too short to look for": 0, "found": 1, "common, left in": 12,
    }  # fmt: skip


def test_copies_of_a_text_do_not_make_its_words_common(cleaned):
    """A dozen copies of a document with one run of a test item, and a dozen near copies of one with
    all of another."""
    draw = random.Random(0)
    other = VIGNETTE.replace(" ", "y ")
    once = f"{prose(draw)} {' '.join(VIGNETTE.split()[:13])}"
    whole = f"{prose(draw)} {other}"
    texts = [once] * 12 + [f"{whole} changed{number}" for number in range(12)]
    found = [document(n, one, date=str(2000 + n)) for n, one in enumerate(texts, 1)]
    tests = {"dev.jsonl": lines(MEDQA, {**MEDQA, "question": other})}
    result = cleaned([*found, document(99, prose(draw))], tests=tests)
    assert result.kept == ["PMID:99"]
    assert set(result.reasons.values()) == {"benchmark"}
    report = json.loads((result.folder / clean.CONTAMINATION).read_text())["medqa dev"]
    assert report["common, left in"] == 0
    given = {id: {*documents} for id, documents in report["by words"].items()}
    ids = [one.id for one in found]
    assert given == {"dev-00000": {*ids[:12]}, "dev-00001": {*ids[12:]}}
