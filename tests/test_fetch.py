"""NCBI's files from a server with its layout: what is fetched, what is checked, what is said."""

import fcntl
import gzip
import os
import random
import re
import subprocess
import sys
import tarfile
from typing import Any

import pytest

from biomedlm_jax.entry import UserError
from data import documents, fetch, parse
from data.fetching import download, ncbi
from data.fetching.web import Settings
from tests import server as ways
from tests.conftest import ROOT

BASELINE, UPDATES = "pubmed/baseline", "pubmed/updatefiles"
COMM, NONCOMM = "pub/pmc/oa_bulk/oa_comm/xml", "pub/pmc/oa_bulk/oa_noncomm/xml"
FIRST = f"{BASELINE}/pubmed25n0001.xml.gz"
ARCHIVE = f"{COMM}/oa_comm_xml.PMC000xxxxxx.baseline.2024-12-18.tar.gz"
LIST = ARCHIVE.replace(".tar.gz", ".filelist.csv")


@pytest.fixture(scope="module")
def running():
    with ways.running() as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running.reset()
    running.add_citations(BASELINE, [1, 2, 3])
    running.add_citations(UPDATES, [4, 5])
    running.files[f"/{BASELINE}/README.txt"] = b"Terms and conditions"
    running.add_archive(f"/{ARCHIVE}", [901, 902])
    running.add_archive(f"/{COMM}/oa_comm_xml.incr.2025-01-31.tar.gz", [903])
    running.add_archive(f"/{NONCOMM}/oa_noncomm_xml.incr.2025-01-31.tar.gz", [904])
    return running


def run(server, source, output, *, retries=1, **changes):
    given = Settings(retries=retries, base_delay=0, timeout=10)
    return fetch.fetch(source, output, server.url, settings=given, **changes)


