"""What has come of a file is gone on with, and never glued to another version of it."""

import email.utils
import functools
import hashlib
import json
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from data.fetching import download
from data.fetching.web import Client, FetchError, Settings
from tests import server as ways
from tests.conftest import ROOT
from tests.test_download import BASELINE, HALF, NAME, PATH, assert_whole, ranges, run


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


def test_a_dropped_connection_costs_no_byte_twice(server, tmp_path):
    server.faults[PATH] = [ways.drop(HALF), ways.drop(50_000)]
    run(server, tmp_path)
    assert ranges(server) == [None, f"bytes={HALF}-", f"bytes={HALF + 50_000}-"]
    assert sum(request.sent for request in server.to(".xml.gz")) == len(server.files[PATH])


def test_two_versions_are_never_glued(server, tmp_path):
    """Whether the server minds If-Range, does not know it, or can not tell its versions apart."""
    new = random.Random(1).randbytes(2 * HALF)
    deaf = functools.partial(ways.serve, if_range=False)
    for case, (validators, then) in enumerate(
        [
            ({"ETag", "Last-Modified"}, []),
            ({"ETag", "Last-Modified"}, [deaf]),
            ({"Last-Modified"}, [deaf]),  # both versions have the same: the md5 is what tells
            (set(), [deaf]),
        ]
    ):
        server.reset()
        server.validators = validators
        server.add_citations(BASELINE, [1], filler=2 * HALF)
        server.faults[PATH] = [ways.changing(PATH, new, HALF), *then]
        run(server, tmp_path / str(case))
        assert_whole(server, tmp_path / str(case))
        assert server.files[PATH] == new


@pytest.mark.parametrize("case", ["deaf", "total", "place", "mirror"])
def test_the_parts_are_of_one_version_also_where_no_checksum_tells(server, tmp_path, case):
    """What a 206 says of itself is held against what came before; nothing else would show it."""
    old = server.files[PATH]
    new = bytes(255 - byte for byte in old) + b"longer" * (case == "total")
    target = tmp_path / NAME
    server.validators = {"ETag"} if case == "deaf" else {"Last-Modified"}
    shifted = functools.partial(ways.part, begin=HALF - 1)
    deaf = functools.partial(ways.serve, if_range=False)
    server.faults[PATH] = [ways.changing(PATH, new, HALF), shifted if case == "place" else deaf]
    with alone(server, retries=0 if case == "mirror" else 2) as client:
        if case == "mirror":
            with pytest.raises(FetchError):
                download.fetch(client, server.url + PATH, target, nothing, nowhere, most=0)
            other = server.url.replace("127.0.0.1", "localhost") + PATH
            download.fetch(client, other, target, nothing, nowhere, most=0)
        else:
            download.fetch(client, server.url + PATH, target, nothing, nowhere, most=0)
    assert target.read_bytes() == new


def alone(server, **changes):
    waiting = Settings(base_delay=0, timeout=10, **changes)
    return Client(waiting, threading.Event(), lambda line: None)


def nothing(_):
    return {}


def nowhere(at, size):
    pass


def test_a_server_that_sends_less_than_it_was_asked_for_is_asked_again(server, tmp_path):
    server.faults[PATH] = [ways.drop(HALF), functools.partial(ways.part, length=100_000)]
    run(server, tmp_path)
    assert_whole(server, tmp_path)
    assert ranges(server) == [None, f"bytes={HALF}-", f"bytes={HALF + 100_000}-"]


@pytest.mark.parametrize("excess", ["stated", "endless"])
def test_a_part_that_is_longer_than_the_rest_is_an_error(server, tmp_path, excess):
    whole = len(server.files[PATH])
    stated = {"Content_Range": f"bytes {HALF}-{whole - 1}/{whole}"}
    much = {"stated": whole, "endless": 1 << 30}[excess]  # more than what is missing
    server.faults[PATH] = [ways.drop(HALF), ways.endless(206, much, **stated)]
    report = run(server, tmp_path)
    (reason,) = report.failed.values()
    assert reason == f"over {whole:,} bytes came, which is all that the server states"
    assert not list((tmp_path / BASELINE).iterdir())
    run(server, tmp_path)
    assert_whole(server, tmp_path)


@pytest.mark.parametrize("total", ["9" * 5000, "9" * 19, "٣"])
def test_a_part_of_an_impossible_size_is_of_another_version(server, tmp_path, total):
    stated = {"Content_Range": f"bytes {HALF}-{HALF}/{total}".encode().decode("latin-1")}
    server.faults[PATH] = [ways.drop(HALF), ways.status(206, **stated)]
    run(server, tmp_path)
    assert_whole(server, tmp_path)
    assert ranges(server) == [None, f"bytes={HALF}-", None]


DAMAGE = [
    {"bytes": "x"},
    {"bytes": -5},
    {"bytes": True},
    {"bytes": 1.5},
    {"url": None},
    {"etag": ["x"]},
    {"etag": "a\nb"},
    {"etag": "\u0663"},
    {"last_modified": 5},
    {"validator": {}},
    {"validator": "a\r\nb: c"},
    {"md5": 5},
    {"mtime_ns": "x"},
    {"list": []},
    {"missing": 3},
    {"unlisted": [3]},
]


