"""The batch of a step, in words."""

import ast
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline import inspect
from biomedlm_jax.pipeline.loader import Loader
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from tests.conftest import ROOT, TINY, changed


@pytest.mark.parametrize("step", [0, 999_999])
def test_it_shows_the_batch_that_is_trained_on(store, step):
    experiment = changed(TINY, data__store=str(store), run__steps=1_000_000)
    split = TokenStore(store, "train")
    sharding = NamedSharding(Mesh(jax.devices()[:1], ("data",)), PartitionSpec())
    batch, length = experiment.data.batch, experiment.model.context
    loader = Loader(split, batch=batch, length=length, seed=17, sharding=sharding)
    trained = np.asarray(loader.batch(step))
    vocabulary = Vocabulary(split.vocabulary_path)
    shown = "\n".join(inspect.rows(experiment, step)).split("row ")[1:]
    assert len(shown) == batch
    for text, tokens, start in zip(shown, trained, loader.starts(step), strict=True):
        words = [ast.literal_eval(line) for line in re.findall("^    ('.*|\".*)$", text, re.M)]
        assert "".join(words) == vocabulary.decode(tokens.tolist())
        assert re.findall(r"\) (\S+)$", text, re.M) == split.ids(int(start), length)
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
