"""Everything on gs://, against a local server that speaks Google Cloud Storage's protocol."""

from pathlib import Path

import pytest

from data.build import build
from data.tokenizer import Options
from tests.bucket import COPY, python, serving
from tests.conftest import ROOT

SAMPLE = ROOT / "data/sample"
OPTIONS = Options(size=600, train_bytes=10**9)


@pytest.fixture(scope="module")
def cloud():
    with serving("corpus") as (environment, _):
        yield environment


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return Path(build(SAMPLE, tmp_path_factory.mktemp("built") / "corpus", OPTIONS))


BUILD = f"""
import os, sys
from data import stages
from data.build import build
from data.tokenizer import Options

done = stages._done

def counted(step, item):
    done(step, item)
    if step.name == sys.argv[1]:
        os.kill(os.getpid(), 9)

stages._done = counted
build("gs://corpus/ncbi", "gs://corpus/built", Options({OPTIONS.size}, "sentencepiece", {10**9}))
assert not any(name.split(".")[0] == "tensorflow" for name in sys.modules)
"""
READ = """
import sys
import numpy as np
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.pipeline.vocabulary import Vocabulary

store = TokenStore(sys.argv[1], "train")
print(store.ids(5000, 64), Vocabulary(store.vocabulary_path).sha256)
for separators in (False, True):
    print([windows.sum() for windows in store.windows(np.arange(0, 5000, 64), 64, separators)])
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.slow
def test_a_build_on_the_cloud_is_the_build_on_a_disk(cloud, built, tmp_path):
    """From files in a bucket to a store in a bucket, killed once on the way; TensorFlow is not
    imported for it."""
    python(cloud, COPY, SAMPLE, "gs://corpus/ncbi")
    python(cloud, BUILD, "cleaned", returns=-9)
    python(cloud, BUILD, "none")
    python(cloud, COPY, "gs://corpus/built", tmp_path / "copy")
    here, there = contents(built), contents(tmp_path / "copy")
    assert here.keys() == there.keys()
    different = {name for name in here if here[name] != there[name]}
    assert different <= {"store/manifest.json", "documents/manifest.json"}, "they name the input"
    read = [python(cloud, READ, place) for place in (built / "store", "gs://corpus/built/store")]
    assert read[0] == read[1]


def test_what_is_in_a_bucket_stays(cloud, tmp_path):
    """A folder that is not empty is no output, least of all one that holds the input."""
    python(cloud, COPY, SAMPLE / "pmc", "gs://corpus/project/ncbi")
    code = (
        "from biomedlm_jax import entry\nfrom data.parse import parse\nimport sys\n"
        "try: parse('gs://corpus/project/ncbi', sys.argv[1], 0)\n"
        "except entry.UserError as error: print(error)"
    )
    for output in ("gs://corpus/project", "gs://corpus"):
        assert "is not empty" in python(cloud, code, output)
    python(cloud, COPY, "gs://corpus/project/ncbi", tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(SAMPLE / "pmc")


def test_no_store_is_one_clear_error(cloud):
    code = (
        "from biomedlm_jax import entry\nfrom biomedlm_jax.pipeline.store import TokenStore\n"
        "try: TokenStore('gs://corpus/nothing', 'train')\n"
        "except entry.UserError as error: print(error)"
    )
    assert "gs://corpus/nothing is no token store" in python(cloud, code)
