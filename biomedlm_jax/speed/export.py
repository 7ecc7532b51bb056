"""How fast a model leaves for Hugging Face, beside `cp`, and in how much memory.

    python -m biomedlm_jax.speed.export --output=runs/bench-export

Makes a checkpoint of random float32 parameters of a config, piece by piece, each array in one file
as a single device writes it. In each round, one after the other and with nothing of it in the page
cache: `cp -r` of that checkpoint with `sync`, and `python -m biomedlm_jax.hf.save` of it, a process
of its own whose peak memory is measured, also with `sync`. All rounds and medians go to
export.json; the rest is removed. Needs twice the size of the model on the disk of the output.
"""

import dataclasses
import json
import os
import runpy
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from etils import epath
from flax import traverse_util

from biomedlm_jax import config, entry, saves, settings
from biomedlm_jax.arrays import cuts
from biomedlm_jax.checksums import Running
from biomedlm_jax.hf.names import TABLE
from biomedlm_jax.speed.saves import drop
from biomedlm_jax.start import IMPORTED, PARAMS


def checkpoint(folder: Path, model: config.Model) -> None:
    """What hf.load would leave of random parameters; no array of it is ever in memory whole.

    orbax writes the tree with arrays of one number, and what zarr says of each, and its file, is
    then made as large as the model has it.
    """
    draw = np.random.default_rng(0)
    like = {row.ours: np.zeros([1] * len(row.axes), np.float32) for row in TABLE}
    tree = traverse_util.unflatten_dict(like, sep="/")
    handler = saves.state_handler(epath.Path(folder))
    handler.save(epath.Path(folder / PARAMS), args=ocp.args.PyTreeSave({PARAMS: tree}))
    handler.close()
    sums = {}
    for row in TABLE:
        shape, theirs = row.shapes(model)
        place = folder / PARAMS / f"{PARAMS}/{row.ours}".replace("/", ".")
        about = json.loads((place / ".zarray").read_text())
        (place / ".zarray").write_text(json.dumps(about | {"shape": shape, "chunks": shape}))
        running = Running(shape)
        with (place / ".".join("0" * len(shape))).open("wb") as file:
            for start, stop in cuts(shape):
                piece = 0.02 * draw.standard_normal((stop - start, *shape[1:]), np.float32)
                if row.axes[0] == "v":
                    piece[max(0, theirs[0] - start) :] = 0
                running.add(start, piece)
                file.write(piece.data)
        sums[f"{PARAMS}/{row.ours}"] = running.value
    about = {
        "model": dataclasses.asdict(model),
        "eos_id": None,
        "vocabulary_sha256": None,
        "checksums": sums,
        "source": {"name": "random"},
    }
    (folder / IMPORTED).write_text(json.dumps(about))


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds until the disk has what a command writes, and its peak memory in bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, used = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise entry.UserError(f"{command} ended with {code}")
    os.sync()
    return time.perf_counter() - start, used.ru_maxrss * 1024.0


def measure(output: Path, model: config.Model, rounds: int, dtype: str) -> dict[str, Any]:
    work = output / "work"
    shutil.rmtree(work, ignore_errors=True)
    source, copy, exported = (work / name for name in ("source", "copy", "exported"))
    source.mkdir(parents=True)
    checkpoint(source, model)
    rows = []
    save = [sys.executable, "-m", "biomedlm_jax.hf.save", f"--checkpoint={source}"]
    for _ in range(rounds):
        drop(source)
        copied, _ = timed(["cp", "-r", str(source), str(copy)])
        shutil.rmtree(copy)
        drop(source)
        seconds, peak = timed([*save, f"--output={exported}", f"--dtype={dtype}"])
        shutil.rmtree(exported)
        rows.append({"copy": copied, "export": seconds, "peak": peak, "ratio": seconds / copied})
        print(json.dumps(rows[-1]), flush=True)
    shutil.rmtree(work)
    return {
        "bytes": 4 * model.parameters,
        "dtype": dtype,
        "largest_array": 4 * max(np.prod(row.shapes(model)[0]).item() for row in TABLE),
        "cpus": os.cpu_count(),
        "rounds": rows,
        "median": {name: statistics.median(row[name] for row in rows) for name in rows[0]},
    }


def main() -> None:
    given = flags.FLAGS
    output = Path(given.output)
    found = runpy.run_path(given.config)["get_config"]().to_dict()
    model = settings.build(config.Experiment, found).model
    record = measure(output, model, given.rounds, given.dtype)
    (output / "export.json").write_text(json.dumps(record, indent=2) + "\n")
    median = record["median"]
    print(
        f"{record['bytes'] / 1e9:.2f} GB of float32, exported in {record['dtype']}: cp and sync "
        f"{median['copy']:.1f} s, export and sync {median['export']:.1f} s, "
        f"{median['ratio']:.2f} of it; peak memory {median['peak'] / 1e9:.2f} GB, the largest "
        f"array has {record['largest_array'] / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    flags.DEFINE_string("output", "runs/bench-export", "folder for export.json, on the disk to use")
    flags.DEFINE_string("config", "configs/pretrain_2p7b.py", "whose model is exported")
    flags.DEFINE_integer("rounds", 3, "of which the medians are taken", 1)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "of the export")
    entry.run(main)
