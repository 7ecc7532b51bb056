"""Every form of a benchmark's files is read; what could make a score wrong is refused by name."""

import gzip
import io
import json
import tarfile
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biomedlm_jax.benchmarks import medqa
from biomedlm_jax.benchmarks.forms import Known
from biomedlm_jax.benchmarks.item import Item, Split
from biomedlm_jax.benchmarks.read import read
from biomedlm_jax.entry import UserError

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


@pytest.mark.parametrize(
    ("benchmark", "split", "files", "item"), READ, ids=lambda value: str(value)[:40]
)
def test_forms(tmp_path, benchmark, split, files, item):
    # A neighbour of another benchmark, and what is no benchmark at all, are passed by.
    around = {"LICENSE": b"\xff", "other/dev.json": '{"a": 1}\n', "x.json": "not read"}
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
        ("bioasq", "test", {"test.tsv": "a\tb\tc\tyes\na\tb\n"}, "row 2, .* None is none of no, "),
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


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(), inside, max_size=4),
    max_leaves=6,
)
ROWS = {
    "medqa": ("{}.jsonl", MEDQA),
    "medmcqa": ("{}.json", {**MEDMCQA, "cop": 4}),
    "pubmedqa": ("{}.json", PAIR),
}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_wild_rows_are_items_or_are_refused(tmp_path_factory, data):
    """Whatever stands in a column: a split of good items, or one error that says where."""
    benchmark = data.draw(st.sampled_from(sorted(ROWS)))
    split = data.draw(st.sampled_from(["train", "dev", "test"]))
    name, good = ROWS[benchmark]
    changes = st.dictionaries(st.sampled_from(sorted(good)), json_values, max_size=3)
    rows = [{**good, **change} for change in data.draw(st.lists(changes, max_size=4))]
    files = {name.format(split): lines(good, *rows)}
    check(tmp_path_factory.mktemp("wild"), files, benchmark, split)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(
        [
            ("medqa", "benchmark.json"),
            ("mmlu", "benchmark.json"),
            ("pubmedqa", "benchmark.json"),
            ("bioasq", "benchmark.json"),
            ("bioasq", "7B1_golden.json"),
            ("pubmedqa", "ori_pqal.json"),
            ("pubmedqa", "test_set.json"),
        ]
    ),
    st.data(),
)
def test_wild_tables_are_items_or_are_refused(tmp_path_factory, form, data):
    benchmark, name = form
    whole = {
        "benchmark.json": {"questions": [], **json.loads(MIRAGE)},
        "7B1_golden.json": {"questions": [BIOASQ]},
        "ori_pqal.json": {"12": {"QUESTION": "q", "CONTEXTS": ["c"], "final_decision": "yes"}},
        "test_set.json": {"12": {"QUESTION": "q", "CONTEXTS": ["c"], "final_decision": "yes"}},
    }[name]
    place = whole = json.loads(json.dumps(whole))  # somewhere in it, something else
    for _ in range(data.draw(st.integers(0, 3))):
        keys = range(len(place)) if isinstance(place, list) else sorted(place)
        inside = [key for key in keys if isinstance(place[key], dict | list) and place[key]]
        if not inside:
            break
        place = place[data.draw(st.sampled_from(inside))]
    keys = list(range(len(place))) if isinstance(place, list) else sorted(place)
    if keys:
        place[data.draw(st.sampled_from(keys))] = data.draw(json_values)
    check(tmp_path_factory.mktemp("wild"), {name: json.dumps(whole)}, benchmark, "test")


def check(folder, files, benchmark, split):
    try:
        found = other(folder, files, benchmark, split)
    except UserError:
        return
    assert isinstance(found, Split)
    assert found.sha256
    for item in found.items:
        assert item.question == item.question.strip() != ""
        assert len(item.options) >= 2
        assert all(item.options)
        assert item.label is None or 0 <= item.label < len(item.options)
        assert item.label is not None or (benchmark, split) == ("medmcqa", "test")
    assert len({item.id for item in found.items}) == len(found.items)


WHOLE = {  # of each benchmark, files as they are, to be damaged
    "medqa": {"dev.jsonl.gz": gzip.compress(lines(MEDQA).encode())},
    "mmlu": {"anatomy_val.csv": b'What?,"a",b,c,d,A\n'},
    "bioasq": {"dev.tsv": f"{HEX}\tIs it?\tIt is.\tyes\n".encode()},
    "meqsum": {"MeQSum.xlsx": table(("File", "CHQ", "Summary"), ("1.txt", "My message.", "So?"))},
    "medquad": {"MedQuAD.tar.gz": archive({"1_X_QA/1.xml": TOPIC})},
}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_damage_anywhere_is_told(tmp_path_factory, benchmark, data):
    """Bytes that are changed or cut off: items as before or others, or one error; no traceback."""
    ((name, whole),) = WHOLE[benchmark].items()
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    folder = tmp_path_factory.mktemp("damaged")
    (folder / name).write_bytes(content)
    split = "train" if benchmark in ("meqsum", "medquad") else "dev"
    try:
        found = read(benchmark, folder, split, other_version=True)
    except UserError as error:
        assert name in str(error) or "there is no" in str(error)  # noqa: PT017
        return
    assert found.items
