"""Documents to tokens: python -m data.tokenize --documents=DIR --vocabulary=DIR --output=DIR

Writes the token store that `biomedlm_jax/pipeline/store.py` describes; that folder is all that a
training run needs. Comes after `parse.py` and `tokenizer.py`. The vocabulary encodes batches of
documents on all cores; the seqio task of `biomedlm_jax/pipeline/tasks.py` gives the same tokens,
one document at a time and with TensorFlow.
"""

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from biomedlm_jax import entry
from biomedlm_jax.pipeline.store import SPLITS, StoreWriter
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from data import documents

_BATCH = 1 << 22  # characters that are encoded at once; their tokens take some 40 MB


def tokenize(folder: Path, vocabulary_folder: Path, output: Path) -> dict[str, Any]:
    """Writes the store and returns its manifest.

    Raises:
      UserError: the documents or the vocabulary are missing or damaged, there is nothing to train
        on, the ids do not fit into uint16, or `output` can not be written.
    """
    source = documents.read_manifest(folder)
    vocabulary = Vocabulary(vocabulary_folder)
    if not source["splits"]["train"]["documents"]:
        raise entry.UserError(
            f"--documents={folder} has no document in train.jsonl; parse more text, or with a "
            "smaller --heldout_per_mille"
        )
    with (
        documents.output_folder(output) as partial,
        tqdm(
            desc="tokenize",
            total=sum(s["bytes"] for s in source["splits"].values()),
            unit="B",
            unit_scale=True,
        ) as bar,
    ):
        writer = StoreWriter(
            partial,
            SPLITS,
            vocabulary=vocabulary.path,
            vocab_size=vocabulary.size,
            eos_id=vocabulary.eos_id,
        )
        for split in SPLITS:
            for batch in _batches(folder / f"{split}.jsonl"):
                rows = vocabulary.encode_batch([document.text for document in batch])
                for document, row in zip(batch, rows, strict=True):
                    nbytes = len(document.text.encode())
                    tokens = np.array([*row, vocabulary.eos_id])
                    writer.append(split, tokens, document.id, document.source, nbytes)
                    bar.update(nbytes)
        kind = {"sentencepiece": "sentencepiece", "byte_level": "tokenizers"}
        packages = (kind[vocabulary.kind], "tensorstore")
        manifest = writer.close(
            documents=source,
            versions={name: importlib.metadata.version(name) for name in packages},
        )
        for name, split in source["splits"].items():
            found = {key: manifest["splits"][name][key] for key in ("documents", "bytes")}
            if any(split[key] != value for key, value in found.items()):
                raise entry.UserError(
                    f"{folder}/{name}.jsonl holds {found}, its manifest.json says "
                    f"{split['documents']} documents and {split['bytes']} bytes; parse again"
                )
    return manifest


def _batches(file: Path) -> Iterator[list[documents.Document]]:
    """The documents of a file, in its order, in lists that are worth the start of threads."""
    batch, characters = [], 0
    for document in documents.read(file):
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def main() -> None:
    given = flags.FLAGS
    manifest = tokenize(Path(given.documents), Path(given.vocabulary), Path(given.output))
    for name, split in manifest["splits"].items():
        per_token = split["bytes"] / max(1, split["tokens"])
        print(
            f"{name:10}{split['documents']:>14,} documents {split['tokens']:>18,} tokens"
            f"{per_token:>8.2f} bytes per token"
        )


if __name__ == "__main__":
    flags.DEFINE_string("documents", None, "Folder written by data.parse.", required=True)
    flags.DEFINE_string("vocabulary", None, "Folder written by data.tokenizer.", required=True)
    flags.DEFINE_string("output", None, "Folder to write; absent or empty.", required=True)
    entry.run(main)
