"""Whatever stands in a file: a split of good items, or one error made for the user."""

import gzip
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biomedlm_jax.benchmarks.item import Split
from biomedlm_jax.benchmarks.read import read
from biomedlm_jax.entry import UserError
from tests.benchmark_files import (
    BIOASQ,
    HEX,
    MEDMCQA,
    MEDQA,
    MIRAGE,
    PAIR,
    TOPIC,
    archive,
    lines,
    other,
    table,
)

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
