"""A file from a server that fails in every way: it comes whole, or an error says why."""

import contextlib
import email.utils
import errno
import functools
import hashlib
import os
import random
import re
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from biomedlm_jax.entry import UserError
from data import fetch
from data.fetching import download
from data.fetching.web import Settings
from tests import server as ways

BASELINE = "pubmed/baseline"
NAME = "pubmed25n0001.xml.gz"
PATH = f"/{BASELINE}/{NAME}"
HALF = 150_000  # of a file of 300 KB


@pytest.fixture(scope="module")
def running():
    with ways.running() as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    running.reset()
    running.add_citations(BASELINE, [1], filler=2 * HALF)
    yield running
    running.released.set()


def run(server, output, *, connections=fetch.CONNECTIONS, **changes):
    waiting = {"base_delay": 0.0, "timeout": 10.0, **changes}
    return fetch.fetch(
        "pubmed", output, server.url, connections=connections, settings=Settings(**waiting)
    )


def assert_whole(server, output):
    """The files are the server's, each with its record, and nothing is left of the work on them."""
    there = {f"/{file.relative_to(output)}" for file in output.rglob("*") if file.is_file()}
    wanted = {path for path in server.files if path.endswith(".xml.gz")}
    assert there == {"/.fetch.lock"} | wanted | {path + download.RECORD for path in wanted}
    for path in wanted:
        assert (output / path[1:]).read_bytes() == server.files[path]


def ranges(server):
    return [request.headers.get("Range") for request in server.to(".xml.gz")]


@pytest.mark.parametrize(
    ("faults", "resumed"),
    [
        ([ways.drop(HALF)], True),
        ([ways.drop(HALF), ways.vanish, ways.drop(1), ways.drop(70_000)], True),
        ([ways.drop(0)], False),
        ([ways.vanish], False),
        ([ways.status(503)], False),
        ([ways.drop(HALF), ways.status(502)], True),
        ([ways.status(429, Retry_After="0")], False),
        ([ways.in_pieces, ways.without_ranges], True),
        ([ways.drop(HALF), ways.without_ranges], True),
        ([ways.drop(HALF), ways.status(416)], True),
        ([ways.drop(HALF), ways.status(206, Content_Range="bytes 0-9/10")], True),
        ([ways.drop(HALF), ways.status(206)], True),
        ([ways.status(206, Content_Range="bytes 0-9/10")], False),
        ([ways.garbled], False),
        ([ways.drop(HALF), ways.garbled], True),
        ([ways.status(204)], False),
    ],
)
def test_what_passes_is_tried_again(server, tmp_path, faults, resumed):
    server.faults[PATH] = list(faults)
    report = run(server, tmp_path)
    assert report.fetched == {f"{BASELINE}/{NAME}": len(server.files[PATH])}
    assert_whole(server, tmp_path)
    assert any(ranges(server)) == resumed
    assert not server.faults[PATH]


@pytest.mark.parametrize(
    ("fault", "attempts", "message"),
    [
        (ways.status(503), 3, r"503 Service Unavailable \(attempts: 3\)"),
        (ways.vanish, 3, r"without response \(attempts: 3\)"),
        (ways.drop(0), 3, r"more expected\) \(attempts: 3\)"),
        (
            ways.garbled,
            3,
            r"md5 of what came is \w{32}, the server's .md5 says \w{32} ",
        ),
        (ways.status(403), 1, "^403 Forbidden$"),
        (ways.status(404), 1, "^404 Not Found$"),
        (ways.status(429, Retry_After="7200"), 1, "asks to wait 7200 s"),
        (ways.status(302, Location="ftp://elsewhere/x"), 1, "not https or http"),
        (ways.status(302, Location=PATH), 6, "over 5 redirects"),
        (lambda h: h.answer(200, {"Content-Encoding": "br"}, b"x"), 1, "sent as br"),
        (ways.status(302, Location="http://[bad"), 1, r"redirected to 'http://\[bad', .* no addr"),
        (ways.status(302, Location="/\xff\xfe"), 1, r"redirected to '/ÿþ', which is no address"),
        (ways.status(302, Location="http://a..b/"), 1, "'a..b', label empty or too long"),
        (ways.status(302, Location="http://a:99999/"), 1, "99999"),
        (ways.status(302), 3, "unexpected answer 302 Found"),
        (ways.status(503, Retry_After=f"Wed, 21 Oct {10**30} 07:28:00 GMT"), 3, "^503 Service"),
        (ways.status(503, Retry_After="Wed, 21 Oct 9999 07:28:00 GMT"), 1, "asks to wait 2"),
        (ways.in_chunks(b"-5", b"12345"), 3, r"attempts: 3\)"),
        (ways.in_chunks(b"five", b"12345"), 3, r"attempts: 3\)"),
        (ways.in_chunks(b"5" * 5000, b"12345"), 3, r"attempts: 3\)"),
        (
            ways.endless(200, 1 << 30),
            1,
            "over 67,108,864 bytes came, and the server states no number",
        ),
    ],
)
def test_what_does_not_pass_is_an_error(server, tmp_path, fault, attempts, message):
    server.always[PATH] = fault
    report = run(server, tmp_path, retries=2)
    assert list(report.failed) == [f"{BASELINE}/{NAME}"]
    assert re.search(message, report.failed[f"{BASELINE}/{NAME}"])
    assert len(server.to(".xml.gz")) == attempts
    assert not (tmp_path / BASELINE / NAME).exists()
    del server.always[PATH]
    run(server, tmp_path)
    assert_whole(server, tmp_path)


