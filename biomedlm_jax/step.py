"""What runs on the devices: the state, how it starts, one update, one evaluation.

Each is one program under one `jax.shard_map` over the whole mesh. Inside it every array is what
one device holds, and the collectives stand where they happen: `layout.in_use` gathers a stored
parameter (its transpose scatters the gradient), a product over a split axis is summed over
`model`, and `gradients` below sums over the rest of the batch, once, in float32.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from biomedlm_jax.config import Experiment
from biomedlm_jax.kernels.dropout import Seed, step_seed
from biomedlm_jax.layout import BATCH, IN_USE, in_use, spec
from biomedlm_jax.model import gpt
from biomedlm_jax.objective import continues, next_token
from biomedlm_jax.optimizer import adamw, clip, global_norm, mesh_axes, schedule

BATCH_SPEC = spec("bt", IN_USE)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: Int[Array, ""]  # updates done
    params: dict
    opt_state: optax.OptState


def state_specs(experiment: Experiment) -> State:
    """How the state is stored: AdamW's moments lie where their parameter lies."""
    params, tx = gpt.specs(experiment.model), adamw(experiment)
    shapes = jax.eval_shape(lambda: tx.init(gpt.init(experiment.model, jax.random.key(0))))
    opt_state = optax.tree.map_params(
        tx, lambda _, spec: spec, shapes, params, transform_non_params=lambda _: PartitionSpec()
    )
    return State(PartitionSpec(), params, opt_state)  # pyright: ignore


def state_shardings(experiment: Experiment, mesh: Mesh) -> State:
    return jax.tree.map(lambda s: NamedSharding(mesh, s), state_specs(experiment))


def init(experiment: Experiment) -> State:
    """The state before the first step, the same on every mesh; call it under `jax.jit` with
    `state_shardings` for out_shardings, and no host ever holds the whole model."""
    params = gpt.init(experiment.model, jax.random.key(experiment.run.seed))
    return State(jnp.int32(0), params, adamw(experiment).init(params))


def train_step(experiment: Experiment, mesh: Mesh) -> Callable:
    """Returns step(state, tokens [B, T], segments [B, T] | None) -> (state, metrics).

    segments: with config.data.segment_ids, which document of its row each token is of.
    loss: mean over all labels of the batch that count, in nats: B * (T - 1), or with segments those
      of the same document as the token before them. The z-loss is not in it.
    grad_norm: before clipping. param_norm: after the update.
    """
    graph, specs, tx = gpt.graph(experiment.model), state_specs(experiment), adamw(experiment)
    rate = schedule(experiment)

    def local(
        state: State, tokens: Int[Array, "B T"], segments: Int[Array, "B T"] | None
    ) -> tuple[State, dict]:
        seed = step_seed(experiment.run.seed, state.step)
        if segments is None:
            counts = jnp.ones(tokens[:, 1:].shape, bool)
            labels = math.prod(mesh.shape[axis] for axis in BATCH) * counts.size
        else:  # a batch of nothing but first tokens has no label, and no loss
            counts = continues(segments)
            labels = jnp.maximum(jax.lax.psum(counts.sum(), BATCH), 1)
        weights = counts / labels

        def mean_loss(params: dict) -> tuple[Float[Array, ""], Float[Array, ""]]:
            total, nats = loss(experiment, graph, params, tokens, segments, weights, seed)
            return total, (weights * nats).sum()

        nats, grads = gradients(mean_loss, state.params, specs.params)
        norm = global_norm(grads, specs.params)
        grads = clip(grads, norm, experiment.optimizer)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = cast(dict, optax.apply_updates(state.params, updates))
        metrics = {
            "loss": nats,
            "grad_norm": norm,
            "param_norm": global_norm(params, specs.params),
            "learning_rate": rate(state.step),
        }
        return State(state.step + 1, params, opt_state), metrics

    in_specs = (specs, BATCH_SPEC, BATCH_SPEC)
    sharded = jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=(specs, PartitionSpec()))

    def step(
        state: State, tokens: Int[Array, "B T"], segments: Int[Array, "B T"] | None = None
    ) -> tuple[State, dict]:
        return sharded(state, tokens, segments)

    return jax.jit(step, donate_argnums=0)