def command(server, output, *arguments):
    """Exit code, and what is printed to either stream."""
    done = subprocess.run(
        [sys.executable, "-m", "data.fetch", f"--output={output}", f"--mirror={server.url}",
         *arguments], cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_what_is_fetched_is_what_parse_reads(server, tmp_path):
    run(server, "pubmed", tmp_path / "in")
    run(server, "pubmed_updates", tmp_path / "in")
    report = run(server, "pmc_oa", tmp_path / "in", collections=ncbi.COLLECTIONS)
    assert len(report.fetched) == 3
    assert not any((report.unchanged, report.incomplete, report.failed, report.left_over))
    manifest = parse.parse(tmp_path / "in", tmp_path / "out", 0)
    wanted = [path[1:] for path in server.files if path.endswith((".xml.gz", ".tar.gz"))]
    assert sorted(file["name"] for file in manifest["files"]) == sorted(wanted)
    assert manifest["quarantined"] == 0
    citations = {f"PMID:{100 * file + record}" for file in range(1, 6) for record in (0, 1)}
    articles = {f"PMC:{number}" for number in (901, 902, 903, 904)}
    assert {d.id for d in documents.read(tmp_path / "out")} == citations | articles


def test_only_the_wanted_collections_and_the_first_files(server, tmp_path):
    report = run(server, "pmc_oa", tmp_path)
    assert {name.rsplit("/", 1)[0] for name in report.fetched} == {COMM}
    assert (tmp_path / LIST).read_bytes() == server.files[f"/{LIST}"]
    report = run(server, "pubmed", tmp_path, first=2)
    assert sorted(report.fetched) == [FIRST, FIRST.replace("0001", "0002")]
    report = run(server, "pmc_oa", tmp_path / "b", first=1)
    assert list(report.fetched) == [ARCHIVE]  # the baseline, and not what revises it


def test_a_rerun_asks_and_fetches_nothing(server, tmp_path):
    run(server, "pubmed", tmp_path)
    run(server, "pmc_oa", tmp_path)
    server.requests.clear()
    assert len(run(server, "pubmed", tmp_path).unchanged) == 3
    assert not server.to(".xml.gz")
    report = run(server, "pmc_oa", tmp_path)
    assert len(report.unchanged) == 2
    assert not report.fetched
    again = server.to(".tar.gz") + server.to(".csv")
    assert [(request.status, request.sent) for request in again] == [(304, 0)] * 4


@pytest.mark.parametrize("validators", [set(), {"Last-Modified"}])
def test_without_a_way_to_ask_a_file_is_fetched_again(server, tmp_path, validators):
    server.validators = validators
    assert len(run(server, "pmc_oa", tmp_path).fetched) == 2
    assert bool(run(server, "pmc_oa", tmp_path).fetched) == (not validators)


def test_a_server_that_minds_no_condition_is_not_listened_to_twice(server, tmp_path):
    run(server, "pmc_oa", tmp_path)
    server.always[f"/{ARCHIVE}"] = ways.unconditional
    before = (tmp_path / ARCHIVE).stat()
    assert len(run(server, "pmc_oa", tmp_path).unchanged) == 2
    assert server.to(ARCHIVE)[-1].status == 200
    assert (tmp_path / ARCHIVE).stat() == before


def test_a_rerun_fetches_what_is_new_changed_or_missing(server, tmp_path):
    run(server, "pubmed", tmp_path)
    run(server, "pmc_oa", tmp_path)
    second, third = (FIRST.replace("0001", f"000{n}") for n in (2, 3))
    again = bytearray(server.files[f"/{FIRST}"])
    again[4:8] = b"time"  # of gzip's header: as long as before, and it can still be read
    server.put_citations(f"/{FIRST}", bytes(again))
    (tmp_path / second).unlink()
    (tmp_path / third).write_bytes(b"cut")
    server.add_citations(BASELINE, [9])
    report = run(server, "pubmed", tmp_path)
    assert sorted(report.fetched) == [FIRST, second, third, FIRST.replace("0001", "0009")]
    assert all((tmp_path / n).read_bytes() == server.files[f"/{n}"] for n in report.fetched)
    server.add_archive(f"/{ARCHIVE}", [901, 902, 905])
    report = run(server, "pmc_oa", tmp_path)
    assert list(report.fetched) == [ARCHIVE]
    assert (tmp_path / ARCHIVE).read_bytes() == server.files[f"/{ARCHIVE}"]
    assert not report.incomplete


def test_files_that_another_program_fetched_are_taken_if_they_are_right(server, tmp_path):
    for name in (FIRST, ARCHIVE):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(server.files[f"/{name}"])
    second = FIRST.replace("0001", "0002")
    (tmp_path / second).write_bytes(bytes(len(server.files[f"/{second}"])))
    before = [(tmp_path / name).stat().st_ino for name in (FIRST, ARCHIVE)]
    assert FIRST in run(server, "pubmed", tmp_path).unchanged
    assert ARCHIVE in run(server, "pmc_oa", tmp_path).unchanged
    assert [(tmp_path / name).stat().st_ino for name in (FIRST, ARCHIVE)] == before
    for name in (FIRST, second, ARCHIVE):
        assert (tmp_path / name).read_bytes() == server.files[f"/{name}"]
        assert (tmp_path / f"{name}{download.RECORD}").exists()


def test_a_file_that_was_changed_on_the_disk_is_fetched_again(server, tmp_path):
    """Also where its size is the same."""
    second = FIRST.replace("0001", "0002")
    run(server, "pubmed", tmp_path)
    run(server, "pmc_oa", tmp_path)
    for name in (FIRST, ARCHIVE, LIST):
        whole = bytearray((tmp_path / name).read_bytes())
        whole[-20] ^= 1
        (tmp_path / name).write_bytes(whole)
    os.utime(tmp_path / second)  # this one has a new time and the same content
    before = (tmp_path / second).stat().st_ino
    report = run(server, "pubmed", tmp_path)
    assert list(report.fetched) == [FIRST]
    assert second in report.unchanged
    assert (tmp_path / second).stat().st_ino == before
    assert list(run(server, "pmc_oa", tmp_path).fetched) == [ARCHIVE]
    for name in (FIRST, second, ARCHIVE, LIST):
        assert (tmp_path / name).read_bytes() == server.files[f"/{name}"]
    server.requests.clear()
    assert len(run(server, "pubmed", tmp_path).unchanged) == 3
    assert not server.to(".xml.gz")  # the new time is known now


def test_files_that_the_server_has_no_longer_are_named(server, tmp_path):
    run(server, "pubmed", tmp_path)
    for path in [path for path in server.files if path.startswith(f"/{BASELINE}/")]:
        server.files[path.replace("pubmed25", "pubmed26")] = server.files.pop(path)
    for path in server.to(".xml.gz"):
        name = path.path.replace("pubmed25", "pubmed26")
        server.put_citations(name, server.files[name])
    report = run(server, "pubmed", tmp_path)
    assert len(report.fetched) == 3
    assert report.left_over == [FIRST.replace("0001", f"000{n}") for n in (1, 2, 3)]


def test_one_failure_stops_no_other_and_the_command_says_so(server, tmp_path):
    server.always[f"/{FIRST}"] = ways.status(404)
    server.faults[f"/{BASELINE}/"] = [ways.status(503)]
    code, printed = command(server, tmp_path, "--source=pubmed")
    assert code == 2
    assert "fetched 2 files" in printed
    assert "again in " in printed
    assert (
        f"error: 1 files could not be fetched; the same command tries again\n  {FIRST}: 404 Not"
        in printed
    )
    assert "Traceback" not in printed
    del server.always[f"/{FIRST}"]
    server.requests.clear()
    code, printed = command(server, tmp_path, "--source=pubmed")
    assert (code, "error" in printed) == (0, False)
    assert "fetched 1 files" in printed
    assert "there already: 2 files" in printed
    assert [request.path for request in server.to(".xml.gz")] == [f"/{FIRST}"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "its checksum, pubmed25n0001.xml.gz.md5: 404 Not Found"),
        (b"", "is b'', not MD5"),
        (b"<html>Sorry</html>", "is b'<html>Sorry</html>', not MD5"),
        (b"MD5(pubmed25n0002.xml.gz)= " + b"0" * 32, "not MD5(pubmed25n0001.xml.gz)="),
        (b"\xff" * 100, "not MD5"),
    ],
)
def test_a_checksum_that_is_none(server, tmp_path, content, reason):
    del server.files[f"/{FIRST}.md5"]
    if content is not None:
        server.files[f"/{FIRST}.md5"] = content
    report = run(server, "pubmed", tmp_path)
    assert reason in report.failed[FIRST]
    assert len(report.fetched) == 2
    assert not (tmp_path / FIRST).exists()


