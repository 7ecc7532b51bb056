"""What a model is asked is what its corpus is kept clean of: both read the same folder."""

import pytest
from etils import epath

from data.cleaning import benchmarks
from tests.benchmark_files import READ, write

NEIGHBOUR = {"other/test.source": "Another message, of a test.\n"}  # where all else is training


@pytest.mark.parametrize(
    ("benchmark", "split", "files", "item"), READ, ids=lambda value: str(value)[:40]
)
def test_every_form_that_is_asked_is_kept_out(tmp_path, benchmark, split, files, item):
    found = benchmarks.read(epath.Path(write(tmp_path, {**NEIGHBOUR, **files})))
    if set(files) <= {file["name"] for file in found.files if "not read" in file}:
        assert split == "train"
        return
    theirs = "dev" if benchmark == "mmlu" and split == "train" else split  # MMLU's examples
    asked = [
        text
        for forms in found.items.values()
        for form in forms
        for text in form.texts
        if form.split == theirs and form.benchmark.startswith(benchmark.removesuffix("5"))
    ]
    assert any(item.question in text for text in asked)