@pytest.mark.parametrize("year", [str(10**30), "99999"])
def test_a_last_modified_that_is_no_date(server, tmp_path, year):
    server.validators, server.modified = {"Last-Modified"}, f"Wed, 21 Oct {year} 07:28:00 GMT"
    server.faults[PATH] = [ways.drop(HALF)]
    run(server, tmp_path)
    assert_whole(server, tmp_path)
    assert ranges(server) == [None, None]


def test_a_redirect_with_an_endless_body_is_not_read(server, tmp_path):
    content = server.files[PATH]
    server.files[PATH + "/moved.xml.gz"] = content
    server.faults[PATH] = [ways.endless(302, 1 << 30, Location=f"{PATH}/moved.xml.gz")]
    assert list(run(server, tmp_path).fetched) == [f"{BASELINE}/{NAME}"]
    assert (tmp_path / BASELINE / NAME).read_bytes() == content
    assert server.to(NAME)[0].sent < 64 << 20  # what the system takes before the client goes


def test_a_wrong_md5_names_what_was_expected_and_found(server, tmp_path):
    wrong = bytes(255 - byte for byte in server.files[PATH])
    server.always[PATH] = ways.garbled
    reason = run(server, tmp_path, retries=1).failed[f"{BASELINE}/{NAME}"]
    found, expected = re.findall(r"[0-9a-f]{32}", reason)
    assert found == hashlib.md5(wrong).hexdigest()
    assert expected == hashlib.md5(server.files[PATH]).hexdigest()
    assert not list((tmp_path / BASELINE).iterdir())  # none of the wrong bytes are left


def test_retries_are_counted_anew_while_a_large_file_makes_headway(server, tmp_path):
    server.put_citations(PATH, random.Random(0).randbytes(6 << 20))
    server.faults[PATH] = [ways.drop(5 << 18)] * 4  # a quarter more than what counts as headway
    run(server, tmp_path, retries=1)
    assert_whole(server, tmp_path)


def test_a_stalled_server_is_left(server, tmp_path):
    server.faults[PATH] = [ways.stall(HALF)]
    server.faults[f"/{BASELINE}/"] = [ways.stall(10)]
    run(server, tmp_path, timeout=0.3)
    assert_whole(server, tmp_path)
    assert ranges(server) == [None, "bytes=131072-"]  # what is written is whole pieces of 64 KiB


def test_waits_grow_and_the_server_is_heard(server, tmp_path):
    waits = []
    server.faults[PATH] = [ways.status(503)] * 7
    run(server, tmp_path / "a", retries=7, sleep=waits.append, base_delay=4)
    for wait, longest in zip(waits, [4, 8, 16, 32, 64, 120, 120], strict=True):
        assert longest / 2 <= wait <= longest
    waits.clear()
    server.faults[PATH] = [ways.status(429, Retry_After="3000")]
    server.add_citations(BASELINE, [2, 3])
    server.requests.clear()
    run(server, tmp_path / "b", sleep=waits.append, connections=1)
    codes = [request.status for request in server.requests]
    assert waits[0] == 3000
    # Not only the file that was refused waits: each request after that does.
    assert len(waits) == 1 + len(codes[codes.index(429) + 1 :]) == 6
    assert min(waits) > 2000
    waits.clear()
    date = email.utils.formatdate(time.time() + 3000, usegmt=True)
    server.faults[PATH] = [ways.status(503, Retry_After=date)]
    run(server, tmp_path / "c", sleep=waits.append)
    assert 2000 < waits[0] <= 3000


