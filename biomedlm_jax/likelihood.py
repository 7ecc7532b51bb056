"""How likely a model finds texts after others: what answers without fine-tuning are chosen by.

    likelihood = LogLikelihood(model, params, mesh)
    found = likelihood([Pair(context, continuation), ...])       # token ids
    found = likelihood.rolling([text, ...], prefix=eos_id)       # whole texts, of any length

The numbers are those that lm_eval [1] has of a Hugging Face folder, truncation included. A context
goes through the model once, however many continuations it has: they are branches of its row
(`model/forked.py`). Only what is asked about goes through the product with the vocabulary. Rows of
like length go together, the longest first, so that what is too large for memory is so at once.

[1] EleutherAI/lm-evaluation-harness 0.4.13: models/huggingface.py, utils.get_rolling_token_windows
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from biomedlm_jax.config import Model
from biomedlm_jax.entry import UserError
from biomedlm_jax.generation.slots import without_context
from biomedlm_jax.layout import BATCH, IN_USE, all_layers
from biomedlm_jax.model import gpt
from biomedlm_jax.model.forked import forked
from biomedlm_jax.model.layers import first_row

ROWS = 8  # of a group of devices at a time
TILE = {"cpu": 32}  # widths of rows are multiples of it; elsewhere 128, a tile of a TPU's kernels
BRANCHES = 16  # tokens of all branches of a row: none, so many, or doublings
ASKED = (8, 32, 128)  # tokens of a row that are asked about: as many as one of these, or doublings
LOGITS = 1 << 26  # numbers that a device holds at a time, 256 MiB
_ROW, _WHOLE = PartitionSpec(BATCH), PartitionSpec()


class Pair(NamedTuple):
    """Token ids, at least one of each."""

    context: Sequence[int]
    continuation: Sequence[int]


class Likelihood(NamedTuple):
    """Of a continuation. nats: log p, the sum over its tokens. greedy: of each token, whether it is
    the likeliest there."""

    nats: float
    greedy: Bool[np.ndarray, " tokens"]

    @property
    def tokens(self) -> int:
        return len(self.greedy)


class _Row(NamedTuple):
    """stem: tokens that go through the model. branches: what goes on from it. places, labels: after
    which token which is asked about; of the stem by its place, of branch i's number j by (i, j).
    owners: the pairs, each with how many of these are its own, one behind the other."""

    stem: tuple[int, ...]
    branches: list[tuple[int, ...]]
    places: list[int | tuple[int, int]]
    labels: list[int]
    owners: list[tuple[int, int]]

    @property
    def branched(self) -> int:
        """Tokens of all branches."""
        return sum(map(len, self.branches))


class _Batch(NamedTuple):
    """Rows as arrays, int32 with B first; see `forked`. places: in stems and branches together."""

    stems: np.ndarray
    lengths: np.ndarray
    branches: np.ndarray
    owners: np.ndarray
    positions: np.ndarray
    places: np.ndarray
    labels: np.ndarray


class LogLikelihood:
    """model: its compute_dtype is that of products; logits and sums over them are float32, sums
      over tokens float64.
    params: as in `gpt.init`, on `mesh`; any mesh. Every process of a mesh calls the same.
    """

    def __init__(self, model: Model, params: dict, mesh: Mesh) -> None:
        self.model, self._mesh = model, without_context(mesh)
        # The same devices in another order, perhaps; nothing moves.
        places = gpt.specs(model, self._mesh.shape)
        self._params = jax.device_put(params, jax.tree.map(self._on, places, is_leaf=_is_spec))
        self._ask = _program(model, self._mesh)
        mesh = self._mesh
        self._rows = ROWS * math.prod(mesh.shape[axis] for axis in BATCH)
        tile = TILE.get(mesh.devices.flat[0].platform, 128)
        self._tile = tile

    def __call__(
        self, pairs: Sequence[Pair], each: Callable[[int], object] = lambda pairs: None
    ) -> list[Likelihood]:
        """Of each pair. Of a context that does not fit, the first tokens are left out: the last
        token of a pair is only asked about, so context + continuation may be model.context + 1.

        each: called after every batch with the number of pairs that are answered by it.

        Raises:
          UserError: a context or continuation is empty, has an id that is no token, or the
            continuation alone is longer than model.context; before anything is computed.
        """
        for number, pair in enumerate(pairs):
            self._check(number, pair)
        found: list[Likelihood | None] = [None] * len(pairs)
        rows = sorted(self._folded(pairs), key=lambda row: (-len(row.stem), -row.branched))
        for first in range(0, len(rows), self._rows):
            chosen = rows[first : first + self._rows]
            nats, likeliest = self._asked(chosen)
            for number, row in enumerate(chosen):
                begin = 0
                for owner, count in row.owners:
                    part = slice(begin, begin := begin + count)
                    greedy = likeliest[number, part] == np.array(row.labels[part])
                    found[owner] = Likelihood(float(nats[number, part].sum()), greedy)
            each(sum(len(row.owners) for row in chosen))
        return [one for one in found if one is not None]

    def rolling(
        self,
        texts: Sequence[Sequence[int]],
        prefix: int,
        each: Callable[[int], object] = lambda windows: None,
    ) -> list[float]:
        """Log p in nats of each whole text, after the token `prefix`. A text longer than
        model.context is cut into `windows`; each token is asked about once. An empty text has 0.

        each: called after every batch with the number of windows that are answered by it.
        """
        cut = [list(windows(text, prefix, self.model.context)) for text in texts]
        found = iter(self([window for of_text in cut for window in of_text], each))
        return [sum(next(found).nats for _ in of_text) for of_text in cut]

    def _check(self, number: int, pair: Pair) -> None:
        longest, ids = self.model.context, [*pair.context, *pair.continuation]
        wrong = {
            "has no context; begin with the end of text": not pair.context,
            "has no continuation, so nothing is asked": not pair.continuation,
            f"has a continuation of {len(pair.continuation)} tokens, and config.model.context is "
            f"{longest}; shorten it": len(pair.continuation) > longest,
            f"has an id that is not in the vocabulary of {self.model.vocab}": ids
            and not 0 <= min(ids) <= max(ids) < self.model.vocab,
        }
        if said := [sentence for sentence, applies in wrong.items() if applies]:
            raise UserError(f"pair {number} {'; it '.join(said)}")

    def _folded(self, pairs: Sequence[Pair]) -> list[_Row]:
        """All pairs; those of one context are one row."""
        rows: list[_Row] = []
        together = defaultdict[tuple[int, ...], list[int]](list)
        for number, (context, continuation) in enumerate(pairs):
            whole = (*context, *continuation)
            if len(whole) <= self.model.context + 1:
                together[tuple(context)].append(number)
            else:  # its context loses its beginning
                rows.append(_straight(whole[-self.model.context - 1 :], number, len(continuation)))
        for context, numbers in together.items():
            continuations = {number: tuple(pairs[number].continuation) for number in numbers}
            for few in _shared(continuations, len(context)):
                if len(few) == 1:
                    ((number, continuation),) = few.items()
                    rows.append(_straight((*context, *continuation), number, len(continuation)))
                else:
                    rows.append(_fork(context, few))
        return rows

    def _asked(self, rows: list[_Row]) -> tuple[np.ndarray, np.ndarray]:
        """(float64 log p of each label, the likeliest token there), both [rows, labels]."""
        longest = max(len(row.stem) for row in rows)
        width = max(min(_up(longest, self._tile), self.model.context), longest)
        batch = _batch(rows, self._rows, width)
        nats, likeliest = jax.device_get(self._ask(self._params, *map(self._put, batch)))
        return np.asarray(nats, np.float64), np.asarray(likeliest)

    def _put(self, whole: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(whole.shape, self._on(_ROW), lambda at: whole[at])

    def _on(self, place: PartitionSpec) -> NamedSharding:
        return NamedSharding(self._mesh, place)


def _shared(
    continuations: dict[int, tuple[int, ...]], context: int
) -> Iterator[dict[int, tuple[int, ...]]]:
    """Those that are one row: as many as have no more tokens of branches than the context has,
    for those pay attention to all of the row. context: its length."""
    most = max(context, BRANCHES)
    few, tokens = {}, 0
    for number, continuation in continuations.items():
        own = len(continuation) - 1
        if few and tokens + own > most:
            yield few
            few, tokens = {}, 0
        few[number], tokens = continuation, tokens + own
    yield few


def _straight(whole: tuple[int, ...], number: int, count: int) -> _Row:
    """A pair alone: the last `count` tokens of `whole` are asked about."""
    first = len(whole) - 1 - count
    places = list(range(first, len(whole) - 1))
    return _Row(whole[:-1], [], list(places), list(whole[-count:]), [(number, count)])


def _fork(context: tuple[int, ...], continuations: dict[int, tuple[int, ...]]) -> _Row:
    """Of each continuation the first token is asked about at the end of the context, the others in
    a branch, which those share that differ in their last token alone."""
    row = _Row(context, [], [], [], [])
    known: dict[tuple[int, ...], int] = {}
    for number, continuation in continuations.items():
        row.places.append(len(context) - 1)
        if branch := continuation[:-1]:
            place = known.setdefault(branch, len(known))
            row.places.extend((place, at) for at in range(len(branch)))
        row.labels.extend(continuation)
        row.owners.append((number, len(continuation)))
    row.branches.extend(known)
    return row


def _batch(rows: list[_Row], size: int, width: int) -> _Batch:
    """`rows` and as many empty ones as make `size` of them; stems are `width` wide."""
    rest = _doubled(max(row.branched for row in rows), BRANCHES)
    count = _fitting(max(len(row.labels) for row in rows))
    made = _Batch(
        stems=np.zeros((size, width), np.int32),
        lengths=np.zeros(size, np.int32),
        branches=np.zeros((size, rest), np.int32),
        owners=np.full((size, rest), -1, np.int32),  # of padding
        positions=np.zeros((size, rest), np.int32),
        places=np.zeros((size, count), np.int32),
        labels=np.zeros((size, count), np.int32),
    )
    for number, row in enumerate(rows):
        made.stems[number, : len(row.stem)] = row.stem
        made.lengths[number] = len(row.stem)
        begins, begin = [], 0
        for owner, branch in enumerate(row.branches):
            part = slice(begin, begin + len(branch))
            made.branches[number, part] = branch
            made.owners[number, part] = owner
            made.positions[number, part] = np.arange(len(branch)) + len(row.stem)
            begins.append(width + begin)
            begin += len(branch)
        made.labels[number, : len(row.labels)] = row.labels
        made.places[number, : len(row.places)] = [
            place if isinstance(place, int) else begins[place[0]] + place[1] for place in row.places
        ]
    return made


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _is_spec(x: object) -> bool:
    return isinstance(x, PartitionSpec)


def windows(text: Sequence[int], prefix: int, context: int) -> Iterator[Pair]:
    """The pairs whose continuations are `text`, for a model of `context` tokens: the first after
    `prefix`, the last with as much before it as fits, the others after one token."""
    for begin in range(0, len(text), context):
        end = min(begin + context, len(text))
        before = [prefix] if begin == 0 else text[max(end - context - 1, 0) : begin]
        yield Pair(before, text[begin:end])


def _fitting(count: int) -> int:
    """The least of ASKED, or of doublings of its last, with room for `count`."""
    found = next((size for size in ASKED if size >= count), None)
    return _doubled(count, ASKED[-1]) if found is None else found


def _doubled(count: int, first: int) -> int:
    """The least doubling of `first` with room for `count`; 0 of 0."""
    return first << max(0, math.ceil(math.log2(count / first))) if count else 0


def _program(model: Model, mesh: Mesh) -> Callable:
    """Returns ask(params, *_Batch) -> (log p of each label after the token at its place, the
    likeliest token there), [B, K] on every device."""
    graph, specs = gpt.graph(model), gpt.specs(model, mesh.shape)

    def local(
        params: dict,
        stems: Int[Array, "B S"],
        lengths: Int[Array, "B"],
        branches: Int[Array, "B R"],
        owners: Int[Array, "B R"],
        positions: Int[Array, "B R"],
        places: Int[Array, "B K"],
        labels: Int[Array, "B K"],
    ) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
        decoder = nnx.merge(graph, all_layers(params, specs, model.compute_dtype))
        table = decoder.tokens.gathered(model.compute_dtype)
        hidden = forked(decoder, stems, lengths, branches, owners, positions, table)
        rows = jnp.take_along_axis(hidden, places[..., None], axis=1).reshape(-1, hidden.shape[2])
        asked = labels.reshape(-1)
        # K is a power of two, so the parts are equal.
        parts = max(1, rows.shape[0] * table.shape[0] // LOGITS)
        parts = min(1 << (parts - 1).bit_length(), labels.shape[1])
        if parts == 1:
            found = _labelled(rows, table, asked, model.vocab)
        else:
            found = jax.lax.map(
                lambda part: _labelled(part[0], table, part[1], model.vocab),
                (rows.reshape(parts, -1, rows.shape[1]), asked.reshape(parts, -1)),
            )
        nats, likeliest = found
        return nats.reshape(labels.shape), likeliest.reshape(labels.shape)

    batch = (_ROW,) * len(_Batch._fields)
    sharded = jax.shard_map(local, mesh=mesh, in_specs=(specs, *batch), out_specs=(_ROW, _ROW))
    return jax.jit(sharded, out_shardings=NamedSharding(mesh, _WHOLE))


def _labelled(
    hidden: Float[Array, "M D"], table: Float[Array, "V D"], labels: Int[Array, "M"], vocab: int
) -> tuple[Float[Array, "M"], Int[Array, "M"]]:
    """(log p of each label, the likeliest token: of equals the first), float32.

    table: this device's rows, from `first_row` on; those from `vocab` on are padding.
    """
    split, begin = IN_USE["v"], first_row(table.shape[0])
    ids = begin + jnp.arange(table.shape[0])
    logits = jnp.einsum("md,vd->mv", hidden, table, preferred_element_type=jnp.float32)
    logits = jnp.where(ids < vocab, logits, -jnp.inf)
    own = logits.max(1)
    most = jax.lax.pmax(own, split)
    total = jax.lax.psum(jnp.exp(logits - most[:, None]).sum(1), split)
    column = labels - begin
    here = (column >= 0) & (column < table.shape[0])
    column = jnp.where(here, column, 0)[:, None]
    label = jnp.where(here, jnp.take_along_axis(logits, column, axis=1)[:, 0], 0.0)
    nats = jax.lax.psum(label, split) - most - jnp.log(total)
    first = jnp.where(own == most, begin + logits.argmax(1), jnp.iinfo(jnp.int32).max)
    return nats, jax.lax.pmin(first, split)
