"""What the way to tokens costs as the corpus grows: python -m data.bench_scale --corpus=DIR

    memory   the largest resident size of a process, for one file of --gigabytes of citations and
             for one archive of as many of articles
    growth   processor seconds of parse, clean and tokenize for 1, 4 and 16 times the same corpus
    words    which of the words that the published vocabulary is known by are one token each, in
             vocabularies of its size from all text below --corpus [1]

Copies of the corpus are made distinct: other numbers, and the words of each paragraph in another
order, so that no copy is a duplicate of another.

[1] Bolton et al. 2024, arXiv 2403.18421, table 3
"""

import csv
import gzip
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from absl import flags
from etils import epath

from biomedlm_jax import entry
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from data import documents, parse, stages, tokenizer
from data.documents import Document
from data.parsing import records

WORDS = (
    "chromatography", "cytotoxicity", "ECG", "GATA", "Immunohistochemistry", "myocardium",
    "nanoparticles", "photosynthesis", "probiotic", "thrombin",
)  # fmt: skip
SIZE = 28_896
COPIES = (1, 4, 16)

_NUMBER = re.compile(rb'(<PMID\b[^>]*>|<article-id pub-id-type="(?:pmc|pmid|pmcid)">(?:PMC)?)(\d+)')
_TEXT = re.compile(rb">([^<>]{60,})<")
_ROOT = re.compile(rb"<PubmedArticleSet[^>]*>|<MedlineCitationSet[^>]*>")


def memory(corpus: Path, nbytes: int) -> dict[str, dict[str, float]]:
    """{input: {command: MB of its largest process}}, each command in one process."""
    found = {}
    for name, write in {"citations": one_file, "articles": one_archive}.items():
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder)
            (made / "input").mkdir()
            write(corpus, made / "input", nbytes)
            found[name] = {
                command: peak for command, (_, peak) in commands(made, made / "input").items()
            }
    return found


def growth(corpus: Path) -> dict[str, list[float]]:
    """{command: processor seconds for each of COPIES}, with the bytes of text there were."""
    found: dict[str, list[float]] = {"megabytes of text": []}
    for copies in COPIES:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder)
            for copy in range(copies):
                _copy(corpus, made / f"input/{copy:02}", copy)
            for command, (seconds, _) in commands(made, made / "input").items():
                found.setdefault(command, []).append(seconds)
            splits = documents.read_manifest(epath.Path(made / "documents"))["splits"]
            found["megabytes of text"].append(sum(s["bytes"] for s in splits.values()) / 1e6)
    return found


def words(corpus: Path) -> dict[str, list[str]]:
    """{kind of vocabulary: the words that are one token, alone or after a space}."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        parse.parse(corpus, made / "parsed", 0, stages.Runner("DirectRunner"))
        with documents.ShardWriter(epath.Path(made / "texts/shards/00000.jsonl.zst"), 0) as shard:
            for document in documents.read(made / "parsed"):
                shard.write(document)
            for number, text in enumerate(_tables(corpus), 10**9):
                document = Document(f"PMID:{number}", "abstract", "", "und", "PubMed", text)
                shard.write(document)
        documents.finish(epath.Path(made / "texts"), [shard.summary()], 0)
        for kind in ("sentencepiece", "byte_level"):
            options = tokenizer.Options(SIZE, kind, train_bytes=10**10)
            tokenizer.train(epath.Path(made / "texts"), epath.Path(made / kind), options)
            vocabulary = Vocabulary(made / kind)
            found[kind] = [
                word
                for word in WORDS
                if 1 in (len(vocabulary.encode(word)), len(vocabulary.encode(f" {word}")))
            ]
    return found


def commands(made: Path, given: Path) -> dict[str, tuple[float, float]]:
    """Processor seconds and largest resident MB of each command, without other processes."""
    parsed, cleaned, learned = made / "parsed", made / "documents", made / "vocabulary"
    runs = {
        "parse": [f"--input={given}", f"--output={parsed}"],
        "clean": [f"--input={parsed}", f"--output={cleaned}"],
        "tokenizer": [f"--documents={cleaned}", f"--output={learned}", "--size=8192",
                      "--train_bytes=10000000"],
        "tokenize": [f"--documents={cleaned}", f"--vocabulary={learned}",
                     f"--output={made / 'store'}"],
    }  # fmt: skip
    found = {}
    for name, arguments in runs.items():
        serial = [] if name == "tokenizer" else ["--runner=serial"]
        run = [sys.executable, "-m", f"data.{name}", *arguments, *serial]
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=said)
            peak = 0
            # What the system tells of an ended process is at least the size of this one.
            while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
                peak = max(peak, _resident(process.pid))
                time.sleep(0.02)
            process.returncode = os.waitstatus_to_exitcode(ended[1])
            if process.returncode:
                said.seek(0)
                raise entry.UserError(f"data.{name} failed: {said.read().decode()[-2000:]}")
        found[name] = ended[2].ru_utime + ended[2].ru_stime, peak / 1e6
    del found["tokenizer"]  # it learns from as much text as it is told to
    return found


def _resident(pid: int) -> int:
    """Bytes that a process had resident at its largest."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def one_file(corpus: Path, folder: Path, nbytes: int) -> None:
    """One file of citations, those below `corpus` again and again under new numbers."""
    with (folder / "pubmed25n0001.xml").open("wb") as file:
        file.write(b"<PubmedArticleSet>\n")
        for copy in _until(nbytes, file):
            for source in _files(corpus, (".xml", ".xml.gz")):
                if _ROOT.search(source[:4096]):
                    file.write(_another(_records(source), copy))
        file.write(b"</PubmedArticleSet>\n")


