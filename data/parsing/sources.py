"""The files that `parse.py` reads: which there are, what kind each is, and what is in it.

Told apart by their root element, or for The Pile by their name:

    PubMed's citation files      .xml, .xml.gz       `pubmed.py`
    PMC's articles               .nxml, .xml, or archives of them: .tar.gz      `jats.py`
    The Pile                     .jsonl, .jsonl.zst  `pile.py`
"""

import collections
import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import lxml.etree as etree
import zstandard
from etils import epath

from biomedlm_jax.entry import UserError, in_cloud
from biomedlm_jax.pipeline.lines import Unpacked
from data.parsing import jats, pile, pubmed, records
from data.parsing.jats import Article
from data.parsing.markup import SAFELY, Unreadable, tag
from data.parsing.pubmed import Citation, Deletion

Item = Citation | Deletion | Article | jats.Withdrawal | pile.Piece | pile.Other | Unreadable
# What a file does to its reader. Other errors of the system may pass, and end the run instead.
DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error, tarfile.TarError, zstandard.ZstdError)

_NAMES = (".xml", ".xml.gz", ".nxml", ".nxml.gz", ".tar.gz", ".jsonl", ".jsonl.zst")
_HEAD = 1 << 20  # bytes in which the root element must begin
_GROUP = 16 << 20  # bytes on disk of small files that one item of work reads


class Listing(NamedTuple):
    """files: {path below the folder: bytes} of all that could be read, in the order in which they
    were published: of two versions of the same thing the one in the later file counts.
    others: {ending: how many} of those that are passed over.
    fingerprint: changes when a file does."""

    files: dict[str, int]
    others: dict[str, int]
    fingerprint: str


def listing(folder: epath.Path) -> Listing:
    """What is below `folder`.

    Raises:
      UserError: nothing that could be read, or a file that is named but not there.
    """
    if not folder.is_dir():
        raise UserError(f"--input={folder} is no folder; name the one that holds NCBI's files")
    found: dict[str, int] = {}
    others: collections.Counter[str] = collections.Counter()
    digest = 0
    for file in _below(folder, set()):
        name = str(file.relative_to(folder))
        if not name.endswith(_NAMES):
            others["".join(file.suffixes[-2:]) or file.name] += 1
            continue
        try:
            status = file.stat()
        except OSError as error:
            raise UserError(f"--input={folder}: {name}: {error.strerror or error}") from error
        found[name] = status.length
        line = f"{name} {status.length} {status.mtime}".encode()
        digest ^= int.from_bytes(hashlib.sha256(line).digest(), "big")  # in any order
    if not found:
        raise UserError(
            f"--input={folder} holds no file to read; PubMed's end in .xml or .xml.gz, PMC's in "
            ".nxml or .tar.gz, The Pile's in .jsonl or .jsonl.zst"
        )
    files = {name: found[name] for name in sorted(found, key=_published)}
    return Listing(files, dict(sorted(others.items())), f"{digest:064x}")


def groups(files: dict[str, int]) -> list[list[str]]:
    """The files in their order, small neighbours together: PMC has millions of single articles."""
    found: list[list[str]] = []
    size = 0
    for name, nbytes in files.items():
        if not found or size + nbytes > _GROUP:
            found.append([])
            size = 0
        found[-1].append(name)
        size += nbytes
    return found


class File:
    """One file, to be read once with `items`.

    Attributes:
      kind: "citations", "articles", "pile"; "unreadable" where no item can come of it.
      bytes, sha256: of the file as it lies there, known when `items` has ended.
    """

    def __init__(self, folder: epath.Path, name: str) -> None:
        self._path = folder / name
        self._name = name
        self.kind = "unreadable"
        self.bytes = 0
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def items(self) -> Iterator[Item]:
        """What is in the file. Of a damaged one what comes before the damage, then an Unreadable.

        Raises:
          OSError: the file can not be opened.
        """
        with self._path.open("rb") as raw:
            counted: Any = io.BufferedReader(_Counted(raw, self), 1 << 20)
            try:
                yield from self._read(counted)
            except DAMAGE as error:
                yield Unreadable("after what was read", f"damaged file: {error}")
            while counted.read(1 << 20):
                pass

    def count(self, data: bytes) -> None:
        self.bytes += len(data)
        self._hash.update(data)

    def _read(self, raw: IO[bytes]) -> Iterator[Item]:
        if self._name.endswith((".jsonl", ".jsonl.zst")):
            self.kind = "pile"
            if self._name.endswith(".zst"):
                raw = io.BufferedReader(Unpacked(raw), 1 << 20)
            yield from pile.read(raw)
            if not self.bytes:
                yield Unreadable("start", "the file is empty")
        elif self._name.endswith(".tar.gz"):
            self.kind = "articles"
            yield from _archive(raw)
        else:
            stream: Any = gzip.GzipFile(fileobj=raw) if self._name.endswith(".gz") else raw
            yield from self._xml(stream)

    def _xml(self, stream: Any) -> Iterator[Item]:
        head, damage = _head(stream)
        if damage and not head:
            raise damage
        root = _root_element(head)
        stream = io.BufferedReader(_Rejoined(head, damage, stream), 1 << 20)
        if root in records.ROOTS:
            self.kind = "citations"
            yield from pubmed.read(stream)
        elif root in jats.ROOTS:
            self.kind = "articles"
            yield from jats.articles(stream)
        elif isinstance(root, Unreadable):
            yield root
        else:
            yield Unreadable("start", f"root element is {root}")


