"""What could make a score wrong is refused by name: bad rows, versions, splits, damage."""

import gzip
import json

import pytest

from biomedlm_jax.benchmarks import medqa
from biomedlm_jax.benchmarks.forms import Known
from biomedlm_jax.benchmarks.read import read
from biomedlm_jax.entry import UserError
from tests.benchmark_files import (
    ENDINGS,
    MEDMCQA,
    MEDQA,
    PAIR,
    SIDES,
    lines,
    other,
    table,
    write,
)

# What is refused. In a training split, a bad row is left out and counted.

FILES = {"medqa": "{}.jsonl", "medmcqa": "{}.json", "pubmedqa": "{}.json"}
BAD_ROWS = [
    ("medqa", {**MEDQA, "question": "  "}, "an empty question"),
    ("medqa", {**MEDQA, "options": {**SIDES, "D": ""}}, "an empty option"),
    ("medqa", {**MEDQA, "options": {"A": "x", "B": "Ceftriaxone"}}, "2 options, not 4"),
    ("medqa", {**MEDQA, "options": {**SIDES, "F": "x"}}, "options that are not A, B, ..."),
    ("medqa", {**MEDQA, "answer_idx": "E"}, "a label out of range: 'E'"),
    ("medqa", {**MEDQA, "answer_idx": "BC"}, "a label out of range: 'BC'"),
    ("medqa", {**MEDQA, "answer": "None"}, "an answer that is not the option of its letter"),
    ("medqa", {**MEDQA, "question": "\ud800"}, "half of a character, as \\ud800 is"),
    ("medqa", {"question": "Which?"}, "options that are not A, B, ..."),
    ("medmcqa", {**MEDMCQA, "id": "m2"}, "no label"),
    ("medmcqa", {**MEDMCQA, "cop": 1, "opd": None}, "no text in 'opd'"),
    ("medmcqa", {**MEDMCQA, "cop": 1, "id": ""}, "an empty id"),
    ("pubmedqa", {**PAIR, "label": "perhaps"}, "'perhaps' is none of maybe, no, yes"),
    ("pubmedqa", {**PAIR, "sentence2": ""}, "an empty context"),
    ("pubmedqa", {**PAIR, "id": "x7"}, "the id 'x7', which is no PMID"),
]
GOOD = {
    "medqa": MEDQA,
    "medmcqa": {**MEDMCQA, "cop": 4},
    "pubmedqa": PAIR,
}


@pytest.mark.parametrize(("benchmark", "row", "reason"), BAD_ROWS)
def test_rows_that_are_no_items(tmp_path, benchmark, row, reason):
    name = FILES[benchmark]
    found = other(tmp_path, {name.format("train"): lines(GOOD[benchmark], row)}, benchmark, "train")
    assert found.skipped == {reason: [f"{name.format('train')}, row 2"]}
    assert len(found.items) == 1
    with pytest.raises(UserError) as caught:
        other(tmp_path, {name.format("test"): lines(GOOD[benchmark], row)}, benchmark, "test")
    assert f"{name.format('test')}, row 2, is no item of {benchmark}: {reason}" in str(caught.value)
    assert "nothing is left out of it" in str(caught.value)


def test_an_id_that_comes_twice(tmp_path):
    files = {"train.json": lines(GOOD["medmcqa"], GOOD["medmcqa"])}
    found = other(tmp_path, files, "medmcqa", "train")
    assert found.skipped == {"the same item again": ["m1"]}
    changed = {**GOOD["medmcqa"], "question": "Or true?"}
    with pytest.raises(UserError, match="row 2, has the id 'm1' of another item of the train spl"):
        other(tmp_path, {"train.json": lines(GOOD["medmcqa"], changed)}, "medmcqa", "train")


