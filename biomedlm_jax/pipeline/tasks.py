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

import seqio
import tensorflow as tf

from biomedlm_jax.pipeline.store import SPLITS
from biomedlm_jax.pipeline.vocabulary import Vocabulary, seqio_vocabulary


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
      vocabulary: folder or file of a SentencePiece model.

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
