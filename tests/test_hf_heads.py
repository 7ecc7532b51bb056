"""Fine-tuned runs as Hugging Face folders: transformers' own classes say what the run says, of text
that its tokenizer cut up, and the folder comes back to the bit."""

import json
import logging
import re
import textwrap

import jax
import numpy as np
import pytest
import safetensors.numpy

from biomedlm_jax import start
from biomedlm_jax.benchmarks.exam import Exam
from biomedlm_jax.benchmarks.prompts import SPECIAL
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf import load, names
from biomedlm_jax.hf.config import config_json, model_of
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from tests import tuned
from tests.conftest import FORGIVEN, on
from tests.peer import torch, transformers, vocabulary_of
from tests.test_hf_save import exported

pytestmark = FORGIVEN
CLASSES = {
    "multiple_choice": "GPT2DoubleHeadsModel",
    "classification": "AutoModelForSequenceClassification",
    "generation": "AutoModelForCausalLM",
}
KINDS = ("sentencepiece", "byte_level")


@pytest.fixture(scope="module")
def words(vocabulary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("byte_level")
    return {"sentencepiece": vocabulary, "byte_level": vocabulary_of(400, folder)}


@pytest.fixture(scope="module", params=[(x, y) for x in CLASSES for y in KINDS], ids="-".join)
def made(request, words, tmp_path_factory):
    """(experiment, vocabulary, parameters, the folder that was exported of the run)."""
    objective, kind = request.param
    experiment = tuned.experiment_of(objective, words[kind])
    workdir = tmp_path_factory.mktemp("run") / "run"
    params = tuned.saved(experiment, words[kind], workdir)
    folder = exported(workdir, tmp_path_factory.mktemp("hf") / "hf")
    return experiment, words[kind], params, folder


@pytest.fixture
def silent():
    """Nothing is said by transformers."""
    heard, handler = list[str](), logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    assert not heard


def opened(experiment, folder):
    kind = getattr(transformers, CLASSES[experiment.task.objective])
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def as_text(experiment, split):
    """Pairs of text, by item."""
    if experiment.task.objective == "multiple_choice":
        return [
            (f"{item.question}[SEP]", f" {option}[SEP]")
            for item in split.items
            for option in item.options
        ]
    return [
        (f"<|CONTEXT|>{item.context}", f"<|QUESTION|>{item.question}<|ANSWER|>")
        for item in split.items
    ]


def cut(experiment, tokenizer, pairs):
    how = dict(truncation="longest_first", max_length=experiment.task.length)
    first, second = ([pair[part] for pair in pairs] for part in (0, 1))
    return tokenizer(first, second, padding=True, return_tensors="pt", **how)


def test_transformers_says_what_we_say(made, silent):
    experiment, vocabulary, _, folder = made
    objective = experiment.task.objective
    theirs, tokenizer = opened(experiment, folder)
    split, form = tuned.items(objective), tuned.form(experiment, vocabulary)
    ours = [row.tokens.tolist() for rows in form.rows(split.items, split.kind) for row in rows]
    if objective == "generation":
        text = [f"{item.question}<|startoftext|>{item.answer}<|endoftext|>" for item in split.items]
        assert [ids[: len(ours[0])] for ids in tokenizer(text[:2])["input_ids"]] == ours[:2]
        return
    rows = cut(experiment, tokenizer, as_text(experiment, split))
    assert [
        ids[: sum(mask)]
        for ids, mask in zip(
            rows["input_ids"].tolist(), rows["attention_mask"].tolist(), strict=True
        )
    ] == ours
    assert max(map(len, ours)) == experiment.task.length > min(map(len, ours))
    with torch.no_grad():
        if objective == "multiple_choice":
            width = rows["input_ids"].shape[1]
            given = {name: x.reshape(len(split.items), -1, width) for name, x in rows.items()}
            last = given["attention_mask"].sum(2) - 1
            scores = theirs(**given, mc_token_ids=last).mc_logits
        else:
            scores = theirs(**rows).logits
    here, mesh = on(experiment, 2, 1, 2)
    found = start.params(start.find(folder), mesh)
    assert found["head"]["kernel"].shape == (experiment.model.width, experiment.model.classes)
    expected = Exam(here, mesh, form, split)(found)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-4, rtol=0)


