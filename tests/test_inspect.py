"""The batch of a step, in words."""

import ast
import itertools
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline import inspect
from biomedlm_jax.pipeline.loader import Loader
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.pipeline.store_writer import StoreWriter
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from tests.conftest import ROOT, TINY, changed


@pytest.mark.parametrize("step", [0, 999_999])
@pytest.mark.parametrize("separators", [True, False])
def test_it_shows_the_batch_that_is_trained_on(store, step, separators):
    experiment = changed(
        TINY, data__store=str(store), data__separators=separators, run__steps=1_000_000
    )
    split = TokenStore(store, "train")
    sharding = NamedSharding(Mesh(jax.devices()[:1], ("data",)), PartitionSpec())
    batch, length = experiment.data.batch, experiment.model.context
    loader = Loader(
        split,
        batch=batch,
        length=length,
        separators=separators,
        segment_ids=True,
        seed=17,
        sharding=sharding,
    )
    trained, segments = map(np.asarray, loader.batch(step))
    vocabulary = Vocabulary(split.vocabulary_path)
    shown = "\n".join(inspect.rows(experiment, step)).split("row ")[1:]
    assert len(shown) == batch
    rows = zip(shown, trained, segments, loader.starts(step), strict=True)
    for text, tokens, documents, start in rows:
        words = [ast.literal_eval(line) for line in re.findall("^    ('.*|\".*)$", text, re.M)]
        assert "".join(words) == vocabulary.decode(tokens.tolist())
        assert re.findall(r"\) (\S+)$", text, re.M) == split.ids(int(start), length, separators)
        places = [[int(x) for x in p] for p in re.findall(r"\[(\d+), (\d+)\)", text)]
        cuts = [0, *(np.flatnonzero(np.diff(documents)) + 1).tolist(), length]
        assert places == [list(pair) for pair in itertools.pairwise(cuts)]
    assert f"epoch {step * batch // loader.blocks}" in shown[0]


def test_errors_and_the_command(store, tmp_path):
    experiment = changed(TINY, data__store=str(store))
    with pytest.raises(UserError, match=r"--step=10 is not in \[0, config\.run\.steps=10\)"):
        list(inspect.rows(experiment, 10))
    with pytest.raises(UserError, match="no token store"):
        list(inspect.rows(changed(TINY, data__store=str(tmp_path)), 0))
    with pytest.raises(UserError, match="less than one block"):
        list(inspect.rows(changed(experiment, model__context=10**7), 0))
    command = [sys.executable, "-m", "biomedlm_jax.pipeline.inspect", "--config=configs/demo.py"]
    settings = ["--step=3", "--rows=2", f"--config.data.store={store}"]
    small = ["--config.model.context=32"]
    done = subprocess.run(
        [*command, *settings, *small], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.findall("^row ([0-9]+): epoch", done.stdout, re.M) == ["0", "1"]
    assert "PMID:" in done.stdout


def test_documents_without_text(vocabulary, tmp_path):
    """They have a token where ends are kept and none where they are not; ids stay in step."""
    place = epath.Path(tmp_path / "store")
    texts = [[5, 6], [], [], [7, 8, 9], [], [10]]
    rows = (
        ("train", np.array([*text, 1]), f"PMC:{n}", "full_text", len(text), 2001)
        for n, text in enumerate(texts)
    )
    StoreWriter.of(place, place / "work", Vocabulary(vocabulary)).write_all(rows)
    shown = {}
    for separators in (True, False):
        experiment = changed(
            TINY,
            data__store=str(place),
            data__separators=separators,
            data__batch=1,
            model__context=12 if separators else 6,
        )
        text = "\n".join(inspect.rows(experiment, 0))
        shown[separators] = re.findall(r"(\[\d+, \d+\)) (\S+)$", text, re.M)
    assert shown[False] == [("[0, 2)", "PMC:0"), ("[2, 5)", "PMC:3"), ("[5, 6)", "PMC:5")]
    assert shown[True] == [
        ("[0, 3)", "PMC:0"),
        ("[3, 4)", "PMC:1"),
        ("[4, 5)", "PMC:2"),
        ("[5, 9)", "PMC:3"),
        ("[9, 10)", "PMC:4"),
        ("[10, 12)", "PMC:5"),
    ]
