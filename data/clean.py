"""Documents thinned out: python -m data.clean --input=DIR --output=DIR [--benchmarks=DIR]

Takes a folder of documents as `parse.py` writes it and leaves one of the same form, without what is
too short, not English, there twice or nearly so, or what gives away the test sets below
--benchmarks. Beside the manifest:

    dropped.jsonl.zst     every document that is gone, and why; see `_line`
    contamination.json    which test items stand in the corpus, and where; with --benchmarks

The rules are those of `describe.Rules`, `contamination.py` and `choose.py` in `cleaning/`; the last
also says which of several stays. Steps over all cores (`stages.py`): each shard is described once,
queries over the tables decide, the shards are copied without what is dropped. Memory holds a batch
of documents, `tables.MEMORY` of a query, or 4 bytes for each document that has a likeness.
"""

import collections
import dataclasses
import functools
import json
import unicodedata
from collections.abc import Iterator
from typing import Any

from absl import flags
from etils import epath
from pyarrow import parquet

from biomedlm_jax import entry
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.store import document_id
from data import documents, stages
from data.cleaning import choose, contamination, describe, duplicates
from data.cleaning.contamination import Matcher
from data.cleaning.describe import PARTS, Rules
from data.documents import MANIFEST, QUARANTINE, SHARDS, Document
from data.stages import SERIAL, Runner, Step

DROPPED, CONTAMINATION = "dropped.jsonl.zst", "contamination.json"
_OWN = (
    "heldout_per_mille",
    "splits",
    "tally",
    "sha256",
    "shards",
)  # of manifest.json, for `documents.finish`


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

    @functools.cached_property
    def _matcher(self) -> Matcher | None:
        return _matcher(str(self._sought)) if self.benchmarks else None

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
        return documents.read_shard(
            self.input / SHARDS / self._manifest["shards"][int(name)]["name"]
        )

    def _tables(self, name: str) -> list[epath.Path]:
        count = len(self._manifest["shards"])
        return [describe.table(self._place, name, shard) for shard in range(count)]

    def _describe(self, name: str) -> dict[str, Any]:
        found = self._documents(name)
        count = describe.describe(int(name), found, self._place, self.rules, self._matcher)
        shard = self._manifest["shards"][int(name)]
        if count != shard["documents"]:
            raise UserError(
                f"--input={self.input}: {SHARDS}/{shard['name']} has {count} documents and not "
                f"{shard['documents']} as its manifest says; copy or write the folder again"
            )
        return {"documents": count}

    def _contain(self, name: str) -> dict[str, Any]:
        anchors = self._tables(f"anchors/{name}")
        return {"pairs": choose.contained(anchors, self._place / f"contained/{name}.parquet")}

    def _choose(self, _: str) -> dict[str, Any]:
        pairs = [self._place / f"contained/{name}.parquet" for name in self._parts()]
        sought = self._sought if self.benchmarks else None
        facts, hits = self._tables("facts"), self._tables("hits")
        found = choose.choose(facts, hits, pairs, sought, self.rules, self._place)
        given = [(item, how, document_id(source, number)) for item, how, source, number in found]
        return {"report": contamination.report(self._sought, given) if sought else None}

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
                    dropped.write(documents.line_of(_line(document, verdict)))
                    verdict = next(verdicts, None)
                else:
                    end = "kept"
                    writer.write(document)
                counts[document.source, end] += 1
                nbytes[end] += len(document.text.encode())
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
        counts = _counts(list(done.values()))
        if not any(shard["documents"] for shard in shards):
            ends = ", ".join(f"{count} {end}" for end, count in counts["clean"].items())
            raise UserError(f"--input={self.input}: no document stays of these: {ends}")
        with documents.compressed(self.folder / DROPPED) as dropped:
            for name in done:
                for line in documents.lines(self._place / f"{name}.dropped.zst"):
                    dropped.write(line)
        if (self.input / QUARANTINE).exists():
            (self.folder / QUARANTINE).write_bytes((self.input / QUARANTINE).read_bytes())
        near = stages.summaries(self.folder, "resemble")["all"]
        bands, rows = duplicates.bands_and_rows(self.rules.near)
        before = {key: value for key, value in self._manifest.items() if key not in _OWN}
        documents.finish(
            self.folder,
            [shard for shard in shards if shard["documents"]],
            self._manifest["heldout_per_mille"],
            **{
                **before,
                "counts": {**before.get("counts", {}), **counts},
                "cleaning": {
                    **dataclasses.asdict(self.rules),
                    "input sha256": self._manifest["sha256"],
                    "hashes": duplicates.HASHES,
                    "bands": bands,
                    "rows": rows,
                    "compared pairs": near["candidates"],
                    "similar pairs": near["similar"],
                    "unicode": unicodedata.unidata_version,
                },
                "benchmarks": self._contamination(),
            },
        )
        return {"documents": sum(shard["documents"] for shard in shards)}
        return {"documents": sum(shard["documents"] for shard in shards)}

    def _contamination(self) -> dict[str, Any] | None:
        """Writes contamination.json; returns the counts of it."""
        report = stages.summaries(self.folder, "choose")["all"]["report"]
        if report is None:
            return None
        (self.folder / CONTAMINATION).write_text(json.dumps(report, indent=1) + "\n")
        files = json.loads((self._sought / contamination.ITEMS).read_text())["files"]
        counts = {
            name: {what: n for what, n in entry.items() if isinstance(n, int)}
            for name, entry in report.items()
        }
        return {"items": counts, "files": files}


