"""A file from a web server to a disk, whole or not at all.

    NAME.partial, NAME.partial.json   what has come so far, and of which version of the file it is
    NAME, NAME.fetched.json           the file, and what is known of it

An attempt goes on where the last one stopped if the server says that its file is still the same one
(Range and If-Range, RFC 9110, 14.2 and 13.1.5), and begins again otherwise. The file gets its name
when its size is the stated one and the caller's check is content. By NAME.fetched.json a later run
asks whether the server has another version.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import requests

from biomedlm_jax.entry import UserError
from data.fetching import web
from data.fetching.web import Client, TransientError

RECORD = ".fetched.json"
PARTIAL = ".partial"

Record = dict[str, Any]
Check = Callable[[Path], Record]
Moved = Callable[[int, int | None], object]


class ContentError(Exception):
    """What was fetched is not what it should be; the message says how that shows."""


def fetch(
    client: Client,
    url: str,
    target: Path,
    check: Check,
    moved: Moved,
    *,
    unless: Record | None = None,
) -> Record | None:
    """Makes `target` what the server has, and returns its record; None if it was that before.

    check: looks at all of the bytes, under another name than `target`; returns what the record
      shall tell of them, and raises ContentError where they must be fetched again.
    moved: is told of the bytes that have come, and of the bytes in all if that is known.
    unless: the record of what `target` is; only another version is then fetched.

    Raises:
      web.FetchError: after the last retry, or at once where none would help.
      UserError: the disk is full or can not be written.
    """
    try:
        transfer = _Transfer(client, url, target, check, moved, unless or {})
        return client.persist(target.name, transfer.attempt, lambda: transfer.furthest)
    except OSError as error:
        raise UserError(
            f"--output: {target} can not be written: {error.strerror or error}; make room, or "
            "name a folder on another disk; the same command goes on where this one stopped"
        ) from error


def record_of(target: Path) -> Record:
    """What is known of a file that was fetched; empty if it is not there as it was then."""
    record = _read_record(target.with_name(target.name + RECORD))
    there = target.is_file() and target.stat().st_size == record.get("bytes")
    return record if there else {}


def restate(target: Path, record: Record) -> Record:
    """Replaces what is known of a file that was fetched."""
    _write_record(target.with_name(target.name + RECORD), record)
    return record


class _Transfer:
    """The state of one file between attempts; what is on the disk outlives the process."""

    def __init__(
        self, client: Client, url: str, target: Path, check: Check, moved: Moved, unless: Record
    ) -> None:
        self.furthest = 0  # bytes that an attempt has reached
        self._client, self._url, self._check, self._moved = client, url, check, moved
        self._unless = unless
        self._target = target
        self._record_file = target.with_name(target.name + RECORD)
        self._partial = target.with_name(target.name + PARTIAL)
        self._version_file = target.with_name(target.name + PARTIAL + ".json")
        self._look_at_present = target.exists() and not record_of(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._version = _read_record(self._version_file)
        self._offset = self._partial.stat().st_size if self._partial.exists() else 0
        total = self._version.get("bytes")
        if (
            not self._offset
            or self._version.get("url") != url
            or (total is not None and self._offset > total)
        ):
            self._discard()

    def attempt(self) -> Record | None:
        """Goes on as far as it can; returns what `fetch` does.

        Raises:
          TransientError: it can not go further now.
        """
        if self._offset and self._offset == self._version["bytes"]:
            # An earlier run ended before it had looked at them; if they are wrong, this one begins.
            with contextlib.suppress(TransientError):
                return self._finish()
        with self._client.opened(self._url, self._conditions()) as response:
            if not self._begins(response):
                return None
            if record := self._adopted():
                return record
            with self._partial.open("ab") as file:
                for chunk in self._client.chunks(response):
                    file.write(chunk)
                    self._offset += len(chunk)
                    self.furthest = max(self.furthest, self._offset)
                    self._moved(self._offset, self._version["bytes"])
                file.flush()
                os.fsync(file.fileno())  # the name must not outlive the bytes
        if self._version["bytes"] is None:
            self._version["bytes"] = self._offset
        elif self._offset != self._version["bytes"]:
            raise TransientError(f"ended after {self._offset} of {self._version['bytes']} bytes")
        return self._finish()

    def _finish(self) -> Record:
        """Gives the file its name.

        Raises:
          TransientError: its bytes are wrong; they are gone then.
        """
        try:
            facts = self._check(self._partial)
        except ContentError as error:
            self._discard()
            raise TransientError(str(error)) from error
        # Without its record the old version is no longer taken for what the server has.
        self._record_file.unlink(missing_ok=True)
        self._partial.rename(self._target)
        return self._keep(facts)

    def _conditions(self) -> dict[str, str]:
        """Headers that ask for what is missing only."""
        if self._offset and not self._version.get("validator"):
            self._discard()  # nothing would show that the rest is of the same version
        if self._offset:
            return {"Range": f"bytes={self._offset}-", "If-Range": self._version["validator"]}
        if etag := self._unless.get("etag"):
            return {"If-None-Match": etag}
        if modified := self._unless.get("last_modified"):
            return {"If-Modified-Since": modified}
        return {}

    def _begins(self, response: requests.Response) -> bool:
        """Takes note of an answer; False if `target` is what the server has."""
        code, seen = response.status_code, _described(response)
        if code == 304 and self._unless and not self._offset:
            return False
        if code == 206 and self._offset:
            self._require_same_version(response, seen)
        elif code == 200:
            self._discard()
            marked = seen["etag"] or seen["last_modified"]
            if marked and all(self._unless.get(key) == seen[key] for key in seen):
                return False
            self._version = {"url": self._url, **seen, "validator": _validator(response.headers)}
            _write_record(self._version_file, self._version)
        elif code == 416:
            self._discard()
            raise TransientError("the server has no bytes after those that came before")
        else:
            raise TransientError(f"unexpected answer {web.status(response)}")
        self._moved(self._offset, self._version["bytes"])
        return True

    def _require_same_version(self, response: requests.Response, seen: Record) -> None:
        """Of a 206, whatever the server made of If-Range."""
        stated = response.headers.get("content-range", "")
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", stated.strip())
        total = int(found[2]) if found and found[2] != "*" else self._version["bytes"]
        if self._version["bytes"] is None:
            self._version["bytes"] = total
        changed = total != self._version["bytes"] or any(
            seen[key] and seen[key] != self._version[key] for key in ("etag", "last_modified")
        )
        if not found or int(found[1]) != self._offset or changed:
            self._discard()
            raise TransientError(
                f"was sent {stated or 'a part'}, of another version or not as asked for"
            )

    def _adopted(self) -> Record | None:
        """The record of a file that was there without one, if it is right: another program fetched
        it, or a run was killed just before it wrote the record."""
        if not self._look_at_present or self._target.stat().st_size != self._version["bytes"]:
            return None
        self._look_at_present = False
        try:
            facts = self._check(self._target)
        except ContentError:
            return None
        return self._keep(facts)

    def _keep(self, facts: Record) -> Record:
        kept = ("url", "bytes", "etag", "last_modified")
        record = {**{key: self._version[key] for key in kept}, **facts}
        self._version_file.unlink(missing_ok=True)
        return restate(self._target, record)

    def _discard(self) -> None:
        self._partial.unlink(missing_ok=True)
        self._version_file.unlink(missing_ok=True)
        self._version, self._offset = {}, 0


def _read_record(file: Path) -> Record:
    """Empty if there is none, or it is damaged."""
    try:
        found = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    known = isinstance(found, dict) and {"url", "bytes", "etag", "last_modified"} <= found.keys()
    return found if known else {}


def _write_record(file: Path, record: Record) -> None:
    beside = file.with_name(file.name + ".new")
    beside.write_text(json.dumps(record, indent=1) + "\n")
    beside.rename(file)


def _described(response: requests.Response) -> Record:
    """What tells two versions of a file apart. bytes: of the body, if that is stated."""
    length = response.headers.get("content-length", "")
    return {
        "bytes": int(length) if re.fullmatch(r"\d{1,18}", length) else None,
        "etag": response.headers.get("etag", ""),
        "last_modified": response.headers.get("last-modified", ""),
    }


def _validator(headers: Any) -> str:
    """What If-Range may name: an ETag that is not weak; without any, a Last-Modified that was at
    least a second old when it was sent (RFC 9110, 13.1.5 and 8.8.2.2). Empty if there is none."""
    if etag := headers.get("etag", ""):
        return "" if etag.startswith("W/") else etag
    modified = headers.get("last-modified", "")
    then, now = web.http_time(modified), web.http_time(headers.get("date", ""))
    return modified if then and now and now - then >= timedelta(seconds=1) else ""
