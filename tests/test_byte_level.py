"""The byte-level vocabulary: GPT-2's rules, the same ids by every way, nothing lost."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tokenizers
import zstandard
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from biomedlm_jax import held_out, step
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf import save
from biomedlm_jax.hf import tokenizer as exported
from biomedlm_jax.pipeline.store import SPLITS, TokenStore
from biomedlm_jax.pipeline.store_writer import StoreWriter
from biomedlm_jax.pipeline.vocabulary import END_OF_TEXT, Vocabulary
from data import documents, tokenizer
from data.documents import Document
from data.tokenize import tokenize
from tests.conftest import ROOT, SHARED, TINY, sentences, write_documents

GPT2 = SHARED / "tokenizers" / "gpt2"
SIZE = 400
OPTIONS = {"train_bytes": 10**9, "character_coverage": 1.0, "kind": "byte_level"}
HOSTILE = [
    "",
    " leading and trailing ",
    "runs      of  spaces\t\ttabs\r\nand\n\n\n lines\n",
    "\x00\x01\x7f\x85\u00a0\u200b\u2028\ufeff\ufffd\uffff",
    "\u0301 e\u0301 \u00e9 \u1100\u1161 \U0001f469\u200d\U0001f52c \U0010ffff",
    "\u2581 \u2581\u2581   \u2581 \u0120 \u010a",
    "<unk> <0x41> <|endoftext|> <|endoftext|",
    "it's we'LL 10 000 mg/kg\u22c5d\u207b\u00b9 \u00b1 \u03b2\u2082-adrenergic",
    "." * 1001 + "a" * 999 + "=" * 501 + "ab" * 333,
]
hostile_text = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.sampled_from([" ", "  ", "\n", "\t", "\x00", "\u0301", "\u2581", "'s", END_OF_TEXT]),
        st.sampled_from(["Karika", "toto", " melsin", "12", "mg/kg", "\u03b2-cells", "\U0001f9ec"]),
    ),
    max_size=30,
).map("".join)


def write_texts(folder, texts, heldout_per_mille=200):
    found = (
        Document(f"PMID:{number}", "abstract", "2001", "eng", "CC0", text)
        for number, text in enumerate(texts, start=1)
    )
    return write_documents(folder, found, heldout_per_mille)


def command(name, environment=None, **flags):
    return subprocess.run(
        [sys.executable, "-m", f"data.{name}", *(f"--{k}={v}" for k, v in flags.items())],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    lines = sentences(1200, seed=5)
    texts = ["\n\n".join(lines[i : i + 6]) for i in range(0, 1200, 6)] + HOSTILE[1:]
    return write_texts(tmp_path_factory.mktemp("corpus") / "documents", texts)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "vocabulary"
    tokenizer.train(corpus, folder, tokenizer.Options(SIZE, **OPTIONS))
    return folder


@pytest.fixture(scope="module")
def vocabulary(trained):
    return Vocabulary(trained)


@pytest.fixture(scope="module")
def reference(trained):
    """GPT2TokenizerFast of the vocabulary, END_OF_TEXT in a text being text."""
    transformers = pytest.importorskip("transformers", reason="needs transformers to compare with")
    return transformers.GPT2TokenizerFast.from_pretrained(trained, split_special_tokens=True)


@pytest.fixture(scope="module")
def task(vocabulary):
    from biomedlm_jax.pipeline import tasks

    return tasks.seqio_vocabulary(vocabulary.path)


@pytest.fixture(scope="module")
def made(corpus, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "store"
    tokenize(corpus, trained, folder)
    return folder


@pytest.fixture(scope="module")
def folder(vocabulary, tmp_path_factory):
    """With the config that makes AutoTokenizer think of GPT-2."""
    path = tmp_path_factory.mktemp("export")
    exported.write(exported.convert(vocabulary.path), path, context=1024)
    (path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return path


@pytest.fixture(scope="module")
def openai():
    return Vocabulary(GPT2)


@pytest.fixture
def vocabulary_of_pieces(corpus, tmp_path):
    options = OPTIONS | {"kind": "sentencepiece", "character_coverage": 0.999}
    tokenizer.train(corpus, tmp_path / "pieces", tokenizer.Options(400, **options))
    return tmp_path / "pieces"


class TestTraining:
    def test_ids(self, vocabulary, trained):
        assert (vocabulary.kind, vocabulary.size, vocabulary.eos_id) == (
            "byte_level",
            SIZE,
            SIZE - 1,
        )
        saved = json.loads((trained / "tokenizer.json").read_text())
        ids = saved["model"]["vocab"]
        assert len(ids) == SIZE - 1
        assert END_OF_TEXT not in ids
        assert len(saved["model"]["merges"]) == SIZE - 1 - 256
        assert sorted(ids, key=ids.__getitem__)[:256] == sorted(
            tokenizers.pre_tokenizers.ByteLevel.alphabet()
        )
        assert (saved["normalizer"], saved["pre_tokenizer"]["add_prefix_space"]) == (None, False)
        assert saved["post_processor"]["trim_offsets"]
        (end,) = saved["added_tokens"]
        assert (end["id"], end["content"], end["special"]) == (SIZE - 1, END_OF_TEXT, True)

    @pytest.mark.parametrize("threads", ["1", "2", "7"])
    def test_same_text_same_file_on_any_number_of_threads(
        self, corpus, vocabulary, tmp_path, threads
    ):
        environment = {
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": str(threads != "1").lower(),
        }
        flags = {"documents": corpus, "output": tmp_path / "vocabulary", "size": SIZE}
        done = command("tokenizer", environment, kind="byte_level", train_bytes=10**9, **flags)
        assert done.returncode == 0, done.stderr
        assert Vocabulary(tmp_path / "vocabulary").sha256 == vocabulary.sha256

    def test_held_out_text_is_not_opened(self, corpus, vocabulary, tmp_path):
        others = (
            dataclasses.replace(d, text="other") if documents.is_heldout(d.id, 200) else d
            for d in documents.read(corpus)
        )
        copy = write_documents(tmp_path / "documents", others, 200)
        manifest = tokenizer.train(
            copy, tmp_path / "vocabulary", tokenizer.Options(SIZE, **OPTIONS)
        )
        assert manifest["sha256"] == vocabulary.sha256
        assert manifest["versions"] == {"tokenizers": tokenizers.__version__}

    def test_size_must_suit_the_text(self, corpus, tmp_path):
        with pytest.raises(UserError, match=r"--size=60000 is more than .* the most is") as refused:
            tokenizer.train(corpus, tmp_path / "no", tokenizer.Options(60_000, **OPTIONS))
        assert not (tmp_path / "no").exists()
        most = int(str(refused.value).split("--size=")[-1].split(",")[0])
        tokenizer.train(corpus, tmp_path / "yes", tokenizer.Options(most, **OPTIONS))
        assert Vocabulary(tmp_path / "yes").size == most
        with pytest.raises(UserError, match=f"the most is --size={most}"):
            tokenizer.train(corpus, tmp_path / "no", tokenizer.Options(most + 1, **OPTIONS))

    def test_needs_text(self, tmp_path):
        empty = write_texts(tmp_path / "documents", [])
        with pytest.raises(UserError, match=r"no text to train on"):
            tokenizer.train(empty, tmp_path / "out", tokenizer.Options(SIZE, **OPTIONS))

    def test_has_no_character_coverage(self, corpus, tmp_path):
        flags = {"documents": corpus, "output": tmp_path / "out", "size": SIZE}
        done = command("tokenizer", kind="byte_level", character_coverage=0.99, **flags)
        assert done.returncode == 2
        assert "--character_coverage is of --kind=sentencepiece only" in done.stderr

    def test_damaged_documents_keep_their_error(self, corpus, tmp_path):
        copy = shutil.copytree(corpus, tmp_path / "documents")
        (copy / "shards" / "00000.jsonl.zst").write_bytes(zstandard.compress(b"not even JSON\n"))
        with pytest.raises(UserError, match=r"line 1, is no document"):
            tokenizer.train(copy, tmp_path / "out", tokenizer.Options(SIZE, **OPTIONS))


class TestVocabulary:
    @settings(max_examples=300)
    @given(hostile_text)
    def test_text_comes_back_by_the_ids_of_transformers(self, vocabulary, reference, text):
        ids = vocabulary.encode(text)
        assert vocabulary.decode([*ids, vocabulary.eos_id]) == text
        assert vocabulary.eos_id not in ids
        assert reference(text)["input_ids"] == ids
        assert reference.decode(ids) == text
        assert vocabulary.token_bytes()[ids].sum() == len(text.encode())

    @pytest.mark.parametrize("text", HOSTILE)
    def test_hostile_text(self, vocabulary, reference, text):
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == text
        assert reference(text)["input_ids"] == ids

    def test_batches(self, vocabulary):
        assert vocabulary.encode_batch(HOSTILE) == [vocabulary.encode(text) for text in HOSTILE]
        assert vocabulary.encode_batch([]) == []

    def test_bytes_of_ids(self, vocabulary):
        sizes = vocabulary.token_bytes()
        assert sizes[:256].tolist() == [1] * 256
        assert (sizes[256:-1] > 1).all()
        assert sizes[-1] == 0

    def test_ids_that_are_not_there(self, vocabulary):
        with pytest.raises(IndexError, match="id 400 is out of range"):
            vocabulary.decode([5, SIZE])

    def test_folder_of_both_kinds(self, trained, tmp_path):
        shutil.copy(trained / "tokenizer.json", tmp_path)
        (tmp_path / "sentencepiece.model").write_bytes(b"")
        with pytest.raises(UserError, match=r"has sentencepiece\.model and tokenizer\.json"):
            Vocabulary(tmp_path)

    def test_refuses_a_file_that_is_none(self, tmp_path):
        (tmp_path / "tokenizer.json").write_bytes(b"\xff")
        with pytest.raises(UserError, match="no tokenizer file"):
            Vocabulary(tmp_path)
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(UserError, match="no tokenizer file"):
            Vocabulary(tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"normalizer": {"type": "Lowercase"}}, "a normalizer changes its text"),
            ({"pre_tokenizer": None}, "its pre-tokenizer is not ByteLevel alone"),
            ({"decoder": None}, "its decoder is not ByteLevel"),
            ({"added_tokens": []}, "is not its last id and its only added token"),
            (
                {"truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst"}
                 | {"stride": 0}},
                "it cuts or pads",
            ),
        ],
    )  # fmt: skip
    def test_refuses_other_rules(self, trained, tmp_path, change, message):
        saved = json.loads((trained / "tokenizer.json").read_text())
        (tmp_path / "tokenizer.json").write_text(json.dumps(saved | change))
        with pytest.raises(UserError, match=message):
            Vocabulary(tmp_path)

    @pytest.mark.parametrize("key", ["byte_fallback", "ignore_merges"])
    def test_refuses_other_models(self, trained, tmp_path, key):
        saved = json.loads((trained / "tokenizer.json").read_text())
        saved["model"][key] = True
        (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
        with pytest.raises(UserError, match="drops merges, marks words or spells bytes"):
            Vocabulary(tmp_path)

    def test_refuses_a_space_before_each_text(self, trained, tmp_path):
        saved = json.loads((trained / "tokenizer.json").read_text())
        saved["pre_tokenizer"]["add_prefix_space"] = True
        (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
        with pytest.raises(UserError, match="add_prefix_space is on"):
            Vocabulary(tmp_path)


class TestSeqio:
    @settings(max_examples=100)
    @given(hostile_text)
    def test_same_ids(self, vocabulary, task, text):
        ids = vocabulary.encode(text)
        assert task.encode(text) == ids
        assert task.encode_tf(text).numpy().tolist() == ids
        assert task.decode(ids) == text
        assert task.decode_tf(np.array(ids, np.int32)).numpy().decode() == text

    def test_inside_tf_data(self, vocabulary, task):
        import tensorflow as tf

        dataset = tf.data.Dataset.from_tensor_slices(HOSTILE).map(task.encode_tf, 4)
        assert dataset.element_spec == tf.TensorSpec([None], tf.int32)
        found = [ids.tolist() for ids in dataset.as_numpy_iterator()]
        assert found == vocabulary.encode_batch(HOSTILE)
        batches = tf.data.Dataset.from_tensor_slices(HOSTILE).batch(4).map(task.encode_tf)
        assert isinstance(batches.element_spec, tf.RaggedTensorSpec)
        assert [ids for batch in batches for ids in batch.to_list()] == found
        padded = dataset.padded_batch(3, padding_values=tf.constant(task.eos_id, tf.int32))
        texts = padded.map(task.decode_tf)
        assert texts.element_spec == tf.TensorSpec([None], tf.string)
        assert [text.decode() for batch in texts for text in batch.numpy()] == HOSTILE

    def test_attributes(self, vocabulary, task, trained, corpus, tmp_path):
        from biomedlm_jax.pipeline.tasks import ByteLevelVocabulary, seqio_vocabulary

        eos = vocabulary.eos_id
        assert (task.vocab_size, task.extra_ids) == (SIZE, 0)
        assert (task.eos_id, task.bos_id, task.unk_id, task.pad_id) == (eos,) * 4
        copy = shutil.copytree(trained, tmp_path / "copy")
        assert task == ByteLevelVocabulary(copy)
        assert len({task, ByteLevelVocabulary(copy)}) == 1
        tokenizer.train(corpus, tmp_path / "other", tokenizer.Options(SIZE + 1, **OPTIONS))
        assert task != seqio_vocabulary(tmp_path / "other")
        assert task != "another kind of thing"

    def test_end_of_text_ends_it(self, vocabulary, task):
        ids = [*vocabulary.encode("one"), vocabulary.eos_id, *vocabulary.encode("two")]
        assert task.decode(ids) == "one"
        assert task.decode_tf(np.array([ids, ids], np.int32)).numpy().tolist() == [b"one"] * 2

    def test_refuses_the_other_kind(self, vocabulary_of_pieces):
        from biomedlm_jax.pipeline.tasks import ByteLevelVocabulary

        with pytest.raises(UserError, match="is not byte-level"):
            ByteLevelVocabulary(vocabulary_of_pieces)


class TestStore:
    def test_holds_the_documents(self, corpus, made, vocabulary):
        for split in SPLITS:
            store = TokenStore(made, split)
            assert store.vocabulary_path == made / "vocabulary" / "tokenizer.json"
            assert Vocabulary(store.vocabulary_path).sha256 == store.vocabulary_sha256
            assert (store.vocab_size, store.eos_id) == (SIZE, SIZE - 1)
            (whole,) = store.read(np.array([0]), store.tokens)
            texts = [d.text for d in documents.read(corpus, split)]
            for ids, text in zip(np.split(whole, store.documents[1:, 0]), texts, strict=True):
                assert ids.tolist() == [*vocabulary.encode(text), vocabulary.eos_id]
            assert held_out.text(store) == texts
            assert vocabulary.token_bytes()[whole].sum() == store.text_bytes
        assert "tokenizers" in store.manifest["versions"]

    def test_vocabulary_is_missing(self, made, tmp_path):
        copy = shutil.copytree(made, tmp_path / "store")
        (copy / "vocabulary" / "tokenizer.json").unlink()
        with pytest.raises(UserError, match="write the store again"):
            TokenStore(copy, "train")

    def test_store_of_pieces_keeps_its_name(self, vocabulary_of_pieces, tmp_path):
        file = epath.Path(shutil.copy(vocabulary_of_pieces / "sentencepiece.model", tmp_path / "a"))
        place = epath.Path(tmp_path / "store")
        StoreWriter.of(place, place / "work", Vocabulary(file)).write_all([])
        assert [p.name for p in (place / "vocabulary").iterdir()] == ["sentencepiece.model"]


class TestExport:
    def test_is_the_same_file(self, folder, vocabulary):
        assert (folder / "tokenizer.json").read_bytes() == vocabulary.path.read_bytes()

    def test_auto_tokenizer(self, folder, vocabulary):
        transformers = pytest.importorskip("transformers", reason="needs transformers")
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        eos = vocabulary.eos_id
        assert (theirs.eos_token_id, theirs.bos_token_id, theirs.unk_token_id) == (eos,) * 3
        assert (len(theirs), theirs.pad_token, theirs.model_max_length) == (SIZE, None, 1024)
        kept = transformers.AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
        for text in HOSTILE:
            ids = vocabulary.encode(text)
            assert kept(text)["input_ids"] == ids
            assert theirs.decode(ids) == text
            if END_OF_TEXT not in text:
                assert theirs(text)["input_ids"] == ids
        two = [vocabulary.encode(part) for part in ("one", "two")]
        assert theirs(f"one{END_OF_TEXT}two")["input_ids"] == [*two[0], eos, *two[1]]

    def test_folder_of_a_model(self, vocabulary, tmp_path):
        model = dataclasses.replace(TINY.model, vocab=SIZE)
        params = step.init(dataclasses.replace(TINY, model=model)).params
        params = jax.tree.map(np.asarray, params)
        save.save(params, model, vocabulary.path, tmp_path / "hf", extra={})
        found = {name: (tmp_path / "hf" / name) for name in ("tokenizer.json", "README.md")}
        assert found["tokenizer.json"].read_bytes() == vocabulary.path.read_bytes()
        assert "byte-level" in found["README.md"].read_text()
        assert json.loads((tmp_path / "hf" / "config.json").read_text())["eos_token_id"] == SIZE - 1


@pytest.mark.skipif(not GPT2.is_dir(), reason=f"{GPT2} is missing")
class TestOpenAI:
    def test_known_ids(self, openai):
        assert (openai.size, openai.eos_id) == (50257, 50256)
        assert openai.encode("Hello world") == [15496, 995]
        assert openai.token_bytes()[[15496, 995, 50256]].tolist() == [5, 6, 0]

    def test_ids_of_vocab_and_merges(self, openai):
        transformers = pytest.importorskip("transformers", reason="needs transformers")
        files = {"vocab": str(GPT2 / "vocab.json"), "merges": str(GPT2 / "merges.txt")}
        reference = transformers.GPT2TokenizerFast(**files, split_special_tokens=True)

        @settings(max_examples=300)
        @given(hostile_text)
        def agree(text):
            ids = openai.encode(text)
            assert reference(text)["input_ids"] == ids
            assert openai.decode(ids) == text

        agree()

    def test_ids_inside_seqio(self, openai):
        from biomedlm_jax.pipeline.tasks import ByteLevelVocabulary

        inside = ByteLevelVocabulary(GPT2)
        for text in HOSTILE:
            assert inside.encode_tf(text).numpy().tolist() == openai.encode(text)
