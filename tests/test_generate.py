"""The engine: what it writes is what `forward` finds likeliest, on any mesh and in any company."""

import dataclasses

import numpy as np
import pytest

from biomedlm_jax import step
from biomedlm_jax.entry import UserError
from biomedlm_jax.generate import Engine, Request, generate, joined, stream
from biomedlm_jax.generation.slots import lengths
from biomedlm_jax.mesh import for_generation
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from tests.conftest import TINY, changed, on, put, started

EXPERIMENT = changed(TINY, model__context=160, model__init_std=0.1)  # so that logits differ
LENGTHS = (3, 70, 5, 9, 33, 100, 1, 64, 65, 2)  # of prompts, below and above the shortest program
SHAPES = [(1, 2, 2, 2), *(pytest.param(s, marks=pytest.mark.slow) for s in [(4, 2, 1), (1, 1, 4)])]


def request(prompt, **changes) -> Request:
    values = dict(max_tokens=12, temperature=0.0, top_k=0, top_p=1.0, seed=0, stop=())
    values |= {"repetition_penalty": 1.0, **changes}
    return Request(prompt=tuple(prompt), **values)


def prompts() -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [draw.integers(2, EXPERIMENT.model.vocab, length).tolist() for length in LENGTHS]


def mixed() -> list[Request]:
    """Of every kind, greedy and drawn."""
    return [
        request(prompt, max_tokens=5 + n, temperature=n % 3 * 0.5, top_k=n % 4 * 10, seed=n)
        for n, prompt in enumerate(prompts())
    ]


@pytest.fixture(scope="module")
def words(vocabulary) -> Vocabulary:
    return Vocabulary(vocabulary)


@pytest.fixture(scope="module")
def make(words):
    def engine(*shape: int, slots: int = 8, **settings) -> Engine:
        experiment, mesh = on(changed(EXPERIMENT, **settings), *shape)
        params = started(experiment, mesh).params
        return Engine(experiment.model, params, words, mesh, slots=slots)

    return engine


@pytest.fixture(scope="module")
def engine(make) -> Engine:
    return make(1, 1, 1)


@pytest.fixture(scope="module")
def answers(engine) -> list:
    return generate(engine, mixed())


def test_greedy_is_the_likeliest_token_of_forward(engine):
    experiment, mesh = on(EXPERIMENT, 1, 1, 1)
    params, forward = started(experiment, mesh).params, step.forward(experiment, mesh)
    for prompt, completion in zip(
        prompts(), generate(engine, [request(prompt) for prompt in prompts()]), strict=True
    ):
        row = np.full((1, experiment.model.context), 7, np.int32)
        whole = [*prompt, *completion.tokens]
        row[0, : len(whole)] = whole
        logits = np.asarray(forward(params, put(row, mesh)))[0]
        best = logits[len(prompt) - 1 :].argmax(-1)[: len(completion.tokens)]
        assert completion.tokens == tuple(best.tolist())
        if completion.finish == "stop":
            assert logits[len(whole) - 1].argmax() == engine.vocabulary.eos_id
        else:
            assert len(completion.tokens) == 12


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_mesh_does_not_matter(make, answers, shape):
    assert generate(make(*shape), mixed()) == answers


def test_company_does_not_matter(engine, make, answers):
    """Alone, in another order, in other slots, with others that come and go."""
    alone = [generate(engine, [one])[0] for one in mixed()]
    assert alone == answers
    assert generate(engine, mixed()[::-1])[::-1] == answers
    assert generate(make(1, 1, 1, slots=3), mixed()) == answers


def test_requests_come_and_go_at_any_time(engine, answers):
    waiting, running, pieces = list(enumerate(mixed())), {}, {n: [] for n in range(len(mixed()))}
    gone = None
    for turn in range(200):
        if waiting and turn % 3 == 0 and engine.free:
            number, one = waiting.pop(0)
            running[engine.add(one)] = number
        if turn == 4:
            gone = next(iter(running))
            engine.cancel(gone)
            pieces.pop(running.pop(gone))
        for piece in engine.step():
            assert piece.request != gone or turn < 4
            if piece.request in running:
                pieces[running[piece.request]].append(piece)
    assert engine.free == engine.slots
    assert {n: joined(found) for n, found in pieces.items()} == {n: answers[n] for n in pieces}


