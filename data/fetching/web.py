"""Requests to a web server that may be busy, slow, or break off: for `download.py` and `fetch.py`.

What can pass is tried again: dropped connections, bodies shorter than stated, time-outs, 5xx, 429.
Between two attempts it waits, each time twice as long, and at least as long as the server asks.
"""

import contextlib
import dataclasses
import email.utils
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

_HEADERS = {"User-Agent": "biomedlm_jax (data.fetch)", "Accept-Encoding": "identity"}
_CHUNK = 1 << 16
_SMALL = 64 << 20  # bytes of a page that is read into memory
_REDIRECTS = 5
_LONGEST_DELAY = 120.0  # seconds between two attempts, where the server asks for no more
_LONGEST_WISH = 3600.0  # seconds that a server may ask for
_HEADWAY = 1 << 20  # new bytes after which earlier failures no longer count

T = TypeVar("T")


class FetchError(Exception):
    """A file can not be had; the message says why."""


class StoppedError(Exception):
    """Another thread ended the work."""


class TransientError(Exception):
    """Another attempt may go better. after: seconds that the server asks to wait."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


@dataclasses.dataclass(frozen=True)
class Settings:
    """retries: attempts after the first, as long as these bring less than 1 MiB of new bytes.
    base_delay: seconds before the first retry, doubled before each further one. timeout: seconds
    without a byte. sleep: how to wait, where that is not by the clock."""

    retries: int = 5
    base_delay: float = 1.0
    timeout: float = 60.0
    sleep: Callable[[float], object] | None = None


class _Session(requests.Session):
    """Follows no redirect, and does not read it either: where it leads is for `_led` to say."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


