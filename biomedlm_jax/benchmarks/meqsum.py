"""MeQSum (Ben Abacha and Demner-Fushman 2019): what does a consumer's message ask, in one sentence?

    {train,test}.source, .target   BioMedLM's authors: message and question, a line each, 500 + 500
    MeQSum_*.xlsx                  github.com/abachaa/MeQSum: File, CHQ, Summary of all 1,000

The owners' table has no split. The authors' files have one, and are read where they are; their
pairs must then be in the table, if that is there too. Of the table alone all 1,000 are `train`:
nothing is left to test on, and no split is invented here. There is no dev split either: the
authors' val is their test again, so what is chosen by it is chosen on the test.
"""

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import lxml.etree as etree

from biomedlm_jax.benchmarks.files import File
from biomedlm_jax.benchmarks.forms import (
    Asked,
    Candidate,
    Known,
    Part,
    candidate,
    normal,
    noted,
    text,
)
from biomedlm_jax.benchmarks.item import Item
from biomedlm_jax.entry import UserError

PUBLISHED = {"train": 500, "test": 500}
ALL = 1_000
COLUMNS = ("File", "CHQ", "Summary")
KNOWN = {
    "abedd939d5014306ca576522416bf69103e85dc8fcf1668a4099e8b84a39eeea": Known(
        "the owners' table", "train", 1_000
    ),
    "7d45ce30b06fb8fcb8264adefcea449dc4b336e22aa9525033bf3b12dd3191a6": Known(
        "the messages of the authors' train split", "train", 500
    ),
    "8861561243712e47a5ca15a8c5e5c9f09ce577be3264649e39237a9a3b80d706": Known(
        "the messages of the authors' test split", "test", 500
    ),
    "6e6949e90f19f3f65e9fd630e0260f616edc091a2561bf49b2e6ac2c489a74e5": Known(
        "the questions of the authors' train split", "train", 500
    ),
    "9433f6cabe1fc51291b7c45f5124457c61af8b7526aea72f3d677d2c96469531": Known(
        "the questions of the authors' test split", "test", 500
    ),
}
LOOKED_FOR = (
    "train.source, train.target, test.source and test.target of BioMedLM's authors, or for train "
    "alone MeQSum_*.xlsx of github.com/abachaa/MeQSum"
)
_XLSX = r"(?i)meqsum.*\.xlsx"
_CELL = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def candidates(asked: Asked) -> list[Candidate]:
    """The split in every form that is there.

    Raises:
      UserError: .source and .target have not the same number of lines; a pair of theirs is not in
        the owners' table, which is in the folder.
    """
    tables = asked.named(_XLSX)
    if asked.named(r".*\.source"):
        found = []
        for source in asked.of_split(r".*\.source"):
            target = _beside(asked, source)
            pairs = list(zip(_lines(source), _lines(target), strict=True))
            published = PUBLISHED[asked.split]
            parts = [Part(source, pairs, published), Part(target, [], published, len(pairs))]
            found.append(candidate(asked, "the authors' lines", parts, _pair(asked.split)))
        for table in tables:
            _check_in(table, found)
        return found
    if asked.split != "train":
        return []
    return [
        noted(
            candidate(asked, "the owners' table", [Part(table, _rows(table), ALL)], _row),
            "all pairs that there are, so that none is left to test on",
        )
        for table in tables
    ]


def _beside(asked: Asked, source: File) -> File:
    """The .target of a .source, with the same number of lines."""
    stem = source.name.removesuffix(".gz").removesuffix(".source")
    for file in asked.files:
        if file.name.removesuffix(".gz") == f"{stem}.target":
            if (ours := len(_lines(source))) != (theirs := len(_lines(file))):
                raise UserError(
                    f"{source.name} has {ours} lines and {file.name} {theirs}: which question is "
                    "whose can not be told; copy both again"
                )
            return file
    raise UserError(f"{source.name} has no {stem}.target beside it, where its questions are")


def _lines(file: File) -> list[str]:
    return file.text.removesuffix("\n").split("\n")  # a line may hold U+2028


def _pair(split: str):
    def item(row: tuple[str, str], number: int, file: File) -> Item:
        message, question = row
        return Item(f"{split}-{number:05}", message.strip(), answer=question.strip())

    return item


def _row(row: dict[str, Any], number: int, file: File) -> Item:
    return Item(text(row, "File"), text(row, "CHQ"), answer=text(row, "Summary"))


def _check_in(table: File, found: list[Candidate]) -> None:
    there = {(normal(row.get("CHQ", "")), normal(row.get("Summary", ""))) for row in _rows(table)}
    for one in found:
        for item in one.split.items:
            if (normal(item.question), normal(item.answer)) not in there:
                raise UserError(
                    f"{item.id} of {one.what} is not in {table.name}: {item.question[:80]!r}; keep "
                    "one of them in the folder"
                )


def _rows(file: File) -> list[dict[str, Any]]:
    """By column, the texts of each row of the first sheet (ECMA-376, part 1, 18.3 and 18.4).

    Raises:
      UserError: it is no table of COLUMNS.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(file.data)) as archive:
            shared = [_text(entry) for entry in _parsed(archive, "xl/sharedStrings.xml", "si")]
            rows = []
            for row in _parsed(archive, "xl/worksheets/sheet1.xml", "row"):
                cells = {}
                for cell in row.iter(f"{_CELL}c"):
                    column = re.sub(r"\d", "", cell.get("r", ""))
                    value = cell.findtext(f"{_CELL}v")
                    if cell.get("t") == "s" and value is not None:
                        cells[column] = shared[int(value)]
                    elif cell.get("t") == "inlineStr":
                        cells[column] = _text(cell)
                    elif value is not None:
                        cells[column] = value
                rows.append(cells)
    except (zipfile.BadZipFile, KeyError, ValueError, IndexError, etree.XMLSyntaxError) as error:
        raise file.damaged(f"it is no table of Excel ({error!r})") from error
    header, rest = (rows[0], rows[1:]) if rows else ({}, [])
    if not set(COLUMNS) <= set(header.values()):
        raise file.damaged(f"its columns are {sorted(header.values())}, not {', '.join(COLUMNS)}")
    filled = [{header.get(column): value for column, value in row.items()} for row in rest]
    return [{name: row.get(name, "") for name in COLUMNS} for row in filled if row]


def _parsed(archive: zipfile.ZipFile, part: str, tag: str) -> Iterator[etree._Element]:
    parser = etree.XMLParser(resolve_entities=False)
    return etree.fromstring(archive.read(part), parser).iter(f"{_CELL}{tag}")


def _text(element: etree._Element) -> str:
    """Of its runs. Not of the phonetic ones beside them, which tell how Japanese is read."""
    runs = (run for run in element.iter(f"{_CELL}t") if run.getparent().tag != f"{_CELL}rPh")
    return "".join(run.text or "" for run in runs)