def _below(folder: epath.Path, seen: set[str]) -> Iterator[epath.Path]:
    """All files; epath has no recursive glob. A link to a folder above is not followed again."""
    if (real := os.path.realpath(folder)) in seen and not in_cloud(folder):
        return
    seen.add(real)
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _below(entry, seen)
        else:
            yield entry


def _published(name: str) -> tuple[Any, ...]:
    base = name.rsplit("/", 1)[-1]
    return pubmed.release_order(base)[:2], jats.release_order(base)[0], base, name


def _head(stream: Any) -> tuple[bytes, Exception | None]:
    """The first megabyte, or what comes before damage, and the damage."""
    head = b""
    try:
        while len(head) < _HEAD and (piece := stream.read1(_HEAD - len(head))):
            head += piece
    except DAMAGE as error:
        return head, error
    return head, None


def _root_element(head: bytes) -> str | Unreadable:
    """The name of the root element that a file begins with."""
    if not head.strip():
        return Unreadable("start", "the file is empty")
    parser = etree.XMLPullParser(events=("start",), **SAFELY)
    try:
        try:
            parser.feed(head)
        except etree.XMLSyntaxError as error:
            # The parser may have met the root, and then something broken further on.
            for _, element in parser.read_events():
                return tag(element)  # pyright: ignore
            return Unreadable(f"line {error.lineno}", f"not XML: {error.msg}")
        for _, element in parser.read_events():
            return tag(element)  # pyright: ignore
    except ValueError as error:  # of a name that lxml does not take, with a prefix never declared
        return Unreadable("start", f"not XML: {error}")
    return Unreadable("start", f"no element in the first {len(head)} bytes")


def _archive(raw: IO[bytes]) -> Iterator[Item]:
    """The articles of a .tar.gz. Nothing is unpacked to a disk; a member that is a link, or whose
    name leads out of the archive, is refused all the same: NCBI's archives have none, so the
    archive is not what it seems."""
    name, articles = "nothing", 0
    unpacked = gzip.GzipFile(fileobj=raw)
    try:
        with tarfile.open(fileobj=unpacked, mode="r|", tarinfo=_Member) as archive:
            for member in archive:
                archive.members.clear()  # or a million of them are kept  # pyright: ignore
                name = member.name
                if member.isdir() or not name.endswith((".nxml", ".xml")):
                    continue
                articles += 1
                if name.startswith("/") or ".." in name.split("/"):
                    yield Unreadable(name, "a path that leads out of the archive")
                elif content := member.isfile() and archive.extractfile(member):
                    for item in jats.articles(content):
                        if isinstance(item, Unreadable):
                            alone = item.position == "article"
                            position = name if alone else f"{name}, {item.position}"
                            item = Unreadable(position, item.reason)
                        yield item
                else:
                    yield Unreadable(name, "a link or device, not a file")
            rest: Any = archive.fileobj
            while piece := rest.read(1 << 20):  # zeros; and the checksum is behind them
                if piece.strip(b"\0"):
                    raise tarfile.ReadError("there is more behind the end of the archive")
    except (*DAMAGE, ValueError) as error:  # ValueError: of a header's numbers
        yield Unreadable(f"after {name}", f"damaged file: {error}")
        return
    if not articles:
        yield Unreadable("start", "no file in it ends in .nxml or .xml")


class _Member(tarfile.TarInfo):
    """Without it, a header that is damaged or missing would pass for the end of the archive."""

    @classmethod
    def frombuf(cls, *arguments: Any) -> tarfile.TarInfo:
        try:
            return super().frombuf(*arguments)
        except tarfile.EOFHeaderError:  # pyright: ignore
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


class _Counted(io.RawIOBase):
    """A file on its way through, for its size and hash."""

    def __init__(self, raw: IO[bytes], file: File) -> None:
        self._raw, self._file = raw, file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer))
        self._file.count(data)
        buffer[: len(data)] = data
        return len(data)


class _Rejoined(io.RawIOBase):
    """A stream whose head was looked at. Damage is met where it stands: gzip would not report it
    a second time."""

    def __init__(self, head: bytes, damage: Exception | None, rest: Any) -> None:
        self._head, self._damage, self._rest = head, damage, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._head and self._damage:
            raise self._damage
        data = self._head[: len(buffer)] or self._rest.read1(len(buffer))
        self._head = self._head[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)
