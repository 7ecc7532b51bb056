"""The tokenizer for Hugging Face gives the ids of a SentencePiece vocabulary for any text, and the
text back. Real text is in `test_tokenizer_parity`."""

import json
import random
from pathlib import Path

import pytest
import sentencepiece
import sentencepiece.sentencepiece_model_pb2 as sentencepiece_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biomedlm_jax.entry import UserError
from biomedlm_jax.hf import tokenizer
from biomedlm_jax.pipeline.vocabulary import END_OF_TEXT as END
from biomedlm_jax.pipeline.vocabulary import MODEL_FILE, Vocabulary
from data import documents, parse
from data import tokenizer as data_tokenizer

# pyright: reportAttributeAccessIssue=false
# protobuf makes the classes of sentencepiece_model_pb2 when it is imported.

TRAINING = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "unk_id": 0,
    "eos_id": 1,
    "eos_piece": END,
    "bos_id": -1,
    "pad_id": -1,
    "minloglevel": 2,
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """Trained on few words, with runs of one character, and symbols that are kept whole."""
    text = "the mice were given 12 mg/kg of aspirin -- ...... ===== aaaa ababab na\u00efve \u03b2"
    words = text.split()
    rng = random.Random(0)
    lines = [" ".join(rng.choices(words, k=12)) for _ in range(300)]
    path = tmp_path_factory.mktemp("vocabulary") / "sentencepiece"
    return train(path, lines, vocab_size=380, user_defined_symbols=["\n\n", "\n", "\u2581\u2581"])


def train(prefix, lines, **options):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(prefix), **{**TRAINING, **options}
    )
    return prefix.with_name(prefix.name + ".model")


@pytest.fixture(scope="module")
def pieces(vocabulary):
    return Vocabulary(vocabulary)


@pytest.fixture(scope="module")
def folder(vocabulary, tmp_path_factory):
    """With the config that makes AutoTokenizer think of GPT-2's own byte-level tokenizer."""
    path = tmp_path_factory.mktemp("export")
    tokenizer.write(tokenizer.convert(vocabulary), path, context=1024)
    (path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return path


def loaded_tokenizer(folder, **options):
    transformers = pytest.importorskip("transformers", reason="needs transformers to compare with")
    return transformers.AutoTokenizer.from_pretrained(folder, **options)


HOSTILE = [
    "",
    " leading and trailing ",
    "runs      of  spaces\t\ttabs\r\nand\n\n\n lines\n",
    "\x00\x01\x7f\x85\u00a0\u200b\u2028\ufeff\ufffd\uffff",
    "e\u0301 \u00e9 \u1100\u1161 \U0001f469\u200d\U0001f52c \U0010ffff",
    "\u2581 \u2581\u2581   \u2581",
    "<unk> <s> <0x41> <|endoftext|> <|endoftext|",
    "10 000 mg/kg\u22c5d\u207b\u00b9 \u00b1 \u03b2\u2082-adrenergic",
    "." * 1001 + "a" * 999 + "=" * 501 + "ab" * 333,
    "".join(chr(33 + i * 7919 % 0x3000) for i in range(100_000)),
]
hostile_text = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.sampled_from([" ", "  ", "\n", "\t", "\u2581", ".", "a", "ab", "b", "=", END, "<0x0A>"]),
        st.sampled_from(["the", "mice", "aspirin", "12", "mg/kg", "\u03b2-cells", "na\u00efve"]),
    ),
    max_size=60,
).map("".join)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_ids_and_text_agree_on(text, folder, pieces):
    ours = loaded_tokenizer(folder, split_special_tokens=True, model_max_length=10**9)
    ids = pieces.encode(text)
    assert ours(text)["input_ids"] == ids
    assert ours.decode(ids) == pieces.decode(ids) == text


def test_ids_and_text_agree_on_any_text(vocabulary, pieces):
    ours = tokenizer.convert(vocabulary)
    ours.encode_special_tokens = True

    @settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(hostile_text)
    def agree(text):
        ids = pieces.encode(text)
        assert ours.encode(text).ids == ids
        assert ours.decode(ids, skip_special_tokens=False) == text

    agree()


def test_one_pair_for_each_piece_is_enough(vocabulary, tmp_path):
    # Trained scores are tame: here the longer piece can come before its parts, pieces can be
    # joined in many ways, and some can't be reached at all.
    tame = sentencepiece_model.ModelProto()
    tame.ParseFromString(vocabulary.read_bytes())
    first_normal = next(i for i, piece in enumerate(tame.pieces) if piece.type == 1)
    rng, path = random.Random(0), tmp_path / "sentencepiece.model"
    for _ in range(100):
        proto = sentencepiece_model.ModelProto()
        proto.CopyFrom(tame)
        del proto.pieces[first_normal:]
        longer = {"".join(rng.choices("ab", k=rng.randint(2, 6))) for _ in range(25)}
        for score, piece in enumerate(rng.sample(["a", "b", *sorted(longer)], len(longer) + 2)):
            proto.pieces.add(piece=piece, score=-score)
        path.write_bytes(proto.SerializeToString())
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        ours = tokenizer.convert(path)
        for _ in range(50):
            text = "".join(rng.choices("ab", k=rng.randint(1, 40)))
            assert ours.encode(text).ids == pieces.encode(text), text


def test_literal_end_of_text_is_the_token_unless_split(folder, pieces):
    text = f"mice{END}were"
    assert pieces.encode(text).count(1) == 0
    mice, were = pieces.encode("mice"), pieces.encode("were")
    assert loaded_tokenizer(folder)(text)["input_ids"] == [*mice, 1, *were]
    split = loaded_tokenizer(folder)(text, split_special_tokens=True)["input_ids"]
    assert split == pieces.encode(text)


def test_ids_agree_with_sentencepiece_on_the_sample_corpus(tmp_path):
    sample = Path(__file__).parents[1] / "data" / "sample"
    parse.parse(sample, tmp_path / "documents", heldout_per_mille=0)
    options = data_tokenizer.Options(4096, train_bytes=10**9, character_coverage=1.0)
    data_tokenizer.train(tmp_path / "documents", tmp_path / "vocabulary", options)
    path = tmp_path / "vocabulary" / MODEL_FILE
    pieces, ours = Vocabulary(path), tokenizer.convert(path)
    texts = [document.text for document in documents.read(tmp_path / "documents")]
    assert len(texts) > 100
    for text in texts:
        assert ours.encode(text).ids == pieces.encode(text)
        assert ours.decode(ours.encode(text).ids) == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram"}, "not of type BPE"),
        ({"byte_fallback": False}, "byte_fallback is off"),
        ({"normalization_rule_name": "nmt_nfkc"}, "it normalizes text"),
        ({"add_dummy_prefix": True}, "add_dummy_prefix is on"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces is on"),
        ({"eos_piece": "</s>"}, "as end of text"),
        ({"bos_id": 2}, "control pieces beside"),
    ],
)
def test_vocabularies_without_a_counterpart_are_refused(options, message, tmp_path):
    lines = ["the mice were given aspirin and the rats were not"] * 50
    path = train(tmp_path / "m", lines, vocab_size=290, hard_vocab_limit=False, **options)
    with pytest.raises(UserError, match=message):
        tokenizer.convert(path)


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path):
    path = tmp_path / "sentencepiece.model"
    path.write_text(json.dumps({"no": "vocabulary"}))
    with pytest.raises(UserError, match="no SentencePiece model"):
        tokenizer.convert(path)
