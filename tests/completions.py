"""A completion server inside the tests' own process, for tests of `serving`."""

import asyncio
import contextlib
import http.client
import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

from biomedlm_jax import serve
from biomedlm_jax.generate import Engine
from biomedlm_jax.serving import guard
from biomedlm_jax.serving.app import Patience
from biomedlm_jax.serving.server import Server, url

NAME = "tiny"
PATIENCE = Patience(header=30, body=30, reader=30)
# What the server does by itself; a test's own settings go on top.
SETTINGS = dict(queue=256, grace=20, patience=PATIENCE)


class Served:
    """A server that answers. `error`: what its `run` raised, once it has ended."""

    def __init__(self, engine: Engine, token: str | None, settings: dict[str, Any]) -> None:
        self.listener = listener = serve.bind("127.0.0.1", 0)
        self.url, self.port = url(listener), listener.getsockname()[1]
        self.error: BaseException | None = None
        self.log: list[str] = []
        self._server = Server(engine, NAME, listener, token, **{**SETTINGS, **settings})
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._server.run())
            except Exception as error:
                self.error = error

    def end(self) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._server.end)

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive(), "the server did not end"

    def health(self) -> dict[str, Any]:
        return self.ask("GET", "/health")[1]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and body of an answer in JSON."""
        status, _, text = self.raw(method, path, body, **headers)
        return status, json.loads(text)

    def raw(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any, bytes]:
        """body: bytes, or what is sent as JSON."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            headers = {"Content-Type": "application/json", **headers}
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def complete(self, prompt: Any, **settings: Any) -> dict[str, Any]:
        """An answer that has to be a good one."""
        status, body = self.ask("POST", "/v1/completions", {"prompt": prompt, **settings})
        assert status == 200, body
        return body

    def refused(self, **settings: Any) -> tuple[int, dict[str, Any]]:
        """Status and error of one that must not be."""
        status, body = self.ask("POST", "/v1/completions", settings)
        assert status >= 400, body
        return status, body["error"]

    def until(self, **state: int) -> None:
        """Waits until /health says so."""
        for _ in range(600):
            if state.items() <= (found := self.health()).items():
                return
            time.sleep(0.05)
        raise AssertionError(f"not {state} but {found}")


@contextlib.contextmanager
def served(engine: Engine, token: str | None = None, **settings: Any) -> Iterator[Served]:
    server = Served(engine, token, settings)
    handler = logging.Handler()
    handler.emit = lambda record: server.log.append(record.getMessage())
    guard.LOG.addHandler(handler)
    guard.LOG.setLevel(logging.INFO)
    try:
        for _ in range(600):
            with contextlib.suppress(ConnectionRefusedError):
                server.health()
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the server does not answer")
        yield server
    finally:
        server.end()
        server.end()
        server.join()
        guard.LOG.removeHandler(handler)


def events(stream: bytes) -> list[Any]:
    """The events of a stream, which has to have come to its end."""
    lines = stream.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def texts(found: list[Any]) -> dict[int, str]:
    """Of each choice of a stream."""
    out: dict[int, str] = {}
    for event in found:
        for choice in event["choices"]:
            out[choice["index"]] = out.get(choice["index"], "") + choice["text"]
    return out
