"""Scored answers as a table and as a page that can be sent to a colleague.

`python -m biomedlm_jax.scoring.page --scores=DIR` reads what was scored into DIR and writes beside
it table.md, our numbers beside the published ones, and report.html, the same with drawings: one
file that needs no network and runs no script.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags
from etils import epath

from biomedlm_jax import entry
from biomedlm_jax.pipeline.lines import appearing
from biomedlm_jax.reports import page as form
from biomedlm_jax.reports.page import Section, figure, figures, grid, table, text
from biomedlm_jax.scoring import beside, drawings, folder, measures, tables
from biomedlm_jax.scoring.beside import AUTHORS, OTHERS, OURS, Contest, Row
from biomedlm_jax.scoring.drawings import Bar
from biomedlm_jax.scoring.measures import Paired
from biomedlm_jax.scoring.record import Record

CONTAMINATED = ("item", "its abstract", "documents with its words", "such as", "words")
_COLOURS = {OURS: 1, AUTHORS: 0, OTHERS: 7}


class Pair(NamedTuple):
    """Two records of the same items, and McNemar's test of them."""

    first: Record
    second: Record
    found: Paired


def write(place: epath.Path) -> list[epath.Path]:
    """Writes table.md and report.html into the folder of scored answers `place`.

    Raises:
      UserError: it holds none, or is damaged.
    """
    records = folder.read(place)
    if not records:
        raise entry.UserError(f"{place} has no scored answers yet; score some first")
    made = {
        "table.md": tables.markdown(records),
        "report.html": html(records, pairs(place, records)),
    }
    for name, content in made.items():
        with appearing(place / name) as file:
            file.write(content.encode())
    return [place / name for name in made]


def pairs(place: epath.Path, records: Sequence[Record]) -> list[Pair]:
    """All pairs of records of the same checkpoint, items and seed."""
    found = []
    for one, other in itertools.combinations(records, 2):
        same = (one.benchmark, one.split, one.seed) == (other.benchmark, other.split, other.seed)
        same &= one.checkpoint["sha256"] == other.checkpoint["sha256"]
        if same and one.data["sha256"] == other.data["sha256"] and one.kind != "generation":
            right = folder.right(place, one), folder.right(place, other)
            found.append(Pair(one, other, measures.mcnemar(*right)))
    return found


def html(records: Sequence[Record], paired: Sequence[Pair]) -> str:
    contests = beside.contests(records)
    sections = [Section("In short", [figures(_first(records, contests)), text(tables.SAID)])]
    for benchmark in beside.ranked({contest.benchmark for contest in contests}):
        own = [contest for contest in contests if contest.benchmark == benchmark]
        mine = [record for record in records if record.benchmark == benchmark]
        sections.append(Section(beside.title(benchmark), _benchmark(own, mine, paired)))
    if spoken := _written(records):
        sections.append(Section("Written texts", spoken))
    sections.append(Section("What was scored", _how(records)))
    places = ", ".join(dict.fromkeys(record.checkpoint["place"] for record in records))
    return form.page(tables.TITLE, places, sections)


def _benchmark(
    contests: Sequence[Contest], records: Sequence[Record], paired: Sequence[Pair]
) -> list[Any]:
    whole, *subjects = contests
    rules = [(f"chance, {split}", chance) for split, (chance, _) in whole.baselines.items()]
    rules = [("chance", rules[0][1])] if len({chance for _, chance in rules}) == 1 else rules
    blocks: list[Any] = [_key([row for contest in contests for row in contest.rows])]
    blocks.append(figure("Accuracy, %", drawings.bars(_bars(whole.rows), rules)))
    blocks.append(_table(whole))
    blocks += [text(line) for line in tables.baselines(whole)]
    if subjects:
        drawn = [
            figure(beside.readable(contest.subject), drawings.bars(_bars(contest.rows), rules))
            for contest in subjects
        ]
        every = [block for c in subjects for block in (form.heading(c.title), _table(c))]
        blocks += [form.heading("By subject"), grid(drawn, "two"), form.folded("Tables", *every)]
    else:
        blocks += _by_subject(records)
    blocks += _calibrations(records)
    blocks += _compared([pair for pair in paired if pair.first in records])
    classes = [block for record in records for block in _classes(record)]
    return [*blocks, *classes, *([form.notes(whole.notes)] if whole.notes else [])]


def _bars(rows: Sequence[Row]) -> list[Bar]:
    """Ours by how they were asked alone, where the key says of what, and by their split where they
    have several."""
    found, same = [], len(_systems(rows)) == 1
    several = len({row.split for row in rows if row.who == OURS}) > 1
    for row in rows:
        name = row.how if row.who == OURS and same else row.name
        name += f", {row.split}" if row.who == OURS and several else ""
        ends = (row.interval.low, row.interval.high) if row.interval else (None, None)
        found.append(Bar(name, row.value, row.told, *ends, _COLOURS[row.who]))
    return found


def _key(rows: Sequence[Row]) -> Any:
    systems = _systems(rows)
    names = {OURS: f"ours: {systems[0]}" if len(systems) == 1 else OURS}
    there = {row.who for row in rows}
    return drawings.key([(names.get(x, x), colour) for x, colour in _COLOURS.items() if x in there])


def _systems(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.system for row in rows if row.who == OURS))


def _table(contest: Contest) -> Any:
    """As in table.md, with system, parameters and how in one column."""
    rows = [(row.name, *tables.cells(row)[3:]) for row in contest.rows]
    return table(("answers", *tables.HEAD[3:]), rows, right=(2, 3, 4, 5), unbroken=(1, 6))


