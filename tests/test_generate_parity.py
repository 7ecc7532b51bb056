"""Generation with a cache writes what transformers' `generate` writes: the same tokens where
nothing is drawn, the same distribution where they are.
"""

from collections import Counter

import jax
import numpy as np
import pytest
from scipy import stats

from biomedlm_jax import step
from biomedlm_jax.generate import Engine, Request, generate
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from tests import peer
from tests.conftest import TINY, changed, on
from tests.peer import torch, transformers

EXPERIMENT = changed(
    TINY,
    model__layers=4,
    model__context=128,
    model__dropout=0.0,
    model__init_std=0.15,  # logits far enough apart that rounding decides nothing
)
GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}
DRAWS = 1500


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """PyTorch's threads wait for each other after each of the thousands of small products."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def params():
    return peer.drawn(EXPERIMENT.model, seed=3, spread=0.1)


@pytest.fixture(scope="module")
def theirs(params, vocabulary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "hf"
    return peer.opened(peer.exported(params, EXPERIMENT.model, vocabulary, folder))


@pytest.fixture(scope="module")
def engine(params, vocabulary):
    return engine_on((1, 1, 1), params, vocabulary)


def engine_on(mesh, params, vocabulary, slots=16) -> Engine:
    experiment, devices = on(EXPERIMENT, *mesh)
    placed = jax.device_put(params, step.state_shardings(experiment, devices).params)
    return Engine(EXPERIMENT.model, placed, Vocabulary(vocabulary), devices, slots=slots)


def prompts() -> list[tuple[int, ...]]:
    """64, of four lengths, none with the end of text."""
    draw = np.random.default_rng(0)
    lengths = np.repeat([1, 7, 16, 40], 16)
    return [tuple(draw.integers(2, EXPERIMENT.model.vocab, n).tolist()) for n in lengths]


def written_by(theirs, prompts: list, **options) -> list[tuple[int, ...]]:
    """What transformers' greedy search adds to each prompt, up to the end of text."""
    written = {}
    for length in {len(prompt) for prompt in prompts}:
        same = [prompt for prompt in prompts if len(prompt) == length]
        ids = torch.tensor(same)
        out = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=64,
            **options,
        )
        for prompt, row in zip(same, out[:, length:].tolist(), strict=True):
            end = row.index(1) if 1 in row else len(row)
            written[prompt] = tuple(row[:end])
    return [written[prompt] for prompt in prompts]


@pytest.fixture(scope="module")
def expected(theirs):
    """By repetition penalty, 1 being none."""
    return {p: written_by(theirs, prompts(), repetition_penalty=p) for p in (1.0, 1.3)}


def test_the_prompts_try_something(expected):
    """Most are written on to the end, none as one token for ever, and the penalty changes most."""
    assert sum(len(tokens) == 64 for tokens in expected[1.0]) > 32
    assert np.mean([len(set(tokens)) for tokens in expected[1.0]]) > 10
    assert sum(a != b for a, b in zip(*expected.values(), strict=True)) > 32


@pytest.mark.parametrize(
    "mesh", [(1, 1, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)], ids=str
)
def test_greedy_tokens_of_64_prompts(mesh, params, expected, vocabulary):
    engine = engine_on(mesh, params, vocabulary)
    requests = [
        Request(prompt=p, max_tokens=64, stop=(), **GREEDY, repetition_penalty=penalty)
        for penalty in expected
        for p in prompts()
    ]
    ours = [completion.tokens for completion in generate(engine, requests)]
    assert ours == expected[1.0] + expected[1.3]


def chances(theirs, prompt: tuple[int, ...], options: dict) -> np.ndarray:
    """Of each token to come next, by transformers' processors in the order of its `generate`."""
    ids = torch.tensor([prompt])
    processors = transformers.LogitsProcessorList(
        [transformers.RepetitionPenaltyLogitsProcessor(options["repetition_penalty"])]
    )
    processors.append(transformers.TemperatureLogitsWarper(options["temperature"]))
    if options["top_k"]:
        processors.append(transformers.TopKLogitsWarper(options["top_k"]))
    if options["top_p"] < 1:
        processors.append(transformers.TopPLogitsWarper(options["top_p"]))
    with torch.no_grad():
        scores = processors(ids, theirs(ids).logits[:, -1])
    return torch.softmax(scores.double(), -1)[0].numpy()


@pytest.mark.parametrize(
    ("length", "options"),
    [
        (1, {"temperature": 0.7, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}),
        (1, {"temperature": 1.3, "top_k": 0, "top_p": 0.7, "repetition_penalty": 1.0}),
        (2, {"temperature": 1.0, "top_k": 5, "top_p": 1.0, "repetition_penalty": 1.0}),
        (2, {"temperature": 1.5, "top_k": 8, "top_p": 0.9, "repetition_penalty": 1.3}),
    ],
    ids=str,
)
def test_draws_have_the_distribution(length, options, engine, theirs):
    """Of one token, or of two, of which the second comes out of the cache: Pearson's chi-square of
    the counts over seeds, cells with fewer than 5 expected taken together."""
    prompt = prompts()[40]
    ending = EXPERIMENT.model.vocab  # no token: a text that ended has no second one
    expected = Counter()
    for first, chance in enumerate(chances(theirs, prompt, options)):
        if length == 1 or first == 1 or not chance:
            expected[(first, ending)[:length]] += chance
            continue
        for second, after in enumerate(chances(theirs, (*prompt, first), options)):
            expected[first, second] += chance * after
    assert sum(expected.values()) == pytest.approx(1)

    requests = [
        Request(prompt=prompt, max_tokens=length, stop=(), seed=seed, **options)
        for seed in range(DRAWS)
    ]
    counts = Counter()
    for completion in generate(engine, requests):
        tokens = (*completion.tokens, *((1,) if completion.finish == "stop" else ()), ending)
        counts[tokens[:length]] += 1
    assert all(expected[outcome] for outcome in counts), "a token that was ruled out"
    common = [outcome for outcome, chance in expected.items() if DRAWS * chance >= 5]
    cells = [[counts[o], DRAWS * expected[o]] for o in common]
    rest = DRAWS - np.sum(cells, axis=0)
    if rest[1] > 1:
        cells.append(rest)
    observed, wanted = np.array(cells).T
    assert len(cells) > 4
    statistic = (np.square(observed - wanted) / wanted).sum()
    assert stats.chi2.sf(statistic, len(cells) - 1) > 1e-3
