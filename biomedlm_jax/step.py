"""What runs on the devices: the state, how it starts, one update, one evaluation.

Each is one program under one `jax.shard_map` over the whole mesh. Inside it every array is what
one device holds, and the collectives stand where they happen: `layout.all_layers` gathers the
layers that other devices store, once; `layout.in_use` gathers the pieces of a parameter (its
transpose scatters the gradient); a product over a split axis is summed over `model`; and
`gradients` below sums over the rest of the batch, once, in float32.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import UserError
from biomedlm_jax.kernels.dropout import Seed, step_seed
from biomedlm_jax.kernels.varying import axes_of, marked
from biomedlm_jax.layout import (
    BATCH,
    IN_USE,
    LABELS,
    all_layers,
    layers_over_data,
    mine,
    spec,
)
from biomedlm_jax.model import gpt
from biomedlm_jax.objective import continues, next_token, right_option
from biomedlm_jax.optimizer import (
    adamw,
    clip,
    joined,
    mesh_axes,
    norms,
    schedule,
    trained,
    without_frozen,
)

BATCH_SPEC = spec("bt", IN_USE)
ITEM_SPEC = spec("b", IN_USE)
SMALL_VMEM, VMEM = 16, 64  # MiB of a core: up to v4; at least, from v5e on (JAX's table of TPUs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Always finite: an update that would not be is left out."""

    step: Int[Array, ""]  # batches used, and so the number of the next one
    skipped: Int[Array, ""]  # updates left out in a row, those of the last steps
    params: dict
    opt_state: optax.OptState
    average: dict | None  # of the parameters, with optimizer.ema_decay

    @property
    def scored(self) -> dict:
        """The parameters that are evaluated and exported."""
        return self.params if self.average is None else self.average


def state_specs(experiment: Experiment, axes: Mapping[str, int]) -> State:
    """How the state is stored on a mesh of these axes: AdamW's moments lie where their parameter
    lies."""
    model, tx = experiment.model, adamw(experiment)
    params = gpt.specs(model, axes)
    shapes = jax.eval_shape(lambda: tx.init(trained(gpt.init(model, jax.random.key(0)), model)))
    opt_state = optax.tree.map_params(
        tx,
        lambda _, spec: spec,
        shapes,
        trained(params, model),
        transform_non_params=lambda _: PartitionSpec(),
    )
    average = params if experiment.optimizer.ema_decay else None
    return State(PartitionSpec(), PartitionSpec(), params, opt_state, average)  # pyright: ignore


def state_shardings(experiment: Experiment, mesh: Mesh) -> State:
    return jax.tree.map(lambda s: NamedSharding(mesh, s), state_specs(experiment, mesh.shape))


def init(experiment: Experiment, params: dict | None = None) -> State:
    """The state before the first step, the same on every mesh; call it under `jax.jit` with
    `state_shardings` for out_shardings, and no host ever holds the whole model.

    params: to start from; random ones if not given.
    """
    if params is None:
        params = gpt.init(experiment.model, jax.random.key(experiment.run.seed))
    average = jax.tree.map(jnp.copy, params) if experiment.optimizer.ema_decay else None
    opt_state = adamw(experiment).init(trained(params, experiment.model))
    return State(jnp.int32(0), jnp.int32(0), params, opt_state, average)


class Batch(NamedTuple):
    """What one update learns from; of fine-tuning, `ends` and `labels` are of items.

    tokens: [B, T]. An item of a multiple choice has a row for each option, one after the other.
    segments: [B, T], with config.data.segment_ids, which document of its row each token is of.
    counted: bool; [B, T], which tokens count as labels, or where there are `labels`, [N], which
      items do; None is all. Neither the first token of a row nor, with segments, that of a document
      ever does.
    ends: [B], where a row's last token stands, which a head reads.
    labels: [N], the right class or option.
    """

    tokens: Int[Array, "B T"]
    segments: Int[Array, "B T"] | None = None
    counted: Bool[Array, "B T"] | Bool[Array, "N"] | None = None
    ends: Int[Array, "B"] | None = None
    labels: Int[Array, "N"] | None = None