def test_it_comes_back_to_the_bit(made, tmp_path):
    experiment, vocabulary, params, folder = made
    load.load(str(folder), tmp_path / "imported")
    again = exported(tmp_path / "imported", tmp_path / "again")
    first, second = (safetensors.numpy.load_file(x / "model.safetensors") for x in (folder, again))
    assert first.keys() == second.keys()
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (again / name).read_bytes(), name
    model, special = experiment.model, SPECIAL[experiment.task.objective]
    for place in (folder, tmp_path / "imported", again):
        source = start.find(place)
        assert (source.model.classes, source.model.class_bias) == (model.classes, model.class_bias)
        assert source.model.vocab == model.vocab
        assert source.special == special
        assert source.labels == (tuned.CLASSES if model.classes > 1 else source.labels)
        assert source.vocabulary is not None
        assert start.same_encoding(Vocabulary(source.vocabulary), Vocabulary(vocabulary))
        for shape in [(1, 1, 1), (1, 2, 2)]:
            found = tuned.flat(start.params(source, on(experiment, *shape)[1]))
            wanted = tuned.flat(params)
            assert found.keys() == wanted.keys()
            for name, array in wanted.items():
                np.testing.assert_array_equal(found[name], array, name)


def test_the_lines_of_the_card_run(made, silent):
    experiment, _, _, folder = made
    text = (folder / "README.md").read_text()
    code = [line for line in text.splitlines() if line.startswith("    ")]
    script = textwrap.dedent("\n".join(code)).replace("this/folder", str(folder))
    found = {}
    exec(script, found)
    objective = experiment.task.objective
    if objective == "multiple_choice":
        assert f"max_length={experiment.task.length}" in script
        scores = found["scores"].tolist()
        assert len(scores) == 2
        assert found["answer"] == found["options"][np.argmax(scores)]
        assert scores[0] != scores[1]
    elif objective == "classification":
        assert found["answer"] == tuned.CLASSES[int(found["scores"].argmax())]
        assert "| classes | maybe, no, yes |" in text
    else:
        assert isinstance(found["answer"], str)
    assert "The licence of these weights is for those who" in text
    listed = ", ".join(f"`{token}`" for token in ("<|endoftext|>", *SPECIAL[objective]))
    assert f"{listed} become these tokens wherever" in text
    assert "split_special_tokens" not in text
    tag = re.search("pipeline_tag: (.*)", text)
    assert tag is not None
    kinds = ("multiple-choice", "text-classification", "text-generation")
    assert tag[1] == dict(zip(CLASSES, kinds, strict=True))[objective]


def test_one_score_without_a_bias_is_a_classification_of_one(vocabulary, tmp_path, silent):
    model = dict(classes=1, class_bias=False)
    experiment = tuned.experiment_of("multiple_choice", vocabulary, model=model)
    params = tuned.saved(experiment, vocabulary, tmp_path / "run")
    folder = exported(tmp_path / "run", tmp_path / "hf")
    code = [x for x in (folder / "README.md").read_text().splitlines() if x.startswith("    ")]
    found = {}
    exec(textwrap.dedent("\n".join(code)).replace("this/folder", str(folder)), found)
    assert found["scores"].shape == (2,)
    back = tuned.flat(start.params(start.find(folder), on(experiment, 1, 1, 1)[1]))
    np.testing.assert_array_equal(back["head/kernel"], params["head"]["kernel"])
    assert "head/bias" not in back


