"""Every form of a benchmark's files is read, and two that lie side by side must say the same."""

import json

import pytest

from biomedlm_jax.benchmarks.read import read
from biomedlm_jax.entry import UserError
from tests.benchmark_files import (
    BIOASQ,
    ENDINGS,
    HEX,
    MEDMCQA,
    MEDQA,
    MIRAGE,
    READ,
    TOPIC,
    archive,
    lines,
    other,
    write,
)


@pytest.mark.parametrize(
    ("benchmark", "split", "files", "item"), READ, ids=lambda value: str(value)[:40]
)
def test_forms(tmp_path, benchmark, split, files, item):
    # A neighbour of another benchmark, and what is no benchmark at all, are passed by.
    around = {"LICENSE": b"\xff", "US/._dev.jsonl": b"\0", ".git/dev.json": b"\0"}
    around |= {"other/dev.json": '{"a": 1}\n', "x.json": "not read"}
    found = other(tmp_path, {**around, **files}, benchmark, split)
    assert found.items == (item,)
    assert list(found.files) == list(files) or benchmark == "medquad"


def test_what_mirage_leaves_out_is_noted(tmp_path):
    for benchmark in ("pubmedqa", "bioasq"):
        found = other(tmp_path, {"benchmark.json": MIRAGE}, benchmark, "test")
        assert found.items[0].context == ""
        assert found.notes[-1] == "questions without their contexts, as MIRAGE has them"


def test_medquad_is_the_same_packed_and_unpacked(tmp_path):
    names = ("MedQuAD/1_CancerGov_QA/0000001_1.xml", "MedQuAD/8_NHLBI_QA_XML/0000002.xml")
    topics = dict.fromkeys(names, TOPIC)
    packed = write(tmp_path / "packed", {})
    packed.mkdir()
    (packed / "MedQuAD.tar.gz").write_bytes(archive({**topics, "MedQuAD/readme.txt": "words"}))
    one = read("medquad", packed, "train", other_version=True)
    two = other(tmp_path / "unpacked", topics, "medquad", "train")
    assert one.items == two.items
    assert len(one.items) == 2
    assert [len(ids) for ids in one.skipped.values()] == [2]
    assert two.files.keys() == {"MedQuAD/"}


def test_two_forms_must_say_the_same(tmp_path):
    same = {"US/dev.jsonl": lines(MEDQA), "hf/dev.json": lines(ENDINGS)}
    found = other(tmp_path, same, "medqa", "dev")
    assert list(found.files) == ["US/dev.jsonl"]  # the owners' first
    wrong = {"hf/dev.json": lines({**ENDINGS, "label": 2})}
    with pytest.raises(UserError) as caught:
        other(tmp_path, wrong, "medqa", "dev")
    for part in ("US/dev.jsonl", "hf/dev.json", "'which drug?'", "keep one of them"):
        assert part in str(caught.value)


def test_examinations_of_other_countries_are_passed_by(tmp_path):
    files = {f"questions/{land}/dev.jsonl": lines(MEDQA) for land in ("US", "Taiwan", "Mainland")}
    files["questions/Taiwan/dev.jsonl"] = lines({**MEDQA, "question": "Other?"})
    assert list(other(tmp_path, files, "medqa", "dev").files) == ["questions/US/dev.jsonl"]


def test_a_question_of_two_batches_is_kept_once(tmp_path):
    content = json.dumps({"questions": [BIOASQ]})
    files = {"7B1_golden.json": content, "8B1_golden.json": content}
    found = other(tmp_path, files, "bioasq", "test")
    assert [item.subject for item in found.items] == ["7B"]
    assert found.skipped == {"the same item again": [HEX]}
    changed = json.dumps({"questions": [{**BIOASQ, "exact_answer": "no"}]})
    with pytest.raises(UserError, match=r"8B1_golden.json, row 1, has the id"):
        other(tmp_path, {"8B1_golden.json": changed}, "bioasq", "test")


@pytest.mark.parametrize(
    ("cops", "first"),
    [([1, 4], 1), ([0, 3], 0), (["1", "4"], 1), ([0, 4], None), ([1, 2, 3], None), ([4, 5], None)],
)
def test_what_cop_counts_from(tmp_path, cops, first):
    rows = [{**MEDMCQA, "id": f"m{n}", "cop": cop} for n, cop in enumerate(cops)]
    files = {"dev.json": lines(*rows)}
    if first is None:
        with pytest.raises(UserError, match="it can not be told what cop counts from"):
            other(tmp_path, files, "medmcqa", "dev")
    else:
        found = other(tmp_path, files, "medmcqa", "dev")
        assert [item.label for item in found.items] == [int(cop) - first for cop in cops]
