"""Yes/no questions of BioASQ's task B (Tsatsaronis et al. 2015; bioasq.org).

    <year>B<batch>_golden.json, with the answers: a test batch
    training<year>b.json (BioASQ-training..)        train
    {train,dev,test}.tsv    BLURB (Gu et al. 2021): id, question, context, label; no header
    {train,dev,test}.json   BioMedLM's authors, of BLURB's: id, sentence1, sentence2, label
    benchmark.json          MIRAGE: the golden batches of 2019 to 2023 without contexts

All golden batches of the folder are the test split together; `subject` is the year ("7B"), so that
scores can be told apart. BLURB's test split, which the paper reports, is the 140 questions of 7B. A
training file of a later year holds the golden questions of the years before: see `apart.py`.

The context is the texts of the snippets, in the file's order, joined by a space: sentences that
the experts marked as relevant in several abstracts. BLURB's files have what BLURB chose as context,
and are read as they stand. A question that several batches have under one id is kept once; the same
words under another id, with other snippets, is another item. Questions of other types, and test
sets without answers, are not read.
"""

import csv
import io
import re
from typing import Any

from biomedlm_jax.benchmarks import mirage
from biomedlm_jax.benchmarks.files import File
from biomedlm_jax.benchmarks.forms import (
    Asked,
    Candidate,
    Known,
    NoItem,
    Part,
    candidate,
    noted,
    place,
    text,
)
from biomedlm_jax.benchmarks.item import Item

CLASSES = ("no", "yes")
BLURB = {"train": 670, "dev": 75, "test": 140}
MIRAGE = 618
_GOLDEN = r"(\d+B)\d+_golden\.json"
_PUBMED = re.compile(r"(?:/pubmed/|//pubmed\.ncbi\.nlm\.nih\.gov/)(\d{1,9})/?$")
BATCHES = {  # by golden batch, the number of its yes/no questions and the sha256 of the file
    "7B1": (29, "4a1982648f96559a7daae4c58f2c3528b3301b5a06334220413367fd45271cb9"),
    "7B2": (30, "86d745d419f2099101112d501abd5b4e9304c5a65484317fdf3994e8f885618d"),
    "7B3": (23, "15596ea3dbbe4be8124db84b4c7c7c76fb3f1ce8a4bd7cc8f830727a4ec1c0ff"),
    "7B4": (23, "2e6b4b710c70cd82f5a131a7a9c0acdebe918b5858cf0c33178bdf698b657b27"),
    "7B5": (35, "857442af3d6e11d49abe37f0539785f56cc53e872a95c55d442d644c35fb0926"),
    "8B1": (25, "a1c007e9fd70762368d240cf5585b4eca8e45ff6756bb4ff5d757fad708e4868"),
    "8B2": (36, "987c7be72cb49d80b87935c5d2a3b5fafc06d786905407f6bf60d52cbf496d87"),
    "8B3": (31, "432a6bc9a338f6d2487b595b27aeb774b5b43c0e33be54cdf5b9c6749021bed4"),
    "8B4": (26, "a7a5eaf8551f07096ded95258cb75d4e1c0e2831d2b9e438a68ca6a3f8cba108"),
    "8B5": (34, "2be73d9444557745d57b66e5cdfbd976870920ad8d764d512dbcecb20cf46f68"),
    "9B1": (27, "236f569be95c36b07d62a636baef53a896c36993296f6680936bdb353880fedf"),
    "9B2": (22, "c8f8202b3ee6cf8d3ff570e872ba2f57d9890e723e01211abd2ecef5320ce32a"),
    "9B3": (24, "3a06983fb13f3069f1fbf2f0950275a8311fc5db423577a0e9ddb14d2a698092"),
    "9B4": (25, "f7a44a823ea1c2946420b829df13c58551707410f84b31125d2db83857c0c5bb"),
    "9B5": (19, "be7595992cda0597f456eaa650f1bbf4fee4d0466ee346bcd6adba2638fec662"),
}
KNOWN = {
    sha256: Known(f"the golden batch {batch}", "test", rows)
    for batch, (rows, sha256) in BATCHES.items()
}
LOOKED_FOR = (
    "<year>B<batch>_golden.json (test) and training<year>b.json (train) of bioasq.org, or BLURB's "
    "{train,dev,test}.tsv"
)


