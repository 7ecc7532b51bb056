"""The completion server over HTTP: its answers are the engine's, and who may not ask is told."""

import gzip
import json
import socket

import pytest

from biomedlm_jax import generate
from biomedlm_jax.generate import Request
from biomedlm_jax.serving.app import policy
from tests.completions import NAME, events, served, texts

TOKEN = "a-token-of-some-length"
FIXED = dict(seed=5, temperature=0.8, max_tokens=6)


def request(prompt, **settings):
    base = dict(
        max_tokens=6, temperature=0.8, top_k=0, top_p=1.0, repetition_penalty=1.0, seed=5, stop=()
    )
    return Request(prompt=tuple(prompt), **{**base, **settings})


@pytest.fixture(scope="module")
def server(make_engine):
    with served(make_engine(of="server")) as found:
        yield found


@pytest.fixture(scope="module")
def offline(make_engine):
    """offline(requests): what the library writes."""
    engine = make_engine()
    return lambda *requests: generate.generate(engine, list(requests))


@pytest.fixture
def words(make_engine):
    return make_engine().vocabulary


def test_an_answer_is_what_the_library_writes(server, offline, words):
    body = server.complete("Kari tomel", **FIXED)
    ids = words.encode("Kari tomel")
    (expected,) = offline(request(ids))
    (choice,) = body["choices"]
    assert choice == {
        "index": 0,
        "text": expected.text,
        "logprobs": None,
        "finish_reason": expected.finish,
    }
    assert body["usage"] == {
        "prompt_tokens": len(ids),
        "completion_tokens": len(expected.tokens),
        "total_tokens": len(ids) + len(expected.tokens),
    }
    assert body["object"] == "text_completion"
    assert body["model"] == NAME
    assert body["id"].startswith("cmpl-")


def test_every_setting_reaches_the_engine(server, offline, words):
    settings = dict(
        max_tokens=9, temperature=1.3, top_p=0.7, top_k=11, repetition_penalty=1.4, seed=3
    )
    (first,) = offline(request(words.encode("Kari"), **settings))
    stop = first.text[len(first.text) // 2 :][:2]
    (expected,) = offline(request(words.encode("Kari"), **settings, stop=(stop,)))
    (choice,) = server.complete("Kari", **settings, stop=stop)["choices"]
    assert choice["text"] == expected.text
    assert choice["finish_reason"] == expected.finish == "stop"
    assert expected.text != first.text


def test_several_prompts_and_choices(server, offline, words):
    prompts = [words.encode("Kari"), words.encode("Tomel sinka")]
    body = server.complete(prompts, n=2, **FIXED)
    expected = offline(*(request(p, seed=seed) for p in prompts for seed in (5, 6)))
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in body["choices"]] == [one.text for one in expected]
    assert body["usage"]["prompt_tokens"] == sum(map(len, prompts))


def test_a_stream_is_the_same_in_pieces(server):
    asked = dict(prompt=["Kari", "Tomel"], n=2, **FIXED)
    whole = server.complete(**asked)
    status, headers, stream = server.raw("POST", "/v1/completions", {**asked, "stream": True})
    found = events(stream)
    assert status == 200
    assert headers["Content-Type"] == "text/event-stream"
    assert texts(found) == {c["index"]: c["text"] for c in whole["choices"]}
    ends = [c for event in found for c in event["choices"] if c["finish_reason"]]
    assert {c["index"]: c["finish_reason"] for c in ends} == {
        c["index"]: c["finish_reason"] for c in whole["choices"]
    }
    assert len(ends) == 4
    assert len({event["id"] for event in found}) == 1
    assert all("usage" not in event for event in found)

    options = {"stream": True, "stream_options": {"include_usage": True}}
    _, _, stream = server.raw("POST", "/v1/completions", {**asked, **options})
    *pieces, last = events(stream)
    assert all(event["usage"] is None for event in pieces)
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]


@pytest.mark.parametrize("stream", [False, True])
def test_echo(server, stream):
    text = "Kari\u2028\n\ttomel "
    plain = server.complete(text, n=2, **FIXED)["choices"]
    asked = dict(prompt=text, n=2, echo=True, stream=stream, **FIXED)
    _, _, body = server.raw("POST", "/v1/completions", asked)
    found = (
        texts(events(body))
        if stream
        else {c["index"]: c["text"] for c in json.loads(body)["choices"]}
    )
    assert found == {c["index"]: text + c["text"] for c in plain}


def test_models(server):
    _, body = server.ask("GET", "/v1/models")
    (model,) = body["data"]
    assert (body["object"], model["id"], model["context"]) == ("list", NAME, 32)
    assert server.ask("GET", f"/v1/models/{NAME}")[1] == model
    for status, error in (
        server.refused(prompt="Kari", model="gpt-3.5"),
        (404, server.ask("GET", "/v1/models/gpt-3.5")[1]["error"]),
    ):
        assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert NAME in error["message"]
    server.complete("Kari", model=NAME)