def batch_specs(experiment: Experiment) -> Batch:
    """How each part lies on a mesh; for one that a batch does not have, it does not matter."""
    places: Any = Batch(BATCH_SPEC, BATCH_SPEC, BATCH_SPEC, ITEM_SPEC, ITEM_SPEC)  # pyright: ignore
    return places._replace(counted=ITEM_SPEC) if experiment.model.classes else places


def train_step(experiment: Experiment, mesh: Mesh) -> Callable:
    """Returns step(state, tokens, ...) -> (state, metrics); it takes the fields of `Batch`.

    The rows of a device go through the model in run.accumulate parts; gradients are summed in
    float32. An update whose loss or gradient is not finite is left out: the step counts, the state
    stays. Metrics, all of the whole batch:

    loss: mean over the labels that count, in nats; the z-loss is not in it.
    grad_norm, grad_norm/<layer>: before clipping. update_norm, update_norm/<layer>: of what is
      added to the parameters. param_norm: after the update.
    skipped: updates left out in a row, this one included.
    """
    graph, specs = gpt.graph(experiment.model), state_specs(experiment, mesh.shape)
    tx = adamw(experiment)
    rate, chosen = schedule(experiment), experiment.optimizer
    model = experiment.model
    learned = trained(specs.params, model)

    def local(state: State, batch: Batch) -> tuple[State, dict]:
        tokens = batch.tokens
        weights = counts(batch) / _count(batch, mesh)
        seed = step_seed(experiment.run.seed, state.step)
        others = all_layers(state.params, specs.params, model.compute_dtype)

        def mean_loss(params: dict, part: tuple) -> tuple[Float[Array, ""], Float[Array, ""]]:
            batch, weights, first_row = part
            whole = joined(others, params) if model.lora_rank else params
            total, nats = loss(experiment, graph, whole, batch, weights, seed, first_row)
            if batch.labels is None:
                weights = mine(jnp.pad(weights, [(0, 0), (0, 1)]))
            return total, (weights * nats).sum()

        pieces = experiment.run.accumulate
        parts = jax.tree.map(
            lambda x: x.reshape(pieces, len(x) // pieces, *x.shape[1:]),
            (batch._replace(counted=None), weights),
        )
        each = len(tokens) // pieces
        rows = jax.lax.axis_index(BATCH) * len(tokens) + jnp.arange(0, len(tokens), each)
        before = trained(state.params, model)
        nats, grads = gradients(mean_loss, before, learned, (*parts, rows), model.compute_dtype)
        grads = without_frozen(grads, learned, chosen.frozen_layers)

        grad_norms = norms(grads, learned)
        norm = grad_norms[""]
        finite = jnp.isfinite(nats) & jnp.isfinite(norm)
        directions, opt_state = tx.update(clip(grads, norm, chosen), state.opt_state, before)
        directions = without_frozen(cast(dict, directions), learned, chosen.frozen_layers)
        lr = jnp.asarray(rate(state.step))
        updates = jax.tree.map(lambda x: -lr * x, directions)
        params = joined(state.params, cast(dict, optax.apply_updates(before, updates)))
        average = state.average
        if average is not None:
            moved = optax.incremental_update(params, average, 1 - chosen.ema_decay)
            average = cast(dict, moved)
        new = State(state.step, jnp.int32(-1), params, opt_state, average)
        kept = jax.tree.map(partial(jnp.where, finite), new, state)
        after = dataclasses.replace(kept, step=state.step + 1, skipped=kept.skipped + 1)
        metrics = {
            "loss": nats,
            "learning_rate": lr,
            "param_norm": norms(after.params, specs.params)[""],
            "skipped": after.skipped,
            **_named("grad_norm", grad_norms),
            **_named("update_norm", norms(updates, learned)),
        }
        return after, metrics

    in_specs = (specs, batch_specs(experiment))
    sharded = jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=(specs, PartitionSpec()))

    def step(state: State, *batch: Array | None, **more: Array | None) -> tuple[State, dict]:
        return sharded(state, Batch(*batch, **more))  # pyright: ignore

    return jax.jit(step, donate_argnums=0, compiler_options=compiler_options(experiment, mesh))