def clean(
    input: epath.PathLike,
    output: epath.PathLike,
    rules: Rules | None = None,
    benchmarks: epath.PathLike | None = None,
    runner: Runner = SERIAL,
) -> dict[str, Any]:
    """Writes the documents of `input` that stay to `output` and returns its manifest.

    Raises:
      UserError: `input` is no folder of documents or none of them stays, `benchmarks` can not be
        read, or `output` is not empty or can not be written.
    """
    source, target, rules = epath.Path(input), epath.Path(output), rules or Rules()
    tests = epath.Path(benchmarks) if benchmarks else None
    if not (source / MANIFEST).exists():
        raise UserError(
            f"--input={source} is no folder of documents: it has no {MANIFEST}; write one with "
            "`python -m data.parse`"
        )
    settings = {
        "input": str(source),
        "documents": documents.read_manifest(source)["sha256"],
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


def _line(document: Document, verdict: dict[str, Any]) -> dict[str, Any]:
    """Of dropped.jsonl.zst.

    reason: "too short", "not English", "benchmark", "same text", "in a full text" or "near
      duplicate".
    like: the document that this one is like; of reason "benchmark" one that is gone for that
      reason, or null where the document itself gives a test item away.
    similarity: with it; estimated, but for "same text".
    kept: the document that stays instead. Not the same as `like` where that one was dropped for a
      third.
    """
    sources = ((verdict[f"{name}_source"], verdict[f"{name}_number"]) for name in ("like", "kept"))
    like, kept = (document_id(*found) if found[0] else None for found in sources)
    return {
        "id": document.id,
        "source": document.source,
        "reason": verdict["reason"],
        "similarity": verdict["similarity"],
        "like": like,
        "kept": kept,
    }


def _counts(done: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Ends of all documents, their bytes, and the ends by source."""
    total: collections.Counter[str] = collections.Counter()
    nbytes: collections.Counter[str] = collections.Counter()
    sources: dict[str, collections.Counter[str]] = {}
    for shard in done:
        nbytes.update(shard["bytes"])
        for source, ends in shard["ends"].items():
            total.update(ends)
            sources.setdefault(source, collections.Counter()).update(ends)
    found = {"clean": total, "clean bytes": nbytes}
    found |= {f"clean {source}": ends for source, ends in sorted(sources.items())}
    return {name: dict(sorted(ends.items())) for name, ends in found.items()}


@functools.lru_cache(1)
def _matcher(place: str) -> Matcher:
    """One for all shards that a worker does."""
    return Matcher(epath.Path(place))


def print_report(manifest: dict[str, Any]) -> None:
    nbytes = manifest["counts"]["clean bytes"]
    for end, count in manifest["counts"]["clean"].items():
        print(f"{end:30}{count:>14,} documents {nbytes[end]:>16,} bytes")
    if manifest["benchmarks"] is None:
        print("no test set was kept out of it: --benchmarks was not given")
        return
    for name, counts in manifest["benchmarks"]["items"].items():
        print(f"{name:38}{counts['found']:>6,} of {counts['items']:>6,} items are in the input")
    for file in manifest["benchmarks"]["files"]:
        if "not read" in file:
            print(f"not read: {file['name']}: {file['not read']}")


def main() -> None:
    given = flags.FLAGS
    runner = stages.given_runner()
    print_report(clean(given.input, given.output, given_rules(), given.benchmarks, runner))


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
