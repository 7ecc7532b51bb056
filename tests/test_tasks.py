"""What a program that knows nothing but seqio gets from `pipeline.tasks`."""

import collections
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.store import SPLITS
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from data import documents, tokenizer
from data.documents import Document
from tests.conftest import ROOT, sentences

seqio = pytest.importorskip("seqio")
tf = pytest.importorskip("tensorflow")
tasks = pytest.importorskip("biomedlm_jax.pipeline.tasks")

FILES = 5
PREFIX = {
    "abstract": "PMID",
    "pile_abstract": "PILEA",
    "full_text": "PMC",
    "pile_full_text": "PILEC",
}


def write(folder, found, files=1, heldout_per_mille=200):
    """A folder of documents in several files, as `data.parse` leaves it."""
    place = epath.Path(folder) / documents.SHARDS
    place.mkdir(parents=True)
    summaries = []
    for part in range(files):
        name = place / f"{part:05}.jsonl.zst"
        with documents.ShardWriter(name, heldout_per_mille) as writer:
            for document in found[part * len(found) // files : (part + 1) * len(found) // files]:
                writer.write(document)
        summaries.append(writer.summary())
    documents.finish(epath.Path(folder), summaries, heldout_per_mille)
    return folder


def made(number, source, text):
    return Document(f"{PREFIX[source]}:{number}", source, "2001", "eng", "CC-BY", text)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """300 documents, twice as many abstracts as full texts."""
    draw = random.Random(0)
    lines = sentences(1000, seed=3)
    kinds = ["abstract", "abstract", "full_text", "abstract", "pile_full_text", "pile_abstract"]
    found = [
        made(number, kinds[number % len(kinds)], " ".join(draw.sample(lines, draw.randint(1, 4))))
        for number in range(300)
    ]
    return write(tmp_path_factory.mktemp("corpus") / "documents", found, FILES)


@pytest.fixture
def named(corpus, vocabulary, monkeypatch):
    """The variables are set; returns the vocabulary."""
    monkeypatch.setenv(tasks.DOCUMENTS, str(corpus))
    monkeypatch.setenv(tasks.VOCABULARY, str(vocabulary))
    return Vocabulary(vocabulary)


def expected(corpus, name, split):
    """The documents of a task or the mixture, in the folder's order."""
    sources = tasks.TASKS.get(name) or [s for some in tasks.TASKS.values() for s in some]
    return [d for d in documents.read(corpus, split) if d.source in sources]


def ids(dataset) -> list[str]:
    return [example["id"].decode() for example in dataset.as_numpy_iterator()]


@pytest.mark.parametrize("name", tasks.TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_examples_are_documents(name, split, corpus, named):
    dataset = seqio.get_mixture_or_task(name).get_dataset(split=split, shuffle=False)
    documents = expected(corpus, name, split)
    assert len(documents) > 5
    for example, document in zip(dataset.as_numpy_iterator(), documents, strict=True):
        assert example["targets"].tolist() == [*named.encode(document.text), named.eos_id]
        assert example["targets"].dtype == np.int32
        assert example["id"].decode() == document.id
        assert example["source"].decode() == document.source
        assert example["bytes"] == len(document.text.encode())


def test_the_vocabulary_is_the_one_that_is_named(named):
    vocabulary = seqio.get_mixture_or_task("pubmed").output_features["targets"].vocabulary
    text = "Kari tomel sin, dor <|endoftext|>."
    assert vocabulary.encode(text) == named.encode(text)
    assert vocabulary.encode_tf(text).numpy().tolist() == named.encode(text)
    assert vocabulary.decode(named.encode(text)) == text
    assert vocabulary.decode_tf(np.array(named.encode(text), np.int32)).numpy().decode() == text
    assert (vocabulary.vocab_size, vocabulary.eos_id) == (named.size, named.eos_id)
    assert (vocabulary.pad_id, vocabulary.unk_id, vocabulary.bos_id) == (0, 0, -1)
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary
    assert len({vocabulary, tasks.GivenVocabulary()}) == 1
    assert vocabulary != named


hostile = st.text(
    st.sampled_from("\u2581 aK\u03b2\u6c34\n<|endoftext|>") | st.characters(codec="utf-8")
)


@settings(max_examples=30)
@given(st.lists(hostile, min_size=1, max_size=4))
def test_ids_are_those_of_the_vocabulary(vocabulary, texts):
    """Also of U+2581, which SentencePiece writes for a space, and of several texts at once."""
    ours, same = Vocabulary(vocabulary), tasks.seqio_vocabulary(vocabulary)
    ids = [ours.encode(text) for text in texts]
    assert [same.encode(text) for text in texts] == ids
    assert [same.encode_tf(text).numpy().tolist() for text in texts] == ids
    assert same.encode_tf(tf.constant(texts)).to_list() == ids
    assert [same.decode(row) for row in ids] == texts


FOREIGN = """
import os, sys
import seqio
import biomedlm_jax.pipeline.tasks

lengths = {"targets": 16}
mixture = seqio.get_mixture_or_task("pubmed")
try:
    mixture.get_dataset(lengths, split="train")
except ValueError as error:
    print(error)
os.environ["BIOMEDLM_DOCUMENTS"], os.environ["BIOMEDLM_VOCABULARY"] = sys.argv[1:]
dataset = mixture.get_dataset(
    lengths, split="train", shuffle=True, seed=1, shard_info=seqio.ShardInfo(1, 2), num_epochs=1
)
packed = seqio.DecoderFeatureConverter(pack=True)(dataset, lengths)
for example in packed.take(2).as_numpy_iterator():
    print(*sorted(example), example["decoder_target_tokens"].shape)
"""


def test_a_program_of_somebody_else(corpus, vocabulary):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BIOMEDLM_")}
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, str(corpus), str(vocabulary)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    error, *lines = done.stdout.splitlines()
    assert error == (
        "the environment variable BIOMEDLM_DOCUMENTS is not set; let it name a folder that "
        "`python -m data.parse` wrote"
    )
    names = ["input_tokens", "loss_weights", "positions", "segment_ids", "target_tokens"]
    line = " ".join(f"decoder_{name}" for name in names) + " (16,)"
    assert lines == [line] * 2, done.stderr


@pytest.mark.parametrize(
    ("name", "count"),
    [("pubmed_abstracts", 2), ("pmc_fulltext", 5), ("pmc_fulltext", 6), ("pubmed", 3)],
)
def test_shards_are_a_division(name, count, corpus, named):
    """By file as long as there are enough of them, five here, then by document."""
    provider = seqio.get_mixture_or_task(name)
    options = {"passthrough_features": ["id"]} if name == tasks.MIXTURE else {}
    whole = collections.Counter(d.id for d in expected(corpus, name, "train"))
    found = [
        ids(
            provider.get_dataset(
                split="train",
                shuffle=False,
                num_epochs=1,
                shard_info=seqio.ShardInfo(index, count),
                **options,
            )
        )
        for index in range(count)
    ]
    assert collections.Counter(id for part in found for id in part) == whole
    assert all(found)
    if name in tasks.TASKS and count <= FILES:
        files = [list(documents.read_shard(file)) for file in sorted((corpus / "shards").iterdir())]
        for index, part in enumerate(found):
            mine = {d.id for file in files[index::count] for d in file}
            assert set(part) <= mine


def test_order_follows_the_seed(corpus, named):
    task = seqio.get_mixture_or_task("pubmed_abstracts")

    def order(seed, epochs=1):
        return ids(task.get_dataset(split="train", shuffle=True, seed=seed, num_epochs=epochs))

    one, plain = order(1), [d.id for d in expected(corpus, "pubmed_abstracts", "train")]
    assert one == order(1)
    assert one != order(2)
    assert sorted(one) == sorted(plain)
    files = ids(task.source.get_dataset("train", shuffle=True, seed=1))
    assert files != plain
    assert sorted(files) == sorted(plain)
    two = order(1, epochs=2)
    assert collections.Counter(two) == collections.Counter(plain * 2)
    assert two[: len(one)] != two[len(one) :]


def test_an_epoch_of_the_mixture_is_every_document_once(corpus, named):
    mixture = seqio.get_mixture_or_task("pubmed")
    dataset = mixture.get_dataset(
        split="train", seed=0, num_epochs=1, passthrough_features=["id", "bytes"]
    )
    assert set(dataset.element_spec) == {"targets", "id", "bytes"}
    found = ids(dataset)
    assert sorted(found) == sorted(d.id for d in expected(corpus, "pubmed", "train"))
    # Drawn in proportion: no task is used up long before the other.
    early = sum(id.startswith(("PMID", "PILEA")) for id in found[:120])
    assert early == pytest.approx(80, abs=20)
    rates = [mixture.get_rate(task) for task in mixture.tasks]
    assert rates == [100.0, 200.0]
    assert [task.name for task in mixture.tasks] == ["pmc_fulltext", "pubmed_abstracts"]


@pytest.mark.parametrize("source", ["abstract", "full_text"])
@pytest.mark.parametrize("epochs", [1, None])
def test_a_mixture_of_one_kind_alone(source, epochs, named, tmp_path, monkeypatch):
    found = [made(n, source, f"text {n}") for n in range(20)]
    monkeypatch.setenv(tasks.DOCUMENTS, str(write(tmp_path / "d", found, heldout_per_mille=0)))
    dataset = seqio.get_mixture_or_task("pubmed").get_dataset(
        split="train", seed=0, num_epochs=epochs, passthrough_features=["id"]
    )
    drawn = ids(dataset.take(200))
    assert len(drawn) == (20 if epochs else 200)
    assert set(drawn) == {d.id for d in found}
    heldout = seqio.get_mixture_or_task("pubmed").get_dataset(split="heldout", num_epochs=1)
    assert list(heldout) == []


def test_packing(corpus, named):
    """Whole documents, cut to the length, are found again by their segment ids."""
    lengths = {"targets": 90}
    task = seqio.get_mixture_or_task("pubmed")
    dataset = task.get_dataset(lengths, split="train", seed=0, num_epochs=1)
    packed = seqio.DecoderFeatureConverter(pack=True)(dataset, lengths)
    found, most = [], 0
    for row in packed.as_numpy_iterator():
        segments = row["decoder_segment_ids"]
        most = max(most, segments.max())
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            tokens = row["decoder_target_tokens"][here]
            found.append(tuple(tokens.tolist()))
            assert row["decoder_positions"][here].tolist() == list(range(len(tokens)))
            assert row["decoder_input_tokens"][here].tolist() == [0, *tokens[:-1]]
        assert np.array_equal(row["decoder_loss_weights"], segments > 0)
    assert most > 1
    texts = [d.text for d in expected(corpus, "pubmed", "train")]
    whole = [tuple([*named.encode(text), named.eos_id][:90]) for text in texts]
    assert sorted(found) == sorted(whole)
    assert any(len(tokens) == 90 for tokens in whole)  # a length cuts what is longer


@pytest.fixture
def byte_level(tmp_path, monkeypatch):
    """A byte-level vocabulary and two documents, the first with a "!" in it; "!" is its id 0."""
    texts = ["No! Kari tomel.", "Sin dor palu."]
    found = [made(n, "abstract", text) for n, text in enumerate(texts)]
    folder = write(tmp_path / "documents", found, heldout_per_mille=0)
    tokenizer.train(folder, tmp_path / "v", tokenizer.Options(257, "byte_level", 10**9))
    monkeypatch.setenv(tasks.DOCUMENTS, str(folder))
    monkeypatch.setenv(tasks.VOCABULARY, str(tmp_path / "v"))
    vocabulary = Vocabulary(tmp_path / "v")
    assert vocabulary.encode("!") == [0]
    return vocabulary, [[*vocabulary.encode(text), vocabulary.eos_id] for text in texts]


def test_byte_level_examples_are_whole(byte_level):
    _, texts = byte_level
    task = seqio.get_mixture_or_task("pubmed_abstracts")
    dataset = task.get_dataset(split="train", shuffle=False)
    assert [e["targets"].tolist() for e in dataset.as_numpy_iterator()] == texts
    vocabulary = task.output_features["targets"].vocabulary
    assert vocabulary.pad_id == vocabulary.eos_id == byte_level[0].eos_id


def test_what_seqio_does_to_id_0_of_a_byte_level_vocabulary(byte_level):
    """The limit that the module states: a token less for each "!" when packed, no weight for it
    when padded."""
    _, texts = byte_level
    lengths = {"targets": 64}
    task = seqio.get_mixture_or_task("pubmed_abstracts")
    dataset = task.get_dataset(lengths, split="train", shuffle=False)
    (packed,) = seqio.DecoderFeatureConverter(pack=True)(dataset, lengths).as_numpy_iterator()
    tokens = [*texts[0][:-1], *texts[1]]
    assert packed["decoder_target_tokens"].tolist() == tokens + [0] * (64 - len(tokens))
    first, _ = seqio.DecoderFeatureConverter(pack=False)(dataset, lengths).as_numpy_iterator()
    weights = [int(token != 0) for token in texts[0]]
    assert weights.count(0) == 1
    assert first["decoder_loss_weights"].tolist() == weights + [0] * (64 - len(weights))


def test_what_is_not_supported_is_refused_by_name(corpus, named):
    task = seqio.get_mixture_or_task("pubmed_abstracts")
    for split in ("validation", "train[:1%]"):
        with pytest.raises(UserError, match=r"no split '.*'; there are train, heldout"):
            task.get_dataset(split=split)
    with pytest.raises(UserError, match="5 files of documents do not make num_shards=6"):
        task.source.get_dataset("train", shard_info=seqio.ShardInfo(0, 6))
    assert task.num_input_examples("train") is None


@pytest.mark.parametrize("name", [*tasks.TASKS, tasks.MIXTURE])
def test_nothing_is_read_before_it_is_named(name, named, monkeypatch, tmp_path):
    provider = seqio.get_mixture_or_task(name)
    monkeypatch.delenv(tasks.DOCUMENTS)
    with pytest.raises(UserError, match=r"variable BIOMEDLM_DOCUMENTS is not set; .*data\.parse"):
        provider.get_dataset(split="train")
    monkeypatch.setenv(tasks.DOCUMENTS, str(tmp_path))
    with pytest.raises(UserError, match=r"BIOMEDLM_DOCUMENTS=.* is no folder of documents"):
        provider.get_dataset(split="train")
    monkeypatch.delenv(tasks.VOCABULARY)
    vocabulary = provider.output_features["targets"].vocabulary
    with pytest.raises(UserError, match=r"BIOMEDLM_VOCABULARY is not set; .*data\.tokenizer"):
        vocabulary.encode("text")
    monkeypatch.setenv(tasks.VOCABULARY, str(tmp_path))
    with pytest.raises(UserError, match=r"vocabulary .* has no"):
        vocabulary.encode("text")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "was not written by"),
        ("[]", "was not written by"),
        ('{"heldout_per_mille": 20}', "was not written by"),
        ('{"heldout_per_mille": 2, "tally": {"source": {}}, "shards": []}', "holds no document"),
    ],
)
def test_a_folder_of_something_else(content, message, named, monkeypatch, tmp_path):
    (tmp_path / "manifest.json").write_text(content)
    monkeypatch.setenv(tasks.DOCUMENTS, str(tmp_path))
    with pytest.raises(UserError, match=message):
        seqio.get_mixture_or_task("pubmed").get_dataset(split="train")


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "changed": lambda content: content[:50] + bytes([content[50] ^ 1]) + content[51:],
    "emptied": lambda _: b"",
}