class Client:
    """Requests from several threads, each with its own connection, in a `with` block. A server that
    asks one of them to wait (Retry-After) is left alone by all.

    stop: set by whoever wants the work to end; a request or a wait then raises StoppedError.
    say: shows a line to the user.
    """

    def __init__(
        self, settings: Settings, stop: threading.Event, say: Callable[[str], object]
    ) -> None:
        self._settings = settings
        self._stop = stop
        self._say = say
        self._threads = threading.local()
        self._sessions: list[requests.Session] = []
        self._open: set[requests.Response] = set()
        self._not_before = 0.0  # of time.monotonic

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        for session in self._sessions:
            session.close()

    def end(self) -> None:
        """Sets `stop`, and wakes those who wait for a server's bytes."""
        self._stop.set()
        for response in list(self._open):
            # One that has come to its end in this moment has nobody to wake.
            with contextlib.suppress(ValueError, RuntimeError, OSError):
                response.raw.shutdown()

    def read(self, url: str) -> bytes:
        """A page or small file.

        Raises:
          FetchError: it can not be had, or is larger than 64 MiB.
        """

        def attempt() -> bytes:
            with self.opened(url, {}) as response:
                if response.status_code != 200:
                    raise FetchError(f"unexpected answer {status(response)}")
                found = bytearray()
                for chunk in self.chunks(response):
                    found += chunk
                    if len(found) > _SMALL:
                        raise FetchError(f"over {_SMALL} bytes, and expected to be small")
                return bytes(found)

        return self.persist(urlsplit(url).path, attempt, lambda: 0)

    def persist(self, name: str, attempt: Callable[[], T], furthest: Callable[[], int]) -> T:
        """Attempts until one goes well.

        name: for messages. furthest: bytes that were reached so far.

        Raises:
          FetchError: of an attempt, or after the last retry.
        """
        failures, before = 0, furthest()
        while True:
            try:
                return attempt()
            except TransientError as again:
                if furthest() - before >= _HEADWAY:
                    failures, before = 0, furthest()
                failures += 1
                if failures > self._settings.retries:
                    raise FetchError(f"{again} (attempts: {failures})") from again
                if again.after > _LONGEST_WISH:
                    raise FetchError(f"{again}; asks to wait {again.after:.0f} s") from again
                # Exponential, with jitter so that several clients do not come back together.
                delay = self._settings.base_delay * 2 ** min(failures - 1, 30)
                delay = max(min(delay, _LONGEST_DELAY) * random.uniform(0.5, 1), again.after)
                self._not_before = max(self._not_before, time.monotonic() + again.after)
                self._say(f"{name}: {again}; again in {delay:.1f} s")
                self._wait(delay)

    @contextlib.contextmanager
    def opened(self, url: str, headers: dict[str, str]) -> Iterator[requests.Response]:
        """The answer of the server, or of the one that it leads to; its body is not read yet.

        Raises:
          TransientError: the connection could not be made, or the server is not able to answer now.
          FetchError: any other status over 399 but 416, a redirect that is not followed, or an
            address that is none.
        """
        for _ in range(_REDIRECTS + 1):
            self._wait(self._not_before - time.monotonic())
            with self._get(url, headers) as response:
                if response.is_redirect:
                    url = _led(url, response.headers["location"])
                    continue
                code = response.status_code
                if code in (408, 429) or code >= 500:
                    raise TransientError(status(response), _retry_after(response))
                if code >= 400 and code != 416:
                    raise FetchError(status(response))
                encoding = response.headers.get("content-encoding", "identity").lower()
                packed = urlsplit(url).path.endswith(".gz") and encoding in ("gzip", "x-gzip")
                if encoding != "identity" and not packed:
                    raise FetchError(f"was sent as {encoding}, which was not asked for")
                self._open.add(response)
                try:
                    yield response
                finally:
                    self._open.discard(response)
                return
        raise FetchError(f"over {_REDIRECTS} redirects")

    def chunks(self, response: requests.Response) -> Iterator[bytes]:
        """The body as it is sent.

        Raises:
          TransientError: it breaks off, or is shorter than stated.
        """
        try:
            for chunk in response.raw.stream(_CHUNK, decode_content=False):
                yield chunk
                self._wait(0)
        except (urllib3.exceptions.HTTPError, ValueError) as error:  # ValueError: a size below 0
            raise TransientError(_plainly(error)) from error

    def _get(self, url: str, headers: dict[str, str]) -> requests.Response:
        if not hasattr(self._threads, "session"):
            self._threads.session = _Session()
            self._sessions.append(self._threads.session)
        try:
            return self._threads.session.get(
                url,
                headers={**_HEADERS, **headers},
                stream=True,
                allow_redirects=False,
                timeout=self._settings.timeout,
            )
        except (requests.ConnectionError, requests.Timeout) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise FetchError(f"the server's certificate is not trusted: {error}") from error
            raise TransientError(_plainly(error)) from error
        # Such as an impossible address; not all of these become the library's own errors.
        except (requests.RequestException, urllib3.exceptions.HTTPError, UnicodeError) as error:
            raise FetchError(str(error)) from error

    def _wait(self, seconds: float) -> None:
        if seconds > 0:
            (self._settings.sleep or self._stop.wait)(seconds)
        if self._stop.is_set():
            raise StoppedError


def status(response: requests.Response) -> str:
    return f"{response.status_code} {response.reason}"


def http_time(text: str) -> datetime | None:
    """A date as HTTP writes it (RFC 9110, 5.6.7); None where it is none."""
    try:
        found = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _retry_after(response: requests.Response) -> float:
    """Seconds, from either form of the header (RFC 9110, 10.2.3)."""
    wish = response.headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", wish):
        return float(wish)
    until = http_time(wish)
    return max(0.0, (until - datetime.now(UTC)).total_seconds()) if until else 0.0


def _led(url: str, location: str) -> str:
    """Where a redirect leads; never from an encrypted connection to one that is not.

    location: the header, whose bytes were read as Latin-1.

    Raises:
      FetchError: it is no address, or leads to such a connection.
    """
    try:
        found = urljoin(url, location.encode("latin-1").decode())
        scheme = urlsplit(found).scheme
    except ValueError as error:
        raise FetchError(f"is redirected to {location!r}, which is no address: {error}") from error
    allowed = ("https",) if urlsplit(url).scheme == "https" else ("https", "http")
    if scheme not in allowed:
        raise FetchError(f"is redirected to {found}, which is not {' or '.join(allowed)}")
    return found


def _plainly(error: BaseException) -> str:
    """The first cause in a chain of a library's errors, which says what happened."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return str(error) or type(error).__name__
