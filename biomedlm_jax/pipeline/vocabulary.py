"""The vocabulary: text to token ids and back.

`data/tokenizer.py` trains it, a store carries a copy of it. There are two kinds, told apart by the
name of the file, with one interface:

    sentencepiece   sentencepiece.model, SentencePiece's byte-pair encoding
    byte_level      tokenizer.json, byte-pair encoding of UTF-8 as in GPT-2 and BioMedLM [1], in
                    the format of Hugging Face's `tokenizers`

Evaluation and sampling use `Vocabulary`; `tasks.seqio_vocabulary` gives the same ids inside seqio's
tasks, at the price of importing TensorFlow.

[1] Bolton et al. 2024, arXiv 2403.18421
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from etils import epath
from jaxtyping import Int
from tokenizers import pre_tokenizers

from biomedlm_jax.entry import UserError

MODEL_FILE = "sentencepiece.model"  # in the folder that data.tokenizer writes
BYTE_LEVEL_FILE = "tokenizer.json"  # or this one
END_OF_TEXT = "<|endoftext|>"  # ends every document; no text is ever encoded to it
Place = Path | epath.Path  # on a disk or gs://
_MARK = "\u2581"
_TRAIN = "train one with `python -m data.tokenizer`"


def file_name(vocabulary: Place) -> str:
    """What the file `vocabulary` is called in a folder."""
    return BYTE_LEVEL_FILE if vocabulary.suffix == ".json" else MODEL_FILE


def file_in(folder: Place, remedy: str = _TRAIN) -> Place:
    """The vocabulary's file in a folder.

    remedy: what the user can do where there is none.

    Raises:
      UserError: there is none, or one of each kind.
    """
    found = [folder / n for n in (MODEL_FILE, BYTE_LEVEL_FILE) if (folder / n).is_file()]
    if not found:
        raise UserError(
            f"vocabulary {folder} has no {BYTE_LEVEL_FILE}, and {MODEL_FILE} is no file; {remedy}"
        )
    if len(found) > 1:
        raise UserError(f"vocabulary {folder} has {MODEL_FILE} and {BYTE_LEVEL_FILE}; name one")
    return found[0]


class Vocabulary:
    """A file of either kind.

    Attributes:
      path: the file, or the folder that holds it.
      kind: "sentencepiece" or "byte_level".
      size: number of ids.
      eos_id: the id of END_OF_TEXT.
      sha256: of the file.

    Raises:
      UserError: no such file, not of the kind that its name says, or one that does not end
        documents with END_OF_TEXT.
    """

    def __init__(self, path: Place) -> None:
        self.path = file_in(path) if path.is_dir() else path
        if not self.path.is_file():
            raise UserError(f"vocabulary {self.path} is no file; {_TRAIN}")
        model = self.path.read_bytes()
        byte_level = file_name(self.path) == BYTE_LEVEL_FILE
        self.kind = "byte_level" if byte_level else "sentencepiece"
        self._model = _ByteLevel(self.path, model) if byte_level else _Pieces(self.path, model)
        self.size = self._model.size
        self.eos_id = self._model.eos_id
        self.sha256 = hashlib.sha256(model).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without an end-of-text id, also where the text holds END_OF_TEXT itself.
        `decode` gives the same text again."""
        return self._model.encode([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each text, on several threads."""
        return self._model.encode(texts)

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`; end-of-text ids give nothing, bytes that are no UTF-8 U+FFFD."""
        return self._model.decode(ids)

    def rules(self) -> Any:
        """What the ids of a text follow from, to compare with another vocabulary's: the tokens and
        merges of a byte-level one, whatever the form of its file; of SentencePiece, the file."""
        return self._model.rules()

    def token_bytes(self) -> Int[np.ndarray, "size"]:
        """How many bytes of UTF-8 each id stands for; 0 for those that stand for no text."""
        return np.array([self._model.length(id) for id in range(self.size)])


class _Pieces:
    """SentencePiece."""

    def __init__(self, path: Place, model: bytes) -> None:
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise UserError(f"vocabulary {path} is no SentencePiece model: {error}") from error
        self.size: int = self._processor.vocab_size()
        self.eos_id: int = self._processor.eos_id()
        if self.eos_id < 0 or self._processor.id_to_piece(self.eos_id) != END_OF_TEXT:
            raise UserError(f"vocabulary {path} has no {END_OF_TEXT} as end of text; {_TRAIN}")

    def encode(self, texts: list[str]) -> list[list[int]]:
        # SentencePiece writes this character for a space and would read one back.
        if any(_MARK in text for text in texts):
            return [self._spelled(text) for text in texts]
        # A thread for each core; they take the texts in turns, so sorted ones give all as much.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
        encoded = self._processor.encode([texts[i] for i in order], num_threads=-1)
        rows: list[list[int]] = [[]] * len(texts)
        for i, row in zip(order, encoded, strict=True):
            rows[i] = row
        return rows

    def _spelled(self, text: str) -> list[int]:
        """Ids of a text with _MARK spelled in bytes."""
        mark = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _MARK.encode()]
        first, *rest = self._processor.encode(text.split(_MARK))
        return first + [id for part in rest for id in (*mark, *part)]

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def rules(self) -> Any:
        return self._processor.serialized_model_proto()

    def length(self, id: int) -> int:
        if self._processor.is_control(id) or self._processor.is_unknown(id):
            return 0
        if self._processor.is_byte(id):
            return 1
        return len(self._processor.id_to_piece(id).replace(_MARK, " ").encode())


class _ByteLevel:
    """Byte-pair encoding of bytes, each of them written as one of 256 printable characters."""

    def __init__(self, path: Place, model: bytes) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(model.decode())
        except Exception as error:  # `tokenizers` raises no narrower class
            raise UserError(f"vocabulary {path} is no tokenizer file: {error}") from error
        settings = json.loads(model)
        self.size: int = self._tokenizer.get_vocab_size()
        if refused := _refused(settings, self._tokenizer):
            raise UserError(
                f"vocabulary {path} is no byte-level vocabulary as in GPT-2: {'; '.join(refused)}; "
                f"{_TRAIN} --kind=byte_level"
            )
        self.eos_id: int = self.size - 1
        # A token has a character for each byte.
        self._lengths = {id: len(token) for token, id in self._tokenizer.get_vocab().items()}
        self._lengths[self.eos_id] = 0
        # Without this, the end of text in a text would become the end of text.
        self._tokenizer.encode_special_tokens = True

    def encode(self, texts: list[str]) -> list[list[int]]:
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: list[int]) -> str:
        if ids and max(ids) >= self.size:  # the library would leave it out
            raise IndexError(f"id {max(ids)} is out of range; there are {self.size}")
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def rules(self) -> Any:
        merges = json.loads(self._tokenizer.to_str())["model"]["merges"]
        return self._tokenizer.get_vocab(), [tuple(pair) for pair in merges]

    def length(self, id: int) -> int:
        return self._lengths[id]


