"""MIRAGE's benchmark.json: questions of five test sets in one file (Xiong et al. 2024, 2402.13178).

    {"medqa": {"0000": {"question": .., "options": {"A": .., "B": ..}, "answer": "B"}, ..}, ..}

It holds MedQA's test split with 4 options, MedMCQA's dev split, MMLU's test splits, PubMedQA's test
split and BioASQ's yes/no questions of 2019 to 2023; the last two with the PMIDs ("PMID"), but
without what there is to read: questions to be answered from memory.
"""

from typing import Any

from biomedlm_jax.benchmarks.files import File
from biomedlm_jax.benchmarks.forms import Asked, NoItem, text

NAME = r"benchmark\.json"
SPLITS = {"medqa": "test", "medmcqa": "dev", "mmlu": "test", "pubmedqa": "test", "bioasq": "test"}
WITHOUT_CONTEXT = "questions without their contexts, as MIRAGE has them"
Row = tuple[str, dict[str, Any]]


def rows(asked: Asked, benchmark: str) -> list[tuple[File, list[Row]]]:
    """By file, the id and the row of each question of a benchmark; none of another split."""
    found = []
    for file in asked.named(NAME) if asked.split == SPLITS[benchmark] else ():
        table = file.table.get(benchmark)
        if isinstance(table, dict) and all(isinstance(row, dict) for row in table.values()):
            found.append((file, list(table.items())))
    return found


def pmids(row: dict[str, Any]) -> tuple[int, ...]:
    """Of the abstracts that answer a question."""
    listed = row.get("PMID")
    found = [str(pmid) for pmid in listed] if isinstance(listed, list) else []
    return tuple(int(pmid) for pmid in found if pmid.isdecimal() and len(pmid) <= 9)


def options(row: dict[str, Any]) -> tuple[str, ...]:
    """The texts of A, B, ... in this order.

    Raises:
      NoItem: they are not the first letters, each with a text.
    """
    given = row.get("options")
    if not isinstance(given, dict) or sorted(given) != list("ABCDEFGH"[: len(given)]):
        raise NoItem("options that are not A, B, ...")
    return tuple(text(given, letter) for letter in sorted(given))


def answer(row: dict[str, Any], column: str, count: int) -> int:
    """The place of the letter that answers.

    Raises:
      NoItem: it is none of the first `count` letters.
    """
    letter = row.get(column)
    if not isinstance(letter, str) or letter not in tuple("ABCDEFGH"[:count]):
        raise NoItem(f"a label out of range: {str(letter)[:20]!r}")
    return "ABCDEFGH".index(letter)
