"""What others have published on the same benchmarks: every number of the BioMedLM paper's results
and of what was said of the model since, as data.

Values are in per cent unless `measure` says otherwise. The numbers of a system were got in its own
way (few examples in the prompt, none, or fine-tuning), so they compare with care.
"""

from collections.abc import Iterator
from typing import NamedTuple

PAPER = "Bolton et al. 2024"  # arXiv 2403.18421
RELEASE = "release of December 2022"  # of BioMedLM, as the Med-PaLM paper quotes it
SINCE = f"{PAPER}, section 7"

TEST = "test"
TEST_OR_DEV = "test or dev"  # MedMCQA: the table's head says test, abstract and introduction dev
UNSAID = ""


class Published(NamedTuple):
    """parameters, method: as published, in another table where the value's own leaves them out; ""
    where none says. subject: of MMLU. split: "" where it is not said. measure: of the value."""

    system: str
    parameters: str
    method: str
    benchmark: str
    subject: str
    split: str
    measure: str
    value: float
    source: str

    @property
    def authors(self) -> bool:
        """Whether it is the model that this project builds again."""
        return self.system in ("BioMedLM", "PubMedGPT")


FEW, ZERO, TUNED = "few-shot", "zero-shot", "fine-tuned"
_ACCURACY = {  # by table of the paper: benchmark, split, (system, parameters, method, value)
    "table 7": ("medmcqa", TEST_OR_DEV, (
        ("GPT-4", "", FEW, 72.4),
        ("Flan-PaLM", "540B", FEW, 57.6),
        ("BioMedLM", "2.7B", TUNED, 57.3),
        ("Galactica", "120B", ZERO, 52.9),
        ("GPT-3.5", "175B", FEW, 51.0),
    )),
    "table 8": ("medqa", TEST, (
        ("Med-PaLM 2", "", FEW, 85.4),
        ("GPT-4", "", FEW, 81.4),
        ("Flan-PaLM", "540B", FEW, 67.2),
        ("BioMedLM", "2.7B", "fine-tuned, with MedMCQA", 54.7),
        ("GPT-3.5", "175B", FEW, 53.6),
        ("BioMedLM", "2.7B", TUNED, 50.3),
        ("DRAGON", "360M", TUNED, 47.5),
        ("BioLinkBERT", "340M", TUNED, 45.1),
        ("Galactica", "120B", ZERO, 44.4),
        ("GPT-Neo", "2.7B", TUNED, 37.7),
    )),
    "table 10": ("pubmedqa", TEST, (
        ("BioGPT", "1.5B", "fine-tuned, with more data", 81.0),
        ("Flan-PaLM", "540B", FEW, 79.0),
        ("Galactica", "120B", ZERO, 77.6),
        ("GPT-4", "", ZERO, 75.2),
        ("BioMedLM", "2.7B", TUNED, 74.4),
        ("DRAGON", "360M", TUNED, 73.4),
        ("BioLinkBERT", "340M", TUNED, 72.4),
        ("GPT-Neo", "2.7B", TUNED, 66.1),
    )),
    "table 11": ("bioasq", TEST, (
        ("DRAGON", "360M", TUNED, 96.4),
        ("BioMedLM", "2.7B", TUNED, 95.7),
        ("BioLinkBERT", "340M", TUNED, 94.9),
        ("Galactica", "120B", ZERO, 94.3),
        ("GPT-Neo", "2.7B", TUNED, 67.1),
    )),
    "table 4": ("medqa", TEST, (
        ("Small model, BioMedLM's tokenizer", "125M", "mean of 5 seeds", 34.98),
        ("Small model, GPT-2's tokenizer", "125M", "mean of 5 seeds", 33.05),
    )),
}  # fmt: skip
_MMLU_SUBJECTS = ("clinical_knowledge", "professional_medicine", "college_biology",
                  "medical_genetics")  # fmt: skip