def candidates(asked: Asked) -> list[Candidate]:
    """The split in every form that is there."""
    found = []
    if parts := _owners(asked):
        found.append(candidate(asked, "the owners' questions", parts, _question))
    for file in asked.of_split(r".*\.tsv"):
        table = _table(file)
        if table and len(table[0]) == 4 and table[0][-1].strip().casefold() in CLASSES:
            part = Part(file, table, BLURB[asked.split])
            found.append(candidate(asked, "BLURB's rows", [part], _cells))
    for file in asked.of_split(r".*\.jsonl?"):
        of_rows = file.has("id", "sentence1", "sentence2", "label")
        if of_rows and _hexadecimal(file.first["id"]):
            part = Part(file, file.rows, BLURB[asked.split])
            found.append(candidate(asked, "the authors' rows", [part], _pair))
    for file, rows in mirage.rows(asked, "bioasq"):
        made = candidate(asked, "MIRAGE's", [Part(file, rows, MIRAGE)], _mirage)
        found.append(noted(made, mirage.WITHOUT_CONTEXT))
    return found


def pmid(url: str) -> int | None:
    """Of the abstract that a question's list of documents names; None where it is no abstract."""
    found = _PUBMED.search(url)
    return int(found[1]) if found else None


def _owners(asked: Asked) -> list[Part]:
    if asked.split == "test":
        files = asked.named(_GOLDEN)
    elif asked.split == "train":
        files = asked.of_split(r"(?i)(bioasq-)?training.*\.json")
    else:
        files = []
    parts = []
    for file in files:
        questions = file.table.get("questions")
        if not isinstance(questions, list) or not all(isinstance(row, dict) for row in questions):
            raise file.damaged('it has no list of "questions"')
        rows = [row for row in questions if row.get("type") == "yesno"]
        published, _ = BATCHES.get(file.base.partition("_")[0], (None, ""))
        parts.append(Part(file, rows, published))
    return parts


def _hexadecimal(id: Any) -> bool:
    """PubMedQA's rows with the same columns have PMIDs."""
    return isinstance(id, str) and re.fullmatch(r"[0-9a-f]{20,}.*", id) is not None


def _question(row: dict[str, Any], number: int, file: File) -> Item:
    answer = row.get("exact_answer")
    if isinstance(answer, list) and len(answer) == 1:
        (answer,) = answer
    label = place(answer.rstrip(". ") if isinstance(answer, str) else answer, CLASSES)
    snippets = row.get("snippets", [])
    if not isinstance(snippets, list) or not all(isinstance(one, dict) for one in snippets):
        raise NoItem("snippets that are no list of texts")
    context = " ".join(words for one in snippets if (words := text(one, "text")))
    documents = row.get("documents")
    urls = [url for url in documents if isinstance(url, str)] if isinstance(documents, list) else []
    pmids = tuple(dict.fromkeys(id for url in urls if (id := pmid(url))))
    golden = re.fullmatch(_GOLDEN, file.base)
    subject = golden[1] if golden else ""
    return Item(
        text(row, "id"), text(row, "body"), CLASSES, label, context, subject=subject, pmids=pmids
    )


def _table(file: File) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(file.text, newline=""), delimiter="\t"))
    except csv.Error as error:  # a cell of over 131,072 characters: a quote that is not closed
        raise file.damaged(f"it is no table ({error})") from error


def _cells(row: list[str], number: int, file: File) -> Item:
    if len(row) != 4:
        raise NoItem(f"{len(row)} columns, not 4")
    id, question, context, label = (cell.strip() for cell in row)
    return Item(id, question, CLASSES, place(label, CLASSES), context)


def _pair(row: dict[str, Any], number: int, file: File) -> Item:
    label = place(row.get("label"), CLASSES)
    return Item(text(row, "id"), text(row, "sentence1"), CLASSES, label, text(row, "sentence2"))


def _mirage(row: mirage.Row, number: int, file: File) -> Item:
    id, values = row
    given = mirage.options(values)
    label = place(given[mirage.answer(values, "answer", len(given))], CLASSES)
    pmids = mirage.pmids(values)
    return Item(id, text(values, "question"), CLASSES, label, pmids=pmids)
