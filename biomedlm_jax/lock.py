"""One run in a --workdir at a time.

In a local folder that is a lock of the operating system on WORKDIR/lock, which ends with the
process however that ends. On gs:// it is WORKDIR/lease.json, which its owner writes anew every 20
seconds and which counts for 90, or until its process is seen to be dead on this machine; every
write names the version it replaces, so that of two runs that find it old only one gets it.
"""

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tensorstore as ts
from etils import epath

from biomedlm_jax.entry import Unavailable, UserError, in_cloud, passes

RENEWED, COUNTS = 20.0, 90.0  # seconds
FILE, LEASE = "lock", "lease.json"


class Unrenewed(Unavailable):
    """A lease was not written anew in time, and may count no longer."""


class Lock:
    """with Lock(workdir): no other process has one of this folder, which is made if need be.

    A run that is refused later leaves nothing of it. `check` is for calling now and then.

    Raises:
      UserError: another run is in the folder; or it can not be written.
    """

    def __init__(self, workdir: epath.PathLike):
        self.workdir = epath.Path(workdir)
        cloud = in_cloud(self.workdir)
        self.kept = _Lease(self.workdir) if cloud else _File(self.workdir)

    def __enter__(self) -> Self:
        self.kept.take()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kept.release()

    def check(self) -> None:
        """Raises UserError where the folder is another run's by now, or is gone; Unrenewed where it
        may become so: for one who does nothing in the folder meanwhile, it can pass."""
        self.kept.check()


class _File:
    def __init__(self, workdir: epath.Path):
        self.workdir, self.path = workdir, Path(workdir).absolute() / FILE
        self.descriptor, self.made = -1, False

    def take(self) -> None:
        folder = self.path.parent
        with _reported(self.workdir):
            self.made = not folder.is_dir()
            folder.mkdir(parents=True, exist_ok=True)
            while self.descriptor < 0:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    holder = os.read(descriptor, 4096)
                    os.close(descriptor)
                    raise _taken(self.workdir, holder, "wait for it, or end it") from error
                if _same(descriptor, self.path):  # not one that was removed in between
                    self.descriptor = descriptor
                else:
                    os.close(descriptor)
            os.ftruncate(self.descriptor, 0)
            os.write(self.descriptor, json.dumps(_holder()).encode())
        _held.add(self)

    def check(self) -> None:
        if not _same(self.descriptor, self.path):
            raise _gone(self.workdir)

    def release(self) -> None:
        _held.discard(self)
        if _same(self.descriptor, self.path):
            self.path.unlink()
        os.close(self.descriptor)
        self.descriptor = -1
        if self.made:
            with contextlib.suppress(OSError):  # it is not empty: the run wrote something
                self.path.parent.rmdir()


_held: "weakref.WeakSet[_File]" = weakref.WeakSet()


def _forget() -> None:
    """In a child by fork: a lock lasts until every copy of its descriptor is closed."""
    for lock in _held:
        os.close(lock.descriptor)


os.register_at_fork(after_in_child=_forget)


