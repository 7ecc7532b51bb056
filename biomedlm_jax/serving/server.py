"""The server from its first to its last moment: warm up, listen, end."""

import asyncio
import logging
import socket

from aiohttp import web

from biomedlm_jax.generate import Engine, Request
from biomedlm_jax.generation import slots
from biomedlm_jax.serving import app, guard
from biomedlm_jax.serving.answers import Refused
from biomedlm_jax.serving.app import Patience
from biomedlm_jax.serving.worker import Worker


class Server:
    """`run` is all of it; `end`, called in its loop, ends it.

    name: of the model, as clients give it.
    listener: bound to an address; may listen already.
    token: that clients have to know; None serves this machine alone.
    queue: requests that may wait for a slot.
    grace: seconds that running requests have at the end.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        listener: socket.socket,
        token: str | None,
        *,
        queue: int,
        grace: float,
        patience: Patience,
    ) -> None:
        self._engine, self._name, self._listener, self._token = engine, name, listener, token
        self._queue, self._grace, self._patience = queue, grace, patience
        self._worker: Worker | None = None
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Lets what runs come to its end; a second call does not."""
        if self._worker and self._ended.is_set():
            self._worker.hurry()
        self._ended.set()

    async def run(self) -> bool:
        """Serves until `end`, or until the engine raises, and then raises that. False if the
        engine's thread is still in a step, for whose end the interpreter would wait."""
        worker = self._worker = Worker(self._engine, queue=self._queue)
        log = logging.getLogger("biomedlm_jax.serve.http")
        log.addFilter(guard.without_text)
        runner = web.AppRunner(
            app.make(worker, self._name, self._token, self._patience),
            access_log=None,
            handler_cancellation=True,  # a client who goes frees its slots
            keepalive_timeout=self._patience.header,
            logger=log,
            shutdown_timeout=2,
        )
        await runner.setup()
        worker.start()
        ends = asyncio.create_task(self._ended.wait())
        # Programs are compiled before the first client waits for them.
        warm = asyncio.create_task(_warm_up(worker))
        grace = 0.0  # nobody waits for the warm-up
        try:
            await _first(warm, ends, worker.failed)
            if not ends.done() and not worker.failed.done():
                site = web.SockSite(runner, self._listener, backlog=1024)
                await site.start()
                guard.LOG.info(f"{self._name} is served on {url(self._listener)}")
                await _first(ends, worker.failed)
                await site.stop()
                grace = self._grace
            guard.LOG.info("ending")
        finally:
            self._listener.close()
            stopped = await worker.stop(grace)
            await runner.cleanup()
            ends.cancel()
            await warm
        if worker.failed.done():
            await worker.failed
        guard.LOG.info("ended")
        return stopped


def url(listener: socket.socket) -> str:
    address, port = listener.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


async def _first(*awaited: asyncio.Future) -> None:
    await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)


async def _warm_up(worker: Worker) -> None:
    """A prompt of each of the lengths that programs are compiled for, and a token after it."""
    model, eos_id = worker.engine.model, worker.engine.vocabulary.eos_id
    try:
        for length in slots.lengths(model.context):
            one = Request(
                prompt=(eos_id,) * (length - 2),
                max_tokens=2,
                temperature=0.0,
                top_k=0,
                top_p=1.0,
                repetition_penalty=100.0,  # or the end of text may come first
                seed=0,
                stop=(),
            )
            async with worker.ticket([one]) as ticket:
                while await ticket.news():
                    pass
    except Refused:  # the server ends, or the engine has failed, which `run` raises
        pass
