"""The learning rate, clipping by the global norm, and AdamW, on the pieces that a device stores."""

import collections
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from biomedlm_jax.config import Experiment, Model, Optimizer
from biomedlm_jax.layout import PartitionSpec, layers_over_data
from biomedlm_jax.model.gpt import matrices


def schedule(experiment: Experiment) -> optax.Schedule:
    """Learning rate by step: linear from 0 to peak_lr, then to its final fraction at run.steps,
    along a cosine (Composer's CosineAnnealingWithWarmup as its code has it: the cosine spans the
    steps after the warm-up) or a line (transformers' get_linear_schedule_with_warmup)."""
    chosen, steps = experiment.optimizer, experiment.run.steps
    peak, warmup = chosen.peak_lr, chosen.warmup_steps
    end = peak * chosen.final_lr_fraction
    if chosen.decay == "linear":
        parts = [
            optax.linear_schedule(0.0, peak, warmup),
            optax.linear_schedule(peak, end, steps - warmup),
        ]
        return optax.join_schedules(parts[warmup == 0 :], [warmup][warmup == 0 :])
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, end)


def adamw(experiment: Experiment) -> optax.GradientTransformation:
    """AdamW's direction, which an update follows by the learning rate; `step` subtracts it, for
    only the state knows how many steps were done when some were left out.

    Every parameter decays, biases and LayerNorm included, as in the original; with
    optimizer.weight_decay_on="matrices" those do not.
    Composer's DecoupledAdamW multiplies weights by 1 - wd * lr / peak_lr and names wd = 1.6e-5;
    here they are multiplied by 1 - lr * weight_decay, as in optax and PyTorch. At peak_lr = 1.6e-4
    both are the same for weight_decay = 0.1; 1.6e-5 here would decay 6,250 times too little.
    """
    chosen = experiment.optimizer
    mask = None
    if chosen.weight_decay_on == "matrices":
        mask = trained(matrices(experiment.model), experiment.model)
    return optax.chain(
        optax.scale_by_adam(b1=chosen.b1, b2=chosen.b2, eps=chosen.eps),
        optax.add_decayed_weights(chosen.weight_decay, mask),
    )


def trained(tree: dict, model: Model) -> dict:
    """Of a tree like the parameters, what is trained: all, or where there are adapters, those and
    the head."""
    if not model.lora_rank:
        return tree
    flat = traverse_util.flatten_dict(tree)
    return traverse_util.unflatten_dict(
        {path: x for path, x in flat.items() if path[0] == "head" or path[-1] in ("a", "b")}
    )


def joined(tree: dict, part: dict) -> dict:
    """`tree` with what is in `part` in place of its own."""
    flat = traverse_util.flatten_dict(tree) | traverse_util.flatten_dict(part)
    return traverse_util.unflatten_dict(flat)


def without_frozen(updates: dict, specs: dict, layers: int) -> dict:
    """`updates` with zeros for the lowest `layers`, and with them for both embeddings."""

    def of(path: tuple, update: jax.Array, spec: PartitionSpec) -> jax.Array:
        if path[0].key in ("tokens", "positions"):
            return jnp.zeros_like(update)
        if path[0].key != "blocks":
            return update
        first = jax.lax.axis_index("data") * len(update) if layers_over_data(spec) else 0
        moves = first + jnp.arange(len(update)) >= layers
        return jnp.where(moves.reshape(-1, *[1] * (update.ndim - 1)), update, 0.0)

    return jax.tree.map_with_path(of, updates, specs) if layers else updates


def norms(tree: dict, specs: dict) -> dict[str, jax.Array]:
    """The 2-norm of all parameters or gradients under "", and of each group of them under its
    layer's name ("qkv", "tokens"): float32, each piece counted once wherever it is stored."""
    flat, _ = jax.tree.flatten_with_path(tree)
    zero = partial(jnp.float32, 0)
    by_axes = collections.defaultdict(lambda: collections.defaultdict(zero))
    for (path, leaf), spec in zip(flat, jax.tree.leaves(specs), strict=True):
        by_axes[mesh_axes(spec)][group(path)] += jnp.sum(jnp.square(leaf))
    squares = collections.defaultdict(zero)
    for over, sums in by_axes.items():  # one collective for each way of storing
        for name, part in (jax.lax.psum(dict(sums), over) if over else sums).items():
            squares[name] += part
    return {"": jnp.sqrt(sum(squares.values())), **{k: jnp.sqrt(x) for k, x in squares.items()}}


def group(path: tuple) -> str:
    """The layer of a parameter: "qkv" of blocks/qkv/kernel, "positions" of positions."""
    names = [key.key for key in path if key.key != "blocks"]
    return names[0]


def clip(grads: dict, norm: jax.Array, chosen: Optimizer) -> dict:
    """`grads` scaled down to a global norm of clip_norm where they exceed it."""
    factor = jnp.minimum(1.0, chosen.clip_norm / norm)
    return jax.tree.map(lambda grad: grad * factor, grads)


def mesh_axes(spec: PartitionSpec) -> tuple[str, ...]:
    """All mesh axes that a PartitionSpec names."""
    parts = [part if isinstance(part, tuple) else (part,) for part in spec if part]
    return tuple(axis for part in parts for axis in part)
