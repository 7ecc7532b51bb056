"""Zero- and few-shot answers: what is asked, what follows it, what is left out to fit."""

import dataclasses

import numpy as np
import pytest

from biomedlm_jax import ask
from biomedlm_jax.ask import NO_SHOTS, Shots
from biomedlm_jax.benchmarks.item import Item, Split
from biomedlm_jax.entry import UserError
from biomedlm_jax.likelihood import LogLikelihood, Pair
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from tests.conftest import TINY, changed, on, started
from tests.scored import CHECKPOINT

EXPERIMENT = changed(TINY, model__dropout=0.0, model__init_std=0.2, model__context=96)
KATO = Item("k", "Kato risin?", ("toto", "rika mel"), 1)
DORPA = Item("d", "Dorpa?", ("pasin", "lulu pa dor", "\u03b2"), 0)
PAIRED = Item("p", "Is it so?", ("maybe", "no", "yes"), 2, context="Kari melto.")


def split(*items, kind="multiple_choice", name="test", benchmark="medqa") -> Split:
    return Split(benchmark, name, kind, items, {}, {})


@pytest.fixture(scope="module")
def words(vocabulary) -> Vocabulary:
    return Vocabulary(vocabulary)


@pytest.fixture(scope="module")
def likelihood() -> LogLikelihood:
    experiment, devices = on(EXPERIMENT, 1, 1, 1)
    return LogLikelihood(experiment.model, started(experiment, devices).params, devices)


def nats(likelihood, words, before: str, *after: str) -> list[float]:
    """Log p of each text after `before`, one pair at a time."""
    begin = len(words.encode(before))
    wholes = [words.encode(before + text) for text in after]
    return [likelihood([Pair(one[:begin], one[begin:])])[0].nats for one in wholes]


def asked(likelihood, words, of, *forms, shots=NO_SHOTS):
    return ask.scored(of, forms, likelihood, words, CHECKPOINT, shots)


def test_letters(likelihood, words):
    (found,) = asked(likelihood, words, split(KATO, DORPA), "letters")
    first = nats(likelihood, words, "Question: Kato risin?\nA. toto\nB. rika mel\nAnswer:",
                 " A", " B")  # fmt: skip
    assert found.scores is not None
    assert found.scores[0] == pytest.approx([*first, -np.inf], abs=1e-4)
    assert (found.form, found.seed) == ("letters", None)
    assert found.checkpoint["asked"] == {"shots": 0, "left_out": 0, "cut": 0}


def test_option_texts_as_they_are_and_per_byte(likelihood, words):
    whole, by_byte = asked(
        likelihood, words, split(KATO, DORPA), "option texts", "option texts, per byte"
    )
    options = (" pasin", " lulu pa dor", " \u03b2")
    wanted = nats(likelihood, words, "Question: Dorpa?\nAnswer:", *options)
    assert whole.scores[1] == pytest.approx(wanted, abs=1e-4)
    assert by_byte.scores[1] == pytest.approx(np.array(wanted) / [5, 11, 2], abs=1e-4)
    assert by_byte.form == "option texts, per byte"


def test_class_words(likelihood, words):
    (found,) = asked(likelihood, words, split(PAIRED, kind="classification"), "class words")
    before = "Kari melto.\n\nQuestion: Is it so?\nAnswer:"
    wanted = nats(likelihood, words, before, " maybe", " no", " yes")
    assert found.scores[0] == pytest.approx(wanted, abs=1e-4)


