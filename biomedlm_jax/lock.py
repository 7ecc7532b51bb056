"""One run in a --workdir at a time.

In a local folder that is a lock of the operating system on WORKDIR/lock, which ends with the
process however that ends. On gs:// it is WORKDIR/lease.json, which its owner writes anew every 20
seconds and which counts for 90; every write names the version it replaces, so that of two runs that
find it old only one gets it.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
import weakref
from types import TracebackType
from typing import Any, Self

import tensorstore as ts
from etils import epath

from biomedlm_jax.entry import UserError

RENEWED, COUNTS = 20.0, 90.0  # seconds
FILE, LEASE = "lock", "lease.json"


class Lock:
    """with Lock(workdir): no other process has one of this folder, which is made if need be.

    A run that is refused later leaves nothing of it. `check` is for calling now and then.

    Raises:
      UserError: another run is in the folder; or it can not be written.
    """

    def __init__(self, workdir: epath.PathLike):
        self.workdir = epath.Path(workdir)
        cloud = str(self.workdir).startswith("gs://")
        self.kept = _Lease(self.workdir) if cloud else _File(self.workdir)

    def __enter__(self) -> Self:
        self.kept.take()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kept.release()

    def check(self) -> None:
        """Raises UserError where the folder is another run's by now, or is gone."""
        self.kept.check()


class _File:
    open_ones: "weakref.WeakSet[_File]" = weakref.WeakSet()

    def __init__(self, workdir: epath.Path):
        self.workdir, self.path = workdir, os.path.join(os.path.abspath(workdir), FILE)
        self.descriptor, self.made = -1, False

    def take(self) -> None:
        folder = os.path.dirname(self.path)
        with _reported(self.workdir):
            self.made = not os.path.isdir(folder)
            os.makedirs(folder, exist_ok=True)
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
        self.open_ones.add(self)

    def check(self) -> None:
        if not _same(self.descriptor, self.path):
            raise _gone(self.workdir)

    def release(self) -> None:
        self.open_ones.discard(self)
        if _same(self.descriptor, self.path):
            os.remove(self.path)
        os.close(self.descriptor)
        self.descriptor = -1
        if self.made:
            with contextlib.suppress(OSError):  # it is not empty: the run wrote something
                os.rmdir(os.path.dirname(self.path))


def _forget() -> None:
    """In a child by fork: a lock lasts until every copy of its descriptor is closed."""
    for held in _File.open_ones:
        os.close(held.descriptor)


os.register_at_fork(after_in_child=_forget)


class _Lease:
    def __init__(self, workdir: epath.Path):
        self.workdir = workdir
        bucket, _, prefix = str(workdir).removeprefix("gs://").partition("/")
        path = f"{prefix.rstrip('/')}/" if prefix else ""
        self.spec = {"driver": "gcs", "bucket": bucket, "path": path}
        self.mine = _holder() | {"id": uuid.uuid4().hex}
        self.lost, self.renewed, self.generation = "", 0.0, b""
        self.ended = threading.Event()

    def take(self) -> None:
        with _reported(self.workdir):
            self.store = ts.KvStore.open(self.spec).result()
            found = self.store.read(LEASE).result()
            if found.state == "value":
                age = time.time() - _written(found.value)
                if age < COUNTS:
                    when = f"it ends by itself {COUNTS - age:.0f} s from now if that run is dead"
                    raise _taken(self.workdir, found.value, when)
            self.generation = found.stamp.generation
            if not self._write():
                raise _taken(self.workdir, self.store.read(LEASE).result().value, "it was quicker")
        self.thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self.thread.start()

    def check(self) -> None:
        if self.lost:
            raise UserError(
                f"--workdir={self.workdir} is no longer this run's: {self.lost}. What was saved is "
                "whole; see that no other run is in it and give the same command again"
            )

    def release(self) -> None:
        self.ended.set()
        self.thread.join()
        if not self.lost:
            with _reported(self.workdir):
                self.store.write(LEASE, None, if_equal=self.generation).result()

    def _write(self) -> bool:
        """Whether nobody has written since."""
        content = json.dumps(self.mine | {"written": time.time()})
        stamp = self.store.write(LEASE, content, if_equal=self.generation).result()
        if not stamp.generation:
            # The answer to a write that was made may be lost, and its repetition then refused.
            found = self.store.read(LEASE).result()
            if found.state != "value" or _loaded(found.value).get("id") != self.mine["id"]:
                return False
            stamp = found.stamp
        self.generation, self.renewed = stamp.generation, time.monotonic()
        return True

    def _renew(self) -> None:
        while not self.ended.wait(RENEWED):
            try:
                if not self._write():
                    self.lost = f"another run has taken or removed {LEASE}"
                    return
            except (OSError, ValueError) as error:
                if time.monotonic() - self.renewed > COUNTS - RENEWED:
                    self.lost = f"{LEASE} could not be renewed in time: {error}"
                    return


def _holder() -> dict[str, Any]:
    now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": now}


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


def _same(descriptor: int, path: str) -> bool:
    """Whether `path` is still the file that is open."""
    try:
        there = os.stat(path)
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
        reason = " ".join(str(error).split())
        raise UserError(
            f"--workdir={workdir} can not be written: {reason[:300]}; name a folder or an existing "
            "bucket that this process may write to"
        ) from error
