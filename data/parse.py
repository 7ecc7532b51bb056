"""NCBI's files to documents: python -m data.parse --input=DIR --output=DIR

Takes whatever `parsing/sources.py` knows below --input: PubMed's citation files, PMC's articles and
archives of them, The Pile's JSONL. Writes the folder that `documents.py` describes, for
`clean.py`, `tokenizer.py` and `tokenize.py`.

Three steps over all cores (`stages.py`): every file is read once, its documents are written and
each is described by a row; a query over the rows decides which count (`parsing/settle.py`); these
are copied into the folder. Memory holds one document, never a file or the corpus. What can not be
read is set aside by name and never ends the run.
"""

import collections
import dataclasses
import functools
import json
from typing import Any

from absl import flags
from etils import epath

from biomedlm_jax import entry
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.lines import appearing, compressed, lines
from biomedlm_jax.pipeline.store import document_id
from data import documents, stages
from data.documents import Document
from data.parsing import jats, pile, settle, sources
from data.parsing.markup import Unreadable
from data.parsing.pubmed import Citation, Deletion
from data.stages import SERIAL, Runner, Step

HELDOUT_PER_MILLE = 20


@dataclasses.dataclass(frozen=True)
class Parse:
    """What the steps need to know; goes to every worker.

    folder: where the output is built.
    """

    input: epath.Path
    folder: epath.Path
    heldout_per_mille: int

    def steps(self) -> list[Step]:
        return [
            Step("read", self._groups, self._read, self.folder),
            Step("settle", self._everything, self._settle, self.folder),
            Step("parse", self._groups, self._write, self.folder),
            Step("parsed", self._everything, self._finish, self.folder),
        ]

    @functools.cached_property
    def _listing(self) -> sources.Listing:
        """As it was when the run first began."""
        return sources.Listing(**json.loads((self._raw / "files.json").read_text()))

    @functools.cached_property
    def _grouped(self) -> list[list[str]]:
        return sources.groups(self._listing.files)

    @functools.cached_property
    def _ranks(self) -> dict[str, int]:
        return {file: rank for rank, file in enumerate(self._listing.files)}

    def __getstate__(self) -> dict[str, Any]:
        """Without what was cached."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def _raw(self) -> epath.Path:
        return self.folder / "work/raw"

    def fix(self, listing: sources.Listing) -> None:
        """Says what is read, before the steps begin."""
        file = self._raw / "files.json"
        if not file.exists():
            with appearing(file) as stream:
                stream.write(json.dumps(listing._asdict()).encode())

    def _groups(self) -> dict[str, int]:
        sizes = self._listing.files
        return {f"{i:05}": sum(sizes[n] for n in group) for i, group in enumerate(self._grouped)}

    def _everything(self) -> dict[str, int]:
        return {"all": sum(self._listing.files.values())}

    def _read(self, name: str) -> dict[str, Any]:
        """Reads the files of a group."""
        shard = _Shard(int(name))
        with (
            compressed(self._raw / f"{name}.jsonl.zst") as shard.lines,
            compressed(self._raw / f"{name}.quarantine.zst") as quarantine,
            settle.Rows(self._raw / f"{name}.parquet") as shard.rows,
        ):
            for path in self._grouped[int(name)]:
                file = sources.File(self.input, path)
                shard.rank = self._ranks[path]
                shard.counts.clear()
                for item in file.items():
                    if isinstance(item, Unreadable):
                        shard.counts["unreadable"] += 1
                        shard.unreadable.setdefault(path, dataclasses.asdict(item))
                        quarantine.write(documents.set_aside(path, item))
                    else:
                        shard.add(item)
                shard.files.append(
                    {
                        "name": path,
                        "kind": file.kind,
                        "bytes": file.bytes,
                        "sha256": file.sha256,
                        "counts": dict(shard.counts),
                    }
                )
        return {
            "files": shard.files,
            "unreadable": shard.unreadable,
            "licences": shard.licences,
            "other sets": shard.other_sets,
        }

    def _settle(self, _: str) -> dict[str, Any]:
        tables = [self._raw / f"{name}.parquet" for name in self._groups()]
        return settle.settle(tables, self._raw / "kept.parquet")

    def _write(self, name: str) -> dict[str, Any]:
        """Copies the documents of a group that count."""
        wanted = settle.rows_of(int(name), self._raw / "kept.parquet")
        place = self.folder / documents.SHARDS
        place.mkdir(exist_ok=True)
        with documents.ShardWriter(place / f"{name}.jsonl.zst", self.heldout_per_mille) as writer:
            raw = documents.read_shard(self._raw / f"{name}.jsonl.zst")
            for row, document in enumerate(raw):
                if row in wanted:
                    writer.write(dataclasses.replace(document, pmid=wanted[row]))
        return writer.summary()

    def _finish(self, _: str) -> dict[str, Any]:
        """Writes quarantine.jsonl and manifest.json.

        Raises:
          UserError: no document came of anything.
        """
        read = stages.summaries(self.folder, "read")
        files = [file for summary in read.values() for file in summary["files"]]
        counts: collections.Counter[str] = collections.Counter()
        for file in files:
            counts.update(file["counts"])
        with (self.folder / documents.QUARANTINE).open("wb") as quarantine:
            for name in read:
                for line in lines(self._raw / f"{name}.quarantine.zst"):
                    quarantine.write(line)
        shards = list(stages.summaries(self.folder, "parse").values())
        ends = stages.summaries(self.folder, "settle")["all"]
        if not any(shard["documents"] for shard in shards):
            raise UserError(self._nothing(files, ends, read))
        documents.finish(
            self.folder,
            [shard for shard in shards if shard["documents"]],
            self.heldout_per_mille,
            counts={"read": dict(sorted((+counts).items())), **ends},
            licences=_sum(summary["licences"] for summary in read.values()),
            passed_over=self._listing.others,
            other_sets=_sum(summary["other sets"] for summary in read.values()),
            quarantined=counts["unreadable"],
            files=files,
        )
        return {"documents": sum(shard["documents"] for shard in shards)}

    def _nothing(self, files: list[Any], ends: dict[str, Any], read: dict[str, Any]) -> str:
        message = f"--input={self.input} gave no document: {len(files)} files were read"
        for source, verdicts in ends.items():
            message += f"; {source}: " + ", ".join(f"{n} {v}" for v, n in verdicts.items())
        for summary in read.values():
            for path, what in summary["unreadable"].items():
                return f"{message}; {path}, {what['position']}: {what['reason']}"
        return message


class _Shard:
    """What came of the files of a group so far."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._ordinal = 0
        self._row = 0
        self.rank = 0
        self.lines: Any = None
        self.rows: Any = None
        self.files: list[dict[str, Any]] = []
        self.unreadable: dict[str, dict[str, str]] = {}  # the first of each file
        self.counts: collections.Counter[str] = collections.Counter()  # of the present file
        self.licences: collections.Counter[str] = collections.Counter()
        self.other_sets: collections.Counter[str] = collections.Counter()

    def add(self, item: Any) -> None:
        self._ordinal += 1
        if isinstance(item, Citation):
            self.counts["citations"] += 1
            self.counts["with abstract"] += bool(item.abstract)
            self.counts["with structured abstract"] += item.structured
            self.counts["with other abstracts"] += bool(item.other_abstracts)
            self._document(
                "citation", _from_citation(item) if item.abstract else None, "abstract",
                item.pmid, item.version, item.pmid, item.pmcid,
                (bool(item.abstract), item.retracted, item.retraction_notice, False),
            )  # fmt: skip
            self._retracts(item.retracts)
        elif isinstance(item, Deletion):
            self.counts["deleted PMIDs"] += len(item.pmids)
            for pmid in item.pmids:
                self._append(-1, "deletion", "abstract", pmid, 0, None, None, (False,) * 4)
        elif isinstance(item, jats.Withdrawal):
            self.counts["withdrawn articles"] += 1
            self._append(-1, "deletion", "full_text", item.pmcid, 0, None, None, (False,) * 4)
        elif isinstance(item, jats.Article):
            self.counts["articles"] += 1
            self.licences[item.licence] += 1
            opened = item.licence in jats.OPEN_LICENCES
            self._document(
                "article", _from_article(item) if opened and item.text else None, "full_text",
                item.pmcid, item.version, item.pmid, None,
                (bool(item.text), item.retracted, item.retraction_notice, not opened),
            )  # fmt: skip
            self._retracts(item.retracts)
        elif isinstance(item, pile.Piece):
            self.counts["pieces"] += 1
            document = _from_piece(item)
            self._document(
                "piece", document, item.source, item.number, 1, None, None, (True, *(False,) * 3)
            )
        else:
            self.counts["lines of other sets"] += 1
            self.other_sets[item.set_name] += 1

    def _retracts(self, pmids: tuple[int, ...]) -> None:
        for pmid in pmids:
            self._append(-1, "retracts", "abstract", pmid, 0, None, None, (False,) * 4)

    def _document(self, item: str, document: Document | None, *described: Any) -> None:
        row = -1
        if document is not None:
            row, self._row = self._row, self._row + 1
            self.lines.write(documents.to_line(document))
        self._append(row, item, *described)

    def _append(self, row: int, item: str, source: str, number: int, version: int,
                pmid: int | None, pmcid: int | None, is_: tuple[bool, ...]) -> None:  # fmt: skip
        self.rows.append(
            (self._number, row, self.rank, self._ordinal, item, source, number, version, pmid,
             pmcid, *is_)
        )  # fmt: skip


