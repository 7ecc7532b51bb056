"""Words and runs of words as 64-bit hashes, for whole batches of texts at once.

Texts are compared by their words, written any way: a text is brought to Unicode's NFKC and to lower
case (casefold), and a word is a run of letters and digits, so neither punctuation nor line breaks
count. What is not seen within a word, such as a soft hyphen or a space of no width, is taken
out, and a word that a hyphen divides between two lines is one word. No word becomes a Python
object: a text of 100 GB has 2e10 of them.

A hash of letters c_0..c_k is the sum of c_i P^i modulo 2^64, for odd P, taken from running sums as
Karp and Rabin did [1], then mixed by the last steps of SplitMix64 [2]. A run of words is hashed
likewise, from its words' hashes. Hashes depend on the text and Python's Unicode tables alone.

[1] Karp and Rabin 1987, IBM Journal of Research and Development 31
[2] Steele, Lea and Flood 2014, OOPSLA
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

_P = 0x9E3779B97F4A7C15  # odd; 2^64 / golden ratio
_PIECE = 1 << 18  # letters that are hashed in one go: under 20 MB of arrays
_WORD = re.compile(r"[^\W_]+")  # letters and digits: what str.isalnum says
_SPACE = re.compile(r"(?<![-\u2010\u00ad\r])\s")  # not within a divided word
# Unicode's Default_Ignorable_Code_Point, of those that neither are letters nor unassigned.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f"
    "\ufe00-\ufe0f\ufeff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001"
    "\U000e0020-\U000e007f\U000e0100-\U000e01ef]"
)
# Letters on both sides: in "COVID-19" the hyphen divides two words at the end of a line as well.
_DIVIDED = re.compile(r"[-\u2010\u00ad](?<=[^\W\d_].)\r?\n(?=[^\W\d_])")
_MAYBE = ("-\n", "-\r", "\u2010", "\u00ad")  # quick to look for: one of these it has


class Words(NamedTuple):
    """The words of some texts, one text after another.

    hashes: of each word.
    lettered: of each word, whether it begins with something else than a digit 0 to 9.
    begins: index of each text's first word, and behind the last text the number of words.
    """

    hashes: np.ndarray
    lettered: np.ndarray
    begins: np.ndarray

    def per_text(self, of_words: np.ndarray) -> np.ndarray:
        """The sum of a number of each word, for every text."""
        sums = np.concatenate([[0], np.cumsum(of_words, dtype=np.int64)])
        return sums[self.begins[1:]] - sums[self.begins[:-1]]

    def runs(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The hashes of all runs of `length` words within a text, and the index at which each
        text's first begins (one more at the end). A shorter text has none."""
        count = len(self.hashes) - length + 1
        if count < 1:
            return np.zeros(0, np.uint64), np.zeros(len(self.begins), np.int64)
        sums = np.zeros(count, np.uint64)
        for place, power in enumerate(_powers(_P, length)):
            sums += self.hashes[place : place + count] * power
        counts = np.maximum(np.diff(self.begins) - (length - 1), 0)
        within = np.zeros(len(self.hashes) + 1, np.int8)  # +1 where runs begin, -1 behind the last
        np.add.at(within, self.begins[:-1], 1)
        np.add.at(within, self.begins[:-1] + counts, -1)
        inside = np.cumsum(within[:count], dtype=np.int8) > 0
        return _mixed(sums)[inside], np.concatenate([[0], np.cumsum(counts)])


