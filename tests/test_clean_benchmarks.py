"""Test sets are read as their owners publish them, and each item is found in a corpus."""

import gzip
import json
import random

import numpy as np
import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline import passages, words
from data.cleaning import benchmarks, contamination
from tests.conftest import SHARED

needs_real = pytest.mark.skipif(not (SHARED / "qa").is_dir(), reason=f"{SHARED}/qa is missing")

VIGNETTE = (
    "A 21-year-old man has had fever, pain during urination, and swelling of the right knee for "
    "three days; which drug is given?"
)
MEDQA = {
    "question": VIGNETTE,
    "options": {"A": "Gentamicin", "B": "Ceftriaxone"},
    "answer_idx": "B",
}
PUBMEDQA = {
    "QUESTION": "Do mitochondria play a role in remodelling lace plant leaves?",
    "CONTEXTS": ["Programmed cell death is the regulated death of cells within an organism. " * 2],
    "LONG_ANSWER": "They do.",
    "final_decision": "yes",
}


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


FORMS = {
    "ori_pqal.json": json.dumps({"11": PUBMEDQA, "12": PUBMEDQA, "13": PUBMEDQA}, indent=1),
    "test_ground_truth.json": json.dumps({"12": "no"}),
    "pqal_splits_pmids.json": json.dumps(
        {"test": ["12"], "fold0": {"train": ["11"], "dev": ["13"]}}
    ),
    "pubmedqa/train.json": lines({"id": "11", "sentence1": "q", "sentence2": "c", "label": "no"}),
    "7B1_golden.json": json.dumps(
        {
            "questions": [
                {
                    "id": "5b",
                    "body": "Which gene is mutated?",
                    "documents": ["http://www.ncbi.nlm.nih.gov/pubmed/77"],
                    "snippets": [{"text": "Mutations of the gene were found."}],
                }
            ]
        }
    ),
    "US/dev.jsonl": lines(MEDQA),
    "US/train.jsonl": lines({**MEDQA, "question": "Not looked for."}),
    "hf/test.json": lines(
        {"id": "test-00000", "sent1": "Which?", "sent2": "", "label": 0}
        | {f"ending{n}": f"option {n}" for n in range(4)}
    ),
    "medmcqa/dev.json": lines(
        {"id": "m", "question": "Not true?", "cop": 1}
        | {f"op{n}": f"the long option number {n}" for n in "abcd"}
    ),
    "anatomy_val.csv": 'What is\n"this"?,"a, b",c,d,e,A\n'.replace('\n"this"', " this"),
    "test.source": "My message.\nAnother\u2028 one.\n",
    "LICENSE": "words",
    "MedQuAD.tar.gz": "not looked at",
}


def read(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".json.gz") else data)
    return benchmarks.read(epath.Path(folder))


def test_every_form_is_read(tmp_path):
    found = read(tmp_path, FORMS)
    splits = {key: benchmarks.split_of(forms) for key, forms in found.items.items()}
    assert splits == {
        ("bioasq", "5b"): "test",
        ("medmcqa", "m"): "dev",
        ("medqa", "dev-00000"): "dev",
        ("medqa", "test-00000"): "test",
        ("medqa", "train-00000"): "train",
        ("meqsum", "test-0"): "test",
        ("meqsum", "test-1"): "test",
        ("mmlu anatomy", "val-0"): "dev",
        ("pubmedqa", "11"): "dev",  # labelled: in a development fold, though training here
        ("pubmedqa", "12"): "test",
        ("pubmedqa", "13"): "dev",
    }
    (item,) = found.items["bioasq", "5b"]
    assert item.pmids == (77,)
    assert item.texts == ("Which gene is mutated?", "Mutations of the gene were found.")
    (item,) = found.items["mmlu anatomy", "val-0"]
    assert item.options == ("a, b", "c", "d", "e")
    left = {file["name"] for file in found.files if "not read" in file}
    assert left == {"LICENSE", "MedQuAD.tar.gz"}


