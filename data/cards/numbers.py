"""The first half of a data card: what a corpus is, what became of all that was read, and how the
tokens are spread. For `card.py`."""

from typing import Any

from biomedlm_jax.pipeline.store import SPLITS
from data.cards import charts as card_charts
from data.cards import page as card_page
from data.cards.charts import Stage, percent, written
from data.cards.facts import ITEMS, NAMES, NO_DATE, Facts
from data.cards.page import Block, Chart, Figures, Table, Text
from data.parsing.settle import KEPT

_YEARS = 10  # the newest, that have a row each
_DRAWN = 100  # years, from which a drawing leaves out the ends that have hardly a token


def what(facts: Facts) -> list[Block]:
    total, tally, splits = facts.total, facts.store["tally"], facts.store["splits"]
    years = sorted(int(year) for year in tally["year"] if year != NO_DATE)
    span = f"published from {years[0]} to {years[-1]}" if years else "of unknown years"
    if years and years[0] == years[-1]:
        span = f"published in {years[0]}"
    shares = []
    for source in facts.largest_first:
        share = percent(tally["source"][source]["tokens"], total["tokens"])
        shares.append(f"{NAMES[source]} ({share} of the tokens)")
    languages = card_page.ranked(tally["language"])
    most = percent(tally["language"][languages[0]]["tokens"], total["tokens"])
    first = "English" if languages[0] == "eng" else written(languages[0])
    many = f"one language, {first}"
    if len(languages) > 1:
        many = f"{len(languages)} languages, {most} of the tokens in {first}"
    held = splits["heldout"]["documents"]
    return [
        Text(
            f"{total['documents']:,} documents of biomedical text, {span}, as tokens to train a "
            f"language model on: {', '.join(shares)}. "
            f"They are in {many}; {held:,} of the documents are held out for testing and never "
            "trained on."
        ),
        Figures([
            ("documents", total["documents"]),
            ("tokens", total["tokens"]),
            ("bytes of text", total["bytes"]),
            ("bytes per token", total["bytes"] / max(1, total["tokens"])),
        ]),
        Text("It is meant for research on language models of biomedicine. It is no source of "
             "medical advice, and neither is what is learnt from it: see Terms and limits."),
    ]  # fmt: skip


def stages(facts: Facts) -> list[Block]:
    counts, splits = facts.documents["counts"], facts.store["splits"]
    settled = {s: counts[s] for s in facts.sources}
    flow = [_stage("Read and settled", settled)]
    blocks: list[Block] = [
        Text(_read(facts)),
        _by_source("settled", settled),
    ]
    if "cleaning" in facts.documents:
        cleaned = {s: counts[f"clean {s}"] for s in facts.sources if f"clean {s}" in counts}
        flow.append(_stage("Cleaned", cleaned))
        blocks += [_by_source("cleaned", cleaned), Text(_cleaning(facts))]
    else:
        blocks.append(Text("The documents were not cleaned: none was left out for its length, its "
                           "language or its likeness to another."))  # fmt: skip
    last = [("train", splits["train"]["documents"]), ("held out", splits["heldout"]["documents"])]
    flow.append(Stage("Divided", last, []))
    rows = [
        [name, *(splits[split][unit] for unit in ("documents", "bytes", "tokens"))]
        for name, split in zip(("train", "held out"), SPLITS, strict=True)
    ]
    rows.append(["both", *(facts.total[unit] for unit in ("documents", "bytes", "tokens"))])
    blocks.append(Table(["divided", "documents", "bytes", "tokens"], rows))
    caption = (
        "Items at each stage, all to one scale. What is kept reaches down to the next bar; what is "
        "not is named with its reason."
    )
    drawn = Chart(card_charts.flow(flow), caption)
    return [blocks[0], drawn, *blocks[1:]]


def _stage(name: str, ends: dict[str, dict[str, int]]) -> Stage:
    """Of all sources together; the most frequent end of what is lost first."""
    lost: dict[str, int] = {}
    for found in ends.values():
        for end, count in found.items():
            lost[end] = lost.get(end, 0) + count
    kept = lost.pop(KEPT, 0)
    return Stage(name, [(KEPT, kept)], sorted(lost.items(), key=lambda e: (-e[1], e[0])))


def _by_source(stage: str, ends: dict[str, dict[str, int]]) -> Table:
    """What became of the items of each source; every column adds up to its last row."""
    found = _stage(stage, ends)
    names = [name for name, _ in [*found.kept, *found.lost]]
    rows: list[list[Any]] = []
    for name in names:
        counts = [end.get(name, 0) for end in ends.values()]
        rows.append([name, *counts, sum(counts)])
    counts = [sum(end.values()) for end in ends.values()]
    rows.append(["together", *counts, sum(counts)])
    return Table([stage, *(NAMES[source] for source in ends), "all"], rows)


