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
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboard.summary.writer.record_writer import RecordWriter

from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import UserError
from biomedlm_jax.held_out import TOTAL, Scores

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


def peak_flops(devices: list) -> tuple[float, str]:
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
    peak = 2 * 1024**3 / min(seconds)
    if devices[0].platform != "cpu":  # devices of a CPU share its cores
        peak *= len(devices)
    return peak, f"{peak / 1e9:,.0f} GFLOP/s of a float32 product timed on this {kind}"


class Writer:
    """Writes the metrics of a run that starts, or goes on, at `first` steps.

    What an interrupted run wrote for later steps is taken back, for these steps come again.
    """

    def __init__(self, workdir: Path, experiment: Experiment, first: int):
        self.experiment, self.first = experiment, first
        self.peak, source = peak_flops(jax.devices())
        self.tokens = experiment.data.batch * experiment.model.context
        self.file = workdir / "metrics.jsonl"
        self._take_back()
        folder = workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        # Written at once and here, not by a thread of TensorBoard's, where a full disk would go
        # unnoticed. The START event hides what was shown before for later steps.
        self.board = RecordWriter((folder / f"events.out.tfevents.{time.time_ns()}").open("wb"))
        self._event(file_version="brain.Event:2")
        self._event(step=first + 1, session_log=SessionLog(status=SessionLog.START))
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
        left = "includes compiling"
        if self.start is None:  # the first report includes the time of compilation
            self.start = (now, step)
        else:
            seconds = (now - self.start[0]) / (step - self.start[1]) * (run.steps - step)
            left = f"{duration(seconds)} left"
        self.write(step, {**values, "tokens_per_second": rate, "mfu": mfu})
        print(
            f"step {step}/{run.steps}  loss {values['loss']:.4f}  {rate:,.0f} tokens/s  "
            f"MFU {mfu:.1%} (6N + 12LdT)  {left}",
            flush=True,
        )

    def held_out(self, step: int, scores: Scores, seconds: float) -> None:
        """The scores after `step` updates; the seconds it took are no part of training's speed."""
        total = scores[TOTAL]
        bits = {
            f"bits_per_byte/{name}" if name else "bits_per_byte": score.bits_per_byte
            for name, score in scores.items()
        }
        self.write(step, {"held_out_loss": total.loss, **bits})
        print(f"step {step}/{self.experiment.run.steps}  held out: {total}", flush=True)
        self.last = (self.last[0] + seconds, self.last[1])
        if self.start is not None:
            self.start = (self.start[0] + seconds, self.start[1])

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and scalars for TensorBoard."""
        try:
            with self.file.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            scalars = [Summary.Value(tag=name, simple_value=x) for name, x in values.items()]
            self._event(step=step, summary=Summary(value=scalars))
            self.board.flush()
        except OSError as error:
            raise UserError(
                f"metrics can not be written to --workdir={self.file.parent}: {error.strerror}; "
                "its checkpoints are whole. Remove the cause and give the same command again"
            ) from error

    def _take_back(self) -> None:
        """Drops the lines after `first`, and one that was cut while it was written."""
        lines = self.file.read_text().splitlines(keepends=True) if self.file.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        partial = self.file.with_suffix(".partial")
        partial.write_text("".join(x for x in whole if json.loads(x)["step"] <= self.first))
        partial.rename(self.file)

    def _event(self, **content: Any) -> None:
        self.board.write(Event(wall_time=time.time(), **content).SerializeToString())

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
    axes.set(xlabel="step", ylabel="loss, nats per token", title=str(workdir))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(workdir / "loss.png", dpi=150)
    pyplot.close(figure)
    return workdir / "loss.png"
