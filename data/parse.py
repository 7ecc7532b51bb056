"""NCBI's XML to documents: python -m data.parse --input=DIR --output=DIR

Takes whatever lies below --input: PubMed's citation files (.xml, .xml.gz), PMC articles (.nxml,
.xml) and archives of articles (.tar.gz), told apart by their root element. Writes the folder that
`documents.py` describes, for `tokenizer.py` and `tokenize.py`.

Of several versions of a citation the last that NLM published counts, deleted and retracted ones do
not, only articles under an open licence do, and an abstract yields to the full text of the same
work. Memory holds the numbers of all documents, one file's citations and one article, never the
corpus. What can not be read is set aside by name and never ends the run.
"""

import collections
import contextlib
import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lxml.etree as etree
from absl import flags
from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

from biomedlm_jax import entry
from biomedlm_jax.pipeline.store import document_id
from data import documents, jats, pubmed
from data.documents import Document
from data.markup import SAFELY, MarkupError, Unreadable, tag

_DAMAGE = (OSError, EOFError, zlib.error, tarfile.TarError)  # of a file that is being read


def parse(folder: Path, output: Path, heldout_per_mille: int) -> dict[str, Any]:
    """Writes the documents below `folder` to `output` and returns what manifest.json holds.

    Raises:
      UserError: `folder` is missing or gives no document, or `output` is not empty or can not be
        written.
    """
    files = _candidates(folder)
    with (
        documents.output_folder(output) as partial,
        documents.Writer(partial, heldout_per_mille) as writer,
        tqdm(
            desc="parse",
            total=sum(f.stat().st_size for f in files),
            unit="B",
            unit_scale=True,
        ) as bar,
    ):
        run = _Run(folder, writer, bar)
        citations, articles = run.by_kind(files)
        waiting = partial / "waiting.jsonl"
        retracted = run.read_citations(citations, waiting)
        full_texts = run.write_articles(articles, retracted)
        run.write_abstracts(waiting, retracted, full_texts)
        if not writer.documents:
            raise entry.UserError(
                f"--input={folder} gave no document: {run.entries()}, {writer.quarantined} "
                f"unreadable, the first of them {writer.first_quarantined}"
            )
        settings = {"input": str(folder), "heldout_per_mille": heldout_per_mille}
        return writer.finish(flags=settings, **run.entries())


