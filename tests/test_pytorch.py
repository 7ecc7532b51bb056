"""The same model as `transformers.GPT2LMHeadModel`, at a small size: what every layer hands on,
logits, loss, gradients, one AdamW update."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from biomedlm_jax import step
from biomedlm_jax.model import gpt
from tests.conftest import TINY, changed, on, put
from tests.peer import (
    adamw_of,
    as_theirs,
    exported,
    furthest,
    layers_of,
    listening_to_theirs,
    opened,
    state_of,
    theirs_of,
    torch,
)

EXPERIMENT = changed(
    TINY,
    model__layers=4,  # the score of the last is divided by 4
    model__context=64,
    model__dropout=0.0,
    data__batch=64,
    optimizer__warmup_steps=0,
    optimizer__clip_norm=0.1,  # below the norm that comes, so that clipping is compared too
    optimizer__peak_lr=1e-3,
    optimizer__eps=1e-5,  # of a key's bias the true gradient is 0; 1e-8 would amplify its rounding
)


@pytest.fixture(scope="module")
def params():
    """Every number another, the biases and scales that start as 0 and 1 too."""
    draw = np.random.default_rng(0)
    tree = jax.device_get(gpt.init(EXPERIMENT.model, jax.random.key(0)))
    tree = jax.tree.map(lambda x: x + 0.05 * draw.standard_normal(x.shape, np.float32), tree)
    tree["tokens"]["table"][EXPERIMENT.model.vocab :] = 0
    return tree


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).integers(0, EXPERIMENT.model.vocab, (64, 64), np.int32)


@pytest.fixture
def peer(params, vocabulary, tmp_path):
    """PyTorch's model of the exported folder."""
    return opened(exported(params, EXPERIMENT.model, vocabulary, tmp_path / "hf"))


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_logits_of_64_random_sequences(mesh, params, tokens, peer):
    experiment, devices = on(EXPERIMENT, *mesh)
    ours = step.forward(experiment, devices)(
        state_of(params, experiment, devices).params, put(tokens, devices)
    )
    with torch.no_grad():
        expected = peer(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    assert ours.shape == expected.shape == (64, 64, 300)
    assert np.abs(np.asarray(ours) - expected).max() < 1e-4
    assert expected.std() > 0.3  # far from constant


def test_what_each_layer_hands_on(params, tokens, peer):
    experiment, devices = on(EXPERIMENT, 1, 1, 1)
    with listening_to_theirs(peer) as expected, torch.no_grad():
        peer(torch.tensor(tokens, dtype=torch.long))
    placed = state_of(params, experiment, devices).params
    ours, _ = layers_of(experiment, devices, placed, put(tokens, devices))
    assert list(expected) == ["embedding", "0", "1", "2", "3", "ln_f"]
    assert ours.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(ours[name], array, atol=1e-5, rtol=0, err_msg=name)


def test_the_division_by_layer_matters(params, tokens, peer):
    peer.config.scale_attn_by_inverse_layer_idx = False
    for layer in peer.transformer.h:
        layer.attn.scale_attn_by_inverse_layer_idx = False
        layer.attn.scaling = EXPERIMENT.model.head_dim**-0.5
    experiment, devices = on(EXPERIMENT, 1, 1, 1)
    ours = step.forward(experiment, devices)(
        state_of(params, experiment, devices).params, put(tokens, devices)
    )
    with torch.no_grad():
        plain = peer(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    assert np.abs(np.asarray(ours) - plain).max() > 1e-2


def masked(segments):
    """What `transformers` takes for documents that do not see each other: zeros and -inf to add to
    the scores, and which labels to leave out."""
    same = segments[:, :, None] == segments[:, None, :]
    allowed = same & np.tril(np.ones(same.shape[1:], bool))
    first = np.diff(segments, axis=1, prepend=-1) > 0
    scores = torch.where(torch.tensor(allowed), 0.0, -torch.inf)
    return scores[:, None], torch.tensor(first)


@pytest.mark.parametrize(
    ("mesh", "packed"), [((1, 1, 1), False), ((2, 2, 2), False), ((2, 2, 2), True)], ids=str
)
def test_loss_gradients_and_one_update(mesh, packed, params, tokens, peer):
    experiment, devices = on(changed(EXPERIMENT, data__segment_ids=packed), *mesh)
    chosen = experiment.optimizer
    ids = torch.tensor(tokens, dtype=torch.long)
    if packed:
        begins = np.random.default_rng(2).random(tokens.shape) < 0.2
        segments = np.cumsum(begins, axis=1, dtype=np.int32)
        mask, first = masked(segments)
        loss = peer(ids, attention_mask=mask, labels=torch.where(first, -100, ids)).loss
    else:
        segments, loss = None, peer(ids, labels=ids).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(peer.parameters(), chosen.clip_norm)
    gradients = theirs_of(peer, "grad")
    adamw_of(peer.parameters(), experiment).step()

    state = state_of(params, experiment, devices)
    state, metrics = step.train_step(experiment, devices)(state, tokens, segments)
    assert float(metrics["loss"]) == pytest.approx(loss.item(), abs=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(norm.item(), rel=1e-5)
    assert norm > chosen.clip_norm

    # AdamW's first moment after one step is (1 - b1) x the clipped gradient.
    moments = as_theirs(state.opt_state[0].mu, EXPERIMENT.model)
    assert moments.keys() == gradients.keys()
    found = {name: moment / (1 - chosen.b1) for name, moment in moments.items()}
    assert furthest(found, gradients)[0] < 1e-4
    for name, moment in moments.items():
        expected = (1 - chosen.b1) * gradients[name]
        np.testing.assert_allclose(moment, expected, atol=1e-8, rtol=1e-3, err_msg=name)
    updated = theirs_of(peer, "data")
    for name, array in as_theirs(state.params, EXPERIMENT.model).items():
        np.testing.assert_allclose(array, updated[name], atol=1e-6, err_msg=name)
    before = traverse_util.flatten_dict(params, sep="/")
    after = traverse_util.flatten_dict(jax.device_get(state.params), sep="/")
    assert all(not np.array_equal(before[name], after[name]) for name in before)
