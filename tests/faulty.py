"""A run in which something goes wrong, for `test_faults`:

python -m tests.faulty FAULT[,FAULT ...] FLAGS OF biomedlm_jax.main

nan=K           the update with batch K makes a NaN
hang=K          reading batch K never ends
slow=S          reading a batch takes S seconds more
gone=K:PATH     PATH is renamed, with .gone behind it, before batch K is read, and no cache hides it
full=K:PATH     PATH takes all the room there is on its disk before batch K is read
scoring=S       an evaluation says so, and takes S seconds more for every batch
"""

import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax

from biomedlm_jax import held_out, step
from biomedlm_jax.pipeline import store
from biomedlm_jax.pipeline.loader import Batch, Loader


def before_batch(act: Callable[[int], None]) -> None:
    whole = Loader.batch

    def batch(self: Loader, number: int) -> Batch:
        act(number)
        return whole(self, number)

    Loader.batch = batch


def at(number: int, act: Callable[[], object]) -> None:
    before_batch(lambda now: act() if now == number else None)


def nan(value: str) -> None:
    """Known in the program of a step by how one of its rows begins."""
    made, whole, rows = Loader.__init__, step.loss, []

    def init(self: Loader, *given, **named) -> None:
        made(self, *given, **named)
        rows.append(self.store.read(self.starts(int(value))[5:6], 16)[0])

    def poisoned(experiment, graph, params, tokens, *rest):
        total, nats = whole(experiment, graph, params, tokens, *rest)
        hit = (tokens[:, :16] == rows[0]).all(1).any()
        return jax.numpy.where(hit, jax.numpy.nan, 1.0) * total, nats

    Loader.__init__, step.loss = init, poisoned


def hang(value: str) -> None:
    def never_ends() -> None:
        time.sleep(10_000)

    at(int(value), never_ends)


def slow(value: str) -> None:
    before_batch(lambda now: time.sleep(float(value)))


def gone(value: str) -> None:
    number, _, path = value.partition(":")
    store._CACHE_BYTES = 0
    at(int(number), lambda: Path(path).rename(f"{path}.gone"))


def full(value: str) -> None:
    number, _, path = value.partition(":")

    def fill() -> None:
        room = os.statvfs(Path(path).parent)
        Path(path).write_bytes(bytes(room.f_bavail * room.f_bsize))

    at(int(number), fill)


def scoring(value: str) -> None:
    whole = held_out.Evaluator.__call__

    def called(self, params, each=lambda: None):
        def slowly() -> None:
            time.sleep(float(value))
            each()

        print("scoring", flush=True)
        return whole(self, params, slowly)

    held_out.Evaluator.__call__ = called


if __name__ == "__main__":
    faults = sys.argv.pop(1)
    for fault in faults.split(","):
        name, _, given = fault.partition("=")
        {f.__name__: f for f in (nan, hang, slow, gone, full, scoring)}[name](given)
    runpy.run_module("biomedlm_jax.main", run_name="__main__", alter_sys=True)
