"""Temporary files: what does not fit into TMPDIR is an error that says so, no killed process."""

import os
import random
import subprocess
import tempfile

import numpy as np
import pyarrow as pa
import pytest
from etils import epath

from biomedlm_jax.entry import UserError
from data import clean, tables
from data.cleaning import describe, duplicates
from data.cleaning.sketches import Sketches
from data.tables import Database, TableWriter, fixed
from tests.test_clean import Cleaned, write
from tests.test_clean_runs import many

FULL = r"TMPDIR=.* has no room for temporary files .*set TMPDIR to a folder on a larger disk"


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A disk of 2 MB as TMPDIR."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid():
        pytest.skip("only root can mount a disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mount: {mounted.stderr.decode()}")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    subprocess.run(["umount", place], check=True)


def signed(folder, count):
    """Tables for `Sketches`: `count` documents, each a candidate with the one before."""
    ranked, found, signatures = (folder / f"{name}.parquet" for name in ("r", "c", "s"))
    numbers = np.arange(count)
    rows = np.random.default_rng(0).integers(0, 256, (count, duplicates.HASHES), np.uint8)
    with TableWriter(ranked, pa.schema([("doc", pa.int64()), ("rank", pa.int32())])) as table:
        table.write(numbers, numbers[::-1].astype(np.int32))
    with TableWriter(found, pa.schema([("low", pa.int32()), ("rank", pa.int32())])) as table:
        table.write(numbers[:-1].astype(np.int32), numbers[1:].astype(np.int32))
    with TableWriter(signatures, describe.SIGNATURES) as table:
        table.write(numbers, fixed(rows))
    return rows, (ranked, [found], [signatures])


def test_signatures_are_kept_by_rank(tmp_path):
    rows, given = signed(epath.Path(tmp_path), 20_000)
    sketches = Sketches(tmp_path, *given)
    ranks = np.array([0, 5, 19_999, 7_000])
    assert sketches.documents(ranks).tolist() == (19_999 - ranks).tolist()
    own = rows[19_999 - ranks]
    expected = duplicates.similarities(own, np.roll(own, 1, 0))
    assert sketches.similarities(ranks, np.roll(ranks, 1)).tolist() == expected.tolist()
    assert sketches.similarities(ranks, ranks).tolist() == [1] * 4


def test_signatures_that_a_full_disk_does_not_take(tmp_path, small):
    _, given = signed(epath.Path(tmp_path), 20_000)
    with pytest.raises(UserError, match=FULL):
        Sketches(small, *given)


@pytest.mark.parametrize(
    "query",
    [
        "select i, hash(i) as h from range(1000000) t(i)",  # the result is too large
        "select h, row_number() over (order by h) from (select hash(i) as h from range(4000000) "
        "t(i))",  # what does not fit into memory is
    ],
)
def test_queries_that_a_full_disk_does_not_take(tmp_path, small, monkeypatch, query):
    monkeypatch.setattr(tables, "MEMORY", "40MB")
    with pytest.raises(UserError, match=FULL), Database() as database:
        tables.copy(database, query, epath.Path(tmp_path / "out.parquet"))
    assert not list(small.iterdir())
    assert not (tmp_path / "out.parquet").exists()


def test_other_errors_of_queries_stay_what_they_are(tmp_path):
    with Database() as database, pytest.raises(tables.duckdb.ParserException):
        database[0].execute("selec")
    with pytest.raises(tables.duckdb.IOException, match="No files found"), Database() as database:
        database[0].execute(f"from '{tmp_path}/missing.parquet'")


def test_a_run_that_a_full_disk_ended_goes_on(tmp_path, small):
    write(tmp_path / "in", *many(random.Random(0), 70))
    (small / "other").write_bytes(b"x" * (2 << 20))
    with pytest.raises(UserError, match=FULL):
        clean.clean(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (small / "other").unlink()
    clean.clean(tmp_path / "in", tmp_path / "out")
    assert sum(Cleaned(tmp_path / "out").manifest["counts"]["clean"].values()) == 70