def test_stream_tells_what_generate_joins(engine, answers):
    told = ["" for _ in answers]
    for number, piece in stream(engine, mixed()):
        told[number] += piece.text
    assert told == [answer.text for answer in answers]


def test_a_draw_is_of_its_seed(engine):
    drawn = [request([5, 6, 7], temperature=1.0, seed=seed) for seed in (1, 2, 1)]
    first, other, again = generate(engine, drawn)
    assert first == again != other


def test_bfloat16_writes_what_it_finds_likeliest(make):
    experiment, mesh = on(changed(EXPERIMENT, model__compute_dtype="bfloat16"), 1, 1, 2)
    params, forward = started(experiment, mesh).params, step.forward(experiment, mesh)
    (found,) = generate(
        make(1, 1, 2, model__compute_dtype="bfloat16"), [request([5, 6, 7], max_tokens=6)]
    )
    row = np.full((1, experiment.model.context), 7, np.int32)
    whole = [5, 6, 7, *found.tokens]
    row[0, : len(whole)] = whole
    logits = np.asarray(forward(params, put(row, mesh)))[0, 2 : len(whole) - 1]
    written = logits[np.arange(len(found.tokens)), list(found.tokens)]
    assert (written >= logits.max(-1) - 0.05).all()  # bfloat16 products, added up in other orders


def test_a_stop_text_ends_it_and_is_not_in_it(engine, words):
    text = generate(engine, [request(prompts()[0], max_tokens=40)])[0].text
    assert len(text) > 8
    (found,) = generate(engine, [request(prompts()[0], max_tokens=40, stop=(text[4:7],))])
    assert found.text == text[: text.index(text[4:7])]
    assert found.finish == "stop"


def test_the_last_position_is_used(engine):
    """And every one before it, though the cache grows on the way."""
    experiment, mesh = on(EXPERIMENT, 1, 1, 1)
    context, params = experiment.model.context, started(experiment, mesh).params
    prompt = prompts()[4]
    (found,) = generate(engine, [request(prompt, max_tokens=context - len(prompt))])
    whole = [*prompt, *found.tokens]
    assert len(whole) == context, "the model ends its text: choose another prompt"
    logits = np.asarray(step.forward(experiment, mesh)(params, put(np.int32([whole]), mesh)))[0]
    best = logits[len(prompt) - 1 : -1].argmax(-1)
    assert tuple(best.tolist()) == found.tokens


def test_a_stream_that_is_given_up_frees_its_slots(engine, answers):
    assert next(stream(engine, mixed()))[0] in range(len(answers))
    assert engine.free == engine.slots
    assert generate(engine, mixed()[:2]) == answers[:2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": ()}, "no token"),
        ({"prompt": (3, 300)}, "token 300 of the prompt"),
        ({"prompt": (-1,)}, "token -1"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": 158}, "at most 157 fit"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_k": 2**31}, "top_k=2147483648"),
        ({"top_p": 1e-40}, "top_p=1e-40"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"stop": ("",)}, "stop text is empty"),
    ],
)
def test_what_does_not_fit_is_refused(engine, changes, said):
    wrong = dataclasses.replace(request([3, 4, 5]), **changes)
    with pytest.raises(UserError, match=said):
        generate(engine, [request([3]), wrong])
    assert engine.free == engine.slots


def test_slots_are_for_all_groups(make, engine):
    with pytest.raises(UserError, match="slots=3 is no multiple of the 4 groups"):
        make(2, 2, 1, slots=3)
    handles = [engine.add(request([3])) for _ in range(engine.slots)]
    with pytest.raises(RuntimeError, match="all 8 slots"):
        engine.add(request([3]))
    for handle in handles:
        engine.cancel(handle)
    assert engine.free == engine.slots


def test_lengths_that_programs_are_compiled_for():
    assert lengths(1024) == [64, 128, 256, 512, 1024]
    assert lengths(160) == [64, 128, 160]
    assert lengths(32) == [32]


def test_pieces_of_a_layer():
    assert dict(for_generation(EXPERIMENT.model, 2).shape)["model"] == 2
    with pytest.raises(UserError, match=r"--pieces=3 does not divide .*heads=4"):
        for_generation(EXPERIMENT.model, 3)
