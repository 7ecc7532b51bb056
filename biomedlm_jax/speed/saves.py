"""How fast the state of the 125M config is saved and restored, beside the disk it goes to.

    python -m biomedlm_jax.speed.saves --output=runs/bench-saves

In each round, one after the other: the disk alone writes and reads as many bytes as the state has,
a save until it is committed and synced, a restore, each read with the files dropped from the page
cache. What is read alone is thrown away once, and once kept in memory, as a restore has to: where
the system must first find and clear that memory, this takes longer than the disk does. A pause
before each read lets the system take back what the one before it used. Then training steps of
2 x 1,024 tokens, one of them right behind a save. All rounds and their medians go to saves.json.
The disk is the one that the output is on.
"""

import dataclasses
import json
import os
import runpy
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding

from biomedlm_jax import config, entry, settings, step
from biomedlm_jax import mesh as meshes
from biomedlm_jax.checkpoint import Checkpoints
from biomedlm_jax.pipeline.store import TokenStore

CONFIG, BLOCK, ROWS = "configs/pretrain_125m.py", 64 << 20, 2
PAUSE = 3.0  # seconds


@dataclasses.dataclass(frozen=True)
class NoStore:
    """What a run's folder is claimed with; no token is read here."""

    vocabulary_path: Path
    path: str = "none"
    vocab_size: int = 0
    vocabulary_sha256: str = "none"
    sha256: str = "none"


