"""Every measure on an example that was worked by hand, and what holds for any answers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biomedlm_jax import held_out
from biomedlm_jax.entry import UserError
from biomedlm_jax.scoring import measures, rouge, scores
from biomedlm_jax.scoring.answers import UNREAD
from biomedlm_jax.scoring.measures import Class
from tests import scored as small

RIGHT = st.integers(0, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(max(n, 1), 90)))


def test_wilsons_interval():
    """5 of 10: middle (0.5 + 3.8415 / 20) / 1.38415 = 0.5, half 1.96 sqrt(0.025 + 3.8415 / 400) /
    1.38415 = 0.2634. Brown, Cai and DasGupta 2001 note the closed form at the ends:
    0 of n is n / (n + z^2) away from 1."""
    found = measures.proportion(5, 10)
    assert found == pytest.approx((0.5, 0.2366, 0.7634, 10), abs=1e-4)
    assert measures.proportion(0, 10) == pytest.approx((0, 0, 3.8415 / 13.8415, 10), abs=1e-4)
    assert measures.proportion(10, 10) == pytest.approx((1, 10 / 13.8415, 1, 10), abs=1e-4)
    with pytest.raises(ValueError, match="0 of 0"):
        measures.proportion(0, 0)


@given(RIGHT)
def test_an_interval_has_its_share_and_ends_between_0_and_1(counts):
    right, items = counts
    value, low, high, _ = measures.proportion(right, items)
    assert 0 <= low <= value <= high <= 1
    mirrored = measures.proportion(items - right, items)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((low, high))


def test_the_mean_over_seeds():
    """Of 1, 2, 3: s = 1, t of 2 degrees = 4.303, so 2 +- 4.303 / sqrt(3)."""
    assert measures.mean([1, 2, 3]) == pytest.approx((2, 2 - 2.4841, 2 + 2.4841, 3), abs=1e-3)
    with pytest.raises(ValueError, match="1 values have no interval"):
        measures.mean([0.5])


def test_macro_f1():
    """Of a: 2 right of 3 items, chosen 3 times: F1 2/3. Of b: 1 of 2, chosen once: 2/3. Of c,
    which no item is, chosen once: 0. Of d, neither: no class of these."""
    labels, chosen = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 2, 1, 0])
    found = measures.classes(labels, chosen, 4)
    assert found == [Class(3, 3, 2), Class(2, 1, 1), Class(0, 1, 0), Class(0, 0, 0)]
    assert [each.f1 for each in found] == pytest.approx([2 / 3, 2 / 3, 0, 0])
    assert measures.macro_f1(found) == pytest.approx(4 / 9)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_macro_f1_is_scikit_learns(pairs):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    labels, chosen = np.array(pairs).T
    ours = measures.macro_f1(measures.classes(labels, chosen, 4))
    theirs = metrics.f1_score(labels, chosen, average="macro", zero_division=0)
    assert ours == pytest.approx(theirs)


def test_expected_calibration_error():
    """Two items of confidence 0.9 and one of 1.0, in bins (13/15, 14/15] and (14/15, 1]; one of
    0.5 in (7/15, 8/15]. Gaps 0.4, 0 and 0.5 with shares 2/4, 1/4 and 1/4: 0.325."""
    confidence = np.array([0.9, 0.9, 1.0, 0.5])
    bins = measures.calibration(confidence, np.array([True, False, True, False]))
    assert [each.items for each in bins] == [1, 2, 1]
    assert [each.accuracy for each in bins] == [0, 0.5, 1]
    assert (bins[0].low, bins[0].high) == pytest.approx((7 / 15, 8 / 15))
    assert measures.expected_calibration_error(bins) == pytest.approx(0.325)


@given(
    st.lists(st.tuples(st.floats(1e-6, 1), st.booleans()), min_size=1, max_size=40), st.randoms()
)
def test_calibration_is_a_share_and_does_not_know_an_order(items, draw):
    def error(items):
        confidence, right = (np.array(values) for values in zip(*items, strict=True))
        bins = measures.calibration(confidence, right)
        assert sum(each.items for each in bins) == len(items)
        assert all(each.low - 1e-9 <= each.confidence <= each.high + 1e-9 for each in bins)
        return measures.expected_calibration_error(bins)

    first = error(items)
    assert 0 <= first <= 1
    mixed = list(items)
    draw.shuffle(mixed)
    assert error(mixed) == pytest.approx(first)


def test_brier():
    """0.7, 0.2, 0.1 where the first is right: 0.09 + 0.04 + 0.01 = 0.14; certain and wrong: 2."""
    confidence = np.array([[0.7, 0.2, 0.1], [1, 0, 0]])
    assert measures.brier(confidence[:1], np.array([0])) == pytest.approx(0.14)
    assert measures.brier(confidence, np.array([0, 2])) == pytest.approx((0.14 + 2) / 2)


def test_confidence_is_the_softmax_of_the_options_that_there_are():
    found = measures.confidences(np.array([[0, math.log(3), -np.inf], [-2000, -2000, -2000]]))
    assert found[0] == pytest.approx([0.25, 0.75, 0])
    assert found[1] == pytest.approx([1 / 3] * 3)


def test_mcnemars_exact_test():
    """3 against 1: 2 (1 + 4) / 16 = 0.625. 6 against 0: 2 / 64."""
    first = np.array([1, 1, 1, 0, 1, 0], bool)
    second = np.array([0, 0, 0, 1, 1, 0], bool)
    assert measures.mcnemar(first, second) == (3, 1, pytest.approx(0.625))
    assert measures.mcnemar(second, first) == (1, 3, pytest.approx(0.625))
    assert measures.mcnemar(np.ones(6, bool), np.zeros(6, bool)).p == pytest.approx(2 / 64)
    assert measures.mcnemar(first, first).p == 1
    with pytest.raises(ValueError, match="6 answers can not be paired with 5"):
        measures.mcnemar(first, second[:5])


def test_bits_per_byte():
    """8 nats of ln 2 each over 4 bytes are 2 bits a byte; a held-out score says the same."""
    assert measures.bits_per_byte(8 * math.log(2), 4) == pytest.approx(2)
    assert held_out.Score(8 * math.log(2), 3, 4).bits_per_byte == pytest.approx(2)


def test_rouge_with_stems():
    """By stems "cats sat" has 2 of 2 words and 2 of 3 of "the cat sat", F1 0.8; of pairs 1 of 1 and
    1 of 2, 2/3; in order both words, 0.8. The other text shares nothing."""
    found = rouge.rouge(["cats sat", "dog"], ["the cat sat", "bird"])
    assert found["rouge1"].value == pytest.approx(0.8 / 2)
    assert found["rouge2"].value == pytest.approx(2 / 3 / 2)
    assert found["rougeL"].value == pytest.approx(0.8 / 2)
    assert found["rouge1"].of == 2


def test_all_of_a_classification():
    split = small.classified(["yes", "yes", "yes", "no"])
    found = scores.of(small.written(split, ["yes", "Yes.", "who knows", "yes"]))
    assert found["unreadable"] == 1
    assert found["accuracy"]["right"] == 2
    assert found["accuracy"]["value"] == 0.5
    assert found["chance"] == pytest.approx(1 / 3)
    assert found["majority"] == 0.75
    assert found["classes"]["yes"] == {
        "items": 3,
        "chosen": 3,
        "right": 2,
        "f1": pytest.approx(2 / 3),
    }
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert "ece" not in found  # a text has no confidence


def test_all_of_a_choice_and_its_subjects():
    split = small.choice([0, 1, 2, 3], subjects=["anatomy", "skin", "skin", ""])
    found = scores.of(small.choosing(split, [0, 1, 0, 3]))
    confidence = 1 / (1 + 3 * math.exp(-2))
    assert found["accuracy"]["value"] == 0.75
    assert {name: (x["right"], x["of"]) for name, x in found["subjects"].items()} == {
        "anatomy": (1, 1),
        "skin": (1, 2),
    }
    assert found["ece"] == pytest.approx(abs(0.75 - confidence))
    assert "macro_f1" not in found  # the place of an option means nothing


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20), st.data()
)
def test_the_order_of_items_changes_nothing(pairs, data):
    order = data.draw(st.permutations(range(len(pairs))))
    split = small.choice([label for label, _ in pairs])
    one = small.choosing(split, [chosen for _, chosen in pairs])
    other = one.only(np.ones(len(pairs), bool))
    mixed = small.choosing(
        small.choice([pairs[place][0] for place in order]), [pairs[place][1] for place in order]
    )
    assert scores.of(one) == scores.of(other)
    first, second = scores.of(one), scores.of(mixed)
    assert first["accuracy"] == second["accuracy"]
    assert first["brier"] == pytest.approx(second["brier"])
    assert first["ece"] == pytest.approx(second["ece"])


def test_too_few_items_are_refused():
    with pytest.raises(UserError, match="medqa test has 0 items to score; score 1 or more"):
        scores.of(small.written(small.choice([]), []))
    with pytest.raises(UserError, match="meqsum test has 1 items to score; score 2 or more"):
        scores.of(small.written(small.generated(["a"]), ["a"]))


@given(st.lists(st.sampled_from(["A", "B", "perhaps", ""]), min_size=1, max_size=20))
def test_what_can_not_be_read_is_wrong(texts):
    found = small.written(small.choice([0] * len(texts)), texts)
    told = scores.of(found)
    assert told["unreadable"] == sum(text in ("perhaps", "") for text in texts)
    assert (found.chosen == UNREAD).sum() == told["unreadable"]
    assert told["accuracy"]["right"] == texts.count("A")
    assert told["accuracy"]["of"] == len(texts)
