"""The second half of a data card: what was left out and by which rules, under which terms the texts
stand, and by what they and their files can be known again. For `card.py`."""

from typing import Any

from biomedlm_jax.pipeline.store import SPLITS
from data.cards import page as card_page
from data.cards.charts import written
from data.cards.facts import ITEM, Facts
from data.cards.page import Block, Points, Table, Text
from data.parsing.jats import OPEN_LICENCES

TERMS = "https://www.nlm.nih.gov/databases/download/terms_and_conditions.html"
_FILES = 5000  # that are listed


def duplicates(facts: Facts) -> list[Block]:
    counts, rules = facts.documents["counts"], facts.documents.get("cleaning")
    same = sum(counts[source].get("same text", 0) for source in facts.sources)
    whole = sum(counts[source].get("full text is there", 0) for source in facts.sources)
    rows: list[list[Any]] = [
        ["abstract of an article that is there in full, by number", whole],
        ["the same text of The Pile again", same],
    ]
    if rules is None:
        return [
            Table(["left out as", "documents"], rows),
            Text("Nothing else was looked for: neither the same text under another number, nor "
                 "abstracts inside of full texts, nor near duplicates."),
        ]  # fmt: skip
    clean = counts["clean"]
    rows += [
        ["the same words in the same order as another", clean.get("same text", 0)],
        ["abstract whose text stands in a full text", clean.get("in a full text", 0)],
        ["near duplicate of another", clean.get("near duplicate", 0)],
    ]
    return [
        Table(["left out as", "documents"], rows),
        Text(
            f"Near duplicates have a Jaccard similarity of {rules['near']} or more, estimated by "
            f"MinHash with {rules['hashes']} hashes in {rules['bands']} bands of {rules['rows']} "
            f"rows; pairs compared: {rules['compared pairs']:,}, as similar: "
            f"{rules['similar pairs']:,}. An abstract stands in a full text that has "
            f"{rules['contained']} of its sampled runs of words, and at least "
            f"{rules['least_anchors']} of them."
        ),
    ]


def benchmarks(facts: Facts) -> list[Block]:
    found = facts.documents.get("benchmarks")
    if found is None:
        return [Text("Not done: no test set was kept out of this corpus. A score on any benchmark "
                     "may come of texts that the model has seen.")]  # fmt: skip
    counted = [what for counts in found["items"].values() for what in counts
               if type(counts[what]) is int]  # fmt: skip
    kinds = list(dict.fromkeys([*ITEM, *counted]))
    head = ["test set and part", *kinds]
    report, rows = facts.contamination, []
    for name, counts in found["items"].items():
        row = [name, *(counts.get(what, 0) for what in kinds)]
        if report is not None:
            row += [len(report[name]["by pmid"]), len(report[name]["by words"])]
        rows.append(row)
    sums = [sum(column) for column in zip(*(row[1:] for row in rows), strict=True)]
    head += ["by PMID", "by words"] if report is not None else []
    files = [[file["name"], file.get("benchmark", "not read: " + file.get("not read", "")),
              file.get("split", ""), file.get("items", "")] for file in found["files"]]  # fmt: skip
    gone = facts.documents["counts"]["clean"].get("benchmark", 0)
    return [
        Text(
            f"{gone:,} documents are left out because they give test items away: by the PMID that "
            "an item asks about, by a run of words that an item has as well, or as copies of such. "
            "Found are items that stood in the documents before. An item can be found both ways."
        ),
        Table(head, [*rows, ["together", *sums]]),
        Table(
            ["file", "test set", "part", "items"], files, 3, f"{len(files):,} files of test sets"
        ),
    ]


def quarantine(facts: Facts) -> list[Block]:
    count = facts.documents["quarantined"]
    if not count:
        return [Text("Nothing: every record of every file was read.")]
    first = Text(f"{count:,} records or files could not be read and were set aside.")
    if facts.reasons is None:
        return [first, Text("The reasons are in quarantine.jsonl of the folder of documents, which "
                            "was not at hand when this card was written.")]  # fmt: skip
    rows = [
        [r.kind, "; ".join(f"{file}, {position}" for file, position in r.examples), r.count]
        for r in facts.reasons
    ]
    shown, rest = rows[:20], rows[20:]
    if rest:
        shown.append([f"{len(rest):,} other reasons", "", sum(row[2] for row in rest)])
    return [first, Table(["reason (N: any number)", "the first of them", "count"], shown, 2)]


def vocabulary(facts: Facts) -> list[Block]:
    kind = {"sentencepiece": "SentencePiece", "byte_level": "byte-level BPE"}[facts.vocabulary]
    found, total = facts.store["vocabulary"], facts.total
    rows: list[list[Any]] = [
        ["kind", kind],
        ["tokens it knows", found["size"]],
        ["end of a document", f"token {found['eos_id']}, after each"],
        ["bytes per token", total["bytes"] / max(1, total["tokens"])],
        ["tokens per byte", f"{total['tokens'] / max(1, total['bytes']):.4f}"],
        ["SHA-256", found["sha256"]],
    ]
    return [Table(["vocabulary", ""], rows, 2)]


