"""Files of benchmarks in every form that is published, invented, with an item each."""

import gzip
import io
import json
import tarfile
import zipfile

from biomedlm_jax.benchmarks.item import Item
from biomedlm_jax.benchmarks.read import read

SIDES = {"A": "Gentamicin", "B": "Ceftriaxone", "C": "Penicillin", "D": "None"}
MEDQA = {"question": "Which drug?", "options": SIDES, "answer": "Ceftriaxone", "answer_idx": "B"}
ENDINGS = {"id": "dev-00000", "sent1": "Which drug?", "sent2": "", "label": "1"} | {
    f"ending{place}": option for place, option in enumerate(SIDES.values())
}
MEDMCQA = {"id": "m1", "question": "Not true?", "opa": "a", "opb": "b", "opc": "c", "opd": "d"}
PAIR = {"id": "12377809", "sentence1": "Is it so?", "sentence2": "It may.", "label": "maybe"}
HEX = "5be44bef133db5eb78000014"
BIOASQ = {
    "id": HEX,
    "type": "yesno",
    "body": "Is it a gene?",
    "exact_answer": ["Yes."],
    "documents": ["http://www.ncbi.nlm.nih.gov/pubmed/77", "https://x.org/78"],
    "snippets": [{"text": " A gene was found. "}, {"text": "Twice."}],
}
LISTS = {"id": HEX[::-1], "type": "list", "body": "Which genes are there?"}
TOPIC = """<Document><QAPairs><QAPair pid="1"><Question qid="1-1" qtype="treatment">How is
  it treated ?</Question><Answer>Rest.
      Much  water.

      Sleep.</Answer></QAPair>
  <QAPair pid="2"><Question qtype="outlook">And then?</Question><Answer/></QAPair>
  </QAPairs></Document>"""


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


def other(folder, files, benchmark, split, **asked):
    """As read, of files with less rows than the published."""
    return read(benchmark, write(folder, files), split, other_version=True, **asked)


def table(*rows):
    """A table of Excel."""
    name = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    texts = [text for row in rows for text in row]
    shared = "".join(f"<si><r><t>{text[:1]}</t></r><r><t>{text[1:]}</t></r></si>" for text in texts)
    sheet, number = "", 0
    for place, row in enumerate(rows, start=1):
        cells = ""
        for column, _ in zip("ABC", row, strict=False):
            cells += f'<c r="{column}{place}" t="s"><v>{number}</v></c>'
            number += 1
        sheet += f'<row r="{place}">{cells}</row>'
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("xl/sharedStrings.xml", f'<sst xmlns="{name}">{shared}</sst>')
        archive.writestr(
            "xl/worksheets/sheet1.xml",
            f'<worksheet xmlns="{name}"><sheetData>{sheet}</sheetData></worksheet>',
        )
    return content.getvalue()