def drop(folder: Path) -> None:
    """Takes what is below `folder` out of the page cache, once the disk has it, and pauses."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    time.sleep(PAUSE)


def disk(folder: Path, size: int, files: int) -> dict[str, float]:
    """Seconds to write `size` bytes to as many files at once, synced; to read them; and to read
    them into memory of their own."""
    folder.mkdir()
    block = np.random.default_rng(0).bytes(BLOCK)
    share = size // files

    def write(number: int) -> None:
        descriptor = os.open(folder / str(number), os.O_WRONLY | os.O_CREAT)
        for start in range(0, share, BLOCK):
            os.write(descriptor, block[: min(BLOCK, share - start)])
        os.fsync(descriptor)
        os.close(descriptor)

    def read(number: int) -> None:
        descriptor, into = os.open(folder / str(number), os.O_RDONLY), bytearray(BLOCK)
        while os.readv(descriptor, [into]):
            pass
        os.close(descriptor)

    kept = []

    def keep(number: int) -> None:
        descriptor, into = os.open(folder / str(number), os.O_RDONLY), np.empty(share, np.uint8)
        kept.append(into)
        at = 0
        while count := os.readv(descriptor, [into[at : at + BLOCK]]):  # pyright: ignore
            at += count
        os.close(descriptor)

    seconds = {}
    for name, act in {"disk_write": write, "disk_read": read, "disk_keep": keep}.items():
        start = time.perf_counter()
        with ThreadPoolExecutor(files) as pool:
            list(pool.map(act, range(files)))
        seconds[name] = time.perf_counter() - start
        drop(folder)
    shutil.rmtree(folder)
    return seconds


def random_state(experiment: config.Experiment, mesh: Mesh) -> step.State:
    """No zeros, which are quicker to keep."""
    like = jax.eval_shape(lambda: step.init(experiment))

    def make() -> step.State:
        leaves, tree = jax.tree.flatten(like)
        keys = jax.random.split(jax.random.key(0), len(leaves))
        made = [
            jax.random.normal(key, x.shape, x.dtype) * 0.02
            if jnp.issubdtype(x.dtype, jnp.floating)
            else jnp.zeros(x.shape, x.dtype)
            for key, x in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, made)

    return jax.jit(make, out_shardings=step.state_shardings(experiment, mesh))()


def timed(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(act())
    return time.perf_counter() - start


def stepping(
    experiment: config.Experiment, mesh: Mesh, state: step.State, saves: Checkpoints
) -> dict[str, float]:
    """Seconds of a training step, of one whose state is being saved, and what that save blocked."""
    train = step.train_step(experiment, mesh)
    shape = (experiment.data.batch, experiment.model.context)
    tokens = np.random.default_rng(0).integers(0, experiment.model.vocab, shape, np.int32)
    batch = jax.device_put(tokens, NamedSharding(mesh, step.BATCH_SPEC))
    seconds = []
    for number in range(4):
        if number == 3:
            saves.save(state, 10_000)
        start = time.perf_counter()
        state, metrics = train(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    saves.manager.wait_until_finished()
    return {"step": min(seconds[1:3]), "step_behind_save": seconds[3], "stalled": saves.stalled}


def measure(output: Path, rounds: int, files: int) -> dict[str, Any]:
    """Everything, in seconds and bytes."""
    found = runpy.run_path(CONFIG)["get_config"]().to_dict()
    experiment = settings.build(config.Experiment, found)
    small = dataclasses.replace(experiment.data, batch=ROWS)
    experiment = dataclasses.replace(experiment, data=small)
    mesh = meshes.make(experiment)
    work = output / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "vocabulary.model").write_bytes(b"none")
    store = cast(TokenStore, NoStore(work / "vocabulary.model", vocab_size=experiment.model.vocab))
    state = jax.block_until_ready(random_state(experiment, mesh))
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    saves = Checkpoints(work / "run", experiment, store)
    numbered = jax.jit(lambda state, n: dataclasses.replace(state, step=n), donate_argnums=0)
    rows = []
    for number in range(1, rounds + 1):
        alone = disk(work / "disk", size, files)
        state = numbered(state, number)
        start = time.perf_counter()
        saves.save(state, number)
        saves.manager.wait_until_finished()
        os.sync()
        saved = time.perf_counter() - start
        drop(work / "run")
        restored = timed(lambda: saves.latest(mesh))
        rows.append(alone | {"save": saved, "stalled": saves.stalled, "restore": restored})
        print(json.dumps(rows[-1]), flush=True)
    median = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    steps = stepping(experiment, mesh, state, saves)
    saves.close()
    shutil.rmtree(work)
    stall = max(steps["stalled"], 0) + max(steps["step_behind_save"] - steps["step"], 0)
    every = experiment.run.save_every
    return {
        "config": CONFIG,
        "bytes": size,
        "cpus": os.cpu_count(),
        "versions": {"jax": jax.__version__},
        "disk_files": files,
        "rounds": rows,
        "median": median,
        "save_over_disk": median["disk_write"] / median["save"],
        "restore_over_disk": median["disk_read"] / median["restore"],
        "restore_over_disk_keeping": median["disk_keep"] / median["restore"],
        "steps": steps | {"rows": ROWS},
        "stall_share_of_interval": stall / (every * steps["step"]),
        "steps_for_two_percent": stall / 0.02 / steps["step"],
    }


def main() -> None:
    output = Path(flags.FLAGS.output)
    record = measure(output, flags.FLAGS.rounds, flags.FLAGS.files)
    (output / "saves.json").write_text(json.dumps(record, indent=2) + "\n")
    rate = {name: record["bytes"] / x / 1e6 for name, x in record["median"].items()}
    print(
        f"{record['bytes'] / 1e9:.2f} GB; MB/s: disk writes {rate['disk_write']:,.0f}, saves "
        f"{rate['save']:,.0f} ({record['save_over_disk']:.0%}); disk reads "
        f"{rate['disk_read']:,.0f}, {rate['disk_keep']:,.0f} where what is read is kept; restores "
        f"{rate['restore']:,.0f} ({record['restore_over_disk']:.0%} and "
        f"{record['restore_over_disk_keeping']:.0%})\n"
        f"a save stops the loop for {record['steps']['stalled']:.2f} s, a step takes "
        f"{record['steps']['step']:.1f} s, the one behind a save "
        f"{record['steps']['step_behind_save']:.1f} s: "
        f"{record['stall_share_of_interval']:.5%} of the interval between saves; 2 % from "
        f"{record['steps_for_two_percent']:.1f} steps on"
    )


if __name__ == "__main__":
    flags.DEFINE_string("output", "runs/bench-saves", "folder for saves.json, on the disk to test")
    flags.DEFINE_integer("rounds", 5, "of which the medians are taken")
    flags.DEFINE_integer("files", 2, "that the disk alone writes and reads at once")
    entry.run(main)
