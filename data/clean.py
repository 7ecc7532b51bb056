"""Documents thinned out: python -m data.clean --input=DIR --output=DIR [--benchmarks=DIR]

Takes a folder of documents as `parse.py` writes it and leaves one of the same form, without what is
too short, not English, there twice or nearly so, or what gives away the test sets below
--benchmarks. Beside the manifest:

    dropped.jsonl.zst     every document that is gone, and why; see `report.line`
    contamination.json    which test items stand in the corpus, and where; with --benchmarks

The rules are those of `describe.Rules`, `contamination.py` and `choose.py` in `cleaning/`; the last
also says which of several stays. Steps over all cores (`stages.py`): each shard is described once,
queries over the tables decide, the shards are copied without what is dropped. Memory holds a batch
of documents, or `tables.MEMORY` of a query, or 4 bytes for each document that the first three of
`choose.py`'s rules leave.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from absl import flags
from etils import epath
from pyarrow import parquet

from biomedlm_jax import entry
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.store import document_id
from data import documents, stages
from data.cleaning import choose, contamination, describe, duplicates, report
from data.cleaning.contamination import Matcher
from data.cleaning.describe import PARTS, Rules
from data.cleaning.report import CONTAMINATION, DROPPED
from data.documents import MANIFEST, QUARANTINE, SHARDS, Document
from data.stages import SERIAL, Runner, Step

__all__ = ["CONTAMINATION", "DROPPED"]  # what is there beside documents

_OWN = ("heldout_per_mille", "splits", "tally", "sha256", "shards")  # of `documents.finish`


@dataclasses.dataclass(frozen=True)
class Clean:
    """What the steps need to know; goes to every worker.

    input: folder of documents, read when the steps begin. folder: where the output is built.
    benchmarks: folder of test sets, or None.
    """

    input: epath.Path
    folder: epath.Path
    rules: Rules = dataclasses.field(default_factory=Rules)
    benchmarks: epath.Path | None = None

    def steps(self) -> list[Step]:
        return [
            Step("describe", self._shards, self._describe, self.folder),
            Step("contain", self._parts, self._contain, self.folder),
            Step("choose", self._everything, self._choose, self.folder),
            Step("candidates", self._bands, self._candidates, self.folder),
            Step("resemble", self._everything, self._near, self.folder),
            Step("clean", self._shards, self._write, self.folder),
            Step("cleaned", self._everything, self._finish, self.folder),
        ]

    def prepare(self) -> None:
        """Reads the benchmarks, before the steps begin.

        Raises:
          UserError: see `benchmarks.read`.
        """
        if self.benchmarks and not (self._sought / contamination.ITEMS).exists():
            contamination.prepare(self.benchmarks, self._sought)

    @property
    def _place(self) -> epath.Path:
        return self.folder / "work/tables"

    @property
    def _sought(self) -> epath.Path:
        return self._place / "benchmarks"

    @functools.cached_property
    def _manifest(self) -> dict[str, Any]:
        return documents.read_manifest(self.input)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was cached."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _shards(self) -> dict[str, int]:
        """{00000: bytes on disk}, by place in the manifest."""
        files = [self.input / SHARDS / shard["name"] for shard in self._manifest["shards"]]
        return {f"{number:05}": file.stat().length for number, file in enumerate(files)}

    def _parts(self) -> dict[str, int]:
        return {f"{part:02}": 1 for part in range(PARTS)}

    def _bands(self) -> dict[str, int]:
        return {f"{band:02}": 1 for band in range(duplicates.bands_and_rows(self.rules.near)[0])}

    def _everything(self) -> dict[str, int]:
        return {"all": 1}

    def _documents(self, name: str) -> Iterator[Document]:
        shard = self._manifest["shards"][int(name)]
        return documents.read_shard(self.input / SHARDS / shard["name"], shard["sha256"])

    def _tables(self, name: str) -> list[epath.Path]:
        count = len(self._manifest["shards"])
        return [describe.table(self._place, name, shard) for shard in range(count)]

    def _describe(self, name: str) -> dict[str, Any]:
        matcher = _matcher(str(self._sought)) if self.benchmarks else None
        found = self._documents(name)
        return {"documents": describe.describe(int(name), found, self._place, self.rules, matcher)}

    def _contain(self, name: str) -> dict[str, Any]:
        anchors = self._tables(f"anchors/{name}")
        return {"pairs": choose.contained(anchors, self._place / f"contained/{name}.parquet")}

    def _choose(self, _: str) -> dict[str, Any]:
        pairs = [self._place / f"contained/{name}.parquet" for name in self._parts()]
        sought = self._sought if self.benchmarks else None
        facts, hits = self._tables("facts"), self._tables("hits")
        found, left = choose.choose(facts, hits, pairs, sought, self.rules, self._place)
        given = [(item, how, document_id(source, number)) for item, how, source, number in found]
        return {"report": contamination.report(self._sought, given, left) if sought else None}

    def _candidates(self, name: str) -> dict[str, Any]:
        output = self._place / f"candidates/{name}.parquet"
        return {"pairs": choose.candidates(self._tables(f"bands/{name}"), self._place, output)}

    def _near(self, _: str) -> dict[str, Any]:
        found = [self._place / f"candidates/{name}.parquet" for name in self._bands()]
        counts = choose.near(found, self._tables("signatures"), self._place, self.rules)
        output = self._place / "verdicts.parquet"
        return {**counts, "dropped": choose.resolve(self._tables("facts"), self._place, output)}

    def _write(self, name: str) -> dict[str, Any]:
        """Copies the documents of a shard that stay, and lists the others."""
        place = self.folder / SHARDS
        place.mkdir(exist_ok=True)
        heldout_per_mille = self._manifest["heldout_per_mille"]
        verdicts = _verdicts(int(name), self._place / "verdicts.parquet")
        verdict = next(verdicts, None)
        counts: collections.Counter[tuple[str, str]] = collections.Counter()
        nbytes: collections.Counter[str] = collections.Counter()
        with (
            documents.ShardWriter(place / f"{name}.jsonl.zst", heldout_per_mille) as writer,
            documents.compressed(self._place / f"{name}.dropped.zst") as dropped,
        ):
            for row, document in enumerate(self._documents(name)):
                if verdict and verdict["doc"] == (int(name) << 32) + row:
                    end = verdict["reason"]
                    dropped.write(documents.line_of(report.line(document, verdict)))
                    verdict = next(verdicts, None)
                else:
                    end = "kept"
                    writer.write(document)
                counts[document.source, end] += 1
                nbytes[end] += len(document.text.encode())
            if verdict:
                raise RuntimeError(f"{verdict} is of no document in shard {name}")
        ends: dict[str, dict[str, int]] = {}
        for (source, end), count in counts.items():
            ends.setdefault(source, {})[end] = count
        return {**writer.summary(), "ends": ends, "bytes": nbytes}

    def _finish(self, _: str) -> dict[str, Any]:
        """Writes the lists of what is gone and manifest.json, with what the input's says of its
        files, licences and counts.

        Raises:
          UserError: no document stays.
        """
        done = stages.summaries(self.folder, "clean")
        shards = [
            {key: shard[key] for key in ("name", "documents", "sha256", "tally")}
            for shard in done.values()
        ]
        counts = report.counts(list(done.values()))
        if not any(shard["documents"] for shard in shards):
            ends = ", ".join(f"{count} {end}" for end, count in counts["clean"].items())
            raise UserError(f"--input={self.input}: no document stays of these: {ends}")
        report.write_dropped(self.folder, [self._place / f"{name}.dropped.zst" for name in done])
        if (self.input / QUARANTINE).exists():
            (self.folder / QUARANTINE).write_bytes((self.input / QUARANTINE).read_bytes())
        compared = stages.summaries(self.folder, "resemble")["all"]
        found = stages.summaries(self.folder, "choose")["all"]["report"]
        before = {key: value for key, value in self._manifest.items() if key not in _OWN}
        before["counts"] = {**before.get("counts", {}), **counts}
        documents.finish(
            self.folder,
            [shard for shard in shards if shard["documents"]],
            self._manifest["heldout_per_mille"],
            **before,
            cleaning=report.method(self.rules, self._manifest["sha256"], compared),
            benchmarks=found and report.write_contamination(self.folder, self._sought, found),
        )
        return {"documents": sum(shard["documents"] for shard in shards)}


def clean(
    input: epath.PathLike,
    output: epath.PathLike,
    rules: Rules | None = None,
    benchmarks: epath.PathLike | None = None,
    runner: Runner = SERIAL,
) -> dict[str, Any]:
    """Writes the documents of `input` that stay to `output` and returns its manifest.

    Raises:
      UserError: `input` is no folder of documents, was cleaned already, or none of them stays,
        `benchmarks` can not be read, or `output` is not empty or can not be written.
    """
    source, target, rules = epath.Path(input), epath.Path(output), rules or Rules()
    tests = epath.Path(benchmarks) if benchmarks else None
    if not (source / MANIFEST).exists():
        raise UserError(
            f"--input={source} is no folder of documents: it has no {MANIFEST}; write one with "
            "`python -m data.parse`"
        )
    manifest = documents.read_manifest(source)
    if "cleaning" in manifest:
        raise UserError(
            f"--input={source} was cleaned already, and counts of both times can not be kept; "
            "clean the folder that data.parse wrote"
        )
    settings = {
        "input": str(source),
        "documents": manifest["sha256"],
        "rules": dataclasses.asdict(rules),
        "benchmarks": contamination.fingerprint(tests) if tests else None,
    }
    with stages.building(target, settings) as folder:
        work = Clean(source, folder, rules, tests)
        work.prepare()
        stages.run(work.steps(), runner)
    return documents.read_manifest(target)


def _verdicts(shard: int, file: epath.Path) -> Iterator[dict[str, Any]]:
    """The dropped documents of a shard, in its order."""
    within = [("doc", ">=", shard << 32), ("doc", "<", (shard + 1) << 32)]
    with file.open("rb") as stream:
        found = parquet.read_table(stream, filters=within)
    for batch in found.to_batches(4096):
        yield from batch.to_pylist()


@functools.lru_cache(1)
def _matcher(place: str) -> Matcher:
    """One for all shards that a worker does."""
    return Matcher(epath.Path(place))


def main() -> None:
    given = flags.FLAGS
    runner = stages.given_runner()
    report.show(clean(given.input, given.output, given_rules(), given.benchmarks, runner))


def given_rules() -> Rules:
    given = flags.FLAGS
    values: dict[str, Any] = {f.name: given[f.name].value for f in dataclasses.fields(Rules)}
    return Rules(**values)


def define_flags() -> None:
    given = Rules()
    flags.DEFINE_string("benchmarks", None, "Folder with test sets, to be kept out.")
    flags.DEFINE_integer("least_words", given.least_words, "Of a document.", 0)
    flags.DEFINE_float(
        "least_english", given.least_english, "Share of English function words.", 0, 1
    )
    flags.DEFINE_float("near", given.near, "Jaccard similarity of near duplicates.", 0.2, 1)
    flags.DEFINE_float(
        "contained", given.contained, "Share of an abstract that a full text must have.", 0, 1
    )
    flags.DEFINE_integer("least_anchors", given.least_anchors, "That it must have of it.", 1)


if __name__ == "__main__":
    from data import clean as module  # workers find its functions under this name

    module.define_flags()
    flags.DEFINE_string("input", None, "Folder that data.parse wrote.", required=True)
    flags.DEFINE_string("output", None, "Folder to write; absent or empty.", required=True)
    stages.define_flags()
    entry.run(module.main)