def parse(
    input: epath.PathLike, output: epath.PathLike, heldout_per_mille: int, runner: Runner = SERIAL
) -> dict[str, Any]:
    """Writes the documents of the files below `input` to `output` and returns its manifest.

    Raises:
      UserError: `input` is missing or gives no document, or `output` is not empty or can not be
        written.
    """
    source, target = epath.Path(input), epath.Path(output)
    listing = sources.listing(source)
    settings = {"files": listing.fingerprint, "heldout_per_mille": heldout_per_mille}
    with stages.building(target, settings) as folder:
        work = Parse(source, folder, heldout_per_mille)
        work.fix(listing)
        stages.run(work.steps(), runner)
    return documents.read_manifest(target)


def _from_citation(citation: Citation) -> Document:
    return Document(
        id=document_id("abstract", citation.pmid),
        source="abstract",
        date=citation.date,
        language=citation.language,
        licence="PubMed",
        text=citation.text,
        journal=citation.journal,
        types=citation.types,
        pmid=citation.pmid,
        pmcid=citation.pmcid,
        doi=citation.doi,
        version=citation.version,
        other_abstracts=tuple(dataclasses.asdict(other) for other in citation.other_abstracts),
    )


def _from_article(article: jats.Article) -> Document:
    return Document(
        id=document_id("full_text", article.pmcid),
        source="full_text",
        date=article.date,
        language=article.language,
        licence=article.licence,
        text=article.text,
        journal=article.journal,
        types=article.types,
        pmid=article.pmid,
        pmcid=article.pmcid,
        doi=article.doi,
        version=article.version,
    )


