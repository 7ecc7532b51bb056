"""What watches over a run from outside its loop: whether it goes on, whether the machine is wanted
back, and what to record for a profile."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TextIO

import jax
from jax.experimental import multihost_utils

from biomedlm_jax import hosts
from biomedlm_jax.entry import HOST_LOST


class Watchdog:
    """Ends the process when nothing has come for `seconds`, or never with 0: writes where each
    thread stands to stderr and to `file`, and exits with 76, as where another host is lost.

    file: None, or a local file that is written only then.
    """

    def __init__(self, seconds: int, file: Path | None):
        self.seconds, self.file = seconds, file
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._paused = 0
        self.beat("the start")
        if seconds:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def beat(self, what: str) -> None:
        """A sign of life: what is under way from now on, such as "step 12"."""
        with self._lock:
            self._what, self._since = what, time.time()
            self._deadline = time.monotonic() + self.seconds

    def allow(self, seconds: float) -> None:
        """What is under way may take so long, such as a step that is compiled first."""
        with self._lock:
            self._deadline = max(self._deadline, time.monotonic() + seconds)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Something that may take any time."""
        with self._lock:
            self._paused += 1
        try:
            yield
        finally:
            with self._lock:
                self._paused -= 1
                self._deadline = max(self._deadline, time.monotonic() + self.seconds)

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self.seconds / 4)):
            with self._lock:
                late = not self._paused and time.monotonic() > self._deadline
            if late and not self._closed.is_set():
                self._end()

    def _end(self) -> None:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self._since))
        said = f"no sign of life for {time.time() - self._since:.0f} s: {self._what}, since {since}"
        if gone := hosts.silent():
            said += f"; no answer from {hosts.named(gone)}"
        where = "above"
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        if self.file:
            try:
                with self.file.open("w") as file:
                    self._write(file, said)
                where = f"above and in {self.file}"
            except OSError as error:  # a disk that hangs or is full may be why
                where = f"above, for {self.file} can not be written ({error.strerror})"
        print(
            f"error: {said}. Where each thread stands is {where}. The same command goes on from "
            "the newest checkpoint; config.run.hang_seconds is how long a step may take",
            file=sys.stderr,
            flush=True,
        )
        os._exit(HOST_LOST)

    def _write(self, file: TextIO, said: str) -> None:
        file.write(said + "\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)


class Preemption:
    """Whether the machine is wanted back: SIGTERM, also one that came long before it is asked.

    A process alone stops at the next question. Several stop at the same tick, whichever of them
    the signal came to: JAX remembers it and settles on a tick that none has passed.
    """

    def __init__(self) -> None:
        self._told = False
        self._restore = (
            _handle(signal.SIGTERM, self._tell) if jax.process_count() == 1 else lambda: None
        )

    def requested(self, tick: int) -> bool:
        """Asked once a step on every process, with a number that rises by one each time."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(tick)
        return self._told

    def close(self) -> None:
        self._restore()

    def _tell(self, *_: int | FrameType | None) -> None:
        self._told = True


class Profiler:
    """Records `steps` steps from step `at` on, and whenever SIGUSR1 comes to this process.

    folder: where a trace goes, in a folder of its own; may be on gs://.
    """

    def __init__(self, folder: Path | str, at: int | None, steps: int = 5):
        self.folder, self.at, self.steps = str(folder), at, steps
        self._asked, self._until = False, None
        self._restore = _handle(signal.SIGUSR1, self._ask)

    def step(self, done: int) -> None:
        """Called before each step, with the number of those that are done."""
        if self._until is not None and done >= self._until:
            self._stop()
        if self._until is None and (self._asked or done == self.at):
            self._asked, self._until = False, done + self.steps
            self._trace = f"{self.folder}/{done}"
            jax.profiler.start_trace(self._trace)

    def close(self) -> None:
        self._restore()
        if self._until is not None:
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._until = None
        print(
            f"profile of {self.steps} steps in {self._trace}; tensorboard --logdir={self._trace}",
            flush=True,
        )

    def _ask(self, *_: int | FrameType | None) -> None:
        self._asked = True


def _handle(number: signal.Signals, handler: Callable) -> Callable[[], object]:
    """Handles a signal until what is returned is called. Python allows it in the main thread
    alone; elsewhere nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    before = signal.signal(number, handler)
    return lambda: signal.signal(number, signal.SIG_DFL if before is None else before)
