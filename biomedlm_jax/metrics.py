"""Numbers of a run for people: console, `metrics.jsonl`, TensorBoard, Weights & Biases, a curve.

MFU is given by two conventions: 6 N flops per token, and 6 N + 12 L d T (`Model.flops_per_token`,
PaLM), each times tokens per second over the peak of the devices. Recomputed work does not count.
Time never enters a result.

Tokens per second, step_seconds and both MFUs are of all the time that training takes, also what it
waits for data and saves (data_wait and save_stall are their shares); evaluation is apart. Goodput
is the time in which the steps that count were computed over all time since the run was first
started: what compiling, waiting, saves, evaluation, restarts and steps done twice take is missing.
"""

import collections
import contextlib
import importlib
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import psutil
from etils import epath
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboard.summary.writer.record_writer import RecordWriter

from biomedlm_jax import hosts, journal
from biomedlm_jax.compilers import chips
from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import Unavailable, UserError, in_cloud, passes
from biomedlm_jax.journal import Journal
from biomedlm_jax.settings import flat


def peak_flops(devices: list) -> tuple[float, str]:
    """Flops per second of all devices together, and where the figure is from: the table of
    `compilers.chips`, or for another kind a product of two 1024 x 1024 matrices, timed here."""
    kind = devices[0].device_kind
    if chip := chips.of_kind(kind):
        peak = f"{chip.flops / 1e12:.0f} TFLOP/s data-sheet peak of {kind}"
        return chip.flops * len(devices), peak
    product = jax.jit(jnp.matmul)
    x = jnp.ones((1024, 1024))
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    peak = 2 * 1024**3 / min(seconds)
    if devices[0].platform != "cpu":  # devices of a CPU share its cores
        peak *= len(devices)
    return peak, f"{peak / 1e9:,.0f} GFLOP/s of a float32 product timed on this {kind}"


def weights_and_biases(project: str) -> Any:
    """Its module.

    Raises:
      UserError: it can not be imported.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            f"--wandb_project={project} needs Weights & Biases, which is not here ({error}): "
            "pip install wandb"
        ) from error


class Clock:
    """Where the time of the loop goes."""

    def __init__(self) -> None:
        self.start, self.spent = time.perf_counter(), collections.defaultdict[str, float](float)

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spent[what] += time.perf_counter() - start

    def interval(self) -> tuple[float, dict[str, float]]:
        """Seconds since the last call, and how many of them were spent on what."""
        now = time.perf_counter()
        found = now - self.start, self.spent
        self.start, self.spent = now, collections.defaultdict[str, float](float)
        return found


class Startup:
    """Seconds from the start of the process, by the parts that `done` names."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = psutil.Process().create_time()

    def done(self, part: str) -> None:
        now = time.time()
        self.seconds[part] = round(now - self.last, 2)
        self.last = now

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.seconds.items())
        return f"{sum(self.seconds.values()):.1f} s from the start of the process ({parts})"


