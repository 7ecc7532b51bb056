"""What a data card is made of: manifests that contradict themselves are refused by name."""

import json
import shutil

import pytest

from biomedlm_jax.entry import UserError
from data import clean, documents
from data.cards import facts as card_facts
from tests.test_card import make_corpus


@pytest.fixture(scope="module")
def corpus(vocabulary, tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"), vocabulary)


class TestDocuments:
    def test_of_another_corpus(self, corpus, tmp_path):
        for folder in (corpus.parsed, tmp_path):
            with pytest.raises(UserError, match=r"--documents=.* is not the folder of documents"):
                card_facts.read(corpus.store, folder)

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            (
                documents.QUARANTINE,
                lambda t: t + '{"file": "x"}\n',
                r"line 6, is damaged: KeyError",
            ),
            (documents.QUARANTINE, lambda t: t + "[]\n", r"line 6, is damaged: TypeError"),
            (documents.QUARANTINE, lambda t: t.split("\n", 1)[1], r"has 4 lines, .* that 5 items"),
            (documents.QUARANTINE, None, r"quarantine\.jsonl is missing"),
            (clean.CONTAMINATION, lambda t: t.replace('"found": 1', '"found": 2'), "differ on"),
            (clean.CONTAMINATION, lambda t: t[:40], r"contamination\.json is damaged"),
            (clean.CONTAMINATION, None, r"contamination\.json is missing"),
        ],
    )
    def test_damage(self, corpus, tmp_path, name, change, message):
        file = shutil.copytree(corpus.cleaned, tmp_path / "documents") / name
        if change:
            file.write_text(change(file.read_text()))
        else:
            file.unlink()
        with pytest.raises(UserError, match=message):
            card_facts.read(corpus.store, tmp_path / "documents")


def read(store):
    return json.loads((store / "manifest.json").read_text())


def changed(manifest, path, change):
    """A copy of `manifest` in which what is at `path` is change(it); None: without it."""
    copy = json.loads(json.dumps(manifest))
    *way, last = path
    inner = copy
    for key in way:
        inner = inner[key]
    if change is None:
        del inner[last]
    else:
        inner[last] = change(inner[last])
    return copy


def up(number):
    return number + 1


class TestContradictions:
    @pytest.fixture
    def copy(self, corpus, tmp_path):
        return shutil.copytree(corpus.store, tmp_path / "store")

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("splits/train/bytes", r"bytes of train are [\d,]+, of the documents' [\d,]+"),
            ("tally/split/heldout/tokens", "tokens of heldout are"),
            ("tally/year/1998/documents", "documents by year are"),
            ("tally/licence/PubMed/tokens", "tokens by licence are"),
            ("documents/tally/source/abstract/bytes", "bytes of source 'abstract' are"),
            ("documents/shards/0/documents", "documents of the shards are"),
            ("documents/counts/read/citations", "citations read are 36, of the files 35"),
            ("documents/quarantined", "quarantined are 6, unreadable of the files 5"),
            ("documents/licences/CC-BY", "licences are 8, articles 7"),
            ("documents/counts/abstract/revised", "citations that came to an end are 36, read 35"),
            ("documents/counts/full_text/licence not open", "articles that came to an end are"),
            ("documents/counts/clean/kept", "cleaned with end 'kept' are"),
            ("documents/counts/clean abstract/benchmark", "abstract that are settled are"),
            ("documents/counts/clean bytes/kept", "bytes kept are"),
        ],
    )
    def test_are_refused_by_name(self, copy, path, message):
        keys = [int(key) if key.isdecimal() and len(key) == 1 else key for key in path.split("/")]
        found = changed(read(copy), keys, up)
        (copy / "manifest.json").write_text(json.dumps(found))
        with pytest.raises(UserError, match=rf"contradicts itself: {message}"):
            card_facts.read(copy, None)

    @pytest.mark.parametrize(
        ("path", "change", "message"),
        [
            ("documents", None, "KeyError.*'documents'"),
            ("tally", None, "KeyError.*'tally'"),
            ("versions", None, "KeyError.*'versions'"),
            ("documents/counts", None, "KeyError.*'counts'"),
            ("documents/files", None, "KeyError.*'files'"),
            ("documents/cleaning/bands", None, "KeyError.*'bands'"),
            ("tally/year/1998/tokens", str, "tally year 1998 tokens is .* and no count"),
            ("documents/counts/abstract/kept", lambda n: -n, "and no count"),
            ("documents/licences", lambda _: ["CC-BY"], "and no count"),
        ],
    )
    def test_manifests_of_another_form(self, copy, path, change, message):
        found = changed(read(copy), path.split("/"), change)
        (copy / "manifest.json").write_text(json.dumps(found))
        with pytest.raises(UserError, match=rf"does not tell where its documents.*{message}"):
            card_facts.read(copy, None)

    def test_damaged_stores(self, copy, tmp_path):
        vocabulary = copy / "vocabulary" / "sentencepiece.model"
        whole = vocabulary.read_bytes()
        vocabulary.write_bytes(whole.replace(b"\xe2\x96\x81k", b"\xe2\x96\x81z", 1))
        with pytest.raises(UserError, match="is not the vocabulary of the tokens beside it"):
            card_facts.read(copy, None)
        vocabulary.write_bytes(whole)
        shutil.rmtree(copy / "heldout")
        with pytest.raises(UserError, match="heldout"):
            card_facts.read(copy, None)
        with pytest.raises(UserError, match=r"--store=.* is no token store.*data\.tokenize"):
            card_facts.read(tmp_path, None)
