"""MedMCQA (Pal et al. 2022, arXiv 2203.14371): questions of Indian medical entrance examinations.

    {train,dev,test}.json   github.com/medmcqa/medmcqa, JSON lines: id, question, opa to opd, cop,
                            exp, subject_name, topic_name, choice_type
    benchmark.json          MIRAGE: the dev split

`cop` is the right option. The owners count it from 1, the copy on Hugging Face from 0: a file with
a 0 counts from 0, one with a 4 from 1, one with both or neither is refused. The test split is
published without it (on Hugging Face with -1): `label` is None, and what the literature calls a
test is the dev split. The explanations (`exp`) are not read.
"""

from typing import Any

from biomedlm_jax.benchmarks import mirage
from biomedlm_jax.benchmarks.files import File
from biomedlm_jax.benchmarks.forms import Asked, Candidate, Known, NoItem, Part, candidate, text
from biomedlm_jax.benchmarks.item import Item
from biomedlm_jax.entry import UserError

PUBLISHED = {"train": 182_822, "dev": 4_183, "test": 6_150}
KNOWN = {
    "a2b5f53890f4e742b728378fb847bc5338088d48ea01218676379f587270af31": Known(
        "the owners' dev split", "dev", 4_183
    ),
}
LOOKED_FOR = "train.json, dev.json and test.json of github.com/medmcqa/medmcqa"


def candidates(asked: Asked) -> list[Candidate]:
    """The split in every form that is there.

    Raises:
      UserError: what a file's `cop` counts from can not be told.
    """
    found = []
    for file in asked.of_split(r".*\.jsonl?"):
        if file.has("id", "question", "opa", "opb", "opc", "opd"):
            part = Part(file, file.rows, PUBLISHED[asked.split])
            item = _item(_first(file, asked.split))
            found.append(candidate(asked, "the owners' rows", [part], item))
    return found + [
        candidate(asked, "MIRAGE's", [Part(file, rows, PUBLISHED["dev"])], _mirage)
        for file, rows in mirage.rows(asked, "medmcqa")
    ]


def _first(file: File, split: str) -> int | None:
    """What `cop` of the first option is, 0 or 1; None where no row has an answer.

    Raises:
      UserError: that can not be told, or only some rows of a test split have answers.
    """
    numbers = [_number(row) for row in file.rows]
    answered = {number for number in numbers if number is not None}
    if not answered and split == "test":
        return None
    if (0 in answered) == (4 in answered) or not answered <= set(range(5)):
        raise UserError(
            f"{file.name}: it can not be told what cop counts from. It is {sorted(answered)}; "
            "0 to 3 and 1 to 4 are known, and a file with a 0 and a 4 or with neither could be "
            "read wrongly; copy the owners' file"
        )
    return 0 if 0 in answered else 1


def _number(row: dict[str, Any]) -> int | None:
    cop = row.get("cop")
    if isinstance(cop, str) and cop.strip() in ("0", "1", "2", "3", "4"):
        return int(cop)
    return cop if isinstance(cop, int) and not isinstance(cop, bool) and cop != -1 else None


def _item(first: int | None):
    def item(row: dict[str, Any], number: int, file: File) -> Item:
        given = tuple(text(row, f"op{letter}") for letter in "abcd")
        cop = _number(row)
        if first is not None and cop is None:
            raise NoItem("no label")
        label = None if first is None or cop is None else cop - first
        subject = row.get("subject_name") or ""
        return Item(text(row, "id"), text(row, "question"), given, label, subject=str(subject))

    return item


def _mirage(row: mirage.Row, number: int, file: File) -> Item:
    id, values = row
    given = mirage.options(values)
    return Item(id, text(values, "question"), given, mirage.answer(values, "answer", len(given)))
