"""What generation keeps on the devices, and the programs that change it.

A slot is a row of every array here. Each program is one `jax.shard_map`, as training's are: a
device has the slots of its group (`layout.BATCH`) and the heads that are its own.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from biomedlm_jax.config import Model
from biomedlm_jax.generation.sampling import Options, choose
from biomedlm_jax.layout import BATCH, IN_USE, spec
from biomedlm_jax.model import decode, gpt

OPTIONS = Options("float32", "int32", "float32", "float32", "uint32")  # pyright: ignore  (dtypes)
SHORTEST = 64  # places of the shortest cache, and tokens of the shortest prompt that is compiled
_ROW, _ROWS = spec("b", IN_USE), spec("bt", IN_USE)


class State(NamedTuple):
    """Of all slots. What a free one holds is nobody's."""

    cache: decode.Cache
    token: Int[Array, "B"]  # the newest, whose keys and values are not in the cache yet
    position: Int[Array, "B"]  # where it stands
    seen: Bool[Array, "B V"]  # tokens that the row has had, of the padded vocabulary
    options: Options

    @property
    def length(self) -> int:
        """Places in the cache."""
        return self.cache.keys[0].shape[1]


def lengths(context: int) -> list[int]:
    """That programs are compiled for: SHORTEST, twice that, ..., and the context."""
    doublings = range(max(0, math.ceil(math.log2(context / SHORTEST))))
    return [*(SHORTEST << n for n in doublings), context]


def fitting(tokens: int, context: int) -> int:
    """The shortest of `lengths` with room for `tokens`."""
    return next(length for length in lengths(context) if length >= tokens)


def without_context(mesh: Mesh) -> Mesh:
    """The same devices, those that share a sequence as copies of each other: a step of generation
    is one position, which can not be split. Parameters lie where they lay."""
    order = ("data", "context", "fsdp", "model")
    devices = mesh.devices.transpose([mesh.axis_names.index(axis) for axis in order])
    copies, pieces, *rest = devices.shape
    names = ("data", "fsdp", "model", "context")
    return Mesh(devices.reshape(copies * pieces, *rest, 1), names)


