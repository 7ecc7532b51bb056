"""What was answered: the highest score, or a text read by a rule that guesses nothing."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biomedlm_jax.benchmarks.item import Item
from biomedlm_jax.entry import UserError
from biomedlm_jax.scoring import answers
from biomedlm_jax.scoring.answers import UNREAD
from tests import scored as small

DRUGS = Item("1", "Which?", ("Aspirin", "Penicillin G", "C. difficile toxin", "No drug"), 1)
CLASSES = Item("2", "Does it?", ("maybe", "no", "yes"), 2)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("B", 1),
        (" B\nBecause ...", 1),
        ("B.", 1),
        ("B.\nbecause", 1),
        ("B) Penicillin G, which ...", 1),
        ("(B)", 1),
        ("[B] Penicillin", 1),
        ("B: penicillin g is given", 1),  # the option's own text may begin small
        ("Answer: B", 1),
        ("The correct answer is (B).", 1),
        ("the answer is: D", 3),
        ("penicillin g.", 1),
        ("Answer: Aspirin\nIt ...", 0),
        ("C. difficile toxin", 2),  # an option's text, and no letter
        ("A 45-year-old man should be given B", UNREAD),
        ("C. difficile infection", UNREAD),
        ("A or B", UNREAD),
        ("A. B.", UNREAD),
        ("A.\nB.", UNREAD),
        ("(A) (B)", UNREAD),
        ("b", UNREAD),
        ("E", UNREAD),  # there is no such option
        ("It is B", UNREAD),
        ("Aspirin or Penicillin G", UNREAD),
        ("", UNREAD),
        ("...", UNREAD),
    ],
)
def test_letters_and_option_texts(text, place):
    assert answers.read(text, DRUGS, "multiple_choice") == place


def test_a_text_that_two_options_have_is_no_answer():
    item = Item("1", "Which?", ("Both", "both!", "None"), 0)
    assert answers.read("both", item, "multiple_choice") == UNREAD
    assert answers.read("none", item, "multiple_choice") == 2


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("yes", 2),
        ("  Yes, there is no doubt", 2),
        ("NO.", 1),
        ("maybe: yes or no", 0),
        ("yes it does", 2),
        ("yes or no", UNREAD),
        ("yes/no", UNREAD),
        ("It is yes", UNREAD),
        ("yesterday", UNREAD),
        ("", UNREAD),
    ],
)
def test_names_of_classes(text, place):
    assert answers.read(text, CLASSES, "classification") == place


@given(st.text(max_size=60))
def test_any_text_is_an_option_or_unread(text):
    for item, kind in ((DRUGS, "multiple_choice"), (CLASSES, "classification")):
        assert answers.read(text, item, kind) in range(UNREAD, len(item.options))


def test_the_highest_score_is_chosen_among_the_options_that_an_item_has():
    split = small.choice([0, 1])
    first, second = split.items
    split = dataclasses.replace(
        split, items=(first, dataclasses.replace(second, options=second.options[:2]))
    )
    found = small.scored(split, [[-1, -3, -2, -4], [-5, -5, -np.inf, -np.inf]])
    assert found.chosen.tolist() == [0, 0]  # of equal scores the first
    assert found.right.tolist() == [True, False]
    with pytest.raises(ValueError, match=r"item test-1 has 2 options and the scores"):
        small.scored(split, [[-1, -3, -2, -4], [-5, -5, -6, -np.inf]])
    with pytest.raises(ValueError, match="item test-0 has 4 options"):
        small.scored(split, [[-1, np.nan, -2, -4], [-5, -5, -np.inf, -np.inf]])


def test_written_answers_are_read_and_some_of_them_taken():
    split = small.classified(["yes", "no", "maybe"])
    found = small.written(split, ["Yes.", "I think", "maybe"])
    assert found.chosen.tolist() == [2, UNREAD, 0]
    some = found.only(np.array([False, True, True]))
    assert some.chosen.tolist() == [UNREAD, 0]
    assert [item.id for item in some.split.items] == ["2", "3"]
    assert some.right.tolist() == [False, True]


def test_what_is_no_answer_is_refused():
    split = small.choice([0, 1])
    with pytest.raises(ValueError, match="either scores or texts"):
        answers.Answers(split, "letters", None, None, small.CHECKPOINT, None)
    with pytest.raises(ValueError, match="no sha256"):
        answers.Answers(split, "letters", None, ("A", "B"), {"place": "runs/x"}, None)
    with pytest.raises(ValueError, match="1 texts answer 2 items"):
        small.written(split, ["A"])
    with pytest.raises(ValueError, match="no options to score"):
        small.scored(small.generated(["a text"]), [[0.0]])
    hidden = dataclasses.replace(
        split, items=tuple(dataclasses.replace(item, label=None) for item in split.items)
    )
    with pytest.raises(UserError, match="2 items have no answer that is published"):
        _ = small.written(hidden, ["A", "B"]).labels
