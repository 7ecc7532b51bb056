"""Several processes as one run, seen from below: each shows every few seconds that it is alive, so
that whoever is gone has a name, and no process ends or hangs without a word.

JAX's own answer to a lost process is to abort the others, or on some platforms to hang with them.
"""

import contextlib
import ctypes
import dataclasses
import itertools
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

import jax

from biomedlm_jax.entry import HOST_LOST, PREEMPTED

PULSE = "hosts/pulse/"
FAILED, DONE = "failed", "done"  # the last pulse of a process
ADVICE = (
    "its own output says why, if it could. Give the same command again on every host, and the run "
    "goes on from its newest checkpoint"
)


_on_abort: Any = None  # kept alive, for C calls it


@dataclasses.dataclass
class Group:
    """The processes of this run."""

    names: list[str]  # of their hosts
    index: int
    coordinator: str
    wait_seconds: int
    client: Any = None  # of JAX's coordination service, whose key-value store is on process 0
    pulses: dict[int, tuple[str, float]] = dataclasses.field(default_factory=dict)  # and since when
    heard: float = dataclasses.field(default_factory=time.monotonic)  # when the store answered last
    ending: str = ""
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    @property
    def period(self) -> float:
        """Seconds between pulses."""
        return min(2.0, self.wait_seconds / 10)

    def named(self, indices: list[int]) -> str:
        """process 1 (host b), process 3 (host d)"""
        return ", ".join(f"process {i} (host {self.names[i]})" for i in indices)

    def read(self, prefix: str) -> dict[int, str]:
        """{process: value} of the keys that begin with `prefix`."""
        found = self.client.key_value_dir_get(prefix)
        return {int(key.rpartition("/")[2]): value for key, value in found}

    def failed(self) -> list[int]:
        """The processes that have ended otherwise than well, and said so."""
        return [i for i, (value, _) in sorted(self.pulses.items()) if value == FAILED]

    def silent(self) -> list[int]:
        """Those that have failed, or whose pulse is four periods late."""
        late = time.monotonic() - 4 * self.period
        if self.heard < late:  # nothing is known of the others
            return [0] if self.index else []
        return [
            i
            for i, (value, since) in sorted(self.pulses.items())
            if i != self.index and (value == FAILED or (value != DONE and since < late))
        ]

    def pulse(self, value: str) -> None:
        with self.lock:
            value = self.ending or value  # the last word of this process is not overwritten
            self.client.key_value_set(f"{PULSE}{self.index}", value, allow_overwrite=True)


def start(group: Group, client: Any) -> None:
    """Watches over the processes from here on: JAX has brought them together."""
    group.client, group.heard = client, time.monotonic()
    threading.Thread(target=_watch, args=[group], daemon=True, name="pulses").start()


def _watch(group: Group) -> None:
    """A thread for the life of the process. Ends it when another one is gone for wait_seconds, for
    on some platforms a computation that all take part in then hangs."""
    last = time.monotonic()
    for beat in itertools.count():
        try:
            group.pulse(str(beat))
            found = group.read(PULSE)
        except jax.errors.JaxRuntimeError:  # it may pass; if the service is gone, JAX aborts
            if time.monotonic() - group.heard > group.wait_seconds:
                _die(f"no answer from {group.named([0])} for {group.wait_seconds} s; {ADVICE}")
            time.sleep(group.period)
            continue
        group.heard = now = time.monotonic()
        suspended = now - last > 4 * group.period  # this process, so it knows nothing of others
        last = now
        for i in range(len(group.names)):
            value = found.get(i, "")
            if suspended or i not in group.pulses or group.pulses[i][0] != value:
                group.pulses[i] = (value, now)
        gone = [
            i
            for i, (value, since) in group.pulses.items()
            if i != group.index and value != DONE and now - since > group.wait_seconds
        ]
        if gone:
            _die(f"no answer from {group.named(gone)} for {group.wait_seconds} s; {ADVICE}")
        time.sleep(group.period)


def leave(group: Group, code: int) -> None:
    """Says goodbye, before this process ends with `code`."""
    group.ending = DONE if code in (0, PREEMPTED) else FAILED
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # nobody is there to hear it
        group.pulse(group.ending)
        if group.index == 0 and code:
            # The store ends with this process, and others may still read in it why they end.
            patience = group.wait_seconds if code == PREEMPTED else min(group.wait_seconds, 10)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline:
                found, late = group.read(PULSE), group.silent()
                if all(
                    found.get(i) in (DONE, FAILED) or i in late for i in range(len(group.names))
                ):
                    break
                time.sleep(0.1)
            time.sleep(0.1)


def end_well_on_abort(group: Group) -> None:
    """JAX aborts, in a thread of its own, when process 0 is gone or others are while it brings them
    together, and Python has no say in it but as a C signal handler. An abort for another reason
    goes on as one."""
    global _on_abort

    def aborted(number: int) -> None:
        assert number == signal.SIGABRT
        gone = group.silent()
        if group.client is None:
            gone = [i for i in range(len(group.names)) if i != group.index]
        if group.index:
            host, _colon, port = group.coordinator.rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
            except OSError:
                gone = [0]
        if gone:
            _die(f"no answer from {group.named(gone)}; {ADVICE}")

    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(_on_abort, ctypes.c_void_p))


def _die(message: str) -> None:
    """From any thread: the main thread may never come back from a computation."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(HOST_LOST)
