"""What training makes small: the mean negative log-likelihood, in nats, of the next token, or in
fine-tuning of the right class or option.

Where a token sees its own document alone, the first token of a document is nobody's next token:
what comes before it is another document. It does not count.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from biomedlm_jax.kernels.cross_entropy.api import cross_entropy
from biomedlm_jax.layout import IN_USE, mine


def next_token(
    hidden: Float[Array, "B S D"],
    table: Float[Array, "V D"],
    tokens: Int[Array, "B T"],
    weights: Float[Array, "B T-1"] | Bool[Array, "B T-1"],
    *,
    vocab: int,
    z_loss: float,
) -> tuple[Float[Array, ""], Float[Array, "B S"]]:
    """(weighted sum over this device's labels, of each -log p(tokens[:, t + 1] | tokens[:, :t + 1])
    in nats, 0 where it does not count).

    Only the sum has a gradient, and only it has the z-loss; see `cross_entropy`.
    hidden: what follows the last LayerNorm, at this device's S of the T positions.
    table: this device's rows of the tied embedding; tokens from `vocab` on are padding.
    """
    # The last position has no label. It stays as one that does not count: T - 1 rows of each
    # sequence would be no whole tiles.
    weights = mine(jnp.pad(weights, [(0, 0), (0, 1)]))
    total, nats = cross_entropy(
        hidden,
        table,
        mine(jnp.roll(tokens, -1, axis=1)),
        weights,
        vocab=vocab,
        z_loss=z_loss,
        split=IN_USE["v"],
    )
    return total, jnp.where(weights == 0, 0.0, nats)


def continues(segments: Int[Array, "B T"]) -> Bool[Array, "B T-1"]:
    """Which labels are of the same document as the token before them; the others do not count."""
    return segments[:, 1:] == segments[:, :-1]


def right_option(
    scores: Float[Array, "R C"], labels: Int[Array, "N"], weights: Float[Array, "N"]
) -> tuple[Float[Array, ""], Float[Array, "N"]]:
    """(weighted sum over this device's items, of each -log p(label) in nats, 0 where it does not
    count), p a softmax over what can be answered.

    scores: of each row. C classes are of one row each; where C is 1, an item has R / N rows in a
      row, one for each option, and those are what can be answered.

    Devices of the context axis have the same scores; one of them counts.
    """
    (split,) = IN_USE["s"]
    weights = jnp.where(jax.lax.axis_index(split) == 0, weights, 0.0)
    logits = jax.nn.log_softmax(scores.reshape(len(labels), -1))
    nats = -jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    nats = jnp.where(weights == 0, 0.0, nats)
    return (weights * nats).sum(), nats
