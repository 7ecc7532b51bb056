"""The BioMedLM decoder: GPT-2, with attention scores also divided by layer index + 1.

Flax NNX declares the parameters here; JAX does everything else. `GPT` runs on the arrays of one
device, always under `jax.shard_map` (see `layout`), also when the mesh is 1 x 1 x 1.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from biomedlm_jax.config import Model
from biomedlm_jax.kernels.attention.api import attention_qkv
from biomedlm_jax.kernels.attention.block_sizes import device
from biomedlm_jax.kernels.dropout import Seed, dropout, fold
from biomedlm_jax.layout import BATCH, IN_USE, STORED, in_use, mine, parameter, spec, stored
from biomedlm_jax.model import layers_by_hand
from biomedlm_jax.model.layers import Embedding, Head, LayerNorm, Linear, Statistics, rows_of


class Same(NamedTuple):
    """What all layers are told."""

    segments: Int[Array, "B T"] | None
    seed: Seed | None  # of dropout; None switches it off
    first_row: Int[Array, ""]  # where this device's rows begin in the whole batch


class Block(nnx.Module):
    """One layer. Its four parts are cut where `model/layers_by_hand.py` keeps what is between them
    for the backward pass."""

    def __init__(self, model: Model, *, rngs: nnx.Rngs, apart: bool = False):
        sizes, std = axis_sizes(model), model.init_std
        alpha = model.lora_alpha
        linear = partial(Linear, sizes=sizes, rngs=rngs, turned=apart, alpha=alpha)
        residual_std = std / math.sqrt(2 * model.layers)  # GPT-2: 2 residual branches a layer
        self.ln_1 = LayerNorm(model.width, epsilon=model.layer_norm_epsilon)
        self.qkv = linear("dq", std=std)
        self.out = linear("ed", std=residual_std)
        self.ln_2 = LayerNorm(model.width, epsilon=model.layer_norm_epsilon)
        self.up = linear("df", std=std)
        self.down = linear("fd", std=residual_std)
        self.model = model

    def __call__(
        self, x: Float[Array, "B S D"], layer: Int[Array, ""], same: Same
    ) -> Float[Array, "B S D"]:
        product, bias = self.projected(x), self.qkv_bias(x.dtype)
        impl = self.model.attention
        attended = attention_qkv(product, bias, impl=impl, **self.attention(product, layer, same))
        of_attention, of_mlp = self.dropouts(x, layer, same)
        middle = self.joined(x, attended, of_attention)
        return self.lowered(middle, self.raised(middle), of_mlp)

    def projected(
        self,
        x: Float[Array, "B S D"],
        statistics: Statistics | None = None,
    ) -> Float[Array, "B T Q"]:
        """What attention works on, without the bias. Where a sequence is cut, devices
        exchange positions for heads before attention and back after it (Ulysses, arXiv 2309.14509),
        and the kernels see all of T."""
        product = self.qkv.product(self.ln_1(x, statistics))
        (split,) = IN_USE["s"]
        if jax.lax.axis_size(split) > 1:
            product = jax.lax.all_to_all(product, split, 2, 1, tiled=True)
        return product

    def qkv_bias(self, dtype: jax.typing.DTypeLike) -> Float[Array, "Q"]:
        """Of the heads of `projected`."""
        bias, (split,) = in_use(self.qkv.bias, dtype), IN_USE["s"]
        if (pieces := jax.lax.axis_size(split)) > 1:
            bias = bias.reshape(pieces, -1)[jax.lax.axis_index(split)]
        return bias

    def attention(self, product: Float[Array, "B T Q"], layer: Int[Array, ""], same: Same) -> dict:
        """How `product` is attended to: options of `attention_qkv`."""
        heads = product.shape[2] // (3 * self.model.head_dim)
        seed = None if same.seed is None else fold(fold(same.seed, layer), 0)
        return dict(
            head_dim=self.model.head_dim,
            scale=self.scale(layer),
            segment_ids=same.segments,
            dropout_rate=self.model.dropout if seed is not None else 0.0,
            dropout_seed=seed,
            first_row=same.first_row,
            first_head=jax.lax.axis_index(IN_USE["n"]) * heads,
        )

    def scale(self, layer: Int[Array, ""]) -> Float[Array, ""] | float:
        """Of attention scores."""
        divisor = (layer + 1).astype(jnp.float32) if self.model.scale_attn_by_layer else 1.0
        return self.model.head_dim**-0.5 / divisor

    def dropouts(
        self, x: Float[Array, "B S D"], layer: Int[Array, ""], same: Same
    ) -> tuple[Callable[[Array], Array], ...]:
        """Of what attention and the MLP add to the residual stream."""
        seeds = [None if same.seed is None else fold(fold(same.seed, layer), i) for i in (1, 2)]
        place = {"first_row": same.first_row, "first_position": first_position(x)}
        return tuple(partial(dropout, rate=self.model.dropout, seed=s, **place) for s in seeds)

    def joined(
        self,
        x: Float[Array, "B S D"],
        attended: Float[Array, "B T A"],
        drop: Callable[[Array], Array] = lambda y: y,
        kernel: Float[Array, "E D"] | None = None,
    ) -> Float[Array, "B S D"]:
        """attended: of this device's heads, see `projected`. kernel: `out.gathered`, if at hand."""
        (split,) = IN_USE["s"]
        if jax.lax.axis_size(split) > 1:
            attended = jax.lax.all_to_all(attended, split, 1, 2, tiled=True)
        return x + drop(self.out(attended, kernel))

    def raised(
        self, middle: Float[Array, "B S D"], statistics: Statistics | None = None
    ) -> Float[Array, "B S F"]:
        return self.up(self.ln_2(middle, statistics))

    def lowered(
        self,
        middle: Float[Array, "B S D"],
        up: Float[Array, "B S F"],
        drop: Callable[[Array], Array] = lambda y: y,
    ) -> Float[Array, "B S D"]:
        return middle + drop(self.down(jax.nn.gelu(up, approximate=True)))


