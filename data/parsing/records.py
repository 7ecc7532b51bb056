"""PubMed's files cut into records, before any XML is parsed.

The stream of bytes is cut at the ends of records, so memory holds one record, and what is broken,
or larger than LARGEST, costs that record and no other. Comments are passed over.
"""

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from typing import IO, Any

from data.parsing.markup import Unreadable

ROOTS = ("PubmedArticleSet", "MedlineCitationSet", "PubmedBookArticleSet")
LARGEST = 16 << 20  # bytes of a record; the largest real ones are under 2 MB

_RECORDS = ("PubmedArticle", "PubmedBookArticle", "MedlineCitation", "DeleteCitation",
            "DeleteDocument")  # fmt: skip
_NAMES = "|".join(_RECORDS).encode()
_BEGIN = re.compile(rb"<(%s)(?=[\s>/])|<!--|<!\[CDATA\[" % _NAMES)
_ENDS = {b"<!--": b"-->", b"<![CDATA[": b"]]>"}  # what is inside is no record
_END_OF_SET = re.compile(rb"</(?:%s)\s*>" % "|".join(ROOTS).encode())
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*\bencoding\s*=\s*["']([\w.-]+)""")
_CHUNK = 1 << 18


def cut(stream: IO[bytes]) -> Iterator[tuple[int, int, bytes] | Unreadable]:
    """(number from 1, byte at which it begins, XML) of each record; also damage between them."""
    buffer, number = _Buffer(stream), 0
    while begin := buffer.find(_BEGIN):
        if end := _ENDS.get(begin[0]):
            buffer.ended = buffer.ended or bool(_END_OF_SET.search(buffer.data, 0, begin.start()))
            buffer.drop(begin.end())
            if not buffer.pass_over(end):
                break
            continue
        number += 1
        position, name = buffer.position + begin.start(), begin[1]
        buffer.drop(begin.start())
        ended, source = buffer.take(b"/>" if buffer.is_empty() else b"</" + name)
        if not ended:
            reason = buffer.damage or f"the file ends inside a {name.decode()}"
            yield Unreadable(f"record {number}, byte {position}", reason)
            return
        if source is None:
            reason = f"a {name.decode()} of over {LARGEST} bytes"
            yield Unreadable(f"record {number}, byte {position}", reason)
        else:
            yield number, position, source
    if buffer.damage:
        yield Unreadable(f"byte {buffer.position + len(buffer.data)}", buffer.damage)
    elif not (buffer.ended or _END_OF_SET.search(buffer.data) or _empty_set(buffer.data)):
        yield Unreadable(f"byte {buffer.position + len(buffer.data)}", "the file has no end tag")


def _empty_set(data: bytes | bytearray) -> bool:
    return bool(re.search(rb"<(?:%s)\b[^>]*/>" % "|".join(ROOTS).encode(), data))


def _encoding(head: bytes) -> str | None:
    """Of a file that is not in UTF-8 or ASCII, as NLM's all are; only these can be cut at tags."""
    if head.startswith(_UTF16):
        return "utf-16"
    declared = _DECLARED.search(head.removeprefix(b"\xef\xbb\xbf"))
    name = declared[1].decode().lower() if declared else "utf-8"
    return None if name in ("utf-8", "utf8", "us-ascii", "ascii") else name


class _Buffer:
    """A window that moves over a stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._decoder: Any = None  # of an encoding that is not UTF-8
        self._begun = False
        self.data = bytearray()
        self.position = 0  # of data[0] in the stream
        self.ended = False  # the end of the set was passed
        self.damage = ""  # why the stream ended, where it was not its end

    def fill(self) -> bool:
        """Reads on; whether anything came."""
        try:
            # Not read(): what comes before damage would be lost with it.
            chunk = b"" if self.damage else self._stream.read1(_CHUNK)
            if not self._begun and (name := _encoding(chunk)):
                self._decoder = codecs.getincrementaldecoder(name)()
            self._begun = True
            if self._decoder:
                self.data += self._decoder.decode(chunk, final=not chunk).encode()
            else:
                self.data += chunk
        except LookupError as error:
            self.damage, chunk = str(error), b""
        except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeError) as error:
            self.damage, chunk = f"damaged file: {error}", b""
        return bool(chunk)

    def drop(self, count: int) -> None:
        del self.data[:count]
        self.position += count

    def find(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """The first match; what comes before it, but for the last bytes, is forgotten."""
        while True:
            found = pattern.search(self.data)
            # A match that touches the end may be longer, or another, with what follows.
            if found and found.end() < len(self.data):
                return found
            self.ended = self.ended or bool(_END_OF_SET.search(self.data))
            self.drop(max(0, len(self.data) - 100))
            if not self.fill():
                return None

    def pass_over(self, end: bytes) -> bool:
        """Forgets all up to `end` and it too; whether it came."""
        while (found := self.data.find(end)) < 0:
            self.drop(max(0, len(self.data) - len(end)))
            if not self.fill():
                return False
        self.drop(found + len(end))
        return True

    def is_empty(self) -> bool:
        """Whether the record that begins the data is a tag without content, such as <X/>."""
        while (end := self.data.find(b">")) < 0 and len(self.data) < LARGEST and self.fill():
            pass
        return self.data[max(0, end - 1) : end] == b"/"

    def take(self, end_tag: bytes) -> tuple[bool, bytes | None]:
        """Removes the record that begins the data. Whether it had an end, and what it was; None
        where it was over LARGEST bytes and only passed over."""
        searched, small = 0, True
        while True:
            begin = self.data.find(end_tag, searched)
            close = self.data.find(b">", begin) if begin >= 0 else -1
            if close >= 0:
                source = bytes(self.data[: close + 1]) if small else None
                self.drop(close + 1)
                return True, source
            searched = begin if begin >= 0 else max(0, len(self.data) - len(end_tag))
            if len(self.data) > LARGEST:
                small = False
                self.drop(searched)
                searched = 0
            if not self.fill():
                return False, None
