"""What a client may ask for, and how it hears what it may not."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biomedlm_jax import generate
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from biomedlm_jax.serving import asked
from biomedlm_jax.serving.answers import Refused
from tests.conftest import TINY


@pytest.fixture(scope="module")
def words(vocabulary):
    return Vocabulary(vocabulary)


def parsed(**fields):
    return asked.parse(json.dumps({"prompt": "Kari", **fields}).encode())


def test_defaults_are_those_of_openai(words):
    found = parsed()
    assert (found.max_tokens, found.n, found.temperature, found.top_p) == (16, 1, 1.0, 1.0)
    assert (found.stop, found.echo, found.stream, found.model) == ((), False, False, None)
    (request,) = asked.requests(found, TINY.model, words)
    assert request.prompt == tuple(words.encode("Kari"))
    assert (request.top_k, request.repetition_penalty) == (0, 1.0)
    assert parsed(max_tokens=None, stop=None, seed=None, logprobs=None, suffix=None).stop == ()


def test_a_seed_that_is_not_given_is_drawn():
    assert len({parsed().seed for _ in range(8)}) > 1
    assert parsed(seed=7).seed == 7


def test_choices_of_a_prompt_have_seeds_in_a_row(words):
    found = parsed(prompt=["Kari", "Tomel"], n=3, seed=2**32 - 2)
    requests = asked.requests(found, TINY.model, words)
    assert [request.seed for request in requests] == [2**32 - 2, 2**32 - 1, 0] * 2
    assert [words.decode(list(r.prompt)) for r in requests] == ["Kari"] * 3 + ["Tomel"] * 3


@pytest.mark.parametrize(
    ("prompt", "rows"),
    [([5, 6], [(5, 6)]), ([[5, 6], [7]], [(5, 6), (7,)]), (["Kari"], None)],
)
def test_prompts_are_text_or_ids(prompt, rows, words):
    requests = asked.requests(parsed(prompt=prompt), TINY.model, words)
    assert [r.prompt for r in requests] == (rows or [tuple(words.encode("Kari"))])


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        (dict(prompt=None), "prompt", "missing"),
        (dict(prompt=""), "prompt", "empty"),
        (dict(prompt=[]), "prompt", "array of strings"),
        (dict(prompt=["a", ""]), "prompt", "prompt[1] is empty"),
        (dict(prompt=[[]]), "prompt", "prompt[0] is empty"),
        (dict(prompt=["a", 3]), "prompt", "array of strings"),
        (dict(prompt=[True]), "prompt", "array of strings"),
        (dict(prompt=[-1]), "prompt", "array of strings"),
        (dict(prompt={"text": "a"}), "prompt", "is an object"),
        (dict(prompt="\ud800"), "prompt", "surrogate"),
        (dict(max_tokens=0), "max_tokens", "is 0; it has to be an integer of at least 1"),
        (dict(max_tokens="9"), "max_tokens", "is a string"),
        (dict(max_tokens=1.0), "max_tokens", "is 1.0; it has to be an integer"),
        (dict(max_tokens=True), "max_tokens", "is a boolean"),
        (dict(n=129), "n", "from 1 to 128"),
        (dict(n=128, prompt=["a"] * 5), "n", "640 completions"),
        (dict(prompt=["a"] * 513), "prompt", "513 completions"),
        (dict(temperature=100.1), "temperature", "1e-6 to 100"),
        (dict(temperature=-0.1), "temperature", "1e-6 to 100"),
        (dict(temperature=1e-37), "temperature", "is 1e-37; it has to be 0, or a number from 1e-6"),
        (dict(top_p=0), "top_p", "1e-06 to 1"),
        (dict(top_p=1e-40), "top_p", "is 1e-40; it has to be a number from 1e-06 to 1"),
        (dict(top_p=1.1), "top_p", "1e-06 to 1"),
        (dict(top_k=-1), "top_k", "is -1; it has to be an integer from 0"),
        (dict(top_k=2**31), "top_k", "is 2147483648; it has to be an integer from 0 to 2147483647"),
        (dict(repetition_penalty=0), "repetition_penalty", "0.01 to 100"),
        (dict(repetition_penalty=1e-40), "repetition_penalty", "is 1e-40; it has to be a number"),
        (dict(repetition_penalty=10**400), "repetition_penalty", "0.01 to 100"),
        (dict(seed=2**32), "seed", "from 0 to 4294967295"),
        (dict(seed=-1), "seed", "is -1"),
        (dict(stop=["a"] * 5), "stop", "at most 4"),
        (dict(stop=""), "stop", "0 characters"),
        (dict(stop=["a", "b" * 257]), "stop", "257 characters"),
        (dict(stop=3), "stop", "is 3"),
        (dict(stop="\udfff"), "stop", "surrogate"),
        (dict(echo="yes"), "echo", "true or false"),
        (dict(stream=1), "stream", "true or false"),
        (dict(stream_options={"include_usage": True}), "stream_options", "stream=true only"),
        (dict(stream=True, stream_options={"x": 1}), "stream_options", "include_usage"),
        (dict(stream=True, stream_options={"include_usage": 1}), "stream_options.include_usage",
         "true or false"),
        (dict(model=3), "model", "a string"),
        (dict(logprobs=0), "logprobs", "not supported"),
        (dict(best_of=2), "best_of", "not supported"),
        (dict(suffix="end"), "suffix", "left to right"),
        (dict(frequency_penalty=0.1), "frequency_penalty", "repetition_penalty is"),
        (dict(presence_penalty=False), "presence_penalty", "not supported"),
        (dict(logit_bias={"5": 1}), "logit_bias", "not supported"),
        (dict(messages=[]), "messages", "does not chat"),
        (dict(temprature=1), None, "unknown field 'temprature'; do you mean temperature?"),
        (dict(zzz=1), None, "unknown field 'zzz'; there are prompt, model"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_what_is_right(fields, param, words):
    with pytest.raises(Refused) as error:
        parsed(**fields)
    assert error.value.status == 400
    assert error.value.param == param
    assert words in error.value.message


def test_what_does_nothing_is_no_fault():
    parsed(best_of=1, suffix="", logit_bias={}, frequency_penalty=0, presence_penalty=0.0, user="u")
    parsed(stream=True, stream_options={"include_usage": None})
    assert parsed(stop=[]).stop == ()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no JSON"),
        (b"{", "line 1, column 2"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[1]", "is an array"),
        (b"null", "is null"),
        (b'{"prompt": "a", "prompt": "b"}', "there twice"),
        (b'{"prompt": "a", "temperature": NaN}', "NaN"),
        (b'{"prompt": "a", "temperature": 1e999}', "temperature is a number"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "no JSON"),
        (b'{"prompt": ' + b"[" * 200000 + b"]" * 200000 + b"}", "nested too deeply"),
    ],
)
def test_a_body_that_is_no_json_object(body, words):
    with pytest.raises(Refused, match=words) as error:
        asked.parse(body)
    assert error.value.status == 400


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [*asked._READ, *asked._UNSUPPORTED, "other"]


@given(st.dictionaries(st.sampled_from(FIELDS), anything), st.booleans())
def test_any_body_is_parsed_or_refused(words, fields, valid):
    body = json.dumps({**({"prompt": "Kari"} if valid else {}), **fields}).encode()
    with contextlib.suppress(Refused):
        requests = asked.requests(asked.parse(body), TINY.model, words)
        assert all(r.prompt and 0 <= r.seed < 2**32 for r in requests)


NUMBERS = ("temperature", "top_p", "top_k", "repetition_penalty", "seed", "max_tokens", "n")
EDGES = (0, 1, 31, 100, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**64, 1e39, 0.01, 1e-6, 1e-37, 1e-40)
numbers = st.sampled_from(EDGES) | st.integers() | st.floats()


def refused_or_answered(engine, **fields):
    with contextlib.suppress(Refused):
        for request in asked.requests(parsed(**fields), engine.model, engine.vocabulary):
            handle = engine.add(request)
            try:
                assert all(0 <= token < 300 for piece in engine.step() for token in piece.tokens)
            finally:
                engine.cancel(handle)


@given(st.dictionaries(st.sampled_from(NUMBERS), numbers, min_size=1, max_size=3))
def test_an_engine_can_do_what_is_accepted(make_engine, fields):
    refused_or_answered(make_engine(), **fields)


@pytest.mark.parametrize("name", NUMBERS)
def test_an_engine_can_do_what_is_at_an_edge(make_engine, name):
    for value in EDGES:
        refused_or_answered(make_engine(), **{name: value})


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=1e-6, top_p=1e-6, top_k=2**31 - 1, repetition_penalty=0.01),
        dict(temperature=1e-6, repetition_penalty=100),
        dict(temperature=100, top_p=1, top_k=1, seed=2**32 - 1),
        dict(temperature=0, repetition_penalty=0.01, top_p=1e-6),
    ],
)
def test_the_last_values_that_are_allowed_are_answered(make_engine, settings):
    engine = make_engine()
    found = asked.requests(parsed(**settings), engine.model, engine.vocabulary)
    (completion,) = generate.generate(engine, found)
    assert completion.tokens or completion.finish == "stop"


def test_how_long_a_prompt_is_and_what_fits(words):
    prompt = [[5] * 8, [5] * 20]
    with pytest.raises(Refused) as error:
        asked.requests(parsed(prompt=prompt), TINY.model, words)
    assert error.value.code == "context_length_exceeded"
    for part in ("prompt[1] is 20 tokens long", "context is 32 tokens", "max_tokens=16 leaves 16"):
        assert part in error.value.message
    assert len(asked.requests(parsed(prompt=[5] * 16), TINY.model, words)) == 1
    with pytest.raises(Refused, match="max_tokens may be 31"):
        asked.requests(parsed(max_tokens=32), TINY.model, words)
    with pytest.raises(Refused, match=r"token id 300; ids go from 0 to 299"):
        asked.requests(parsed(prompt=[5, 300]), TINY.model, words)


def test_echo_is_the_text_as_it_came(words):
    text = "Kari\u2581 \u2028tomel"
    found = parsed(prompt=[text, "a"], n=2, echo=True)
    assert asked.echoes(found, words) == [text, text, "a", "a"]
    ids = parsed(prompt=words.encode("Kari tomel"), echo=True)
    assert asked.echoes(ids, words) == ["Kari tomel"]
    assert asked.echoes(parsed(n=2), words) == ["", ""]