def archive(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return content.getvalue()


MIRAGE = json.dumps(
    {
        "medqa": {
            "0007": {"question": "Which drug?", "options": SIDES, "answer": "B"},
        },
        "medmcqa": {"m1": {"question": "Not true?", "options": SIDES, "answer": "D"}},
        "mmlu": {"anatomy-001": {"question": "What?", "options": SIDES, "answer": "A"}},
        "pubmedqa": {
            "12377809": {
                "question": "Is it so?",
                "options": {"A": "yes", "B": "no", "C": "maybe"},
                "answer": "C",
                "PMID": [12377809],
            }
        },
        "bioasq": {
            HEX: {
                "question": "Is it a gene?",
                "options": {"A": "yes", "B": "no"},
                "answer": "A",
                "PMID": [77],
            }
        },
    },
    indent=1,
)
DRUG = Item("dev-00000", "Which drug?", tuple(SIDES.values()), 1)
GENE = Item(HEX, "Is it a gene?", ("no", "yes"), 1, "A gene was found. Twice.")
SO = Item("12377809", "Is it so?", ("maybe", "no", "yes"), 0, "It may.", pmids=(12377809,))
LETTERS = ("a", "b", "c", "d")
READ = [  # benchmark, split, files, the item
    ("medqa", "dev", {"US/phrases_no_exclude_dev.jsonl.gz": lines(MEDQA)}, DRUG),
    ("medqa", "dev", {"hf/dev.json": lines(ENDINGS)}, DRUG),
    ("medqa", "dev", {"hf/dev.json": json.dumps([ENDINGS], indent=1)}, DRUG),
    (
        "medqa5",
        "train",
        {"US/train.jsonl": lines({**MEDQA, "options": {**SIDES, "E": "x"}, "meta_info": "step1"})},
        Item("train-00000", "Which drug?", (*SIDES.values(), "x"), 1, subject="step1"),
    ),
    (
        "medqa",
        "test",
        {"benchmark.json": MIRAGE},
        Item("test-00007", "Which drug?", tuple(SIDES.values()), 1),
    ),
    (
        "medmcqa",
        "train",
        {"train.json": lines({**MEDMCQA, "cop": 4, "subject_name": "Surgery"})},
        Item("m1", "Not true?", LETTERS, 3, subject="Surgery"),
    ),
    (
        "medmcqa",
        "dev",
        {"dev.json": lines({**MEDMCQA, "cop": 0})},
        Item("m1", "Not true?", LETTERS, 0),
    ),
    ("medmcqa", "test", {"test.json": lines(MEDMCQA)}, Item("m1", "Not true?", LETTERS, None)),
    (
        "medmcqa",
        "test",
        {"test.json": lines({**MEDMCQA, "cop": -1})},
        Item("m1", "Not true?", LETTERS, None),
    ),
    (
        "medmcqa",
        "dev",
        {"benchmark.json": MIRAGE},
        Item("m1", "Not true?", tuple(SIDES.values()), 3),
    ),
    (
        "mmlu",
        "train",
        {"dev/anatomy_dev.csv": '"What, \nthen?",a,b,"c, d",e,C\n'},
        Item("anatomy-train-000", "What, \nthen?", ("a", "b", "c, d", "e"), 2, subject="anatomy"),
    ),
    (
        "mmlu",
        "test",
        {"benchmark.json": MIRAGE},
        Item("anatomy-test-001", "What?", tuple(SIDES.values()), 0, subject="anatomy"),
    ),
    ("pubmedqa", "test", {"pubmedqa_hf/test.json": lines(PAIR)}, SO),
    (
        "pubmedqa",
        "dev",
        {
            "pqal_fold0/dev_set.json": json.dumps(
                {
                    "12377809": {
                        "QUESTION": "Is it so?",
                        "CONTEXTS": ["It ", "", "may."],
                        "LONG_ANSWER": "Perhaps.",
                        "final_decision": "maybe",
                    }
                },
                indent=4,
            )
        },
        SO,
    ),
    (
        "bioasq",
        "test",
        {"Task13B/13B2_golden.json": json.dumps({"questions": [BIOASQ, LISTS]})},
        Item(HEX, GENE.question, GENE.options, 1, GENE.context, subject="13B", pmids=(77,)),
    ),
    (
        "bioasq",
        "train",
        {"BioASQ-training11b.json": json.dumps({"questions": [BIOASQ]})},
        Item(HEX, GENE.question, GENE.options, 1, GENE.context, pmids=(77,)),
    ),
    (
        "bioasq",
        "dev",
        {"BioASQ/dev.tsv": f"{HEX}_001\tIs it a gene?\tA gene was found. Twice.\tyes\n"},
        Item(f"{HEX}_001", GENE.question, GENE.options, 1, GENE.context),
    ),
    (
        "bioasq",
        "dev",
        {
            "bioasq_hf/dev.json": lines(
                {
                    "id": HEX,
                    "sentence1": GENE.question,
                    "sentence2": GENE.context,
                    "label": "yes",
                }
            )
        },
        GENE,
    ),
    (
        "meqsum",
        "test",
        {"test.source": " My\u2028message. \n", "test.target": "What is it?\n"},
        Item("test-00000", "My\u2028message.", answer="What is it?"),
    ),
    (
        "meqsum",
        "train",
        {"MeQSum_x.xlsx": table(("File", "CHQ", "Summary"), ("1.txt", "My message.", "What?"))},
        Item("1.txt", "My message.", answer="What?"),
    ),
    (
        "medquad",
        "train",
        {"1_CancerGov_QA/0000001_1.xml": TOPIC},
        Item(
            "1_CancerGov_QA/0000001_1/1",
            "How is it treated ?",
            answer="Rest.\nMuch water.\nSleep.",
            subject="treatment",
        ),
    ),
]
