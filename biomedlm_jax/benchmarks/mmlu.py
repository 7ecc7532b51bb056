"""The medical subjects of MMLU (Hendrycks et al. 2021, arXiv 2009.03300).

    <subject>_{dev,val,test}.csv   github.com/hendrycks/test, data.tar, unpacked: question, four
                                   options, a letter; no header
    benchmark.json                 MIRAGE: the test split

Their names of splits are not ours. The 5 rows of `dev` are examples to show in a prompt: our
"train". `val` is what settings are chosen by: our "dev". An item's subject is in its `subject`; the
paper reports the four of REPORTED, and no mean.

Questions of clinical_knowledge and college_medicine stand in the other's files too: 5 examples and
14 of `val` are in the test split (`apart.without` leaves them out).
"""

import csv
import io

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
    text,
)
from biomedlm_jax.benchmarks.item import Item
from biomedlm_jax.entry import UserError

REPORTED = ("clinical_knowledge", "professional_medicine", "college_biology", "medical_genetics")
SUBJECTS = (*REPORTED, "anatomy", "college_medicine")
THEIRS = {"train": "dev", "dev": "val", "test": "test"}  # by our split, their name of it
PUBLISHED = {  # by our split, in the order of SUBJECTS
    "train": (5, 5, 5, 5, 5, 5),
    "dev": (29, 31, 16, 11, 14, 22),
    "test": (265, 272, 144, 100, 135, 173),
}
_FILES = {
    "train": """
        30f851e53e0aa03178f705195450929ac6030c6bf629457f4ca250aff7515b65
        486456d578890d4700dd8044ac236c8ac2ee3389e35fc81ac37529f4f4487785
        31f4ae0707ba3f742e0d5546ff970949be8a05e217921fe87b1814d6a0ab8184
        70cd9ff940bef360693eeb4e05b5b8e53ad75a81d6b74a784222d4cae6dcb896
        0985685cf5ab13ccc1629f03a1308a9add8767582ffeb195b68b18c3415c9993
        63928a944fda769d7e52a3a4549d4f37f094896e65e7db35029261e1ae79909b""",
    "dev": """
        aa4a98fac4cb6c0ed219d44ef46a6aa9e8d56b0a62046bb220b836dbee4ff6a7
        8ccce8d3ca49f2a8ff645a12151ec36f4d567b53bf146bcefcb44c993efd7392
        f624eaf75ee2add75a9f2b189bb703e0a2591981d45c60bb5f9dcd9bfe168456
        03d44b759f35da638d7432bb7f050cc0bc5886497285980e91d387fe23478d6a
        09e9959486ebf3643e4ecbf173a77b029c6f08665ab8f89daf99399956f26b8e
        9a490f6aaeb2e7c15cc8ce4c5745ff449568971ac447c4aa616858f7f4dcef35""",
    "test": """
        06a1ea973000d5ef5d2664c4ac1c68d0423f1cab6b3b682be7942633740811f1
        a034bf0dda10cb0848bdd3097eb1547d61ca2dac9e9b871563691621c38d51e9
        e1204cb9d19887ea266145f038b5d4cc1fbc33d7efce186259c4ecca1cbe3119
        cc30c698e94f12c00e610a39c62d1a1d9587fa53c005359317346081f722c5e6
        966dfd5c4579885ebdb8c05d6754ae5834f672632586d8595be3c0f9360e6f4e
        9c533cfff89edaa317b2e79bbabcdd5e2e522e019679cb4a6475e5f2a1861b1e""",
}
KNOWN = {
    sha256: Known(f"{subject}, {THEIRS[split]}", split, rows)
    for split, files in _FILES.items()
    for subject, sha256, rows in zip(SUBJECTS, files.split(), PUBLISHED[split], strict=True)
}
LOOKED_FOR = (
    f"<subject>_dev.csv (our train), <subject>_val.csv (our dev) and <subject>_test.csv of "
    f"github.com/hendrycks/test, for {', '.join(SUBJECTS)}"
)


def candidates(asked: Asked) -> list[Candidate]:
    """The split of all six subjects, in every form that is there.

    Raises:
      UserError: a subject is missing, or is there twice with different rows.
    """
    parts: dict[str, Part] = {}
    for subject, published in zip(SUBJECTS, PUBLISHED[asked.split], strict=True):
        for file in asked.named(rf"{subject}_{THEIRS[asked.split]}\.csv"):
            part = Part(file, _rows(file), published)
            if parts.setdefault(subject, part).rows != part.rows:
                raise UserError(
                    f"{parts[subject].file.name} and {file.name} differ; keep one of them"
                )
    found = []
    if parts:
        missing = [subject for subject in SUBJECTS if subject not in parts]
        if missing and not asked.other_version:
            raise UserError(
                f"of the {asked.split} split of mmlu, {', '.join(missing)} is missing; its files "
                f"are {LOOKED_FOR}. Or say that less is meant: other_version=True"
            )
        made = candidate(asked, "the owners' tables", list(parts.values()), _item(asked.split))
        if missing:
            made = noted(made, f"another version: without {', '.join(missing)}")
        found.append(made)
    return found + [
        candidate(asked, "MIRAGE's", [Part(file, rows, sum(PUBLISHED["test"]))], _mirage)
        for file, rows in mirage.rows(asked, "mmlu")
    ]


def _rows(file: File) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(file.text, newline=""), strict=True))
    except csv.Error as error:
        raise file.damaged(f"it is no table ({error})") from error


def _item(split: str):
    def item(row: list[str], number: int, file: File) -> Item:
        if len(row) != 6:
            raise NoItem(f"{len(row)} columns, not 6")
        question, *given, letter = (cell.strip() for cell in row)
        subject = file.base.removesuffix(f"_{THEIRS[split]}.csv")
        label = mirage.answer({"answer": letter}, "answer", 4)
        id = f"{subject}-{split}-{number:03}"
        return Item(id, question, tuple(given), label, subject=subject)

    return item


def _mirage(row: mirage.Row, number: int, file: File) -> Item:
    id, values = row
    subject, _, place = id.rpartition("-")
    if subject not in SUBJECTS or not (place.isdecimal() and len(place) < 6):
        raise NoItem(f"{id!r} names none of {', '.join(SUBJECTS)}")
    given = mirage.options(values)
    label = mirage.answer(values, "answer", len(given))
    id = f"{subject}-test-{int(place):03}"
    return Item(id, text(values, "question"), given, label, subject=subject)
