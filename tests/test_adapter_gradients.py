"""Adapters learn what PEFT's learn: the same loss and gradients of the same a and b."""

import warnings

import jax
import numpy as np
import pytest

from biomedlm_jax import step
from biomedlm_jax.hf import adapters, save
from biomedlm_jax.model.additions import without_adapters
from tests import tuned
from tests.conftest import FORGIVEN, changed, on, put
from tests.peer import state_of, torch, transformers

pytestmark = FORGIVEN
peft = pytest.importorskip("peft")


def test_gradients_are_those_of_peft(vocabulary, tmp_path):
    experiment = tuned.lora(tuned.experiment_of("next_token", vocabulary))
    experiment = changed(experiment, optimizer__warmup_steps=0, optimizer__clip_norm=1e9)
    experiment, mesh = on(experiment, 2, 1, 2)
    params, model = tuned.drawn(experiment), experiment.model
    base = params | {
        "blocks": {
            layer: {name: x for name, x in parts.items() if name not in ("a", "b")}
            for layer, parts in params["blocks"].items()
        }
    }
    save.save(base, without_adapters(model), vocabulary, tmp_path / "base", extra={})

    def apart(tree) -> dict[str, adapters.Adapter]:
        parts = {layer: x for layer, x in tree["blocks"].items() if "a" in x}
        return {
            f"blocks/{layer}/kernel": adapters.Adapter(
                np.asarray(x["a"]), np.asarray(x["b"]), model.lora_alpha / model.lora_rank
            )
            for layer, x in parts.items()
        }

    adapters.write(apart(params), model, tmp_path / "adapters", str(tmp_path / "base"))
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it asks transformers by an old name
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapters", is_trainable=True)
    theirs.eval()
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, model.vocab, (experiment.data.batch, 24), np.int32)
    ids = torch.tensor(tokens, dtype=torch.long)
    logits = theirs(ids).logits[:, :-1].reshape(-1, model.vocab)
    loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].reshape(-1))
    loss.backward()

    state = state_of(params, experiment, mesh)
    counted = np.ones(tokens.shape, bool)
    state, metrics = step.train_step(experiment, mesh)(
        state, put(tokens, mesh), counted=put(counted, mesh)
    )
    assert float(metrics["loss"]) == pytest.approx(loss.item(), abs=1e-5)
    first = jax.tree.map(
        lambda x: np.asarray(x) / (1 - experiment.optimizer.b1), state.opt_state[0].mu
    )
    found = {}
    for name, adapter in apart(first).items():
        row = adapters.ROWS[name]
        for layer in range(model.layers):
            module = row.theirs.format(layer).removesuffix(".weight")
            start = f"base_model.model.{module}"
            found[f"{start}.lora_A.default.weight"] = adapter.a[layer].T
            found[f"{start}.lora_B.default.weight"] = row.their_order(adapter.b[layer], model).T
    expected = {n: x.grad.numpy() for n, x in theirs.named_parameters() if x.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert np.abs(gradient).max() > 1e-4, name
        np.testing.assert_allclose(found[name], gradient, atol=1e-5, rtol=1e-3, err_msg=name)
