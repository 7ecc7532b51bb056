"""A web server with NCBI's layout that fails on demand, for the tests of `data.fetch`.

It serves what is in `files` as Apache does: an index of each folder, ETag, Last-Modified, Range,
If-Range, If-None-Match, connections that stay open. A fault is a function that answers a request in
its own way; those of `faults[path]` are used up one by one, that of `always[path]` never is.
"""

import collections
import contextlib
import email.utils
import gzip
import hashlib
import http.server
import random
import re
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.test_jats import article
from tests.test_parse import archive, citation

HEADER = "Article File,Article Citation,AccessionID,LastUpdated (YYYY-MM-DD HH:MM:SS),PMID,License,"
OLD = email.utils.formatdate(time.time() - 86400, usegmt=True)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Server"  # pyright: ignore

    def do_GET(self):
        with self.server.busy():
            self.close_connection = False
            seen = self.server.requests
            seen.append(Request(self.path, dict(self.headers)))
            self.request_seen = seen[-1]
            faults = self.server.faults[self.path]
            fault = faults.pop(0) if faults else self.server.always.get(self.path, serve)
            fault(self)

    def answer(self, code, headers=(), body=b"", length=None):
        self.request_seen.status = code
        self.send_response(code)
        for name, value in dict(headers).items():
            self.send_header(name, value)  # as Latin-1
        if code != 304 and "Transfer-Encoding" not in dict(headers):
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.request_seen.sent += len(body)  # before the client can see them
        self.wfile.write(body)

    def content(self):
        files = self.server.files
        if self.path.endswith("/"):
            inside = [f for f in files if f.rsplit("/", 1)[0] + "/" == self.path]
            return self.server.pages.get(self.path, index(files, inside) if inside else None)
        return files.get(self.path)

    def log_message(self, *_):
        pass


class Request:
    def __init__(self, path, headers):
        self.path, self.headers, self.status, self.sent = path, headers, 0, 0


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        self.released = threading.Event()  # what a stall waits for
        self._lock = threading.Lock()
        self.reset()

    def reset(self):
        self.files: dict[str, bytes] = {}
        self.pages: dict[str, bytes] = {}  # in place of an index
        self.faults: dict[str, list[Callable]] = collections.defaultdict(list)
        self.always: dict[str, Callable] = {}
        self.requests: list[Request] = []
        self.validators = {"ETag", "Last-Modified"}
        self.modified = OLD
        self.most_busy = self._busy = 0
        self.released.clear()

    @property
    def url(self):
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    @contextlib.contextmanager
    def busy(self):
        with self._lock:
            self._busy += 1
            self.most_busy = max(self.most_busy, self._busy)
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1

    def handle_error(self, *_):  # the client has gone
        pass

    def encrypt(self, certificate: Path, key: Path):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.scheme = "https"

    def to(self, ending):
        """The requests of paths with this ending."""
        return [request for request in self.requests if request.path.endswith(ending)]

    def add_citations(self, folder, numbers, *, records=2, filler=0):
        """PubMed's files of these numbers; filler: bytes that each has besides."""
        for number in numbers:
            noise = random.Random(number).randbytes(filler).hex()
            texts = "".join(citation(100 * number + i) for i in range(records))
            xml = f"<PubmedArticleSet>{texts}<!-- {noise} --></PubmedArticleSet>"
            name = f"pubmed25n{number:04}.xml.gz"
            self.put_citations(f"/{folder}/{name}", gzip.compress(xml.encode(), 1, mtime=0))
            self.files[f"/{folder}/{name.removesuffix('.xml.gz')}_stats.html"] = b"<html></html>"

    def put_citations(self, path, content):
        self.files[path] = content
        line = f"MD5({path.rsplit('/', 1)[1]})= {hashlib.md5(content).hexdigest()}\n"
        self.files[path + ".md5"] = line.encode()

    def add_archive(self, path, numbers, *, listed=None, noise=0):
        """An archive of PMC with the articles of these numbers, and the list of it."""
        folder = "PMC000xxxxxx"
        body = f"<p>{random.Random(noise).randbytes(noise // 2).hex()} Words.</p>"
        members = {f"{folder}/PMC{n}.xml": article(n, body, pmid=None) for n in numbers}
        self.files[path] = archive(members)
        rows = [
            f'{folder}/PMC{n}.xml,"J. 2024 Jan 1; 1:1",PMC{n},"2024-02-07 23:35:31",{n},"CC BY",no'
            for n in (numbers if listed is None else listed)
        ]
        lists = "\n".join([HEADER + "Retracted", *rows, ""]).encode()
        self.files[path.replace(".tar.gz", ".filelist.csv")] = lists
        self.files[path.replace(".tar.gz", ".filelist.txt")] = b"not wanted"


