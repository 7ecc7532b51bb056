"""seqio tasks over a folder of documents, for any program that uses seqio:

    export BIOMEDLM_DOCUMENTS=DIR BIOMEDLM_VOCABULARY=DIR

    import seqio
    import biomedlm_jax.pipeline.tasks  # registers what is below; opens nothing yet

    mixture = seqio.get_mixture_or_task("pubmed")
    lengths = {"targets": 1024}
    dataset = mixture.get_dataset(lengths, split="train", seed=0, shard_info=seqio.ShardInfo(0, 4))
    packed = seqio.DecoderFeatureConverter(pack=True)(dataset, lengths)

    pubmed_abstracts   task: documents of the sources abstract and pile_abstract
    pmc_fulltext       task: full_text and pile_full_text
    pubmed             mixture of both, each document as often as any other

DIR are the folders that `python -m data.parse` (or `data.clean`) and `data.tokenizer` write, on a
disk or on gs://. The splits are train and heldout. An example of a task is one document:

    targets  int32 [tokens], the last one end of text
    id       "PMID:123" or "PMC:123"
    source   "abstract", "full_text", ...
    bytes    int64, UTF-8 length of the text

A mixture and seqio's converters keep `targets` alone, unless `passthrough_features` names others.
A length cuts longer documents, and their end of text with the rest; None keeps them whole.

Training here does not read through seqio: `data/tokenize.py` makes the same tokens once, and the
loader reads them from a store. Import this only where documents are read: seqio brings all of
TensorFlow.

Limits. seqio's packing and its loss weights take id 0 for padding. In a SentencePiece vocabulary of
ours 0 is <unk>, which no text becomes. In a byte-level one 0 is a character ("!" in GPT-2's): seqio
cuts a document short by one token for each of them when it packs, and gives them no weight in the
loss. Give documents of a byte-level vocabulary to a converter of your own, or train from a store.
How many examples a split has is known to nobody before it was read (`num_input_examples` is None).
Files are read by Python, so the graph of a dataset cannot leave the process that made it.
"""

import functools
import itertools
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import zstandard
from etils import epath

from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.lines import lines
from biomedlm_jax.pipeline.store import SPLITS, is_heldout
from biomedlm_jax.pipeline.vocabulary import Place, Vocabulary

DOCUMENTS, VOCABULARY = "BIOMEDLM_DOCUMENTS", "BIOMEDLM_VOCABULARY"  # environment variables
TASKS = {
    "pubmed_abstracts": ("abstract", "pile_abstract"),
    "pmc_fulltext": ("full_text", "pile_full_text"),
}
MIXTURE = "pubmed"
_MARK = "\u2581"
_AT_ONCE = 16  # files that a shuffled dataset reads from in turns
_TOGETHER = 64  # documents that cross from Python to TensorFlow at a time


class ByteLevelVocabulary(seqio.Vocabulary):
    """A byte-level vocabulary for seqio's features, with the ids of `Vocabulary(path)`.

    seqio has none of its own. Inside a graph the ids are made by a call back into Python, so a
    graph with it cannot leave the process that made it.

    Padding, an id out of range and the end of text are one id, as in GPT-2: seqio's padding id 0
    is a character here.

    Raises:
      UserError: `path` is missing or not of this kind.
    """

    def __init__(self, path: Place) -> None:
        super().__init__()
        self._vocabulary = Vocabulary(path)
        if self._vocabulary.kind != "byte_level":
            raise UserError(f"vocabulary {self._vocabulary.path} is not byte-level")

    @property
    def eos_id(self) -> int:
        return self._vocabulary.eos_id

    bos_id = unk_id = pad_id = eos_id

    @property
    def _base_vocab_size(self) -> int:
        return self._vocabulary.size

    def _encode(self, s: str) -> list[int]:
        return self._vocabulary.encode(s)

    def _decode(self, ids: list[int]) -> str:
        return self._vocabulary.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
        """int32 [tokens] of a scalar, ragged int32 [texts, tokens] of a vector."""

        def encode(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            rows = self._vocabulary.encode_batch([text.decode() for text in texts])
            flat = [id for row in rows for id in row]
            return np.array(flat, np.int32), np.array([len(row) for row in rows], np.int64)

        s = tf.convert_to_tensor(s)
        texts = tf.reshape(s, [-1])
        ids, lengths = tf.numpy_function(encode, [texts], (tf.int32, tf.int64), stateful=False)
        ids.set_shape([None])
        lengths.set_shape(texts.shape)
        if s.shape.rank == 0:
            return ids
        if s.shape.rank == 1:
            return tf.RaggedTensor.from_row_lengths(ids, lengths)  # pyright: ignore
        raise ValueError(f"texts of shape {s.shape}; a scalar or a vector can be encoded")

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        """Strings in the shape of `ids` without its last axis."""

        def decode(rows: np.ndarray) -> np.ndarray:
            texts = [self._vocabulary.decode(row.tolist()) for row in rows]
            return np.array([text.encode() for text in texts], object)

        ids = tf.convert_to_tensor(ids)
        rows = tf.reshape(ids, [-1, tf.shape(ids)[-1]])
        texts = tf.numpy_function(decode, [rows], tf.string, stateful=False)
        texts = tf.reshape(texts, tf.shape(ids)[:-1])
        texts.set_shape(ids.shape[:-1])
        return texts

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ByteLevelVocabulary):
            return NotImplemented
        return self._vocabulary.sha256 == other._vocabulary.sha256

    def __hash__(self) -> int:
        return hash(self._vocabulary.sha256)