def test_errors_have_the_form_of_the_api(server):
    status, error = server.refused(prompt="Kari", logprobs=3)
    assert status == 400
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == "logprobs"
    status, error = server.refused(prompt=[5] * 30)
    assert (status, error["code"]) == (400, "context_length_exceeded")
    status, body = server.ask("POST", "/v1/completions", b"{")
    assert (status, "no JSON" in body["error"]["message"]) == (400, True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/completions", 405),
        ("POST", "/health", 405),
        ("GET", "/v1/chat", 404),
        ("GET", "/../serving/app.py", 404),
    ],
)
def test_pages_that_are_not_there(server, method, path, status):
    found, headers, body = server.raw(method, path, {} if method == "POST" else None)
    assert found == status
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert headers["Cache-Control"] == "no-store"


def test_bodies_have_a_limit_packed_or_not(server):
    large = json.dumps({"prompt": "a" * 2**21}).encode()
    assert server.ask("POST", "/v1/completions", large)[0] == 413
    packed = gzip.compress(large)
    assert len(packed) < 10_000
    assert server.ask("POST", "/v1/completions", packed, Content_Encoding="gzip")[0] == 413
    status, body = server.ask("POST", "/v1/completions", b"no gzip", Content_Encoding="gzip")
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    small = gzip.compress(json.dumps({"prompt": "Kari"}).encode())
    assert server.ask("POST", "/v1/completions", small, Content_Encoding="gzip")[0] == 200


def test_only_json_is_taken(server):
    # What a form of any web page can send.
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        status, body = server.ask("POST", "/v1/completions", {"prompt": "a"}, Content_Type=kind)
        assert (status, "application/json" in body["error"]["message"]) == (415, True)


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", "", "["]
)
def test_a_name_that_was_made_to_point_here_is_refused(server, path, host):
    status, body = server.ask("GET", path, Host=host)
    assert (status, body["error"]["code"]) == (403, "foreign_host")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "127.9.9.9", "[::1]:8000"])
def test_this_machine_s_names(server, host):
    assert server.ask("GET", "/health", Host=host)[0] == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1:1", "null", "http://["]
)
def test_pages_of_other_origins_are_refused(server, origin):
    status, body = server.ask("POST", "/v1/completions", {"prompt": "Kari"}, Origin=origin)
    assert (status, body["error"]["code"]) == (403, "foreign_origin")
    status, headers, _ = server.raw("OPTIONS", "/v1/completions", Origin=origin)
    assert status == 403
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_its_own_origin_is_not_another(server):
    body = {"prompt": "Kari"}
    assert server.ask("POST", "/v1/completions", body, Origin=server.url)[0] == 200


@pytest.mark.parametrize(
    "lines",
    [
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"no HTTP at all \xff\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 20_000 + b"\r\n\r\n",
    ],
)
def test_no_header_of_http(server, lines):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(lines)
        assert connection.recv(100).startswith(b"HTTP/1.0 400 ")


def test_a_token_is_asked_for(make_engine):
    with served(make_engine(), TOKEN) as server:
        body = {"prompt": "Kari"}
        wrong = ("Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe9", TOKEN)
        for given in ({}, *({"Authorization": value} for value in wrong)):
            for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models")):
                status, headers, text = server.raw(
                    method, path, body if method == "POST" else None, **given
                )
                error = json.loads(text)["error"]
                assert (status, error["code"]) == (401, "invalid_api_key")
                assert headers["WWW-Authenticate"] == "Bearer"
                assert TOKEN not in text.decode()
        key = {"Authorization": f"Bearer {TOKEN}"}
        assert server.ask("POST", "/v1/completions", body, **key)[0] == 200
        # Behind a proxy the host has another name; pages of other sites stay out.
        assert server.ask("POST", "/v1/completions", body, Host="llm.example", **key)[0] == 200
        foreign = server.ask("POST", "/v1/completions", body, Origin="http://evil.example", **key)
        assert foreign[0] == 403
        for given in ({}, {"Authorization": f"Bearer {TOKEN}x"}):
            assert server.ask("GET", "/health", **given) == (200, {"status": "ok"})
        status, body = server.ask("GET", "/health", **key)
        assert (status, body) == (200, {"status": "ok", "slots": 4, "running": 0, "waiting": 0})
        assert server.raw("GET", "/")[0] == 200


def test_the_page_may_load_nothing(server):
    status, headers, page = server.raw("GET", "/")
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    rules = headers["Content-Security-Policy"]
    assert rules == policy(page.decode())
    assert rules.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in rules
    assert b"no medical advice" in page
    for word in (b"http:", b"https:", b"src=", b"@import", b"url("):
        assert word not in page


def test_the_log_has_counts_and_no_text(make_engine):
    secret = "Kari tomel"
    with served(make_engine()) as server:
        server.complete(secret, user=secret, **FIXED)
        server.raw("GET", f"/v1/models/{secret.replace(' ', '-')}")
        server.raw("GET", f"/{secret.split()[0]}?{secret.split()[1]}")
        server.refused(prompt=secret, model=secret)
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nKari\xff tomel\r\n\r\n")
            assert connection.recv(100)
        lines = "\n".join(server.log)
    assert "POST /v1/completions 200 prompt=" in lines
    assert "GET /v1/models/{name} 404 prompt=0" in lines
    assert "GET - 404" in lines
    assert "a connection ended with an error" in lines
    assert not [word for word in secret.split() if word in lines]
