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
TABLE = ("tokens", "table")
ADDED = ("vocab", "classes", "class_bias", "lora_rank")  # settings of what can be added


def fitted(params: dict, before: Model, experiment: Experiment, mesh: Mesh) -> dict:
    """`params` of the model `before` as those of the run: with rows for the tokens of its task, a
    head and adapters, drawn by run.seed. What both models have is the same arrays, not copied.

    params: on `mesh`.
    """
    model = experiment.model
    if all(getattr(before, name) == getattr(model, name) for name in ADDED):
        return params
    old: Any = traverse_util.flatten_dict(params)
    shapes: Any = traverse_util.flatten_dict(
        jax.eval_shape(lambda: gpt.init(model, jax.random.key(0)))
    )
    specs: Any = traverse_util.flatten_dict(gpt.specs(model, mesh.shape))
    changed = [
        path
        for path, x in shapes.items()
        if path == TABLE or path not in old or old[path].shape != x.shape
    ]

    def drawn(table: jax.Array) -> dict:
        fresh: Any = traverse_util.flatten_dict(
            gpt.init(model, jax.random.key(experiment.run.seed))
        )
        found = {path: fresh[path] for path in changed}
        table = jnp.pad(table, [(0, max(0, model.padded_vocab - len(table))), (0, 0)])
        old_rows = jnp.arange(model.padded_vocab)[:, None] < before.vocab
        found[TABLE] = jnp.where(old_rows, table[: model.padded_vocab], found[TABLE])
        return found

    shardings = {path: NamedSharding(mesh, specs[path]) for path in changed}
    made = jax.jit(drawn, out_shardings=shardings)(old[TABLE])
    whole = {path: made[path] if path in made else old[path] for path in shapes}
    return traverse_util.unflatten_dict(whole)


def without_adapters(model: Model) -> Model:
    """Of parameters whose adapters are in the kernels, as `adapted.py` has them."""
    return dataclasses.replace(model, lora_rank=0, lora_alpha=0.0)
