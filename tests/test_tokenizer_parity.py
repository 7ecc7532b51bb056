"""Ids are those of the original on real text and on hostile text: our vocabularies of either kind
beside the AutoTokenizer of the exported folder, and GPT-2's own files by our reader, by
transformers and by OpenAI's algorithm, written down once more here.
"""

import gzip
import itertools
import json
import random
import tarfile
from collections.abc import Iterator
from functools import cache

import pytest
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

from biomedlm_jax.pipeline.vocabulary import END_OF_TEXT as END
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from data import tokenizer
from data.documents import Document
from tests import peer
from tests.conftest import SHARED, TINY, changed, write_documents
from tests.peer import transformers

regex = pytest.importorskip("regex", reason="comes with transformers")
GPT2 = SHARED / "tokenizers" / "gpt2"
SIZE = 4096
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is missing")


def text_of(element) -> str:
    return "".join(element.itertext())


def abstracts() -> Iterator[str]:
    """Titles and abstracts of NCBI's XML."""
    for path in sorted((SHARED / "pubmed_xml").rglob("*.xml*")):
        found = path.read_bytes()
        root = etree.fromstring(gzip.decompress(found) if path.suffix == ".gz" else found)
        for element in root.iter("ArticleTitle", "AbstractText", "VernacularTitle"):
            yield text_of(element)


