"""What a client asks for: the body of a request, checked field by field.

The fields are those of OpenAI's completions [1], and `top_k` and `repetition_penalty`. A field that
this server does not have is refused by name, unless it has the value at which it does nothing; null
is the default everywhere.

[1] https://platform.openai.com/docs/api-reference/completions/create
"""

import dataclasses
import difflib
import json
import math
import secrets
from collections.abc import Callable
from typing import Any

from biomedlm_jax.config import Model
from biomedlm_jax.generate import LIMITS, Request
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from biomedlm_jax.serving.answers import Refused

BODY = 2**21  # bytes of a request's body
CHOICES = 512  # prompts x n of one request
STOPS, STOP_LENGTH = 4, 256  # stop strings, and characters of one
SEEDS = 2**32
TOP_K = 2**31 - 1  # of an int32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A request's settings; the defaults are those that OpenAI documents."""

    prompt: list[str] | list[list[int]]  # at least one, none of them empty
    model: str | None = None
    max_tokens: int = 16
    n: int = 1  # choices for each prompt, with the seeds seed, seed + 1, ...
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    echo: bool = False
    stream: bool = False
    stream_options: bool = False  # its only field, include_usage
    user: str = ""  # not looked at


def parse(body: bytes) -> Asked:
    """
    Raises:
      Refused: no JSON object, a field that is unknown or not supported, a wrong type or value.
    """
    fields = _decoded(body)
    for name, value in fields.items():
        if name in _UNSUPPORTED:
            neutral, instead = _UNSUPPORTED[name]
            if value is not None and (type(value), value) not in [(type(x), x) for x in neutral]:
                raise Refused(
                    400,
                    f"{name} is not supported by this server{instead}; leave it out",
                    param=name,
                    code="unsupported_parameter",
                )
        elif name not in _READ:
            near = difflib.get_close_matches(name, [*_READ, *_UNSUPPORTED], 1)
            hint = f"; do you mean {near[0]}?" if near else f"; there are {', '.join(_READ)}"
            raise Refused(400, f"unknown field {name[:64]!r}{hint}", code="unknown_parameter")
    if fields.get("prompt") is None:
        raise Refused(400, "prompt is missing; give the text to go on from", param="prompt")
    given = {
        name: read(name, fields[name])
        for name, read in _READ.items()
        if fields.get(name) is not None
    }
    if "stream_options" in given and not given.get("stream"):
        raise Refused(400, "stream_options is for stream=true only", param="stream_options")
    asked = Asked(**{"seed": secrets.randbits(32), **given})
    if len(asked.prompt) * asked.n > CHOICES:
        raise Refused(
            400,
            f"{len(asked.prompt)} prompts with n={asked.n} are {len(asked.prompt) * asked.n} "
            f"completions; a request may ask for {CHOICES}: send several requests",
            param="n" if asked.n > 1 else "prompt",
        )
    return asked


def requests(asked: Asked, model: Model, vocabulary: Vocabulary) -> list[Request]:
    """One for each choice, in their order: the choices of the first prompt come first.

    Raises:
      Refused: a prompt and max_tokens do not fit in the context, or an id is not in the vocabulary.
    """
    room = model.context - asked.max_tokens
    if room < 1:
        raise Refused(
            400,
            f"max_tokens={asked.max_tokens} is too many: the model's context is {model.context} "
            f"tokens, at least one of them the prompt's; max_tokens may be {model.context - 1}",
            param="max_tokens",
            code="context_length_exceeded",
        )
    rows = [_ids(prompt, vocabulary) for prompt in asked.prompt]
    for number, row in enumerate(rows):
        name = f"prompt[{number}]" if len(rows) > 1 else "prompt"
        if len(row) > room:
            raise Refused(
                400,
                f"{name} is {len(row)} tokens long; the model's context is {model.context} tokens, "
                f"of which max_tokens={asked.max_tokens} leaves {room} for it",
                param="prompt",
                code="context_length_exceeded",
            )
        if any(id >= vocabulary.size for id in row):
            raise Refused(
                400,
                f"{name} has the token id {max(row)}; ids go from 0 to {vocabulary.size - 1}",
                param="prompt",
            )
    return [
        Request(
            prompt=row,
            max_tokens=asked.max_tokens,
            temperature=asked.temperature,
            top_k=asked.top_k,
            top_p=asked.top_p,
            repetition_penalty=asked.repetition_penalty,
            seed=(asked.seed + i) % SEEDS,
            stop=asked.stop,
        )
        for row in rows
        for i in range(asked.n)
    ]


def echoes(asked: Asked, vocabulary: Vocabulary) -> list[str]:
    """The text that each choice begins with: its prompt's, if that was asked for."""
    if not asked.echo:
        return [""] * (len(asked.prompt) * asked.n)
    texts = [p if isinstance(p, str) else vocabulary.decode(p) for p in asked.prompt]
    return [text for text in texts for _ in range(asked.n)]


