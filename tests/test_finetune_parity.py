"""Fine-tuning beside transformers and PyTorch on real questions: the same tokens, scores of options
and of classes, loss, gradients of head and body."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from biomedlm_jax import step
from biomedlm_jax.benchmarks import read
from biomedlm_jax.benchmarks.batches import filled
from biomedlm_jax.benchmarks.exam import Exam
from biomedlm_jax.benchmarks.prompts import SPECIAL, Form, longest_first
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from tests.conftest import SHARED, changed, fine_tuning, on, put
from tests.peer import as_theirs, drawn, furthest, state_of, torch, transformers, vocabulary_of

QA, GPT2 = SHARED / "qa", SHARED / "tokenizers" / "gpt2" / "tokenizer.json"
pytestmark = pytest.mark.skipif(not QA.is_dir(), reason=f"{QA} has the real questions")
ITEMS, WORDS = 4, 500
LAST = "transformer.ln_f.bias"
CASES = {"multiple_choice": "medqa", "classification": "pubmedqa"}


def theirs_of_pairs(objective, items, length):
    """Token ids as the authors' code makes them, with the library's own pairs and truncation."""
    words = Tokenizer.from_file(str(GPT2))
    words.add_special_tokens([AddedToken(name) for name in SPECIAL[objective]])
    words.enable_truncation(length, strategy="longest_first")
    words.no_padding()
    if objective == "classification":
        pairs = [
            (f"<|CONTEXT|>{item.context}", f"<|QUESTION|>{item.question}<|ANSWER|>")
            for item in items
        ]
    else:
        pairs = [
            (f"{item.question}[SEP]", f" {option}[SEP]")
            for item in items
            for option in item.options
        ]
    return [words.encode(*pair).ids for pair in pairs]


@functools.cache
def real(objective) -> tuple:
    return read.read(CASES[objective], QA, "dev").items


@pytest.mark.parametrize("objective", CASES)
@pytest.mark.parametrize("length", [512, 100, 31])
def test_tokens_are_theirs(objective, length):
    items = real(objective)[:50]
    form = Form(objective, Vocabulary(GPT2), length)
    ours = [row.tokens.tolist() for rows in form.rows(items, "multiple_choice") for row in rows]
    assert ours == theirs_of_pairs(objective, items, length)
    assert length == 512 or max(map(len, ours)) == length


@pytest.mark.parametrize(
    ("lengths", "limit", "stays"),
    [
        ((5, 5), 10, (5, 5)),
        ((8, 3), 10, (7, 3)),
        ((3, 8), 10, (3, 7)),
        ((9, 9), 11, (5, 6)),
        ((9, 8), 11, (6, 5)),
        ((20, 1), 10, (9, 1)),
    ],
)
def test_the_longer_part_is_cut_first(lengths, limit, stays):
    assert longest_first(*lengths, limit) == stays


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Of few tokens, for a small table."""
    return Vocabulary(vocabulary_of(WORDS, tmp_path_factory.mktemp("words")))


def experiment_of(objective):
    """The task's tokens besides, and a head; no dropout."""
    model = dict(
        vocab=WORDS + len(SPECIAL[objective]),
        context=512,
        width=32,
        mlp=128,
        dropout=0.0,
        init_std=0.3,
    )
    return changed(
        fine_tuning(objective, model=model),
        data__batch=ITEMS,
        optimizer__warmup_steps=0,
        optimizer__clip_norm=1e9,
    )


def peer_of(experiment, params):
    """transformers' model with these parameters: GPT2ForSequenceClassification, whose head has no
    bias, or GPT2DoubleHeadsModel, whose head of one score has one."""
    model = experiment.model
    config = transformers.GPT2Config(
        vocab_size=model.vocab,
        n_positions=model.context,
        n_embd=model.width,
        n_layer=model.layers,
        n_head=model.heads,
        n_inner=model.mlp,
        scale_attn_by_inverse_layer_idx=True,
        num_labels=model.classes,
        pad_token_id=WORDS,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
        summary_first_dropout=0.0,
    )
    kernel = np.asarray(params["head"]["kernel"]).T
    body = as_theirs({name: x for name, x in params.items() if name != "head"}, body_of(model))
    if model.class_bias:
        theirs = transformers.GPT2DoubleHeadsModel(config)
        head = "multiple_choice_head.summary"
        body |= {f"{head}.weight": kernel, f"{head}.bias": np.asarray(params["head"]["bias"])}
    else:
        theirs = transformers.GPT2ForSequenceClassification(config)
        body["score.weight"] = kernel
    state = {name: torch.tensor(np.ascontiguousarray(x)) for name, x in body.items()}
    missing, unknown = theirs.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unknown
    return theirs.eval()


