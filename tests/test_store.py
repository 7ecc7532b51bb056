"""The token store: what was written is read, and what is missing or damaged is noticed."""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline import store as store_format
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.pipeline.store_writer import StoreWriter
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from tests.conftest import ROOT

SMALL = dict(TOKEN_SHARD=256, TOKEN_PIECE=64, DOCUMENT_SHARD=16, DOCUMENT_PIECE=4)


@pytest.fixture
def small_shards(monkeypatch):
    for name, size in SMALL.items():
        monkeypatch.setattr(store_format, name, size)


def writer_into(folder, vocabulary, size=65536):
    place = epath.Path(folder)
    return StoreWriter(place, place / "work", epath.Path(vocabulary), size, eos_id=1)


@pytest.fixture
def many_shards(small_shards, tmp_path, vocabulary):
    """A store in many shards, and its documents' tokens one after another."""
    draw = np.random.default_rng(0)
    texts = [draw.integers(2, 65536, n) for n in draw.integers(0, 90, 60)]
    texts[7] = draw.integers(2, 65536, 1000)
    texts = [np.append(text, 1) for text in texts]
    rows = [
        ("train", text, f"PMC:{n}", "full_text", 10, 2000 + n % 3)
        for n, text in enumerate(texts, 1)
    ]
    writer_into(tmp_path / "store", vocabulary).write_all(rows)
    return tmp_path / "store", texts


def test_windows(many_shards):
    folder, texts = many_shards
    whole, store = np.concatenate(texts), TokenStore(folder, "train")
    assert store.tokens == len(whole) > 3 * 256
    for length in (1, 64, 65, 700, len(whole)):
        starts = np.arange(0, len(whole) - length + 1, 37)
        found = store.read(starts, length)
        assert found.dtype == np.int32
        assert np.array_equal(found, [whole[s : s + length] for s in starts])
    assert store.read(np.zeros(0, np.int64), 5).shape == (0, 5)
    with pytest.raises(AssertionError):
        store.read(np.array([len(whole) - 4]), 5)


def test_ids_are_those_of_the_tokens(many_shards):
    folder, texts = many_shards
    store = TokenStore(folder, "train")
    owner = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    for start in range(0, store.tokens - 100, 13):
        expected = [f"PMC:{n + 1}" for n in np.unique(owner[start : start + 100])]
        assert store.ids(start, 100) == expected


def test_groups_are_sources_and_years(small_shards, tmp_path, vocabulary):
    kinds = [("full_text", 2001), ("abstract", 2020), ("abstract", 0), ("full_text", 1987)] * 9
    rows = [
        ("train", np.array([5, 1]), store_format.document_id(source, n), source, 3, year)
        for n, (source, year) in enumerate(kinds)
    ]
    writer_into(tmp_path, vocabulary).write_all(rows)
    store = TokenStore(tmp_path, "train")
    groups, of = store.groups
    assert groups.tolist() == [[0, 0], [0, 2020], [1, 1987], [1, 2001]]
    assert of.tolist() == [3, 1, 0, 2] * 9
    assert store.documents[:, 4].tolist() == [year for _, year in kinds]


def test_empty_split(many_shards):
    store = TokenStore(many_shards[0], "heldout")
    assert [part.shape for part in store.groups] == [(0, 2), (0,)]
    assert (store.tokens, store.documents.shape, store.text_bytes) == (0, (0, 5), 0)


def test_documents_are_read_when_asked_for(many_shards):
    """They can be damaged, and the tokens are read all the same."""
    folder, texts = many_shards
    shard = folder / "train/documents/c/1/0"
    content = bytearray(shard.read_bytes())
    content[200] ^= 1  # in the second piece; the first is read to find what was cut
    shard.write_bytes(content)
    store = TokenStore(folder, "train")
    assert np.array_equal(store.read(np.array([0]), len(texts[0]))[0], texts[0])
    for name in ("documents", "text_bytes"):
        with pytest.raises(UserError, match="can not be read, copy the store again"):
            getattr(store, name)