def _candidates(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise entry.UserError(f"--input={folder} is no folder")
    endings = (".xml", ".xml.gz", ".nxml", ".tar.gz")
    files = [
        Path(parent, name)
        for parent, _, names in os.walk(folder, onerror=_refuse)
        for name in names
        if name.endswith(endings)
    ]
    if not files:
        raise entry.UserError(f"--input={folder} has no file that ends in {', '.join(endings)}")
    return sorted(files)


def _refuse(error: OSError) -> None:
    raise error  # os.walk would skip a folder that it may not open


class _Run:
    """What the stages share: where documents and unreadable things go, and the counts."""

    def __init__(self, folder: Path, writer: documents.Writer, bar: tqdm) -> None:
        self._writer = writer
        self._folder = folder
        self._bar = bar
        self._abstracts: collections.Counter[str] = collections.Counter()
        self._articles: collections.Counter[str] = collections.Counter()
        self._licences: collections.Counter[str] = collections.Counter()

    def entries(self) -> dict[str, Any]:
        """The counts, for the manifest."""
        counts = {"abstract": dict(self._abstracts), "full_text": dict(self._articles)}
        return {"counts": counts, "licences": dict(sorted(self._licences.items()))}

    def by_kind(self, files: list[Path]) -> tuple[list[Path], list[Path]]:
        """Citation files and articles or their archives, the newest first."""
        citations, articles = [], []
        for path in files:
            if path.name.endswith(".tar.gz"):
                if self._holds_articles(path):
                    articles.append(path)
                continue
            root = self._root(path)
            if root in pubmed.ROOTS:
                citations.append(path)
            elif root in jats.ROOTS:
                articles.append(path)
            elif root is not None:
                self._set_aside(path, Unreadable("start", f"root element is {root}"))
        citations.sort(key=lambda p: (pubmed.release_order(p.name), p), reverse=True)
        articles.sort(key=lambda p: (jats.release_order(p.name), p), reverse=True)
        self._abstracts["files"], self._articles["files"] = len(citations), len(articles)
        return citations, articles

    def read_citations(self, files: list[Path], waiting: Path) -> set[int]:
        """Writes the abstracts to a file to wait for the full texts; returns retracted PMIDs.

        With the newest file first, the first version of a citation that is met is the one that
        counts, and no text has to be remembered.
        """
        count = self._abstracts
        settled: set[int] = set()
        deleted: set[int] = set()
        retracted: set[int] = set()
        with waiting.open("wb") as lines:
            for path in files:
                newest, deletions = self._newest(path)
                deleted |= deletions
                for pmid, citation in newest.items():
                    if pmid in settled:
                        count["revised"] += 1
                        continue
                    settled.add(pmid)
                    if pmid in deleted:
                        count["deleted"] += 1
                    elif citation.retracted:
                        count["retracted"] += 1
                        retracted.add(pmid)
                    elif citation.retraction_notice:
                        count["retraction notices"] += 1
                        retracted.update(citation.retracts)
                    elif not citation.abstract:
                        count["no abstract"] += 1
                    else:
                        documents.append(lines, _from_citation(citation))
        return retracted

    def _newest(self, path: Path) -> tuple[dict[int, pubmed.Citation], set[int]]:
        """A file's citations by PMID, of each the highest version, and what the file deletes."""
        newest: dict[int, pubmed.Citation] = {}
        deletions: set[int] = set()
        for item in self._citations(path):
            if isinstance(item, Unreadable):
                self._set_aside(path, item)
            elif isinstance(item, pubmed.Deletion):
                deletions.update(item.pmids)
            else:
                self._abstracts["citations"] += 1
                self._abstracts["with abstract"] += bool(item.abstract)
                before = newest.get(item.pmid)
                self._abstracts["revised"] += before is not None
                if before is None or item.version >= before.version:
                    newest[item.pmid] = item
        return newest, deletions

    def _citations(self, path: Path) -> Iterator[pubmed.Citation | pubmed.Deletion | Unreadable]:
        try:
            with _opened(path, self._bar) as stream:
                yield from pubmed.read(stream)
        except _DAMAGE as error:
            yield Unreadable("after what was read", f"damaged file: {error}")

    def write_articles(self, files: list[Path], retracted: set[int]) -> set[int]:
        """Writes the articles that may be used; returns their PMIDs. Of two with one PMCID that in
        the newest file counts, the first of it."""
        count = self._articles
        seen: set[int] = set()
        written: set[int] = set()
        for path in files:
            for item in self._read_articles(path):
                if isinstance(item, Unreadable):
                    self._set_aside(path, item)
                    continue
                count["articles"] += 1
                if item.pmcid in seen:
                    count["revised"] += 1
                    continue
                seen.add(item.pmcid)
                self._licences[item.licence] += 1
                if item.licence not in jats.OPEN_LICENCES:
                    count["licence not open"] += 1
                elif item.retraction_notice:
                    count["retraction notices"] += 1
                elif item.pmid in retracted:
                    count["retracted"] += 1
                elif not item.text:
                    count["no text"] += 1
                else:
                    count["documents"] += 1
                    self._writer.write(_from_article(item))
                    if item.pmid is not None:
                        written.add(item.pmid)
        return written

    def _read_articles(self, path: Path) -> Iterator[jats.Article | Unreadable]:
        name = "nothing"
        try:
            for name, source in _article_files(path, self._bar):
                if isinstance(source, Unreadable):
                    yield source
                    continue
                try:
                    yield jats.read(source)
                except MarkupError as error:
                    yield Unreadable(name, str(error))
        except _DAMAGE as error:
            yield Unreadable(f"after {name}", f"damaged file: {error}")

    def write_abstracts(self, waiting: Path, retracted: set[int], full_texts: set[int]) -> None:
        """Writes the abstracts that waited, but for those whose full text was written."""
        for document in documents.read(waiting):
            pmid = int(document.id.split(":")[1])
            if pmid in retracted:
                self._abstracts["retracted"] += 1
            elif pmid in full_texts:
                self._abstracts["duplicates of a full text"] += 1
            else:
                self._abstracts["documents"] += 1
                self._writer.write(document)
        waiting.unlink()

    def _holds_articles(self, path: Path) -> bool:
        """Whether an archive has an article in it; one without is set aside as a whole. As a rule
        its first file is an article, but a publisher's supplement may stand before that."""
        first, reason = "start", "no file in it ends in .nxml or .xml"
        try:
            members = _article_files(path, None)
            files = ((name, s) for name, s in members if not isinstance(s, Unreadable))
            for number, (name, source) in enumerate(files):
                try:
                    root = _root_element(io.BytesIO(source))
                    found = f"root element is {root}, not article"
                except etree.XMLSyntaxError as error:
                    root, found = None, f"not XML: {error.msg}"
                if root in jats.ROOTS:
                    return True
                if number == 0:
                    first, reason = name, found
        except _DAMAGE as error:
            reason = f"damaged file: {error}"
        self._set_aside(path, Unreadable(first, reason))
        return False

    def _root(self, path: Path) -> str | None:
        """The name of a file's root element; none, and the file set aside, if it has none."""
        try:
            with _opened(path, None) as stream:
                return _root_element(stream)
        except etree.XMLSyntaxError as error:
            self._set_aside(path, Unreadable(f"line {error.lineno}", f"not XML: {error.msg}"))
        except _DAMAGE as error:
            self._set_aside(path, Unreadable("start", f"damaged file: {error}"))
        return None

    def _set_aside(self, path: Path, what: Unreadable) -> None:
        self._writer.set_aside(str(path.relative_to(self._folder)), what)


def _from_citation(citation: pubmed.Citation) -> Document:
    return Document(
        id=document_id("abstract", citation.pmid),
        source="abstract",
        year=citation.year,
        language=citation.language,
        licence="PubMed",
        text=citation.text,
    )


def _from_article(article: jats.Article) -> Document:
    return Document(
        id=document_id("full_text", article.pmcid),
        source="full_text",
        year=article.year,
        language=article.language,
        licence=article.licence,
        text=article.text,
    )


def _root_element(stream: Any) -> str:
    _, element = next(iter(etree.iterparse(stream, events=("start",), **SAFELY)))
    return tag(element)


def _article_files(path: Path, bar: tqdm | None) -> Iterator[tuple[str, bytes | Unreadable]]:
    """The articles of an archive, or the one that the file is. Nothing is unpacked to a disk; a
    member that is a link, or whose name leads out of the archive, is refused all the same: NCBI's
    archives have none, so the archive is not what it seems."""
    with _opened(path, bar) as stream:
        if not path.name.endswith(".tar.gz"):
            yield path.name, stream.read()
            return
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                name = member.name
                if member.isdir() or not name.endswith((".nxml", ".xml")):
                    continue
                if name.startswith("/") or ".." in name.split("/"):
                    yield name, Unreadable(name, "a path that leads out of the archive")
                elif content := member.isfile() and archive.extractfile(member):
                    yield name, content.read()
                else:
                    yield name, Unreadable(name, "a link or device, not a file")


@contextlib.contextmanager
def _opened(path: Path, bar: tqdm | None) -> Iterator[Any]:
    """A file unpacked, for reading; the bar moves by bytes on disk."""
    with path.open("rb") as file:
        raw: Any = file if bar is None else CallbackIOWrapper(bar.update, file, "read")
        if path.name.endswith(".gz"):
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield unpacked
        else:
            yield raw


def _print_table(manifest: dict[str, Any]) -> None:
    for source, counts in manifest["counts"].items():
        print(source)
        for name, count in counts.items():
            print(f"  {name:28}{count:>14,}")
    print("licence of the full texts")
    for name, count in manifest["licences"].items():
        print(f"  {name:28}{count:>14,}")
    print(f"{'unreadable':30}{manifest['quarantined']:>14,}")
    for name, split in manifest["splits"].items():
        print(f"{name:30}{split['documents']:>14,} documents {split['bytes']:>16,} bytes")


def main() -> None:
    given = flags.FLAGS
    manifest = parse(Path(given.input), Path(given.output), given.heldout_per_mille)
    _print_table(manifest)


if __name__ == "__main__":
    flags.DEFINE_string("input", None, "Folder with NCBI's files, at any depth.", required=True)
    flags.DEFINE_string("output", None, "Folder to write; absent or empty.", required=True)
    flags.DEFINE_integer(
        "heldout_per_mille", 20, "Of 1000 documents, how many are kept from training.", 0, 1000
    )
    entry.run(main)
