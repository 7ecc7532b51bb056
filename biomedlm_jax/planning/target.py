"""What is asked: an experiment on a machine. What is compiled is the step that a run takes."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxlib._jax import Device

from biomedlm_jax import mesh as meshes
from biomedlm_jax import step
from biomedlm_jax.compilers.topologies import Topology
from biomedlm_jax.config import Experiment, Mesh, Model
from biomedlm_jax.entry import UserError
from biomedlm_jax.settings import build

MAKE = f"{__name__}:program"
OPTIONS = 4  # of an item of a multiple choice, as in all benchmarks of the paper


@dataclasses.dataclass(frozen=True)
class Target:
    """An experiment whose mesh and batch are those of the machine: its mesh has no -1.

    config_batch: data.batch of the config, where the experiment may have another.
    """

    experiment: Experiment
    machine: Topology
    config_batch: int | None = None

    @property
    def axes(self) -> dict[str, int]:
        return dataclasses.asdict(self.experiment.mesh)

    @property
    def model(self) -> Model:
        """What is computed: of fine-tuning, with rows of config.task.length."""
        model, task = self.experiment.model, self.experiment.task
        return dataclasses.replace(model, context=task.length) if task else model

    @property
    def tokens(self) -> int:
        """Of a step, over all chips."""
        return self.experiment.data.batch * rows_of_item(self.experiment) * self.model.context

    @property
    def steps(self) -> int:
        """Of a run of as many tokens as the config's run."""
        batch, steps = self.experiment.data.batch, self.experiment.run.steps
        return math.ceil(steps * (self.config_batch or batch) / batch)

    @property
    def settings(self) -> str:
        """In words of the command line, what may differ between targets."""
        run, model = self.experiment.run, self.experiment.model
        sizes = " x ".join(f"{axis} {size}" for axis, size in self.axes.items() if size > 1)
        per_chip = self.experiment.data.batch / self.machine.devices
        accumulate = f", accumulate {run.accumulate}" if run.accumulate > 1 else ""
        return f"{sizes or 'one chip'}, {per_chip:g} a chip, remat {model.remat}{accumulate}"


def target(
    experiment: Experiment,
    machine: Topology,
    mesh: dict[str, int] | None = None,
    per_chip: int | None = None,
    config_batch: int | None = None,
) -> Target:
    """The experiment on a machine.

    mesh: axes in place of config.mesh, -1 for what is left. per_chip: sequences in place of
      config.data.batch. config_batch: the config's, where the experiment's is another already.

    Raises:
      UserError: the mesh does not give the machine's chips, or does not divide model or batch.
    """
    asked = Mesh(**mesh) if mesh else experiment.mesh
    try:
        sizes = meshes.sizes(asked, machine.devices)
    except UserError as error:
        where = f"--topology={machine.name} has {machine.devices} chips"
        raise UserError(f"{where}: {error}") from error
    config_batch = config_batch or experiment.data.batch
    if per_chip is not None:
        data = dataclasses.replace(experiment.data, batch=per_chip * machine.devices)
        experiment = dataclasses.replace(experiment, data=data)
    experiment = dataclasses.replace(experiment, mesh=Mesh(**sizes))
    meshes.check(experiment, sizes)
    return Target(experiment, machine, config_batch)


def rows_of_item(experiment: Experiment) -> int:
    """Of what config.data.batch counts: a sequence or an item."""
    task = experiment.task
    return OPTIONS if task and task.objective == "multiple_choice" else 1


def program(*devices: Device, experiment: dict[str, Any]) -> tuple[Callable, tuple]:
    """The jitted step of an experiment on devices that may be absent, and the shapes of what it
    takes. experiment: as `dataclasses.asdict` gives it."""
    run = build(Experiment, experiment)
    mesh = meshes.make(run, list(devices))
    shardings = step.state_shardings(run, mesh)
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(lambda: step.init(run)),
        shardings,
    )
    return step.train_step(run, mesh), (state, *_batch(run, mesh))


def _batch(experiment: Experiment, mesh: jax.sharding.Mesh) -> step.Batch:
    """Shapes of a batch of the longest rows."""
    task, items = experiment.task, experiment.data.batch
    rows = items * rows_of_item(experiment)
    wide = rows, task.length if task else experiment.model.context
    shapes: Any = step.Batch(wide)  # pyright: ignore
    if experiment.data.segment_ids:
        shapes = shapes._replace(segments=wide)
    if experiment.model.classes:
        shapes = shapes._replace(counted=(items,), ends=(rows,), labels=(items,))
    elif task:
        shapes = shapes._replace(counted=wide)
    kinds = step.Batch(jnp.int32, jnp.int32, jnp.bool_, jnp.int32, jnp.int32)  # pyright: ignore
    return step.Batch(
        *(
            shape and jax.ShapeDtypeStruct(shape, kind, sharding=NamedSharding(mesh, spec))  # pyright: ignore
            for shape, kind, spec in zip(shapes, kinds, step.batch_specs(experiment), strict=True)
        )
    )


def matrix_flops(model: Model, tokens: int) -> float:
    """Of one step's products of activations with parameters: 2 forward, 4 backward for each
    parameter of a matrix, the padded rows of the vocabulary among them; with adapters beside them 2
    backward, and none into what the first layer is given. A head of classes, which has no product
    with the vocabulary, is too small to count. Attention's scores are not in it, nor is what is
    computed twice."""
    d, f, r = model.width, model.mlp, model.lora_rank
    kernels = (4 * d * d + 2 * d * f) * (4.0 if r else 6.0)
    adapters = 6.0 * r * ((d + 3 * d) + 2 * d + 2 * (d + f))
    first = 2.0 * (3 * d * d + r * d) if r else 0.0
    table = 0.0 if model.classes else 6.0 * model.padded_vocab * d
    return tokens * (model.layers * (kernels + adapters) - first + table)


def attention_flops(model: Model, tokens: int) -> float:
    """Of one step's scores, causal: half of 12 L d T a token."""
    return 6.0 * tokens * model.layers * model.width * model.context


def utilization(model: Model, tokens: int, seconds: float, peak: float) -> dict[str, float]:
    """MFU in two conventions. tokens: of `seconds` on a machine of `peak` flops a second.

    6N + 12LdT: PaLM's, all of the scores (`Model.flops_per_token`). 6N + 6LdT: those of causal
    attention alone.
    """
    causal = model.flops_per_token - 6 * model.layers * model.width * model.context
    rate = tokens / seconds / peak
    return {"6N + 12LdT": rate * model.flops_per_token, "6N + 6LdT": rate * causal}
