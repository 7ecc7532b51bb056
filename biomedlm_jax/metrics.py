"""Numbers of a run for people: the console, `metrics.jsonl`, TensorBoard, and a loss curve.

MFU here is the PaLM convention: 6 N + 12 L d T flops per token (`Model.flops_per_token`) times
tokens per second, over the peak of the devices. Time never enters a result.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import UserError
from biomedlm_jax.held_out import Score

# Dense bfloat16 flops per second of one JAX device, from the vendors' data sheets. The key is in
# `jax.Device.device_kind`.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "A100": 312e12,
    "H100": 989e12,
}


def peak_flops(devices: list[jax.Device]) -> tuple[float, str]:
    """Flops per second of all devices together, and where the figure is from: the table, or for
    another kind a product of two 1024 x 1024 matrices, timed here."""
    kind = devices[0].device_kind
    for name, peak in PEAK_FLOPS.items():
        if name in kind:
            return peak * len(devices), f"{peak / 1e12:.0f} TFLOP/s data-sheet peak of {name}"
    product = jax.jit(jnp.matmul)
    x = jnp.ones((1024, 1024))
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    peak = 2 * 1024**3 / min(seconds)  # devices of a CPU share its cores
    return peak, f"{peak / 1e9:.0f} GFLOP/s float32 product timed on this {kind}"


class Writer:
    """Writes the metrics of a run that starts, or goes on, at `first` steps.

    What an interrupted run wrote for later steps is taken back, for these steps come again.
    """

    def __init__(self, workdir: Path, experiment: Experiment, first: int):
        self.experiment, self.first = experiment, first
        self.peak, source = peak_flops(jax.devices())
        self.tokens = experiment.data.batch * experiment.model.context
        self.file = workdir / "metrics.jsonl"
        before = self.file.read_text().splitlines(keepends=True) if self.file.exists() else []
        kept = [line for line in before if line.endswith("\n") and json.loads(line)["step"] <= first]
        partial = self.file.with_suffix(".partial")
        partial.write_text("".join(kept))
        partial.rename(self.file)
        # Not SummaryWriter: it writes from a thread of its own, where a full disk goes unnoticed.
        (workdir / "tensorboard").mkdir(exist_ok=True)
        self.board = EventsWriter(str(workdir / "tensorboard" / "events"))
        again = SessionLog(status=SessionLog.START)  # hides what was shown for later steps
        self.board.write_event(Event(step=first + 1, session_log=again))
        self.last = (time.perf_counter(), first)
        self.start: tuple[float, int] | None = None
        print(f"MFU is of 6 N + 12 L d T flops per token and the {source}", flush=True)

    def train(self, step: int, values: dict[str, float]) -> None:
        """Metrics of the update that ended with `step` updates done, with its speed."""
        now, run = time.perf_counter(), self.experiment.run
        before, done = self.last
        self.last = (now, step)
        rate = self.tokens * (step - done) / (now - before)
        mfu = rate * self.experiment.model.flops_per_token / self.peak
        left = "compiling"
        if self.start is None:  # the first report includes the time of compilation
            self.start = (now, step)
        else:
            left = duration((now - self.start[0]) / (step - self.start[1]) * (run.steps - step))
        self.write(step, {**values, "tokens_per_second": rate, "mfu": mfu})
        print(
            f"step {step}/{run.steps}  loss {values['loss']:.4f}  {rate:,.0f} tokens/s  "
            f"MFU {mfu:.1%} (6N + 12LdT)  {left} left",
            flush=True,
        )

    def held_out(self, step: int, score: Score) -> None:
        """The score after `step` updates; the time it took is no part of the training's speed."""
        self.write(step, {"held_out_loss": score.loss, "bits_per_byte": score.bits_per_byte})
        print(f"step {step}/{self.experiment.run.steps}  held out: {score}", flush=True)
        now = time.perf_counter()
        before, done = self.last
        self.last = (now, done)
        if self.start is not None:
            self.start = (self.start[0] + now - before, self.start[1])

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and scalars for TensorBoard."""
        now = time.time()
        try:
            with self.file.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            for name, value in values.items():
                self.board.write_event(Event(wall_time=now, step=step, summary=scalar(name, value)))
            self.board.flush()
        except OSError as error:
            raise UserError(
                f"metrics can not be written to --workdir={self.file.parent}: {error.strerror}; "
                "its checkpoints are whole. Remove the cause and give the same command again"
            ) from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what it still held was refused and reported before
            self.board.close()


def duration(seconds: float) -> str:
    """125 is "2m05s", 90,000 is "25h00m"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"


def plot(workdir: Path) -> Path:
    """Draws the loss of training and of held-out text from metrics.jsonl into loss.png."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, label, style in [("loss", "training", "-"), ("held_out_loss", "held out", "o-")]:
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set(xlabel="step", ylabel="loss, nats per token", title=workdir.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(workdir / "loss.png", dpi=150)
    pyplot.close(figure)
    return workdir / "loss.png"
