"""What NCBI's server has for `fetch.py`: folders and their indexes, checksums, lists of articles.

pubmed/baseline, pubmed/updatefiles:
    pubmed25n0001.xml.gz and pubmed25n0001.xml.gz.md5
pub/pmc/oa_bulk/oa_comm/xml, and the same of oa_noncomm:
    oa_comm_xml.PMC000xxxxxx.baseline.2024-12-18.tar.gz, oa_comm_xml.incr.2025-01-31.tar.gz, and
    for each a list of its articles that ends in .filelist.csv instead
"""

import csv
import gzip
import re
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import lxml.etree as etree
import lxml.html

from biomedlm_jax.entry import UserError
from data.fetching.download import ContentError
from data.fetching.web import Client, FetchError
from data.parsing import jats, pubmed

MIRROR = "https://ftp.ncbi.nlm.nih.gov"
SOURCES = ("pubmed", "pubmed_updates", "pmc_oa")
COLLECTIONS = ("oa_comm", "oa_noncomm")
PMC_FOLDER = "/pub/pmc/oa_bulk"

_PUBMED = re.compile(r"pubmed[0-9]{2}n[0-9]{4,6}\.xml\.gz")
_PMC = re.compile(
    r"oa_(?:comm|noncomm)_xml\.(?:PMC[0-9]{3}x{6}\.baseline|incr)\.[0-9]{4}(?:-[0-9]{2}){2}\.tar\.gz"
)
_MD5 = re.compile(r"\s*(?:MD5\s*\((.+)\)\s*=\s*([0-9a-fA-F]{32})|([0-9a-fA-F]{32})\s+\*?(.+?))\s*")
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)([KMGT]?)")
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_TIMES = 4  # the size in an index is rounded, and a file may be issued again
_LEAST = 64 << 20  # bytes of any file that are let through
_PACKED = 1032  # bytes that deflate makes one of, at most (zlib Technical Details)
_LARGEST = 64 << 30  # bytes of a file of which the index says nothing; NLM's have under 20 GB
# Of a header that says anything, tarfile raises what its parts happen to; ValueError also for text.
_DAMAGE = (EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile, ValueError, OverflowError,
           RecursionError)  # fmt: skip


class Remote(NamedTuple):
    """A file on the server. size: in bytes, rounded as in the server's index, if it is there."""

    url: str
    target: Path
    size: int | None

    @property
    def most(self) -> int:
        """Bytes after which it can not be this file that comes, or a list that belongs to it."""
        return _LARGEST if self.size is None else max(_LEAST, _TIMES * self.size)


def names(source: str) -> re.Pattern[str]:
    """Of the files of one of SOURCES; none of them leads out of a folder."""
    return _PMC if source == "pmc_oa" else _PUBMED


def folders(source: str, collections: Sequence[str], pmc_folder: str) -> list[str]:
    """Below the server's root.

    Raises:
      UserError: there is no such collection, or `pmc_folder` leads elsewhere.
    """
    if source != "pmc_oa":
        return ["pubmed/baseline" if source == "pubmed" else "pubmed/updatefiles"]
    if not collections or set(collections) - set(COLLECTIONS):
        raise UserError(
            f"--collections={','.join(collections)}: there are {', '.join(COLLECTIONS)}; give one, "
            "or both with a comma between"
        )
    parts = pmc_folder.strip("/").split("/")
    if not all(re.fullmatch(r"[\w-][\w.-]*", part, re.ASCII) for part in parts):
        raise UserError(
            f"--pmc_folder={pmc_folder} is no folder below the server's root; it is written as "
            f"{PMC_FOLDER}"
        )
    return ["/".join([*parts, collection, "xml"]) for collection in dict.fromkeys(collections)]


def root(mirror: str) -> str:
    """The address without a slash at its end.

    Raises:
      UserError: it is not one of the web.
    """
    try:
        parts = urlsplit(mirror)
        good = parts.scheme in ("https", "http") and parts.hostname and parts.port != 0
    except ValueError:  # of the port, or a bracket
        good = parts = None
    if not good or not parts or parts.query or parts.fragment:
        raise UserError(
            f"--mirror={mirror} is no web address; it begins with https:// or http:// and leads to "
            f"the folder that holds pubmed and pub, such as {MIRROR}"
        )
    return mirror.rstrip("/")


