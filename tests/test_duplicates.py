"""Near duplicates: how many are found, what a group is, and that boilerplate costs no squares."""

import random

import numpy as np

from biomedlm_jax.pipeline import words
from data.cleaning import duplicates
from data.cleaning.describe import Rules
from tests.test_clean import changed, cleaned, document, jaccard, prose, text

__all__ = ["cleaned"]  # a fixture


def test_near_duplicates_are_found_as_often_as_promised(cleaned):
    """Bounds from (1 - s^8)^16 for a candidate that is missed, and from the estimate's standard
    error, 0.035 at the most, for one at the threshold's foot or above it."""
    draw = random.Random(0)
    found, similarity = [], {}
    goals = {0.6: (0, 0), 0.7: (0, 0.02), 0.85: (0.85, 1), 0.92: (0.99, 1), 0.97: (1, 1)}
    for goal in goals:
        for _ in range(100):
            one = text(draw, 400)
            other = changed(draw, one, goal)
            number = 2 * len(similarity) + 1
            similarity[f"PMID:{number + 1}"] = goal, jaccard(one, other)
            found += [document(number, " ".join(one)), document(number + 1, " ".join(other))]
    draw.shuffle(found)
    result = cleaned(found[:300], found[300:])
    assert set(result.reasons.values()) == {"near duplicate"}
    for goal, (least, most) in goals.items():
        planted = [id for id, (wanted, _) in similarity.items() if wanted == goal]
        assert all(goal - 0.03 < similarity[id][1] <= goal for id in planted)
        dropped = [id for id in planted if id in result.dropped]
        assert least <= len(dropped) / len(planted) <= most, goal
    errors = [line["similarity"] - similarity[id][1] for id, line in result.dropped.items()]
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.035
    assert all(line["kept"] == f"PMID:{int(id[5:]) - 1}" for id, line in result.dropped.items())


def test_bands_keep_their_promise_at_any_threshold():
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95):
        bands, rows = duplicates.bands_and_rows(threshold)
        assert bands * rows <= duplicates.HASHES
        assert (1 - threshold**rows) ** bands < duplicates.MISSED
    assert duplicates.bands_and_rows(0.8) == (16, 8)


def test_signatures_never_change():
    """They are compared over machines, and with those of an interrupted run."""
    hashed = words.hashed(["one two three four five six seven", "eight nine ten one two three"])
    found = duplicates.signatures(*hashed.runs(duplicates.SHINGLE))
    assert found.shape == (2, 128)
    assert found[:, :2].tolist() == GOLDEN_SIGNATURES
    assert duplicates.band_hashes(found, 16, 8)[:, 0].tolist() == GOLDEN_BANDS


GOLDEN_SIGNATURES = [[3684417001, 3593226747], [3420358415, 3569456760]]
GOLDEN_BANDS = [7759628345860396011, 2685099481226002579]


def test_a_chain_is_one_group(cleaned):
    draw = random.Random(0)
    chain = [text(draw, 600)]
    for place in range(5):
        link = list(chain[-1])
        for word in range(place * 6, 600, 45):
            link[word] = f"x{draw.randrange(10**7)}"
        chain.append(link)
    assert jaccard(chain[0], chain[1]) > 0.77
    assert jaccard(chain[0], chain[5]) < 0.5
    found = [document(n + 1, " ".join(link)) for n, link in enumerate(chain)]
    result = cleaned(found, rules=Rules(near=0.7))
    assert result.kept == ["PMID:1"]
    assert {line["kept"] for line in result.dropped.values()} == {"PMID:1"}
    far = result.dropped["PMID:6"]["similarity"]
    assert abs(far - jaccard(chain[0], chain[5])) < 0.15


def test_boilerplate_of_thousands_is_not_compared_pair_by_pair(cleaned):
    draw = random.Random(0)
    boilerplate = prose(draw, 150)
    count = 5000
    result = cleaned([document(n, f"{boilerplate} number{n}") for n in range(1, count + 1)])
    assert result.kept == ["PMID:1"]
    assert result.manifest["counts"]["clean"]["near duplicate"] == count - 1
    compared = result.manifest["cleaning"]["compared pairs"]
    assert count - 1 <= compared <= 2 * result.manifest["cleaning"]["bands"] * (count - 1)