def groups(mesh: Mesh) -> int:
    """Of devices, over which slots are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


class Programs:
    """Of one model on one mesh (of `without_context`); jax compiles each for every length.

    written: tokens that may be written are those below; the model may have more in its prompts.
    """

    def __init__(self, model: Model, mesh: Mesh, written: int) -> None:
        self.model, self.mesh, self._written = model, mesh, written
        self._graph = gpt.graph(model, apart=True)
        state, weights = _state_specs(model), decode.weight_specs(model, mesh.shape)
        rows = Options(*[_ROW] * 5)  # pyright: ignore
        self.prompt = self._compiled(self._prompt, (weights, _ROWS, _ROW, rows), state)
        self.token = self._compiled(self._token, (weights, state), state, donated=1)
        self._insert = jax.jit(
            jax.shard_map(
                self._with_rows, mesh=mesh, in_specs=(state, state, _ROW), out_specs=state
            ),
            donate_argnums=0,
        )
        places = self._shardings(state)
        self._empty = jax.jit(self._zeros, static_argnums=(0, 1), out_shardings=places)
        self._grown = jax.jit(_longer, static_argnums=1, out_shardings=places.cache)

    def insert(self, state: State, rows: State, slot: jax.Array) -> State:
        """`state` with what `prompt` gave in slots, one of each group; see `_with_rows`."""
        return self._insert(state, rows, slot)

    def empty(self, slots: int, length: int) -> State:
        """A state of `slots` free ones, with a cache of `length` places."""
        return self._empty(slots, length)

    def grown(self, state: State, length: int) -> State:
        """The same with a cache of `length` places."""
        return state._replace(cache=self._grown(state.cache, length))

    def put(self, rows: np.ndarray) -> jax.Array:
        """Rows of groups on their devices; every process has all of them."""
        where = NamedSharding(self.mesh, PartitionSpec(BATCH))
        return jax.make_array_from_callback(rows.shape, where, lambda place: rows[place])

    def _zeros(self, slots: int, length: int) -> State:
        model = self.model
        shape = (slots * model.heads, length, model.head_dim)
        of_layer = [jnp.zeros(shape, decode.cache_dtype(model))] * model.layers
        row = jnp.zeros(slots, jnp.int32)
        seen = jnp.zeros((slots, model.padded_vocab), bool)
        options = Options(*(jnp.zeros(slots, kind) for kind in OPTIONS))
        return State(decode.Cache(of_layer, list(of_layer)), row, row, seen, options)

    def _prompt(
        self,
        weights: decode.Weights,
        tokens: Int[Array, "B T"],
        last: Int[Array, "B"],
        options: Options,
    ) -> tuple[State, Int[Array, "B"]]:
        """(the state of rows that begin, one for each group; their first tokens).

        last: position of a prompt's last token.
        """
        logits, cache = decode.prompt(self._graph, weights, tokens, last)
        real = jnp.arange(tokens.shape[1]) <= last[:, None]
        rows = jnp.arange(len(tokens))[:, None]
        none = jnp.zeros((len(tokens), self.model.padded_vocab), bool)
        seen = none.at[rows, jnp.where(real, tokens, none.shape[1])].set(True, mode="drop")
        chosen = self._chosen(logits, seen, options, last + 1)
        seen = seen.at[rows[:, 0], chosen].set(True)
        return State(cache, chosen, last + 1, seen, options), chosen

    def _with_rows(self, state: State, rows: State, slot: Int[Array, "B"]) -> State:
        """slot: among those of the group; one that does not exist is for a group without a row."""
        (at,) = slot  # of this device's group
        slots = len(state.position)

        def put(old: Array, new: Array) -> Array:
            first = jnp.minimum(at, slots - 1) * len(new)
            kept = jax.lax.dynamic_slice_in_dim(old, first, len(new))
            new = jnp.where(at < slots, new, kept)
            return jax.lax.dynamic_update_slice_in_dim(old, new, first, 0)

        rows = rows._replace(cache=_longer(rows.cache, state.length))
        return jax.tree.map(put, state, rows)

    def _token(self, weights: decode.Weights, state: State) -> tuple[State, Int[Array, "B"]]:
        """(the state one token later, that token of each slot)."""
        logits, cache = decode.token(self._graph, weights, state.token, state.position, state.cache)
        position = state.position + 1
        chosen = self._chosen(logits, state.seen, state.options, position)
        seen = state.seen.at[jnp.arange(len(chosen)), chosen].set(True)
        # Free slots go no further; one that runs may be past the cache, which then grows.
        position = jnp.minimum(position, self.model.context - 1)
        return State(cache, chosen, position, seen, state.options), chosen

    def _chosen(
        self,
        logits: Float[Array, "B V"],
        seen: Bool[Array, "B V"],
        options: Options,
        position: Int[Array, "B"],
    ) -> Int[Array, "B"]:
        (split,) = IN_USE["v"]
        if jax.lax.axis_size(split) > 1:
            logits = jax.lax.all_gather(logits, split, axis=1, tiled=True)
        text = jnp.arange(self.model.padded_vocab) < self._written
        logits = jnp.where(text, logits, -jnp.inf)
        # All devices of `split` choose the same; the maximum says so to the type system.
        return jax.lax.pmax(choose(logits, seen, options, position), split)

    def _compiled(
        self, local: Callable, in_specs: tuple, state: State, donated: int | None = None
    ) -> Callable:
        """Gives (state, tokens), the tokens of all groups on every device."""
        whole = jax.shard_map(local, mesh=self.mesh, in_specs=in_specs, out_specs=(state, _ROW))
        out = (self._shardings(state), NamedSharding(self.mesh, PartitionSpec()))
        return jax.jit(whole, donate_argnums=donated, out_shardings=out)

    def _shardings(self, specs: State) -> State:
        is_leaf = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
        return jax.tree.map(functools.partial(NamedSharding, self.mesh), specs, is_leaf=is_leaf)


def _longer(cache: decode.Cache, length: int) -> decode.Cache:
    """With zeros behind it, so that nothing of a slot's last request is left."""
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0))), cache)


programs = functools.cache(Programs)  # what was compiled serves all engines of a model on a mesh


def _state_specs(model: Model) -> State:
    options = Options(*[_ROW] * 5)  # pyright: ignore
    return State(decode.cache_specs(model), _ROW, _ROW, _ROWS, options)  # pyright: ignore
