"""The training loop, top to bottom."""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import jax
from jax.sharding import NamedSharding

from biomedlm_jax import mesh as meshes
from biomedlm_jax import step as steps
from biomedlm_jax.checkpoint import Checkpoints
from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import UserError
from biomedlm_jax.held_out import Evaluator, Scores
from biomedlm_jax.metrics import Writer, plot
from biomedlm_jax.pipeline.loader import Loader
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.step import State


def fit(experiment: Experiment, workdir: Path) -> State:
    """Trains to run.steps, going on from the newest save in `workdir` if there is one.

    Raises:
      UserError: a setting that does not fit the corpus, the devices or the run in `workdir`, all
        before the model exists; or numbers that are not finite.
    """
    run, model = experiment.run, experiment.model
    with ExitStack() as stack:
        # ---- Mesh and data: everything that can be refused is refused here -----------------
        mesh = meshes.make(experiment)
        store = TokenStore(experiment.data.store, "train")
        loader = Loader(
            store,
            batch=experiment.data.batch,
            length=model.context,
            separators=experiment.data.separators,
            segment_ids=experiment.data.segment_ids,
            seed=run.seed,
            sharding=NamedSharding(mesh, steps.BATCH_SPEC),
        )
        evaluate = held_out_score(experiment, mesh) if run.eval_every else None
        saves = stack.enter_context(closing(Checkpoints(workdir, experiment, store)))

        # ---- State: the newest save if there is one, else a fresh start --------------------
        state = saves.latest(mesh) or started(experiment, mesh)
        first = int(state.step)
        print(
            f"{model.parameters:,} parameters on {mesh.devices.size} x "
            f"{mesh.devices.flat[0].device_kind} as {dict(mesh.shape)}; {loader.blocks:,} blocks "
            f"of {model.context} tokens; from step {first} to {run.steps}",
            flush=True,
        )

        # ---- Loop: the order evaluate, save, next batch, step is part of the contract ------
        train_step = steps.train_step(experiment, mesh)
        writer = stack.enter_context(closing(Writer(workdir, experiment, first)))
        batches = stack.enter_context(closing(loader.batches(first, run.steps)))
        pending = None  # the metrics of the last step are read while the next one is under way

        for done in range(first, run.steps + 1):
            again = done == first > 0  # it was scored before it was saved
            if evaluate and run.due(done, run.eval_every) and not again:
                report(writer, pending)
                pending = None
                writer.held_out(done, *evaluate(state.scored))
            if done > first and run.due(done, run.save_every):
                report(writer, pending)  # a state that is not finite is never saved
                pending = None
                saves.save(state, done)
            if done == run.steps:
                break

            batch = next(batches)  # after the save, so that a restart sees this batch too
            state, metrics = train_step(state, *batch)
            report(writer, pending)
            pending = (done + 1, metrics)

        report(writer, pending)
    plot(workdir)
    return state


def started(experiment: Experiment, mesh: jax.sharding.Mesh) -> State:
    """The state of step 0, each piece made where it is stored."""
    shardings = steps.state_shardings(experiment, mesh)
    return jax.jit(lambda: steps.init(experiment), out_shardings=shardings)()


def report(writer: Writer, pending: tuple[int, dict] | None) -> None:
    """Writes the metrics of a step when they are due, and stops a run that has lost its numbers.

    Raises:
      UserError: the loss, the gradient or a parameter is not finite.
    """
    if pending is None:
        return
    step, metrics = pending
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if wrong := [f"{name} is {x}" for name, x in values.items() if not math.isfinite(x)]:
        raise UserError(
            f"{', '.join(wrong)} at step {step}; no state from here on was saved. Look at the data "
            "of this step, or lower config.optimizer.peak_lr"
        )
    if writer.experiment.run.due(step, writer.experiment.run.log_every):
        writer.train(step, values)


def held_out_score(
    experiment: Experiment, mesh: jax.sharding.Mesh
) -> Callable[[dict], tuple[Scores, float]]:
    """Returns evaluate(params): the scores on the first run.eval_batches batches of held-out text,
    and the seconds it took.

    Raises:
      UserError: there is no held-out text.
    """
    store = TokenStore(experiment.data.store, "heldout")
    scores = Evaluator(experiment, mesh, store, experiment.run.eval_batches)

    def evaluate(params: dict) -> tuple[Scores, float]:
        start = time.perf_counter()
        return scores(params), time.perf_counter() - start

    return evaluate