class Writer:
    """Writes the metrics of a run that starts, or goes on, at `first` steps.

    What an interrupted run wrote for later steps is taken back, for these steps come again; its
    events stay. The first process writes, the others only count.

    Raises:
      UserError: from all methods, the folder can not be written.
    """

    def __init__(
        self, workdir: epath.Path, experiment: Experiment, first: int, wandb_project: str | None
    ):
        self.experiment, self.first, self.clock = experiment, first, Clock()
        self.tokens = 0  # of the batches since the last report, padding with them
        self.peak, self.peak_source = peak_flops(jax.devices())
        self.last: int | None = None  # the step of the last report
        self.trained = [0, 0.0]  # steps since the first of this process, and their seconds
        self.active = hosts.primary()
        self.scored: set[int] = set()  # the steps that were evaluated
        self.ended = True  # whether the run has said that it was over
        self.productive, self.began = 0.0, time.time()
        self.closing = contextlib.ExitStack()
        if not self.active:
            return

        def opened(name: str, **keep: Any) -> Journal:
            made = Journal(workdir / f"{name}.jsonl", **keep)
            self.closing.callback(made.close)
            return made

        def before(line: dict) -> bool:
            return line["step"] <= first

        self.lines, self.samples = (opened(name, keep=before) for name in ("metrics", "samples"))
        self.events = opened("events")
        kept = journal.read(self.lines.file)
        self.scored = {line["step"] for line in kept if "held_out_loss" in line}
        self.productive = sum(line.get("productive_seconds", 0.0) for line in kept)
        events = journal.read(self.events.file)
        started = [line["time"] for line in events]
        self.ended = any(line["event"] == "end" for line in events)
        self.began = min([self.began, *started])
        self.board = Board(workdir / "tensorboard", first)
        self.closing.callback(self.board.close)
        self.wandb = self._wandb(wandb_project, workdir) if wandb_project else None
        print(f"MFU is of 6 N + 12 L d T flops per token and the {self.peak_source}", flush=True)

    def started(self, mesh: jax.sharding.Mesh) -> None:
        """An event with what the run runs on."""
        self.event(
            "start",
            self.first,
            parameters=self.experiment.model.parameters,
            processes=jax.process_count(),
            devices=mesh.devices.size,
            device_kind=mesh.devices.flat[0].device_kind,
            mesh=dict(mesh.shape),
            versions=hosts.versions(),
            peak_flops=self.peak,
            peak_source=self.peak_source,
        )

    def first_step(self, step: int, startup: Startup) -> None:
        """The first step of this process is done: it is no measure of speed, for it was compiled
        and nothing ran beside it."""
        self.event("first_step", step, seconds=startup.seconds)
        if self.active:
            print(f"step {step} was done {startup}", flush=True)
        self.clock.interval()
        self.last, self.tokens = step, 0

    def learned(self, tokens: int) -> None:
        """Of the batch of a step that has begun."""
        self.tokens += tokens

    def train(self, step: int, values: dict[str, float]) -> None:
        """Metrics of the update that ended with `step` updates done, with its speed."""
        run, model = self.experiment.run, self.experiment.model
        shown, left = f"step {step}/{run.steps}  loss {values['loss']:.4f}", ""
        if self.last is not None and self.last < step:
            steps, (seconds, spent) = step - self.last, self.clock.interval()
            seconds -= spent["evaluation"]
            self.last = step
            self.trained = [self.trained[0] + steps, self.trained[1] + seconds]
            rate, self.tokens = self.tokens / seconds, 0
            productive = seconds - spent["data"] - spent["save"] - spent["compiling"]
            speed = {
                "tokens_per_second": rate,
                "tokens_per_second_per_device": rate / jax.device_count(),
                "mfu_6n": rate * 6 * model.parameters / self.peak,
                "mfu_6n_12ldt": rate * model.flops_per_token / self.peak,
                "step_seconds": seconds / steps,
                "data_wait": spent["data"] / seconds,
                "save_stall": spent["save"] / seconds,
                "productive_seconds": productive,
            }
            if self.active:
                self.productive += productive
                speed["goodput"] = self.goodput()
            memory = jax.local_devices()[0].memory_stats() or {}
            if "peak_bytes_in_use" in memory:  # CPUs have no such figure
                speed["device_memory_bytes"] = memory["peak_bytes_in_use"]
            values = values | speed
            remaining = self.trained[1] / self.trained[0] * (run.steps - step)
            shown += f"  {rate:,.0f} tokens/s  MFU {speed['mfu_6n_12ldt']:.1%} (6N + 12LdT)"
            left = f"  {duration(remaining)} left"
        if self.active:
            print(shown + left, flush=True)
        self.write(step, values)

    @contextlib.contextmanager
    def evaluation(self, step: int) -> Iterator[None]:
        """Its time is no part of training's speed."""
        start = time.perf_counter()
        with self.clock.doing("evaluation"):
            yield
        self.event("evaluation", step, seconds=round(time.perf_counter() - start, 2))

    def held_out(self, step: int, values: dict[str, float], words: str) -> None:
        """What the model scored after `step` updates; held_out_loss among it."""
        if self.active:
            print(f"step {step}/{self.experiment.run.steps}  {words}", flush=True)
        self.write(step, values)

    def goodput(self) -> float:
        """Share of all time since the run was first started in which steps that count were made."""
        return self.productive / max(time.time() - self.began, 1e-9)

    def event(self, kind: str, step: int, **values: Any) -> None:
        """One line of events.jsonl, which no restart takes back."""
        if self.active:
            self.events.write({"time": time.time(), "event": kind, "step": step, **values})
            self.events.flush()

    def say(self, text: str) -> None:
        if self.active:
            print(text, flush=True)

    def sample(self, step: int, samples: list[dict[str, str]]) -> None:
        if self.active:
            for sample in samples:
                self.samples.write({"step": step, **sample})

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and scalars for TensorBoard and Weights & Biases."""
        if self.active:
            finite = {name: x for name, x in values.items() if math.isfinite(x)}  # JSON has no NaN
            self.lines.write({"step": step, **finite})
            self.board.write(step, values)
            if self.wandb:
                self.wandb.log(values, step=step)

    def flush(self) -> None:
        if self.active:
            for file in (self.lines, self.samples, self.events, self.board):
                file.flush()

    def close(self) -> None:
        self.closing.close()

    def _wandb(self, project: str, workdir: epath.Path) -> Any:
        run = weights_and_biases(project).init(
            project=project,
            id=f"{workdir.name}-{int(self.began)}",  # the same after a restart
            resume="allow",
            config=flat(self.experiment),
            dir=None if in_cloud(workdir) else str(workdir),
        )
        self.closing.callback(run.finish)
        return run


class Board:
    """TensorBoard's event files, written at once and here, not by a thread of TensorBoard's, where
    a full disk would go unnoticed. On gs://, where a file can not grow, there is one a minute and
    one at each `flush`."""

    def __init__(self, folder: epath.Path, first: int):
        self.folder, self.remote = folder, in_cloud(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.writer: RecordWriter | None = None
        # The START event hides what was shown before for later steps.
        self._event(step=first + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: dict[str, float]) -> None:
        scalars = [Summary.Value(tag=name, simple_value=x) for name, x in values.items()]
        self._event(step=step, summary=Summary(value=scalars))

    def flush(self) -> None:
        """All values are where others can read them."""
        if self.remote and self.writer is not None:
            with self._reported():
                self.writer.close()
            self.writer = None

    def _event(self, **content: Any) -> None:
        with self._reported():
            if self.writer is None:
                file = self.folder / f"events.out.tfevents.{time.time_ns()}"
                self.writer, self.opened = RecordWriter(file.open("wb")), time.monotonic()
                self._record(file_version="brain.Event:2")
            self._record(**content)
            if not self.remote:
                self.writer.flush()
            elif time.monotonic() - self.opened > journal.SECONDS:
                self.flush()

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not (isinstance(error, OSError) or passes(error)):
                raise
            raise (Unavailable if passes(error) else UserError)(
                f"TensorBoard's files can not be written to {self.folder}: "
                f"{getattr(error, 'strerror', None) or error}; the run's checkpoints are whole. "
                "Remove the cause and give the same command again"
            ) from error

    def _record(self, **content: Any) -> None:
        assert self.writer is not None
        self.writer.write(Event(wall_time=time.time(), **content).SerializeToString())

    def close(self) -> None:
        self.flush()
        with contextlib.suppress(OSError):  # what it still held was refused and reported before
            if self.writer is not None:
                self.writer.close()


def duration(seconds: float) -> str:
    """125 is "2m05s", 90,000 is "25h00m"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"


def plot(workdir: epath.Path, unit: str) -> epath.Path:
    """Draws the loss of training and of what is held out from metrics.jsonl into loss.png. unit: of
    the loss."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = journal.read(workdir / "metrics.jsonl")
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, label, style in [("loss", "training", "-"), ("held_out_loss", "held out", "o-")]:
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set(xlabel="step", ylabel=f"loss, {unit}", title=str(workdir))
    axes.grid(alpha=0.3)
    axes.legend()
    with (workdir / "loss.png").open("wb") as file:
        figure.savefig(file, dpi=150, format="png")
    pyplot.close(figure)
    return workdir / "loss.png"
