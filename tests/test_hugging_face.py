"""A model leaves as the Hugging Face folder that computes the same from the same text."""

import csv
import gzip
import json
import logging
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import sentencepiece
import sentencepiece.sentencepiece_model_pb2 as sentencepiece_model
from flax import traverse_util
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from biomedlm_jax.config import Model
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf import names, save, tokenizer
from biomedlm_jax.model import gpt
from biomedlm_jax.pipeline.vocabulary import END_OF_TEXT as END

# pyright: reportAttributeAccessIssue=false
# protobuf makes the classes of sentencepiece_model_pb2 when it is imported.

ABSTRACTS = Path(__file__).parents[2] / "shared" / "data" / "abstracts"
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
BIOMEDLM = Model(
    layers=32,
    width=2560,
    heads=20,
    mlp=10240,
    vocab=28896,
    context=1024,
    dropout=0.1,
    init_std=0.02,
    layer_norm_epsilon=1e-5,
    compute_dtype="bfloat16",
    remat="named",
    attention="auto",
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """Trained on few words, with runs of one character, and two symbols that are kept whole."""
    text = "the mice were given 12 mg/kg of aspirin -- ...... ===== aaaa ababab na\u00efve \u03b2"
    words = text.split()
    rng = random.Random(0)
    lines = [" ".join(rng.choices(words, k=12)) for _ in range(300)]
    path = tmp_path_factory.mktemp("vocabulary") / "sentencepiece"
    return train(path, lines, vocab_size=380, user_defined_symbols=["\n", "\u2581\u2581"])


def train(prefix, lines, **options):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(prefix), **{**TRAINING, **options}
    )
    return prefix.with_name(prefix.name + ".model")


@pytest.fixture(scope="module")
def pieces(vocabulary):
    return sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))


@pytest.fixture(scope="module")
def model():
    return Model(
        layers=3,
        width=32,
        heads=2,
        mlp=96,
        vocab=380,
        context=64,
        dropout=0.1,
        init_std=0.02,
        layer_norm_epsilon=1e-5,
        compute_dtype="float32",
        remat="none",
        attention="reference",
    )


@pytest.fixture(scope="module")
def params(model):
    """Every number another, also in the biases and scales, which `init` makes 0 and 1."""
    rng = np.random.default_rng(0)
    tree = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        jax.eval_shape(lambda: gpt.init(model, jax.random.key(0))),
    )
    tree["tokens"]["table"][model.vocab :] = 0
    return tree


@pytest.fixture(scope="module")
def folder(params, model, vocabulary, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model"
    save.save(params, model, vocabulary, path, extra={"step": 7})
    return path


@pytest.fixture
def complaints():
    """What transformers and the hub's library log from a warning on; they do not propagate."""
    records, handler = [], logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    for logger in loggers:
        logger.addHandler(handler)
    yield records
    for logger in loggers:
        logger.removeHandler(handler)


def loaded_tokenizer(folder, **options):
    transformers = pytest.importorskip("transformers", reason="needs transformers to compare with")
    return transformers.AutoTokenizer.from_pretrained(folder, **options)


def test_table_names_every_parameter_of_the_model_once(model):
    tree = jax.eval_shape(lambda: gpt.init(model, jax.random.key(0)))
    flat: Any = traverse_util.flatten_dict(tree, sep="/")
    ours = [row.ours for row in names.TABLE]
    assert sorted(ours) == sorted(flat)
    assert {row.ours: row.shapes(model)[0] for row in names.TABLE} == {
        name: leaf.shape for name, leaf in flat.items()
    }


def test_table_names_every_tensor_of_hugging_face_once(model):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        theirs = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**save.config(model, eos_id=1))
        ).state_dict()
    assert theirs.pop("lm_head.weight").shape == (model.vocab, model.width)
    listed = [(name, row.shapes(model)[1]) for row in names.TABLE for name in row.names(model)]
    assert sorted(listed) == sorted((name, tuple(t.shape)) for name, t in theirs.items())


def test_there_and_back_to_the_bit(params, model):
    back = names.from_hf(dict(names.to_hf(params, model)), model)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_tensors_are_contiguous_whatever_the_order_of_ours(params, model):
    # safetensors writes the memory from a tensor's first byte on, whatever its strides.
    columns_first = jax.tree.map(np.asfortranarray, params)
    for (name, tensor), (_, same) in zip(
        names.to_hf(columns_first, model), names.to_hf(params, model), strict=True
    ):
        assert tensor.flags.c_contiguous, name
        np.testing.assert_array_equal(tensor, same)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_columns_of_qkv(params, model, name):
    tensors, d, h = dict(names.to_hf(params, model)), model.width, model.head_dim
    for layer in range(model.layers):
        theirs = tensors[f"transformer.h.{layer}.attn.c_attn.{name}"]
        ours = params["blocks"]["qkv"]["kernel" if name == "weight" else "bias"][layer]
        for head in range(model.heads):
            for part in range(3):  # query, key, value
                a, b = (head * 3 + part) * h, part * d + head * h
                np.testing.assert_array_equal(ours[..., a : a + h], theirs[..., b : b + h])


