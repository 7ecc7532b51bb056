"""Documents to the token store: nothing is lost on the way, and damage is noticed."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.store import SPLITS, TokenStore
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from data import documents, tokenizer
from data.documents import Document
from data.tokenize import tokenize
from tests.conftest import ROOT, SHARED, sentences, write_documents
from tests.test_parse import citation

HOSTILE = [
    "  two  spaces, a trailing one ",
    "\n\n\nlines\n",
    "p < 0.05, 10^6 \u03b2-blockers at 5\u202f\u00b5g\u00a0kg\u22121, 3.14159",
    "\U0001f9ec e\u0301 \u00e9 \ufb01 \u2126 \u6c34 \u0645\u0627\u0621",
    "<|endoftext|> <unk> <0x41> </s>",
    "\u200b\u200d\ufeff zero width",
    "NUL \x00, a lone mark \u0301\u0301, \u2581 \u2581\u2581 as SentencePiece writes spaces",
]
SIZE = 400
OPTIONS = {"train_bytes": 10**9, "character_coverage": 0.999}


def write_texts(folder, texts, heldout_per_mille=200):
    def made(number, text):
        prefix, source = ("PMC", "full_text") if number % 3 == 0 else ("PMID", "abstract")
        date = ("2001-03", "1998", "")[number % 5 % 3]
        return Document(f"{prefix}:{number}", source, date, "eng", "CC-BY", text)

    found = (made(number, text) for number, text in enumerate(texts, start=1))
    return write_documents(folder, found, heldout_per_mille)


@pytest.fixture(scope="module")
def texts():
    lines = sentences(600, seed=5)
    return ["\n\n".join(lines[i : i + 6]) for i in range(0, 600, 6)] + HOSTILE


@pytest.fixture(scope="module")
def corpus(texts, tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("corpus") / "documents", texts)


@pytest.fixture(scope="module")
def vocabulary_folder(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "vocabulary"
    tokenizer.train(corpus, folder, tokenizer.Options(SIZE, **OPTIONS))
    return folder


@pytest.fixture(scope="module")
def vocabulary(vocabulary_folder):
    return Vocabulary(vocabulary_folder)


@pytest.fixture(scope="module")
def made(corpus, vocabulary_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "store"
    tokenize(corpus, vocabulary_folder, folder)
    return folder


def read_all(folder, split):
    return {d.id: d for d in documents.read(folder, split)}


class TestVocabulary:
    def test_ids(self, vocabulary):
        assert (vocabulary.size, vocabulary.eos_id) == (SIZE, 1)

    @given(st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \u2581"))))
    def test_text_comes_back(self, vocabulary, text):
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == text
        assert all(1 < id < vocabulary.size for id in ids)  # neither unknown nor end of text

    @pytest.mark.parametrize("text", HOSTILE)
    def test_hostile_text_comes_back(self, vocabulary, text):
        ids = vocabulary.encode(text)
        assert vocabulary.decode([*ids, vocabulary.eos_id]) == text
        assert not {0, vocabulary.eos_id} & set(ids)

    def test_digits_stay_single(self, vocabulary):
        assert len(vocabulary.encode("1234567")) == 7

    def test_seqio_gives_the_same_ids(self, vocabulary, texts):
        from biomedlm_jax.pipeline.tasks import seqio_vocabulary

        same = seqio_vocabulary(vocabulary.path)
        for text in texts:
            assert same.encode(text) == vocabulary.encode(text)
            assert same.encode_tf(text).numpy().tolist() == vocabulary.encode(text)
        assert (same.vocab_size, same.eos_id) == (vocabulary.size, vocabulary.eos_id)

    def test_refuses_other_files(self, tmp_path):
        with pytest.raises(UserError, match=r"is no file; train one"):
            Vocabulary(tmp_path)
        (tmp_path / "sentencepiece.model").write_bytes(b"no model")
        with pytest.raises(UserError, match="no SentencePiece model"):
            Vocabulary(tmp_path)


class TestTokenizer:
    def test_same_text_same_file_whatever_is_held_out(self, corpus, vocabulary, tmp_path):
        others = (
            dataclasses.replace(d, text="other") if documents.is_heldout(d.id, 200) else d
            for d in documents.read(corpus)
        )
        copy = write_documents(tmp_path / "documents", others, 200)
        manifest = tokenizer.train(
            copy, tmp_path / "vocabulary", tokenizer.Options(SIZE, **OPTIONS)
        )
        assert manifest["sha256"] == vocabulary.sha256
        held = documents.read_manifest(corpus)["splits"]["heldout"]["documents"]
        assert held > 5

    def test_limits_the_text(self, corpus, vocabulary, tmp_path):
        half = documents.read_manifest(corpus)["splits"]["train"]["bytes"] // 2
        options = OPTIONS | {"train_bytes": half}
        first = tokenizer.train(corpus, tmp_path / "a", tokenizer.Options(SIZE, **options))
        again = tokenizer.train(corpus, tmp_path / "b", tokenizer.Options(SIZE, **options))
        assert first["sha256"] == again["sha256"] != vocabulary.sha256

    def test_learns_from_long_paragraphs(self, tmp_path):
        """SentencePiece drops those of more than 4192 bytes unless it is told otherwise."""
        words = "thrombocytopenia " * 1000
        folder = write_texts(tmp_path / "documents", [words, "ab cd"], heldout_per_mille=0)
        tokenizer.train(folder, tmp_path / "vocabulary", tokenizer.Options(290, **OPTIONS))
        assert len(Vocabulary(tmp_path / "vocabulary").encode("thrombocytopenia")) < 3

    @pytest.mark.parametrize(
        ("size", "message"),
        [
            (60_000, r"--size=60000 is more than the training text .*; .* the most is --size=\d+"),
            (262, r"--size=262 is too small for the characters .* the least is --size=\d+"),
        ],
    )
    def test_size_must_suit_the_text(self, corpus, tmp_path, size, message):
        with pytest.raises(UserError, match=message) as refused:
            tokenizer.train(corpus, tmp_path / "no", tokenizer.Options(size, **OPTIONS))
        assert not (tmp_path / "no").exists()
        fitting = int(str(refused.value).split("--size=")[-1].split(",")[0])
        tokenizer.train(corpus, tmp_path / "yes", tokenizer.Options(fitting, **OPTIONS))

    def test_needs_text(self, tmp_path):
        empty = write_texts(tmp_path / "documents", [])
        with pytest.raises(UserError, match=r"no text to train on"):
            tokenizer.train(empty, tmp_path / "out", tokenizer.Options(SIZE, **OPTIONS))
        with pytest.raises(UserError, match=r"no folder of documents.*data\.parse"):
            tokenizer.train(tmp_path, tmp_path / "out", tokenizer.Options(SIZE, **OPTIONS))


class TestTokenize:
    def test_store_holds_the_documents(self, corpus, made, vocabulary):
        for split in SPLITS:
            expected = read_all(corpus, split)
            store = TokenStore(made, split)
            ends = [*store.documents[1:, 0].tolist(), store.tokens]
            for row, end, document in zip(store.documents, ends, expected.values(), strict=True):
                start, length = int(row[0]), int(end - row[0])
                (tokens,) = store.read(np.array([start]), length).tolist()
                assert tokens == [*vocabulary.encode(document.text), vocabulary.eos_id]
                assert vocabulary.decode(tokens) == document.text
                assert store.ids(start, length) == [document.id]
                assert row[1] == len(document.text.encode())
                assert row[4] == (document.year or 0)
            assert store.text_bytes == sum(len(d.text.encode()) for d in expected.values())
        assert not read_all(corpus, "train").keys() & read_all(corpus, "heldout").keys()

    def test_store_needs_nothing_beside_it(self, corpus, made, vocabulary):
        store = TokenStore(made, "train")
        assert Vocabulary(store.vocabulary_path).sha256 == vocabulary.sha256
        assert store.vocabulary_sha256 == vocabulary.sha256
        assert (store.vocab_size, store.eos_id) == (SIZE, 1)
        assert store.manifest["documents"] == documents.read_manifest(corpus)

    def test_damaged_documents(self, corpus, vocabulary_folder, tmp_path):
        copy = shutil.copytree(corpus, tmp_path / "documents")
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["splits"]["train"]["documents"] += 1
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=r"holds .* of train, .*; parse again"):
            tokenize(copy, vocabulary_folder, tmp_path / "out")
        shard = copy / "shards" / "00000.jsonl.zst"
        shard.write_bytes(shard.read_bytes()[:-20])
        with pytest.raises(UserError, match=r"00000\.jsonl\.zst.* copy or write the folder again"):
            tokenize(copy, vocabulary_folder, tmp_path / "out2")
        shard.unlink()
        with pytest.raises(UserError, match=r"not whole: shards/00000\.jsonl\.zst is missing"):
            tokenize(copy, vocabulary_folder, tmp_path / "out3")
        assert not {path.name for path in tmp_path.iterdir()} & {"out", "out2", "out3"}

    def test_nothing_to_train_on(self, vocabulary_folder, tmp_path):
        folder = write_texts(tmp_path / "documents", ["text"], heldout_per_mille=1000)
        with pytest.raises(UserError, match=r"no document to train on"):
            tokenize(folder, vocabulary_folder, tmp_path / "out")

    @pytest.mark.parametrize("key", ["documents", "bytes"])
    def test_manifest_without_what_is_needed(self, corpus, vocabulary_folder, tmp_path, key):
        copy = shutil.copytree(corpus, tmp_path / "documents")
        manifest = json.loads((copy / "manifest.json").read_text())
        del manifest["splits"]["heldout"][key]
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=rf"manifest\.json was not written by .*{key}"):
            tokenize(copy, vocabulary_folder, tmp_path / "out")


class TestFullDisk:
    """Each tool where no file can be larger than `room` bytes: one line that says so."""

    @staticmethod
    def check(name, flags, room, words):
        code = (
            "import resource, runpy; "
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room})); "
            f"runpy.run_module('data.{name}', run_name='__main__', alter_sys=True)"
        )
        found = subprocess.run(
            [sys.executable, "-B", "-c", code, *(f"--{k}={v}" for k, v in flags.items())],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        (line,) = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
        assert "File too large" in line
        assert words in line
        assert found.returncode == 2
        assert "Traceback" not in found.stderr
        assert not flags["output"].exists()

    # The first limit leaves no room for the copy of the vocabulary, the second for the tokens.
    @pytest.mark.parametrize("room", [1000, 20_000])
    def test_tokenize(self, corpus, vocabulary_folder, tmp_path, room):
        flags = {"documents": corpus, "vocabulary": vocabulary_folder, "output": tmp_path / "out"}
        self.check("tokenize", flags | {"runner": "serial"}, room, "make room")

    def test_tokenizer(self, corpus, tmp_path):
        flags = {"documents": corpus, "output": tmp_path / "out", "size": SIZE}
        self.check("tokenizer", flags, 1000, "make room there or name a folder on another disk")

    # Few lines stay in the buffer of the file, and it is the closing that fails.
    @pytest.mark.parametrize("documents", [20, 2000])
    def test_parse(self, tmp_path, documents):
        (tmp_path / "input").mkdir()
        citations = "".join(citation(n) for n in range(1, documents))
        file = tmp_path / "input" / "pubmed25n0001.xml"
        file.write_text(f"<PubmedArticleSet>{citations}</PubmedArticleSet>")
        flags = {"input": file.parent, "output": tmp_path / "out", "runner": "serial"}
        self.check("parse", flags, 1000, "the same command goes on where this one stopped")


@pytest.mark.skipif(not (SHARED / "pmc_jats").is_dir(), reason=f"{SHARED}/pmc_jats is missing")
def test_real_corpus_comes_back(tmp_path):
    """The three commands on real articles; every document is read back out of the store."""

    def command(name, **flags):
        arguments = [f"--{key}={value}" for key, value in flags.items()]
        subprocess.run([sys.executable, "-m", f"data.{name}", *arguments], cwd=ROOT, check=True)

    archive = "oa_comm_xml.PMC001xxxxxx.tar.gz"
    (tmp_path / "input").mkdir()
    shutil.copy(SHARED / "pmc_jats" / archive, tmp_path / "input")
    parsed, learned, tokens = (tmp_path / name for name in ("documents", "vocabulary", "store"))
    command("parse", input=tmp_path / "input", output=parsed, heldout_per_mille=50)
    command("tokenizer", documents=parsed, output=learned, size=4096)
    command("tokenize", documents=parsed, vocabulary=learned, output=tokens)
    total = 0
    for split in SPLITS:
        store = TokenStore(tokens, split)
        vocabulary = Vocabulary(store.vocabulary_path)
        (whole,) = store.read(np.array([0]), store.tokens)
        pieces = np.split(whole, store.documents[1:, 0])
        for piece, document in zip(pieces, read_all(parsed, split).values(), strict=True):
            assert vocabulary.decode(piece.tolist()) == document.text
            assert piece.tolist() == [*vocabulary.encode(document.text), vocabulary.eos_id]
            total += 1
    assert total > 150