def index(files, inside):
    rows = [
        f'<a href="{(n := path.rsplit("/", 1)[1])}">{n}</a>   2025-01-11 12:33  {size(files[path])}'
        for path in sorted(inside)
    ]
    page = "<pre>Name    Last modified    Size\n<a href='/'>Parent Directory</a>   -\n"
    return f"<html><body>{page}{chr(10).join(rows)}\n</pre></body></html>".encode()


def size(content):
    return f"{len(content) / 1024:.0f}K" if len(content) >= 10240 else str(len(content))


# ---- the ways to answer


def described(handler, content):
    tags = {
        "ETag": f'"{hashlib.md5(content).hexdigest()}"',
        "Last-Modified": handler.server.modified,
    }
    return {name: tags[name] for name in handler.server.validators}


def serve(handler, *, content=None, if_range=True, ranges=True, until=None):
    """As it should be. if_range, ranges: whether the server knows these. until: bytes of the body
    after which the connection breaks off."""
    content = handler.content() if content is None else content
    if content is None:
        return handler.answer(404)
    asked, tags = handler.headers, described(handler, content)
    if asked["If-None-Match"] and asked["If-None-Match"] == tags.get("ETag"):
        return handler.answer(304, tags)
    if asked["If-Modified-Since"] and asked["If-Modified-Since"] == tags.get("Last-Modified"):
        return handler.answer(304, tags)
    begin = re.fullmatch(r"bytes=(\d+)-", asked["Range"] or "")
    if not (ranges and begin) or (if_range and asked["If-Range"] not in tags.values()):
        body, code = content, 200
    elif int(begin[1]) >= len(content):
        return handler.answer(416, {"Content-Range": f"bytes */{len(content)}"})
    else:
        body, code = content[int(begin[1]) :], 206
        tags["Content-Range"] = f"bytes {begin[1]}-{len(content) - 1}/{len(content)}"
    handler.answer(code, tags, body[:until], len(body))
    handler.close_connection = until is not None
    return None


def part(handler, *, begin=None, length=None):
    """Another range than was asked for."""
    content = handler.content()
    begin = int(handler.headers["Range"][6:-1]) if begin is None else begin
    end = min(len(content), begin + (length or len(content)))
    stated = {"Content-Range": f"bytes {begin}-{end - 1}/{len(content)}"}
    handler.answer(206, {**described(handler, content), **stated}, content[begin:end])


def drop(after):
    return lambda handler: serve(handler, until=after)


def status(code, **headers):
    def fault(handler):
        handler.answer(code, {name.replace("_", "-"): value for name, value in headers.items()})

    fault.code = code
    return fault


def cut(handler, headers, after):
    """With these headers in place of the usual ones; the connection breaks off."""
    content = handler.content()
    handler.answer(200, headers, content[:after], len(content))
    handler.close_connection = True


def garbled(handler):
    """Other bytes, as many as stated."""
    serve(handler, content=bytes(255 - byte for byte in handler.content()))


def without_ranges(handler):
    serve(handler, ranges=False)


def unconditional(handler):
    content = handler.content()
    handler.answer(200, described(handler, content), content)


def vanish(handler):
    """The connection ends before an answer."""
    handler.close_connection = True


def stall(after):
    def fault(handler):
        serve(handler, until=after)
        handler.server.released.wait(60)

    return fault


def in_pieces(handler):
    """No size is stated, and the end is missing."""
    content = handler.content()
    handler.answer(200, {**described(handler, content), "Transfer-Encoding": "chunked"})
    for begin in range(0, len(content) // 2, 1000):
        handler.wfile.write(b"3e8\r\n" + content[begin : begin + 1000] + b"\r\n")
    handler.close_connection = True


def in_chunks(*lines):
    """These lines as a body of chunks; a number stands for the size of the next."""

    def fault(handler):
        handler.answer(200, {"Transfer-Encoding": "chunked"})
        handler.wfile.write(b"\r\n".join(lines))
        handler.close_connection = True

    return fault


def endless(code, most, **headers):
    """A body without a length: zeros until the client goes, or `most` of them were sent."""

    def fault(handler):
        stated = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.answer(code, {**stated, "Transfer-Encoding": "chunked"})
        while handler.request_seen.sent < most:
            handler.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
            handler.request_seen.sent += 1 << 16
        handler.wfile.write(b"0\r\n\r\n")

    return fault


def changing(path, content, after):
    """Breaks off, and then there is another version."""

    def fault(handler):
        serve(handler, until=after)
        handler.server.put_citations(path, content)

    return fault


@contextlib.contextmanager
def running():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
