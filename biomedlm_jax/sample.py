"""Text from a model: python -m biomedlm_jax.sample --checkpoint=DIR --prompt="Aspirin inhibits"

DIR is the --workdir of a run, what `hf.load` wrote, or a Hugging Face folder. One --prompt, or
--interactive, is answered as it is written. Several, or --prompts=FILE with a JSON string in each
line, are answered by a JSON object a line, in their order. What the other prompts are has no
influence on an answer; how many are answered at once, which is --slots at most, has, by rounding.
From Python: `open_engine`, `generate.generate`.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from absl import flags
from tqdm import tqdm

from biomedlm_jax import entry
from biomedlm_jax.entry import UserError
from biomedlm_jax.generate import Engine, Piece, Request, joined, stream

SLOTS = 256  # at most: a program has an operation for each of them in every layer


def open_engine(
    place: str, *, slots: int, pieces: int | None = None, compute_dtype: str | None = None
) -> Engine:
    """The model of `place` on all devices that are here, see `mesh.for_generation`.

    slots: requests at once, rounded up to what the devices share evenly.
    compute_dtype: float32 or bfloat16; None is the model's own.

    Raises:
      UserError: see `start.find` and `mesh.for_generation`; or no vocabulary came with the weights.
    """
    from biomedlm_jax import start
    from biomedlm_jax.generation.slots import groups
    from biomedlm_jax.mesh import for_generation
    from biomedlm_jax.pipeline.vocabulary import Vocabulary

    source = start.find(place)
    if source.vocabulary is None:
        raise UserError(
            f"{place} has no vocabulary, so text can be neither read nor written; put the "
            "tokenizer.json that belongs to it there"
        )
    model = source.model
    if compute_dtype is not None:
        model = dataclasses.replace(model, compute_dtype=compute_dtype)
    mesh = for_generation(model, pieces)
    each = groups(mesh)
    return Engine(
        model,
        start.params(source, mesh),
        Vocabulary(source.vocabulary),
        mesh,
        slots=-(-slots // each) * each,
    )


def request(engine: Engine, prompt: str) -> Request:
    """As the flags say. A prompt without text begins as a document does, after the end of one.

    Raises:
      UserError: it is no text, or does not fit.
    """
    given = flags.FLAGS
    if any("\ud800" <= char <= "\udfff" for char in prompt):  # so Python spells what is no UTF-8
        raise UserError(f"a prompt is no UTF-8, or has half of a surrogate pair: {prompt[:60]!a}")
    tokens = engine.vocabulary.encode(prompt) or [engine.vocabulary.eos_id]
    room = engine.model.context - len(tokens)
    if room < 1:
        raise UserError(
            f"a prompt has {len(tokens)} tokens, and the context is {engine.model.context}; "
            f"shorten it: {prompt[:60]!r}..."
        )
    found = Request(
        prompt=tuple(tokens),
        max_tokens=room if given.max_tokens is None else given.max_tokens,
        temperature=given.temperature,
        top_k=given.top_k,
        top_p=given.top_p,
        repetition_penalty=given.repetition_penalty,
        seed=given.seed,
        stop=tuple(given.stop),
    )
    engine.check(found)
    return found


def prompts_in(file: Path) -> list[str]:
    """Raises UserError where it can not be read, has no line, or one that is no JSON string."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts={file} can not be read: {error}") from error
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"--prompts={file} is empty; put a JSON string in each line")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"--prompts={file}, line {number} is no JSON: {error}") from error
        if not isinstance(value, str):
            raise UserError(f"--prompts={file}, line {number} is no string but {line[:60]}")
        found.append(value)
    return found


def in_order(engine: Engine, requests: list[Request]) -> Iterator[dict[str, object]]:
    """One answer after the other, as soon as those before it are there too."""
    pieces: dict[int, list[Piece]] = {number: [] for number in range(len(requests))}
    coming = 0
    for number, piece in stream(engine, requests):
        pieces[number].append(piece)
        while coming in pieces and pieces[coming] and pieces[coming][-1].finish:
            whole = joined(pieces.pop(coming))
            yield {"text": whole.text, "finish": whole.finish, "tokens": len(whole.tokens)}
            coming += 1


def answer(engine: Engine, prompt: str) -> None:
    """Prints the text as it comes."""
    for _, piece in stream(engine, [request(engine, prompt)]):
        print(piece.text, end="", flush=True)
    print()


def converse(engine: Engine, lines: Iterable[str]) -> None:
    """Each line is a prompt of its own; what does not fit is said, and the next one is read, until
    there is none (Ctrl-D) or Ctrl-C."""
    sign = "> " if sys.stdin.isatty() else ""
    if sign:
        print("a prompt a line; Ctrl-D ends it")
    print(sign, end="", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        for line in lines:
            try:
                answer(engine, line.rstrip("\n"))
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
            print(sign, end="", flush=True)
    if sign:
        print()


def main() -> None:
    given = flags.FLAGS
    prompts = [*given.prompt, *(prompts_in(Path(given.prompts)) if given.prompts else ())]
    if bool(prompts) == given.interactive:
        raise UserError("give --prompt or --prompts, or else --interactive")
    slots = min(len(prompts) or 1, given.slots)
    engine = open_engine(
        given.checkpoint, slots=slots, pieces=given.pieces, compute_dtype=given.compute_dtype
    )
    if given.interactive:
        # What is no UTF-8 is one prompt's error, not the end.
        with open(
            sys.stdin.fileno(), encoding="utf-8", errors="surrogateescape", closefd=False
        ) as lines:
            converse(engine, lines)
        return
    if len(prompts) == 1 and not given.prompts:
        answer(engine, prompts[0])
        return
    requests = [request(engine, prompt) for prompt in prompts]
    answers = in_order(engine, requests)
    for prompt, found in zip(prompts, tqdm(answers, total=len(prompts)), strict=True):
        print(json.dumps({"prompt": prompt, **found}, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "a run, or a Hugging Face folder", required=True)
    flags.DEFINE_multi_string("prompt", [], "what is to be continued; can be given again")
    flags.DEFINE_string("prompts", None, "a file of prompts, a JSON string in each line")
    flags.DEFINE_bool("interactive", False, "read prompts from the keyboard")
    flags.DEFINE_integer("max_tokens", None, "of an answer; not given is to the end of the context")
    flags.DEFINE_float("temperature", 0.0, "0 is greedy")
    flags.DEFINE_integer("top_k", 0, "draw from the likeliest k only; 0 is all")
    flags.DEFINE_float("top_p", 1.0, "draw from the likeliest of this probability together")
    flags.DEFINE_float("repetition_penalty", 1.0, "above 1: what was written is less likely")
    flags.DEFINE_integer("seed", 0, "of what is drawn")
    flags.DEFINE_multi_string("stop", [], "a text that ends the answer; can be given again")
    flags.DEFINE_integer("slots", 16, "prompts that are answered at once", 1, SLOTS)
    flags.DEFINE_integer("pieces", None, "of a layer, on as many devices; not given: all, on CPU 1")
    flags.DEFINE_enum("compute_dtype", None, ["float32", "bfloat16"], "not given: the model's")
    entry.run(main)
