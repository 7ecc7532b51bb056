"""Between many connections and one engine: the thread that owns the engine, and what waits for it.

The loop of HTTP gives orders through a queue; the thread reports by `call_soon_threadsafe`. Neither
touches what is the other's. A request is a `Ticket` of one or more completions. Slots that become
free go round the tickets that wait, one completion each, in the order in which they came: one with
hundreds of prompts holds nobody up for longer than a completion takes.
"""

import asyncio
import collections
import contextlib
import math
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence

from biomedlm_jax.entry import UserError
from biomedlm_jax.generate import Engine, Piece, Request
from biomedlm_jax.serving.answers import Refused

UNREAD = 4096  # pieces that a ticket keeps for a reader who is slower than the engine
JOIN_SECONDS = 5


class Ticket:
    """The completions that one HTTP request asked for. The loop's, but for `left`.

    Attributes:
      accepted: done when the engine has checked all of them.
      waiting: completions that have no slot yet.
      tokens: that were written.
      left: the thread's list of those that it has not begun.
    """

    def __init__(self, requests: Sequence[Request], accepted: asyncio.Future[None]) -> None:
        self.requests, self.accepted = requests, accepted
        self.waiting = self.unfinished = len(requests)
        self.tokens = 0
        self.left = collections.deque(range(len(requests)))
        self._news: list[tuple[int, Piece]] = []
        self._error: Exception | None = None
        self._wake = asyncio.Event()

    @property
    def running(self) -> int:
        """Completions that have a slot."""
        return self.unfinished - self.waiting

    async def news(self) -> list[tuple[int, Piece]]:
        """What was written since the last call, as (index of the completion, piece); waits until
        something is. [] when all completions are finished.

        Raises:
          Refused: the ticket has failed.
        """
        if self.unfinished or self._news or self._error:
            await self._wake.wait()
        if self._error:
            raise self._error
        self._wake.clear()
        found, self._news = self._news, []
        return found

    def add(self, index: int, piece: Piece) -> None:
        self.tokens += len(piece.tokens)
        self.unfinished -= piece.finish is not None
        self._news.append((index, piece))
        self._wake.set()

    def fail(self, error: Exception) -> None:
        if not self.accepted.done():
            self.accepted.set_exception(error)
        self._error = error
        self.unfinished = self.waiting = 0
        self._wake.set()

    @property
    def unread(self) -> int:
        return len(self._news)