def _read(facts: Facts) -> str:
    read = facts.documents["counts"]["read"]
    names = [name for name in dict.fromkeys(ITEMS.values()) if name in read]
    items = " and ".join(f"{read[name]:,} {name}" for name in names)
    more = [f"{count:,} {written(n)}" for n, count in read.items() if n not in ITEMS.values()]
    among = f" Also counted there: {', '.join(more)}." if more else ""
    return (
        f"{len(facts.documents['files']):,} files held {items}.{among} Each item comes to one end "
        "at each stage, so the numbers of a stage add up to what came into it."
    )


def _cleaning(facts: Facts) -> str:
    rules, ends = facts.documents["cleaning"], facts.documents["counts"]["clean bytes"]
    gone = sum(count for end, count in ends.items() if end != KEPT)
    share = f"{100 * rules['least_english']:g}%"
    return (
        f"Too short is under {rules['least_words']} words; not English is where under {share} of "
        f"the words are English function words. Cleaning took {gone:,} of "
        f"{sum(ends.values()):,} bytes of text."
    )


def contents(facts: Facts) -> list[Block]:
    tally = facts.store["tally"]
    rows = []
    for source in facts.largest_first:
        units = tally["source"][source]
        numbers = [units["documents"], units["bytes"], units["tokens"]]
        rows.append([NAMES[source], *numbers, percent(numbers[2], facts.total["tokens"]),
                     units["bytes"] / max(1, units["tokens"])])  # fmt: skip
    head = ["source", "documents", "bytes", "tokens", "share", "bytes per token"]
    blocks: list[Block] = [
        *_bars("source", [(row[0], row[3]) for row in rows]),
        Table(head, rows),
        *years(tally["year"]),
    ]
    for field, about in (
        ("language", "Languages have three letters as in PubMed; und is unknown."),
        ("licence", "The licence PubMed stands for its abstracts; see Terms and limits."),
    ):
        values = [(name, [u["documents"], u["tokens"]]) for name, u in tally[field].items()]
        table = card_page.folded([field, "documents", "tokens"], values)
        blocks += [*_bars(field, [(row[0], row[2]) for row in table.rows]), table, Text(about)]
    return blocks


def _bars(field: str, values: list[tuple[str, int]]) -> list[Block]:
    """None where there is nothing to compare."""
    if len(values) < 2:
        return []
    drawing, logarithmic = card_charts.bars(values, "tokens")
    scale = (
        "; the lengths are logarithms, for the small ones would not be seen" if logarithmic else ""
    )
    return [Chart(drawing, f"Tokens by {field}{scale}.")]


def years(tally: dict[str, dict[str, int]]) -> list[Block]:
    """The newest years have a row each, those before them one a decade; the drawing has all."""
    dated = {int(year): units for year, units in tally.items() if year != NO_DATE}
    newest = max(dated, default=0)
    spans: dict[tuple[int, int], list[int]] = {}
    for year in sorted(dated, reverse=True):
        decade = year - year % 10
        span = (year, year) if year > newest - _YEARS else (decade, decade + 9)
        spans.setdefault(span, []).append(year)
    groups = {
        f"{span[-1]} to {span[0]}" if len(span) > 1 else str(span[0]): [dated[y] for y in span]
        for span in spans.values()
    }
    if NO_DATE in tally:
        groups["no date"] = [tally[NO_DATE]]
    whole = sum(units["tokens"] for units in tally.values())
    rows = []
    for name, units in groups.items():
        documents, tokens = (sum(u[unit] for u in units) for unit in ("documents", "tokens"))
        rows.append([name, documents, tokens, percent(tokens, whole)])
    blocks: list[Block] = [Table(["year", "documents", "tokens", "share"], rows)]
    if len(dated) > 1:
        tokens = {year: units["tokens"] for year, units in dated.items()}
        drawn = _weighty(tokens)
        outside = sum(tokens.values()) - sum(drawn.values())
        caption = "Tokens by year of publication"
        if len(drawn) < len(tokens):
            caption += (
                f"; years before {min(drawn)} and after {max(drawn)}, {outside:,} tokens together, "
                "are in the table only"
            )
        blocks.insert(0, Chart(card_charts.columns(drawn, "tokens"), f"{caption}."))
    return blocks


def _weighty(tokens: dict[int, int]) -> dict[int, int]:
    """Of a long time without the years at both ends that have next to nothing: a misprinted year
    would press all others into a line."""
    years, least = sorted(tokens), sum(tokens.values()) / 1000
    for end in (0, -1):
        gone = 0
        while years[-1] - years[0] > _DRAWN and gone + tokens[years[end]] <= least:
            gone += tokens[years.pop(end)]
    return {year: tokens[year] for year in years}
