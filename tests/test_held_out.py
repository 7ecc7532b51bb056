"""Scores by source and year, against documents scored by hand."""

import itertools

import jax
import numpy as np
import pytest
from etils import epath

from biomedlm_jax import held_out, step
from biomedlm_jax.held_out import TOTAL, Evaluator
from biomedlm_jax.pipeline.store import SOURCE_OF_CODE, TokenStore, document_id
from biomedlm_jax.pipeline.store_writer import StoreWriter
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from tests.conftest import TINY, changed, on, started

KINDS = [("full_text", 2003), ("abstract", 0), ("abstract", 1999), ("full_text", 1999)]
FORMS = list(itertools.product([True, False], repeat=2))  # separators, segment_ids


@pytest.fixture(scope="module")
def split(vocabulary, tmp_path_factory) -> TokenStore:
    """12 documents of two sources and two years, of no token and of one token among them."""
    draw, place = np.random.default_rng(0), epath.Path(tmp_path_factory.mktemp("split"))
    words = Vocabulary(vocabulary)
    rows = []
    for number, length in enumerate([40, 0, 1, 90, 7, 33, 64, 5, 1, 0, 50, 12]):
        source, year = KINDS[number % 4]
        tokens = draw.integers(2, words.size, length)
        nbytes = int(words.token_bytes()[tokens].sum())
        row = (np.append(tokens, 1), document_id(source, number), source, nbytes, year)
        rows.append(("heldout", *row))
    StoreWriter.of(place, place / "work", words).write_all(rows)
    return TokenStore(place, "heldout")


@pytest.fixture(scope="module")
def model():
    """(experiment, mesh, parameters) that tell one token from another."""
    experiment, devices = on(changed(TINY, model__init_std=0.3), 2, 2, 1)
    return experiment, devices, started(experiment, devices).params


def by_hand(experiment, devices, params, split, separators, segment_ids) -> dict[str, list[float]]:
    """[nats, labels, bytes] of each part, label by label."""
    (tokens,), (owner,) = split.windows(np.array([0]), split.length(separators), separators)
    sizes = Vocabulary(split.vocabulary_path).token_bytes()
    forward = step.forward(experiment, devices)
    found: dict[str, list[float]] = {}
    for start in range(0, len(tokens) - 1, 31):
        row, segments = np.full((2, 32), 1, np.int32)
        of = owner[start : start + 32]
        row[: len(of)], segments[: len(of)] = tokens[start : start + 32], of
        batch = [x[None].repeat(8, axis=0) for x in (row, segments)]
        logits = forward(params, *batch[: 1 + segment_ids])[0]
        nats = -np.asarray(jax.nn.log_softmax(logits))
        for t in range(1, len(of)):
            if segment_ids and of[t] != of[t - 1]:
                continue
            _, _, code, _, year = split.documents[of[t]].tolist()
            for part in (TOTAL, SOURCE_OF_CODE[code], f"year_{year or 'unknown'}"):
                sums = found.setdefault(part, [0.0, 0, 0])
                sums[0] += nats[t - 1, row[t]]
                sums[1] += 1
                sums[2] += sizes[row[t]]
    return found


@pytest.mark.parametrize(("separators", "segment_ids"), FORMS)
def test_parts_are_those_of_documents_scored_by_hand(separators, segment_ids, model, split):
    experiment, devices, params = model
    form = dict(data__separators=separators, data__segment_ids=segment_ids)
    experiment = changed(experiment, **form)
    found = Evaluator(experiment, devices, split)(params)
    expected = by_hand(experiment, devices, params, split, separators, segment_ids)
    years = ["year_1999", "year_2003", "year_unknown"]
    assert list(found) == [TOTAL, "abstract", "full_text", *years]
    assert found.keys() == expected.keys()
    for name, score in found.items():
        nats, labels, nbytes = expected[name]
        assert (score.labels, score.bytes) == (labels, nbytes), name
        assert score.nats == pytest.approx(nats, rel=1e-5), name
    for names in (["abstract", "full_text"], years):
        assert sum(found[name].bytes for name in names) == found[TOTAL].bytes
        assert sum(found[name].nats for name in names) == pytest.approx(found[TOTAL].nats)


def test_a_limit_and_accumulation(model, split):
    """A limit scores the first windows; those do not depend on the rows that are scored at once."""
    experiment, devices, params = model
    assert Evaluator(experiment, devices, split).batches == 2
    seen = []
    for accumulate in (1, 2):
        given = changed(experiment, run__accumulate=accumulate)
        evaluate = Evaluator(given, devices, split, limit=1)
        calls = itertools.count()
        seen.append(evaluate(params, each=lambda calls=calls: next(calls)))
        assert next(calls) == evaluate.batches == accumulate
    assert seen[0].keys() == seen[1].keys()
    for name, score in seen[0].items():
        assert (score.labels, score.bytes) == (seen[1][name].labels, seen[1][name].bytes)
        assert score.nats == pytest.approx(seen[1][name].nats, rel=1e-6)
    assert seen[0][TOTAL].labels == 8 * 31


def test_a_part_without_text_is_none(model, split):
    """The first documents alone: no later year, and no division by their 0 bytes."""
    experiment, devices, params = model
    first = changed(experiment, data__batch=4, model__context=8)
    positions = {"positions": params["positions"][:8]}
    found = Evaluator(first, devices, split, limit=1)(params | positions)
    assert list(found) == [TOTAL, "full_text", "year_2003"]


def test_an_evaluation_can_be_given_up(model, split):
    experiment, devices, params = model

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        Evaluator(experiment, devices, split)(params, each=stop)


def test_table():
    scores = {
        TOTAL: held_out.Score(3000.0, 1000, 3600),
        "abstract": held_out.Score(3000.0, 1000, 3600),
        "year_2001": held_out.Score(1000.0, 400, 1400),
        "year_unknown": held_out.Score(2000.0, 600, 2200),
    }
    assert held_out.table(scores, 12, 2.0104) == [
        "  model at step 12        1.202 bits per byte (3.0000 nats per token)",
        "  xz -9e                  2.010 bits per byte",
        "  the model by source",
        "    abstract              1.202 bits per byte of         3,600 bytes",
        "  the model by year",
        "    2001                  1.030 bits per byte of         1,400 bytes",
        "    unknown               1.312 bits per byte of         2,200 bytes",
    ]
