"""Documents to tokens: python -m data.tokenize --documents=DIR --vocabulary=DIR --output=DIR

Runs the seqio task of `biomedlm_jax/pipeline/tasks.py` over both splits and writes the token store
that `biomedlm_jax/pipeline/store.py` describes; that folder is all that a training run needs.
Comes after `parse.py` and `tokenizer.py`. What TensorFlow says of CUDA drivers that it did not
find, and seqio of a padding id, is harmless: neither is used.
"""

import importlib.metadata
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from biomedlm_jax import entry
from biomedlm_jax.pipeline.store import SPLITS, StoreWriter
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from data import documents


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
        _run_task(folder, source, vocabulary.path, writer, bar)
        kind = {
            "sentencepiece": ("sentencepiece", "tensorflow-text"),
            "byte_level": ("tokenizers",),
        }
        packages = ("seqio", *kind[vocabulary.kind], "tensorstore")
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


def _run_task(
    folder: Path, source: dict[str, Any], vocabulary: Path, writer: StoreWriter, bar: tqdm
) -> None:
    import seqio  # seconds, and all of TensorFlow

    from biomedlm_jax.pipeline import tasks

    task = seqio.get_mixture_or_task(tasks.register(folder, source, vocabulary))
    for split in SPLITS:
        dataset = task.get_dataset(split=split, shuffle=False, try_in_mem_cache=False)
        for example in dataset.as_numpy_iterator():
            nbytes = int(example["bytes"])
            writer.append(
                split,
                example["targets"],
                id=example["id"].decode(),
                source=example["source"].decode(),
                nbytes=nbytes,
            )
            bar.update(nbytes)


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
