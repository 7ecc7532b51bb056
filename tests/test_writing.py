"""Text as it comes: never half a character, never the beginning of a stop text."""

import hypothesis
from hypothesis import strategies as st

from biomedlm_jax.generation.writing import HALF, Writing

EOS = 256


class Bytes:
    """A vocabulary whose tokens are bytes."""

    eos_id = EOS

    def decode(self, ids):
        return bytes(ids).decode("utf-8", errors="replace")


def written(ids, stop=(), max_tokens=10_000):
    """(pieces of text, tokens, why it ended)."""
    writing, texts, tokens = Writing(0, Bytes(), stop, max_tokens), [], []
    for id in ids:
        text, new, finish = writing.add(id)
        texts.append(text)
        tokens += new
        if finish:
            return texts, tokens, finish
    return texts, tokens, None


def test_a_character_is_told_when_it_is_whole():
    texts, tokens, finish = written([*"é√".encode(), EOS])
    assert texts == ["", "é", "", "", "√", ""]
    assert (bytes(tokens).decode(), finish) == ("é√", "stop")


def test_bytes_that_never_become_a_character_are_told_in_the_end():
    assert written([0x41, 0xE2, EOS]) == (["A", "", HALF], [0x41, 0xE2], "stop")
    assert written([0x41, 0xE2], max_tokens=2)[0] == ["A", HALF]
    assert "".join(written([0xE2, 0x41, 0x42])[0]) == HALF + "AB"
    assert "".join(written([0xFF] * 8)[0]) == HALF * 5  # the last three may become something yet


def test_a_stop_text_is_never_told():
    texts, tokens, finish = written(b"one END two", stop=("END", "zzz"))
    assert "".join(texts) == "one "
    assert (len(tokens), finish) == (7, "stop")
    assert "".join(written([*b"one EN", EOS], stop=("END",))[0]) == "one EN"
    assert written(b"one ENTRY", stop=("END",))[0] == ["o", "n", "e", " ", "", "", "ENT", "R", "Y"]
    assert "".join(written(b"aab", stop=("ab",))[0]) == "a"
    assert "".join(written("10 µg/ml".encode(), stop=("µg",))[0]) == "10 "


def test_the_first_of_several_stop_texts_ends_it():
    assert "".join(written(b"abcdef", stop=("def", "cd"))[0]) == "ab"


@hypothesis.given(
    st.lists(st.sampled_from([*b"ab\n", *"éµ🧬".encode(), 0xFF]), max_size=40),
    st.lists(st.text("abé\n", min_size=1, max_size=3), max_size=2),
)
def test_told_is_what_there_is_up_to_the_first_stop(ids, stop):
    texts, tokens, finish = written([*ids, EOS], tuple(stop))
    whole = bytes(tokens).decode("utf-8", errors="replace")
    ends = [at for text in stop if (at := whole.find(text)) >= 0]
    assert "".join(texts) == (whole[: min(ends)] if ends else whole)
    assert finish == "stop"
