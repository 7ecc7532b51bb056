"""The Pile's PubMed Abstracts and PubMed Central, which the published model was trained on [1].

Its files are JSONL, plain or through zstd: {"text": ..., "meta": {"pile_set_name": ...}}. They give
no PMIDs; a text is known by 63 bits of its hash, so the same text has the same number wherever it
stands.

[1] Gao et al. 2020, arXiv 2101.00027
"""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Iterator
from typing import IO

import zstandard

from data.parsing.markup import Unreadable

SETS = {"PubMed Abstracts": "pile_abstract", "PubMed Central": "pile_full_text"}
LONGEST = 64 << 20  # bytes of a line


@dataclasses.dataclass(frozen=True)
class Piece:
    source: str  # of SETS
    number: int
    text: str


@dataclasses.dataclass(frozen=True)
class Other:
    """A line of another set of The Pile."""

    set_name: str


def read(stream: IO[bytes]) -> Iterator[Piece | Other | Unreadable]:
    """What the lines hold, in order; of a damaged file what comes before the damage, and then an
    Unreadable."""
    number = 0
    try:
        while line := stream.readline(LONGEST + 1):
            number += 1
            where = f"line {number}"
            if len(line) > LONGEST:
                while not line.endswith(b"\n") and (line := stream.readline(LONGEST)):
                    pass
                yield Unreadable(where, f"over {LONGEST} bytes long")
            elif line.strip():
                item = _item(line, where)
                yield item
                if number == 1 and isinstance(item, Unreadable) and _is_other(line):
                    return  # of another kind: one word for the file, not one a line
    except (EOFError, zlib.error, zstandard.ZstdError) as error:
        yield Unreadable(f"after line {number}", f"damaged file: {error}")


def _is_other(line: bytes) -> bool:
    """Whether it is JSON, but not of The Pile's form."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return not (isinstance(values, dict) and {"text", "meta"} <= values.keys())


def _item(line: bytes, where: str) -> Piece | Other | Unreadable:
    try:
        values = json.loads(line)
        name, text = values["meta"]["pile_set_name"], values["text"]
        if name not in SETS:
            return Other(str(name))
        encoded = text.encode()  # half of a surrogate pair has no bytes
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        cut = "" if line.endswith(b"\n") else "; the file ends here"
        return Unreadable(where, f"not a line of The Pile: {error!r}{cut}")
    if not text.strip():
        return Unreadable(where, "a text without a word")
    digest = hashlib.blake2b(encoded, digest_size=8).digest()
    return Piece(SETS[name], int.from_bytes(digest, "big") >> 1, text)