def test_a_checksum_as_md5sum_writes_it(server, tmp_path):
    for path in (path for path in server.files if path.endswith(".md5")):
        name, digest = re.findall(rb"MD5\((.*)\)= (.*)\n", server.files[path])[0]
        server.files[path] = digest.upper() + b"  " + name + b"\n"
    assert len(run(server, "pubmed", tmp_path).fetched) == 3


def with_header(key, value, times=1):
    """An archive with an extended header that may say anything, as often as it is said."""
    member = tarfile.TarInfo("PMC000xxxxxx/PMC901.xml")
    member.pax_headers = {key: value}
    written = member.tobuf(tarfile.PAX_FORMAT)
    return gzip.compress(written[:-512] * times + written[-512:] + bytes(1024), mtime=0)


@pytest.mark.parametrize(
    ("path", "content", "reason"),
    [
        (ARCHIVE, b"no gzip", r"damaged archive: Not a gzipped file.* \(attempts: 2\)"),
        (ARCHIVE, lambda whole: whole[:-100], r"damaged archive: Compressed file ended before"),
        (ARCHIVE, lambda whole: whole[:-8] + bytes(4) + whole[-4:], "damaged archive: CRC check"),
        (
            ARCHIVE,
            gzip.compress(b"no tar" * 1000, mtime=0),
            "damaged archive: (invalid|file could not)",
        ),
        (ARCHIVE, with_header("GNU.sparse.map", "abc"), "damaged archive: invalid literal for int"),
        (ARCHIVE, with_header("GNU.sparse.size", "5" * 5000), "damaged archive: "),
        (ARCHIVE, with_header("size", "-5120"), "damaged archive: "),
        (ARCHIVE, with_header("size", str(10**24)), "damaged archive: .* is larger than the arc"),
        (ARCHIVE, with_header("path", "x", times=2000), "damaged archive: maximum recursion"),
        (LIST, None, r"its list of articles, oa_comm_xml.*\.filelist\.csv: 404 Not Found"),
        (LIST, b"<html>Sorry</html>", r"its list .* is no list of articles: it begins \["),
        (LIST, b"", r"its list .* is no list of articles: it begins None"),
        (LIST, b'Article File\n"' + b"x" * 200_000, r"is no list of articles: field larger"),
    ],
)
def test_what_is_no_archive_or_list(server, tmp_path, path, content, reason):
    """Is fetched once more, and has no name in the end."""
    whole = server.files.pop(f"/{path}")
    if content is not None:
        server.files[f"/{path}"] = content(whole) if callable(content) else content
    if path == LIST:
        server.pages[f"/{COMM}/"] = f'<a href="{ARCHIVE.rsplit("/", 1)[1]}">x</a>'.encode()
    report = run(server, "pmc_oa", tmp_path)
    assert re.search(reason, report.failed[ARCHIVE])
    assert not (tmp_path / ARCHIVE).exists()
    assert len(server.to(ARCHIVE)) == (2 if path == ARCHIVE else 0)