def one_archive(corpus: Path, folder: Path, nbytes: int) -> None:
    """One archive of articles, as `one_file`; `nbytes` before it is packed."""
    name = folder / "oa_comm_xml.PMC000xxxxxx.tar.gz"
    with gzip.open(name, "wb", 1) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for copy in _until(nbytes, packed):
            for number, source in enumerate(_articles(corpus)):
                source = _another(source, copy)
                member = tarfile.TarInfo(f"PMC/{copy}_{number}.nxml")
                member.size = len(source)
                archive.addfile(member, io.BytesIO(source))
                if packed.tell() >= nbytes:
                    break


def _until(nbytes: int, file: IO[bytes] | gzip.GzipFile) -> Iterator[int]:
    """Numbers of copies until `file` has `nbytes`.

    Raises:
      UserError: a copy added nothing.
    """
    copy, size = 0, file.tell()
    while size < nbytes:
        yield copy
        if file.tell() == size:
            raise entry.UserError(
                "--corpus has no citations (.xml, .xml.gz) or no articles "
                "(oa_comm_xml*.tar.gz) to copy; name a folder with NCBI's files of both"
            )
        copy, size = copy + 1, file.tell()


def _copy(corpus: Path, folder: Path, copy: int) -> None:
    """The citations and a part of the articles below `corpus`, as the corpus number `copy`."""
    folder.mkdir(parents=True)
    for number, source in enumerate(_files(corpus, (".xml", ".xml.gz"))):
        if _ROOT.search(source[:4096]):
            (folder / f"pubmed25n{100 * copy + number:04}.xml").write_bytes(_another(source, copy))
    with tarfile.open(folder / "oa_comm_xml.PMC000xxxxxx.tar.gz", "w:gz", compresslevel=1) as made:
        for number, source in enumerate(_articles(corpus)):
            if number % 8 == 0:
                source = _another(source, copy)
                member = tarfile.TarInfo(f"PMC/{number}.nxml")
                member.size = len(source)
                made.addfile(member, io.BytesIO(source))


def _another(source: bytes, copy: int) -> bytes:
    """The same XML as if it were other articles."""

    def shuffled(found: re.Match[bytes]) -> bytes:
        words = found[1].split()
        random.Random(f"{copy} {len(found[1])} {words[:3]}").shuffle(words)
        return b">" + b" ".join(words) + b"<"

    if not copy:
        return source
    numbered = _NUMBER.sub(lambda m: m[1] + b"%d" % (int(m[2]) + copy * 10**9), source)
    return _TEXT.sub(shuffled, numbered)


def _records(source: bytes) -> bytes:
    """What stands between the tags of the set."""
    begin = _ROOT.search(source)
    assert begin
    ends = [source.rfind(f"</{root}".encode()) for root in records.ROOTS]
    return source[begin.end() : max(ends)]


def _files(corpus: Path, endings: tuple[str, ...]) -> Iterator[bytes]:
    for file in sorted(corpus.rglob("*")):
        if file.name.endswith(endings) and file.is_file():
            yield gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()


def _articles(corpus: Path) -> Iterator[bytes]:
    for file in sorted(corpus.rglob("oa_comm_xml*.tar.gz")):
        with tarfile.open(file) as archive:
            for member in archive:
                if content := archive.extractfile(member):
                    yield content.read()


def _tables(corpus: Path) -> Iterator[str]:
    """Titles and abstracts of the tables (.csv.gz) below `corpus` that have such columns."""
    csv.field_size_limit(1 << 24)
    for file in sorted(corpus.rglob("*.csv.gz")):
        with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                text = "\n\n".join(row[name] for name in ("title", "abstract") if row.get(name))
                if text:
                    yield text


def main() -> None:
    given = flags.FLAGS
    corpus = Path(given.corpus)
    found = {
        "words": words(corpus),
        "growth": growth(corpus),
        "memory": memory(corpus, int(given.gigabytes * 1e9)),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    flags.DEFINE_string("corpus", None, "Folder with NCBI's files.", required=True)
    flags.DEFINE_float("gigabytes", 2.0, "Size of the one large file.", 0.001)
    entry.run(main)
