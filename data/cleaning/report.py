"""What `clean.py` tells of its work beside the documents: which are gone and why, which test items
were found in them, and the counts of both for the manifest."""

import collections
import json
import unicodedata
from typing import Any

from etils import epath

from biomedlm_jax.pipeline.lines import compressed, lines
from biomedlm_jax.pipeline.store import document_id
from data.cleaning import contamination, duplicates
from data.cleaning.contamination import LEFT_IN
from data.cleaning.describe import Rules
from data.documents import Document

DROPPED, CONTAMINATION = "dropped.jsonl.zst", "contamination.json"


def line(document: Document, verdict: dict[str, Any]) -> dict[str, Any]:
    """Of dropped.jsonl.zst.

    verdict: a row of `choose.resolve`.

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


def write_dropped(folder: epath.Path, parts: list[epath.Path]) -> None:
    """Writes the lists of what is gone from each shard as one."""
    with compressed(folder / DROPPED) as dropped:
        for part in parts:
            for found in lines(part):
                dropped.write(found)


def counts(done: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Ends of all documents, their bytes, and the ends by source.

    done: of each shard {"ends": {source: {end: documents}}, "bytes": {end: bytes}}.
    """
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


def method(rules: Rules, input_sha256: str, compared: dict[str, int]) -> dict[str, Any]:
    """The rules and what else makes a run what it is, for the manifest.

    compared: what `choose.near` returned.
    """
    bands, rows = duplicates.bands_and_rows(rules.near)
    return {
        **vars(rules),
        "input sha256": input_sha256,
        "hashes": duplicates.HASHES,
        "bands": bands,
        "rows": rows,
        "compared pairs": compared["candidates"],
        "similar pairs": compared["similar"],
        "unicode": unicodedata.unidata_version,
    }


def write_contamination(
    folder: epath.Path, sought: epath.Path, report: dict[str, Any]
) -> dict[str, Any]:
    """Writes contamination.json; returns the counts of it and the files of test sets.

    sought: folder of `contamination.prepare`. report: of `contamination.report`.
    """
    (folder / CONTAMINATION).write_text(json.dumps(report, indent=1) + "\n")
    items = {
        name: {what: n for what, n in entry.items() if isinstance(n, int)}
        for name, entry in report.items()
    }
    files = json.loads((sought / contamination.ITEMS).read_text())["files"]
    return {"items": items, "files": files}


def show(manifest: dict[str, Any]) -> None:
    """Prints the ends of all documents, and what was found of each test set."""
    nbytes = manifest["counts"]["clean bytes"]
    for end, count in manifest["counts"]["clean"].items():
        print(f"{end:30}{count:>14,} documents {nbytes[end]:>16,} bytes")
    if manifest["benchmarks"] is None:
        print("no test set was kept out of it: --benchmarks was not given")
        return
    for name, found in manifest["benchmarks"]["items"].items():
        print(f"{name:38}{found['found']:>6,} of {found['items']:>6,} items are in the input")
        if found[LEFT_IN]:
            print(f"{name:38}{found[LEFT_IN]:>6,} have words that are common and stay in")
    for file in manifest["benchmarks"]["files"]:
        if "not read" in file:
            print(f"not read: {file['name']}: {file['not read']}")
