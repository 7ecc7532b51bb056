"""Every data set that its owners publish is read with the counts they publish."""

import collections
import json

import pytest

from biomedlm_jax.benchmarks import apart, bioasq, files, medqa, mmlu, pubmedqa
from biomedlm_jax.benchmarks.forms import Asked
from biomedlm_jax.benchmarks.read import BENCHMARKS, read, read_many
from biomedlm_jax.entry import UserError
from tests.conftest import SHARED

QA = SHARED / "qa"
pytestmark = pytest.mark.skipif(not QA.is_dir(), reason=f"{QA} is missing")

# As counted by the keepers of the data.
COUNTS = {
    ("medqa", "dev"): 1_272,
    ("medqa", "test"): 1_273,
    ("medqa5", "dev"): 1_272,
    ("medqa5", "test"): 1_273,
    ("medmcqa", "dev"): 4_183,
    ("mmlu", "train"): 6 * 5,
    ("mmlu", "dev"): 14 + 29 + 16 + 22 + 11 + 31,
    ("mmlu", "test"): 135 + 265 + 144 + 173 + 100 + 272,
    ("pubmedqa", "train"): 450,
    ("pubmedqa", "dev"): 50,
    ("pubmedqa", "test"): 500,
    ("bioasq", "test"): 140 + 152 + 117,
    ("meqsum", "train"): 500,
    ("meqsum", "test"): 500,
    ("medquad", "train"): 16_407,
}
MISSING = {
    ("medqa", "train"): "there is no train split",
    ("medqa5", "train"): "has 1,000 rows, the published train file of medqa5 has 10,178",
    ("medmcqa", "train"): "there is no train split",
    ("medmcqa", "test"): "there is no test split",
    ("bioasq", "train"): "there is no train split",
    ("bioasq", "dev"): "there is no dev split",
}


@pytest.fixture(scope="module")
def splits():
    return {asked: read(asked[0], QA, asked[1]) for asked in COUNTS}


def test_counts(splits):
    assert {asked: len(split.items) for asked, split in splits.items()} == COUNTS
    for asked, split in splits.items():
        no_answer = {"no answer": 47_441 - 16_407} if asked[0] == "medquad" else {}
        assert {why: len(ids) for why, ids in split.skipped.items()} == no_answer
        assert split.notes == ()  # all files are those known by their sha256
        assert (split.benchmark, split.name) == asked
        assert split.kind == BENCHMARKS[asked[0]].kind
        assert len({item.id for item in split.items}) == len(split.items)


@pytest.mark.parametrize(("benchmark", "split"), MISSING)
def test_what_is_not_there_is_told(benchmark, split):
    with pytest.raises(UserError, match=MISSING[benchmark, split]):
        read(benchmark, QA, split)


def test_counts_of_labels_and_subjects(splits):
    def labels(*asked):
        return collections.Counter(item.label for item in splits[asked].items)

    def subjects(*asked):
        return collections.Counter(item.subject for item in splits[asked].items)

    assert labels("medmcqa", "dev") == {0: 1348, 1: 1085, 2: 925, 3: 825}
    assert labels("pubmedqa", "train") == {0: 49, 1: 152, 2: 249}
    assert subjects("bioasq", "test") == {"7B": 140, "8B": 152, "9B": 117}
    assert subjects("mmlu", "test") == {
        "anatomy": 135,
        "clinical_knowledge": 265,
        "college_biology": 144,
        "college_medicine": 173,
        "medical_genetics": 100,
        "professional_medicine": 272,
    }
    assert subjects("mmlu", "dev") == dict(zip(mmlu.SUBJECTS, mmlu.PUBLISHED["dev"], strict=True))
    assert set(mmlu.REPORTED) < set(subjects("mmlu", "train"))
    assert len(subjects("medmcqa", "dev")) == 21
    assert {len(item.options) for item in splits["medqa", "test"].items} == {4}
    assert {len(item.options) for item in splits["medqa5", "test"].items} == {5}


