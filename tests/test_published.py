"""The published numbers, and ours among them."""

import collections

import pytest

from biomedlm_jax.scoring import beside, published, record
from biomedlm_jax.scoring.beside import AUTHORS, OTHERS, OURS
from tests import scored as small


def records(*answers):
    return [record.record(each, None) for each in answers]


def test_every_table_of_the_paper_is_there():
    counted = collections.Counter(row.source for row in published.PUBLISHED)
    tables = {"table 7": 5, "table 8": 10, "table 9": 20, "table 10": 8, "table 11": 5,
              "table 4": 2}  # fmt: skip
    assert {
        f"{published.PAPER}, {name}": n for name, n in tables.items()
    }.items() <= counted.items()
    assert counted[published.RELEASE] == 6
    assert sum(counted.values()) == 50 + 6 + 8


@pytest.mark.parametrize(
    ("benchmark", "subject", "value", "how"),
    [
        ("medmcqa", "", 57.3, "fine-tuned"),
        ("medqa", "", 54.7, "fine-tuned, with MedMCQA"),
        ("pubmedqa", "", 74.4, "fine-tuned"),
        ("bioasq", "", 95.7, "fine-tuned"),
        ("mmlu", "college_biology", 60.7, "fine-tuned on MedMCQA and MedQA"),
    ],
)
def test_the_authors_best(benchmark, subject, value, how):
    best = next(row for row in published.on(benchmark, subject) if row.authors)
    assert (best.value, best.method, best.parameters) == (value, how, "2.7B")


def test_a_number_of_both_tables_is_given_once_and_one_that_moved_twice():
    rows = published.on("medqa")
    assert [row.value for row in rows] == sorted((row.value for row in rows), reverse=True)
    values = [(row.system, row.value) for row in rows]
    assert values.count(("BioMedLM", 50.3)) == 1
    assert ("PubMedGPT", 50.3) not in values
    assert {value for name, value in values if name == "GPT-Neo"} == {33.3, 37.7}
    assert ("PubMedBERT", 38.1) in values


def test_values_are_what_they_are_said_to_be():
    for row in published.PUBLISHED:
        assert 0 < row.value < (100 if row.measure.endswith("%") else 1), row
        assert row.split in ("test", "test or dev", "")
    assert published.NOTES.keys() <= beside.TITLES.keys()


def test_ours_stand_where_they_belong():
    """50 of 80 are 62.5, between Flan-PaLM and BioMedLM with MedMCQA."""
    split = small.choice([0] * 80)
    (contest,) = beside.contests(records(small.choosing(split, [0] * 50 + [1] * 30, "letters")))
    names = [row.name for row in contest.rows]
    assert names[3:6] == [
        "Mistral 7B",
        "tuned at step 500, letters",
        "BioMedLM 2.7B, fine-tuned, with MedMCQA",
    ]
    ours = contest.rows[4]
    assert (ours.value, ours.parameters, ours.split) == (0.625, "2.6B", "test")
    assert ours.interval.of == 80
    assert (ours.contaminated, ours.clean) == (None, None)
    assert contest.baselines == {"test": (0.25, 1.0)}
    assert {row.who for row in contest.rows} == {OURS, AUTHORS, OTHERS}


def test_seeds_become_their_mean():
    split = small.classified(["yes"] * 4)
    answers = [
        small.choosing(split, [2] * right + [0] * (4 - right), seed=seed, place=f"runs/s{seed}")
        for seed, right in ((1, 2), (2, 3), (3, 4))
    ]
    (contest,) = beside.contests(records(*answers))
    (row,) = (row for row in contest.rows if row.who == OURS)
    assert (row.system, row.how) == ("3 checkpoints", "classifier, mean of 3 seeds")
    assert row.value == pytest.approx(0.75)
    assert row.interval.high - row.value == pytest.approx(4.3027 * 0.25 / 3**0.5, abs=1e-4)
    assert row.interval.of == 4
    (single,) = beside.contests(records(answers[0]))
    assert {row.how for row in single.rows if row.who == OURS} == {"classifier, seed 1"}


def test_mmlu_is_one_contest_a_subject():
    split = small.choice([0, 1, 2], subjects=["anatomy", "college_biology", "anatomy"],
                         benchmark="mmlu")  # fmt: skip
    found = beside.contests(records(small.choosing(split, [0, 0, 2])))
    assert [each.title for each in found] == [
        "MMLU, medical subjects",
        "MMLU, anatomy",
        "MMLU, clinical knowledge",
        "MMLU, college biology",
        "MMLU, medical genetics",
        "MMLU, professional medicine",
    ]
    ours = {each.subject: row.value for each in found for row in each.rows if row.who == OURS}
    assert ours == {"": pytest.approx(2 / 3), "anatomy": 1, "college_biology": 0}


def test_a_benchmark_that_nobody_published_stands_behind_the_others():
    splits = [small.choice([0], benchmark=name) for name in ("zebra", "medmcqa")]
    found = beside.contests(records(*(small.choosing(split, [0]) for split in splits)))
    assert [each.title for each in found] == ["MedMCQA", "zebra"]
    assert [row.who for row in found[1].rows] == [OURS]