BIOASQ = {
    "id": "5c",
    "body": "Which?",
    "documents": ["https://pubmed.ncbi.nlm.nih.gov/78/", "http://x.org/79"],
}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("BioASQ-training11b.json", "train"),
        ("training11b.json", "train"),
        ("BioASQ-trainingDataset2b.json", "train"),
        ("BioASQ-task9bPhaseB-testset1.json", "test"),
        ("BioASQ-task9bPhaseA-testset1", None),
        ("11B4_golden.json", "test"),
    ],
)
def test_names_that_bioasq_gives_its_files(tmp_path, name, split):
    """Its training file has the items of former tests again: they stay items of a test."""
    content = json.dumps({"questions": [BIOASQ]})
    if not split:
        with pytest.raises(UserError, match="does not end in"):
            read(tmp_path, {name: content})
        return
    found = read(tmp_path, {name: content})
    (item,) = found.items["bioasq", "5c"]
    assert (item.split, item.pmids) == (split, (78,))
    both = read(tmp_path, {"9B1_golden.json": content})
    assert benchmarks.split_of(both.items["bioasq", "5c"]) == "test"


def test_a_question_without_documents_is_read(tmp_path):
    """As of a test set whose questions alone are published."""
    asked = {"questions": [{"id": "5d", "body": "Which?", "type": "list"}]}
    found = read(tmp_path, {"BioASQ-task9bPhaseA-testset1.json": json.dumps(asked)})
    assert found.items["bioasq", "5d"][0].texts == ("Which?",)


def test_the_same_place_in_two_files_is_not_the_same_item(tmp_path):
    """But where the question is the same."""
    other = {**MEDQA, "question": "Which of these?"}
    found = read(
        tmp_path,
        {
            "Taiwan/4_options/test.jsonl": lines(other),
            "Taiwan/test.jsonl": lines(other, MEDQA),
            "US/4_options/test.jsonl": lines({**MEDQA, "question": VIGNETTE.upper()}),
            "US/test.jsonl": lines(MEDQA),
            "hf/test.json": lines(
                {"id": "test-00000", "sent1": VIGNETTE, "sent2": "", "label": 0}
                | {f"ending{n}": f"option {n}" for n in range(4)}
            ),
        },
    )
    assert {id: len(forms) for (_, id), forms in found.items.items()} == {
        "test-00000": 2,
        "test-00001": 1,
        "US/4_options/test.jsonl test-00000": 3,
    }


def test_line_breaks_of_other_kinds_stay_within_a_row(tmp_path):
    """U+2028 and U+0085 may stand in JSON as they are."""
    question = "one\u2028two\x85three\u2029four"
    row = json.dumps({**MEDQA, "question": question}, ensure_ascii=False)
    found = read(tmp_path, {"dev.jsonl": f"{row}\r\n{row}\n\n"})
    assert [item.texts for (item,) in found.items.values()] == [(question,)] * 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", "words", "does not end in .json"),
        ("dev.json", '{"other": 1}\n', "rows with other"),
        ("questions.jsonl", lines(MEDQA), "which split is it"),
        ("dev.jsonl", lines(MEDQA)[:-30], "JSONDecodeError"),
        ("dev.jsonl", lines(MEDQA) + lines({"question": "q"}), "KeyError"),
        ("dev.jsonl", b'{"question": "\xff"}', "UnicodeDecodeError"),
        ("dev.jsonl", "", "IndexError|no item"),
        ("ori_pqal.json", json.dumps({"11": {"QUESTION": "q"}}), "CONTEXTS"),
        ("7B1_golden.json", '{"questions": []}', "no item"),
        ("virology_test.csv", "q,a,b,c,d,A\n", "six|anatomy"),
        ("anatomy_test.csv", "q,a,b,c,A\n", "row 1"),
        ("anatomy_test.csv", "q,a,b,c,d,E\n", "row 1"),
    ],
)
def test_what_is_not_understood_stops_the_run_by_name(tmp_path, name, content, message):
    with pytest.raises(UserError, match=rf"--benchmarks: x/{name} is damaged .*({message})"):
        read(tmp_path, {**FORMS, f"x/{name}": content})


def test_damaged_archive_and_empty_folder(tmp_path):
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(lines(MEDQA).encode())[:50])
    with pytest.raises(UserError, match=r"cut.json.gz is damaged .*EOFError"):
        read(tmp_path, {})
    (tmp_path / "cut.json.gz").unlink()
    with pytest.raises(UserError, match="holds no test set"):
        read(tmp_path, {"README.md": "words"})
    with pytest.raises(UserError, match="is no folder"):
        read(tmp_path / "README.md", {})


