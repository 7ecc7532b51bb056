"""The token store: what was written is read, and what is missing or damaged is noticed."""

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline import store as store_format
from biomedlm_jax.pipeline.store import StoreWriter, TokenStore
from tests.conftest import ROOT


@pytest.fixture
def many_shards(monkeypatch, tmp_path, vocabulary):
    """A store in shards of 4 pieces, and its documents' tokens one after another."""
    monkeypatch.setattr(store_format, "_TOKEN_SHARD", 256)
    monkeypatch.setattr(store_format, "_TOKEN_PIECE", 64)
    monkeypatch.setattr(store_format, "_DOCUMENT_SHARD", 16)
    monkeypatch.setattr(store_format, "_DOCUMENT_PIECE", 4)
    folder = tmp_path / "store"
    folder.mkdir()
    writer = StoreWriter(
        folder, ["train", "heldout"], vocabulary=vocabulary, vocab_size=65536, eos_id=1
    )
    draw = np.random.default_rng(0)
    texts = [draw.integers(2, 65536, n) for n in draw.integers(0, 90, 60)]
    texts[7] = draw.integers(2, 65536, 1000)
    for number, text in enumerate(texts):
        tokens = np.append(text, 1)
        writer.append("train", tokens, f"PMC:{number + 1}", "full_text", 10)
    writer.close(documents={}, versions={})
    return folder, [np.append(text, 1) for text in texts]


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


def test_empty_split(many_shards):
    store = TokenStore(many_shards[0], "heldout")
    assert (store.tokens, store.documents.shape, store.text_bytes) == (0, (0, 4), 0)


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


def test_documents_are_read_once(many_shards):
    store = TokenStore(many_shards[0], "train")
    assert store.documents is store.documents
    assert store.text_bytes == 10 * len(store.documents)


def test_hash_is_of_the_tokens(many_shards):
    folder, texts = many_shards
    digest = hashlib.sha256(np.concatenate(texts).astype("<u2").tobytes()).hexdigest()
    assert TokenStore(folder, "train").sha256 == digest


def test_writer_refuses(tmp_path, vocabulary):
    with pytest.raises(UserError, match="65537 tokens; a store holds ids of at most 65536"):
        StoreWriter(tmp_path, ["train"], vocabulary=vocabulary, vocab_size=65537, eos_id=1)
    writer = StoreWriter(tmp_path, ["train"], vocabulary=vocabulary, vocab_size=400, eos_id=1)
    with pytest.raises(ValueError, match="does not end with the eos token"):
        writer.append("train", np.array([5, 6]), "PMID:1", "abstract", 1)
    with pytest.raises(ValueError, match="begins PMID:"):
        writer.append("train", np.array([5, 1]), "PMC:1", "abstract", 1)
    with pytest.raises(ValueError, match="a token that the vocabulary lacks"):
        writer.append("train", np.array([400, 1]), "PMID:1", "abstract", 1)


def test_unfinished_is_no_store(store, tmp_path):
    copy = shutil.copytree(store, tmp_path / "store")
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"config\.data\.store=.* no manifest\.json"):
        TokenStore(copy, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "is of format 2, this code reads 1"),
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