class _Lease:
    def __init__(self, workdir: epath.Path):
        self.workdir = workdir
        bucket, _, prefix = str(workdir).removeprefix("gs://").partition("/")
        path = f"{prefix.rstrip('/')}/" if prefix else ""
        self.spec = {"driver": "gcs", "bucket": bucket, "path": path}
        self.mine = _holder() | {"machine": _machine(), "id": uuid.uuid4().hex}
        self.lost, self.failure, self.renewed, self.generation = "", "", 0.0, b""
        self.ended = threading.Event()

    def take(self) -> None:
        with _reported(self.workdir):
            self.store = ts.KvStore.open(self.spec).result()
            found = self.store.read(LEASE).result(COUNTS)
            if found.state == "value":
                age = time.time() - _written(found.value)
                if age < COUNTS and not _dead(found.value):
                    when = f"it ends by itself {COUNTS - age:.0f} s from now if that run is dead"
                    raise _taken(self.workdir, found.value, when)
            self.generation = found.stamp.generation
            if not self._write(COUNTS):
                quicker = self.store.read(LEASE).result(COUNTS).value
                raise _taken(self.workdir, quicker, "it was quicker")
        self.thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self.thread.start()

    def check(self) -> None:
        if self.lost or self._late():
            why = self.lost or f"{LEASE} could not be renewed in time{self.failure}"
            raise (UserError if self.lost else Unrenewed)(
                f"--workdir={self.workdir} is no longer this run's: {why}. What was saved is "
                "whole; see that no other run is in it and give the same command again"
            )

    def _late(self) -> bool:
        return _now() - self.renewed > COUNTS - RENEWED

    def release(self) -> None:
        self.ended.set()
        self.thread.join()
        if self.lost or self._late():  # then it is another's, or ends by itself very soon
            return
        try:
            self.store.write(LEASE, None, if_equal=self.generation).result(COUNTS)
        except (OSError, ValueError) as error:  # the run itself has come to its end
            print(
                f"{self.workdir}/{LEASE} could not be removed and counts for {COUNTS:.0f} s: "
                f"{_line(error)}",
                file=sys.stderr,
            )

    def _write(self, seconds: float) -> bool:
        """Whether nobody has written since. tensorstore tries again for a quarter of an hour, which
        is longer than a lease counts; TimeoutError, an OSError, after `seconds`."""
        content = json.dumps(self.mine | {"written": time.time()})
        began = _now()
        stamp = self.store.write(LEASE, content, if_equal=self.generation).result(seconds)
        if not stamp.generation:
            # The answer to a write that was made may be lost, and its repetition then refused.
            found = self.store.read(LEASE).result(seconds)
            if found.state != "value" or _loaded(found.value).get("id") != self.mine["id"]:
                return False
            stamp = found.stamp
        self.generation, self.renewed = stamp.generation, began
        return True

    def _renew(self) -> None:
        while not self.ended.wait(RENEWED):
            try:
                if not self._write(COUNTS - RENEWED):
                    self.lost = f"another run has taken or removed {LEASE}"
                    return
                self.failure = ""
            except (OSError, ValueError) as error:
                # Tried on: no other can have taken it where this write of its version succeeds.
                self.failure = f": {_line(error)}"


def _now() -> float:
    """Seconds, of a clock that goes on while a machine sleeps, where the system has one: others do
    not wait for it."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _holder() -> dict[str, Any]:
    now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": now}


def _machine() -> str:
    """The same for all processes that share their numbers with this one, for as long as they do;
    empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _dead(content: bytes) -> bool:
    """Whether a lease is that of a process of this machine that is no more. One whose number is
    another's by now counts as alive."""
    found = _loaded(content)
    machine, pid = found.get("machine"), found.get("pid")
    if not machine or machine != _machine() or type(pid) is not int or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # there is one, of another user
        return False
    return False


def _loaded(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _written(content: bytes) -> float:
    """When a lease was written; one that nobody can read counts as new."""
    found = _loaded(content).get("written")
    return found if isinstance(found, float) else time.time()


def _taken(workdir: epath.Path, content: bytes, what: str) -> UserError:
    found = _loaded(content)
    who = "process {pid} on {host}, started {started}".format_map(found) if found else "a process"
    return UserError(
        f"--workdir={workdir} is in use by another run: {who}; {what}, or name another --workdir"
    )


def _gone(workdir: epath.Path) -> UserError:
    return UserError(
        f"--workdir={workdir} was removed or replaced while the run was in it; nothing more can be "
        "saved. Put it back, or name another --workdir, and give the same command again"
    )


def _same(descriptor: int, path: Path) -> bool:
    """Whether `path` is still the file that is open."""
    try:
        there = path.stat()
    except OSError:
        return False
    ours = os.fstat(descriptor)
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


@contextlib.contextmanager
def _reported(workdir: epath.Path) -> Any:
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise (Unavailable if passes(error) else UserError)(
            f"--workdir={workdir} can not be written: {_line(error)}; name a folder or an existing "
            "bucket that this process may write to"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
