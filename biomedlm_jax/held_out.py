"""How well a model predicts text that it has never seen, in bits per byte.

Bits per byte do not depend on the vocabulary, so models with different ones compare, and so does
a compressor. `python -m biomedlm_jax.held_out --checkpoint=WORKDIR` scores the newest save of a
run on the held-out documents of its store, beside what `xz -9e` makes of the same text.
"""

import dataclasses
import itertools
import lzma
import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from biomedlm_jax import checkpoint, entry, step
from biomedlm_jax import mesh as meshes
from biomedlm_jax.config import Experiment
from biomedlm_jax.config import Mesh as MeshConfig
from biomedlm_jax.entry import UserError
from biomedlm_jax.layout import IN_USE, spec
from biomedlm_jax.pipeline.loader import held_out
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.pipeline.vocabulary import Vocabulary

ROWS_PER_DEVICE = 8


@dataclasses.dataclass(frozen=True)
class Score:
    nats: float  # negative log-likelihood of all labels
    labels: int
    bytes: int  # of UTF-8 that the labels stand for; the end of a document stands for none

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.labels

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    def __str__(self) -> str:
        return (
            f"{self.bits_per_byte:.3f} bits per byte, {self.loss:.4f} nats per token over "
            f"{self.labels:,} tokens"
        )


def score(
    experiment: Experiment,
    mesh: Mesh,
    evaluate: Callable,
    params: dict,
    store: TokenStore,
    *,
    rows: int,
    batches: int | None = None,
    progress: bool = False,
) -> Score:
    """The score of `params` on a split of at least 2 tokens, or on its first `batches` batches.

    The labels are those of training: the ends of documents where config.data.separators has them
    learned, and with config.data.segment_ids no first token of a document.

    evaluate: from `step.eval_step`.
    rows: windows in a batch, over all devices.

    Raises:
      UserError: nothing is a label.
    """
    sharding = NamedSharding(mesh, spec("bt", IN_USE))
    sizes = Vocabulary(store.vocabulary_path).token_bytes()
    length, data = experiment.model.context, experiment.data
    windows = held_out(
        store,
        batch=rows,
        length=length,
        separators=data.separators,
        segment_ids=data.segment_ids,
    )
    total = -(-(store.length(data.separators) - 1) // ((length - 1) * rows))
    nats, labels, nbytes = 0.0, 0, 0
    some = itertools.islice(windows, batches)
    for window in tqdm(some, total=total, desc="held out", disable=not progress):
        labels += int(window.real.sum())
        nbytes += int(sizes[window.tokens[:, 1:]][window.real].sum())
        window = window._replace(real=np.where(window.real, 0, -1))
        nats += float(evaluate(params, *jax.device_put(window, sharding)).sum())
    if not nbytes:
        raise UserError(
            f"{store.path} has no held-out document of two tokens of text, so there is nothing to "
            "score; build it from a larger corpus, or set config.run.eval_every=0"
        )
    return Score(nats, labels, nbytes)


def text(store: TokenStore) -> list[str]:
    """The documents of a split, decoded."""
    vocabulary = Vocabulary(store.vocabulary_path)
    firsts = store.documents[:, 0]
    ends = np.append(firsts[1:], store.tokens)
    return [
        vocabulary.decode(store.read(np.array([first]), int(end - first - 1))[0].tolist())
        for first, end in zip(firsts, ends, strict=True)
    ]


def xz_bits_per_byte(documents: list[str]) -> float:
    """Of `xz -9e` on all documents as one file, a newline between them, over their own bytes."""
    joined = "\n".join(documents).encode()
    packed = lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME)
    return 8 * len(packed) / sum(len(document.encode()) for document in documents)


def main(workdir: Path, moved: str | None = None) -> None:
    claim = checkpoint.read_claim(workdir)
    path = moved or claim.experiment.data.store
    if not Path(path).is_dir():
        raise UserError(
            f"{path}, the store that the run in {workdir} was trained on, is not there; say where "
            "it is with --store=DIR"
        )
    store, train = (TokenStore(path, split) for split in ("heldout", "train"))
    claim.check(workdir, train)
    if store.length(claim.experiment.data.separators) < 2:
        raise UserError(f"{store.path} has no held-out documents, so there is nothing to score")
    experiment, params, done = checkpoint.load(workdir)
    # All devices that are here, whatever mesh the run had, and a batch that suits them.
    rows = ROWS_PER_DEVICE * jax.device_count()
    experiment = dataclasses.replace(
        experiment,
        mesh=MeshConfig(data=1, fsdp=-1, model=1, context=1),
        data=dataclasses.replace(experiment.data, batch=rows),
    )
    mesh = meshes.make(experiment)
    ids = [{tuple(row) for row in split.documents[:, 2:].tolist()} for split in (store, train)]
    if shared := ids[0] & ids[1]:
        raise UserError(f"{store.path} has {len(shared)} held-out documents in training too")
    shardings = step.state_shardings(experiment, mesh).params
    params = jax.device_put(params, shardings)
    evaluate = step.eval_step(experiment, mesh, groups=1)
    model = score(experiment, mesh, evaluate, params, store, rows=rows, progress=True)
    xz = xz_bits_per_byte(text(store))
    print(
        f"{len(store.documents):,} held-out documents, {model.bytes:,} bytes, none of them among "
        f"the {len(train.documents):,} trained on\n"
        f"  model at step {done:<8} {model.bits_per_byte:.3f} bits per byte "
        f"({model.loss:.4f} nats per token)\n"
        f"  xz -9e                 {xz:.3f} bits per byte"
    )


if __name__ == "__main__":
    CHECKPOINT = flags.DEFINE_string("checkpoint", None, "the --workdir of a run", required=True)
    STORE = flags.DEFINE_string("store", None, "the run's token store, if it has moved")
    entry.run(lambda: main(Path(CHECKPOINT.value), STORE.value))
