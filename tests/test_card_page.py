"""How a data card is written: any text stays text, tables keep their sums, drawings their scale."""

import collections
import itertools
import re

import lxml.html
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.cards import charts as card_charts
from data.cards import page as card_page
from data.cards.charts import Stage
from data.cards.page import Points, Section, Table, Text


def unescaped(cell):
    text = re.sub(r"\\([^\w\s]|_)", r"\1", cell.replace("@<!-- -->", "@"))
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("https://evil.example/x", r"https\://evil.example/x"),
        ("FTP://evil.example", r"FTP\://evil.example"),
        ("www.evil.example", r"www\.evil.example"),
        ("a@evil.example", "a@<!-- -->evil.example"),  # after a backslash it would be a link
        ("@user", "@<!-- -->user"),
        ("mailto:a@evil.example", "mailto:a@<!-- -->evil.example"),
        ("$x$ and $$y$$", r"\$x\$ and \$\$y\$\$"),
        ("$`x`$", r"\$\`x\`\$"),
        ("#1", r"\#1"),
        ("16:10", "16:10"),
    ],
)
def test_no_name_becomes_a_link_a_mention_or_mathematics(name, expected):
    """These have no markup around them: GitHub makes something of them by itself."""
    found = [Section("s", [Table([name, "n"], [[name, 1]]), Text(name), Points([name])])]
    lines = card_page.markdown(name, found).splitlines()
    assert lines[0] == f"# {expected}"
    assert lines[4] == f"| {expected} | n |"
    assert lines[6] == f"| {expected} | 1 |"
    assert lines[8] == expected
    assert lines[10] == f"- {expected}"


@given(st.text(st.characters(codec=None), min_size=1, max_size=400))
def test_any_name_stays_in_its_cell(name):
    found = [Section("s", [Text(name), Table([name, "n"], [[name, 1234]])])]
    root = lxml.html.document_fromstring(card_page.page("t", found))
    cell, number = root.iter("td")
    assert cell.text_content() == card_charts.written(name)
    assert number.text_content() == "1,234"
    lines = card_page.markdown("t", found).splitlines()
    assert [len(re.findall(r"(?<!\\)\|", line.replace("\\\\", ""))) for line in lines[-3:]] == (
        [3, 3, 3]
    )
    assert unescaped(lines[-1]) == f"| {card_charts.written(name)} | 1,234 |"


@given(st.dictionaries(st.text(), st.integers(0, 10**9), max_size=40), st.integers(1, 9))
def test_long_tails_are_folded_into_their_sum(values, most):
    table = card_page.folded(["x", "n"], [(k, [n]) for k, n in values.items()], most)
    assert sum(row[1] for row in table.rows) == sum(values.values())
    assert len(table.rows) <= most + 1
    if len(values) > most + 1:
        assert table.rows[-1][0] == f"{len(values) - most} others"


class TestDrawings:
    @given(st.lists(st.tuples(st.text(), st.integers(0, 10**12)), min_size=1, max_size=9))
    def test_bars(self, values):
        drawing, logarithmic = card_charts.bars(values, "tokens")
        wide = [float(r.get("width")[:-1]) for r in drawing if r.get("class") == "c0"]
        numbers = [number for _, number in values]
        assert all(0 <= width <= 100 for width in wide)
        assert (max(wide) == 100) == (max(numbers) > 0)
        pairs = zip(itertools.pairwise(wide), itertools.pairwise(numbers), strict=True)
        for (a, b), (x, y) in pairs:
            assert (x <= y) <= (a <= b)
        assert logarithmic == (max(numbers) > 100 * min([n for n in numbers if n] or [1]))

    @given(st.dictionaries(st.integers(1780, 2030), st.integers(0, 10**12), min_size=1))
    def test_columns(self, values):
        drawing = card_charts.columns(values, "tokens")
        found = [r for r in drawing if r.get("class") == "c0"]
        assert len(found) == max(values) - min(values) + 1
        for column, year in zip(found, range(min(values), max(values) + 1), strict=True):
            assert column[0].text == f"{year}: {values.get(year, 0):,} tokens"
            tall = 200 * values.get(year, 0) / max([*values.values(), 1])
            assert float(column.get("height")) == pytest.approx(tall, abs=0.051)

    def test_flow(self):
        stages = [
            Stage("Read", [("kept", 60)], [("revised", 30), ("no text", 10)]),
            Stage("Cleaned", [("kept", 45)], [("too short", 15)]),
            Stage("Divided", [("train", 45), ("held out", 0)], []),
        ]
        drawing = card_charts.flow(stages)
        rows = collections.defaultdict(list)
        for part in drawing:
            if "cut" in part.get("class", ""):
                rows[float(part.get("y"))].append(float(part.get("width")[:-1]))
        assert list(rows.values()) == [[60, 30, 10], [45, 15], [45, 0]]
        ribbons = [float(p.get("width")[:-1]) for p in drawing if p.get("class") == "ribbon"]
        assert ribbons == [60, 45]
        assert "Read 100: kept 60, revised 30, no text 10" in drawing.get("aria-label")
