"""What is kept of scored answers, and that it can be computed again."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath

from biomedlm_jax.entry import UserError
from biomedlm_jax.scoring import folder, record, scores
from biomedlm_jax.scoring.contamination import Contamination, Found
from tests import scored as small

SPLIT = small.choice([0, 1, 2, 3], subjects=["skin", "", "skin", ""])
STORE = {"path": "store", "tokens_sha256": "ef" * 32, "tokens": 10, "documents": 2}
DIRTY = Contamination(STORE, {"test-1": Found(("PMID:1",), (), 0, "")}, ("test-2",), ())


@pytest.fixture
def place(tmp_path):
    return epath.Path(tmp_path / "scores")


def files(place):
    found = [*place.iterdir(), *(place / folder.FOLDER).iterdir()]
    return {str(file.relative_to(place)): file.read_bytes() for file in found if file.is_file()}


def test_a_record_comes_back_as_it_was(place):
    made = folder.add(place, small.choosing(SPLIT, [0, 1, 2, 0], seed=7), DIRTY)
    assert folder.read(place) == [made]
    assert made.scores["accuracy"]["value"] == 0.75
    assert made.clean is not None
    assert made.clean["accuracy"]["value"] == pytest.approx(2 / 3)
    assert made.contamination is not None
    assert made.contamination["items"].keys() == {"test-1"}
    assert made.data["sha256"] == SPLIT.sha256
    assert made.checkpoint == small.CHECKPOINT
    assert made.versions["numpy"] == np.__version__
    assert made.answers == "medqa_test_classifier_seed7.jsonl"


def test_all_can_be_computed_again_from_the_lines(place):
    split = dataclasses.replace(
        SPLIT,
        items=(*SPLIT.items[:3], dataclasses.replace(SPLIT.items[3], options=("x", "y"), label=1)),
    )
    values = [[-1, -2, -3, -4], [-1, -2, -3, -4], [-4, -3, -1, -2], [-2, -1, -np.inf, -np.inf]]
    made = folder.add(place, small.scored(split, values, "option texts, per byte"), None)
    lines = folder.answers(place, made)
    assert lines[3] == {"id": "test-3", "label": 1, "chosen": 1, "scores": [-2, -1, None, None]}
    again = [[-np.inf if x is None else x for x in line["scores"]] for line in lines]
    assert scores.of(small.scored(split, again)) == made.scores
    assert folder.right(place, made).tolist() == [True, False, True, True]
    assert folder.right(place, made).mean() == made.scores["accuracy"]["value"]


def test_written_answers_keep_their_words(place):
    made = folder.add(place, small.written(SPLIT, ["A", "B. X\u2028y", "?", "D"]), None)
    assert folder.answers(place, made)[1:3] == [
        {"id": "test-1", "label": 1, "chosen": 1, "written": "B. X\u2028y"},
        {"id": "test-2", "label": 2, "chosen": -1, "written": "?"},
    ]
    made = folder.add(
        place, small.written(small.generated(["one two", "three"]), ["one", "x"]), None
    )
    assert folder.answers(place, made)[0] == {"id": "0", "written": "one"}
    assert made.scores["rouge1"]["value"] == pytest.approx(2 / 3 / 2)


def test_records_stand_beside_each_other_and_the_same_again_is_the_same_bytes(place):
    folder.add(place, small.choosing(SPLIT, [0, 0, 0, 0], "letters"), None)
    folder.add(place, small.choosing(SPLIT, [0, 1, 2, 0], seed=2), None)
    folder.add(place, small.choosing(SPLIT, [0, 1, 2, 0], seed=1), None)
    before = files(place)
    assert [str(each) for each in folder.read(place)] == [
        "medqa test, classifier, seed 1",
        "medqa test, classifier, seed 2",
        "medqa test, letters",
    ]
    folder.add(place, small.choosing(SPLIT, [0, 1, 2, 0], seed=2), None)
    assert files(place) == before


def test_another_checkpoint_does_not_replace_a_record(place):
    folder.add(place, small.choosing(SPLIT, [0, 1, 2, 0]), None)
    before = files(place)
    with pytest.raises(
        UserError, match=r"medqa test, classifier of runs/tuned, another checkpoint"
    ):
        folder.add(place, small.choosing(SPLIT, [0, 0, 0, 0], sha256="ff" * 32), None)
    with pytest.raises(UserError, match=r"have one file, medqa_test_classifier\.jsonl"):
        folder.add(place, small.choosing(SPLIT, [0, 0, 0, 0], "classifier!"), None)
    assert files(place) == before


@pytest.mark.parametrize("stop", range(3))
def test_what_is_listed_is_whole_wherever_a_replacement_ends(place, monkeypatch, stop):
    """Three files appear: the list without the record, the answers, the list with it."""
    kept = folder.add(place, small.choosing(SPLIT, [0, 0, 0, 0], "letters"), None)
    folder.add(place, small.choosing(SPLIT, [0, 1, 2, 0]), None)
    appearing, calls = folder.appearing, iter(range(9))

    def full(file):
        if next(calls) == stop:
            raise OSError("No space left on device")
        return appearing(file)

    monkeypatch.setattr(folder, "appearing", full)
    with pytest.raises(OSError, match="No space"):
        folder.add(place, small.choosing(SPLIT, [0, 0, 0, 3]), None)
    monkeypatch.undo()
    there = folder.read(place)
    assert kept in there
    assert len(there) == (2 if stop == 0 else 1)
    for each in there:
        folder.answers(place, each)


def test_answers_that_were_touched_or_lost_are_said(place):
    made = folder.add(place, small.choosing(SPLIT, [0, 1, 2, 0]), None)
    file = place / "answers" / made.answers
    file.write_text(file.read_text().replace('"chosen": 0', '"chosen": 3'))
    with pytest.raises(UserError, match="is not the answers of medqa test, classifier: its sha256"):
        folder.right(place, made)
    file.unlink()
    with pytest.raises(UserError, match="is missing; copy the folder whole"):
        folder.right(place, made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.update(format=9), "format is 9, this code reads 1"),
        (lambda x: x.pop("seed"), "missing or unknown: seed"),
        (lambda x: x.update(more=1), "missing or unknown: more"),
        (lambda x: x.update(seed="one"), "seed is 'one', not a number or null"),
        (lambda x: x.update(seed=True), "seed is 'True'"),
        (lambda x: x.update(checkpoint=[]), r"checkpoint is '\[\]', not an object"),
        (lambda x: x["checkpoint"].pop("sha256"), "checkpoint has no sha256"),
        (lambda x: x.update(answers="../x.jsonl"), "no name of a file below answers/"),
        (lambda x: x["scores"]["accuracy"].update(value=7), "scores: accuracy missing or imposs"),
        (lambda x: x["scores"].update(ece="low"), "scores: ece missing or impossible"),
        (lambda x: x["scores"].pop("chance"), "scores: chance missing or impossible"),
        (lambda x: x["clean"].update(subjects=[1]), "clean: subjects missing or impossible"),
        (lambda x: x.update(contamination={}), "contamination has no items"),
    ],
)
def test_a_damaged_record_is_refused_by_name(place, change, message):
    folder.add(place, small.choosing(SPLIT, [0, 1, 2, 0]), DIRTY)
    file = place / folder.FILE
    values = json.loads(file.read_text())
    change(values[0])
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"record 1: .*{message}"):
        folder.read(place)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[", "is no JSON"), ("{}", "is no list of records"), ("[7]", "record 1: '7' is no record")],
)
def test_a_damaged_file_is_refused(place, text, message):
    place.mkdir()
    with pytest.raises(UserError, match=r"has no scores\.json"):
        folder.read(place)
    (place / folder.FILE).write_text(text)
    with pytest.raises(UserError, match=message):
        folder.read(place)


def test_no_item_contaminated_is_not_the_same_as_none_looked_for():
    answers = small.choosing(SPLIT, [0, 1, 2, 0])
    none = record.record(answers, Contamination(STORE, {}, (), ()))
    assert none.contamination == {"store": STORE, "items": {}, "too_short": [], "common": []}
    assert none.clean is None
    assert record.record(answers, None).contamination is None