class PieceVocabulary(seqio.SentencePieceVocabulary):
    """A SentencePiece model for seqio's features, with the ids of `Vocabulary(path)`: seqio's own
    take the character U+2581 of a text for a space."""

    def _encode(self, s: str) -> list[int]:
        return _ours(self.sentencepiece_model_file).encode(s)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
        """int32 [tokens] of a scalar, ragged int32 [texts, tokens] of a vector."""
        s = tf.convert_to_tensor(s)
        if s.shape.rank:
            ragged = tf.RaggedTensorSpec([None], tf.int32)
            return tf.map_fn(self._encode_tf, s, fn_output_signature=ragged)
        parts: Any = self.tf_tokenizer.tokenize(tf.strings.split(s, _MARK))
        mark = [self.tokenizer.piece_to_id(f"<0x{byte:02X}>") for byte in _MARK.encode()]
        before: Any = tf.repeat([mark], parts.nrows(), axis=0)
        joined: Any = tf.concat([before, parts], axis=1)
        return joined.values[len(mark) :]


def seqio_vocabulary(path: Place) -> seqio.Vocabulary:
    """The same ids as `Vocabulary(path)`, for seqio's features."""
    vocabulary = Vocabulary(path)
    if vocabulary.kind == "byte_level":
        return ByteLevelVocabulary(vocabulary.path)
    return PieceVocabulary(str(vocabulary.path))


@functools.lru_cache(maxsize=8)
def _ours(path: str) -> Vocabulary:
    return Vocabulary(epath.Path(path))


class GivenVocabulary(seqio.Vocabulary):
    """The vocabulary that BIOMEDLM_VOCABULARY names when it is used: tasks are registered before
    anybody has named one. What a name stands for is read once.

    Raises:
      UserError: when used, the variable is not set, or names no vocabulary.
    """

    @property
    def given(self) -> seqio.Vocabulary:
        return _read_once(_environment(VOCABULARY, "data.tokenizer"))

    bos_id = property(lambda self: self.given.bos_id)
    eos_id = property(lambda self: self.given.eos_id)
    unk_id = property(lambda self: self.given.unk_id)
    pad_id = property(lambda self: self.given.pad_id)
    _base_vocab_size = property(lambda self: self.given.vocab_size)

    def _encode(self, s: str) -> Any:
        return self.given.encode(s)

    def _decode(self, ids: Any) -> str:
        return self.given.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> Any:
        return self.given.encode_tf(s)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return self.given.decode_tf(ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GivenVocabulary)

    def __hash__(self) -> int:
        return hash(GivenVocabulary)


