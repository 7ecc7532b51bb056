"""Files that grow while a run goes on: lines of JSON, on a disk or on gs://.

On a disk a line is appended when it is written. An object on gs:// can not grow: its lines are
kept in memory and it is written anew, in the background and at most once a minute, and whenever
`flush` is called.
"""

import contextlib
import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from etils import epath

from biomedlm_jax.entry import Unavailable, UserError, in_cloud, passes

SECONDS = 60  # between two uploads


def read(file: epath.Path) -> list[dict[str, Any]]:
    """The lines of a file, without those that were cut or damaged while they were written, as by a
    machine that lost its power; none without a file."""
    text = file.read_bytes() if file.exists() else b""
    found = []
    for line in text.splitlines(keepends=True):
        with contextlib.suppress(ValueError):
            if line.endswith(b"\n") and isinstance(content := json.loads(line), dict):
                found.append(content)
    return found


class Journal:
    """Appends to `file`, of whose lines those stay that `keep` accepts.

    Raises:
      UserError: from all methods, it can not be written, Unavailable where that may pass. What was
        to be is not lost by that: who goes on nevertheless writes it with the next line.
    """

    def __init__(self, file: epath.Path, keep: Callable[[dict], bool] = lambda line: True):
        self.file, self.remote = file, in_cloud(file)
        kept: list[dict[str, Any]] = []
        self._try(lambda: kept.extend(line for line in read(file) if keep(line)))
        # On gs:// all lines, on a disk those that are not written yet.
        self.text = "".join(json.dumps(line) + "\n" for line in kept)
        self.uploads, self.uploaded = ThreadPoolExecutor(1, thread_name_prefix="journal"), 0.0
        self.pending: Future | None = None
        if self.remote:
            self.flush()
        else:
            partial = file.with_name(file.name + ".partial")
            self._try(lambda: partial.write_text(self.text))
            self._try(lambda: partial.replace(file))
            self.text = ""

    def write(self, line: dict[str, Any]) -> None:
        self.text += json.dumps(line) + "\n"
        if not self.remote:
            self._try(lambda: _append(self.file, self.text))
            self.text = ""
            return
        if time.monotonic() - self.uploaded > SECONDS and (not self.pending or self.pending.done()):
            self._upload()

    def flush(self) -> None:
        """All lines are where others can read them."""
        if self.remote:
            self._upload()
            self._uploaded()
        elif self.text:
            self._try(lambda: _append(self.file, self.text))
            self.text = ""

    def close(self) -> None:
        self.flush()
        self.uploads.shutdown()

    def _upload(self) -> None:
        self._uploaded()
        self.uploaded, text = time.monotonic(), self.text
        self.pending = self.uploads.submit(lambda: self.file.write_text(text))

    def _uploaded(self) -> None:
        """Waits for the last upload; its failure is told once."""
        pending, self.pending = self.pending, None
        self._try(lambda: pending.result() if pending else None)

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            if not (isinstance(error, OSError) or passes(error)):
                raise
            raise (Unavailable if passes(error) else UserError)(
                f"{self.file.name} can not be written to --workdir={self.file.parent}: "
                f"{getattr(error, 'strerror', None) or error}; its checkpoints are whole. "
                "Remove the cause and give the same command again"
            ) from error


def _append(file: epath.Path, text: str) -> None:
    """All of it or nothing: half a line would be in the way of the next."""
    with Path(file).open("ab", buffering=0) as opened:
        size = opened.tell()
        try:
            view = memoryview(text.encode())
            while view:
                view = view[opened.write(view) :]
        except OSError:
            opened.truncate(size)
            raise
