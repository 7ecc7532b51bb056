"""Our numbers beside the published ones: one contest for each benchmark, and for each subject of
one whose subjects have published numbers. The table and the page are both made of these."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from biomedlm_jax.scoring import measures, published
from biomedlm_jax.scoring.measures import Estimate
from biomedlm_jax.scoring.published import Published
from biomedlm_jax.scoring.record import Record

TITLES = {
    "medqa": "MedQA",
    "medqa5": "MedQA, five options",
    "medmcqa": "MedMCQA",
    "mmlu": "MMLU, medical subjects",
    "pubmedqa": "PubMedQA",
    "bioasq": "BioASQ",
    "meqsum": "MeQSum",
    "medquad": "MedQuAD",
}
OURS, AUTHORS, OTHERS = "ours", "BioMedLM as published", "others, as published"


class Row(NamedTuple):
    """A system's accuracy, a share. interval: None of a published number. contaminated: how many of
    all items of the split are, None where no text was searched for them. clean: without these, None
    where there are none or nothing is left. who: OURS, AUTHORS or OTHERS."""

    system: str
    parameters: str
    how: str
    split: str
    value: float
    interval: Estimate | None
    contaminated: int | None
    clean: Estimate | None
    source: str
    who: str

    @property
    def name(self) -> str:
        """In short: what a reader knows a published system by, and how it was asked."""
        parameters = "" if self.who == OURS else self.parameters
        return ", ".join(filter(None, (f"{self.system} {parameters}".strip(), self.how)))

    @property
    def told(self) -> str:
        """The value in per cent; a published one with all its digits."""
        digits = f"{100 * self.value:.2f}"
        return digits if self.who != OURS and digits[-1] != "0" else f"{100 * self.value:.1f}"


@dataclasses.dataclass(frozen=True)
class Contest:
    """rows: the best first. baselines: by split, chance and the share of the most frequent answer.
    notes: on the published numbers."""

    title: str
    benchmark: str
    subject: str
    rows: list[Row]
    baselines: dict[str, tuple[float, float]]
    notes: tuple[str, ...]


def contests(records: Sequence[Record]) -> list[Contest]:
    """Of all benchmarks that `records` has choices of, in the order of TITLES."""
    chosen = [record for record in records if record.kind != "generation"]
    found = []
    for benchmark in ranked({record.benchmark for record in chosen}):
        own = [record for record in chosen if record.benchmark == benchmark]
        found.append(_contest(benchmark, "", own))
        named = {row.subject for row in published.PUBLISHED if row.benchmark == benchmark} - {""}
        if named:
            ours = {name for record in own for name in record.scores["subjects"]}
            found += [_contest(benchmark, subject, own) for subject in sorted(named | ours)]
    return found


def ranked(benchmarks: set[str]) -> list[str]:
    """In the order of TITLES, others behind them."""
    known = list(TITLES)
    return sorted(benchmarks, key=lambda x: (known.index(x) if x in known else len(known), x))


def title(benchmark: str, subject: str = "") -> str:
    if not subject:
        return TITLES.get(benchmark, benchmark)
    return f"{TITLES.get(benchmark, benchmark).split(',')[0]}, {readable(subject)}"


def readable(subject: str) -> str:
    return subject.replace("_", " ")


def system(record: Record) -> str:
    """What answered: the last part of its place, and the step."""
    place = record.checkpoint["place"].rstrip("/").rpartition("/")[2]
    step = record.checkpoint.get("step")
    return place if step is None else f"{place} at step {step:,}"


def contaminated(record: Record) -> int | None:
    return None if record.contamination is None else len(record.contamination["items"])


def size(count: Any) -> str:
    """2594247680 as "2.6B", 12345678 as "12M"."""
    if not isinstance(count, int):
        return ""
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"


def _contest(benchmark: str, subject: str, records: Sequence[Record]) -> Contest:
    rows = []
    for one in sorted({_alike(record) for record in records}):
        rows += _ours([record for record in records if _alike(record) == one], subject)
    rows += [_theirs(row) for row in published.on(benchmark, subject)]
    baselines = {r.split: (r.scores["chance"], r.scores["majority"]) for r in records}
    return Contest(
        title(benchmark, subject),
        benchmark,
        subject,
        sorted(rows, key=lambda row: (-row.value, row.who != OURS, row.name)),
        {} if subject else dict(sorted(baselines.items())),
        () if subject else published.NOTES.get(benchmark, ()),
    )


def _alike(record: Record) -> tuple[str, str, str, str]:
    """What seeds of one fine-tuning have in common: runs in one folder, asked about the same."""
    folder = record.checkpoint["place"].rstrip("/").rpartition("/")[0]
    if record.seed is None:
        return record.split, record.form, "", ""
    return record.split, record.form, folder, record.data["sha256"]


def _ours(records: Sequence[Record], subject: str) -> list[Row]:
    """One row for answers in one form; of several seeds their mean, with Student's interval."""
    known = [(r, found) for r in records if (found := _score(r.scores, subject))]
    if not known:
        return []
    record, score = known[0]
    clean = [found for r, _ in known if (found := _score(r.clean, subject))]
    without = clean[0] if len(clean) == len(known) else None
    name, how = system(record), record.form
    if len(known) > 1:
        score = _mean([found for _, found in known])
        without = without and _mean(clean)
        names = {system(r) for r, _ in known}
        name = name if len(names) == 1 else f"{len(names)} checkpoints"
        how += f", mean of {len(known)} seeds"
    elif record.seed is not None:
        how += f", seed {record.seed}"
    return [Row(name, size(record.checkpoint.get("parameters")), how, record.split, score.value,
                score, contaminated(record), without, "", OURS)]  # fmt: skip


def _mean(scores: Sequence[Estimate]) -> Estimate:
    """Over seeds; `of` stays the number of items."""
    return measures.mean([score.value for score in scores])._replace(of=scores[0].of)


def _score(scores: dict[str, Any] | None, subject: str) -> Estimate | None:
    if scores is None:
        return None
    found = scores["subjects"].get(subject) if subject else scores["accuracy"]
    return found and Estimate(*(found[name] for name in Estimate._fields))


def _theirs(row: Published) -> Row:
    who = AUTHORS if row.authors else OTHERS
    return Row(row.system, row.parameters, row.method, row.split, row.value / 100, None, None,
               None, row.source, who)  # fmt: skip