def paragraphs() -> Iterator[str]:
    """Of full texts, with their line breaks and formulas."""
    for path in sorted((SHARED / "pmc_jats").glob("*.tar.gz")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isfile():
                    root = etree.parse(tar.extractfile(member)).getroot()
                    yield from (text_of(element) for element in root.iter("p", "td"))


def questions() -> Iterator[str]:
    for path in sorted((SHARED / "qa").rglob("*.jsonl")):
        yield from path.read_text(encoding="utf-8").splitlines()


@cache
def real() -> list[str]:
    """Lines that are no two alike."""
    taken = (abstracts(), itertools.islice(paragraphs(), 7000), itertools.islice(questions(), 3500))
    return list(dict.fromkeys(line for source in taken for line in source if line))


def characters() -> Iterator[str]:
    """All of Unicode in order, 256 at a time, assigned or not, control characters too, but no
    surrogates; of the planes that have nothing or are private, every sixteenth."""
    for first in range(0, 0x110000, 256):
        bare = 0x40000 <= first < 0xE0000 or first >= 0xF0000
        if not 0xD800 <= first < 0xE000:
            yield "".join(map(chr, range(first, first + 256, 16 if bare else 1)))


def hostile() -> list[str]:
    draw = random.Random(0)
    blocks = list(characters())
    everything = "".join(blocks)
    utf8 = "na\u00efve \u03b2-cells \u4e2d\u6587 \U0001f9ec\u200d\U0001f52c".encode()
    return [
        "",
        *blocks,
        *(f" {draw.choice(everything)}a{draw.choice(everything)} " for _ in range(3000)),
        *("".join(draw.choices(everything, k=30)) for _ in range(300)),
        *(space * count for space in " \t\n\r\x0b\u00a0\u3000" for count in (1, 2, 3, 31, 1000)),
        "runs      of  spaces\t\ttabs\r\nand\n\n\n lines \n ",
        *(utf8[a:b].decode(errors="replace") for a in range(8) for b in range(a, len(utf8))),
        "e\u0301 \u00e9 \u1100\u1161\u11a8 \u0301\u0302 a\u0300\u0316\u0317 \u0e01\u0e33",
        "\u05e9\u05dc\u05d5\u05dd \u202e\u0645\u0631\u062d\u0628\u0627\u202c \u2067abc\u2069",
        "a\u200bb\u200cc\u200dd\u2060e\ufefff\u00adg\ufe0f",
        "\u2581 \u2581\u2581   \u2581a \u2581the the\u2581 \u0120 \u010a",
        f"{END} a{END}b {END}{END} <|endoftext| <unk> <s> <0x41> <0xE2><0x96><0x81>",
        "it's we'LL I'D 10 000 mg/kg\u22c5d\u207b\u00b9 \u00b1 \u00bd \u2460 \u0663",
    ]


def long() -> list[str]:
    """A megabyte each: three without a space, and one of nothing else."""
    draw, size = random.Random(1), 10**6
    letters = "".join(draw.choices("acgt", k=size))
    mixed = "".join(draw.choices("the\u03b2\u4e2d.9-\u2581", k=size // 2))
    return [letters, mixed, "a" * size, " " * size]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    lines = real()[::8][:2000]
    found = (
        Document(f"PMID:{number}", "abstract", "2001", "eng", "CC0", line)
        for number, line in enumerate(lines, start=1)
    )
    return write_documents(tmp_path_factory.mktemp("corpus") / "documents", found, 0)


@pytest.fixture(scope="module", params=["sentencepiece", "byte_level"])
def pair(request, corpus, tmp_path_factory):
    """Our vocabulary, and the tokenizer of the folder that a model with it is exported to."""
    folder = tmp_path_factory.mktemp(request.param)
    options = tokenizer.Options(SIZE, train_bytes=10**9, kind=request.param)
    tokenizer.train(corpus, folder / "vocabulary", options)
    ours = Vocabulary(folder / "vocabulary")
    model = changed(TINY, model__vocab=SIZE).model
    params = peer.drawn(model, seed=0, spread=0.02)
    peer.exported(params, model, ours.path, folder / "hf")
    return ours, transformers.AutoTokenizer.from_pretrained(folder / "hf", model_max_length=10**9)


@pytest.fixture(scope="module")
def gpt2():
    """Ours of tokenizer.json, transformers' of vocab.json and merges.txt."""
    files = {"vocab": str(GPT2 / "vocab.json"), "merges": str(GPT2 / "merges.txt")}
    return Vocabulary(GPT2), transformers.GPT2TokenizerFast(**files)


def agree(ours: Vocabulary, theirs, texts: list[str]) -> None:
    """The same ids, and the text back from them on both sides."""
    found = ours.encode_batch(texts)
    expected = theirs(texts, split_special_tokens=True, verbose=False)["input_ids"]
    for text, ids, ids_of_theirs in zip(texts, found, expected, strict=True):
        assert ids == ids_of_theirs, text[:200]
        assert ours.decode(ids) == text
        assert theirs.decode(ids) == text


@needs_data
def test_ten_thousand_real_lines(pair):
    lines = real()
    assert len(lines) >= 10_000
    agree(*pair, lines)


@needs_data
def test_hostile_text(pair):
    agree(*pair, hostile())


@needs_data
@pytest.mark.slow
def test_a_megabyte_without_a_space(pair):
    """Also that it ends: joining neighbours one by one must not take the square of its length."""
    agree(*pair, long())


@pytest.mark.slow
@needs_data
def test_ten_thousand_real_lines_by_gpt2(gpt2):
    agree(*gpt2, real())
    agree_with_openai(gpt2[0], real())


@needs_data
@pytest.mark.slow
def test_hostile_text_by_gpt2(gpt2):
    agree(*gpt2, [*hostile(), *long()])
    agree_with_openai(gpt2[0], hostile())


# OpenAI's rules, https://github.com/openai/gpt-2/blob/9b63575/src/encoder.py: where a text is cut,
# and which printable character stands for a byte.
CUT = regex.compile(
    r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
)
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
SHOWN = dict(zip([*PRINTABLE, *OTHERS], map(chr, [*PRINTABLE, *range(256, 324)]), strict=True))


def agree_with_openai(ours: Vocabulary, texts: list[str]) -> None:
    ids = json.loads((GPT2 / "vocab.json").read_text())
    merges = (GPT2 / "merges.txt").read_text().splitlines()[1:]
    ranks = {tuple(pair.split(" ")): rank for rank, pair in enumerate(merges)}

    @cache
    def encode_word(word: str) -> list[int]:
        parts = [SHOWN[byte] for byte in word.encode()]
        while len(parts) > 1:
            best = min(itertools.pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
            if best not in ranks:
                break
            joined, i = [], 0
            while i < len(parts):
                both = tuple(parts[i : i + 2]) == best
                joined.append("".join(parts[i : i + 1 + both]))
                i += 1 + both
            parts = joined
        return [ids[part] for part in parts]

    for text, found in zip(texts, ours.encode_batch(texts), strict=True):
        assert found == [id for word in CUT.findall(text) for id in encode_word(word)], text[:200]


@needs_data
def test_ids_that_are_no_text(pair):
    """What a model may write: parts of characters anywhere. Of a byte-level vocabulary both read
    the same, which is what Python makes of the bytes. Of SentencePiece's, where a run of byte
    pieces is no UTF-8 as a whole, Hugging Face has a U+FFFD for each byte of it, ours only for the
    wrong ones; anything else is the same."""
    ours, theirs = pair
    draw, sizes = random.Random(0), ours.token_bytes()
    single = [id for id, size in enumerate(sizes) if size == 1]
    others = [id for id, size in enumerate(sizes) if size > 1]
    euro = ours.encode("\u20ac\U0001f52c")
    partial = 0
    for _ in range(2000):
        chosen = (draw.choices(single, k=2), draw.choices(others, k=2), euro, euro[:2])
        ids = [id for part in draw.choices(chosen, k=12) for id in part]
        mine, found = ours.decode(ids), theirs.decode(ids)
        partial += "\ufffd" in mine
        if ours.kind == "byte_level":
            assert mine == found == bytes_of(ids, theirs).decode(errors="replace")
        else:
            assert found == runs_replaced(ids, ours)
            assert ("\ufffd" in mine) == ("\ufffd" in found)
    assert partial > 1000


def bytes_of(ids: list[int], theirs) -> bytes:
    of_character = {shown: byte for byte, shown in SHOWN.items()}
    return bytes(of_character[c] for token in theirs.convert_ids_to_tokens(ids) for c in token)


def runs_replaced(ids: list[int], ours: Vocabulary) -> str:
    """Our text of the ids, but a U+FFFD for each byte of a run of byte pieces that is no UTF-8."""
    first = ours.encode("\x00")[0]
    parts = []
    for is_byte, run in itertools.groupby(ids, lambda id: first <= id < first + 256):
        run = list(run)
        text = ours.decode(run)
        parts.append("\ufffd" * len(run) if is_byte and "\ufffd" in text else text)
    return "".join(parts)
