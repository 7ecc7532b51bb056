"""Generation for many requests at once: each has a slot while it runs, and a slot that becomes
free is taken by the next, whatever the others are at.

    engine = Engine(model, params, vocabulary, mesh, slots=16)
    for completion in generate(engine, [Request(...), ...]): ...

Two large programs are compiled, for a prompt and for one more token of all slots, each once for
every length of `slots.lengths`. What a request gets is a function of the request, the weights, the
mesh and the number of slots: prompts go through the model alone on their devices, and a token's
row knows nothing of other rows.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from biomedlm_jax.config import Model
from biomedlm_jax.entry import UserError
from biomedlm_jax.generation import slots as slots_on
from biomedlm_jax.generation.sampling import Options
from biomedlm_jax.generation.writing import Finish, Writing
from biomedlm_jax.model import decode
from biomedlm_jax.pipeline.vocabulary import Vocabulary

# Beyond these float32 knows no difference, or none that is good for anything.
LIMITS = {
    "temperature": (1e-6, 100.0),  # or 0
    "top_p": (1e-6, 1.0),
    "repetition_penalty": (0.01, 100.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    prompt: tuple[int, ...]  # token ids, at least one
    max_tokens: int  # with the prompt, at most the context
    temperature: float  # 0 is greedy
    top_k: int  # 0 is all
    top_p: float  # 1 is all
    repetition_penalty: float  # 1 is none
    seed: int  # of 32 bits
    stop: tuple[str, ...]  # texts that end it, and are not in it


@dataclasses.dataclass(frozen=True)
class Piece:
    """What a step added to a request."""

    request: int  # what `Engine.add` returned
    text: str  # that is certain: no beginning of a stop text, no part of a character
    tokens: tuple[int, ...]  # the end of text is none
    finish: Finish | None  # of the last piece: a stop text or the end of text, or max_tokens


@dataclasses.dataclass(frozen=True)
class Completion:
    text: str
    tokens: tuple[int, ...]
    finish: Finish


class Engine:
    """Not for several threads at a time. With several processes all make one and call the same.

    model: its compute_dtype is that of the cache and of the products.
    params: float32 as in `gpt.init`, on `mesh`; the engine makes its own copy.
    mesh: any of `mesh.make`; where the sequence is computed in pieces, each piece's devices take
      requests of their own instead.
    slots: requests that run at once; a multiple of the groups of devices that the batch is split
      over (data x fsdp x context).
    of_prompts: tokens that the model has beyond the vocabulary, for prompts alone: they are never
      written.

    Raises:
      UserError: the model has another number of them, or slots can not be split.
    """

    def __init__(
        self,
        model: Model,
        params: dict,
        vocabulary: Vocabulary,
        mesh: Mesh,
        *,
        slots: int,
        of_prompts: int = 0,
    ) -> None:
        if (more := model.vocab - vocabulary.size) != of_prompts:
            raise UserError(
                f"the model has {more} tokens more than its vocabulary, those of the prompts that "
                "it was fine-tuned with, and this puts none into a prompt; configs/eval_paper.py "
                "asks it a benchmark, and the model card of `python -m biomedlm_jax.hf.save` says "
                "how it is asked"
            )
        self.model, self.vocabulary, self.slots = model, vocabulary, slots
        mesh = slots_on.without_context(mesh)
        groups = slots_on.groups(mesh)
        if slots < 1 or slots % groups:
            raise UserError(
                f"slots={slots} is no multiple of the {groups} groups of devices that requests "
                "are split over; choose one"
            )
        self._each = slots // groups  # slots of a group of devices
        self._groups = groups
        self._weights = decode.weights(params, model, mesh)
        self._programs = slots_on.programs(model, mesh, vocabulary.size)
        self._running: dict[int, tuple[int, Writing]] = {}  # by slot; tokens of the prompt
        self._waiting: dict[int, tuple[Request, Writing]] = {}  # have a slot, are not begun
        self._handles = 0
        self._state: slots_on.State | None = None

    @property
    def free(self) -> int:
        return self.slots - len(self._running) - len(self._waiting)

    def check(self, request: Request) -> None:
        """Raises UserError with what does not fit."""
        context, prompt = self.model.context, request.prompt
        outside = [token for token in prompt if not 0 <= token < self.model.vocab]
        wrong = {
            "the prompt has no token; begin with the end of text": not prompt,
            f"token {outside[0] if outside else None} of the prompt is not in the vocabulary of "
            f"{self.model.vocab}": outside,
            f"max_tokens={request.max_tokens} is not positive": request.max_tokens < 1,
            f"the prompt's {len(prompt)} tokens and max_tokens={request.max_tokens} are more than "
            f"the {context} of the context; with this prompt at most {context - len(prompt)} fit": (
                len(prompt) + request.max_tokens > context
            ),
            f"top_k={request.top_k} is not in [0, 2**31)": not 0 <= request.top_k < 2**31,
            f"seed={request.seed} is not in [0, 2**32)": not 0 <= request.seed < 2**32,
            "a stop text is empty": "" in request.stop,
        }
        for name, (least, most) in LIMITS.items():
            value = getattr(request, name)
            if name == "temperature" and value == 0:
                continue
            wrong[f"{name}={value} is not in [{least}, {most}]"] = not least <= value <= most
        if found := [sentence for sentence, applies in wrong.items() if applies]:
            raise UserError("; ".join(found))

    def add(self, request: Request) -> int:
        """Takes a slot; returns what `Piece.request` will say.

        Raises:
          UserError: see `check`.
          RuntimeError: no slot is free.
        """
        self.check(request)
        if not self.free:
            raise RuntimeError(f"all {self.slots} slots are taken")
        handle, self._handles = self._handles, self._handles + 1
        # One of each group of devices after the other.
        order = (g * self._each + i for i in range(self._each) for g in range(self._groups))
        slot = next(slot for slot in order if slot not in self._running | self._waiting)
        writing = Writing(handle, self.vocabulary, request.stop, request.max_tokens)
        self._waiting[slot] = request, writing
        return handle

    def cancel(self, handle: int) -> None:
        """Frees the slot of a request; nothing happens for one that has ended."""
        self._waiting = {s: x for s, x in self._waiting.items() if x[1].handle != handle}
        self._running = {s: x for s, x in self._running.items() if x[1].handle != handle}

    def step(self) -> list[Piece]:
        """Begins the requests that were added, and writes one more token of those that ran."""
        pieces = []
        if self._running:
            places = max(prompt + len(done.tokens) for prompt, done in self._running.values())
            self._state, chosen = self._programs.token(self._weights, self._room(places))
            written = np.asarray(chosen)
            pieces += [self._written(slot, written[slot]) for slot in list(self._running)]
        while self._waiting:
            pieces += self._begin()
        return pieces

    def _begin(self) -> list[Piece]:
        """Puts prompts through the model: one for each group of devices, all with as many tokens
        as one of `slots.lengths`, so that what comes out does not depend on what came together."""
        chosen: dict[int, int] = {}  # slots, by group
        for slot, (request, _) in self._waiting.items():
            own = slots_on.fitting(len(request.prompt), self.model.context)
            length = own if not chosen else length
            if own == length:
                chosen.setdefault(slot // self._each, slot)
        tokens = np.full((self._groups, length), self.vocabulary.eos_id, np.int32)
        last = np.zeros(self._groups, np.int32)
        where = np.full(self._groups, self._each, np.int32)  # which is no slot
        options = {
            name: np.zeros(self._groups, kind) for name, kind in slots_on.OPTIONS._asdict().items()
        }
        for group, slot in chosen.items():
            request, _ = self._waiting[slot]
            tokens[group, : len(request.prompt)] = request.prompt
            last[group], where[group] = len(request.prompt) - 1, slot % self._each
            for name, rows in options.items():
                rows[group] = getattr(request, name)
        put = self._programs.put
        of_prompts = Options(**jax.tree.map(put, options))
        rows, firsts = self._programs.prompt(self._weights, put(tokens), put(last), of_prompts)
        self._state = self._programs.insert(self._room(length), rows, put(where))
        firsts, pieces = np.asarray(firsts), []
        for group, slot in chosen.items():
            request, writing = self._waiting.pop(slot)
            self._running[slot] = len(request.prompt), writing
            pieces.append(self._written(slot, firsts[group]))
        return pieces

    def _written(self, slot: int, token: int) -> Piece:
        _, writing = self._running[slot]
        text, tokens, finish = writing.add(int(token))
        if finish:
            del self._running[slot]
        return Piece(writing.handle, text, tokens, finish)

    def _room(self, tokens: int) -> slots_on.State:
        """The state, whose cache has `tokens` places, or more while others need them."""
        length = slots_on.fitting(tokens, self.model.context)
        if self._state is None or (not self._running and length < self._state.length):
            self._state = None  # before the new one, so that there are never two
            self._state = self._programs.empty(self.slots, length)
        elif length > self._state.length:
            self._state = self._programs.grown(self._state, length)
        return self._state


def stream(engine: Engine, requests: Iterable[Request]) -> Iterator[tuple[int, Piece]]:
    """(which request, a piece of it) as they come, as many requests at once as there are slots.
    The engine runs no other requests meanwhile."""
    coming = enumerate(requests)
    running: dict[int, int] = {}
    try:
        while True:
            for number, request in itertools.islice(coming, engine.free):
                running[engine.add(request)] = number
            if not running:
                return
            for piece in engine.step():
                number = running.pop(piece.request) if piece.finish else running[piece.request]
                yield number, piece
    finally:  # also where nobody wants the rest
        for handle in running:
            engine.cancel(handle)


def generate(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """What each request is completed with.

    Raises:
      UserError: one does not fit, see `Engine.check`; before any is begun.
    """
    for request in requests:
        engine.check(request)
    pieces: list[list[Piece]] = [[] for _ in requests]
    for number, piece in stream(engine, requests):
        pieces[number].append(piece)
    return [joined(of_one) for of_one in pieces]


def joined(pieces: Sequence[Piece]) -> Completion:
    """All of one request."""
    finish = pieces[-1].finish
    assert finish is not None
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    return Completion("".join(piece.text for piece in pieces), tokens, finish)