def matcher(folder, files):
    read(folder / "tests", files)
    contamination.prepare(epath.Path(folder / "tests"), epath.Path(folder / "sought"))
    items = json.loads((folder / "sought" / contamination.ITEMS).read_text())["items"]
    return contamination.Matcher(epath.Path(folder / "sought")), items


def find(matcher, texts):
    hashed = words.hashed(texts)
    return matcher.find(texts, hashed, hashed.runs(passages.LONG))


def test_which_words_are_looked_for(tmp_path):
    """13 in a row of a long question, all of one of 8 to 12 with its options or without, and
    options with a shorter one."""
    rows = [
        {**MEDQA, "question": "one two three four five six seven eight nine ten", "options": {}},
        {**MEDQA, "question": "which one?", "options": {"A": "a b c d", "B": "e f g"}},
        {**MEDQA, "question": "too short?"},
        {**MEDQA, "question": " ".join(f"w{n}" for n in range(15)), "options": {"A": "never"}},
        {
            **MEDQA,
            "question": "is this what a doctor would do next?",
            "options": {"A": "a b c d e"},
        },
    ]
    sought, items = matcher(tmp_path, {"dev.jsonl": lines(*rows)})
    assert [item["sought"] for item in items] == [True, True, False, True, True]
    hits = find(
        sought,
        [
            "Before. ONE two, three\nfour five-six seven eight; nine (ten) behind.",
            "one two three four five six seven eight nine",
            "Which one? A: b c",
            "which one: a b c d e f g?",
            " ".join(f"w{n}" for n in range(1, 14)),
            " ".join(f"w{n}" for n in range(1, 13)),
            " ".join(f"W{n}," for n in range(15)) + " never",
            "He asked: Is this what a doctor would do next? It was.",
            "would do next? A B C D E",
            "what a doctor would do next? A B C D E is this",
            "Is this what a doctor would do next? A B C D E",
        ],
    )
    assert [text for text, _ in hits] == [0, 3, 4, 6, 6, 6, 7, 10, 10]


def test_a_passage_is_found_behind_a_word_that_is_cut(tmp_path):
    """Where a text is hashed in pieces there may be no white space: a gene of 8,000 letters."""
    draw = random.Random(0)
    before = " ".join(f"w{draw.randrange(10**6)}" for _ in range(40_000))[:258_000]
    gene = "".join(draw.choice("acgt") for _ in range(8_000))
    sought, _ = matcher(tmp_path, {"dev.jsonl": lines(MEDQA)})
    hits = find(sought, [f"{before} {gene} {VIGNETTE}", "none", f"{before} {gene}"])
    assert len(hits) == len(words.split(VIGNETTE)) - passages.LONG + 1
    assert {text for text, _ in hits} == {0}


def test_marks_that_are_not_seen_hide_no_item(tmp_path):
    sought, _ = matcher(tmp_path, {"dev.jsonl": lines(MEDQA)})
    plain = find(sought, [VIGNETTE])
    hidden = [
        VIGNETTE.replace("fever", "fe\u00adver").replace("swell", "\ufeffswe\u200bll"),
        VIGNETTE.replace("swelling", "swel-\nling").replace("urination", "urina\u00ad\ntion"),
    ]
    for text in hidden:
        assert find(sought, [text]) == plain


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False))
def test_runs_are_found_as_by_comparing_all(tmp_path_factory, draw):
    """Over a vocabulary so small that runs are met by chance."""
    folder = tmp_path_factory.mktemp("found")
    lengths = [draw.randrange(8, 16) for _ in range(draw.randrange(1, 5))]
    phrases = [[draw.choice("ab") for _ in range(length)] for length in lengths]
    texts = [" ".join(draw.choice("ab") for _ in range(draw.randrange(40))) for _ in range(5)]
    rows = [{**MEDQA, "question": " ".join(p), "options": {}} for p in phrases]
    sought, _ = matcher(folder, {"dev.jsonl": lines(*rows)})
    runs = set()
    for phrase in phrases:
        length = min(len(phrase), 13)
        runs |= {" ".join(phrase[i : i + length]) for i in range(len(phrase) - length + 1)}
    expected = [sum(run in text for run in runs) for text in texts]
    found = np.bincount([text for text, _ in find(sought, texts)], minlength=5)
    assert found.tolist() == expected