def test_one_item_of_each_in_words(splits):
    medqa_test = splits["medqa", "test"].items[0]
    assert medqa_test.id == "test-00000"
    assert medqa_test.question.startswith("A junior orthopaedic surgery resident is completing")
    assert medqa_test.options[medqa_test.label].startswith("Tell the attending that he cannot")
    assert medqa_test.subject == "step1"
    nerve = splits["medmcqa", "dev"].items[0]
    assert nerve.options[nerve.label].startswith("Impulse through myelinated fibers is slower")
    pubmed = {item.id: item for item in splits["pubmedqa", "dev"].items}["15879722"]
    assert pubmed.question.startswith("Is cytokeratin immunoreactivity useful")
    assert pubmed.context.startswith("Cytokeratin 7/20 staining has been reported")
    assert pubmed.pmids == (15879722,)
    genome = splits["bioasq", "test"].items[0]
    assert genome.context
    assert genome.pmids
    assert splits["meqsum", "test"].items[1].answer == "What are the treatments for claw hand?"
    cancer = {item.id: item for item in splits["medquad", "train"].items}
    leukemia = cancer["1_CancerGov_QA/0000001_1/1"]
    assert leukemia.question == "What is (are) Adult Acute Lymphoblastic Leukemia ?"
    assert leukemia.answer.startswith("Key Points\n- Adult acute lymphoblastic leukemia (ALL) is")
    assert leukemia.subject == "information"


def test_pubmedqa_as_its_official_evaluation_has_it(splits):
    """evaluation.py of the owners takes labels by PMID in the order of the ground truth."""
    truth = json.loads((QA / "pubmedqa/test_ground_truth.json").read_text())
    split = splits["pubmedqa", "test"]
    assert [(item.id, item.options[item.label]) for item in split.items] == list(truth.items())
    counts = collections.Counter(item.options[item.label] for item in split.items)
    assert counts == {"yes": 276, "no": 169, "maybe": 55}
    assert counts.most_common(1)[0][1] / len(split.items) == 0.552
    written = pubmedqa.predictions(split, [pubmedqa.CLASSES.index("yes")] * 499 + [-1])
    assert written.keys() == truth.keys()
    assert list(written.values()) == ["yes"] * 499 + [""]
    labels = [item.label for item in split.items]
    assert pubmedqa.predictions(split, labels) == truth


def test_the_ten_folds_are_the_owners():
    listed = json.loads((QA / "pubmedqa/pqal_splits_pmids.json").read_text())
    labelled = json.loads((QA / "pubmedqa/ori_pqal.json").read_text())
    decisions = {pmid: row["final_decision"] for pmid, row in labelled.items()}
    test, parts = pubmedqa.official_splits(decisions)
    assert set(test) == set(listed["test"])
    for fold, part in enumerate(parts):
        assert set(part) == set(listed[f"fold{fold}"]["dev"])
        assert set(decisions) - set(test) - set(part) == set(listed[f"fold{fold}"]["train"])
    found = [item.id for item in read("pubmedqa", QA, "dev", fold=7).items]
    assert found == parts[7]
    train = [item.id for item in read("pubmedqa", QA, "train", fold=7).items]
    assert train == [pmid for part in (*parts[:7], *parts[8:]) for pmid in part]


def asked_for(benchmark, split):
    known = BENCHMARKS[benchmark]
    return Asked(benchmark, known.kind, split, files.below(QA), known.known)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_the_authors_rows_of_pubmedqa_are_fold_0_word_for_word(split):
    owners, authors = pubmedqa.candidates(asked_for("pubmedqa", split), None)
    assert owners.split.items == authors.split.items


@pytest.mark.parametrize("split", ["dev", "test"])
def test_the_authors_rows_of_medqa_are_the_owners(split):
    owners, authors = medqa.candidates(asked_for("medqa", split), options=4)
    for ours, theirs in zip(owners.split.items, authors.split.items, strict=True):
        assert ours.id == theirs.id
        assert (ours.question, ours.options, ours.label) == (
            theirs.question,
            theirs.options,
            theirs.label,
        )