def listed(client: Client, source: str, url: str, place: Path) -> list[Remote]:
    """The files of one of SOURCES in the folder at `url`, in the order of their publication.

    Raises:
      UserError: there are none, or the server does not tell.
    """
    hint = "is --mirror right?"
    if source == "pmc_oa":
        hint += " NLM announced that its server keeps PMC's archives until August 2026; see --help"
    try:
        sizes = index(client.read(url), names(source))
    except FetchError as error:
        raise UserError(f"{url}: {error}; {hint}") from error
    if not sizes:
        citations, archive = "pubmed25n0001.xml.gz", "oa_comm_xml.incr.2025-01-31.tar.gz"
        example = archive if source == "pmc_oa" else citations
        raise UserError(f"{url} lists no file such as {example}; {hint}")
    order = jats.release_order if source == "pmc_oa" else pubmed.release_order
    return [Remote(url + name, place / name, sizes[name]) for name in sorted(sizes, key=order)]


def index(page: bytes, wanted: re.Pattern[str]) -> dict[str, int | None]:
    """{name: bytes, if the page tells them} of the page that Apache or nginx shows for a folder.

    A link must be one of the `wanted` names and nothing else: no path, no address, no query.
    """
    try:
        tree = lxml.html.document_fromstring(page)
    except (etree.ParserError, ValueError):  # nothing in it
        return {}
    found: dict[str, int | None] = {}
    for link in tree.iter("a"):
        name = link.get("href", "")
        if wanted.fullmatch(name):
            row = next(link.iterancestors("tr"), None)
            text = (link.tail or "") if row is None else " ".join(row.itertext())
            sizes = [size for word in text.split() if (size := _SIZE.fullmatch(word))]
            size = sizes[-1] if sizes else None
            found[name] = int(float(size[1]) * (1 << _UNITS[size[2]])) if size else None
    return found


def md5(client: Client, remote: Remote) -> str:
    """What the server says it is: "MD5(pubmed25n0001.xml.gz)= <32 digits>", or as md5sum writes it.

    Raises:
      FetchError: it says nothing, or something else.
    """
    name = remote.target.name
    try:
        text = client.read(remote.url + ".md5")
    except FetchError as error:
        raise FetchError(f"its checksum, {name}.md5: {error}") from error
    found = _MD5.fullmatch(text.decode("utf-8", errors="replace"))
    if not found or (found[1] or found[4]).strip() != name:
        raise FetchError(
            f"its checksum, {name}.md5, is {text[:80]!r}, not MD5({name})= and 32 digits"
        )
    return (found[2] or found[3]).lower()


def articles_listed(file: Path) -> set[str]:
    """The articles of a .filelist.csv, by the names of their files without folders. Rows without a
    name are no articles.

    Raises:
      ContentError: it is no such list.
    """
    try:
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            rows = csv.DictReader(lines)
            if "Article File" not in (rows.fieldnames or ()):
                raise ContentError(f"is no list of articles: it begins {rows.fieldnames}")
            found = {(row["Article File"] or "").rsplit("/", 1)[-1] for row in rows}
            return found - {""}
    except csv.Error as error:
        raise ContentError(f"is no list of articles: {error}") from error


def articles_in(archive: Path) -> set[str]:
    """The articles of a .tar.gz, which is read to its end, by names as in `articles_listed`.

    Raises:
      ContentError: it is damaged.
    """
    found: set[str] = set()
    most = _PACKED * archive.stat().st_size
    try:
        with gzip.open(archive) as unpacked:
            with tarfile.open(fileobj=unpacked, mode="r|") as opened:
                members: Any = opened
                while member := members.next():
                    members.members = []  # or it keeps them all, 1 KB each
                    if members.offset > most:  # or it would seek for the next one for years
                        raise tarfile.ReadError(f"{member.name!r} is larger than the archive")
                    if member.isfile() and member.name.endswith((".xml", ".nxml")):
                        found.add(member.name.rsplit("/", 1)[-1])
            while unpacked.read(1 << 20):  # to gzip's checksum
                pass
    except _DAMAGE as error:
        raise ContentError(f"is a damaged archive: {error}") from error
    return found