def test_a_redirect_is_followed_to_another_host(server, tmp_path):
    with ways.running() as other:
        other.files = {"/moved" + PATH: server.files[PATH]}
        other.faults["/moved" + PATH] = [ways.drop(HALF)]
        server.always[PATH] = ways.status(301, Location=f"{other.url}/moved{PATH}")
        run(server, tmp_path)
        assert_whole(server, tmp_path)
        assert [request.status for request in other.requests] == [200, 206]


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_https_never_leads_to_http(server, tmp_path, monkeypatch):
    certificate = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 "
        "-keyout key -out cert -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(certificate, shell=True, cwd=tmp_path, check=True, capture_output=True)
    with ways.running() as safe:
        safe.encrypt(tmp_path / "cert", tmp_path / "key")
        safe.files = dict(server.files)
        with pytest.raises(UserError, match="certificate is not trusted"):
            run(safe, tmp_path / "out")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "cert"))
        safe.faults[PATH] = [ways.status(302, Location=f"{server.url}{PATH}")]
        reason = run(safe, tmp_path / "out").failed[f"{BASELINE}/{NAME}"]
        assert reason == f"is redirected to {server.url}{PATH}, which is not https"
        assert not server.requests
        run(safe, tmp_path / "out")
        assert_whole(safe, tmp_path / "out")


@pytest.mark.parametrize("way", ["limit", "sync"])
def test_a_full_disk_is_one_error(server, tmp_path, monkeypatch, way):
    server.add_citations(BASELINE, [2, 3, 4], filler=2 * HALF)
    if way == "sync":
        monkeypatch.setattr(os, "fsync", no_space)
        limits = contextlib.nullcontext()
    else:
        limits = largest_file(HALF)
    with limits, pytest.raises(UserError, match=r"can not be written: .*(No space|too large)"):
        run(server, tmp_path)
    assert not list(tmp_path.rglob("*.xml.gz"))
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    run(server, tmp_path)
    assert_whole(server, tmp_path)


def no_space(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def largest_file(size):
    """The system refuses to write larger ones, as it refuses to write to a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FAULTS = st.sampled_from(
    [
        *(ways.drop(after) for after in (0, 1, 65_536, 100_000, HALF)),
        ways.vanish,
        ways.status(500),
        ways.status(503, Retry_After="0"),
        ways.status(416),
        ways.status(206, Content_Range="bytes 0-9/10"),
        ways.garbled,
        ways.without_ranges,
        functools.partial(ways.serve, if_range=False),
        ways.in_pieces,
        ways.status(404),
    ]
)


@given(schedules=st.dictionaries(st.sampled_from(["1.xml.gz", "2.xml.gz", "2.xml.gz.md5"]),
                                 st.lists(FAULTS, max_size=5)))  # fmt: skip
@example(schedules={"2.xml.gz": [ways.garbled], "2.xml.gz.md5": [ways.serve, ways.status(404)]})
@settings(max_examples=60)
def test_whatever_happens_a_file_is_right_or_an_error_names_it(running, schedules):
    running.reset()
    running.add_citations(BASELINE, [1, 2], filler=2 * HALF)
    for ending, faults in schedules.items():
        running.faults[f"/{BASELINE}/pubmed25n000{ending}"] = list(faults)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        report = run(running, output, retries=3)
        for number in (1, 2):
            name = f"{BASELINE}/pubmed25n000{number}.xml.gz"
            assert (name in report.fetched) != (name in report.failed)
            assert (output / name).exists() == (name in report.fetched)
            if name in report.fetched:
                assert (output / name).read_bytes() == running.files[f"/{name}"]
            faults = schedules.get(f"{number}.xml.gz", [])
            if number == 1 and len(faults) <= 3 and not any(gives_404(fault) for fault in faults):
                assert name in report.fetched
        running.faults.clear()
        run(running, output, retries=0)
        assert_whole(running, output)


def gives_404(fault):
    return getattr(fault, "code", None) == 404