def test_some_rows_are_read_without_the_others(many_shards):
    folder, _ = many_shards
    store, whole = TokenStore(folder, "train"), TokenStore(folder, "train").documents
    for shard in ("c/1/0", "c/2/0"):  # all but the first 16 documents
        (folder / "train/documents" / shard).write_bytes(b"")
    assert np.array_equal(store.table(3, 16), whole[3:16])
    with pytest.raises(UserError, match="can not be read, copy the store again"):
        store.table(3, 17)
    with pytest.raises(AssertionError):
        store.table(0, len(whole) + 1)


def test_documents_are_read_once(many_shards):
    store = TokenStore(many_shards[0], "train")
    assert store.documents is store.documents
    assert store.text_bytes == 10 * len(store.documents)


@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=40), length=st.integers(1, 70))
def test_windows_with_and_without_separators(lengths, length, vocabulary):
    """Against documents joined by hand."""
    draw = np.random.default_rng(len(lengths))
    texts = [np.append(draw.integers(2, 300, n), 1) for n in lengths]
    rows = [("train", text, f"PMID:{n}", "abstract", 1, 2001) for n, text in enumerate(texts, 1)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name, size in SMALL.items():  # here and not in a fixture, which hypothesis would keep
            patch.setattr(store_format, name, size)
        writer_into(folder, vocabulary).write_all(rows)
        store = TokenStore(folder, "train")
        for separators in (True, False):
            parts = texts if separators else [text[:-1] for text in texts]
            whole = np.concatenate(parts)
            owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
            assert store.length(separators) == len(whole)
            starts = np.arange(0, len(whole) - length + 1, 3)
            tokens, segments = store.windows(starts, length, separators)
            assert tokens.dtype == segments.dtype == np.int32
            for start, row, segment in zip(starts, tokens, segments, strict=True):
                here = owner[start : start + length]
                assert np.array_equal(row, whole[start : start + length])
                assert np.array_equal(segment, here - here[0])
                named = {f"PMID:{n + 1}" for n in here}
                assert named <= set(store.ids(int(start), length, separators))


def test_a_window_looks_up_one_piece_of_the_table(many_shards, monkeypatch):
    """Also without separators nothing of the other documents is read."""
    folder, texts = many_shards
    store = TokenStore(folder, "train")
    assert store.rows > 12 * store_format.DOCUMENT_PIECE
    for shard in ("c/1/0", "c/2/0"):  # all but the first 16 documents
        (folder / "train/documents" / shard).write_bytes(b"")
    length = sum(map(len, texts[:4])) - 4
    tokens, _ = store.windows(np.array([0]), length, separators=False)
    assert np.array_equal(tokens[0], np.concatenate([text[:-1] for text in texts[:4]]))


def test_hash_is_of_the_tokens(many_shards):
    folder, texts = many_shards
    whole = np.concatenate(texts).astype("<u2")
    shards = [whole[i : i + 256].tobytes() for i in range(0, len(whole), 256)]
    names = "".join(hashlib.sha256(shard).hexdigest() for shard in shards)
    assert TokenStore(folder, "train").sha256 == hashlib.sha256(names.encode()).hexdigest()


@pytest.mark.parametrize("cuts", [[], [1], [20, 20, 21], [3, 40]])
def test_pieces_do_not_matter(many_shards, vocabulary, tmp_path, cuts):
    """The same documents in other pieces, shards written in another order: the same files."""
    folder, texts = many_shards
    writer = writer_into(tmp_path / "other", vocabulary)
    pieces = {}
    for name, numbers in enumerate(np.split(np.arange(len(texts)), cuts)):
        with writer.piece(f"{name:05}") as piece:
            for n in numbers.tolist():
                piece.append("train", texts[n], f"PMC:{n + 1}", "full_text", 10, 2000 + (n + 1) % 3)
        pieces[f"{name:05}"] = piece.summary()
    items = writer.create(pieces)
    assert writer.create(pieces) == items
    written = {item: writer.write(item) for item in reversed(items)}
    written |= {item: writer.write(item) for item in items}  # again, as after a crash
    shutil.rmtree(tmp_path / "other/work")
    writer.close(pieces, written)
    names = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
    other = tmp_path / "other"
    assert names == sorted(str(f.relative_to(other)) for f in other.rglob("*") if f.is_file())
    for name in names:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def test_writer_refuses(tmp_path, vocabulary, monkeypatch):
    monkeypatch.setattr(store_format, "MAX_VOCABULARY", 299)
    with pytest.raises(UserError, match="300 tokens; a store holds ids of at most 299"):
        StoreWriter.of(epath.Path(tmp_path), epath.Path(tmp_path), Vocabulary(vocabulary))
    with writer_into(tmp_path, vocabulary, size=400).piece("all") as piece:
        with pytest.raises(ValueError, match="does not end with the eos token"):
            piece.append("train", np.array([5, 6]), "PMID:1", "abstract", 1, 2001)
        with pytest.raises(ValueError, match="an eos token before its end"):
            piece.append("train", np.array([5, 1, 6, 1]), "PMID:1", "abstract", 1, 2001)
        with pytest.raises(ValueError, match="begins PMID:"):
            piece.append("train", np.array([5, 1]), "PMC:1", "abstract", 1, 2001)
        with pytest.raises(ValueError, match="a token that the vocabulary lacks"):
            piece.append("train", np.array([400, 1]), "PMID:1", "abstract", 1, 2001)
        with pytest.raises(ValueError, match="is of the year -1"):
            piece.append("train", np.array([5, 1]), "PMID:1", "abstract", 1, -1)


def test_unfinished_is_no_store(store, tmp_path):
    copy = shutil.copytree(store, tmp_path / "store")
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"config\.data\.store=.* no manifest\.json"):
        TokenStore(copy, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "is of format 2, this code reads 3; write the store again"),
        ({"splits": None}, "is not the manifest of a token store"),
        ({"vocabulary": {"size": 3}}, "is not the manifest of a token store"),
    ],
)
def test_other_manifests(store, tmp_path, change, message):
    copy = shutil.copytree(store, tmp_path / "store")
    manifest = json.loads((copy / "manifest.json").read_text()) | change
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=message):
        TokenStore(copy, "train")


