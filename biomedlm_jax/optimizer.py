"""The learning rate, clipping by the global norm, and AdamW, on the pieces that a device stores."""

import collections
from functools import partial

import jax
import jax.numpy as jnp
import optax

from biomedlm_jax.config import Experiment, Optimizer
from biomedlm_jax.layout import PartitionSpec
from biomedlm_jax.model.gpt import matrices


def schedule(experiment: Experiment) -> optax.Schedule:
    """Learning rate by step: linear from 0 to peak_lr, then cosine to its final fraction at
    run.steps (Composer's CosineAnnealingWithWarmup as its code has it: the cosine spans the steps
    after the warm-up)."""
    chosen = experiment.optimizer
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=chosen.peak_lr,
        warmup_steps=chosen.warmup_steps,
        decay_steps=experiment.run.steps,
        end_value=chosen.peak_lr * chosen.final_lr_fraction,
    )


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
    mask = matrices(experiment.model) if chosen.weight_decay_on == "matrices" else None
    return optax.chain(
        optax.scale_by_adam(b1=chosen.b1, b2=chosen.b2, eps=chosen.eps),
        optax.add_decayed_weights(chosen.weight_decay, mask),
    )


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