class GPT(nnx.Module):
    """apart: as generation has it (`model/decode.py`): every layer has arrays of its own, kernels
    are [Out, In], there is no head for classes, and `__call__` is not for it. Otherwise layers are
    stacked, one array for all."""

    def __init__(self, model: Model, *, rngs: nnx.Rngs, apart: bool = False):
        sizes, std = axis_sizes(model), model.init_std
        self.tokens = Embedding(sizes, vocab=model.vocab, std=std, rngs=rngs)
        shape = (model.context, model.width)
        self.positions = parameter("td", std * jax.random.normal(rngs.params(), shape))
        if apart:
            layers = (Block(model, rngs=rngs, apart=True) for _ in range(model.layers))
            self.blocks = nnx.List(layers)
        else:
            self.blocks = stacked(model, rngs)
        self.ln_f = LayerNorm(model.width, epsilon=model.layer_norm_epsilon)
        if model.classes and not apart:
            self.head = Head(sizes, bias=model.class_bias, std=std, rngs=rngs)
        self.model = model

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segments: Int[Array, "B T"] | None = None,
        seed: Seed | None = None,
        first_row: Int[Array, ""] | None = None,
        table: Float[Array, "V D"] | None = None,
    ) -> Float[Array, "B S D"]:
        """What follows the last LayerNorm, at the positions that this device computes;
        `tokens.logits` makes logits of it, `head` scores of classes, `objective` a loss.

        segments: a token sees the earlier ones of its own segment; None is one segment. The
          position of a token is its place in the row, whatever its segment.
        seed: of dropout; None switches it off.
        first_row: where tokens[0] stands in the whole batch, for dropout; None where this device's
          rows are given all at once.
        table: `tokens.gathered` in the compute dtype, where the caller has it.
        """
        if first_row is None:
            first_row = jax.lax.axis_index(BATCH) * tokens.shape[0]
        positions = in_use(self.positions, jnp.float32)[None, : tokens.shape[1]]
        if table is None:
            table = self.tokens.gathered(self.model.compute_dtype)
        x = rows_of(table, mine(tokens)).astype(jnp.float32) + mine(positions)
        embedding_seed = None if seed is None else fold(seed, self.model.layers)
        x = dropout(
            x,
            rate=self.model.dropout,
            seed=embedding_seed,
            first_row=first_row,
            first_position=first_position(x),
        )

        x = x.astype(self.model.compute_dtype)
        return self.ln_f(self._layers(x, Same(segments, seed, first_row)))

    def _layers(self, x: Float[Array, "B S D"], same: Same) -> Float[Array, "B S D"]:
        if self.model.remat == "named":
            graph, params = nnx.split(self.blocks, nnx.Param)
            return layers_by_hand.through(graph, nnx.to_pure_dict(params), x, same)

        def layer(x, inputs):
            block, index = inputs
            return block(x, index, same), None

        # XLA:CPU copies all that goes in and out of a loop, so there, where nothing is computed
        # twice, the layers are one after the other.
        unrolled = device()[0] == "cpu" and self.model.remat == "none"
        if self.model.remat == "full":
            layer = jax.checkpoint(layer, prevent_cse=False)
        inputs = (self.blocks, jnp.arange(self.model.layers))
        return jax.lax.scan(layer, x, inputs, unroll=self.model.layers if unrolled else 1)[0]


