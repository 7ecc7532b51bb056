"""What fine-tuning adds to a decoder: rows for new tokens, a head, adapters (LoRA, arXiv
2106.09685)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding

from biomedlm_jax.config import Experiment, Model
from biomedlm_jax.model import gpt

ADAPTER = ("a", "b")
ADDED = ("vocab", "classes", "class_bias", "lora_rank")  # settings of what can be added


def fitted(params: dict, before: Model, experiment: Experiment, mesh: Mesh) -> dict:
    """`params` of the model `before` as those of the run: with rows for the tokens of its task, a
    head and adapters, drawn by run.seed. What both models have stays as it is.

    params: on `mesh`, used up.
    """
    model = experiment.model
    if all(getattr(before, name) == getattr(model, name) for name in ADDED):
        return params

    def grown(params: dict) -> dict:
        drawn = gpt.init(model, jax.random.key(experiment.run.seed))
        table = params["tokens"]["table"]
        rows = jnp.arange(model.padded_vocab)[:, None]
        if (more := model.padded_vocab - len(table)) > 0:
            table = jnp.pad(table, [(0, more), (0, 0)])
        table = jnp.where(rows < before.vocab, table, drawn["tokens"]["table"])
        kept = params | {"tokens": {"table": table}}
        trees: Any = [traverse_util.flatten_dict(tree) for tree in (kept, drawn)]
        old, new = trees
        fits = {
            path: old[path] if path in old and old[path].shape == x.shape else x
            for path, x in new.items()
        }
        return traverse_util.unflatten_dict(fits)

    specs = gpt.specs(model, mesh.shape)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return jax.jit(grown, out_shardings=shardings)(params)


def without_adapters(model: Model) -> Model:
    """Of parameters whose adapters are in the kernels, as `adapted.py` has them."""
    return dataclasses.replace(model, lora_rank=0, lora_alpha=0.0)
