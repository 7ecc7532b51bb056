"""The one loss over the vocabulary: what it takes, what it refuses, and how it meets the mesh."""

from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from biomedlm_jax.kernels.cross_entropy import chunked
from biomedlm_jax.kernels.varying import axes_of, marked


def cross_entropy(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    labels: Int[Array, "B T"],
    weights: Float[Array, "B T"] | Bool[Array, "B T"],
    *,
    vocab: int,
    z_loss: float = 0.0,
    split: Sequence[str] = (),
    rows: int | None = None,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
    """Returns (sum of weights * (nats + z_loss * Z^2), nats), both float32.

    Over the logits hidden table^T, Z is the log of the sum of their exponentials and nats is
    Z - the label's logit, -log p(label). Of the logits, 256 MiB exist at a time, in the dtype of
    the operands; the gradients of the sum come from the chunk at hand, in three products with the
    table in all. There is no forward-mode derivative.
    Z^2 keeps Z near 0 (PaLM, arXiv 2204.02311, section 5, with z_loss=1e-4).

    hidden, table: of one dtype, in which the products take their operands and give their
      gradients; sums are float32. The gradient of `table` is summed over chunks in float32.
    labels: in [0, vocab); any integer where the weight is 0. Another that counts makes the sum NaN.
    weights: 0 for a label that does not count. With the mean's 1 / number as weights the gradient
      of the mean needs no more scaling. They have a gradient.
    nats: of each label, counted or not; to look at, it has no gradient.
    vocab: rows of the whole table from here on are padding and take no probability.
    split: mesh axes over which the table's rows are split, under `jax.shard_map`.
    rows: tokens in a chunk; None is `chunked.rows_of_a_chunk`.

    Raises:
      ValueError: shapes or dtypes disagree, or a number is out of range.
    """
    if hidden.ndim != 3 or table.ndim != 2 or hidden.shape[2] != table.shape[1]:
        raise ValueError(f"hidden {hidden.shape} and table {table.shape} are not [B, T, D], [V, D]")
    if 0 in hidden.shape:
        raise ValueError(f"hidden {hidden.shape} holds no token")
    if hidden.dtype != table.dtype or not jnp.issubdtype(hidden.dtype, jnp.floating):
        raise ValueError(f"hidden {hidden.dtype} and table {table.dtype} are not one float dtype")
    if not labels.shape == weights.shape == hidden.shape[:2]:
        raise ValueError(
            f"labels {labels.shape} and weights {weights.shape} are not [B, T] of hidden "
            f"{hidden.shape}"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels are {labels.dtype}, not integers")
    stored = table.shape[0] * jax.lax.axis_size(tuple(split))
    if not 0 < vocab <= stored:
        raise ValueError(f"vocab={vocab} is not in 1 to {stored}, the rows of the whole table")
    if not z_loss >= 0:
        raise ValueError(f"z_loss={z_loss} is negative or no number; 0 switches it off")
    if rows is not None and rows < 1:
        raise ValueError(f"rows={rows}; a chunk has one token or more")

    # Marked as different wherever any of them is, so that the transpose of the mark sums a gradient
    # over the devices that share its array, as it would with plain operations.
    axes = axes_of((hidden, table, labels, weights)).union(split)
    hidden, table = marked((hidden, table), axes)
    labels, weights = marked((labels, weights.astype(jnp.float32)), axes - set(split))
    exists = (labels >= 0) & (labels < vocab)
    weights = jnp.where(exists | (weights == 0), weights, jnp.nan)
    labels = jnp.where(exists, labels, 0)
    if rows is None:
        rows = chunked.rows_of_a_chunk(labels.size, table.shape[0], hidden.dtype)
    found = chunked.weighted_sum(
        hidden.reshape(-1, hidden.shape[2]),
        table,
        labels.reshape(-1),
        weights.reshape(-1),
        chunked.Settings(vocab, float(z_loss), tuple(split), rows),
    )
    total, nats = cast(tuple[jax.Array, jax.Array], found)
    return total, jax.lax.stop_gradient(nats).reshape(labels.shape)
