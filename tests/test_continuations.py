"""Continuations are what the model finds likeliest, on any mesh, and stop where they must."""

import numpy as np
import pytest

from biomedlm_jax import continuations, step
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from tests.conftest import TINY, changed, on, put, started

WRITTEN = 6


@pytest.fixture(scope="module")
def held_out(store) -> TokenStore:
    return TokenStore(store, "heldout")


@pytest.fixture(scope="module")
def one():
    """TINY on one device, and its parameters."""
    experiment, devices = on(TINY, 1, 1, 1)
    return experiment, devices, started(experiment, devices).params


@pytest.fixture(scope="module")
def expected(one, held_out):
    return continuations.continuations(*one, held_out, tokens=WRITTEN)


def test_they_are_the_likeliest_tokens_of_forward(one, held_out, expected):
    experiment, devices, params = one
    forward, vocabulary = step.forward(experiment, devices), Vocabulary(held_out.vocabulary_path)
    documents, prompts = continuations.beginnings(held_out, 3, experiment.model.context)
    rows = [list(prompt) for prompt in prompts]
    for _ in range(WRITTEN):
        for row in rows:  # one after the other, without anything behind the last token
            if held_out.eos_id in row:
                continue
            padded = np.full((1, experiment.model.context), 7, np.int32)
            padded[0, : len(row)] = row
            logits = np.asarray(forward(params, put(padded, devices)))
            row.append(int(logits[0, len(row) - 1].argmax()))
    texts = [row[len(p) :] for row, p in zip(rows, prompts, strict=True)]
    assert [found["document"] for found in expected] == documents
    assert [found["prompt"] for found in expected] == [vocabulary.decode(p) for p in prompts]
    assert [found["text"] for found in expected] == [vocabulary.decode(t) for t in texts]
    assert all(found["text"] for found in expected)


@pytest.mark.parametrize(
    ("shape", "segment_ids"), [((2, 2, 2, 1), False), ((1, 1, 1, 4), True)], ids=str
)
def test_they_are_the_same_on_any_mesh(shape, segment_ids, held_out, expected):
    experiment, devices = on(changed(TINY, data__segment_ids=segment_ids), *shape)
    params = started(experiment, devices).params
    assert (
        continuations.continuations(experiment, devices, params, held_out, tokens=WRITTEN)
        == expected
    )


def test_prompts_are_of_the_first_document_the_last_and_between(held_out):
    ids, prompts = continuations.beginnings(held_out, 3, context=32)
    of = [f"PMID:{number}" for number in held_out.documents[:, 3]]
    assert ids == [of[0], of[2], of[3]]
    for id, prompt in zip(ids, prompts, strict=True):
        first = held_out.documents[of.index(id), 0]
        assert prompt == held_out.read(np.array([first]), continuations.PROMPT)[0].tolist()
    assert len(continuations.beginnings(held_out, 99, context=32)[0]) == held_out.rows
    assert {len(prompt) for prompt in continuations.beginnings(held_out, 3, context=5)[1]} == {4}