def test_an_archive_is_held_against_its_list(server, tmp_path):
    server.add_archive(f"/{ARCHIVE}", [901, 902, 907], listed=[901, 902, *range(910, 917)])
    code, printed = command(server, tmp_path, "--source=pmc_oa")
    assert code == 2
    assert (
        f"""1 archives are whole, but not what their lists say; they are kept, and \
NAME.fetched.json beside has all names
  {ARCHIVE}: 7 articles of its list are not in it: PMC910.xml, PMC911.xml, PMC912.xml, PMC913.xml, \
PMC914.xml, ...; 1 articles are not on its list: PMC907.xml"""
        in printed
    )
    record = download.record_of(tmp_path / ARCHIVE)
    assert record["missing"] == [f"PMC{n}.xml" for n in range(910, 917)]
    assert list(run(server, "pmc_oa", tmp_path).incomplete) == [ARCHIVE]  # it is said each time
    whole = server.files[f"/{ARCHIVE}"]
    server.add_archive(f"/{ARCHIVE}", [901, 902, 907])
    server.files[f"/{ARCHIVE}"] = whole  # only the list is put right
    report = run(server, "pmc_oa", tmp_path)
    assert (report.fetched, report.incomplete) == ({}, {})
    assert not run(server, "pmc_oa", tmp_path).incomplete


def test_lists_with_a_mark_of_their_encoding_and_rows_without_a_name(server, tmp_path):
    path = f"/{LIST}"
    rows = b',"J. 2024 Jan 1; 1:1",,,,,no\nPMC000xxxxxx/,"J. 2024 Jan 1; 1:1",,,,,no\n\n'
    server.files[path] = b"\xef\xbb\xbf" + server.files[path] + rows
    report = run(server, "pmc_oa", tmp_path)
    assert ARCHIVE in report.fetched
    assert not report.incomplete
    assert ncbi.articles_listed(tmp_path / LIST) == {"PMC901.xml", "PMC902.xml"}


def test_both_are_issued_again_while_an_archive_comes(server, tmp_path):
    whole = server.files[f"/{ARCHIVE}"]

    def issued(handler):
        server.add_archive(f"/{ARCHIVE}", [901, 902, 908])
        ways.serve(handler)

    server.faults[f"/{ARCHIVE}"] = [issued]
    report = run(server, "pmc_oa", tmp_path)
    assert report.incomplete == {}
    assert (tmp_path / ARCHIVE).read_bytes() == server.files[f"/{ARCHIVE}"] != whole
    assert (tmp_path / LIST).read_bytes() == server.files[f"/{LIST}"]