def counts(batch: Batch) -> Bool[Array, "B T-1"] | Bool[Array, "N"]:
    """What counts of a device's batch."""
    if batch.labels is not None:
        everything = jnp.ones(batch.labels.shape, bool)
        return everything if batch.counted is None else batch.counted
    found = jnp.ones(batch.tokens[:, 1:].shape, bool)
    if batch.segments is not None:
        found = continues(batch.segments)
    return found if batch.counted is None else found & batch.counted[:, 1:]


def _count(batch: Batch, mesh: Mesh) -> Array | int:
    """How much counts of the whole batch."""
    found = counts(batch)
    if batch.segments is None and batch.counted is None:
        return math.prod(mesh.shape[axis] for axis in BATCH) * found.size
    # A batch of nothing but first tokens has no label, and no loss.
    return jnp.maximum(jax.lax.psum(found.sum(), BATCH), 1)


def compiler_options(experiment: Experiment, mesh: Mesh) -> dict[str, str] | None:
    """What XLA is told for this mesh.

    Raises:
      UserError: it is told to use more VMEM than the chip has, which it would believe.
    """
    vmem, device = experiment.run.tpu_vmem_mib, mesh.devices.flat[0]
    if device.platform != "tpu" or not vmem:
        return None
    there = SMALL_VMEM if device.device_kind.startswith(("TPU v2", "TPU v3", "TPU v4")) else VMEM
    if vmem > there:
        raise UserError(
            f"config.run.tpu_vmem_mib={vmem}, but a {device.device_kind} has {there} MiB; say "
            "--config.run.tpu_vmem_mib=0, which leaves it to XLA"
        )
    return {"xla_tpu_scoped_vmem_limit_kib": str(vmem * 1024)}


def eval_step(experiment: Experiment, mesh: Mesh, groups: int) -> Callable:
    """Returns evaluate(params, tokens [B, T], segments [B, T] | None, group [B, T - 1]) -> nats
    [groups], summed over the labels of each group; one of group -1 is no label."""
    graph, specs = gpt.graph(experiment.model), gpt.specs(experiment.model, mesh.shape)

    def evaluate(
        params: dict,
        tokens: Int[Array, "B T"],
        segments: Int[Array, "B T"] | None,
        group: Int[Array, "B T-1"],
    ) -> Float[Array, "{groups}"]:
        weights = group >= 0 if segments is None else (group >= 0) & continues(segments)
        params = all_layers(params, specs, experiment.model.compute_dtype)
        _, nats = loss(experiment, graph, params, Batch(tokens, segments), weights, None)
        of = mine(jnp.pad(group, [(0, 0), (0, 1)]))
        sums = jnp.zeros(groups).at[of].add(nats)  # those that do not count are 0
        return jax.lax.psum(sums, LABELS)

    in_specs = (specs, BATCH_SPEC, BATCH_SPEC, BATCH_SPEC)
    return jax.jit(jax.shard_map(evaluate, mesh=mesh, in_specs=in_specs, out_specs=PartitionSpec()))


def forward(experiment: Experiment, mesh: Mesh) -> Callable:
    """Returns forward(params, tokens [B, T], segments [B, T] | None) -> float32 logits
    [B, T, model.vocab], no dropout."""
    graph, specs = gpt.graph(experiment.model), gpt.specs(experiment.model, mesh.shape)

    def local(
        params: dict, tokens: Int[Array, "B T"], segments: Int[Array, "B T"] | None
    ) -> Float[Array, "B S V"]:
        model = nnx.merge(graph, all_layers(params, specs, experiment.model.compute_dtype))
        return model.tokens.logits(model(tokens, segments))

    in_specs = (specs, BATCH_SPEC, BATCH_SPEC)
    whole = jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=spec("bsv", IN_USE))
    vocab = experiment.model.vocab
    return jax.jit(
        lambda params, tokens, segments=None: whole(params, tokens, segments)[..., :vocab]
    )


