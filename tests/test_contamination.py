"""Which test items a store of training text gives away."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from etils import epath
from hypothesis import example, given, settings
from hypothesis import strategies as st

from biomedlm_jax.benchmarks.item import Item, Split
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline import passages, words
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.pipeline.store_writer import StoreWriter
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from biomedlm_jax.scoring import contamination, scores
from tests import scored as small
from tests.conftest import SHARED

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PASSAGE = [f"w{letter}" for letter in LETTERS]  # 26 words
OPTIONS = ("aspirin", "penicillin", "oxygen")


@pytest.fixture(scope="session")
def keep(vocabulary, tmp_path_factory):
    """keep({"PMID:1": text, ...}): a store of these documents, all to train on."""

    def make(documents: dict[str, str]) -> TokenStore:
        kinds = {"PMID": "abstract", "PMC": "full_text"}
        model = Vocabulary(vocabulary)
        place = epath.Path(tmp_path_factory.mktemp("texts"))
        rows = [
            ("train", np.array([*model.encode(text), model.eos_id]), id,
             kinds[id.partition(":")[0]], len(text.encode()), 2001)
            for id, text in documents.items()
        ]  # fmt: skip
        StoreWriter.of(place, place / "work", model).write_all(iter(rows))
        return TokenStore(place, "train")

    return make


def asked(*items: Item, kind="multiple_choice") -> Split:
    return Split("medqa", "test", kind, items, {}, {})


def question(id: str, text: str, options=OPTIONS, **more) -> Item:
    return Item(id, text, options, 0, **more)


def one(split: Split, store: TokenStore) -> contamination.Contamination:
    (found,) = contamination.find([split], store)
    return found


def test_an_abstract_that_is_asked_about_is_found_by_its_number(keep):
    store = keep({"PMID:7": "short", "PMC:8": "short", "PMID:9": "short"})
    split = asked(
        question("a", "one?", pmids=(3, 7)),
        question("b", "two?", pmids=(8,)),  # of a full text the store knows another number
        question("c", "three?", pmids=()),
    )
    found = one(split, store)
    assert found.items == {"a": contamination.Found(("PMID:7",), (), 0, "")}
    assert found.too_short == ("c",)
    assert found.store == {
        "path": str(store.path),
        "tokens_sha256": store.sha256,
        "tokens": store.tokens,
        "documents": 3,
    }
    assert found.clean(split).tolist() == [False, True, True]


def test_words_of_question_context_and_answer_are_found_and_shown(keep):
    thirteen = " ".join(PASSAGE[:13])
    store = keep({"PMID:1": "Nothing.", "PMC:2": f"Before. {thirteen.upper()}, and behind."})
    split = asked(
        question("question", " ".join(PASSAGE)),
        question("context", "why?", context=f"Of {thirteen}"),
        question("answer", "why?", answer=thirteen),
        question("twelve", " ".join(PASSAGE[1:12]) + " other words"),
    )
    found = one(split, store)
    assert sorted(found.items) == ["answer", "context", "question"]
    assert found.items["question"] == contamination.Found((), ("PMC:2",), 1, thirteen)


def test_a_short_question_is_sought_with_its_options_and_classes_are_no_options(keep):
    text = "is this what one would do next aspirin penicillin oxygen"
    item = question("1", "Is this what one would do next?")
    assert one(asked(item), keep({"PMID:1": text})).items.keys() == {"1"}
    assert not one(asked(item), keep({"PMID:1": text.replace("oxygen", "water")})).items
    classes = dataclasses.replace(item, options=("maybe", "no", "yes"))
    found = one(asked(classes, kind="classification"), keep({"PMID:1": text}))
    assert not found.items
    assert found.too_short == ("1",)


def test_empty_parts_are_not_sought_with_the_options(keep):
    options = ("one two three four", "five six seven eight")
    item = question("1", "What are these?", options)
    assert not one(asked(item), keep({"PMID:1": " ".join(options)})).items


def test_common_speech_shows_nothing_but_much_of_an_item_does(keep):
    """14 words are two runs; 16 are four, of which SEVERAL and half of an item of 17 words."""
    common = {f"PMID:{n}": f"d{n} {' '.join(PASSAGE[:13])}" for n in range(passages.COMMON + 1)}
    copies = {f"PMID:{n}": " ".join(PASSAGE[:13]) for n in range(passages.COMMON + 1)}
    much = {f"PMID:{n}": f"d{n} {' '.join(PASSAGE[:16])}" for n in range(passages.COMMON + 1)}
    split = asked(question("1", " ".join(PASSAGE[:17])))
    found = one(split, keep(common))
    assert (found.items, found.common) == ({}, ("1",))
    assert one(split, keep(copies)).items["1"].documents == passages.COMMON + 1  # one text
    found = one(split, keep(much)).items["1"]
    assert found.documents == passages.COMMON + 1
    assert found.words == tuple(f"PMID:{n}" for n in range(contamination.SHOWN))


def naive(items: list[list[str]], texts: list[list[str]]) -> tuple[set[int], set[int]]:
    """The rules of `passages.py`, word for word: contaminated items; those with common speech."""

    def runs(found: list[str]) -> set[tuple[str, ...]]:
        size = min(len(found), passages.LONG)
        return {tuple(found[n : n + size]) for n in range(len(found) - size + 1)}

    def has(text: list[str], run: tuple[str, ...]) -> bool:
        return any(tuple(text[n : n + len(run)]) == run for n in range(len(text)))

    own = [runs(item) if len(item) >= passages.SHORT else set() for item in items]
    every = set().union(*own)
    common = {
        run for run in every if len({tuple(t) for t in texts if has(t, run)}) > passages.COMMON
    }
    idiom = {run for run in every if sum(run in item for item in own) > passages.COMMON}
    shown, left = set(), set()
    for (number, item), text in itertools.product(enumerate(own), texts):
        there = {run for run in item if has(text, run)}
        counted, whole = len(there - idiom), len(item - idiom)
        enough = counted >= passages.SEVERAL and counted >= min(passages.LONG, whole / 2)
        if there - common or (there and enough):
            shown.add(number)
        elif there:
            left.add(number)
    return shown, left - shown


pieces = st.tuples(st.integers(0, 25), st.integers(1, 20)).map(lambda x: PASSAGE[x[0] :][: x[1]])
spans = st.lists(pieces, max_size=2).map(lambda x: list(itertools.chain.from_iterable(x)))
many = st.tuples(spans, st.integers(1, 12))


@settings(max_examples=60)
@given(st.lists(many, max_size=4), st.lists(many, min_size=1, max_size=4))
@example([(PASSAGE[:13], 1)], [(PASSAGE[:13], passages.COMMON)])
@example([(PASSAGE[:13], 1)], [(PASSAGE[:13], passages.COMMON + 1)])
@example([(PASSAGE[:16], passages.COMMON)], [(PASSAGE[:16], passages.COMMON + 1)])
@example([(PASSAGE[:16], passages.COMMON + 1)], [(PASSAGE[:16], passages.COMMON + 1)])
def test_the_rules_hold_for_any_texts(items, texts):
    sought = [span for span, times in items for _ in range(times)]
    # The same words in texts of their own, so that they are no copies.
    there = [[*span, f"t{n}x{k}"] for n, (span, times) in enumerate(texts) for k in range(times)]
    split = asked(*(question(str(n), " ".join(x), ()) for n, x in enumerate(sought)))
    phrases = [contamination._phrases(item, split) for item in split.items]
    flat = sorted({phrase for found in phrases for phrase in found})
    runs, of = passages.runs(flat)
    matcher = passages.Matcher(flat, runs)
    lines = [" ".join(text) for text in there]
    hashed = words.hashed(lines)
    hits = matcher.find(lines, hashed, hashed.runs(passages.LONG))
    seen = contamination._Seen(
        np.array(hits, np.int64).reshape(-1, 2),
        [f"PMID:{n}" for n in range(len(lines))],
        np.arange(len(lines), dtype=np.uint64),
        set(),
    )
    own = [{run for phrase in found for run in of[flat.index(phrase)]} for found in phrases]
    pairs, _, much = contamination._shown(own, seen)
    shown = set(pairs[0][much].tolist())
    assert (shown, set(pairs[0].tolist()) - shown) == naive(sought, there)


def test_what_is_found_of_a_split_does_not_depend_on_the_others(keep):
    store = keep({"PMID:1": " ".join(PASSAGE), "PMID:2": "nothing"})
    splits = [asked(question(str(n), " ".join(PASSAGE[n:]))) for n in range(12)]
    together = contamination.find(splits, store)
    assert together == [one(split, store) for split in splits]
    assert all(found.items for found in together)


def test_a_store_is_read_in_pieces_to_the_same_end(keep, monkeypatch):
    texts = {f"PMID:{n}": f"d{n} {' '.join(PASSAGE[n : n + 13])}" for n in range(14)}
    store, split = (
        keep(texts),
        asked(*(question(str(n), " ".join(PASSAGE[n:][:13])) for n in range(14))),
    )
    whole = one(split, store)
    assert [found.words for found in whole.items.values()] == [(id,) for id in texts]
    for tokens, rows in ((1, 3), (200, 4), (10**6, 1)):
        monkeypatch.setattr(contamination, "_TOKENS", tokens)
        monkeypatch.setattr(contamination, "_ROWS", rows)
        assert one(split, store) == whole


def test_only_what_was_trained_on_counts(make_store):
    with pytest.raises(UserError, match="'heldout' is not what was trained on"):
        contamination.find([], TokenStore(make_store(), "heldout"))


PUBMEDQA = SHARED / "qa/pubmedqa/ori_pqal.json"


@pytest.mark.skipif(not PUBMEDQA.is_file(), reason=f"no {PUBMEDQA}")
def test_real_questions_are_found_in_the_abstracts_that_they_are_about(keep):
    """Of 200 questions of PubMedQA, those whose abstract is in the store, by number or by words."""
    rows = dict(list(json.loads(PUBMEDQA.read_text()).items())[:200])
    split = asked(
        *(question(pmid, row["QUESTION"], ("maybe", "no", "yes"), pmids=(int(pmid),),
                   context=" ".join(row["CONTEXTS"]), answer=row["LONG_ANSWER"])
          for pmid, row in rows.items()), kind="classification")  # fmt: skip
    known, unknown = list(rows)[:3], list(rows)[3:6]
    texts = {id: " ".join(rows[id]["CONTEXTS"]) for id in (*known, *unknown)}
    store = keep({f"PMID:{id}": texts[id] for id in known}
                 | {f"PMC:{n}": texts[id] for n, id in enumerate(unknown)})  # fmt: skip
    found = one(split, store).items
    assert found.keys() == {*known, *unknown}
    assert all(found[id].pmids == (f"PMID:{id}",) == found[id].words for id in known)
    assert [found[id].words for id in unknown] == [("PMC:0",), ("PMC:1",), ("PMC:2",)]
    assert found[unknown[0]].passage in " ".join(words.split(texts[unknown[0]]))


def test_scores_without_contaminated_items(keep):
    store = keep({"PMID:1": "x", "PMID:2": "y"})
    split = small.classified(["yes", "yes", "no", "no"])  # about PMID 1 to 4
    answers = small.choosing(split, [2, 2, 1, 2])
    (found,) = contamination.find([split], store)
    clean = scores.without(answers, found)
    assert clean is not None
    assert (clean["items"], clean["accuracy"]["value"]) == (2, 0.5)
    assert scores.of(answers)["accuracy"]["value"] == 0.75
    everything = dataclasses.replace(found, items=dict.fromkeys("1234", found.items["1"]))
    assert scores.without(answers, everything) is None
