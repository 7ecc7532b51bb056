"""The BioMedLM decoder: GPT-2 with attention scores also divided by layer index + 1.

Flax NNX declares the parameters here; JAX does everything else. `GPT` runs on the arrays of one
device, always under `jax.shard_map` (see `layout`), also when the mesh is 1 x 1 x 1.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from biomedlm_jax.config import Model
from biomedlm_jax.kernels.attention.api import attention_qkv
from biomedlm_jax.kernels.attention.block_sizes import device
from biomedlm_jax.kernels.dropout import Seed, dropout, fold
from biomedlm_jax.layout import BATCH, IN_USE, STORED, in_use, mine, parameter, spec
from biomedlm_jax.model.layers import Embedding, LayerNorm, Linear

# What the backward pass finds stored: everything, the operands of the costly products, or only
# the residual stream between layers.
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "named": jax.checkpoint_policies.save_only_these_names(
        "qkv", "attended", "logsumexp", "middle", "up"
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Block(nnx.Module):
    def __init__(self, model: Model, *, rngs: nnx.Rngs, apart: bool = False):
        sizes, std = axis_sizes(model), model.init_std
        linear = partial(Linear, sizes=sizes, rngs=rngs, turned=apart)
        residual_std = std / math.sqrt(2 * model.layers)  # GPT-2: 2 residual branches a layer
        self.ln_1 = LayerNorm(model.width, epsilon=model.layer_norm_epsilon)
        self.qkv = linear("dq", std=std)
        self.out = linear("ed", std=residual_std)
        self.ln_2 = LayerNorm(model.width, epsilon=model.layer_norm_epsilon)
        self.up = linear("df", std=std)
        self.down = linear("fd", std=residual_std)
        self.model = model

    def __call__(
        self,
        x: Float[Array, "B S D"],
        layer: Int[Array, ""],
        segments: Int[Array, "B T"] | None,
        seed: Seed | None,
        first_row: Int[Array, ""],
    ) -> Float[Array, "B S D"]:
        seeds = [None] * 3 if seed is None else [fold(fold(seed, layer), site) for site in range(3)]
        place = {"first_row": first_row, "first_position": first_position(x)}
        dropped = partial(dropout, rate=self.model.dropout, **place)
        return self.residual(
            x,
            lambda x: self.attention(x, layer, segments, seeds[0], first_row),
            *(partial(dropped, seed=seed) for seed in seeds[1:]),
        )

    def residual(
        self,
        x: Float[Array, "B S D"],
        attend: Callable[[Array], Array],
        *branches: Callable[[Array], Array],
    ) -> Float[Array, "B S D"]:
        """Both branches around one way to attend, [B, S, D] -> [B, S, E].

        branches: what becomes of what each of the two adds.
        """
        of_attention, of_mlp = branches or (lambda y: y,) * 2
        x = x + of_attention(self.out(attend(self.ln_1(x))))
        x = checkpoint_name(x, "middle")
        up = checkpoint_name(self.up(self.ln_2(x)), "up")
        return x + of_mlp(self.down(jax.nn.gelu(up, approximate=True)))

    def scale(self, layer: Int[Array, ""]) -> Float[Array, ""]:
        """Of attention scores."""
        return self.model.head_dim**-0.5 / (layer + 1).astype(jnp.float32)

    def attention(
        self,
        x: Float[Array, "B S D"],
        layer: Int[Array, ""],
        segments: Int[Array, "B T"] | None,
        seed: Seed | None,
        first_row: Int[Array, ""],
    ) -> Float[Array, "B S E"]:
        """Where a sequence is computed in pieces, devices exchange positions for heads before
        attention and back after it (Ulysses, arXiv 2309.14509), and the kernels see all of T."""
        product, bias = self.qkv.product(x), in_use(self.qkv.bias, x.dtype)
        (split,) = IN_USE["s"]
        pieces = jax.lax.axis_size(split)
        if pieces > 1:
            product = jax.lax.all_to_all(product, split, 2, 1, tiled=True)
            bias = bias.reshape(pieces, -1)[jax.lax.axis_index(split)]
        heads = product.shape[2] // (3 * self.model.head_dim)
        attended = attention_qkv(
            product,
            bias,
            head_dim=self.model.head_dim,
            scale=self.scale(layer),
            segment_ids=segments,
            dropout_rate=self.model.dropout if seed is not None else 0.0,
            dropout_seed=seed,
            first_row=first_row,
            first_head=jax.lax.axis_index(IN_USE["n"]) * heads,
            impl=self.model.attention,
        )
        if pieces > 1:
            attended = jax.lax.all_to_all(attended, split, 1, 2, tiled=True)
        return attended


class GPT(nnx.Module):
    """apart: as generation has it (`model/decode.py`): every layer has arrays of its own, kernels
    are [Out, In], and `__call__` is not for it. Otherwise layers are stacked, one array for all."""

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
        self.model = model

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segments: Int[Array, "B T"] | None = None,
        seed: Seed | None = None,
        first_row: Int[Array, ""] | None = None,
    ) -> Float[Array, "B S D"]:
        """What follows the last LayerNorm, at the positions that this device computes;
        `tokens.logits` makes logits of it, `objective` a loss.

        segments: a token sees the earlier ones of its own segment; None is one segment. The
          position of a token is its place in the row, whatever its segment.
        seed: of dropout; None switches it off.
        first_row: where tokens[0] stands in the whole batch, for dropout; None where this device's
          rows are given all at once.
        """
        if first_row is None:
            first_row = jax.lax.axis_index(BATCH) * tokens.shape[0]
        positions = in_use(self.positions, jnp.float32)[None, : tokens.shape[1]]
        x = self.tokens(mine(tokens)) + mine(positions)
        embedding_seed = None if seed is None else fold(seed, self.model.layers)
        x = dropout(
            x,
            rate=self.model.dropout,
            seed=embedding_seed,
            first_row=first_row,
            first_position=first_position(x),
        )

        def layer(x, inputs):
            block, index = inputs
            return block(x, index, segments, seed, first_row), None

        # XLA:CPU copies all that goes in and out of a loop, so there, where nothing is computed
        # twice, the layers are one after the other.
        unrolled = device()[0] == "cpu" and self.model.remat == "none"
        if not unrolled:
            layer = jax.checkpoint(layer, policy=REMAT[self.model.remat], prevent_cse=False)
        inputs = (self.blocks, jnp.arange(self.model.layers))
        x = x.astype(self.model.compute_dtype)
        x, _ = jax.lax.scan(layer, x, inputs, unroll=self.model.layers if unrolled else 1)
        return self.ln_f(x)


def first_position(x: Float[Array, "B S D"]) -> Int[Array, ""]:
    """Where x[:, 0] stands in its sequence."""
    return jax.lax.axis_index(IN_USE["s"]) * x.shape[1]


def axis_sizes(model: Model) -> dict[str, int]:
    """Sizes of the letters of parameters, as in `layout`."""
    d = model.width
    return {"d": d, "e": d, "q": 3 * d, "f": model.mlp, "v": model.padded_vocab}


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


def specs(model: Model, *, apart: bool = False) -> dict:
    """How each parameter is stored: the tree of `init` with PartitionSpecs for leaves."""

    def of(param: nnx.Param) -> PartitionSpec:
        stacked_axes = param.get_value().ndim - len(param.axes)  # the layers, for those of a block
        return PartitionSpec(*[None] * stacked_axes, *spec(param.axes, STORED))

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