def body_of(model):
    return dataclasses.replace(model, classes=0, class_bias=False)


def their_scores(theirs, rows):
    """[R, C], each row as long as it is: nothing is padded, nothing has to be masked."""
    found = []
    for row in rows:
        ids = torch.tensor(row.tokens[None], dtype=torch.long)
        if hasattr(theirs, "multiple_choice_head"):
            last = torch.tensor([[len(row.tokens) - 1]])
            found.append(theirs(ids[None], mc_token_ids=last).mc_logits.reshape(1, 1))
        else:
            found.append(theirs(ids).logits)
    return torch.cat(found)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("objective", CASES)
def test_scores_loss_and_gradients(objective, mesh, words):
    experiment, devices = on(experiment_of(objective), *mesh)
    params = drawn(experiment.model, seed=1, spread=0.05)
    split = dataclasses.replace(
        read.read(CASES[objective], QA, "dev"), items=real(objective)[:ITEMS]
    )
    form = Form(objective, words, 256)
    rows = [row for mine in form.rows(split.items, split.kind) for row in mine]
    theirs = peer_of(experiment, params)
    scores = their_scores(theirs, rows)
    expected = scores.detach().numpy().reshape(ITEMS, -1)

    state = state_of(params, experiment, devices)
    ours = Exam(experiment, devices, form, split)(state.params)
    assert ours.shape == (ITEMS, len(split.items[0].options))
    assert np.abs(ours - expected).max() < 1e-4
    assert np.ptp(expected, axis=1).mean() > 0.1

    labels = np.array([item.label for item in split.items], np.int32)
    logits = scores.reshape(ITEMS, -1)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels, dtype=torch.long))
    loss.backward()
    tokens, ends, _ = filled(rows, form)
    state, metrics = step.train_step(experiment, devices)(
        state, put(tokens, devices), ends=ends, labels=labels
    )
    assert float(metrics["loss"]) == pytest.approx(loss.item(), abs=1e-5)

    b1 = experiment.optimizer.b1
    moments = jax.tree.map(lambda x: np.asarray(x) / (1 - b1), state.opt_state[0].mu)
    head = moments.pop("head")
    gradients = {
        name: parameter.grad.numpy()
        for name, parameter in theirs.named_parameters()
        if parameter.grad is not None
    }
    own = "multiple_choice_head.summary" if experiment.model.class_bias else "score"
    np.testing.assert_allclose(head["kernel"].T, gradients.pop(f"{own}.weight"), atol=2e-5)
    ours = as_theirs(moments, body_of(experiment.model))
    if experiment.model.class_bias:  # these two add one number to all options
        for nothing in (head["bias"], gradients.pop(f"{own}.bias")):
            assert abs(nothing).max() < 1e-6
        for nothing in (ours.pop(LAST), gradients.pop(LAST)):
            assert abs(nothing).max() < 1e-6
    assert ours.keys() == gradients.keys()
    assert furthest(ours, gradients)[0] < 1e-4


def test_rows_that_fill_a_batch_up_count_nothing(words):
    experiment, devices = on(experiment_of("classification"), 2, 1, 1)
    form = Form("classification", words, 128)
    items = real("classification")[:3]
    rows = [row for mine in form.rows(items, "classification") for row in mine]
    labels = np.array([item.label for item in items] + [2], np.int32)
    tokens, ends, _ = filled(rows + rows[:1], form)
    state = state_of(drawn(experiment.model, seed=1, spread=0.05), experiment, devices)
    theirs = peer_of(experiment, jax.device_get(state.params))
    counted = np.arange(4) < 3
    _, metrics = step.train_step(experiment, devices)(
        state, put(tokens, devices), counted=counted, ends=ends, labels=labels
    )
    with torch.no_grad():
        scores = their_scores(theirs, rows)
    right = torch.tensor(labels[:3], dtype=torch.long)
    expected = torch.nn.functional.cross_entropy(scores, right)
    assert float(metrics["loss"]) == pytest.approx(expected.item(), abs=1e-5)
