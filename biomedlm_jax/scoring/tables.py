"""Our numbers beside the published ones in words: the rows of the page's tables, and table.md."""

from collections.abc import Sequence

from biomedlm_jax.reports import markdown as md
from biomedlm_jax.reports.charts import written
from biomedlm_jax.scoring import beside
from biomedlm_jax.scoring.beside import OURS, Contest, Row
from biomedlm_jax.scoring.record import ROUGE, Record

TITLE = "Answers scored, beside published numbers"
HEAD = ("system", "parameters", "how", "split", "accuracy", "95 % interval", "items",
        "clean items", "source")  # fmt: skip
TEXTS = ("system", "benchmark", "how", "split", "items", "ROUGE-1", "ROUGE-2", "ROUGE-L",
         "clean items")  # fmt: skip
MADE = ("answers", "accuracy", "checkpoint", "sha256", "data sha256", "unreadable", "macro F1",
        "ECE", "Brier", "contaminated")  # fmt: skip
MADE_NUMBERS = (1, 5, 6, 7, 8, 9)  # columns
SAID = (
    "Accuracies and ROUGE are in per cent. An answer that can not be read is wrong. Intervals "
    "cover 95 %: Wilson's over the items, Student's over seeds and texts. Contaminated items are "
    "those that the training text gives away, by the PMID of their abstract or by 13 words in a "
    "row; clean ones are the others. Published systems were asked in their own ways, so numbers "
    "compare with care. Bolton et al. 2024 is BioMedLM's paper, arXiv 2403.18421."
)


def markdown(records: Sequence[Record]) -> str:
    lines = [f"# {TITLE}", "", SAID, ""]
    for contest in beside.contests(records):
        lines += [f"## {_escaped(contest.title)}", ""]
        rows = [[_bold(cell, row.who) for cell in cells(row)] for row in contest.rows]
        lines += [*md.table(HEAD, rows, right=(4, 5, 6, 7)), ""]
        lines += [f"{_escaped(line)}\n" for line in (*baselines(contest), *contest.notes)]
    if spoken := texts(records):
        rows = [[_escaped(cell) for cell in row] for row in spoken]
        lines += ["## Written texts", "", *md.table(TEXTS, rows, right=range(4, 9)), ""]
    rows = [[_escaped(cell) for cell in made(record)] for record in records]
    lines += ["## What was scored", "", *md.table(MADE, rows, right=MADE_NUMBERS), ""]
    return "\n".join(lines)


def cells(row: Row) -> list[str]:
    where = row.interval
    interval = f"{percent(where.low)} to {percent(where.high)}" if where else ""
    clean = ""
    if row.who == OURS:
        clean = {None: "not searched", 0: "none found"}.get(row.contaminated, "none left")
        clean = f"{percent(row.clean.value)} of {row.clean.of:,}" if row.clean else clean
    items = f"{where.of:,}" if where else ""
    return [row.system, row.parameters, row.how, row.split, row.told, interval, items,
            clean, row.source]  # fmt: skip


def texts(records: Sequence[Record]) -> list[list[str]]:
    rows = []
    for record in records:
        if record.kind == "generation":
            found = [record.scores[kind] for kind in ROUGE]
            clean = "none found" if beside.contaminated(record) == 0 else "not searched"
            if record.clean:
                values = " / ".join(percent(record.clean[kind]["value"]) for kind in ROUGE)
                clean = f"{values} of {record.clean['items']:,}"
            values = [f"{percent(x['value'])} ({percent(x['low'])} to {percent(x['high'])})"
                      for x in found]  # fmt: skip
            rows.append([beside.system(record), beside.title(record.benchmark), record.form,
                         record.split, f"{record.scores['items']:,}", *values, clean])  # fmt: skip
    return rows


def made(record: Record) -> list[str]:
    scores, dirty = record.scores, beside.contaminated(record)
    return [
        str(record),
        percent(scores["accuracy"]["value"]) if "accuracy" in scores else "",
        beside.system(record),
        str(record.checkpoint["sha256"])[:12],
        record.data["sha256"][:12],
        f"{scores['unreadable']:,}" if "unreadable" in scores else "",
        percent(scores["macro_f1"]) if "macro_f1" in scores else "",
        percent(scores["ece"]) if "ece" in scores else "",
        f"{scores['brier']:.3f}" if "brier" in scores else "",
        "not searched" if dirty is None else f"{dirty:,} of {scores['items']:,}",
    ]


def baselines(contest: Contest) -> list[str]:
    return [
        f"Of {split}, chance is {percent(chance)}; the most frequent answer alone gets "
        f"{percent(majority)}."
        for split, (chance, majority) in contest.baselines.items()
    ]


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _escaped(cell: str) -> str:
    return md.escaped(written(cell))


def _bold(cell: str, who: str) -> str:
    return f"**{_escaped(cell)}**" if who == OURS and cell else _escaped(cell)
