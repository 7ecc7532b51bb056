"""seqio tasks: documents to tokens.

`data/tokenize.py` runs the task once and keeps its tokens in a store; the loader of a training run
reads the store and needs none of this. Import it only where documents are read: seqio brings all
of TensorFlow.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.store import SPLITS
from biomedlm_jax.pipeline.vocabulary import Vocabulary


class ByteLevelVocabulary(seqio.Vocabulary):
    """A byte-level vocabulary for seqio's features, with the ids of `Vocabulary(path)`.

    seqio has none of its own. Inside a graph the ids are made by a call back into Python, so a
    graph with it cannot leave the process that made it.

    Padding, an id out of range and the end of text are one id, as in GPT-2: seqio's padding id 0
    is a character here.

    Raises:
      UserError: `path` is missing or not of this kind.
    """

    def __init__(self, path: Path) -> None:
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


def seqio_vocabulary(path: Path) -> seqio.Vocabulary:
    """The same ids as `Vocabulary(path)`, for seqio's features."""
    vocabulary = Vocabulary(path)
    if vocabulary.kind == "byte_level":
        return ByteLevelVocabulary(vocabulary.path)
    return seqio.SentencePieceVocabulary(str(vocabulary.path))


def register(documents: Path, manifest: dict[str, Any], vocabulary: Path) -> str:
    """Registers the task over a folder of documents; returns its name.

    An example of the task is one document, in the order of the file:

        targets  int32 [tokens], the last one end of text
        id       "PMID:123" or "PMC:123"
        source   "abstract" or "full_text"
        bytes    int64, UTF-8 length of the text

    Args:
      documents: folder written by `python -m data.parse`, with a file per split.
      manifest: what its manifest.json holds; the hashes in it are in the task's name.
      vocabulary: folder or file of either kind.

    Raises:
      UserError: the vocabulary is missing or not what it should be.
    """
    hashes = "".join(manifest["splits"][split]["sha256"] for split in SPLITS)
    content = hashlib.sha256(hashes.encode()).hexdigest()[:12]
    name = f"documents_{content}_{Vocabulary(vocabulary).sha256[:12]}"
    if name in seqio.TaskRegistry.names():  # the same content, perhaps from another place
        seqio.TaskRegistry.remove(name)

    def in_order(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        if shuffle_files:
            raise ValueError("documents are read in order; the loader shuffles windows of tokens")
        return _documents(documents / f"{split}.jsonl")

    source: Any = seqio.FunctionDataSource(in_order, splits=SPLITS)
    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[_tokenize, seqio.preprocessors.append_eos],
        output_features={
            "targets": seqio.Feature(seqio_vocabulary(vocabulary), add_eos=True, dtype=tf.int32)
        },
    )
    return name


def _documents(file: Path) -> tf.data.Dataset:
    text, number = tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int64)
    return tf.data.Dataset.from_generator(
        lambda: _lines(file),
        output_signature={"text": text, "id": text, "source": text, "bytes": number},
    )


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for line in lines:
            document = json.loads(line)
            text = document["text"].encode()
            yield {
                "text": text,
                "id": document["id"],
                "source": document["source"],
                "bytes": len(text),
            }


def _tokenize(dataset: tf.data.Dataset, output_features: dict[str, Any]) -> tf.data.Dataset:
    vocabulary = output_features["targets"].vocabulary

    def tokenized(example: dict[str, Any]) -> dict[str, Any]:
        rest = {key: value for key, value in example.items() if key != "text"}
        return {"targets": vocabulary.encode_tf(example["text"]), **rest}

    return dataset.map(tokenized, num_parallel_calls=tf.data.AUTOTUNE)  # keeps the order
