"""Words and runs of them as hashes: the same as with Python's own strings, only faster."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from biomedlm_jax.pipeline import words

texts = st.lists(st.text(max_size=60), max_size=6)


def runs(text, length):
    found = words.split(text)
    return [tuple(found[i : i + length]) for i in range(len(found) - length + 1)]


@given(texts, st.integers(1, 14))
@example(["", "a b", "", "c"], 2)
@example(["ﬁne ΐ İstanbul", "x_y²", "\U0001d400 Å ǰ"], 1)
def test_hashes_are_equal_where_words_are(found, length):
    hashed = words.hashed(found)
    hashes, begins = hashed.runs(length)
    expected = [runs(text, length) for text in found]
    assert np.diff(begins).tolist() == [len(own) for own in expected]
    flat = list(itertools.chain.from_iterable(expected))
    assert len(set(flat)) == len(set(hashes.tolist()))
    assert len(set(zip(flat, hashes.tolist(), strict=True))) == len(set(flat))


@given(st.text())
def test_words_of_words_are_the_same(text):
    assert words.split(" ".join(words.split(text))) == words.split(text)


def test_case_punctuation_and_line_breaks_do_not_count():
    one = words.hashed(["TNF-β (p<0.05),\nﬁrst_Ångström!"])
    two = words.hashed(["tnf β p 0 05 first a\u030angstro\u0308m"])
    assert one.hashes.tolist() == two.hashes.tolist()
    assert one.lettered.tolist() == [True, True, True, False, False, True, True]


def test_a_long_text_is_hashed_in_pieces_as_a_whole():
    draw = random.Random(0)
    text = " ".join(f"w{draw.randrange(10**6)}é" for _ in range(150_000))
    hashed = words.hashed(["before", text, "", "x" * 600_000, "behind"])
    parts = [words.hashed([word]).hashes[0] for word in ["before", *text.split()[:50]]]
    assert hashed.hashes[:51].tolist() == [int(part) for part in parts]
    assert np.diff(hashed.begins)[:3].tolist() == [1, 150_000, 0]
    assert hashed.hashes[-1] == words.hashed(["behind"]).hashes[0]


def test_a_word_that_is_cut_is_cut_for_all():
    """No white space where a long text is divided: words behind it are where `split` has them."""
    draw = random.Random(0)
    before = " ".join(f"w{draw.randrange(10**6)}" for _ in range(40_000))[:258_000]
    gene = "".join(draw.choice("acgt") for _ in range(8_000))
    text = f"{before} {gene} and behind it these words"
    hashed = words.hashed([text])
    found = words.split(text)
    assert "".join(found[-7:-5]) == gene
    assert found[-5:] == ["and", "behind", "it", "these", "words"]
    assert len(found) == len(hashed.hashes)
    single = [int(words.hashed([word]).hashes[0]) for word in found[-7:]]
    assert hashed.hashes[-7:].tolist() == single


SAME = [
    ("severe pain", "se\u00advere pa\u200bin"),
    ("severe pain", "\ufeffse\u200c\u200dvere\u2060 pain\ufe0f"),
    ("severe pain", "se-\nvere pain"),
    ("severe pain", "se\u2010\r\nvere pain"),
    ("severe pain", "se\u00ad\nvere pain"),
    ("\u00e5ngstr\u00f6m", "a\u00ad\u030angstro\u0308m"),
]
OTHER = [
    ("COVID-19", "COVID-\n19", ["covid", "19"]),
    ("pre- and post", "pre- \nand post", ["pre", "and", "post"]),
    ("well-known", "well -\nknown", ["well", "known"]),
]


@pytest.mark.parametrize(("plain", "written"), SAME)
def test_what_is_not_seen_divides_no_word(plain, written):
    assert words.split(written) == plain.split()
    assert words.hashed([written]).hashes.tolist() == words.hashed([plain]).hashes.tolist()


@pytest.mark.parametrize(("plain", "written", "found"), OTHER)
def test_a_hyphen_that_divides_words_still_does(plain, written, found):
    assert words.split(written) == words.split(plain) == found


@given(st.text("ab1-\u00ad\u2010\u200b\u0301 \n\r", max_size=80))
def test_words_are_those_that_are_hashed(text):
    single = [int(words.hashed([word]).hashes[0]) for word in words.split(text)]
    assert words.hashed(["x", text, "y"]).hashes.tolist()[1:-1] == single


@given(st.sets(st.integers(0, 2**64 - 1)), st.lists(st.integers(0, 2**64 - 1)))
@example({5, 2**63}, [5, 2**63, 0, 2**64 - 1])
def test_a_set_finds_what_is_in_it(held, sought):
    held_sorted = sorted(held)
    sought = sought + held_sorted[:3]
    at, where = words.HashSet(np.array(held_sorted, np.uint64)).find(np.array(sought, np.uint64))
    assert at.tolist() == [i for i, one in enumerate(sought) if one in held]
    assert [held_sorted[i] for i in where] == [one for one in sought if one in held]


def test_hashes_never_change():
    """Tables of an interrupted run are gone on with, and signatures are compared over machines."""
    hashed = words.hashed(["Aspirin, 100 mg daily."])
    assert hashed.hashes.tolist() == GOLDEN
    assert hashed.runs(3)[0].tolist() == GOLDEN_RUNS


GOLDEN = [8720523391454181486, 540963476205030010, 3881369511733468822, 4462407495130748460]
GOLDEN_RUNS = [7691312742228324575, 2403173740267046951]
