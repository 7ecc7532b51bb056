"""The vocabulary: text to token ids and back.

`data/tokenizer.py` trains it, a store carries a copy of it. Evaluation and sampling use
`Vocabulary`, which needs SentencePiece alone; `seqio_vocabulary` gives the same ids inside seqio's
tasks, at the price of importing TensorFlow.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import sentencepiece
from jaxtyping import Int

from biomedlm_jax.entry import UserError

if TYPE_CHECKING:
    import seqio

MODEL_FILE = "sentencepiece.model"  # in the folder that data.tokenizer writes
END_OF_TEXT = "<|endoftext|>"  # ends every document; no text is ever encoded to it


class Vocabulary:
    """A SentencePiece model file.

    Attributes:
      path: the file, or the folder that holds it as `sentencepiece.model`.
      size: number of ids.
      eos_id: the id of END_OF_TEXT.
      sha256: of the file.

    Raises:
      UserError: no such file, not a SentencePiece model, or one that does not end documents with
        END_OF_TEXT.
    """

    def __init__(self, path: Path) -> None:
        self.path = path / MODEL_FILE if path.is_dir() else path
        if not self.path.is_file():
            raise UserError(
                f"vocabulary {self.path} is no file; train one with `python -m data.tokenizer`"
            )
        model = self.path.read_bytes()
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise UserError(f"vocabulary {self.path} is no SentencePiece model: {error}") from error
        self.size: int = self._processor.vocab_size()
        self.eos_id: int = self._processor.eos_id()
        self.sha256 = hashlib.sha256(model).hexdigest()
        if self.eos_id < 0 or self._processor.id_to_piece(self.eos_id) != END_OF_TEXT:
            raise UserError(
                f"vocabulary {self.path} has no {END_OF_TEXT} as end of text; train one with "
                "`python -m data.tokenizer`"
            )

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without an end-of-text id. `decode` gives the same text again, but for
        the character U+2581, which SentencePiece writes for a space and reads as one."""
        return self._processor.encode(text)

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`; end-of-text ids give nothing."""
        return self._processor.decode(ids)

    def token_bytes(self) -> Int[np.ndarray, "size"]:
        """How many bytes of UTF-8 each id stands for; 0 for those that stand for no text."""

        def length(id: int) -> int:
            if self._processor.is_control(id) or self._processor.is_unknown(id):
                return 0
            if self._processor.is_byte(id):
                return 1
            return len(self._processor.id_to_piece(id).replace("\u2581", " ").encode())

        return np.array([length(id) for id in range(self.size)])


def seqio_vocabulary(path: Path) -> "seqio.SentencePieceVocabulary":
    """The same ids as `Vocabulary(path)`, for seqio's features."""
    import seqio

    return seqio.SentencePieceVocabulary(str(Vocabulary(path).path))
