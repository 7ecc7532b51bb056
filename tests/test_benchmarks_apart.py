"""What is trained on is not what is tested, and several benchmarks can be one training set."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biomedlm_jax.benchmarks import apart
from biomedlm_jax.benchmarks.item import Item, Split
from biomedlm_jax.benchmarks.plain import plain, read_plain
from biomedlm_jax.benchmarks.read import read_many
from biomedlm_jax.entry import UserError


def split(*items, name="train", benchmark="medqa", kind="multiple_choice"):
    return Split(benchmark, name, kind, items, {}, {})


DRUG = Item("train-00000", "Which drug, then?", ("Gentamicin", "Ceftriaxone"), 1)
BONE = Item("train-00001", "Which bone?", ("Ulna", "Tibia"), 0)


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (dataclasses.replace(BONE, id="test-00000"), ("train-00001",)),
        (
            Item("x", "which  BONE", ("tibia", " Ulna "), 1),  # other order, case, punctuation
            ("train-00001",),
        ),
        (Item("x", "Which bone?", ("Ulna", "Femur"), 0), ()),
        (Item("x", "Which bone is it?", ("Ulna", "Tibia"), 0), ()),
        (Item("train-00000", "Another?", ("a", "b"), 0), ("train-00000",)),
    ],
)
def test_overlap(other, found):
    assert apart.overlap(split(DRUG, BONE), split(other, name="test")) == found


def test_ids_are_those_of_a_benchmark():
    """The same id in two benchmarks is not the same item; in a joint split it has its benchmark."""
    other = Item("train-00000", "Another?", ("a", "b"), 0)
    assert apart.overlap(split(DRUG), split(other, name="test", benchmark="medmcqa")) == ()
    joint = split(dataclasses.replace(DRUG, id="medqa/train-00000"), benchmark="medmcqa+medqa")
    assert apart.overlap(joint, split(other, name="test")) == ("medqa/train-00000",)
    assert apart.overlap(joint, split(other, name="test", benchmark="medmcqa")) == ()


def test_classes_are_no_part_of_a_question():
    first = Item("1", "Is it so?", ("no", "yes"), 1, "One abstract.")
    again = Item("2", "Is it so", ("no", "yes"), 0, "Another.")
    train = split(first, kind="classification", benchmark="bioasq")
    assert apart.overlap(train, split(again, kind="classification", benchmark="bioasq")) == ("1",)


def test_training_on_a_test_is_refused_by_name():
    train = split(*(dataclasses.replace(BONE, id=f"train-{n:05}") for n in range(1, 13)), DRUG)
    test = split(dataclasses.replace(BONE, id="test-00000"), name="test")
    apart.check_apart(train)
    apart.check_apart(split(DRUG), test)
    with pytest.raises(UserError) as caught:
        apart.check_apart(train, test)
    for part in ("12 of the items of medqa", "test split of medqa: train-00001,", "and 2 more"):
        assert part in str(caught.value)
    left = apart.without(train, test)
    assert left.items == (DRUG,)
    assert [len(ids) for ids in left.skipped.values()] == [12]
    apart.check_apart(left, test)
    assert apart.without(left, test) is left


items = st.builds(
    Item,
    id=st.sampled_from("abcd"),
    question=st.sampled_from(["One?", "two", "Three!", "?"]),
    options=st.sampled_from([("a", "b"), ("b", "a"), ("c", "d")]),
    label=st.just(0),
)


@given(st.lists(items), st.lists(items))
def test_what_is_left_is_apart(train, other):
    ours, theirs = split(*train), split(*other, name="test")
    left = apart.without(ours, theirs)
    apart.check_apart(left, theirs)
    assert set(left.items) <= set(ours.items)
    kept = {item.id for item in left.items}
    assert kept.isdisjoint(apart.overlap(ours, theirs))


def rows(*found):
    return "".join(json.dumps(row) + "\n" for row in found)


def test_several_benchmarks_are_one(tmp_path):
    options = {"A": "a", "B": "b", "C": "c", "D": "d"}
    medqa = {"question": "Which?", "options": options, "answer_idx": "B"}
    medmcqa = {"id": "m", "question": "Not?", "opa": "a", "opb": "b", "opc": "c", "opd": "d"}
    pubmedqa = {"id": "12", "sentence1": "So?", "sentence2": "It is.", "label": "yes"}
    (tmp_path / "train.jsonl").write_text(rows(medqa, {**medqa, "answer_idx": "E"}))
    (tmp_path / "medmcqa_train.json").write_text(rows({**medmcqa, "cop": 4}))
    (tmp_path / "pubmedqa_train.json").write_text(rows(pubmedqa))
    found = read_many("medmcqa+medqa", tmp_path, "train", other_version=True)
    assert found.benchmark == "medmcqa+medqa"
    assert [item.id for item in found.items] == ["medmcqa/m", "medqa/train-00000"]
    assert sorted(found.files) == ["medmcqa_train.json", "train.jsonl"]
    assert found.skipped == {"medqa: a label out of range: 'E'": ["train.jsonl, row 2"]}
    assert [note.partition(":")[0] for note in found.notes] == ["medmcqa", "medqa"]
    with pytest.raises(UserError, match=r"medqa is multiple_choice \(4 options\), pubmedqa is cl"):
        read_many("medqa+pubmedqa", tmp_path, "train", other_version=True)
    with pytest.raises(UserError, match="fold=1 of medmcqa; its folds are none"):
        read_many("medmcqa+medqa", tmp_path, "train", fold=1, other_version=True)
    with pytest.raises(UserError, match="names a benchmark twice"):
        read_many("medqa+medqa", tmp_path, "train")
    with pytest.raises(UserError, match="there is no benchmark ''"):
        read_many("medqa+", tmp_path, "train", other_version=True)


def test_plain_prompts():
    prompt, answer = plain(DRUG, "multiple_choice")
    assert prompt == "Question: Which drug, then?\nA. Gentamicin\nB. Ceftriaxone\nAnswer:"
    assert answer == " B"
    so = Item("1", "Is it so?", ("maybe", "no", "yes"), 2, "It is.")
    assert plain(so, "classification") == ("It is.\n\nQuestion: Is it so?\nAnswer:", " yes")
    assert plain(dataclasses.replace(so, label=None), "classification")[1] == ""
    asked = Item("1", "My message.", answer="What is it?")
    assert plain(asked, "generation") == ("Question: My message.\nAnswer:", " What is it?")


@pytest.mark.parametrize(
    ("text", "kind", "place"),
    [
        (" B", "multiple_choice", 1),
        ("B\n", "multiple_choice", 1),
        ("b", "multiple_choice", -1),
        ("C", "multiple_choice", -1),
        ("B.", "multiple_choice", -1),
        ("", "multiple_choice", -1),
        (" yes", "classification", 1),
        ("yes, it is", "classification", -1),
    ],
)
def test_answers_are_read_strictly(text, kind, place):
    assert read_plain(text, ("no", "yes"), kind) == place


@given(st.integers(2, 8), st.data())
def test_every_answer_reads_back(count, data):
    label = data.draw(st.integers(0, count - 1))
    item = Item("1", "Which?", tuple(f"option {n}" for n in range(count)), label)
    for kind in ("multiple_choice", "classification"):
        assert read_plain(plain(item, kind)[1], item.options, kind) == label
