"""A file from a web server to a disk, whole or not at all.

    NAME.partial, NAME.partial.json   what has come so far, and of which version of the file it is
    NAME, NAME.fetched.json           the file, and what is known of it

An attempt goes on where the last one stopped if the server says that its file is still the same one
(Range and If-Range, RFC 9110, 14.2 and 13.1.5), and begins again otherwise. The file gets its name
when its size is the stated one and the caller's check is content. By NAME.fetched.json a later run
asks whether the server has another version; a file with another size or time than is said there was
changed on the disk, and is checked again.
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
from data.fetching.web import Client, FetchError, TransientError

RECORD = ".fetched.json"
PARTIAL = ".partial"

Record = dict[str, Any]
Check = Callable[[Path], Record]
Moved = Callable[[int, int | None], object]

_DESCRIBED = {"url": (str,), "bytes": (int, type(None)), "etag": (str,), "last_modified": (str,)}
_SENT = ("etag", "last_modified", "validator")  # back to the server, in headers
_FORM: dict[str, tuple[type, ...]] = {  # types of what a record holds, the checks' facts as well
    **_DESCRIBED,
    "validator": (str,),
    "mtime_ns": (int,),
    "md5": (str,),
    "list": (str,),
    "articles": (int,),
    "missing": (list,),
    "unlisted": (list,),
}


class ContentError(Exception):
    """What was fetched is not what it should be; the message says how that shows."""


def fetch(
    client: Client,
    url: str,
    target: Path,
    check: Check,
    moved: Moved,
    *,
    most: int,
    unless: Record | None = None,
) -> tuple[bool, Record]:
    """Makes `target` what the server has; returns whether it was not that before, and its record.

    check: looks at all of the bytes, under another name than `target`; returns what the record
      shall tell of them, and raises ContentError where they must be fetched again.
    moved: is told of the bytes that have come, and of the bytes in all if that is known.
    most: bytes that may come where the server does not say how many there are.
    unless: the record of what `target` is; only another version is then fetched.

    Raises:
      web.FetchError: after the last retry, or at once where none would help, as when more comes
        than there is.
      UserError: the disk is full or can not be written.
    """
    try:
        transfer = _Transfer(client, url, target, check, moved, most, unless or {})
        return client.persist(target.name, transfer.attempt, lambda: transfer.furthest)
    except OSError as error:
        raise UserError(
            f"--output: {target} can not be written: {error.strerror or error}; make room, or "
            "name a folder on another disk; the same command goes on where this one stopped"
        ) from error


def record_of(target: Path) -> Record:
    """What is known of a file that was fetched; empty if it is not there as it was then, by its
    size and the time of its last change."""
    record = _read_record(target.with_name(target.name + RECORD))
    if not record or not target.is_file():
        return {}
    found = target.stat()
    same = (found.st_size, found.st_mtime_ns) == (record["bytes"], record.get("mtime_ns"))
    return record if same else {}


def restate(target: Path, record: Record) -> Record:
    """Replaces what is known of a file that was fetched."""
    _write_record(target.with_name(target.name + RECORD), record)
    return record


class _Transfer:
    """The state of one file between attempts; what is on the disk outlives the process."""

    def __init__(
        self,
        client: Client,
        url: str,
        target: Path,
        check: Check,
        moved: Moved,
        most: int,
        unless: Record,
    ) -> None:
        self.furthest = 0  # bytes that an attempt has reached
        self._most = most
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

    def attempt(self) -> tuple[bool, Record]:
        """Goes on as far as it can; returns what `fetch` does.

        Raises:
          TransientError: it can not go further now.
          FetchError: more comes than there is.
        """
        if self._offset and self._offset == self._version["bytes"]:
            # An earlier run ended before it had looked at them; if they are wrong, this one begins.
            with contextlib.suppress(TransientError):
                return True, self._finish()
        with self._client.opened(self._url, self._conditions()) as response:
            if not self._begins(response):
                return False, self._unless
            if record := self._adopted():
                return False, record
            with self._partial.open("ab") as file:
                for chunk in self._client.chunks(response):
                    self._require_end(self._offset + len(chunk))
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
        return True, self._finish()

    def _require_end(self, count: int) -> None:
        """Of a server that goes on and on.

        Raises:
          FetchError: these are more bytes than there can be; nothing is left of them then.
        """
        stated = self._version["bytes"]
        if count <= (self._most if stated is None else stated):
            return
        self._discard()
        if stated is None:
            raise FetchError(f"over {self._most:,} bytes came, and the server states no number")
        raise FetchError(f"over {stated:,} bytes came, which is all that the server states")

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
            self._version = {"url": self._url, **seen}
            self._version["validator"] = _validator(seen, response.headers.get("date", ""))
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
        number = r"(\d{1,18})"
        found = re.fullmatch(
            rf"bytes {number}-\d{{1,18}}/(?:{number}|\*)", stated.strip(), re.ASCII
        )
        total = int(found[2]) if found and found[2] else self._version["bytes"]
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
        # Of what has no checksum on the server, only the one that was taken when it came can tell.
        before = _read_record(self._record_file).get("md5")
        if before and before != facts.get("md5", before):
            return None
        return self._keep(facts)

    def _keep(self, facts: Record) -> Record:
        kept = ("url", "bytes", "etag", "last_modified")
        changed = {"mtime_ns": self._target.stat().st_mtime_ns}
        record = {**{key: self._version[key] for key in kept}, **changed, **facts}
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
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    known = isinstance(found, dict) and _DESCRIBED.keys() <= found.keys()
    return found if known and all(_good(key, value) for key, value in found.items()) else {}


def _good(key: str, value: Any) -> bool:
    """Whether an entry of a record is of its form."""
    if type(value) is list:
        good = all(type(name) is str for name in value)
    elif key in _SENT:
        good = type(value) is str and _sendable(value)
    else:
        good = True
    return good and type(value) in _FORM.get(key, (type(value),))


def _sendable(text: str) -> bool:
    """Whether a header can hold it."""
    return text.isascii() and text.isprintable()


def _write_record(file: Path, record: Record) -> None:
    beside = file.with_name(file.name + ".new")
    beside.write_text(json.dumps(record, indent=1) + "\n")
    beside.rename(file)


def _described(response: requests.Response) -> Record:
    """What tells two versions of a file apart. bytes: of the body, if that is stated."""
    length = response.headers.get("content-length", "")
    etag, modified = (response.headers.get(name, "") for name in ("etag", "last-modified"))
    return {
        "bytes": int(length) if re.fullmatch(r"\d{1,18}", length) else None,
        "etag": etag if _sendable(etag) else "",
        "last_modified": modified if _sendable(modified) else "",
    }


def _validator(seen: Record, date: str) -> str:
    """What If-Range may name: an ETag that is not weak; without any, a Last-Modified that was at
    least a second old when it was sent (RFC 9110, 13.1.5 and 8.8.2.2). Empty if there is none."""
    if etag := seen["etag"]:
        return "" if etag.startswith("W/") else etag
    modified = seen["last_modified"]
    then, now = web.http_time(modified), web.http_time(date)
    return modified if then and now and now - then >= timedelta(seconds=1) else ""
