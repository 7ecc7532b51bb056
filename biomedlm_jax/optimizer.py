"""The learning rate, clipping by the global norm, and AdamW, on the pieces that a device stores."""

import collections

import jax
import jax.numpy as jnp
import optax

from biomedlm_jax.config import Experiment, Optimizer
from biomedlm_jax.layout import PartitionSpec


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
    """AdamW on every parameter, biases and LayerNorm included, as the original did.

    Composer's DecoupledAdamW multiplies weights by 1 - wd * lr / peak_lr and names wd = 1.6e-5;
    optax multiplies by 1 - lr * weight_decay. At peak_lr = 1.6e-4 both are the same for
    weight_decay = 0.1; 1.6e-5 here would decay 6,250 times too little.
    """
    chosen = experiment.optimizer
    return optax.adamw(
        schedule(experiment),
        b1=chosen.b1,
        b2=chosen.b2,
        eps=chosen.eps,
        weight_decay=chosen.weight_decay,
    )


def global_norm(tree: dict, specs: dict) -> jax.Array:
    """The 2-norm of all parameters or gradients, float32, each piece counted once wherever it is
    stored."""
    sums = collections.defaultdict(lambda: jnp.float32(0))  # of squares, by axes to sum over
    for leaf, spec in zip(jax.tree.leaves(tree), jax.tree.leaves(specs), strict=True):
        over = mesh_axes(spec)
        sums[over] += jnp.sum(jnp.square(leaf))
    total = jnp.float32(0)
    for over, part in sums.items():
        total += jax.lax.psum(part, over) if over else part
    return jnp.sqrt(total)


def clip(grads: dict, norm: jax.Array, chosen: Optimizer) -> dict:
    """`grads` scaled down to a global norm of clip_norm where they exceed it."""
    factor = jnp.minimum(1.0, chosen.clip_norm / norm)
    return jax.tree.map(lambda grad: grad * factor, grads)


def mesh_axes(spec: PartitionSpec) -> tuple[str, ...]:
    """All mesh axes that a PartitionSpec names."""
    parts = [part if isinstance(part, tuple) else (part,) for part in spec if part]
    return tuple(axis for part in parts for axis in part)
