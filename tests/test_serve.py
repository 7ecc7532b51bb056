"""The completion server as a process: what it says, to whom it speaks, and how it ends."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest

from biomedlm_jax import serve
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf import save
from biomedlm_jax.model import gpt
from biomedlm_jax.serving.server import url
from tests.completions import events, texts
from tests.conftest import ROOT, TINY

TOKEN = "a-token-of-some-length"
# What the process asks the system for is written to stderr, beginning with one that has to show.
WATCHED = """
import runpy, socket, sys
EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr",
          "socket.sendto", "socket.sendmsg", "urllib.Request")
def hook(event, arguments):
    if event in EVENTS:
        print("outgoing", event, arguments, file=sys.stderr, flush=True)
sys.addaudithook(hook)
with socket.socket() as probe:
    probe.connect_ex(("127.0.0.1", 9))
{more}
sys.argv = ["serve.py", *sys.argv[1:]]
runpy.run_module("biomedlm_jax.serve", run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(vocabulary, tmp_path_factory):
    """A Hugging Face folder with a model that knows nothing."""
    path = tmp_path_factory.mktemp("export") / "tiny"
    params = jax.device_get(gpt.init(TINY.model, jax.random.key(0)))
    save.save(params, TINY.model, vocabulary, path, extra={})
    return path


class Process:
    def __init__(self, folder, *arguments, more="", **environment):
        command = [sys.executable, "-c", WATCHED.format(more=more), f"--checkpoint={folder}"]
        self._process = subprocess.Popen(
            [*command, "--port=0", "--slots=4", *arguments],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONFAULTHANDLER": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.lines, self.errors = [], ""
        for line in self._process.stdout:
            self.lines.append(line)
            if found := re.match(r"(\S+) is served on http://(\S+):(\d+)$", line):
                self.name, self.host, self.port = found[1], found[2], int(found[3])
                break
        else:
            self.end()
            raise AssertionError(f"it does not serve: {self.errors}")

    def ask(self, **body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def signal(self, number):
        self._process.send_signal(number)

    def end(self):
        """Its exit code; what it has said is in `lines` and `errors`."""
        out, self.errors = self._process.communicate(timeout=60)
        self.lines += out.splitlines(keepends=True)
        return self._process.returncode

    def kill(self):
        if self._process.returncode is None:
            self._process.kill()
            self.end()


@pytest.fixture
def start(folder):
    """start(*arguments): a process that serves."""
    with contextlib.ExitStack() as stack:

        def start(*arguments, **environment):
            process = Process(folder, *arguments, **environment)
            stack.callback(process.kill)
            return process

        yield start


def sockets(pid):
    """(local port, remote port, state) of the TCP and UDP sockets of a process, whoever in it
    opened them."""
    mine = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            mine.add(str(path.readlink()).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]:
            _, local, remote, state, *rest = line.split()
            if rest[5] in mine:
                ports = (int(address.rsplit(":", 1)[1], 16) for address in (local, remote))
                found.add((kind, *ports, state))
    return found


def test_nothing_leaves_the_house(start):
    process = start()
    assert (process.name, process.host) == ("tiny", "127.0.0.1")
    secret = "Kari tomel sinka"
    with ThreadPoolExecutor() as pool:
        asked = dict(max_tokens=20, seed=1, user=secret)
        answers = [pool.submit(process.ask, prompt=[secret] * 40, **asked) for _ in range(4)]
        seen = set()
        while not all(answer.done() for answer in answers):
            seen |= sockets(process.pid)
        assert all(answer.result()[0] == 200 for answer in answers)
    assert {kind for kind, *_ in seen} == {"tcp"}
    assert {local for _, local, *_ in seen} == {process.port}, "a socket that is not the server's"
    assert process.ask(prompt=secret, model=secret)[0] == 404
    assert process.ask(prompt=secret, max_tokens=2000)[0] == 400
    process.signal(signal.SIGTERM)
    assert process.end() == 0

    outgoing = [line for line in process.errors.splitlines() if line.startswith("outgoing")]
    assert len(outgoing) == 1
    assert "('127.0.0.1', 9)" in outgoing[0]
    said = "".join(process.lines) + process.errors
    written = json.loads(answers[0].result()[1])["choices"][0]["text"]
    assert not [word for word in (*secret.split(), written) if word in said]
    line = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ POST /v1/completions 200 prompt=\d+ written=800 sec"
    assert len(re.findall(line, said)) == 4
    assert said.count("POST /v1/completions 40") == 2


@pytest.mark.slow
def test_sigterm_under_load(start):
    process = start("--slots=2")
    with ThreadPoolExecutor(16) as pool:
        asked = dict(max_tokens=20, prompt=[[5, 6]] * 3)
        answers = [pool.submit(process.ask, **asked, stream=n % 2 == 0) for n in range(16)]
        while not any(answer.done() for answer in answers):
            time.sleep(0.01)
        process.signal(signal.SIGTERM)
        assert process.end() == 0
    whole = 0
    for number, answer in enumerate(answers):
        if isinstance(answer.exception(), ConnectionError):  # it came too late
            continue
        status, body = answer.result()
        if b'"code":"stopping"' in body:  # had not begun; a stream has had its status by then
            assert status == (200 if number % 2 == 0 else 503)
        else:
            assert status == 200
            found = texts(events(body)) if number % 2 == 0 else json.loads(body)["choices"]
            assert len(found) == 3
            whole += 1
    assert whole > 0
    assert process.lines[-1] == "ended\n"


@pytest.mark.slow
def test_a_step_that_does_not_end_does_not_hold_up_the_end(start):
    more = """
import time
from biomedlm_jax import generate
from biomedlm_jax.serving import worker
worker.JOIN_SECONDS = 1
step = generate.Engine.step
def slow(engine):
    if engine.slots - engine.free == 2:
        time.sleep(600)
    return step(engine)
generate.Engine.step = slow
"""
    process = start("--grace=0", more=more)
    with ThreadPoolExecutor() as pool:
        stuck = pool.submit(process.ask, prompt=[[5], [6]])
        while not sockets(process.pid) - {("tcp", process.port, 0, "0A")}:
            time.sleep(0.01)
        time.sleep(1)
        process.signal(signal.SIGINT)
        status, body = stuck.result()
        assert (status, json.loads(body)["error"]["code"]) == (503, "stopping")
    assert process.end() == 0


@pytest.mark.slow
def test_an_engine_that_fails_ends_the_process_with_an_error(start):
    more = """
from biomedlm_jax import generate
step = generate.Engine.step
def failing(engine):
    if engine.slots - engine.free == 2:
        raise FloatingPointError("the device is gone")
    return step(engine)
generate.Engine.step = failing
"""
    process = start(more=more)
    assert process.ask(prompt=[5])[0] == 200
    status, body = process.ask(prompt=[[5], [6]])
    assert (status, json.loads(body)["error"]["code"]) == (500, "engine_failed")
    assert process.end() == 1
    assert "FloatingPointError: the device is gone" in process.errors


@pytest.mark.slow
def test_other_addresses_need_a_token(start, tmp_path):
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    process = start(
        "--host=0.0.0.0", f"--token_file={file}", BIOMEDLM_TOKEN="another-token-of-some"
    )
    assert process.host == "0.0.0.0"
    assert process.ask(prompt="Kari")[0] == 200
    process.signal(signal.SIGTERM)
    assert process.end() == 0
    assert TOKEN not in "".join(process.lines) + process.errors


@pytest.mark.parametrize(
    ("host", "token", "words"),
    [
        ("0.0.0.0", None, "--host=0.0.0.0 can be reached from other machines"),
        ("::", None, "can be reached from other machines"),
        ("127.0.0.1", "short", "BIOMEDLM_TOKEN has 5 characters; it has to have at least 16"),
        ("127.0.0.1", "with a space in it and long", "BIOMEDLM_TOKEN has 27 characters"),
        ("a.hospital.example", TOKEN, "--host=a.hospital.example is no address"),
        ("192.0.2.1", TOKEN, "--host=192.0.2.1 --port=0: Cannot assign"),
    ],
)
def test_an_address_or_a_token_that_will_not_do(monkeypatch, host, token, words):
    monkeypatch.delenv(serve.TOKEN_VARIABLE, raising=False)
    if token:
        monkeypatch.setenv(serve.TOKEN_VARIABLE, token)

    def begin():
        assert serve.read_token(None, host) == token
        serve.bind(host, 0)

    with pytest.raises(UserError) as error:
        begin()
    assert words in str(error.value)


def test_a_token_file(monkeypatch, tmp_path):
    monkeypatch.setenv(serve.TOKEN_VARIABLE, "another-token-of-some-length")
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "bytes").write_bytes(b"\xff" * 40)
    assert serve.read_token(str(tmp_path / "token"), "0.0.0.0") == TOKEN
    for name in ("nothing", "bytes", "."):
        with pytest.raises(UserError, match=f"--token_file={tmp_path / name} can not be read"):
            serve.read_token(str(tmp_path / name), "127.0.0.1")


def test_what_can_not_be_served_is_one_line():
    command = [sys.executable, "-m", "biomedlm_jax.serve", "--checkpoint=nothing", "--port=0"]
    environment = {name: value for name, value in os.environ.items() if name != "BIOMEDLM_TOKEN"}
    environment["JAX_PLATFORMS"] = "cpu"
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: ")
    assert "nothing is not there" in line


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--host=127.0.0.1 --port={port}: Address already"):
            serve.bind("127.0.0.1", port)


def test_a_port_of_a_server_that_is_still_loading_is_taken():
    with serve.bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port={port}: Address already in use; name others"):
            serve.bind("127.0.0.1", port)


def test_a_port_is_free_again_at_once():
    """Also where connections that were closed from this side are remembered by the system."""
    with serve.bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            first.accept()[0].close()
    serve.bind("127.0.0.1", port).close()


def test_the_other_loopback_address(monkeypatch):
    monkeypatch.delenv(serve.TOKEN_VARIABLE, raising=False)
    try:
        listener = serve.bind("::1", 0)
    except UserError as error:
        pytest.skip(f"this machine has none: {error}")
    with listener:
        assert re.fullmatch(r"http://\[::1\]:\d+", url(listener))
    assert serve.read_token(None, "::1") is None
