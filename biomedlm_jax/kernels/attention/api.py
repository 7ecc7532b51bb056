"""The one attention function of the project, and which implementation answers it."""

from absl import logging
from jaxtyping import Array, Float, Int

from biomedlm_jax.kernels.attention import reference
from biomedlm_jax.kernels.dropout import Seed

IMPLEMENTATIONS = {"reference": reference.attention}  # in the order that "auto" tries


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    *,
    scale: Float[Array, ""] | float,
    segment_ids: Int[Array, "B T"] | None = None,
    dropout_rate: float = 0.0,
    dropout_seed: Seed | None = None,
    first_row: Int[Array, ""] | int = 0,
    first_head: Int[Array, ""] | int = 0,
    impl: str = "auto",
) -> Float[Array, "B T N H"]:
    """softmax(scale * q k^T) v over keys at the same or an earlier position.

    scale: may be traced; this model's changes with the layer.
    segment_ids: a query sees only keys of its own segment; None is one segment.
    dropout_rate, dropout_seed: of the attention weights. Whether a weight is kept is a pure
      function of (seed, row of the batch, head, query, key), the same for every implementation.
    first_row, first_head: where q[0, :, 0] stands in the whole batch and among all heads, for a
      device that holds a part of them.
    impl: a name of IMPLEMENTATIONS, which then answers or raises, or "auto", the first that does
      not refuse.

    Raises:
      ValueError: shapes disagree, or dropout has no seed.
      NotImplementedError: no implementation takes these inputs; the reasons are listed.
    """
    if not q.shape == k.shape == v.shape or q.ndim != 4:
        raise ValueError(f"q {q.shape}, k {k.shape}, v {v.shape} are not one shape [B, T, N, H]")
    if segment_ids is not None and segment_ids.shape != q.shape[:2]:
        raise ValueError(f"segment_ids {segment_ids.shape} are not [B, T] of q {q.shape}")
    if dropout_rate > 0 and dropout_seed is None:
        raise ValueError(f"dropout_rate={dropout_rate} needs a dropout_seed")
    if impl != "auto" and impl not in IMPLEMENTATIONS:
        raise NotImplementedError(f"impl={impl!r}; there are auto, {', '.join(IMPLEMENTATIONS)}")
    refusals = []
    for name in IMPLEMENTATIONS if impl == "auto" else [impl]:
        try:
            out = IMPLEMENTATIONS[name](
                q,
                k,
                v,
                scale=scale,
                segment_ids=segment_ids,
                dropout_rate=dropout_rate,
                dropout_seed=dropout_seed,
                first_row=first_row,
                first_head=first_head,
            )
        except NotImplementedError as reason:
            refusals.append(f"{name}: {reason}")
            continue
        logging.log_first_n(logging.INFO, "attention %s runs as %s", 1, q.shape, name)
        return out
    raise NotImplementedError("no attention takes these inputs:\n  " + "\n  ".join(refusals))