@pytest.mark.parametrize("change", DAMAGE, ids=str)
@pytest.mark.parametrize("whole", [True, False])
def test_a_damaged_record_is_none(server, tmp_path, change, whole):
    """What is damaged is not gone by; the file itself is looked at, or fetched again."""
    server.faults[PATH] = [] if whole else [ways.drop(HALF), *[ways.status(404)] * 2]
    run(server, tmp_path)
    name = NAME + (download.RECORD if whole else f"{download.PARTIAL}.json")
    file = tmp_path / BASELINE / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    server.requests.clear()
    server.faults.clear()
    report = run(server, tmp_path)
    assert (len(report.fetched), len(report.unchanged)) == ((0, 1) if whole else (1, 0))
    assert_whole(server, tmp_path)
    assert ranges(server) == [None]


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "\udcff"])
def test_a_record_that_is_no_json_is_none(server, tmp_path, content):
    run(server, tmp_path)
    file = tmp_path / BASELINE / (NAME + download.RECORD)
    file.write_text(content, errors="surrogateescape")
    assert len(run(server, tmp_path).unchanged) == 1
    assert_whole(server, tmp_path)


def test_a_run_that_was_killed_before_its_record_has_lost_nothing(server, tmp_path, monkeypatch):
    run(server, tmp_path)
    new = bytes(255 - byte for byte in server.files[PATH])
    server.put_citations(PATH, new)
    monkeypatch.setattr(download, "restate", killed)
    with pytest.raises(ZeroDivisionError):
        run(server, tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    file = tmp_path / BASELINE / NAME
    before = file.stat().st_ino
    run(server, tmp_path)
    assert_whole(server, tmp_path)
    assert file.stat().st_ino == before


def killed(*_):
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("validators", "age", "sent"),
    [
        ({"ETag", "Last-Modified"}, 0, "ETag"),
        ({"Last-Modified"}, 3600, "Last-Modified"),
        ({"Last-Modified"}, -1, None),  # as old as the answer: it may have changed since
        (set(), 0, None),
        ({"weak"}, 0, None),
    ],
)
def test_what_a_part_is_resumed_by(server, tmp_path, validators, age, sent):
    tags = {
        "ETag": f'"{hashlib.md5(server.files[PATH]).hexdigest()}"',
        "Last-Modified": email.utils.formatdate(time.time() - age, usegmt=True),
    }
    server.modified = tags["Last-Modified"]
    server.validators = validators - {"weak"}
    weak = {"ETag": 'W/"1"'}
    server.faults[PATH] = [ways.drop(HALF)]
    if "weak" in validators:
        server.faults[PATH] = [lambda h: ways.cut(h, weak, HALF)]
    run(server, tmp_path)
    assert_whole(server, tmp_path)
    again = server.to(".xml.gz")[1].headers
    assert again.get("If-Range") == (tags[sent] if sent else None)
    assert ("Range" in again) == bool(sent)


def stopped(server, output, path, how):
    """The process of a run that was sent a signal while the server stalled in the file at `path`,
    and what it printed of errors."""
    server.faults[path] = [ways.stall(HALF)]
    process = subprocess.Popen(
        [sys.executable, "-m", "data.fetch", "--source=pubmed", f"--output={output}",
         f"--mirror={server.url}", "--connections=1"],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    partial = output / f"{path[1:]}.partial"
    while process.poll() is None and not (partial.exists() and partial.stat().st_size >= HALF // 2):
        time.sleep(0.01)
    process.send_signal(how)
    return process, process.communicate(timeout=60)[1]


def test_an_interrupted_run_ends_at_once_and_goes_on_later(server, tmp_path):
    process, printed = stopped(server, tmp_path, PATH, signal.SIGINT)
    assert process.returncode == 130
    assert not server.released.is_set()  # it did not wait for the server
    assert (
        printed.splitlines()[-1] == "interrupted; the same command goes on where this one stopped"
    )
    assert "Traceback" not in printed
    begun = (tmp_path / f"{PATH[1:]}.partial").stat().st_size
    server.released.set()
    run(server, tmp_path)
    assert_whole(server, tmp_path)
    assert ranges(server) == [None, f"bytes={begun}-"]


def test_a_killed_run_goes_on_where_it_was(server, tmp_path):
    server.add_citations(BASELINE, [2], filler=2 * HALF)
    second = PATH.replace("0001", "0002")
    process, _ = stopped(server, tmp_path, second, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    partial = tmp_path / f"{second[1:]}.partial"
    begun = partial.stat().st_size
    assert not partial.with_suffix("").exists()
    server.released.set()
    server.requests.clear()
    run(server, tmp_path)
    assert_whole(server, tmp_path)
    assert [request.path for request in server.to(".xml.gz")] == [second]
    assert server.to(".xml.gz")[0].sent == len(server.files[second]) - begun