def rules(facts: Facts) -> list[Block]:
    documents, points = facts.documents, []
    citations = [file["name"] for file in documents["files"] if file["kind"] == "citations"]
    if citations:
        points.append(
            "Updates: of a citation the highest version counts, of equal ones that in the latest "
            "file; what NLM deletes goes. The newest of PubMed's files here is "
            f"{written(citations[-1])}; what came after it is not known."
        )
    if {"abstract", "full_text"} & set(facts.sources):
        points.append(
            "Retractions: what is marked as retracted, or is named by a notice of retraction in "
            "these files, is left out, and so are the notices. Later retractions are not known."
        )
    if "full_text" in facts.sources:
        closed = documents["counts"]["full_text"].get("licence not open", 0)
        points.append(
            f"Licences: of articles in full only those under {' or '.join(OPEN_LICENCES)} pass; "
            f"{closed:,} did not."
        )
    if any(source.startswith("pile") for source in facts.sources):
        points.append(
            "The Pile gives no number, date, language or licence of a text: what was retracted "
            "since can not be told."
        )
    apart = "Duplicates were left in, so the same text may stand on both sides."
    if "cleaning" in documents:
        apart = (
            "As at least one of each pair of duplicates that was found is left out, whatever side "
            "it is on, none of them stands on both."
        )
    points.append(
        f"Held out: {documents['heldout_per_mille']} of 1,000 documents, by a hash of the number "
        f"alone, so that none moves when the corpus grows. {apart}"
    )
    blocks: list[Block] = [Points(points)]
    if licences := documents["licences"]:
        values = [(name, [count]) for name, count in licences.items()]
        blocks.append(card_page.folded(["licence of an article that was read", "articles"], values))
    return blocks


def terms(facts: Facts) -> list[Block]:
    sources = set(facts.sources)
    notice = Text(
        "Courtesy of the U.S. National Library of Medicine (NLM), as far as the texts are data of "
        "PubMed® and PubMed Central®. They are a copy, as old as the files listed below, and may "
        "not be the most current or accurate data that NLM has. NLM has not endorsed this corpus "
        "or what is made of it, gives no warranty, and is not liable for its use. Whoever passes "
        "the data on has to keep them current or say that they are not, as here. These are our "
        "words; NLM's own are its",
        ("Terms and Conditions", TERMS),
    )
    points = []
    if "abstract" in sources:
        points.append("Abstracts may be under copyright of their publishers or authors, whatever "
                      "NLM permits with its own data. NLM gives no legal advice about it, and "
                      "neither does this card: ask before passing texts on.")  # fmt: skip
    if "full_text" in sources:
        points.append(
            "CC BY asks that authors are named wherever their text is passed on; the "
            "folder of documents has the number, journal and licence of each."
        )
    if any(source.startswith("pile") for source in sources):
        points.append("The Pile's texts have no licence beside them; their owners' terms hold.")
    points += [
        "Meant for: research on language models of biomedical English and on what they learn.",
        "Not meant for: medical advice, diagnosis, treatment, or any decision about a person's "
        "health. A model repeats what is false or outdated in its texts and invents more.",
        "The texts report on patients in the words that were published; no name or other sign of "
        "a person was looked for or removed.",
        "What is published is no fair sample of what is true: journals, countries, languages and "
        "positive results are unequally there.",
    ]
    return [notice, Points(points)]


def files(facts: Facts) -> list[Block]:
    files = facts.documents["files"]
    kinds: dict[str, list[int]] = {}
    for file in files:
        sums = kinds.setdefault(file["kind"], [0, 0])
        sums[0] += 1
        sums[1] += file["bytes"]
    rows = [[kind, *kinds[kind]] for kind in sorted(kinds)]
    rows.append(["together", len(files), sum(file["bytes"] for file in files)])
    listed = []
    for file in files[:_FILES]:
        held = ", ".join(f"{count:,} {what}" for what, count in file["counts"].items() if count)
        listed.append([file["name"], file["kind"], held, file["bytes"], file["sha256"]])
    summary = f"{len(files):,} files with their SHA-256"
    if len(files) > _FILES:
        summary = f"The first {_FILES:,} of {summary}; all are in the store's manifest.json"
    head = ["file", "kind", "holds", "bytes", "SHA-256"]
    blocks: list[Block] = [Table(["kind", "files", "bytes"], rows), Table(head, listed, 3, summary)]
    if others := facts.documents["other_sets"]:
        values = [(name, [count]) for name, count in others.items()]
        blocks.append(card_page.folded(["set of The Pile that is not used", "lines"], values))
    return blocks


def hashes(facts: Facts) -> list[Block]:
    store, documents = facts.store, facts.documents
    rows: list[list[Any]] = [[f"tokens of {s}", store["splits"][s]["sha256"]] for s in SPLITS]
    rows += [["documents", documents["sha256"]], ["vocabulary", store["vocabulary"]["sha256"]]]
    if "cleaning" in documents:
        rows.append(["documents before cleaning", documents["cleaning"]["input sha256"]])
    versions = {"format of the store": str(store["format"]), **store["versions"]}
    if "cleaning" in documents:
        versions["Unicode, for words"] = documents["cleaning"]["unicode"]
    return [
        Table(["SHA-256", ""], rows, 2),
        Table(["version", ""], [[name, versions[name]] for name in versions], 2),
        Text(f"{facts.sums:,} pairs of numbers that must agree were compared when this card was "
             "written, and all do: files with stages, stages with each other, sources, years, "
             "languages and licences with the splits, and these with the arrays of the store. The "
             "hashes are those that were taken when the store was written."),
    ]  # fmt: skip
