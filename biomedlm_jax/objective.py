"""What training makes small: the mean negative log-likelihood of the next token, in nats.

Where a token sees its own document alone, the first token of a document is nobody's next token:
what comes before it is another document. It does not count.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from biomedlm_jax.layout import IN_USE
from biomedlm_jax.model.layers import first_row

SPLIT = IN_USE["v"]  # the vocabulary's mesh axis


def next_token(
    logits: Float[Array, "B T V"], tokens: Int[Array, "B T"], *, vocab: int
) -> Float[Array, "B T-1"]:
    """-log p(tokens[:, t + 1] | tokens[:, :t + 1]) in nats; the last position has no label.

    logits: this device's columns of the vocabulary; those that stand for tokens from `vocab` on
      are padding and take no probability.
    """
    logits, labels = logits[:, :-1], tokens[:, 1:]
    start = first_row(logits.shape[-1])
    exists = start + jnp.arange(logits.shape[-1]) < vocab
    logits = jnp.where(exists, logits, -jnp.inf)

    # The largest logit only keeps exp() in range; its gradient would cancel.
    top = jax.lax.pmax(jax.lax.stop_gradient(logits).max(-1), SPLIT)
    total = jax.lax.psum(jnp.exp(logits - top[..., None]).sum(-1), SPLIT)

    row = labels - start
    here = (row >= 0) & (row < logits.shape[-1])
    found = jnp.take_along_axis(logits, jnp.where(here, row, 0)[..., None], axis=-1)[..., 0]
    label_logit = jax.lax.psum(jnp.where(here, found, 0.0), SPLIT)
    return jnp.log(total) + top - label_logit


def continues(segments: Int[Array, "B T"]) -> Bool[Array, "B T-1"]:
    """Which labels are of the same document as the token before them; the others do not count."""
    return segments[:, 1:] == segments[:, :-1]