def loss(
    experiment: Experiment,
    graph: nnx.GraphDef,
    params: dict,
    batch: Batch,
    weights: Float[Array, "..."] | Bool[Array, "..."],
    seed: Seed | None,
    first_row: Int[Array, ""] | None = None,
) -> tuple[Float[Array, ""], Float[Array, "..."]]:
    """What is made small of this device's labels, and nats of each: [B, S], or of items [N].
    Strict promotion: no float32 slips into bfloat16 work unseen.

    weights: of what `counts` gives.
    """
    assert (batch.segments is not None) == experiment.data.segment_ids
    model = nnx.merge(graph, params)
    with jax.numpy_dtype_promotion("strict"):
        table = model.tokens.gathered(experiment.model.compute_dtype)
        hidden = model(batch.tokens, batch.segments, seed, first_row, table)
    if batch.labels is not None:
        return right_option(model.head(hidden, batch.ends), batch.labels, weights)
    return next_token(
        hidden,
        table,
        batch.tokens,
        weights,
        vocab=experiment.model.vocab,
        z_loss=experiment.optimizer.z_loss,
    )


def scores(experiment: Experiment, mesh: Mesh) -> Callable:
    """Returns scores(params, tokens [B, T], ends [B]) -> float32 [B, classes], of the head, no
    dropout; whole on every device."""
    graph, specs = gpt.graph(experiment.model), gpt.specs(experiment.model, mesh.shape)

    def local(
        params: dict, tokens: Int[Array, "B T"], ends: Int[Array, "B"]
    ) -> Float[Array, "B C"]:
        model = nnx.merge(graph, all_layers(params, specs, experiment.model.compute_dtype))
        return model.head(model(tokens), ends)

    in_specs = (specs, BATCH_SPEC, ITEM_SPEC)
    sharded = jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=BATCH_SPEC)
    return jax.jit(sharded, out_shardings=NamedSharding(mesh, PartitionSpec()))


def gradients(
    loss_fn: Callable, params: dict, specs: dict, parts: tuple, dtype: jax.typing.DTypeLike
) -> tuple[Float[Array, ""], dict]:
    """Loss and gradients of the whole batch. `loss_fn(params, part)` gives the share of what is
    made small, and of the loss to report, that a part of this device's rows has; parts: arrays
    [parts, ...], one after the other. dtype: that products are computed in.

    A parameter is marked as different on every device of the batch axes it is not stored over,
    so that its gradient stays a device's own until it is summed here, once and in float32, and
    not in every layer's backward pass. Where `data` stores the layers of a stack, that sum leaves
    each device those that it stores.
    """

    def elsewhere(spec: PartitionSpec) -> tuple[str, ...]:
        return tuple(axis for axis in LABELS if axis not in mesh_axes(spec))

    def summed(grad: Array, spec: PartitionSpec) -> Array:
        grad = jax.lax.psum(grad.astype(jnp.float32), elsewhere(spec))
        if layers_over_data(spec):
            grad = jax.lax.psum_scatter(grad, "data", scatter_dimension=0, tiled=True)
        return grad

    own = jax.tree.map(
        lambda p, s: jax.lax.pcast(p, elsewhere(s), to="varying"),
        all_layers(params, specs, dtype),
        specs,
    )
    one = jax.value_and_grad(loss_fn, has_aux=True)

    def add(sums: tuple, part: tuple) -> tuple[tuple, None]:
        (_, loss), grads = one(own, part)
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, (loss, grads)), None

    if len(jax.tree.leaves(parts)[0]) == 1:
        (_, loss), grads = one(own, jax.tree.map(lambda x: x[0], parts))
    else:
        zeros = jax.tree.map(lambda p: marked(jnp.zeros(p.shape), axes_of(p)), own)
        (loss, grads), _ = jax.lax.scan(add, (marked(jnp.float32(0), LABELS), zeros), parts)
    grads = jax.tree.map(summed, grads, specs)
    return jax.lax.psum(loss, LABELS), grads


def _named(name: str, values: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {f"{name}/{group}" if group else name: value for group, value in values.items()}