_MMLU = (  # table 9
    ("GPT-4", "", FEW, (86.4, 93.8, 93.8, 92.0)),
    ("Flan-PaLM", "540B", FEW, (80.4, 83.8, 88.9, 75.0)),
    ("GPT-3.5", "175B", ZERO, (69.8, 70.2, 72.2, 70.0)),
    ("Galactica", "120B", ZERO, (59.2, 59.6, 68.8, 70.0)),
    ("BioMedLM", "2.7B", "fine-tuned on MedMCQA and MedQA", (59.6, 63.1, 60.7, 69.0)),
)
_RELEASE = (  # MedQA
    ("PubMedGPT", "2.7B", 50.3),
    ("DRAGON", "360M", 47.5),
    ("BioLinkBERT", "340M", 45.1),
    ("Galactica", "120B", 44.4),
    ("PubMedBERT", "100M", 38.1),
    ("GPT-Neo", "2.7B", 33.3),
)
_SINCE = (  # system, method, benchmark, measure, value, source
    ("BioMedLM", TUNED, "jnlpba and ncbi disease", "micro-F1, %", 81.31, "Deusser et al. 2023"),
    ("BioMedLM", UNSAID, "string task 2", "micro-F1", 0.643, "Park et al. 2023"),
    ("BioMedLM", TUNED, "microbiome and disease", "precision", 0.822, "Karkera et al. 2023"),
    ("BioMedLM", TUNED, "microbiome and disease", "accuracy", 0.806, "Karkera et al. 2023"),
    ("GPT-3", UNSAID, "microbiome and disease", "precision", 0.810, "Karkera et al. 2023"),
    ("GPT-3", UNSAID, "microbiome and disease", "accuracy", 0.814, "Karkera et al. 2023"),
    ("BioGPT", UNSAID, "microbiome and disease", "accuracy", 0.732, "Karkera et al. 2023"),
)

NOTES = {  # by benchmark: where the paper contradicts itself, or leaves open what was measured
    "medmcqa": (
        "The paper gives 57.3 in its table and abstract, 57.4 in the introduction and 57.38 in the "
        "analysis; the table says test, abstract and introduction say dev.",
    ),
    "medqa": (
        "BioMedLM with MedMCQA is 54.7 in the table and abstract, 54.1 in the analysis. Whether it "
        "was trained on both together or on one after the other is not said.",
        "GPT-Neo 2.7B is 33.3 in the release of December 2022 and 37.7 in the paper.",
    ),
    "mmlu": (
        "Medical genetics is 69.0 in the table, 70.0 in introduction and analysis; professional "
        "medicine 63.1 in the table, 61.76 in the analysis; college biology 60.7 in the table, "
        "57.64 in the analysis, which calls it the worst subject, while the table's lowest is "
        "clinical knowledge with 59.6.",
        "Anatomy and college medicine are not reported.",
    ),
    "bioasq": (
        "The text says 27 points more than GPT-Neo 2.7B; the tables' numbers differ by 28.6.",
    ),
}


def _rows() -> Iterator[Published]:
    for table, (benchmark, split, rows) in _ACCURACY.items():
        for system, parameters, method, value in rows:
            source = f"{PAPER}, {table}"
            yield Published(system, parameters, method, benchmark, "", split, "accuracy, %",
                            value, source)  # fmt: skip
    for system, parameters, method, values in _MMLU:
        for subject, value in zip(_MMLU_SUBJECTS, values, strict=True):
            yield Published(system, parameters, method, "mmlu", subject, TEST, "accuracy, %",
                            value, f"{PAPER}, table 9")  # fmt: skip
    for system, parameters, value in _RELEASE:
        method = ZERO if system == "Galactica" else TUNED
        yield Published(system, parameters, method, "medqa", "", TEST, "accuracy, %", value,
                        RELEASE)  # fmt: skip
    for system, method, benchmark, measure, value, source in _SINCE:
        yield Published(system, "", method, benchmark, "", UNSAID, measure, value,
                        f"{source}, in {SINCE}")  # fmt: skip
    yield Published("Mistral", "7B", UNSAID, "medqa", "", UNSAID, "accuracy, %", 63.0,
                    "arXiv 2404.15894, abstract")  # fmt: skip


PUBLISHED = tuple(_rows())


def on(benchmark: str, subject: str = "") -> list[Published]:
    """What was published of a benchmark, or of a subject of it, the best first. A number that the
    older table has as well is given once, from the paper."""
    rows = [row for row in PUBLISHED if (row.benchmark, row.subject) == (benchmark, subject)]
    names = {"PubMedGPT": "BioMedLM"}
    seen: set[tuple[str, float]] = set()
    found = []
    for row in rows:
        key = (names.get(row.system, row.system), row.value)
        if key not in seen:
            seen.add(key)
            found.append(row)
    return sorted(found, key=lambda row: (-row.value, row.system))