class GivenDocuments(seqio.DataSource):
    """The documents of some sources in the folder that BIOMEDLM_DOCUMENTS names when it is read.

    A file of the folder is an input shard. Unshuffled, documents come in the folder's order. A
    shuffled dataset takes turns among 16 files, their order drawn anew in each epoch.

    Raises:
      UserError: when read, the variable is not set, or names no folder of documents; there is no
        such split; more shards than files are asked for. While iterating, TensorFlow raises
        `tf.errors.InvalidArgumentError` with the words of a UserError: a file is damaged, or does
        not hold as many documents as the manifest says.
    """

    def __init__(self, sources: tuple[str, ...]) -> None:
        super().__init__(splits=SPLITS)
        self.sources = sources

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> list[str]:
        return [file for file, _ in self._files(split)]

    def documents(self) -> int:
        """How many there are, of both splits."""
        _, manifest = _folder()
        tally = manifest["tally"]["source"]
        return sum(tally[source]["documents"] for source in self.sources if source in tally)

    def get_dataset(
        self,
        split: str = SPLITS[0],
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        *,
        sequence_length: Any = None,
        use_cached: bool = False,
        num_epochs: int | None = 1,
    ) -> tf.data.Dataset:
        """text, id, source and bytes of each document. The last three arguments are the caller's
        to heed, as for all of seqio's sources."""
        files, per_mille = self._files(split), _folder()[1]["heldout_per_mille"]
        if shard_info is not None:
            if len(files) < shard_info.num_shards:
                raise UserError(
                    f"{len(files)} files of documents do not make num_shards="
                    f"{shard_info.num_shards}; ask for fewer, or ask the task, which can divide "
                    "documents too"
                )
            files = files[shard_info.index :: shard_info.num_shards]
        names, counts = map(list, zip(*files, strict=True))
        table: Any = {"name": names, "count": counts}
        chosen = tf.data.Dataset.from_tensor_slices(table)
        if shuffle:
            chosen = chosen.shuffle(len(files), seed=seed)
        words, numbers = tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int64)

        def read(file: dict[str, tf.Tensor]) -> tf.data.Dataset:
            return tf.data.Dataset.from_generator(
                functools.partial(_batches, split=split, per_mille=per_mille, of=self.sources),
                args=(file["name"], file["count"]),
                output_signature={"text": words, "id": words, "source": words, "bytes": numbers},
            ).unbatch()

        return chosen.interleave(
            read,
            cycle_length=_AT_ONCE if shuffle else 1,
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    def _files(self, split: str) -> list[tuple[str, int]]:
        """Path and number of documents of each file."""
        if split not in self.splits:
            raise UserError(f"there is no split {split!r}; there are {', '.join(self.splits)}")
        folder, manifest = _folder()
        return [(str(folder / "shards" / s["name"]), s["documents"]) for s in manifest["shards"]]


def _environment(name: str, writer: str) -> str:
    if not (value := os.environ.get(name)):
        raise UserError(
            f"the environment variable {name} is not set; let it name a folder that "
            f"`python -m {writer}` wrote"
        )
    return value


@functools.lru_cache(maxsize=8)
def _read_once(path: str) -> seqio.Vocabulary:
    return seqio_vocabulary(epath.Path(path))


def _folder() -> tuple[epath.Path, dict[str, Any]]:
    """BIOMEDLM_DOCUMENTS and its manifest."""
    folder = epath.Path(_environment(DOCUMENTS, "data.parse"))
    file = folder / "manifest.json"
    if not file.exists():
        raise UserError(
            f"{DOCUMENTS}={folder} is no folder of documents: it has no manifest.json; name one "
            "that `python -m data.parse` has finished"
        )
    try:
        manifest = json.loads(file.read_text())
        needed = [manifest["heldout_per_mille"], manifest["tally"]["source"]]
        needed += [(shard["name"], shard["documents"]) for shard in manifest["shards"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} was not written by `python -m data.parse`: {error!r}") from error
    if not manifest["shards"]:
        raise UserError(f"{DOCUMENTS}={folder} holds no document; parse more text")
    return folder, manifest


def _batches(
    name: bytes, count: int, *, split: str, per_mille: int, of: tuple[str, ...]
) -> Iterator[dict[str, list[Any]]]:
    """The documents of a file that are of a split and of some sources, up to 64 at a time."""
    documents = (
        {"text": text, "id": id, "source": source, "bytes": len(text)}
        for id, source, text in _documents(epath.Path(name.decode()), count)
        if source in of and split == SPLITS[is_heldout(id, per_mille)]
    )
    while batch := list(itertools.islice(documents, _TOGETHER)):
        yield {key: [document[key] for document in batch] for key in batch[0]}


def _documents(file: epath.Path, count: int) -> Iterator[tuple[str, str, bytes]]:
    """Id, source and text.

    Raises:
      UserError: the file does not hold `count` documents, or is damaged.
    """
    number = 0
    try:
        for line in lines(file):
            document = json.loads(line)
            yield document["id"], document["source"], document["text"].encode()
            number += 1
    except (OSError, EOFError, zstandard.ZstdError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}, line {number + 1}, is no document: {error!r}; copy or write the folder again"
        ) from error
    if number != count:
        raise UserError(
            f"{file} holds {number} documents, the manifest says {count}; copy or write the folder "
            "again"
        )


def _tokenize(dataset: tf.data.Dataset, output_features: dict[str, Any]) -> tf.data.Dataset:
    vocabulary = output_features["targets"].vocabulary

    def tokenized(example: dict[str, Any]) -> dict[str, Any]:
        rest = {key: value for key, value in example.items() if key != "text"}
        return {"targets": vocabulary.encode_tf(example["text"]), **rest}

    return dataset.map(tokenized, num_parallel_calls=tf.data.AUTOTUNE)  # keeps the order


def _natural_rate(task: Any) -> int:
    """The number of a task's documents, by which each document is drawn as often as any other.

    The manifest counts both splits together. What is held out follows from a hash of the id, so it
    is the same share of every source but for chance.
    """
    return task.source.documents()


for _name, _sources in TASKS.items():
    _source: Any = GivenDocuments(_sources)
    seqio.TaskRegistry.add(
        _name,
        source=_source,
        preprocessors=[_tokenize, seqio.preprocessors.append_eos],
        output_features={"targets": seqio.Feature(GivenVocabulary(), add_eos=True, dtype=tf.int32)},
    )
seqio.MixtureRegistry.add(
    MIXTURE,
    list(TASKS),
    default_rate=_natural_rate,
    # An epoch is over when both tasks are, not when the first of them is.
    sample_fn=functools.partial(tf.data.Dataset.sample_from_datasets, stop_on_empty_dataset=False),
)