class HashSet:
    """Hashes to look others up in. A table of their first bits answers for nearly all that are not
    there; a million take 16 MB.

    hashes: distinct, rising.
    """

    def __init__(self, hashes: np.ndarray) -> None:
        self.hashes = hashes
        bits = min(24, len(hashes).bit_length() + 4)
        self._shift = np.uint64(64 - bits)
        self._first = np.zeros(1 << bits, bool)
        self._first[hashes >> self._shift] = True

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices of those of `hashes` that are in the set, and their indices in the set."""
        maybe = np.flatnonzero(self._first[hashes >> self._shift])
        found = np.searchsorted(self.hashes, hashes[maybe])
        found[found == len(self.hashes)] = 0
        same = self.hashes[found] == hashes[maybe] if len(self.hashes) else np.zeros(0, bool)
        return maybe[same], found[same]


def normal(text: str) -> str:
    """NFKC in lower case, without what is not seen. Once more NFKC, since lower case can undo it;
    then words stay as they are when they are brought to it again."""
    if any(mark in text for mark in _MAYBE):
        text = _DIVIDED.sub("", text)
    if not text.isascii() and _unseen()[_units(text)].any():
        text = _UNSEEN.sub("", text)
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def split(text: str) -> list[str]:
    """The words of one text, one for each hash of `hashed`: also where that cuts a word."""
    return [word for piece in _pieces(text) for word in _WORD.findall(normal(piece))]


def hashed(texts: Sequence[str]) -> Words:
    """The words of `texts`; one that is long is hashed in pieces."""
    hashes, lettered = [np.zeros(0, np.uint64)], [np.zeros(0, bool)]
    counts = np.zeros(len(texts), np.int64)
    for pieces in _together(texts):
        found = _hash([piece for _, piece in pieces])
        hashes.append(found.hashes)
        lettered.append(found.lettered)
        np.add.at(counts, [number for number, _ in pieces], np.diff(found.begins))
    begins = np.concatenate([[0], np.cumsum(counts)])
    return Words(np.concatenate(hashes), np.concatenate(lettered), begins)


def _hash(texts: Sequence[str]) -> Words:
    lower = [normal(text) for text in texts]
    code = np.frombuffer(("\n".join(lower) + "\n").encode("utf-32-le"), np.uint32)
    edges = np.diff(_alphanumeric()[code].view(np.int8), prepend=np.int8(0))
    first, behind = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    sums = np.zeros(len(code) + 1, np.uint64)
    np.cumsum(code * _powers(_P, len(code)), out=sums[1:])
    back = _powers(pow(_P, -1, 1 << 64), len(code))
    hashes = _mixed((sums[behind] - sums[first]) * back[first])
    ends = np.cumsum([len(text) + 1 for text in lower])
    begins = np.searchsorted(first, np.concatenate([[0], ends]))
    return Words(hashes, ~((code[first] >= ord("0")) & (code[first] <= ord("9"))), begins)


def _together(texts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """(number of text, piece of it) in order, as many at a time as make up _PIECE letters."""
    batch: list[tuple[int, str]] = []
    size = 0
    for number, text in enumerate(texts):
        for piece in _pieces(text):
            if batch and size + len(piece) > _PIECE:
                yield batch
                batch, size = [], 0
            batch.append((number, piece))
            size += len(piece)
    if batch:
        yield batch


def _pieces(text: str) -> Iterable[str]:
    """A long text cut at white space, where there is some; a word of over _PIECE letters is cut."""
    begin = 0
    while len(text) - begin > _PIECE:
        space = _SPACE.search(text, begin + _PIECE - 4096, begin + _PIECE)
        end = space.start() if space else begin + _PIECE
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on all bits."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def _powers(base: int, count: int) -> np.ndarray:
    """base^0 to base^(count-1) modulo 2^64."""
    return _all_powers(base, max(count - 1, 1).bit_length())[:count]


@functools.cache
def _all_powers(base: int, bits: int) -> np.ndarray:
    powers = np.full(1 << bits, base, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


def _units(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-16-le", "surrogatepass"), np.uint16)


@functools.cache
def _unseen() -> np.ndarray:
    """Whether each unit of UTF-16 can be of one of _UNSEEN: a fourth of the time that it takes to
    search for them."""
    table = np.array([bool(_UNSEEN.match(chr(unit))) for unit in range(1 << 16)])
    for first in (0x1BCA0, 0x1D173, 0xE0001, 0xE0100):
        table[_units(chr(first))[0]] = True
    return table


@functools.cache
def _alphanumeric() -> np.ndarray:
    """Whether each of Unicode's code points is a letter or digit."""
    return np.array([chr(code).isalnum() for code in range(0x110000)])