def _from_piece(piece: pile.Piece) -> Document:
    return Document(
        id=document_id(piece.source, piece.number),
        source=piece.source,
        date="",
        language="und",
        licence="The Pile",
        text=piece.text,
    )


def _sum(counters: Any) -> dict[str, int]:
    total: collections.Counter[str] = collections.Counter()
    for counter in counters:
        total.update(counter)
    return dict(sorted(total.items()))


def print_counts(manifest: dict[str, Any]) -> None:
    for stage, counts in manifest["counts"].items():
        print(stage)
        for name, count in counts.items():
            print(f"  {name:28}{count:>14,}")
    if manifest["passed_over"]:
        names = (f"{count} {ending}" for ending, count in manifest["passed_over"].items())
        print(f"passed over, by their names: {', '.join(names)}")
    for name, split in manifest["splits"].items():
        print(f"{name:30}{split['documents']:>14,} documents {split['bytes']:>16,} bytes")


def main() -> None:
    given = flags.FLAGS
    manifest = parse(given.input, given.output, given.heldout_per_mille, stages.given_runner())
    print_counts(manifest)


def define_flags() -> None:
    flags.DEFINE_string("input", None, "Folder with NCBI's files, at any depth.", required=True)
    flags.DEFINE_integer(
        "heldout_per_mille",
        HELDOUT_PER_MILLE,
        "Of 1000 documents, how many are kept from training.",
        0,
        1000,
    )


if __name__ == "__main__":
    from data import parse as module  # workers find its functions under this name

    module.define_flags()
    flags.DEFINE_string("output", None, "Folder to write; absent or empty.", required=True)
    stages.define_flags()
    entry.run(module.main)