def _refused(settings: dict[str, Any], tokenizer: tokenizers.Tokenizer) -> list[str]:
    """What of a tokenizer.json makes other ids than GPT-2's rules, or loses text."""
    model, before = settings["model"], settings.get("pre_tokenizer") or {}
    kind, names = type(tokenizer.model).__name__, tokenizer.get_vocab()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    last = tokenizer.get_vocab_size() - 1
    added = [(token["id"], token["content"]) for token in settings.get("added_tokens") or []]
    foreign = [name for name in names if name != END_OF_TEXT and not set(name) <= set(alphabet)]
    refusals = {
        f"its model is {kind}, not BPE": kind != "BPE",
        "a normalizer changes its text": settings.get("normalizer"),
        "it cuts or pads": settings.get("truncation") or settings.get("padding"),
        "its pre-tokenizer is not ByteLevel alone": before.get("type") != "ByteLevel"
        or not before.get("use_regex", True),
        "add_prefix_space is on": before.get("add_prefix_space"),
        "its post-processor is not ByteLevel": settings.get("post_processor")
        and settings["post_processor"]["type"] != "ByteLevel",
        "its decoder is not ByteLevel": (settings.get("decoder") or {}).get("type") != "ByteLevel",
        "its model drops merges, marks words or spells bytes": any(
            model.get(name)
            for name in (
                "dropout",
                "continuing_subword_prefix",
                "end_of_word_suffix",
                "byte_fallback",
                "ignore_merges",
            )
        ),
        "it lacks some of the 256 bytes": not set(alphabet) <= names.keys(),
        f"it has tokens that are no bytes: {foreign[:3]}": foreign,
        "its ids have gaps": sorted(names.values()) != list(range(last + 1)),
        f"{END_OF_TEXT} is not its last id and its only added token": added != [(last, END_OF_TEXT)]
        or not settings["added_tokens"][0]["special"],
    }
    return [sentence for sentence, applies in refusals.items() if applies]
