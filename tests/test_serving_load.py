"""Many clients, and bad ones: nobody waits for another, and whoever goes leaves his slot."""

import asyncio
import contextlib
import json
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import pytest

from biomedlm_jax import generate
from biomedlm_jax.serving import worker
from biomedlm_jax.serving.app import Patience
from tests.completions import Served, events, served, texts
from tests.test_serving import request

LONG = dict(prompt=[5], max_tokens=31, temperature=0.8)


class Gated:
    """An engine whose steps wait until the test lets them through."""

    def __init__(self, engine):
        self._engine, self._gate = engine, threading.Semaphore(0)
        self.open, self.order, self.steps = False, [], 0
        self.error = None  # what the next step raises
        self.begun = []  # how many had begun, at each step

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def add(self, request):
        self.order.append(request)
        return self._engine.add(request)

    def step(self):
        if not self.open:
            self._gate.acquire()
        self.steps += 1
        self.begun.append(len(self.order))
        if self.error:
            raise self.error
        return self._engine.step()

    def let(self, steps):
        self._gate.release(steps)

    def let_all(self):
        self.open = True
        self._gate.release()


@contextlib.contextmanager
def gated(engine, **settings):
    """A server whose engine has done its warm-up and stands still, and the engine."""
    gate = Gated(engine)
    gate.let(2)
    with served(gate, **settings) as server:
        gate.order.clear()
        try:
            yield server, gate
        finally:
            gate.let_all()


def post(server, **body):
    """A connection that has sent a request."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    data = json.dumps(body).encode()
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(data), data)
    )
    return connection


async def all_at_once(server, bodies):
    """The answers to requests that are all sent before any is read."""
    timeout, connector = aiohttp.ClientTimeout(total=300), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(server.url, timeout=timeout, connector=connector) as session:

        async def one(body):
            async with session.post("/v1/completions", json=body) as answer:
                text = await answer.read()
                assert answer.status == 200, text
                if not body.get("stream"):
                    return {c["index"]: c["text"] for c in json.loads(text)["choices"]}
                return texts(events(text))

        return await asyncio.gather(*map(one, bodies))


def mixed(count, words, half):
    """Bodies of requests of many kinds, with prompts and answers of at most `half` tokens, and for
    each the engine's requests."""
    draw, bodies, requests = random.Random(0), [], []
    for number in range(count):
        prompts = [
            [draw.randrange(3, words.size) for _ in range(draw.randint(1, half))]
            for _ in range(draw.choice([1, 1, 1, 1, 3]))
        ]
        settings = dict(
            max_tokens=draw.randint(1, half),
            temperature=draw.choice([0.0, 0.5, 1.0]),
            top_p=draw.choice([1.0, 0.9]),
            top_k=draw.choice([0, 20]),
            repetition_penalty=draw.choice([1.0, 1.2]),
            seed=number,
        )
        bodies.append(dict(prompt=prompts, stream=draw.random() < 0.5, **settings))
        requests.append([request(prompt, **settings) for prompt in prompts])
    return bodies, requests