# Items a file, as counted by the keepers of the data.
REAL = {
    "medqa dev": 1272,
    "medqa test": 1273,
    "medmcqa dev": 4183,
    "pubmedqa dev": 500,
    "pubmedqa test": 500,
    "meqsum test": 500,
    "bioasq test": 1497,
    "mmlu anatomy test": 135,
    "mmlu clinical_knowledge test": 265,
    "mmlu college_biology test": 144,
    "mmlu college_medicine test": 173,
    "mmlu medical_genetics test": 100,
    "mmlu professional_medicine test": 272,
    "mmlu anatomy dev": 14 + 5,
    "mmlu clinical_knowledge dev": 29 + 5,
    "mmlu college_biology dev": 16 + 5,
    "mmlu college_medicine dev": 22 + 5,
    "mmlu medical_genetics dev": 11 + 5,
    "mmlu professional_medicine dev": 31 + 5,
}
REAL_FILES = {
    "pubmedqa/ori_pqal.json": 1000,
    "pubmedqa/test_ground_truth.json": 500,
    "pubmedqa/crfm_mistral_pubmedqa_hf/train.json": 450,
    "pubmedqa/crfm_mistral_pubmedqa_hf/dev.json": 50,
    "pubmedqa/crfm_mistral_pubmedqa_hf/test.json": 500,
    "medqa/selfbiorag_partial_train/med_qa_5options_train.json.gz": 1000,
    "medqa/selfbiorag_partial_train/DERIVED_train_first1000_5opt.jsonl": 1000,
    "medqa/crfm_mistral_medqa_usmle_hf/dev.json": 1272,
    "medqa/crfm_mistral_medqa_usmle_hf/test.json": 1273,
    "medqa/jind11_original/questions/US/dev.jsonl": 1272,
    "medqa/jind11_original/questions/US/4_options/phrases_no_exclude_test.jsonl.gz": 1273,
    "consumer_health/meqsum/crfm_mistral_textgen/train.source": 500,
    "bioasq/Task9BGoldenEnriched/9B3_golden.json.gz": 97,
}


@pytest.mark.slow
@needs_real
def test_real_items_and_that_each_is_found(tmp_path):
    """All files of the real folder are known; every item that can be looked for is found in its
    own text, shouted and without punctuation."""
    source = epath.Path(SHARED / "qa")
    contamination.prepare(source, epath.Path(tmp_path))
    found = benchmarks.read(source)
    counts = {file["name"]: file["items"] for file in found.files if "items" in file}
    assert {name: counts[name] for name in REAL_FILES} == REAL_FILES
    splits = {}
    for (benchmark, _), forms in found.items.items():
        name = f"{benchmark} {benchmarks.split_of(forms)}"
        splits[name] = splits.get(name, 0) + 1
    assert {name: n for name, n in splits.items() if not name.endswith("train")} == REAL
    # The files of two owners mean the same questions by the same id.
    for number in (0, 700, 1271):
        forms = found.items["medqa", f"dev-{number:05}"]
        assert len(forms) == 3
        assert len({" ".join(words.split(item.texts[0])) for item in forms}) == 1
    sought = contamination.Matcher(epath.Path(tmp_path))
    items = json.loads((tmp_path / contamination.ITEMS).read_text())["items"]
    assert sum(not item["sought"] for item in items) == 6
    draw = random.Random(0)
    kept = [key for key, forms in found.items.items() if benchmarks.split_of(forms) != "train"]
    texts, long_enough = [], []
    for key in draw.sample(kept, 400):
        item = max(found.items[key], key=lambda one: len("".join(one.texts)))
        longest = max((" ".join([text, *item.options]) for text in item.texts), key=len)
        long_enough.append(len(words.split(longest)) >= passages.SHORT)
        texts.append("; ".join([*item.texts, *item.options]).upper().replace(",", ",\n"))
    hit = {text for text, _ in find(sought, texts)}
    assert [i in hit for i in range(len(texts))] == long_enough
    assert sum(long_enough) >= 396