def eval_step(experiment: Experiment, mesh: Mesh) -> Callable:
    """Returns evaluate(params, tokens [B, T], segments [B, T] | None, real [B, T - 1]) -> nats
    summed over the labels that are real and count."""
    graph = gpt.graph(experiment.model)

    def evaluate(
        params: dict,
        tokens: Int[Array, "B T"],
        segments: Int[Array, "B T"] | None,
        real: Bool[Array, "B T-1"],
    ) -> Float[Array, ""]:
        counts = real if segments is None else real & continues(segments)
        _, nats = loss(experiment, graph, params, tokens, segments, counts, None)
        return jax.lax.psum(jnp.where(counts, nats, 0.0).sum(), BATCH)

    in_specs = (gpt.specs(experiment.model), BATCH_SPEC, BATCH_SPEC, BATCH_SPEC)
    return jax.jit(jax.shard_map(evaluate, mesh=mesh, in_specs=in_specs, out_specs=PartitionSpec()))


def forward(experiment: Experiment, mesh: Mesh) -> Callable:
    """Returns forward(params, tokens [B, T], segments [B, T] | None) -> float32 logits
    [B, T, model.vocab], no dropout."""
    graph = gpt.graph(experiment.model)

    def local(
        params: dict, tokens: Int[Array, "B T"], segments: Int[Array, "B T"] | None
    ) -> Float[Array, "B T V"]:
        model = nnx.merge(graph, params)
        return model.tokens.logits(model(tokens, segments))

    in_specs = (gpt.specs(experiment.model), BATCH_SPEC, BATCH_SPEC)
    whole = jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=spec("btv", IN_USE))
    vocab = experiment.model.vocab
    return jax.jit(
        lambda params, tokens, segments=None: whole(params, tokens, segments)[..., :vocab]
    )


def loss(
    experiment: Experiment,
    graph: nnx.GraphDef,
    params: dict,
    tokens: Int[Array, "B T"],
    segments: Int[Array, "B T"] | None,
    weights: Float[Array, "B T-1"] | Bool[Array, "B T-1"],
    seed: Seed | None,
) -> tuple[Float[Array, ""], Float[Array, "B T-1"]]:
    """What is made small of this device's rows, and nats of each of their labels. Strict promotion:
    no float32 slips into bfloat16 work unseen."""
    assert (segments is not None) == experiment.data.segment_ids
    model = nnx.merge(graph, params)
    with jax.numpy_dtype_promotion("strict"):
        hidden = model(tokens, segments, seed)
    return next_token(
        hidden,
        in_use(model.tokens.table, hidden.dtype),
        tokens,
        weights,
        vocab=experiment.model.vocab,
        z_loss=experiment.optimizer.z_loss,
    )


def gradients(loss_fn: Callable, params: dict, specs: dict) -> tuple[Float[Array, ""], dict]:
    """Loss and gradients of the whole batch. `loss_fn` gives this device's share of what is made
    small, and of the loss to report.

    A parameter is marked as different on every device of the batch axes it is not stored over,
    so that its gradient stays a device's own until it is summed here, once and in float32, and
    not in every layer's backward pass.
    """

    def elsewhere(spec: PartitionSpec) -> tuple[str, ...]:
        return tuple(axis for axis in BATCH if axis not in mesh_axes(spec))

    own = jax.tree.map(lambda p, s: jax.lax.pcast(p, elsewhere(s), to="varying"), params, specs)
    (_, loss), grads = jax.value_and_grad(loss_fn, has_aux=True)(own)
    grads = jax.tree.map(lambda g, s: jax.lax.psum(g, elsewhere(s)), grads, specs)
    return jax.lax.psum(loss, BATCH), grads
