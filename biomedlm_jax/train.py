"""The training loop, top to bottom."""

import contextlib
import itertools
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
from etils import epath

from biomedlm_jax import hosts, sharding, start
from biomedlm_jax import material as materials
from biomedlm_jax import mesh as meshes
from biomedlm_jax import step as steps
from biomedlm_jax.checkpoint import Checkpoints
from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import Preempted, UserError, in_cloud
from biomedlm_jax.judge import Judge
from biomedlm_jax.lock import Lock
from biomedlm_jax.metrics import Startup, Writer, plot, weights_and_biases
from biomedlm_jax.model.additions import fitted
from biomedlm_jax.saves import absolute, first_sees
from biomedlm_jax.step import State
from biomedlm_jax.watch import Preemption, Profiler, Watchdog

COMPILING = 10  # times run.hang_seconds: what the first of a kind may take, and a save


def fit(
    experiment: Experiment,
    workdir: str | Path | epath.Path,
    *,
    profile_at: int | None = None,
    wandb_project: str | None = None,
) -> State:
    """Trains to run.steps, going on from the newest whole save in `workdir` if there is one.

    workdir: a folder on a disk that all processes see, or on gs://.
    profile_at: a step; five from there on are profiled.

    Raises:
      UserError: a setting that does not fit the corpus, the devices, the other hosts or the run in
        `workdir`, all before the model exists; or numbers that are not finite, too often.
      Preempted: asked to stop by SIGTERM or the machine's owner; everything is saved.
      HostLost: another process of the run no longer answers.
    """
    run, model, workdir = experiment.run, experiment.model, epath.Path(workdir)
    startup = Startup()
    startup.done("imports and hosts")
    with ExitStack() as stack:
        stack.enter_context(hosts.naming_lost_hosts())
        # Closed last: a save that is waited for at the end may be asked to hurry, or hang.
        preemption = stack.enter_context(closing(Preemption()))
        profiler = stack.enter_context(closing(Profiler(str(workdir / "profile"), profile_at)))
        stacks = None if in_cloud(workdir) else Path(workdir) / f"stacks_{jax.process_index()}.txt"
        watchdog = stack.enter_context(closing(Watchdog(run.hang_seconds, stacks)))
        watchdog.allow(COMPILING * run.hang_seconds)

        # ---- Mesh and data: everything that can be refused is refused here -----------------
        if wandb_project:
            weights_and_biases(wandb_project)
        mesh = meshes.make(experiment)
        material = materials.of(experiment, mesh, absolute(workdir))
        identity = material.identity
        hosts.agree(hosts.facts(experiment, identity), run.wait_seconds)
        source, params, weights = None, None, dict[str, Any]()
        if experiment.start and not first_sees(absolute(workdir), run.wait_seconds):
            source = start.of_run(experiment, material.vocabulary, material.said)
            hosts.agree({"config.start": str(source.facts)}, run.wait_seconds)
        lock = stack.enter_context(Lock(workdir)) if hosts.primary() else None
        if source is not None:  # before the folder is the run's, for they may be damaged
            with watchdog.paused():  # may be terabytes, and hosts wait for each other with a limit
                params = start.params(source, mesh, run.wait_seconds)
            weights = start.weights(source, params)
            params = fitted(params, source.model, experiment, mesh)
        saves = stack.enter_context(closing(Checkpoints(workdir, experiment, identity, weights)))
        startup.done("devices and data")

        # ---- State: the newest save if there is one, else a fresh start --------------------
        with watchdog.paused():  # as above
            state = saves.latest(mesh) or started(experiment, mesh, params)
        params = None  # they are the state's
        first = int(state.step)
        if profile_at is not None and not first < profile_at < run.steps:
            raise UserError(
                f"--profile_at={profile_at} is not in [{first + 1}, {run.steps - 1}], the steps "
                "that this start makes after its first, which is compiled"
            )
        writer = stack.enter_context(closing(Writer(workdir, experiment, first, wandb_project)))
        unfinished = first < run.steps or not writer.ended
        if unfinished:
            writer.started(mesh)
            if first == 0 and weights:
                writer.event("weights", first, **weights)
        for damaged in saves.damaged:
            writer.event("damaged", **damaged)
        if hosts.primary():
            print(sharding.table(experiment, mesh))
            print(
                f"{model.parameters:,} parameters on {mesh.devices.size} x "
                f"{mesh.devices.flat[0].device_kind} as {dict(mesh.shape)}; {material.size}; "
                f"from step {first} to {run.steps}",
                flush=True,
            )
        startup.done("state")

        # ---- What watches the loop: numbers, hosts that hang, machines that are taken away ---
        judge = Judge(run, material.documents, writer.event, writer.say)
        looks = itertools.count()  # the same on every process
        stop = False

        def alive(what: str) -> None:
            nonlocal stop
            watchdog.beat(what)
            stop = stop or preemption.requested(next(looks))

        # ---- Loop: the order evaluate, save, next batch, step is part of the contract ------
        train_step = steps.train_step(experiment, mesh)
        batches = stack.enter_context(closing(material.coming(first, run.steps)))
        pending = None  # the metrics of the last step are read while the next one is under way
        programs = {}  # by the shape of a batch
        saved = first if first else None
        scored = hosts.gather("scored", str(first in writer.scored), run.wait_seconds)[0] == "True"

        def settle() -> None:
            nonlocal pending
            if pending is not None:
                step, metrics = pending
                pending = None
                values = {name: float(x) for name, x in jax.device_get(metrics).items()}
                judge.look(step, values, saved)
                if run.due(step, run.log_every):
                    writer.train(step, values)

        def score(done: int) -> None:
            """Scores the model, and lets it write, unless the run has to stop meanwhile."""

            def each() -> None:
                alive(f"evaluation at step {done}")
                if stop:
                    raise Preempted

            with contextlib.suppress(Preempted), writer.evaluation(done):
                watchdog.allow(COMPILING * run.hang_seconds)
                scores = material.score(state.scored, each)
                watchdog.allow(COMPILING * run.hang_seconds)
                if run.sample_tokens:
                    writer.sample(done, material.samples(state.scored))
                writer.held_out(done, *scores)  # the last, for it says that this step was scored

        def save(done: int) -> None:
            nonlocal saved
            settle()  # a state that is not finite is never saved
            if lock:
                lock.check()
            if done != saved:
                watchdog.allow(COMPILING * run.hang_seconds)
                with writer.clock.doing("save"):
                    saves.save(state, done)
                writer.event("save", done, stall_seconds=round(saves.stalled, 4))
                saved = done
            writer.flush()

        for done in range(first, run.steps + 1):
            alive(f"step {done + 1}")
            if material.scores and run.due(done, run.eval_every) and (done > first or not scored):
                settle()
                score(done)
            if done > first and run.due(done, run.save_every):
                save(done)
            if stop:
                if done:
                    save(done)
                writer.event("preempted", done)
                kept = ", and saved" if done else ""
                raise Preempted(f"stopped at step {done} as asked{kept}; the same command goes on")
            if done == run.steps:
                break

            coming = next(batches)  # after the save, so that a restart sees this batch too
            if not coming.done():
                settle()  # while the devices compute, nobody waits for data
            with writer.clock.doing("data"):
                batch = coming.result()
            shape = batch.tokens.shape
            writer.learned(batch.tokens.size)
            if shape in programs:
                profiler.step(done)
                state, metrics = programs[shape](state, *batch)
            else:
                if not programs:
                    startup.done("first batch")
                watchdog.allow(COMPILING * run.hang_seconds)
                with writer.clock.doing("compiling"):
                    programs[shape] = train_step.lower(state, *batch).compile()
                if len(programs) > 1:
                    profiler.step(done)
                    state, metrics = programs[shape](state, *batch)
                else:
                    startup.done("compile")
                    state, metrics = programs[shape](state, *batch)
                    jax.block_until_ready(metrics)
                    startup.done("first step")
                    writer.first_step(done + 1, startup)
            settle()
            pending = (done + 1, metrics)

        settle()
        if unfinished:
            writer.event("end", run.steps, goodput=writer.goodput())
    if hosts.primary():
        plot(workdir, experiment.unit)
    return state


def started(experiment: Experiment, mesh: jax.sharding.Mesh, params: dict | None) -> State:
    """The state of step 0, each piece made where it is stored.

    params: of `start.params`, which are used up; None for random ones.
    """
    shardings = steps.state_shardings(experiment, mesh)
    if params is None:
        return jax.jit(lambda: steps.init(experiment), out_shardings=shardings)()
    begin = jax.jit(partial(steps.init, experiment), out_shardings=shardings, donate_argnums=0)
    return begin(params)