def test_a_head_that_no_class_has_is_refused(vocabulary, tmp_path):
    model = dict(classes=3, class_bias=True)
    experiment = tuned.experiment_of("classification", vocabulary, model=model)
    tuned.saved(experiment, vocabulary, tmp_path / "run")
    with pytest.raises(UserError, match=r"class_bias=True with config\.model\.classes=3"):
        exported(tmp_path / "run", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


SCORES = {"architectures": ["GPT2ForSequenceClassification"]}
DOUBLE = {"architectures": ["GPT2DoubleHeadsModel"]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (SCORES | {"problem_type": "regression"}, "problem_type='regression'"),
        (
            SCORES | {"num_labels": 3, "id2label": {"0": "a", "1": "b"}},
            "num_labels=3, but id2label",
        ),
        (SCORES | {"num_labels": 0}, "num_labels=0 is not"),
        (SCORES | {"num_labels": True}, "num_labels=True is not"),
        (SCORES | {"id2label": {"1": "a", "2": "b"}}, "id2label=.* is no object of names"),
        (SCORES | {"id2label": ["a"]}, "id2label=.* is no object of names"),
        (SCORES | {"id2label": {}}, "id2label=.* is no object of names"),
        (DOUBLE | {"summary_type": "mean"}, "summary_type='mean' is not implemented"),
        (DOUBLE | {"summary_activation": "tanh"}, "summary_activation='tanh' is not"),
        (DOUBLE | {"summary_use_proj": False}, "summary_use_proj=False is not"),
        (DOUBLE | {"summary_last_dropout": 0.5}, "summary_last_dropout=0.5 is no field"),
        ({"architectures": ["GPT2ForTokenClassification"]}, "GPT2ForTokenClassification"),
    ],
)
def test_other_heads_are_refused_by_name(fields, message, tmp_path):
    settings = {"model_type": "gpt2", "pad_token_id": 1, "eos_token_id": 1, "bos_token_id": 1}
    with pytest.raises(UserError, match=message):
        model_of(settings | fields, tmp_path / "config.json", dtype="float32")


def test_defaults_are_those_of_transformers(tmp_path):
    for fields, classes in [({}, 2), ({"num_labels": 4}, 4), ({"id2label": {"0": "a"}}, 1)]:
        theirs = transformers.GPT2Config(**fields)
        given = SCORES | fields | {"model_type": "gpt2"}
        model = model_of(given, tmp_path / "config.json", dtype="float32")
        assert model.classes == theirs.num_labels == classes
        assert not model.class_bias


@pytest.mark.parametrize("objective", ["multiple_choice", "classification"])
def test_rows_name_every_tensor_of_transformers_once(objective, vocabulary):
    model = tuned.experiment_of(objective, vocabulary).model
    settings = config_json(model, eos_id=1)
    kind = getattr(transformers, settings["architectures"][0])
    with torch.device("meta"):
        theirs = kind(transformers.GPT2Config(**settings)).state_dict()
    theirs.pop("lm_head.weight", None)
    listed = [
        (name, row.shapes(model)[1]) for row in names.rows(model) for name in row.names(model)
    ]
    assert sorted(listed) == sorted((name, tuple(x.shape)) for name, x in theirs.items())
    assert names.count(model) == sum(x.numel() for x in theirs.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.update({"id": x["id"] + 1}), "adds tokens to its vocabulary"),
        (lambda x: x.update({"content": "[MASK]"}), r"adds tokens to its vocabulary.*\[MASK\]"),
        (lambda x: x.pop("content"), "added_tokens that are not of an id and a content"),
    ],
)
def test_other_tokens_are_refused(change, message, made, tmp_path):
    experiment, _, _, folder = made
    copy = tmp_path / "hf"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file)
    settings = json.loads((folder / "tokenizer.json").read_text())
    change(settings["added_tokens"][-1])
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=message):
        start.find(copy)
    assert experiment.task is not None


def test_a_model_that_transformers_fine_tuned_is_loaded(vocabulary, tmp_path):
    """One that never was ours: its tensors, its labels, no tokenizer."""
    settings = dict(n_layer=2, n_head=2, n_embd=16, vocab_size=300, n_positions=32)
    config = transformers.GPT2Config(
        **settings,
        num_labels=4,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 1),
        attn_implementation="eager",
    )
    theirs = transformers.GPT2ForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    source = start.find(tmp_path / "theirs")
    assert source.labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
    assert source.special == ()
    _, mesh = on(tuned.experiment_of("classification", vocabulary), 1, 1, 1)
    params = jax.device_get(start.params(source, mesh))
    np.testing.assert_array_equal(params["head"]["kernel"].T, theirs.score.weight.detach().numpy())
    again = exported(tmp_path / "theirs", tmp_path / "again")
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(again)
    assert opened.config.id2label == theirs.config.id2label
    for name, x in theirs.state_dict().items():
        assert torch.equal(x, opened.state_dict()[name]), name