def test_another_vocabulary(store, tmp_path):
    copy = shutil.copytree(store, tmp_path / "store")
    file = copy / "vocabulary/sentencepiece.model"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(UserError, match="is not the vocabulary of the tokens beside it"):
        TokenStore(copy, "train")


def test_no_such_split(store):
    with pytest.raises(UserError, match="no split 'test'; it has train, heldout"):
        TokenStore(store, "test")


def test_fewer_tokens_than_promised(store, tmp_path):
    copy = shutil.copytree(store, tmp_path / "store")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["train"]["tokens"] += 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"is of shape .* the manifest says"):
        TokenStore(copy, "train")


@pytest.mark.parametrize("name", ["train/tokens", "train/documents", "train/tokens/c/1"])
def test_missing_parts(many_shards, name):
    """A shard that is gone would otherwise be read as zeros."""
    folder, _ = many_shards
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=r"copy|copied"):
        TokenStore(folder, "train")


@pytest.mark.parametrize("name", ["tokens/c/2", "documents/c/2/0"])
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_cut_shards(many_shards, name, kept):
    shard = many_shards[0] / "train" / name
    content = shard.read_bytes()
    shard.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match="can not be read, copy the store again"):
        TokenStore(many_shards[0], "train")


def test_damaged_shards(many_shards):
    folder, texts = many_shards
    shard = folder / "train/tokens/c/2"
    content = bytearray(shard.read_bytes())
    content[200] ^= 1  # in the second piece; the first is read to find what was cut
    shard.write_bytes(content)
    store, length = TokenStore(folder, "train"), 3 * 256
    assert np.array_equal(store.read(np.array([0]), 512)[0], np.concatenate(texts)[:512])
    with pytest.raises(UserError, match="can not be read, copy the store again"):
        store.read(np.array([0]), length)


def test_reading_needs_no_tensorflow():
    code = (
        "import sys; import biomedlm_jax.pipeline.store; "
        "assert not {'tensorflow', 'seqio', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
