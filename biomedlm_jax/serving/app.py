"""The pages of the server: completions, models, health, and one to try it by hand."""

import asyncio
import base64
import dataclasses
import hashlib
import importlib.resources
import re
import secrets
import time
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from biomedlm_jax import serving
from biomedlm_jax.serving import answers, asked, guard
from biomedlm_jax.serving.answers import Refused
from biomedlm_jax.serving.asked import Asked
from biomedlm_jax.serving.worker import Ticket, Worker


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
    """How long the server waits for a client, in seconds, before it hangs up."""

    header: float = 30  # for a request's header, from the connection or the last answer on
    body: float = 60  # for its body
    reader: float = 30  # until a client takes more of its answer


def make(worker: Worker, name: str, token: str | None, patience: Patience) -> web.Application:
    """
    name: of the model, as clients give it.
    token: that clients have to know; None serves this machine alone.
    """
    middlewares = [guard.recorded, guard.asker(token)]
    app = web.Application(middlewares=middlewares, client_max_size=asked.BODY)
    pages = _Pages(worker, name, patience)
    app.router.add_get("/", pages.page)
    app.router.add_get("/health", pages.health)
    app.router.add_get("/v1/models", pages.models)
    app.router.add_get("/v1/models/{name:.+}", pages.model)
    app.router.add_post("/v1/completions", pages.completions)
    app.on_response_prepare.append(_headers)
    return app


async def _headers(_: web.BaseRequest, response: web.StreamResponse) -> None:
    response.headers["Server"] = "biomedlm_jax"
    response.headers["Cache-Control"] = "no-store"  # no text on a browser's disk
    response.headers["X-Content-Type-Options"] = "nosniff"