def first_position(x: Float[Array, "B S D"]) -> Int[Array, ""]:
    """Where x[:, 0] stands in its sequence."""
    return jax.lax.axis_index(IN_USE["s"]) * x.shape[1]


def axis_sizes(model: Model) -> dict[str, int]:
    """Sizes of the letters of parameters, as in `layout`."""
    d = model.width
    sizes = {"d": d, "e": d, "q": 3 * d, "f": model.mlp, "v": model.padded_vocab}
    return sizes | {"c": model.classes, "r": model.lora_rank}


def stacked(model: Model, rngs: nnx.Rngs) -> Block:
    """All blocks as one, every parameter with a new first axis l."""

    @nnx.split_rngs(splits=model.layers)
    @nnx.vmap(transform_metadata={nnx.PARTITION_NAME: None})
    def build(rngs: nnx.Rngs) -> Block:
        return Block(model, rngs=rngs)

    return build(rngs)


def init(model: Model, rng: jax.Array) -> dict:
    """Parameters as a nested dict, such as params["blocks"]["qkv"]["kernel"] [L, D, Q]."""
    return nnx.to_pure_dict(nnx.state(GPT(model, rngs=nnx.Rngs(params=rng)), nnx.Param))


def graph(model: Model, *, apart: bool = False) -> nnx.GraphDef:
    """The structure that `nnx.merge` puts parameters into."""
    return nnx.graphdef(_abstract(model, apart))


def specs(model: Model, axes: Mapping[str, int], *, apart: bool = False) -> dict:
    """How each parameter is stored on a mesh of these axes: the tree of `init` with PartitionSpecs
    for leaves."""

    def of(param: nnx.Param) -> PartitionSpec:
        whole = stored(param.axes)
        if param.get_value().ndim == len(param.axes):
            return whole
        divides = axes["data"] > 1 and model.layers % axes["data"] == 0
        return PartitionSpec(*spec("l" if divides else "", STORED) or (None,), *whole)

    state = nnx.state(_abstract(model, apart), nnx.Param)
    leaves = jax.tree.map(of, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return nnx.to_pure_dict(leaves)


def _abstract(model: Model, apart: bool = False) -> GPT:
    return nnx.eval_shape(lambda: GPT(model, rngs=nnx.Rngs(params=0), apart=apart))


def matrices(model: Model) -> dict:
    """Which parameters are matrices, of a block or of the whole: the tree of `init`, of bools."""
    state = nnx.state(_abstract(model), nnx.Param)
    leaves = jax.tree.map(
        lambda param: len(param.axes) == 2, state, is_leaf=lambda x: isinstance(x, nnx.Variable)
    )
    return nnx.to_pure_dict(leaves)
