"""The same model as `transformers.GPT2LMHeadModel`: logits, loss, gradients, one AdamW update."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import traverse_util

from biomedlm_jax import step
from biomedlm_jax.hf import names, save
from biomedlm_jax.model import gpt
from tests.conftest import TINY, changed, on, put

torch = pytest.importorskip("torch", reason="torch is a test's need, not a run's")
transformers = pytest.importorskip("transformers")

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
    folder = tmp_path / "hf"
    save.save(params, EXPERIMENT.model, vocabulary, folder, extra={})
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def as_theirs(tree) -> dict[str, np.ndarray]:
    return dict(names.to_hf(jax.device_get(tree), EXPERIMENT.model))


def theirs(module, attribute: str) -> dict[str, np.ndarray]:
    return {
        name: getattr(parameter, attribute).detach().numpy()
        for name, parameter in module.named_parameters()
    }


def state_of(params, devices) -> step.State:
    shardings = step.state_shardings(EXPERIMENT, devices)
    state = jax.jit(lambda: step.init(EXPERIMENT), out_shardings=shardings)()
    # Copies: the step takes its state's memory for its own.
    copies = jax.tree.map(np.array, params)
    return dataclasses.replace(state, params=jax.device_put(copies, shardings.params))


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_logits_of_64_random_sequences(mesh, params, tokens, peer):
    experiment, devices = on(EXPERIMENT, *mesh)
    ours = step.forward(experiment, devices)(state_of(params, devices).params, put(tokens, devices))
    with torch.no_grad():
        expected = peer(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    assert ours.shape == expected.shape == (64, 64, 300)
    assert np.abs(np.asarray(ours) - expected).max() < 1e-4
    assert expected.std() > 0.3  # far from constant


def test_the_division_by_layer_matters(params, tokens, peer):
    peer.config.scale_attn_by_inverse_layer_idx = False
    for layer in peer.transformer.h:
        layer.attn.scale_attn_by_inverse_layer_idx = False
        layer.attn.scaling = EXPERIMENT.model.head_dim**-0.5
    experiment, devices = on(EXPERIMENT, 1, 1, 1)
    ours = step.forward(experiment, devices)(state_of(params, devices).params, put(tokens, devices))
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
    gradients = theirs(peer, "grad")
    torch.optim.AdamW(
        peer.parameters(),
        lr=chosen.peak_lr,
        betas=(chosen.b1, chosen.b2),
        eps=chosen.eps,
        weight_decay=chosen.weight_decay,
    ).step()

    state = state_of(params, devices)
    state, metrics = step.train_step(experiment, devices)(state, tokens, segments)
    assert float(metrics["loss"]) == pytest.approx(loss.item(), abs=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(norm.item(), rel=1e-5)
    assert norm > chosen.clip_norm

    # AdamW's first moment after one step is (1 - b1) x the clipped gradient.
    moments = as_theirs(state.opt_state[0].mu)
    assert moments.keys() == gradients.keys()
    for name, moment in moments.items():
        expected = (1 - chosen.b1) * gradients[name]
        np.testing.assert_allclose(moment, expected, atol=1e-8, rtol=1e-3, err_msg=name)
    updated = theirs(peer, "data")
    for name, array in as_theirs(state.params).items():
        np.testing.assert_allclose(array, updated[name], atol=1e-6, err_msg=name)
    before = traverse_util.flatten_dict(params, sep="/")
    after = traverse_util.flatten_dict(jax.device_get(state.params), sep="/")
    assert all(not np.array_equal(before[name], after[name]) for name in before)