class _Pages:
    def __init__(self, worker: Worker, name: str, patience: Patience) -> None:
        self._worker, self._name, self._patience = worker, name, patience
        self._created = int(time.time())
        self._page = importlib.resources.files(serving).joinpath("page.html").read_bytes()
        self._policy = policy(self._page.decode())

    async def page(self, _: web.Request) -> web.Response:
        headers = {"Content-Security-Policy": self._policy, "Referrer-Policy": "no-referrer"}
        return web.Response(
            body=self._page, headers=headers, content_type="text/html", charset="utf-8"
        )

    async def health(self, request: web.Request) -> web.Response:
        worker = self._worker
        ends = worker.stopping or worker.failed.done()
        body: dict[str, Any] = {"status": "ending" if ends else "ok"}
        if request[guard.KNOWN]:
            counts = {"running": worker.running, "waiting": worker.waiting}
            body |= {"slots": worker.engine.slots, **counts}
        return _json(body, 503 if ends else 200)

    async def models(self, _: web.Request) -> web.Response:
        return _json(answers.models(*self._about()))

    async def model(self, request: web.Request) -> web.Response:
        self._check_name(request.match_info["name"])
        return _json(answers.model(*self._about()))

    def _about(self) -> tuple[str, int, int]:
        return self._name, self._created, self._worker.engine.model.context

    def _check_name(self, name: str | None) -> None:
        if name not in (None, self._name):
            message = f"this server has no model of the name that was given; it has {self._name!r}"
            raise Refused(404, message, param="model", code="model_not_found")

    async def completions(self, request: web.Request) -> web.StreamResponse:
        self._worker.check()  # again by `ticket`, but this comes before any work
        if request.content_type != answers.JSON:
            raise Refused(415, f"the body has to be JSON, with Content-Type: {answers.JSON}")
        try:
            async with asyncio.timeout(self._patience.body):
                body = await request.read()
        except TimeoutError:
            raise Refused(408, "the body did not come in time") from None
        except web.RequestPayloadError:
            raise Refused(400, "the body is not encoded as its headers say") from None
        wanted = asked.parse(body)
        self._check_name(wanted.model)
        engine = self._worker.engine
        # In another thread, for megabytes of text take a moment.
        requests = await asyncio.to_thread(asked.requests, wanted, engine.model, engine.vocabulary)
        echoes = asked.echoes(wanted, engine.vocabulary)
        prompt = sum(len(one.prompt) for one in requests[:: wanted.n])
        request[guard.TOKENS] = prompt, 0
        async with self._worker.ticket(requests) as ticket:
            answer = _Answer(wanted, self._name, prompt, echoes, ticket)
            try:
                if wanted.stream:
                    return await self._stream(request, answer)
                return await self._whole(request, answer)
            finally:
                request[guard.TOKENS] = prompt, ticket.tokens

    async def _whole(self, request: web.Request, answer: "_Answer") -> web.StreamResponse:
        texts = [[echo] for echo in answer.echoes]
        ends: list[str | None] = [None] * len(texts)
        while news := await answer.ticket.news():
            for index, piece in news:
                texts[index].append(piece.text)
                ends[index] = piece.finish
        choices = [
            answers.choice(index, "".join(text), ends[index]) for index, text in enumerate(texts)
        ]
        body = answers.encoded(answer.part(choices, usage=answer.usage()))
        response = web.StreamResponse(headers={"Content-Type": answers.JSON})
        response.content_length = len(body)
        await response.prepare(request)
        await self._send(request, response, body)
        return response

    async def _stream(self, request: web.Request, answer: "_Answer") -> web.StreamResponse:
        """What is there goes out in one piece, so a slow reader has fewer and larger ones."""
        wanted = answer.asked
        response = web.StreamResponse(
            headers={"Content-Type": answers.EVENTS, "X-Accel-Buffering": "no"}
        )
        await response.prepare(request)
        counts = {"usage": None} if wanted.stream_options else {}

        async def send(choices: Iterable[dict[str, Any]]) -> None:
            events = (answers.event(answer.part([choice], **counts)) for choice in choices)
            await self._send(request, response, b"".join(events))

        if wanted.echo:
            await send(answers.choice(i, echo, None) for i, echo in enumerate(answer.echoes))
        try:
            while news := await answer.ticket.news():
                await send(
                    answers.choice(index, piece.text, piece.finish)
                    for index, piece in news
                    if piece.text or piece.finish
                )
        except Refused as refusal:  # too late for a status
            request[guard.END] = f"{response.status}/{refusal.status}"
            await self._send(request, response, answers.event(refusal.body()))
            response.force_close()
            return response
        last = answers.event(answer.part([], usage=answer.usage())) if counts else b""
        await self._send(request, response, last + answers.DONE)
        return response

    async def _send(self, request: web.Request, response: web.StreamResponse, data: bytes) -> None:
        """
        Raises:
          ConnectionError: the client has gone, or was dropped for not reading.
        """
        if not data:
            return
        try:
            async with asyncio.timeout(self._patience.reader):
                await response.write(data)
        except TimeoutError:
            request[guard.END] = "dropped"
            if request.transport:
                request.transport.abort()
            raise ConnectionResetError("the client does not read its answer") from None


@dataclasses.dataclass(frozen=True)
class _Answer:
    """What all parts of an answer have in common."""

    asked: Asked
    model: str
    prompt: int  # tokens
    echoes: list[str]  # what each choice begins with
    ticket: Ticket
    id: str = dataclasses.field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def part(self, choices: list[dict[str, Any]], **usage: Any) -> dict[str, Any]:
        return answers.completion(self.id, self.created, self.model, choices, **usage)

    def usage(self) -> dict[str, int]:
        return answers.usage(self.prompt, self.ticket.tokens)


def _json(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=answers.encoded(body), status=status, content_type=answers.JSON)


def policy(page: str) -> str:
    """The page's Content-Security-Policy: its own script and style by their hashes, requests to
    its own origin, nothing else."""

    def hashes(tag: str) -> str:
        found = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (hashlib.sha256(text.encode()).digest() for text in found)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