@pytest.mark.parametrize(
    ("context", "rounds"), [(32, 1), pytest.param(256, 10, marks=pytest.mark.slow)]
)
def test_200_at_once_get_what_the_library_writes(make_engine, context, rounds):
    """Ten times in a row is a minute."""
    engine = make_engine(context=context)
    bodies, requests = mixed(200, engine.vocabulary, context // 2)
    flat = generate.generate(engine, [one for some in requests for one in some])
    answers = []
    with served(engine, queue=200) as server:
        for _ in range(rounds):
            answers.append(asyncio.run(all_at_once(server, bodies)))
            server.until(running=0, waiting=0)
    for of_round in answers:
        expected = iter(flat)
        for answer, some in zip(of_round, requests, strict=True):
            assert answer == {index: next(expected).text for index in range(len(some))}


def test_a_hundred_prompts_starve_nobody(make_engine):
    with gated(make_engine(slots=2)) as (server, gate), ThreadPoolExecutor() as pool:
        settings = dict(max_tokens=2, temperature=0.0)
        many = pool.submit(server.complete, [[5, 5]] * 100, **settings)
        server.until(running=2, waiting=1)
        others = []
        for number in range(3):
            others.append(pool.submit(server.complete, [6, 6 + number], **settings))
            server.until(waiting=2 + number)
        gate.let_all()
        for other in others:
            other.result()
        # Turns go round: 2 of the 100, then one each, the longest waiting first.
        begun = [one.prompt for one in gate.order]
        assert [begun.index((6, 6 + number)) for number in range(3)] == [3, 4, 5]
        assert len(many.result()["choices"]) == 100


def test_first_come_first_served(make_engine):
    with gated(make_engine(slots=2)) as (server, gate), ThreadPoolExecutor(8) as pool:
        waiting = []
        for number in range(6):
            waiting.append(pool.submit(server.complete, [5 + number], max_tokens=1))
            server.until(running=1, waiting=number)
        gate.let_all()
        for one in waiting:
            one.result()
        assert [one.prompt for one in gate.order] == [(5 + number,) for number in range(6)]


def test_those_who_write_wait_for_one_prompt_at_a_time(make_engine):
    with gated(make_engine()) as (server, gate), ThreadPoolExecutor() as pool:
        first = pool.submit(server.complete, [5], max_tokens=20)
        server.until(running=1)
        others = pool.submit(server.complete, [[6]] * 3, max_tokens=2)
        server.until(waiting=1)
        gate.let_all()
        first.result()
        others.result()
        assert gate.begun[2:6] == [1, 2, 3, 4]  # after the two steps of the warm-up


def test_a_full_queue_refuses_and_says_when_to_come_back(make_engine):
    with gated(make_engine(slots=2), queue=3) as (server, gate), ThreadPoolExecutor(8) as pool:
        inside = [pool.submit(server.complete, [[5], [5]], max_tokens=2)]
        server.until(running=2, waiting=0)
        for number in range(3):
            inside.append(pool.submit(server.complete, [5], max_tokens=2))
            server.until(running=2, waiting=number + 1)
        body = {"prompt": "Kari"}
        status, headers, text = server.raw("POST", "/v1/completions", body)
        error = json.loads(text)["error"]
        assert (status, error["type"], error["code"]) == (429, "rate_limit_error", "queue_full")
        assert 1 <= int(headers["Retry-After"]) <= 60
        assert server.ask("GET", "/health")[0] == 200
        gate.let_all()
        assert [len(one.result()["choices"]) for one in inside] == [2, 1, 1, 1]
        server.complete("Kari")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_who_goes_frees_his_slots(make_engine, stream):
    with gated(make_engine(slots=2)) as (server, gate):
        with post(server, **LONG | dict(prompt=[[5]] * 3), stream=stream):
            server.until(running=2, waiting=1)
            gate.let(3)
        gate.let(1)  # whoever waits for the gate does not obey meanwhile
        server.until(running=0, waiting=0)
        gate.let_all()
        server.complete("Kari", max_tokens=2)
        assert len(gate.order) == 3, "the third of three prompts was begun for nobody"
        assert gate.steps < 2 + 31
    assert sum("POST /v1/completions gone" in line for line in server.log) == 1


def test_a_client_who_goes_before_his_turn(make_engine):
    with gated(make_engine(slots=2)) as (server, gate), ThreadPoolExecutor() as pool:
        first = pool.submit(server.complete, [5], max_tokens=4)
        server.until(running=1)
        with post(server, prompt=[6]):
            server.until(waiting=1)
        server.until(waiting=0)
        gate.let_all()
        first.result()
        server.complete([7], max_tokens=1)
        assert [one.prompt for one in gate.order] == [(5,), (7,)]


def test_readers_who_do_not_read_hold_up_nobody(make_engine):
    patience = Patience(header=30, body=30, reader=1)
    # Half a megabyte, where buffers hold less.
    body = dict(prompt="Kari", n=128, max_tokens=16, stream=True)
    with served(make_engine(), patience=patience) as server, contextlib.ExitStack() as stack:
        server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        for _ in range(2):
            connection = stack.enter_context(post(server, **body))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.complete("Tomel", max_tokens=4)
        server.until(running=0, waiting=0)
        dropped = "POST /v1/completions dropped"
        for _ in range(600):
            if sum(dropped in line for line in server.log) == 2:
                break
            time.sleep(0.05)
        else:
            raise AssertionError("\n".join(server.log))


def test_what_nobody_reads_is_not_kept(make_engine, monkeypatch):
    monkeypatch.setattr(worker, "UNREAD", 8)

    async def over():
        threads = worker.Worker(make_engine(), queue=1)
        threads.start()
        with contextlib.suppress(worker.Refused):
            async with threads.ticket([request([5], max_tokens=31)]) as ticket:
                while ticket.unfinished:
                    await asyncio.sleep(0.01)
                kept = ticket.unread
                await ticket.news()
        assert await threads.stop(5)
        return kept

    assert 8 < asyncio.run(over()) < 8 + 3


def test_half_a_header_is_no_reason_to_wait(make_engine):
    patience = Patience(header=1, body=1, reader=30)
    with served(make_engine(), patience=patience) as server, contextlib.ExitStack() as stack:
        for number in range(100):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
            stack.enter_context(connection)
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: loc"[: 5 + number])
        body = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
        body.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        server.complete("Kari", max_tokens=2)
        # One byte a moment does not keep it open.
        for _ in range(60):
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"a")
            time.sleep(0.05)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""
        assert body.recv(12) == b"HTTP/1.1 408"


