"""The text of one request as it comes, token by token, of which only what is certain is told:
bytes of half a character may become another one, and the beginning of a stop text may be none."""

from typing import Literal

from biomedlm_jax.pipeline.vocabulary import Vocabulary

Finish = Literal["stop", "length"]
HALF = "\ufffd"  # what bytes that are no character are decoded to
LONGEST = 3  # bytes of a character, as long as its last is missing


class Writing:
    """handle: the request's; tokens: what was written, the end of text not included."""

    def __init__(
        self, handle: int, vocabulary: Vocabulary, stop: tuple[str, ...], max_tokens: int
    ) -> None:
        self.handle = handle
        self.tokens: list[int] = []
        self._vocabulary, self._stop, self._max_tokens = vocabulary, stop, max_tokens
        self._told = 0  # characters

    def add(self, token: int) -> tuple[str, tuple[int, ...], Finish | None]:
        """(the text that is certain now and was not before, the token, why it ends if it does)."""
        ended = token == self._vocabulary.eos_id
        new = () if ended else (token,)
        self.tokens += new
        text = self._vocabulary.decode(self.tokens)
        finish: Finish | None = None
        if ended:
            finish = "stop"
        elif len(self.tokens) == self._max_tokens:
            finish = "length"
        # Only in what was not told can a stop text begin: its beginnings are held back.
        found = [at for stop in self._stop if (at := text.find(stop, self._told)) >= 0]
        if found:
            text, finish = text[: min(found)], "stop"
        elif not finish:
            text = text[: self._certain(text)]
        told, self._told = self._told, max(self._told, len(text))
        return text[told:], new, finish

    def _certain(self, text: str) -> int:
        """How much of `text` no later token can change or take back."""
        end = len(text)
        while end > max(0, len(text) - LONGEST) and text[end - 1] == HALF:
            end -= 1
        for stop in self._stop:
            for size in range(min(len(stop) - 1, end), 0, -1):
                if text.startswith(stop[:size], end - size):
                    end -= size
                    break
        return max(end, self._told)