def _by_subject(records: Sequence[Record]) -> list[Any]:
    """The most accurate answers open, the others folded."""
    several = [record for record in records if len(record.scores["subjects"]) > 1]
    if not several:
        return []
    best, *others = sorted(several, key=lambda r: -r.scores["accuracy"]["value"])
    blocks = [form.heading("By subject"), _subjects(best)]
    rest = grid([_subjects(record) for record in others], "two")
    return [*blocks, form.folded("Other answers by subject", rest)] if others else blocks


def _subjects(record: Record) -> Any:
    found = record.scores["subjects"]
    order = sorted(found, key=lambda name: (-found[name]["value"], name))
    values = [
        Bar(f"{beside.readable(name)}, {found[name]['of']:,} items", found[name]["value"],
            tables.percent(found[name]["value"]), found[name]["low"], found[name]["high"], 1)
        for name in order
    ]  # fmt: skip
    overall = [("all subjects", record.scores["accuracy"]["value"])]
    return figure(str(record), drawings.bars(values, overall))


def _calibrations(records: Sequence[Record]) -> list[Any]:
    drawn = [
        figure(f"{record}: ECE {100 * record.scores['ece']:.1f} %",
               drawings.calibration(record.scores["bins"]))
        for record in records if "bins" in record.scores
    ]  # fmt: skip
    if not drawn:
        return []
    said = (
        "Columns: the share that is right by the model's confidence. Lines: the confidence itself."
    )
    return [form.heading("What confidence is worth"), text(said), grid(drawn, "two")]


def _compared(paired: Sequence[Pair]) -> list[Any]:
    if not paired:
        return []
    head = ("one", "another", "right: only the one", "only the other", "p, McNemar's exact test")
    rows = [(str(p.first), str(p.second), p.found.first, p.found.second, f"{p.found.p:.3g}")
            for p in paired]  # fmt: skip
    return [form.heading("The same items, asked in two forms"), table(head, rows, right=(2, 3, 4))]


def _classes(record: Record) -> list[Any]:
    found = record.scores.get("classes")
    if not found:
        return []
    head = ("class", "items", "answered", "right", "F1, %")
    rows = [(name, x["items"], x["chosen"], x["right"], f"{100 * x['f1']:.1f}")
            for name, x in found.items()]  # fmt: skip
    return [form.folded(f"Classes: {record}", table(head, rows, right=(1, 2, 3, 4)))]


def _written(records: Sequence[Record]) -> list[Any]:
    """As in table.md, with system and how in one column."""
    rows = [(title, f"{system}, {how}", *rest)
            for system, title, how, *rest in tables.texts(records)]  # fmt: skip
    head = ("benchmark", "answers", *tables.TEXTS[3:])
    return [table(head, rows, right=range(3, 8))] if rows else []


def _how(records: Sequence[Record]) -> list[Any]:
    """As in table.md, where hashes are not folded."""
    shown = [column for column, name in enumerate(tables.MADE) if "sha256" not in name]
    rows = [[tables.made(record)[column] for column in shown] for record in records]
    head = [tables.MADE[column] for column in shown]
    numbers = [place for place, column in enumerate(shown) if column in tables.MADE_NUMBERS]
    blocks: list[Any] = [table(head, rows, right=numbers), *_contaminated(records)]
    facts = {f"{c['place']}, {str(c['sha256'])[:12]}": c for c in (r.checkpoint for r in records)}
    data = {f"{record.benchmark} {record.split}": record.data["sha256"] for record in records}
    known = {**facts, "sha256 of the items": data, "versions": records[0].versions}
    return [*blocks, form.folded("Checkpoints, data and versions", form.settings(known))]


def _contaminated(records: Sequence[Record]) -> list[Any]:
    """Once for each split and store."""
    made = {}
    for record in records:
        if record.contamination and (found := record.contamination["items"]):
            rows = [(id, ", ".join(x["pmids"]), x["documents"], ", ".join(x["words"]), x["passage"])
                    for id, x in found.items()]  # fmt: skip
            name = f"{beside.title(record.benchmark)} {record.split}"
            store = record.contamination["store"].get("path", "")
            key = f"Contaminated in {name}: {len(rows):,} items, by the text in {store}"
            made[key] = table(CONTAMINATED, rows, right=(2,))
    return [form.folded(key, drawn) for key, drawn in made.items()]


def _first(records: Sequence[Record], contests: Sequence[Contest]) -> list[tuple[str, str]]:
    """The best of ours of each benchmark and split."""
    found = []
    for contest in (contest for contest in contests if not contest.subject):
        for split in contest.baselines:
            ours = [r for r in contest.rows if r.who == OURS and r.split == split]
            most = f", best of {len(ours)} forms" if len(ours) > 1 else ""
            name = f"{contest.title} {split}, {ours[0].how}{most}"
            found.append((name, f"{ours[0].told} %"))
    for record in records:
        if record.kind == "generation":
            name = f"ROUGE-1, {beside.title(record.benchmark)} {record.split}, {record.form}"
            found.append((name, tables.percent(record.scores["rouge1"]["value"])))
    return found


if __name__ == "__main__":
    SCORES = flags.DEFINE_string("scores", None, "the folder of scored answers", required=True)
    entry.run(lambda: print("\n".join(map(str, write(epath.Path(SCORES.value))))))