def test_other_versions(tmp_path):
    """Another number of rows needs a word; the published number with other bytes is noted."""
    write(tmp_path, {"dev.jsonl": lines(MEDQA)})
    with pytest.raises(UserError) as caught:
        read("medqa", tmp_path, "dev")
    for part in ("dev.jsonl has 1 rows", "published dev file of medqa has 1,272", "other_version="):
        assert part in str(caught.value)
    found = read("medqa", tmp_path, "dev", other_version=True)
    assert found.notes == ("another version: dev.jsonl has 1 rows, published 1,272",)
    rows = [{**MEDQA, "question": f"Which of {n}?"} for n in range(medqa.PUBLISHED["dev"])]
    write(tmp_path, {"dev.jsonl": lines(*rows)})
    (note,) = read("medqa", tmp_path, "dev").notes
    assert note == "dev.jsonl has the published 1,272 rows; its bytes were not seen before"


def test_a_file_of_another_split_than_its_name(tmp_path, monkeypatch):
    content = lines(MEDQA)
    write(tmp_path, {"dev.jsonl": content})
    sha256 = next(iter(read("medqa", tmp_path, "dev", other_version=True).files.values()))
    monkeypatch.setitem(medqa.KNOWN, sha256, Known("the owners' test split", "test", 1))
    with pytest.raises(UserError, match=r"dev.jsonl is named for the dev split .* test split"):
        read("medqa", tmp_path, "dev", other_version=True)
    wrong = lines({**ENDINGS, "id": "test-00000"})
    with pytest.raises(UserError, match=r"row 1 is 'test-00000', of another split"):
        other(tmp_path / "hf", {"dev.json": wrong}, "medqa", "dev")


def test_mmlu_without_a_subject(tmp_path):
    write(tmp_path, {"anatomy_val.csv": "What?,a,b,c,d,A\n" * 14})
    with pytest.raises(UserError, match=r"clinical_knowledge, professional_med.* is missing"):
        read("mmlu", tmp_path, "dev")
    notes = read("mmlu", tmp_path, "dev", other_version=True).notes
    assert notes[-1].startswith("another version: without clinical_knowledge, professional_med")
    write(tmp_path, {"again/anatomy_val.csv": "What?,a,b,c,d,B\n" * 14})
    with pytest.raises(UserError, match=r"again/anatomy_val.csv and anatomy_val.csv differ"):
        read("mmlu", tmp_path, "dev", other_version=True)


def test_ground_truth_of_another_version(tmp_path):
    decisions = ["yes"] * 60 + ["no"] * 40 + ["maybe"] * 20
    items = {
        str(pmid): {"QUESTION": "So?", "CONTEXTS": ["It may."], "final_decision": decision}
        for pmid, decision in enumerate(decisions, start=100)
    }
    files = {"ori_pqal.json": json.dumps(items)}
    found = other(tmp_path, files, "pubmedqa", "test")
    truth = {item.id: item.options[item.label] for item in found.items}
    assert len(truth) == 60
    assert found.notes == ("another version: ori_pqal.json has 120 rows, published 1,000",)
    other(tmp_path, {"test_ground_truth.json": json.dumps(truth)}, "pubmedqa", "test")
    truth[found.items[0].id] = "perhaps"
    with pytest.raises(UserError, match=r"test_ground_truth.json has other items or labels"):
        other(tmp_path, {"test_ground_truth.json": json.dumps(truth)}, "pubmedqa", "test")
    del items["100"]["final_decision"]
    with pytest.raises(UserError, match="'100' has no PMID and final_decision"):
        other(tmp_path, {"ori_pqal.json": json.dumps(items)}, "pubmedqa", "test")
    few = dict(list(items.items())[1:13])
    with pytest.raises(UserError, match="has 12 items, too few"):
        other(tmp_path, {"ori_pqal.json": json.dumps(few)}, "pubmedqa", "dev")