def test_the_known_files_are_those_that_are_read(splits):
    """Each sha256 in the readers' tables, but of forms that another form wins over."""
    used = {sha256 for split in splits.values() for sha256 in split.files.values()}
    used |= set(read("medqa5", QA, "train", other_version=True).files.values())
    known = {sha256: entry for each in BENCHMARKS.values() for sha256, entry in each.known.items()}
    assert used <= set(known)
    other = {entry.what for sha256, entry in known.items() if sha256 not in used}
    assert other == {
        "the dev split of BioMedLM's authors",
        "the test split of BioMedLM's authors",
        "the train split of BioMedLM's authors",
        "the owners' table",
    }
    there = {file.sha256 for file in files.below(QA) if not file.name.endswith((".md", ".txt"))}
    assert set(known) <= there


def test_a_part_of_the_training_set_is_another_version():
    split = read("medqa5", QA, "train", other_version=True)
    assert len(split.items) == 1_000
    (note,) = split.notes
    assert note.startswith("another version: medqa/selfbiorag_partial_train/DERIVED_train_first")
    assert "1,000 rows, published 10,178" in note
    apart.check_apart(split, read("medqa5", QA, "dev"), read("medqa5", QA, "test"))


def test_published_splits_are_apart(splits):
    for benchmark in ("pubmedqa", "meqsum"):
        others = [split for asked, split in splits.items() if asked[0] == benchmark]
        for split in others:
            apart.check_apart(split, *(other for other in others if other is not split))
    apart.check_apart(splits["medqa", "dev"], splits["medqa", "test"])
    # MMLU's are not: what one subject shows or is chosen by, another asks.
    shown, val, test = (splits["mmlu", name] for name in ("train", "dev", "test"))
    assert apart.overlap(shown, test) == (
        "clinical_knowledge-train-000",
        "clinical_knowledge-train-004",
        "college_medicine-train-000",
        "college_medicine-train-001",
        "college_medicine-train-004",
    )
    assert len(apart.overlap(val, test)) == 14
    assert len(apart.without(shown, test).items) == 25
    # A question that is asked in two years, of other snippets.
    again = collections.Counter(item.question for item in splits["bioasq", "test"].items)
    assert again.most_common(2)[0] == ("Are there negative enhancers?", 2)
    assert again.most_common(2)[1][1] == 1


def test_several_benchmarks_as_one():
    both = read_many("medmcqa+medqa", QA, "dev")
    assert len(both.items) == 4_183 + 1_272
    assert both.items[0].id == "medmcqa/45258d3d-b974-44dd-a161-c3fccbdadd88"
    assert both.items[-1].id == "medqa/dev-01271"
    assert both.benchmark == "medmcqa+medqa"
    assert len(both.files) == 2
    assert read_many("medqa", QA, "dev") == read("medqa", QA, "dev")
    with pytest.raises(UserError, match="medqa5 is multiple_choice \\(5 options\\)"):
        read_many("medmcqa+medqa5", QA, "dev")


def test_years_of_bioasq_that_are_not_known_are_taken(tmp_path):
    """Its batches have no published number of questions but those that were counted."""
    batch = (QA / "bioasq/Task9BGoldenEnriched/9B1_golden.json.gz").read_bytes()
    (tmp_path / "13B1_golden.json.gz").write_bytes(batch)
    split = read("bioasq", tmp_path, "test")
    assert {item.subject for item in split.items} == {"13B"}
    assert len(split.items) == bioasq.BATCHES["9B1"][0]
    assert split.notes == ()
    (tmp_path / "9B2_golden.json.gz").write_bytes(batch)
    with pytest.raises(UserError, match=r"9B2_golden.json.gz has 27 rows, .* has 22; it is"):
        read("bioasq", tmp_path, "test")


def test_meqsum_of_the_owners_table_alone(tmp_path, splits):
    table = next((QA / "consumer_health/meqsum").glob("*.xlsx"))
    (tmp_path / table.name).write_bytes(table.read_bytes())
    split = read("meqsum", tmp_path, "train")
    assert len(split.items) == 1_000
    assert split.notes == ("all pairs that there are, so that none is left to test on",)
    assert split.items[0].id == "1-131188152.xml.txt"
    assert split.items[0].answer == "Who manufactures cetirizine?"
    with pytest.raises(UserError, match="there is no test split of meqsum"):
        read("meqsum", tmp_path, "test")
    found = apart.overlap(split, splits["meqsum", "test"])
    assert len(found) == 500
    assert len(apart.without(split, splits["meqsum", "test"]).items) == 500