def test_a_hostile_index_leads_nowhere(server, tmp_path):
    good = "pubmed25n0001.xml.gz"
    hostile = [
        f"../{good}",
        f"../../../../tmp/{good}",
        f"/{UPDATES}/{good}",
        f"http://127.0.0.1:1/{good}",
        f"//127.0.0.1:1/{good}",
        f"%2e%2e%2f{good}",
        f"{good}?x=/../y",
        f"{good}#x",
        f"{good}/",
        f"{good}\n",
        f" {good}",
        f"./{good}",
        f"sub/{good}",
        f"..\\{good}",
        "pubmed25n000\u0662.xml.gz",
        "pubmed25n0002.xml.gz.partial",
        "pubmed25n0002.xml.gz.fetched.json",
        "javascript:alert(1)",
        "",
    ]
    links = "".join(f'<a href="{name}">pubmed25n0002.xml.gz</a> 99T<br>' for name in hostile)
    page = f"<html><a>no link</a><a name=x></a>{links}<A HREF={good}>x</A></body>"
    server.pages[f"/{BASELINE}/"] = page.encode()
    report = run(server, "pubmed", tmp_path / "out")
    assert list(report.fetched) == [FIRST]
    assert not report.failed
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert {request.path for request in server.requests} == {
        f"/{BASELINE}/",
        f"/{FIRST}",
        f"/{FIRST}.md5",
    }


@pytest.mark.parametrize("page", [b"", b"  ", b"<html></html>", b"\x00\xff", b"<a href='x'>y</a>"])
def test_an_empty_index(server, tmp_path, page):
    server.pages[f"/{BASELINE}/"] = page
    with pytest.raises(
        UserError, match=r"lists no file such as pubmed25n0001\.xml\.gz; is --mirror"
    ):
        run(server, "pubmed", tmp_path)
    server.pages[f"/{COMM}/"] = page
    with pytest.raises(UserError, match=r"lists no file such as oa_comm.*keeps PMC's archives"):
        run(server, "pmc_oa", tmp_path)


def test_sizes_in_an_index():
    names = re.compile(r"\w+")
    apache = (
        b"<pre><a href=a>a</a>  2025-01-11 12:33   19M\n<a href=b>b</a>  2025-01-11 12:33  60 \n"
    )
    table = b"<table><tr><td>x</td><td><a href=c>c</a></td><td>2025-01-11 12:33</td><td>1.5K</td>"
    nginx = b"<pre><a href=d>d</a>   11-Jan-2025 12:33    19922944\n<a href=e>e</a>   -\n"
    found = {}
    for page in (apache, table, nginx):
        found |= ncbi.index(page, names)
    assert found == {"a": 19 << 20, "b": 60, "c": 1536, "d": 19922944, "e": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mirror": "ftp://ftp.ncbi.nlm.nih.gov"}, "--mirror=ftp://.* is no web address"),
        ({"mirror": "file:///data"}, "is no web address"),
        ({"mirror": "/data"}, "is no web address"),
        ({"mirror": "https://"}, "is no web address"),
        ({"mirror": "https://host:port"}, "is no web address"),
        ({"mirror": "https://[host"}, "is no web address"),
        ({"mirror": "https://host/?a=b"}, "is no web address"),
        (
            {"mirror": "http://ftp..ncbi.nlm.nih.gov"},
            "/pubmed/baseline/: .*label.*is --mirror right",
        ),
        ({"mirror": "http://127.0.0.1:1"}, "http://127.0.0.1:1/.*: .*refused.*is --mirror right"),
        ({"source": "pmc_oa", "collections": []}, "--collections=: there are oa_comm, oa_noncomm"),
        ({"source": "pmc_oa", "collections": ["oa_x"]}, "--collections=oa_x: there are"),
        ({"source": "pmc_oa", "pmc_folder": "/a/../b"}, "--pmc_folder=/a/../b is no folder"),
        ({"source": "pmc_oa", "pmc_folder": ""}, "--pmc_folder= is no folder"),
        ({"source": "pmc_oa", "pmc_folder": "pub"}, r"/pub/oa_comm/xml/: 404 .*August 2026"),
    ],
)
def test_mistakes_of_the_user(server, tmp_path, changes, message):
    given = {"source": "pubmed", "mirror": server.url, "output": tmp_path, **changes}
    with pytest.raises(UserError, match=message):
        fetch.fetch(**given, settings=Settings(retries=0))