def test_shots_stand_before_the_question(likelihood, words):
    found, texts = asked(
        likelihood, words, split(DORPA), "letters", "option texts", shots=Shots((KATO,), 7)
    )
    before = "Question: Kato risin?\nA. toto\nB. rika mel\nAnswer: B\n\n"
    before += "Question: Dorpa?\nA. pasin\nB. lulu pa dor\nC. \u03b2\nAnswer:"
    wanted = nats(likelihood, words, before, " A", " B", " C")
    assert found.scores[0] == pytest.approx(wanted, abs=1e-4)
    assert (found.form, found.seed) == ("letters, 1 shot", 7)
    before = "Question: Kato risin?\nAnswer: rika mel\n\nQuestion: Dorpa?\nAnswer:"
    assert texts.scores[0] == pytest.approx(
        nats(likelihood, words, before, " pasin", " lulu pa dor", " \u03b2"), abs=1e-4
    )


def test_shots_that_do_not_fit_are_left_out_from_the_first(likelihood, words):
    """The second fits; the first, of more than the context, does not. Of the last item not even
    the question does."""
    long = dataclasses.replace(KATO, question="kato " * 120)
    shots = Shots((long, KATO), 7)
    both = asked(likelihood, words, split(DORPA, long), "option texts", shots=shots)
    alone = asked(likelihood, words, split(DORPA), "option texts", shots=Shots((KATO,), 7))
    assert both[0].scores[0] == pytest.approx(alone[0].scores[0], abs=1e-4)
    assert both[0].checkpoint["asked"] == {"shots": 2, "left_out": 3, "cut": 1}
    assert both[0].form == "option texts, 2 shots"


def test_a_question_that_is_too_long_loses_as_much_for_every_option(likelihood, words):
    long = dataclasses.replace(DORPA, question="kato " * 120)
    (found,) = asked(likelihood, words, split(long), "option texts")
    before, options = f"Question: {long.question}\nAnswer:", (" pasin", " lulu pa dor", " \u03b2")
    begin = len(words.encode(before))
    after = [words.encode(before + option)[begin:] for option in options]
    kept = words.encode(before)[begin - (97 - max(map(len, after))) :]
    wanted = [likelihood([Pair(kept, one)])[0].nats for one in after]
    assert found.scores[0] == pytest.approx(wanted, abs=1e-4)
    assert found.checkpoint["asked"]["cut"] == 1


def test_shots_are_drawn_from_items_that_are_not_tested():
    items = [Item(str(n), f"Question {n}?", ("a", "b"), n % 2) for n in range(20)]
    unknown = Item("x", "Which?", ("a", "b"), None)
    train = split(*items, unknown, name="train")
    tested = split(dataclasses.replace(items[3], id="other"), benchmark="medqa")
    shots = ask.draw(train, tested, 19, seed=1)
    assert len({item.id for item in shots.items}) == 19
    assert not {"3", "x"} & {item.id for item in shots.items}
    assert ask.draw(train, tested, 4, seed=1).items == shots.items[:4]
    assert ask.draw(train, tested, 4, seed=2).items != shots.items[:4]
    assert ask.draw(train, tested, 0, seed=1) == NO_SHOTS
    with pytest.raises(UserError, match=r"shots=20, but the train split of medqa has 19 items"):
        ask.draw(train, tested, 20, seed=1)


def test_texts_are_written(make_engine):
    engine = make_engine(context=64)
    items = (Item("a", "Kato?", answer="Mel."), Item("b", "kato " * 60, answer="Pa."))
    of = split(*items, kind="generation", benchmark="meqsum")
    counted: list[int] = []
    found = ask.written(of, engine, CHECKPOINT, Shots(items[:1], 3), 8, counted.append)
    assert sum(counted) == 2
    assert found.form == "generated, 1 shot"
    assert found.checkpoint["asked"] == {"shots": 1, "left_out": 1, "cut": 1, "max_tokens": 8}
    again = ask.written(split(*items[1:], kind="generation"), engine, CHECKPOINT, NO_SHOTS, 8)
    assert found.written is not None
    assert found.written[1:] == again.written
    with pytest.raises(UserError, match=r"config.max_tokens=64 is not in \[1, 63\]"):
        ask.written(of, engine, CHECKPOINT, NO_SHOTS, 64)