class Worker:
    """Made in the loop; `start` begins, `stop` ends.

    queue: tickets that may wait for a slot.

    Attributes:
      failed: done, with the exception, when the engine has raised one.
    """

    def __init__(self, engine: Engine, *, queue: int) -> None:
        self.engine, self.queue = engine, queue
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self.stopping = False
        self._tickets: dict[Ticket, None] = {}  # the loop's: those in the house, in their order
        self._begun = collections.deque([time.monotonic()], 16)  # when tickets left the queue
        self._thread = _Thread(engine, self._post)
        self._empty = asyncio.Event()  # no ticket is in the house
        self._empty.set()
        self._hurry = asyncio.Event()

    def start(self) -> None:
        self._thread.start()

    @property
    def running(self) -> int:
        """Completions that have a slot."""
        return sum(ticket.running for ticket in self._tickets)

    @property
    def waiting(self) -> int:
        """Requests of which a completion has none."""
        return sum(ticket.waiting > 0 for ticket in self._tickets)

    @contextlib.asynccontextmanager
    async def ticket(self, requests: Sequence[Request]) -> AsyncIterator[Ticket]:
        """A ticket that the engine has accepted; what is unfinished at the end of the block is
        cancelled.

        Raises:
          Refused: the queue is full, the server ends, or the engine does not take a request.
        """
        self.check()
        ticket = Ticket(requests, self._loop.create_future())
        self._tickets[ticket] = None
        self._empty.clear()
        self._thread.order(lambda thread: thread.submit(ticket))
        try:
            await ticket.accepted
            yield ticket
        finally:
            del self._tickets[ticket]
            if not self._tickets:
                self._empty.set()
            if ticket.unfinished:
                self._thread.order(lambda thread: thread.cancel(ticket))

    def check(self) -> None:
        """
        Raises:
          Refused: a ticket would not be taken now.
        """
        if self.failed.done():
            raise _failure()
        if self.stopping:
            raise _ending()
        free = self.engine.slots - self.running
        if self.waiting >= self.queue + free:
            between = (self._begun[-1] - self._begun[0]) / max(len(self._begun) - 1, 1)
            seconds = min(max(math.ceil(between), 1), 60)
            raise Refused(
                429,
                f"the server is busy: {self.waiting} requests wait for {self.engine.slots} slots; "
                f"try again in {seconds} s",
                code="queue_full",
                headers={"Retry-After": str(seconds)},
            )

    async def stop(self, seconds: float) -> bool:
        """Takes no more tickets, gives up those that have not begun, lets the others come to their
        end, for `seconds` or until `hurry`. False if the thread did not end: the engine is in a
        step that takes longer than JOIN_SECONDS.
        """
        self.stopping = True
        for ticket in list(self._tickets):
            if ticket.waiting == len(ticket.requests):
                self._give_up(ticket, _ending())
        empty = asyncio.create_task(self._empty.wait())
        hurry = asyncio.create_task(self._hurry.wait())
        either = asyncio.FIRST_COMPLETED
        await asyncio.wait([empty, hurry], timeout=seconds, return_when=either)
        empty.cancel()
        hurry.cancel()
        for ticket in list(self._tickets):
            self._give_up(ticket, _ending())
        self._thread.order(_Thread.stop)
        await asyncio.to_thread(self._thread.join, JOIN_SECONDS)
        return not self._thread.is_alive()

    def hurry(self) -> None:
        """Ends the patience of `stop`, also of one that is still to come."""
        self._hurry.set()

    def _give_up(self, ticket: Ticket, error: Refused) -> None:
        if ticket.unfinished:
            self._thread.order(lambda thread: thread.cancel(ticket))
            ticket.fail(error)

    def _post(self, report: Callable[..., None], *arguments: object) -> None:
        """From the thread."""
        self._loop.call_soon_threadsafe(lambda: report(self, *arguments))

    # What the thread reports, in the loop.

    def accepted(self, ticket: Ticket, refusal: UserError | None) -> None:
        if refusal:
            ticket.fail(Refused(400, str(refusal)))
        elif not ticket.accepted.done():
            ticket.accepted.set_result(None)

    def begun(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            if ticket.waiting:
                ticket.waiting -= 1
                if not ticket.waiting:
                    self._begun.append(time.monotonic())

    def written(self, pieces: Sequence[tuple[Ticket, int, Piece]]) -> None:
        for ticket, index, piece in pieces:
            if ticket.unfinished:  # or it was given up meanwhile
                ticket.add(index, piece)
        for ticket in {ticket for ticket, _, _ in pieces}:
            if ticket.unread > UNREAD:
                self._give_up(ticket, Refused(408, "the stream was not read as fast as written"))

    def broken(self, error: BaseException) -> None:
        for ticket in self._tickets:
            ticket.fail(_failure())
        self.failed.set_exception(error)


class _Thread(threading.Thread):
    """Owns the engine. Everything here but `order` is called in the thread itself."""

    def __init__(self, engine: Engine, post: Callable[..., None]) -> None:
        super().__init__(name="engine", daemon=True)
        self._engine, self._post = engine, post
        self._orders: queue.SimpleQueue[Callable[[_Thread], None]] = queue.SimpleQueue()
        self._waiting: collections.deque[Ticket] = collections.deque()
        self._running: dict[int, tuple[Ticket, int]] = {}  # by the engine's handles
        self._on = True

    def order(self, order: Callable[["_Thread"], None]) -> None:
        self._orders.put(order)

    def run(self) -> None:
        try:
            while self._on:
                self._obey()
                self._fill()
                if self._running:
                    self._step()
        except BaseException as error:
            self._post(Worker.broken, error)

    def _obey(self) -> None:
        """Does what was ordered; waits for an order where there is nothing else to do."""
        if not self._running and not self._waiting:
            self._orders.get()(self)
        with contextlib.suppress(queue.Empty):
            while True:
                self._orders.get_nowait()(self)

    def submit(self, ticket: Ticket) -> None:
        try:
            for request in ticket.requests:
                self._engine.check(request)
        except UserError as error:
            self._post(Worker.accepted, ticket, error)
        else:
            self._waiting.append(ticket)
            self._post(Worker.accepted, ticket, None)

    def cancel(self, ticket: Ticket) -> None:
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        for handle in [h for h, (owner, _) in self._running.items() if owner is ticket]:
            del self._running[handle]
            self._engine.cancel(handle)

    def stop(self) -> None:
        self._on = False
        self._waiting.clear()
        for handle in self._running:
            self._engine.cancel(handle)
        self._running.clear()

    def _fill(self) -> None:
        """Begins what there is room for, but one a step while others run: to read a prompt takes as
        long as many tokens, and they wait for it."""
        begun = []
        most = 1 if self._running else self._engine.free
        while self._waiting and self._engine.free and len(begun) < most:
            ticket = self._waiting.popleft()
            index = ticket.left.popleft()
            self._running[self._engine.add(ticket.requests[index])] = ticket, index
            begun.append(ticket)
            if ticket.left:
                self._waiting.append(ticket)
        if begun:
            self._post(Worker.begun, begun)

    def _step(self) -> None:
        pieces = []
        for piece in self._engine.step():
            pieces.append((*self._running[piece.request], piece))
            if piece.finish:
                del self._running[piece.request]
        if pieces:
            self._post(Worker.written, pieces)


def _ending() -> Refused:
    return Refused(503, "the server ends; try again later", code="stopping")


def _failure() -> Refused:
    return Refused(500, "the engine has failed, and the server ends", code="engine_failed")
