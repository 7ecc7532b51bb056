"""A vocabulary from documents: python -m data.tokenizer --documents=DIR --output=DIR --size=8192

Learns byte-pair merges from training documents alone, never from held-out ones. Text comes back
from its tokens unchanged: nothing is normalised, no space is added, and what the vocabulary lacks
is spelled in bytes. Comes after `parse.py`, before `tokenize.py`.

--kind=sentencepiece, the default, joins characters and keeps digits and ends of lines single.
--kind=byte_level joins bytes inside GPT-2's words, as the published model's vocabulary does [1].

[1] Bolton et al. 2024, arXiv 2403.18421
"""

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import sentencepiece
import tokenizers
from absl import flags
from etils import epath
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm

from biomedlm_jax import entry
from biomedlm_jax.pipeline.vocabulary import BYTE_LEVEL_FILE, END_OF_TEXT, MODEL_FILE
from data import documents, stages

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
_NO_TEXT = "--documents={} has no text to train on; parse more text"
_TOO_LARGE = (
    "--size={} is more than the training text of {} gives; with this text the most is "
    "--size={}, or parse more text"
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What a vocabulary is to be like.

    size: number of ids, that of the end of text included.
    kind: "sentencepiece" or "byte_level".
    train_bytes: of UTF-8, about.
    character_coverage: share of characters with a token of their own; of "sentencepiece" only.
    """

    size: int
    kind: str = "sentencepiece"
    train_bytes: int = 200_000_000
    character_coverage: float = 0.9999


def train(folder: documents.Folder, output: documents.Folder, options: Options) -> dict[str, Any]:
    """Writes sentencepiece.model or tokenizer.json, and manifest.json; returns what that holds.

    The same text gives the same file, byte for byte, on any machine. Of a corpus larger than
    `train_bytes` the documents are used whose id hashes below the corresponding fraction.

    Args:
      folder: written by `python -m data.parse` or `data.clean`.

    Raises:
      UserError: `folder` holds no documents, its text does not suit `size`, or `output` can not
        be written.
    """
    source = documents.read_manifest(folder)
    nbytes = source["splits"]["train"]["bytes"]
    fraction = min(1.0, options.train_bytes / max(1, nbytes))
    settings, size = dataclasses.asdict(options), options.size
    with (
        stages.building(epath.Path(output), settings) as partial,
        tqdm(
            desc="vocabulary",
            total=int(fraction * nbytes),
            unit="B",
            unit_scale=True,
        ) as bar,
    ):
        texts = _texts(folder, fraction, bar)
        if options.kind == "byte_level":
            del settings["character_coverage"]
            model, name, library = _byte_level(texts, folder, size), BYTE_LEVEL_FILE, tokenizers
        else:
            model = _sentencepiece(texts, folder, size, options.character_coverage)
            name, library = MODEL_FILE, sentencepiece
        manifest = {
            "flags": settings,
            "sha256": hashlib.sha256(model).hexdigest(),
            "documents_sha256": source["sha256"],
            "versions": {library.__name__: library.__version__},
        }
        (partial / name).write_bytes(model)
        text = json.dumps(manifest, indent=2) + "\n"
        (partial / "manifest.json").write_text(text)
    return manifest


def _texts(folder: documents.Folder, fraction: float, bar: tqdm) -> Iterator[str]:
    for document in documents.read(folder, "train"):
        digest = hashlib.blake2b(document.id.encode(), digest_size=8, salt=b"train").digest()
        if int.from_bytes(digest, "big") < fraction * 2**64:
            bar.update(len(document.text.encode()))
            yield document.text


def _sentencepiece(
    texts: Iterator[str], folder: documents.Folder, size: int, coverage: float
) -> bytes:
    """The file of a SentencePiece model."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in texts for line in text.split("\n") if line),
            model_writer=model,
            vocab_size=size,
            character_coverage=coverage,
            max_sentence_length=_LONGEST,
            minloglevel=2,
            **_FORM,
        )
    except RuntimeError as error:
        raise entry.UserError(_explained(str(error), folder, size)) from error
    return model.getvalue()


def _byte_level(texts: Iterator[str], folder: documents.Folder, size: int) -> bytes:
    """The file of a GPT-2-style tokenizer: 256 bytes, merges by falling count, end of text."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    counted = _Counted(texts)
    tokenizer.train_from_iterator(counted, trainer)
    if not counted.characters:
        raise entry.UserError(_NO_TEXT.format(folder))
    if (found := tokenizer.get_vocab_size()) < size - 1:
        raise entry.UserError(_TOO_LARGE.format(size, folder, found + 1))
    # After training, so that no text of the corpus can be taken for it, and it is the last id.
    end = tokenizers.AddedToken(END_OF_TEXT, normalized=False, special=True)
    tokenizer.add_special_tokens([end])
    return tokenizer.to_str(pretty=True).encode()


class _Counted:
    """An iterator that knows how many characters have passed."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._texts = texts
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.characters += len(text)
            yield text


def _explained(message: str, folder: documents.Folder, size: int) -> str:
    """What the user can do about an error that SentencePiece words in terms of its C++ source."""
    if found := re.search(r"too high .* value <= (\d+)", message):
        return _TOO_LARGE.format(size, folder, found[1])
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return (
            f"--size={size} is too small for the characters of {folder}; with this "
            f"--character_coverage the least is --size={found[1]}"
        )
    if "sentences_.empty()" in message:
        return _NO_TEXT.format(folder)
    return f"--size={size}: SentencePiece can not learn from {folder}: {message}"


def given_options() -> Options:
    """Raises UserError where flags contradict each other."""
    given = flags.FLAGS
    if given.kind == "byte_level" and given["character_coverage"].present:
        raise entry.UserError(
            "--character_coverage is of --kind=sentencepiece only: --kind=byte_level has a token "
            "for every byte; leave it out"
        )
    return Options(given.size, given.kind, given.train_bytes, given.character_coverage)


def main() -> None:
    given = flags.FLAGS
    manifest = train(epath.Path(given.documents), epath.Path(given.output), given_options())
    print(f"{given.output}: {given.size:,} tokens, sha256 {manifest['sha256']}")


def define_flags() -> None:
    kinds = ["sentencepiece", "byte_level"]
    usual = Options(size=0)
    flags.DEFINE_integer("size", None, "Tokens in the vocabulary.", 300, 65536)
    flags.DEFINE_enum("kind", usual.kind, kinds, "What the tokens are joined of.")
    flags.DEFINE_integer(
        "train_bytes", usual.train_bytes, "Text to learn from, chosen by hash of the id.", 1
    )
    flags.DEFINE_float(
        "character_coverage",
        usual.character_coverage,
        "Share of characters with a token; others are bytes.",
        0.9,
        1,
    )


if __name__ == "__main__":
    define_flags()
    flags.mark_flag_as_required("size")
    flags.DEFINE_string("documents", None, "Folder of documents.", required=True)
    flags.DEFINE_string("output", None, "Folder to write; absent or empty.", required=True)
    entry.run(main)
