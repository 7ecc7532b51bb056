"""MedQuAD (Ben Abacha and Demner-Fushman 2019): consumers' questions with long answers, of 12 NIH
websites. For training: its owners publish no split.

    MedQuAD.tar.gz, or <number>_<source>_QA/*.xml as in github.com/abachaa/MedQuAD

A file is a topic, a QAPair of it an item; `subject` is the kind of question ("treatment"). 16,407
of the 47,441 pairs have answers; those of three sources of MedlinePlus were taken out for
copyright, and are counted as skipped. White space is made single and paragraphs are told apart by
one line break; words are as published.
"""

import io
import re
import tarfile
from collections.abc import Iterable, Iterator

import lxml.etree as etree

from biomedlm_jax.benchmarks.files import File
from biomedlm_jax.benchmarks.forms import Asked, Candidate, Known, NoItem, Part, candidate
from biomedlm_jax.benchmarks.item import Item

PAIRS = 47_441
KNOWN = {
    "3d5f9fb68d6299fb40a8fc8a807ffed3b98473531dda6ec760ab5450b6ef3ad1": Known(
        "the owners' folder of 2019", "train", PAIRS
    ),
}
LOOKED_FOR = "MedQuAD.tar.gz, or the folders <number>_<source>_QA of github.com/abachaa/MedQuAD"
_TOPIC = re.compile(r"(?:^|.*/)(\d+_\w+_QA(?:_XML)?)/([^/]+)\.xml")
Row = tuple[str, etree._Element]


def candidates(asked: Asked) -> list[Candidate]:
    """All pairs with answers, in every form that is there."""
    found = []
    for file in asked.named(r"(?i)medquad.*\.(tar|tgz)"):
        rows = list(_pairs(file, _members(file)))
        part = Part(file, rows, PAIRS)
        found.append(candidate(asked, "the owners' topics", [part], _item))
    folders: dict[str, list[File]] = {}
    for file in asked.named(r".*\.xml"):
        if named := _TOPIC.fullmatch(file.name):
            place = file.name[: named.start(1)]
            folders.setdefault(place, []).append(file)
    for place, files in folders.items():
        # One entry for thousands of files; its sha256 is of theirs.
        listed = "".join(f"{file.name} {file.sha256}\n" for file in files).encode()
        folder = File(place or ".", lambda listed=listed: listed)
        rows = [pair for file in files for pair in _pairs(file, [(file.name, file.data)])]
        found.append(candidate(asked, "the owners' topics", [Part(folder, rows, PAIRS)], _item))
    return found


def _members(file: File) -> Iterator[tuple[str, bytes]]:
    """Path and bytes of each topic.

    Raises:
      UserError: the archive is damaged.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(file.data), mode="r:*") as archive:
            for member in archive:
                if member.isfile() and _TOPIC.fullmatch(member.name):
                    content = archive.extractfile(member)
                    assert content is not None  # of a file it never is
                    yield member.name, content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise file.damaged(f"it is no archive, or cut ({error!r})") from error


def _pairs(file: File, topics: Iterable[tuple[str, bytes]]) -> Iterator[Row]:
    """The id and the element of each pair."""
    parser = etree.XMLParser(resolve_entities=False)
    for path, data in topics:
        named = _TOPIC.fullmatch(path)
        assert named is not None  # as was looked for
        try:
            root = etree.fromstring(data, parser)
        except etree.XMLSyntaxError as error:
            raise file.damaged(f"{path} is no XML ({error})") from error
        for pair in root.iter("QAPair"):
            yield f"{named[1]}/{named[2]}/{pair.get('pid')}", pair


def _item(row: Row, number: int, file: File) -> Item:
    id, pair = row
    question = pair.find("Question")
    if question is None:
        raise NoItem("no question")
    asked = " ".join("".join(question.itertext()).split())
    answer = _paragraphs(pair.find("Answer"))
    return Item(id, asked, answer=answer, subject=question.get("qtype", ""))


def _paragraphs(element: etree._Element | None) -> str:
    if element is None:
        return ""
    lines = (" ".join(line.split()) for line in "".join(element.itertext()).split("\n"))
    return "\n".join(line for line in lines if line)