def test_misfits_are_reported_together(params, model):
    broken = jax.tree.map(lambda x: x, params)
    del broken["ln_f"]["bias"]
    broken["positions"] = broken["positions"][:-1]
    broken["ln_f"]["scale"] = broken["ln_f"]["scale"].astype(np.float16)
    broken["head"] = np.zeros(3, np.float32)
    with pytest.raises(UserError) as ours:
        names.to_hf(broken, model)
    for part in ("ln_f/bias is missing", "(63, 32) instead of (64, 32)", "float16", "head is unk"):
        assert part in str(ours.value)

    tensors = dict(names.to_hf(params, model))
    tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")
    tensors["transformer.h.2.ln_1.bias"] = np.zeros(5, np.float32)
    with pytest.raises(UserError) as theirs:
        names.from_hf(tensors, model)
    for part in ("wte.weight is missing", "lm_head.weight is unknown", "(5,) instead of (32,)"):
        assert part in str(theirs.value)


def test_config_is_biomedlm_s():
    transformers = pytest.importorskip("transformers")
    biomedlm = transformers.GPT2Config(
        architectures=["GPT2LMHeadModel"],
        vocab_size=28896,
        n_embd=2560,
        n_layer=32,
        n_head=20,
        scale_attn_by_inverse_layer_idx=True,
        bos_token_id=28895,
        eos_token_id=28895,
        n_ctx=1024,
        dtype="float32",
    )
    ours = save.config(BIOMEDLM, eos_id=28895)
    assert transformers.GPT2Config(**ours).to_dict() == biomedlm.to_dict()
    general = set(transformers.PreTrainedConfig().to_dict())
    assert set(transformers.GPT2Config().to_dict()) - general <= set(ours), "a field left open"
    assert save.config(Model(**{**vars(BIOMEDLM), "mlp": 4096}), eos_id=1)["n_inner"] == 4096


def test_folder_opens_and_generates_without_a_warning(folder, params, model, complaints):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values()), report
    assert type(theirs) is transformers.GPT2LMHeadModel
    assert theirs.dtype == torch.float32
    assert theirs.config._attn_implementation == "eager"
    assert theirs.lm_head.weight is theirs.transformer.wte.weight
    np.testing.assert_array_equal(
        theirs.transformer.wte.weight.detach().numpy(), params["tokens"]["table"][: model.vocab]
    )
    prompt = loaded_tokenizer(folder)("the mice were", return_tensors="pt")
    assert set(prompt) == {"input_ids", "attention_mask"}
    assert theirs.generate(**prompt, do_sample=False, max_new_tokens=3).shape[0] == 1
    assert complaints == []


def test_weights_are_stored_once_and_without_padding(folder, model):
    with safe_open(folder / "model.safetensors", framework="numpy") as tensors:
        assert tensors.metadata() == {"format": "pt"}
        assert "lm_head.weight" not in tensors.keys()  # noqa: SIM118
        stored = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    assert stored["transformer.wte.weight"] == [model.vocab, model.width]
    assert sum(int(np.prod(shape)) for shape in stored.values()) == model.parameters


def test_card_tells_what_the_model_is(folder, model):
    card = (folder / "README.md").read_text()
    assert f"| parameters | {model.parameters:,} |" in card
    assert "| step | 7 |" in card
    assert "no medical advice" in card


def test_vocabulary_of_another_size_is_refused(params, model, vocabulary, tmp_path):
    other = Model(**{**vars(model), "vocab": 379})
    with pytest.raises(UserError, match=r"vocab=379.*380 pieces"):
        save.save(params, other, vocabulary, tmp_path / "export", extra={})
    assert list(tmp_path.iterdir()) == []


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
def test_ids_and_text_agree_with_sentencepiece_on(text, folder, pieces):
    ours = loaded_tokenizer(folder, split_special_tokens=True, model_max_length=10**9)
    ids = pieces.encode(text)
    assert ours(text)["input_ids"] == ids
    assert ours.decode(ids) == pieces.decode(ids) == text.replace("\u2581", " ")


def test_ids_and_text_agree_with_sentencepiece_on_any_text(vocabulary, pieces):
    ours = tokenizer.convert(vocabulary)
    ours.encode_special_tokens = True

    @settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(hostile_text)
    def agree(text):
        ids = pieces.encode(text)
        assert ours.encode(text).ids == ids
        assert ours.decode(ids, skip_special_tokens=False) == text.replace("\u2581", " ")

    agree()


def test_one_pair_for_each_piece_is_enough(vocabulary, tmp_path):
    # Trained scores are tame: here the longer piece can come before its parts, pieces can be
    # joined in many ways, and some can't be reached at all.
    trained = sentencepiece_model.ModelProto()
    trained.ParseFromString(vocabulary.read_bytes())
    first_normal = next(i for i, piece in enumerate(trained.pieces) if piece.type == 1)
    rng, path = random.Random(0), tmp_path / "sentencepiece.model"
    for _ in range(100):
        proto = sentencepiece_model.ModelProto()
        proto.CopyFrom(trained)
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


def test_ids_agree_with_sentencepiece_on_abstracts(tmp_path):
    if not ABSTRACTS.is_dir():
        pytest.skip(f"needs the abstracts in {ABSTRACTS}")
    texts = []
    for path in sorted(ABSTRACTS.glob("*/[A-C]*.csv.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        texts += [f"{row['title']}\n{row['abstract']}" for row in rows]
    assert len(texts) > 5000
    path = train(tmp_path / "m", texts[:3000], vocab_size=8000, user_defined_symbols=["\n"])
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = tokenizer.convert(path)
    for text, ids in zip(texts, pieces.encode(texts), strict=True):
        assert ours.encode(text).ids == ids
        assert ours.decode(ids) == text


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
