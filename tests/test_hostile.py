"""Hostile and wild XML: what NLM's update rules leave, and what a bad file may not do."""

import gzip
import http.server
import io
import json
import random
import tarfile
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import documents, parse
from data.parsing import records
from tests.test_jats import article
from tests.test_parse import archive, citation, deletion

# A file of one to six things: (PMID, version, words) of a citation, or the PMID of a deletion.
PMIDS = st.integers(1, 6)
ENTRY = st.one_of(st.tuples(PMIDS, st.integers(1, 3)), PMIDS)
RELEASES = st.lists(st.lists(ENTRY, min_size=1, max_size=6), min_size=1, max_size=5)


def parsed(folder: Path, output: Path) -> tuple[dict, dict, list]:
    """Texts by id, the manifest and the quarantine of what `parse` makes of a folder."""
    manifest = parse.parse(folder, output, 300)
    found = list(documents.read(output))
    texts = {d.id: d.text for d in found}
    assert len(texts) == len(found), "a document was written twice"
    lines = (output / "quarantine.jsonl").read_text().splitlines()
    return texts, manifest, [json.loads(line) for line in lines]


@given(releases=RELEASES, shuffle=st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_nothing_is_lost_or_doubled_whatever_the_order(releases, shuffle):
    """Of what was published after a citation's last deletion the highest version counts, the later
    one of two equal ones; a release's deletions come after its citations. Folders and the order in
    which files are found play no part."""
    newest: dict[int, tuple[int, str]] = {99: (1, "always there")}
    files = {}
    for number, entries in enumerate(releases, 1):
        parts, gone = [], set()
        for place, entry in enumerate(entries):
            if isinstance(entry, int):
                parts.append(deletion(entry))
                gone.add(entry)
                continue
            pmid, version = entry
            words = f"release {number}, place {place}"
            parts.append(citation(pmid, words, version=version))
            if version >= newest.get(pmid, (0, ""))[0]:
                newest[pmid] = version, words
        for pmid in gone:
            newest.pop(pmid, None)
        files[f"pubmed25n{number:04}.xml"] = (
            f"<PubmedArticleSet>{''.join(parts)}</PubmedArticleSet>"
        )
    files["pubmed24n0001.xml"] = (
        f"<PubmedArticleSet>{citation(99, 'always there')}</PubmedArticleSet>"
    )
    names = sorted(files)
    shuffle.shuffle(names)
    with tempfile.TemporaryDirectory() as folder:
        for place, name in enumerate(names):
            path = Path(folder, "input", f"{place}", name)
            path.parent.mkdir(parents=True)
            path.write_text(files[name])
        texts, manifest, quarantine = parsed(Path(folder, "input"), Path(folder, "output"))
    assert texts == {f"PMID:{n}": f"A title.\n\n{words}" for n, (_, words) in newest.items()}
    assert not quarantine
    count = manifest["counts"]["abstract"]
    assert sum(count.values()) == manifest["counts"]["read"]["citations"]
    assert count["kept"] == len(newest)


@pytest.fixture
def listener():
    """The URL of a server, and the requests that reached it."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(404)

        def log_message(self, *words):
            del words

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()
        thread.join()


def test_external_entities_are_neither_fetched_nor_read(tmp_path, listener):
    url, requests = listener
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    folder = tmp_path / "input"
    folder.mkdir()
    for name, kind in {"file": secret.as_uri(), "web": f"{url}/entity"}.items():
        declared = f'<!DOCTYPE x SYSTEM "{url}/x.dtd" [<!ENTITY e SYSTEM "{kind}">]>'
        (folder / f"{name}.xml").write_text(
            f"{declared}<PubmedArticleSet>{citation(1, '&e;')}{citation(2)}</PubmedArticleSet>"
        )
        (folder / f"{name}.nxml").write_text(declared + article(5, "<p>&e;</p>"))
    remote = f'<!DOCTYPE x [<!ENTITY % p SYSTEM "{url}/parameter"> %p;]>'
    (folder / "parameter.xml").write_text(
        f"{remote}<PubmedArticleSet>{citation(3)}</PubmedArticleSet>"
    )
    texts, _, quarantine = parsed(folder, tmp_path / "output")
    assert sorted(texts) == ["PMID:2", "PMID:3"]
    assert {line["file"] for line in quarantine} == {"file.nxml", "file.xml", "web.nxml", "web.xml"}
    assert all("undefined entity" in line["reason"] for line in quarantine)
    assert not requests
    assert not any("secret" in text for text in texts.values())
    assert "the secret" not in (tmp_path / "output" / "quarantine.jsonl").read_text()


def test_entity_expansion_is_refused(tmp_path):
    """A billion laughs, and one long entity used many times."""
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    laughs = f'<!DOCTYPE x [<!ENTITY l0 "ha">{levels}]>'
    long = f'<!DOCTYPE x [<!ENTITY l9 "{"ha" * 50_000}">]>'
    folder = tmp_path / "input"
    folder.mkdir()
    for name, declared in {"laughs": laughs, "long": long}.items():
        (folder / f"{name}.xml").write_text(
            f"{declared}<PubmedArticleSet>{citation(1, '&l9;' * 100)}</PubmedArticleSet>"
        )
        (folder / f"{name}.nxml").write_text(declared + article(5, f"<p>{'&l9;' * 100}</p>"))
    (folder / "good.xml").write_text(f"<PubmedArticleSet>{citation(2)}</PubmedArticleSet>")
    texts, _, quarantine = parsed(folder, tmp_path / "output")
    assert texts == {"PMID:2": "A title.\n\nWords."}
    assert sorted(line["file"] for line in quarantine) == [
        "laughs.nxml",
        "laughs.xml",
        "long.nxml",
        "long.xml",
    ]
    for line in quarantine:
        assert "amplification" in line["reason"] or "undefined entity" in line["reason"]


def test_invalid_utf8_is_named_and_the_rest_is_kept(tmp_path):
    folder = tmp_path / "input"
    folder.mkdir()
    broken = f"<PubmedArticleSet>{citation(1)}{citation(2, 'b@d')}{citation(3)}</PubmedArticleSet>"
    (folder / "pubmed25n0001.xml").write_bytes(broken.encode().replace(b"@", b"\xff"))
    (folder / "pubmed25n0002.xml").write_text(f"<PubmedArticleSet>{citation(4)}</PubmedArticleSet>")
    texts, _, (line,) = parsed(folder, tmp_path / "output")
    assert sorted(texts) == ["PMID:1", "PMID:3", "PMID:4"]
    assert line["file"] == "pubmed25n0001.xml"
    assert line["position"] == f"record 2, byte {broken.index(citation(2, 'b@d'))}, PMID 2"


def test_bom_namespace_and_empty_sets(tmp_path):
    folder = tmp_path / "input"
    folder.mkdir()
    one = f"<PubmedArticleSet>{citation(1)}</PubmedArticleSet>"
    (folder / "bom.xml").write_bytes(b"\xef\xbb\xbf" + one.encode())
    (folder / "wide.xml").write_bytes(one.replace("1<", "2<").encode("utf-16"))
    (folder / "empty.xml").write_text("<PubmedArticleSet></PubmedArticleSet>")
    texts, _, quarantine = parsed(folder, tmp_path / "output")
    assert sorted(texts) == ["PMID:1", "PMID:2"]
    assert not quarantine


def test_members_that_lead_out_of_an_archive_are_refused(tmp_path):
    folder = tmp_path / "input"
    folder.mkdir()
    climbing = {"../../PMC1.nxml": article(1), "/PMC2.nxml": article(2), "a/PMC3.nxml": article(3)}
    (folder / "climbing.tar.gz").write_bytes(archive(climbing))
    with tarfile.open(folder / "linked.tar.gz", "w:gz") as tar:
        link = tarfile.TarInfo("PMC4.nxml")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        content = article(5).encode()
        whole = tarfile.TarInfo("PMC5.nxml")
        whole.size = len(content)
        tar.addfile(whole, io.BytesIO(content))
    texts, _, quarantine = parsed(folder, tmp_path / "output")
    assert sorted(texts) == ["PMC:3", "PMC:5"]
    outside = "a path that leads out of the archive"
    assert sorted((q["position"], q["reason"]) for q in quarantine) == [
        ("../../PMC1.nxml", outside),
        ("/PMC2.nxml", outside),
        ("PMC4.nxml", "a link or device, not a file"),
    ]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["input", "output"]


def test_a_citation_of_50_megabytes_is_named(tmp_path):
    """It is passed over without being held; what stands before and behind it is kept."""
    folder = tmp_path / "input"
    folder.mkdir()
    long = " ".join(random.Random(0).choices(["cell", "mouse", "dose"], k=10_000)) * 1_000
    content = f"<PubmedArticleSet>{citation(1)}{citation(2, long)}{citation(3)}</PubmedArticleSet>"
    (folder / "pubmed25n0001.xml.gz").write_bytes(gzip.compress(content.encode(), 1))
    texts, _, (line,) = parsed(folder, tmp_path / "output")
    assert sorted(texts) == ["PMID:1", "PMID:3"]
    assert line["position"] == f"record 2, byte {content.index(citation(2, long))}"
    assert line["reason"] == f"a PubmedArticle of over {records.LARGEST} bytes"