def test_an_engine_that_fails_is_told_to_all_and_ends_the_server(make_engine):
    with gated(make_engine(slots=2)) as (server, gate), ThreadPoolExecutor() as pool:
        asked = {"prompt": "Kari", "max_tokens": 5}
        running = pool.submit(server.raw, "POST", "/v1/completions", {**asked, "stream": True})
        server.until(running=1)
        waiting = pool.submit(server.ask, "POST", "/v1/completions", asked)
        server.until(waiting=1)

        gate.error = FloatingPointError("the device is gone")
        gate.let_all()
        status, _, stream = running.result()
        *_, last = stream.decode().strip().split("\n\n")
        assert status == 200
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_failed"
        status, body = waiting.result()
        assert (status, body["error"]["type"]) == (500, "server_error")
        server.join()
        assert server.error is gate.error
        for handle in range(gate._engine._handles):  # the next test has this engine as well
            gate.cancel(handle)


def test_an_engine_that_fails_at_once_ends_a_server_that_has_not_begun(make_engine):
    gate = Gated(make_engine())
    gate.error = FloatingPointError("the device is gone")
    gate.let(1)
    server = Served(gate, None, {})
    server.join()
    assert server.error is gate.error
    with pytest.raises(ConnectionRefusedError):
        server.health()
    gate.cancel(gate._engine._handles - 1)


def test_a_server_that_is_ended_while_it_warms_up(make_engine):
    gate = Gated(make_engine())
    server = Served(gate, None, {"grace": 600})
    while not gate.order:
        time.sleep(0.01)
    server.end()
    gate.let(1)
    server.join()
    assert server.error is None
    assert gate.steps == 1
    assert gate.free == gate.slots


def test_at_the_end_what_runs_is_finished_and_what_waits_is_sent_away(make_engine):
    with gated(make_engine(slots=2)) as (server, gate), ThreadPoolExecutor() as pool:
        running = pool.submit(server.complete, [[5]] * 4, max_tokens=3)
        server.until(running=2, waiting=1)
        waiting = pool.submit(server.refused, prompt="Kari")
        server.until(waiting=2)
        server.end()
        status, error = waiting.result()
        assert (status, error["code"]) == (503, "stopping")
        with pytest.raises(ConnectionRefusedError):
            server.health()
        gate.let_all()
        assert len(running.result()["choices"]) == 4
        server.join()
        assert server.error is None


@pytest.mark.parametrize("hurry", [False, True])
def test_patience_at_the_end_has_an_end(make_engine, hurry):
    with gated(make_engine(), grace=600 if hurry else 0) as (server, gate):
        with post(server, **LONG, stream=True) as connection:
            server.until(running=1)
            gate.let(4)
            server.end()
            if hurry:
                server.end()
            told = answer(connection)
            assert b'"code":"stopping"' in told
            assert b"[DONE]" not in told
        gate.let_all()
        server.join()
        assert server.error is None


def answer(connection):
    """All that comes until the other side hangs up."""
    parts = []
    while part := connection.recv(2**16):
        parts.append(part)
    return b"".join(parts)