@pytest.mark.parametrize(
    ("benchmark", "split", "files", "message"),
    [
        ("medqa", "dev", {"dev.jsonl": lines(MEDQA)[:-30]}, "dev.jsonl is damaged: line 1 is no J"),
        ("medqa", "dev", {"dev.jsonl": lines(MEDQA, MEDQA)[:-30]}, "line 2 is no JSON"),
        ("medqa", "dev", {"dev.jsonl": b'{"question": "\xff"}'}, "it is not UTF-8"),
        ("medqa", "dev", {"dev.jsonl": ""}, "there is no dev split of medqa"),
        ("medqa", "dev", {"dev.jsonl": "[" * 100_000}, "is no JSON"),
        ("medqa", "dev", {"questions.jsonl": lines(MEDQA)}, "its files are phrases_no_exclude"),
        ("medqa", "train", {"train.jsonl": lines({**MEDQA, "question": ""})}, "not one row is an"),
        ("medmcqa", "test", {"test.json": lines(MEDMCQA, {**MEDMCQA, "cop": 4})}, "no label"),
        ("mmlu", "test", {"anatomy_test.csv": "q,a,b,c,A\n"}, "row 1, .* 5 columns, not 6"),
        ("mmlu", "test", {"anatomy_test.csv": "q,a,b,c,d,E\n"}, "a label out of range: 'E'"),
        ("mmlu", "test", {"anatomy_test.csv": 'q,"a'}, "it is no table"),
        ("pubmedqa", "test", {"ori_pqal.json": "{}"}, "it holds no item"),
        ("pubmedqa", "test", {"ori_pqal.json": '{"1": '}, "ori_pqal.json is damaged: .* no JSON"),
        ("bioasq", "test", {"7B1_golden.json": '{"a": 1}'}, 'no list of "questions"'),
        ("bioasq", "test", {"test.tsv": "a\tb\tc\tyes\na\tb\n"}, "row 2, .* 2 columns, not 4"),
        ("bioasq", "test", {"test.tsv": 'a\tb\tc\tyes\na\t"' + "b" * 140_000}, "it is no table"),
        ("meqsum", "test", {"test.source": "a\nb\n", "test.target": "a\n"}, "2 lines and test.t"),
        ("meqsum", "test", {"test.source": "a\n"}, "test.source has no test.target beside it"),
        ("meqsum", "train", {"meqsum.xlsx": b"PK"}, "it is no table of Excel"),
        ("meqsum", "train", {"meqsum.xlsx": table(("File", "Q"))}, r"columns are \['File', 'Q'\]"),
        (
            "meqsum",
            "train",
            {
                "train.source": "a\n",
                "train.target": "b\n",
                "meqsum.xlsx": table(("File", "CHQ", "Summary"), ("1", "aa", "bb")),
            },
            "train-00000 of the authors' lines .* is not in meqsum.xlsx",
        ),
        ("medquad", "train", {"MedQuAD.tar.gz": b"\0" * 10}, "it is no archive, or cut"),
        ("medquad", "train", {"1_X_QA/1.xml": "<a>"}, "1_X_QA/1.xml is no XML"),
    ],
)
def test_damaged_files(tmp_path, benchmark, split, files, message):
    with pytest.raises(UserError, match=message):
        other(tmp_path, files, benchmark, split)


def test_a_cut_archive(tmp_path):
    (tmp_path / "dev.jsonl.gz").write_bytes(gzip.compress(lines(MEDQA).encode())[:40])
    with pytest.raises(UserError, match=r"dev.jsonl.gz is damaged: EOFError"):
        read("medqa", tmp_path, "dev")


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        (("medqq", "test"), {}, "there is no benchmark 'medqq'; .*; is 'medqa' meant?"),
        (("medqa", "val"), {}, "medqa has no 'val' split; its owners publish train, dev, test"),
        (("medquad", "test"), {}, "medquad has no 'test' split; its owners publish train"),
        (("meqsum", "dev"), {}, "meqsum has no 'dev' split"),
        (("pubmedqa", "dev"), {"fold": 10}, "fold=10 of pubmedqa; its folds are 0 to 9"),
        (("medqa", "dev"), {"fold": 0}, "fold=0 of medqa; its folds are none"),
    ],
)
def test_what_can_not_be_asked_for(tmp_path, asked, options, message):
    with pytest.raises(UserError, match=message):
        read(asked[0], tmp_path, asked[1], **options)
    with pytest.raises(UserError, match="is no folder"):
        read("medqa", tmp_path / "none", "test")
