"""The benchmark's record as a table and as a picture."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

Row = dict[str, Any]
PARTS = ("forward", "backward", "xla")
COLOURS = {
    "ours": ("#1b4f72", "#2e86c1", "#aed6f1"),
    "peers": ("#4d4d4d", "#8c8c8c", "#d0d0d0"),
}
NOTES = """\
Mcycles of a core for one call, forward + backward, bfloat16, causal; static, from the schedules of
real compilers: waits for memory are not in them, and nothing ran on a TPU. `around` is XLA's own
estimate for what it adds around the kernels. `bounded` takes of each pass the longer of its bundles
and the matrix unit's time for its 128 x 128 tiles; limits are held against it. `floor` is the
matrix units' time for the products under the diagonal alone, `share` is floor / bounded. v4 and v5p
have two cores a chip, which split the grid: their figures are of each core while both work. Peers
have their best block sizes of `peer_blocks.json` and stand only where it has a sweep of that chip
and shape; parts of their kernels that a step skips are weighed by the steps that take them. Its
`max_logit_const` is for a user who knows a bound of the scores. With segment ids tokamax drops
blocks at run time, so its static cycles are not known.
"""


def markdown(record: dict[str, Any]) -> str:
    found = record["versions"]
    lines = [f"# Attention kernels, {record['date']}", "", f"    {record['command']}", ""]
    lines += [", ".join(f"{name} {version}" for name, version in found.items()), "", NOTES]
    for chip in dict.fromkeys(row["chip"] for row in record["rows"]):
        lines += [f"## {chip}", "", *_table(r for r in record["rows"] if r["chip"] == chip), ""]
    lines += ["## GPUs, compiled without one", "", *_registers(record["registers"]), ""]
    lines += ["## GPU times", "", *map(_time, record["times"]), ""]
    return "\n".join(lines)


def _table(rows) -> list[str]:
    lines = [
        "| | operands | forward | backward | around | total | bounded | floor | share | limit "
        "| peak HBM, MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        head = f"| {row['implementation']}, {row['variant']} | {row['layout']} "
        if "refused" in row:
            lines.append(
                head + f"| does not compile: {_one_line(row['refused'])} " + "| " * 8 + "|"
            )
            continue
        cells = [f"{row[part] / 1e6:.3f}" for part in (*PARTS, "total", "bounded", "floor")]
        cells.append(f"{100 * row['share_of_floor']:.0f} %")
        cells.append(_limit(row))
        cells.append(f"{row['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in row else "")
        lines.append(head + "".join(f"| {cell} " for cell in cells) + "|")
    return lines


def _limit(row: Row) -> str:
    if row["limit"] is None:
        return ""
    verdict = "met" if row["bounded"] <= 1e6 * row["limit"] else "**exceeded**"
    return f"{row['limit']:.3f} {verdict}"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:200]


def _registers(rows: list[Row]) -> list[str]:
    lines = ["| | kernel | registers | spilled bytes |", "|---|---|---|---|"]
    for row in rows:
        if "refused" in row:
            lines.append(f"| {row.get('chip', '')} | {_one_line(row['refused'])} | | |")
            continue
        for name, kernel in row["kernels"].items():
            figures = f"{kernel['registers']} | {kernel['spilled_bytes']}"
            lines.append(f"| {row['chip']} | {name} | {figures} |")
    return lines


def _time(row: Row) -> str:
    if "missing" in row:
        return row["missing"]
    if "refused" in row:
        return f"- {row['implementation']}: refused, {_one_line(row['refused'])}"
    return f"- {row['implementation']} on {row['device']}: {row['milliseconds']:.3f} ms"


def plot(record: dict[str, Any], path: Path) -> None:
    """A panel for each chip: one bar for each implementation and variant, in Mcycles."""
    mpl.use("Agg")
    chips = list(dict.fromkeys(row["chip"] for row in record["rows"]))
    most = max(sum(row["chip"] == chip for row in record["rows"]) for chip in chips)
    figure, panels = pyplot.subplots(
        1, len(chips), figsize=(max(9.5, 6.4 * len(chips)), 1.9 + 0.34 * most), squeeze=False
    )
    for axes, chip in zip(panels[0], chips, strict=True):
        _panel(axes, chip, [row for row in record["rows"] if row["chip"] == chip])
    handles = [
        Patch(color=colour, label=f"{who}: {part}")
        for who, colours in COLOURS.items()
        for part, colour in zip(("forward", "backward", "around, by XLA"), colours, strict=True)
    ]
    handles += [
        Line2D([], [], color="#c0392b", lw=2, label="limit"),
        Line2D([], [], color="black", lw=1.2, ls=":", label="matrix units' floor"),
    ]
    found = record["versions"]
    figure.suptitle(
        f"Causal attention, forward + backward, static cycles "
        f"({record['date']}, jax {found['jax']}, libtpu {found['libtpu']})",
        fontsize=11,
    )
    figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def _panel(axes, chip: str, rows: list[Row]) -> None:
    longest = max((row.get("bounded", 0) for row in rows), default=0) / 1e6
    for place, row in enumerate(rows):
        if "refused" in row:
            axes.text(0, place, " does not compile", va="center", fontsize=8, color="#c0392b")
            continue
        left = 0.0
        colours = COLOURS["ours" if row["implementation"] == "ours" else "peers"]
        for part, colour in zip(PARTS, colours, strict=True):
            axes.barh(place, row[part] / 1e6, left=left, color=colour, height=0.72)
            left += row[part] / 1e6
        bound = f" (bounded {row['bounded'] / 1e6:.3f})" if row["bounded"] > row["total"] else ""
        right = max(left, row["limit"] or 0) + 0.015 * longest
        axes.text(right, place, f"{left:.3f}{bound}", va="center", fontsize=8)
        axes.vlines(row["floor"] / 1e6, place - 0.4, place + 0.4, color="black", lw=1.2, ls=":")
        if row["limit"] is not None:
            axes.vlines(row["limit"], place - 0.4, place + 0.4, color="#c0392b", lw=2)
    labels = []
    for row in rows:
        peer = row["implementation"] != "ours"
        labels.append(
            f"{row['implementation']}, {row['variant']}"
            + (f"\nfrom {row['layout']}" if peer and row["layout"] == "[B, T, N*H]" else "")
        )
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * longest or 1)
    axes.set_xlabel("Mcycles of a core")
    axes.set_title(chip)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
