"""A vocabulary from documents: python -m data.tokenizer --documents=DIR --output=DIR --size=8192

Learns byte-pair merges with SentencePiece from train.jsonl alone; held-out documents are never
opened. Text comes back from its tokens unchanged: nothing is normalised, no space is added, and
what the vocabulary lacks is spelled in bytes. Comes after `parse.py`, before `tokenize.py`.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from absl import flags
from tqdm import tqdm

from biomedlm_jax import entry
from biomedlm_jax.pipeline.vocabulary import END_OF_TEXT, MODEL_FILE
from data import documents

# Ids and losslessness; the vocabulary has no token for the begin of a text and none for padding.
_FORM: dict[str, Any] = {
    "model_type": "bpe",
    "unk_id": 0,
    "eos_id": 1,
    "bos_id": -1,
    "pad_id": -1,
    "eos_piece": END_OF_TEXT,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "user_defined_symbols": ["\n\n", "\n"],  # ends of paragraphs and of sections of an abstract
    "num_threads": 16,  # of no influence on the tokens, but it is recorded in the file
}
_LONGEST = 1 << 24  # bytes of a paragraph; SentencePiece drops longer ones, its default is 4192


def train(
    folder: Path,
    output: Path,
    size: int,
    *,
    train_bytes: int,
    character_coverage: float,
) -> dict[str, Any]:
    """Writes sentencepiece.model and manifest.json; returns what the manifest holds.

    The same text gives the same file, byte for byte, on any machine. Of a corpus larger than
    `train_bytes` the documents are used whose id hashes below the corresponding fraction.

    Raises:
      UserError: `folder` holds no documents, its text does not suit `size`, or `output` can not
        be written.
    """
    source = documents.read_manifest(folder)["splits"]["train"]
    fraction = min(1.0, train_bytes / max(1, source["bytes"]))
    settings = {"size": size, "character_coverage": character_coverage, "train_bytes": train_bytes}
    model = io.BytesIO()
    with (
        documents.output_folder(output) as partial,
        tqdm(
            desc="vocabulary",
            total=int(fraction * source["bytes"]),
            unit="B",
            unit_scale=True,
        ) as bar,
    ):
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_paragraphs(folder / "train.jsonl", fraction, bar),
                model_writer=model,
                vocab_size=size,
                character_coverage=character_coverage,
                max_sentence_length=_LONGEST,
                minloglevel=2,
                **_FORM,
            )
        except RuntimeError as error:
            raise entry.UserError(_explained(str(error), folder, size)) from error
        manifest = {
            "flags": settings,
            "sha256": hashlib.sha256(model.getvalue()).hexdigest(),
            "documents_sha256": source["sha256"],
            "versions": {"sentencepiece": sentencepiece.__version__},
        }
        (partial / MODEL_FILE).write_bytes(model.getvalue())
        text = json.dumps(manifest, indent=2) + "\n"
        (partial / "manifest.json").write_text(text, encoding="utf-8")
    return manifest


def _paragraphs(file: Path, fraction: float, bar: tqdm) -> Iterator[str]:
    for document in documents.read(file):
        digest = hashlib.blake2b(document.id.encode(), digest_size=8, salt=b"train").digest()
        if int.from_bytes(digest, "big") < fraction * 2**64:
            bar.update(len(document.text.encode()))
            yield from (line for line in document.text.split("\n") if line)


def _explained(message: str, folder: Path, size: int) -> str:
    """What the user can do about an error that SentencePiece words in terms of its C++ source."""
    if found := re.search(r"too high .* value <= (\d+)", message):
        return (
            f"--size={size} is more than the text of {folder}/train.jsonl gives; with this text "
            f"the most is --size={found[1]}, or parse more text"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return (
            f"--size={size} is too small for the characters of {folder}/train.jsonl; with this "
            f"--character_coverage the least is --size={found[1]}"
        )
    if "sentences_.empty()" in message:
        return f"--documents={folder} has no text in train.jsonl; parse more text"
    return f"--size={size}: SentencePiece can not learn from {folder}/train.jsonl: {message}"


def main() -> None:
    given = flags.FLAGS
    manifest = train(
        Path(given.documents),
        Path(given.output),
        given.size,
        train_bytes=given.train_bytes,
        character_coverage=given.character_coverage,
    )
    print(f"{given.output}: {given.size:,} tokens, sha256 {manifest['sha256']}")


if __name__ == "__main__":
    flags.DEFINE_string("documents", None, "Folder written by data.parse.", required=True)
    flags.DEFINE_string("output", None, "Folder to write; absent or empty.", required=True)
    flags.DEFINE_integer("size", None, "Tokens in the vocabulary.", 300, 65536, required=True)
    flags.DEFINE_integer(
        "train_bytes", 200_000_000, "Text to learn from, chosen by hash of the id.", 1
    )
    flags.DEFINE_float(
        "character_coverage", 0.9999, "Share of characters with a token; others are bytes.", 0.9, 1
    )
    entry.run(main)