@pytest.mark.parametrize("damage", [*DAMAGE, "gone"])
def test_a_damaged_file_is_named_and_ends_the_reading(damage, named, monkeypatch, tmp_path):
    """An error, never an epoch with fewer documents."""
    found = [made(n, "abstract", f"{random.Random(n).random()} cells") for n in range(200)]
    folder = write(tmp_path / "documents", found, files=2)
    file = folder / "shards/00001.jsonl.zst"
    content = file.read_bytes()
    file.unlink()
    if damage in DAMAGE:
        file.write_bytes(DAMAGE[damage](content))
    monkeypatch.setenv(tasks.DOCUMENTS, str(folder))
    dataset = seqio.get_mixture_or_task("pubmed_abstracts").get_dataset(split="train", seed=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"UserError: .*00001\.jsonl\.zst"):
        list(dataset)


def test_a_file_with_another_number_of_documents(named, monkeypatch, tmp_path):
    """Such as one of an older run: whole in itself, and not what the manifest is about."""
    found = [made(n, "abstract", f"text {n}") for n in range(20)]
    one, other = write(tmp_path / "one", found), write(tmp_path / "other", found[:19])
    (other / "shards/00000.jsonl.zst").replace(one / "shards/00000.jsonl.zst")
    monkeypatch.setenv(tasks.DOCUMENTS, str(one))
    dataset = seqio.get_mixture_or_task("pubmed_abstracts").get_dataset(split="train")
    with pytest.raises(tf.errors.InvalidArgumentError, match="19 documents, the manifest says 20"):
        list(dataset)


def test_another_folder_may_be_named_later(corpus, named, monkeypatch, tmp_path):
    task = seqio.get_mixture_or_task("pubmed_abstracts")
    before = ids(task.get_dataset(split="train", shuffle=False))
    found = [made(1, "abstract", "other text")]
    monkeypatch.setenv(tasks.DOCUMENTS, str(write(tmp_path / "d", found, heldout_per_mille=0)))
    assert ids(task.get_dataset(split="train", shuffle=False)) == ["PMID:1"]
    monkeypatch.setenv(tasks.DOCUMENTS, str(corpus))
    assert ids(task.get_dataset(split="train", shuffle=False)) == before