def _ids(prompt: str | list[int], vocabulary: Vocabulary) -> tuple[int, ...]:
    return tuple(vocabulary.encode(prompt) if isinstance(prompt, str) else prompt)


def _decoded(body: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a field is there twice")
        return found

    def number(text: str) -> float:
        raise ValueError(f"{text} is no number of JSON")

    try:
        found = json.loads(body.decode(), object_pairs_hook=unique, parse_constant=number)
    except RecursionError:
        raise Refused(400, "the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise Refused(400, f"the body is no JSON: {error.msg} at {place}") from None
    except UnicodeDecodeError:
        raise Refused(400, "the body is no JSON: it is not UTF-8") from None
    except ValueError as error:
        raise Refused(400, f"the body is no JSON to go by: {error}") from None
    if not isinstance(found, dict):
        raise Refused(
            400, f"the body is {_kind(found)}; it has to be an object with the field prompt"
        )
    return found


def _kind(value: Any) -> str:
    """What a value is in the words of JSON."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return names.get(type(value), "null" if value is None else "a number")


def _wrong(name: str, value: Any, allowed: str) -> Refused:
    shown = f"{value}" if type(value) in (int, float) and abs(value) < 1e30 else _kind(value)
    return Refused(400, f"{name} is {shown}; it has to be {allowed}", param=name)


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "a string")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise Refused(400, f"{name} has half of a surrogate pair, which is no text", param=name)
    return value


def _integer(low: int, high: int | None = None) -> Callable[[str, Any], int]:
    allowed = (
        f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    )

    def read(name: str, value: Any) -> int:
        if type(value) is not int or value < low or (high is not None and value > high):
            raise _wrong(name, value, allowed)
        return value

    return read


def _number(allowed: str, fits: Callable[[float], bool]) -> Callable[[str, Any], float]:
    def read(name: str, value: Any) -> float:
        if type(value) not in (int, float) or not fits(value) or not math.isfinite(value):
            raise _wrong(name, value, allowed)
        return float(value)

    return read


def _within(low: float, high: float) -> Callable[[str, Any], float]:
    return _number(f"a number from {low:g} to {high:g}", lambda value: low <= value <= high)


def _stop(name: str, value: Any) -> tuple[str, ...]:
    found = value if isinstance(value, list) else [value]
    if len(found) > STOPS or not all(isinstance(one, str) for one in found):
        raise _wrong(name, value, f"a string or an array of at most {STOPS} strings")
    for one in found:
        if not 0 < len(_string(name, one)) <= STOP_LENGTH:
            what = f"a string of {len(one)} characters; it may have 1 to {STOP_LENGTH}"
            raise Refused(400, f"{name} has {what}", param=name)
    return tuple(found)


def _prompt(name: str, value: Any) -> list[str] | list[list[int]]:
    def ids(one: Any) -> bool:
        return isinstance(one, list) and all(type(id) is int and id >= 0 for id in one)

    several = isinstance(value, list) and (not value or not ids(value))
    prompts = value if several else [value]
    texts = all(isinstance(prompt, str) for prompt in prompts)
    if not prompts or not (texts or all(ids(prompt) for prompt in prompts)):
        allowed = "a string, an array of strings, an array of token ids, or an array of such arrays"
        raise _wrong(name, value, allowed)
    for number, prompt in enumerate(prompts):
        place = f"{name}[{number}]" if several else name
        if not prompt:
            raise Refused(400, f"{place} is empty; it has to have at least one token", param=name)
        if texts:
            _string(place, prompt)
    return prompts


def _stream_options(name: str, value: Any) -> bool:
    if not isinstance(value, dict) or not value.keys() <= {"include_usage"}:
        raise _wrong(name, value, 'an object whose only field is "include_usage"')
    usage = value.get("include_usage")
    return usage is not None and _boolean(f"{name}.include_usage", usage)


_READ: dict[str, Callable[[str, Any], Any]] = {
    "prompt": _prompt,
    "model": _string,
    "max_tokens": _integer(1),
    "n": _integer(1, 128),
    # Divided by smaller ones, logits overflow float32.
    "temperature": _number("0, or a number from 1e-6 to 100", lambda x: x == 0 or 1e-6 <= x <= 100),
    "top_p": _within(*LIMITS["top_p"]),
    "top_k": _integer(0, TOP_K),
    "repetition_penalty": _within(*LIMITS["repetition_penalty"]),
    "seed": _integer(0, SEEDS - 1),
    "stop": _stop,
    "echo": _boolean,
    "stream": _boolean,
    "stream_options": _stream_options,
    "user": _string,
}
# The values besides null at which a field does nothing, and what to do instead.
_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "best_of": ((1,), ", which can not rank completions; n gives several"),
    "frequency_penalty": ((0, 0.0), "; repetition_penalty is"),
    "presence_penalty": ((0, 0.0), "; repetition_penalty is"),
    "logit_bias": (({},), ""),
    "logprobs": ((), ""),
    "suffix": (("",), ", whose model writes from left to right"),
    "messages": ((), ", whose model completes text and does not chat; give a prompt"),
}
