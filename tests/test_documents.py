"""What is read of a folder of documents is what was written, or an error that names the place."""

import json

import pytest
import zstandard
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from biomedlm_jax.entry import UserError
from data import documents
from data.documents import MANIFEST, SHARDS, Document
from tests.test_clean import document, write

TEXTS = ["One text.", "Another one\u2028with \u00e9.", "A third \U0001d400 one."]
FOUND = [document(number, text) for number, text in enumerate(TEXTS, 1)]


def packed(file, *lines):
    file.write_bytes(zstandard.compress(b"".join(lines)))
    return file


def test_a_shard_that_was_replaced_is_refused_behind_its_last_document(tmp_path):
    """By one with as many documents and bytes; one that is read in part is not judged."""
    folder = write(tmp_path / "in", FOUND)
    file = folder / SHARDS / "00000.jsonl.zst"
    (sha256,) = [one["sha256"] for one in json.loads((folder / MANIFEST).read_text())["shards"]]
    assert list(documents.read_shard(file, sha256)) == FOUND
    others = [document(number, text[::-1]) for number, text in enumerate(TEXTS, 1)]
    packed(file, *map(documents.to_line, others))
    assert list(documents.read_shard(file)) == others
    assert next(documents.read_shard(file, sha256)) == others[0]
    assert next(documents.read(folder)) == others[0]
    for read in (documents.read_shard(file, sha256), documents.read(folder)):
        with pytest.raises(UserError, match=r"00000\.jsonl\.zst is not the file .* 3 lines .*hash"):
            list(read)
    packed(file, *map(documents.to_line, FOUND[:2]))
    with pytest.raises(UserError, match=r"its 2 lines have another hash"):
        list(documents.read(folder))


def test_a_manifest_without_hashes_is_refused(tmp_path):
    folder = write(tmp_path / "in", FOUND)
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["shards"][0]["sha256"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"was not written by .*sha256"):
        documents.read_manifest(epath.Path(folder))


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.replace(b"third", b"\\ud800"),
        lambda line: line.replace(b'"journal": "', b'"journal": "\\uDFFF'),
        lambda line: line.replace(b"third", b"\xed\xa0\x80"),
        lambda line: line.replace(b"third", b"\xff"),
    ],
)
def test_half_of_a_surrogate_pair_is_refused_by_line(tmp_path, damage):
    """JSON can write what no text can be; it would fail where the text is written again."""
    lines = [documents.to_line(one) for one in FOUND]
    assert damage(lines[2]) != lines[2]
    file = packed(tmp_path / "x.zst", *lines[:2], damage(lines[2]))
    found = documents.read_shard(file)
    assert [next(found), next(found)] == FOUND[:2]
    with pytest.raises(UserError, match=r"x\.zst, line 3, is no document: Unicode"):
        next(found)


@given(st.text(), st.text())
def test_every_text_comes_back(text, journal):
    """Also written with escapes, as others' JSON has it."""
    one = Document("PMID:1", "abstract", "2020", "eng", "x", text, journal)
    line = documents.to_line(one)
    escaped = json.dumps(json.loads(line)).encode()
    assert documents._document(line) == documents._document(escaped) == one