def test_another_folder_of_archives(server, tmp_path):
    for path in list(server.files):
        server.files[path.replace("/pub/pmc/", "/pub/pmc/deprecated/")] = server.files.pop(path)
    report = run(server, "pmc_oa", tmp_path, pmc_folder="/pub/pmc/deprecated/oa_bulk/")
    assert ARCHIVE.replace("/pmc/", "/pmc/deprecated/") in report.fetched


def test_no_room_is_said_before_the_start(server, tmp_path, monkeypatch):
    few = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda _: few)
    with pytest.raises(UserError, match=r"has 0.0 GB free, and about .* --first=N"):
        run(server, "pubmed", tmp_path)
    assert not server.to(".xml.gz")
    server.pages[f"/{BASELINE}/"] = b'<a href="pubmed25n0001.xml.gz">no size</a>'
    assert list(run(server, "pubmed", tmp_path).fetched) == [FIRST]


def test_one_run_at_a_time(server, tmp_path):
    with (tmp_path / ".fetch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # a run wants it for itself alone
        with pytest.raises(UserError, match=r"another data\.fetch is at work there"):
            run(server, "pubmed", tmp_path)
    assert not server.requests
    run(server, "pubmed", tmp_path)


def test_a_lock_that_leads_elsewhere_is_not_followed(server, tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.fetch.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"can not be written: .*\.fetch\.lock: Too many levels"):
        run(server, "pubmed", tmp_path / "out")
    assert (tmp_path / "mine").read_text() == "precious"
    (tmp_path / "out/.fetch.lock").unlink()
    (tmp_path / "out/.fetch.lock").write_text("a note")
    run(server, "pubmed", tmp_path / "out")
    assert (tmp_path / "out/.fetch.lock").read_text() == "a note"


def test_what_is_there_needs_no_room(server, tmp_path, monkeypatch):
    run(server, "pubmed", tmp_path)
    for file in (tmp_path / BASELINE).glob("*.gz"):
        os.utime(file)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    assert len(run(server, "pubmed", tmp_path).unchanged) == 3


def test_few_connections_and_a_name(server, tmp_path):
    server.add_citations(BASELINE, range(1, 30), filler=2000)
    run(server, "pubmed", tmp_path, connections=2)
    assert server.most_busy <= 2
    agents = {request.headers["User-Agent"] for request in server.requests}
    assert agents == {"biomedlm_jax (data.fetch)"}
    code, printed = command(server, tmp_path, "--source=pubmed", "--connections=9")
    assert (code, "--connections=9" in printed) == (2, True)


@pytest.mark.parametrize("known", [True, False])
def test_the_bar_ends_full_whatever_was_known(server, tmp_path, capsys, known):
    server.add_citations(BASELINE, [1], filler=200_000)
    if not known:
        links = [f'<a href="pubmed25n000{n}.xml.gz">x</a>' for n in (1, 2, 3)]
        server.pages[f"/{BASELINE}/"] = "".join(links).encode()
    second, third = (FIRST.replace("0001", f"000{n}") for n in (2, 3))
    server.faults[f"/{FIRST}"] = [ways.drop(100_000), ways.without_ranges]
    server.always[f"/{second}"] = ways.status(404)
    assert list(run(server, "pubmed", tmp_path).failed) == [second]
    last = capsys.readouterr().err.rsplit("\r", 1)[-1]
    total = f"{sum(len(server.files[f'/{name}']) for name in (FIRST, third)) / 1000:.0f}k"
    assert "100%" in last
    assert f"{total}/{total}" in last


def test_names_lead_to_the_order_of_publication():
    draw = random.Random(0)
    wanted = ["pubmed24n0999.xml.gz", "pubmed25n9999.xml.gz", "pubmed25n10000.xml.gz"]
    page = "".join(f'<a href="{n}">x</a>' for n in draw.sample(wanted, 3)).encode()
    client: Any = type("Client", (), {"read": lambda self, url: page})()
    found = ncbi.listed(client, "pubmed", "http://x/", ROOT)
    assert [remote.target.name for remote in found] == wanted
