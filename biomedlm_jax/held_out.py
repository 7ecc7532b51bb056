"""How well a model predicts text that it has never seen, in bits per byte.

Bits per byte do not depend on the vocabulary, so models with different ones compare, and so does
a compressor. `python -m biomedlm_jax.held_out --checkpoint=WORKDIR` scores the newest save of a
run on the held-out documents of its store, beside what `xz -9e` makes of the same text, and by
source and year of publication: what few bytes say of a single year is mostly noise.
"""

import dataclasses
import itertools
import lzma
from collections.abc import Callable, Iterator

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from biomedlm_jax import entry, start, step
from biomedlm_jax import mesh as meshes
from biomedlm_jax.claim import read_claim
from biomedlm_jax.config import Experiment
from biomedlm_jax.config import Mesh as MeshConfig
from biomedlm_jax.entry import UserError
from biomedlm_jax.layout import IN_USE, spec
from biomedlm_jax.pipeline.loader import HeldOut, held_out
from biomedlm_jax.pipeline.store import SOURCE_OF_CODE, UNKNOWN_YEAR, TokenStore
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from biomedlm_jax.scoring.measures import bits_per_byte

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
        return bits_per_byte(self.nats, self.bytes)

    def __str__(self) -> str:
        return (
            f"{self.bits_per_byte:.3f} bits per byte, {self.loss:.4f} nats per token over "
            f"{self.labels:,} tokens"
        )


Scores = dict[str, Score]  # of parts of the text: TOTAL, "full_text", "year_2021", UNKNOWN
TOTAL, YEAR, UNKNOWN = "", "year_", "year_unknown"


def parts(groups: np.ndarray) -> dict[str, np.ndarray]:
    """Which of the `TokenStore.groups` a part of the text is made of, bool [groups]: all of it,
    its sources, its years in rising order, and what is of no known year."""
    codes, years = groups.T
    known = np.unique(years[years != UNKNOWN_YEAR]).tolist()
    found = {TOTAL: np.ones(len(groups), bool)}
    found |= {SOURCE_OF_CODE[code]: codes == code for code in np.unique(codes).tolist()}
    found |= {f"{YEAR}{year}": years == year for year in known}
    if len(known) < len(np.unique(years)):
        found[UNKNOWN] = years == UNKNOWN_YEAR
    return found


class Evaluator:
    """evaluate(params) gives the scores on a split, or on its first `limit` x config.data.batch
    windows of config.model.context tokens.

    The labels are those of training: the ends of documents where config.data.separators has them
    learned, and with config.data.segment_ids no first token of a document. Every host reads the
    same windows; as many rows go through the model at once as in an update.

    Attributes:
      batches: that are evaluated, one after the other.

    Raises:
      UserError: the split has less than one label.
    """

    def __init__(
        self, experiment: Experiment, mesh: Mesh, store: TokenStore, limit: int | None = None
    ) -> None:
        data, accumulate = experiment.data, experiment.run.accumulate
        labels = store.length(data.separators) - 1
        if labels < 1:
            raise UserError(
                f"config.data.store={store.path} has no held-out documents; build it with a larger "
                "--heldout_per_mille, or set config.run.eval_every=0"
            )
        self.experiment, self.store = experiment, store
        self.rows = data.batch // accumulate
        self.batches = -(-labels // ((experiment.model.context - 1) * self.rows))
        if limit is not None:
            self.batches = min(self.batches, limit * accumulate)
        self._groups, _ = store.groups
        self._step = step.eval_step(experiment, mesh, groups=len(self._groups))
        self._sharding = NamedSharding(mesh, spec("bt", IN_USE))
        self._sizes = Vocabulary(store.vocabulary_path).token_bytes()

    def __call__(self, params: dict, each: Callable[[], object] = lambda: None) -> Scores:
        """The scores of `params`. What has no text among the windows is no part.

        each: called after every batch; may raise to give the rest up.

        Raises:
          UserError: nothing is a label.
        """
        count = len(self._groups)
        nats, labels, nbytes = np.zeros(count), np.zeros(count, int), np.zeros(count, int)
        for window in itertools.islice(self._windows(), self.batches):
            nats += np.asarray(self._step(params, *jax.tree.map(self._put, window)), np.float64)
            real = window.group >= 0
            group, sizes = window.group[real], self._sizes[window.tokens[:, 1:][real]]
            labels += np.bincount(group, minlength=count)
            nbytes += np.bincount(group, weights=sizes, minlength=count).astype(int)
            each()
        if not nbytes.any():
            raise UserError(
                f"{self.store.path} has no held-out document of two tokens of text, so there is "
                "nothing to score; build it from a larger corpus, or set config.run.eval_every=0"
            )
        return {
            name: Score(float(nats[part].sum()), int(labels[part].sum()), int(nbytes[part].sum()))
            for name, part in parts(self._groups).items()
            if nbytes[part].any()
        }

    def _windows(self) -> Iterator[HeldOut]:
        data = self.experiment.data
        return held_out(
            self.store,
            batch=self.rows,
            length=self.experiment.model.context,
            separators=data.separators,
            segment_ids=data.segment_ids,
        )

    def _put(self, whole: np.ndarray) -> jax.Array:
        """On the mesh, of which this host may have a part only."""
        return jax.make_array_from_callback(whole.shape, self._sharding, lambda at: whole[at])


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


def main(workdir: epath.PathLike, moved: str | None = None) -> None:
    claim = read_claim(workdir)
    path = moved or claim.experiment.data.store
    if not epath.Path(path).is_dir():
        raise UserError(
            f"{path}, the store that the run in {workdir} was trained on, is not there; say where "
            "it is with --store=DIR"
        )
    store, train = (TokenStore(path, split) for split in ("heldout", "train"))
    claim.check(workdir, train)
    # All devices that are here, whatever mesh the run had, and a batch that suits them.
    was = claim.experiment
    experiment = dataclasses.replace(
        was,
        mesh=MeshConfig(data=1, fsdp=-1, model=1, context=1),
        data=dataclasses.replace(was.data, batch=ROWS_PER_DEVICE * jax.device_count()),
        run=dataclasses.replace(was.run, accumulate=1),
    )
    mesh = meshes.make(experiment)
    evaluate = Evaluator(experiment, mesh, store)
    ids = [{tuple(row) for row in split.documents[:, 2:4].tolist()} for split in (store, train)]
    if shared := ids[0] & ids[1]:
        raise UserError(f"{store.path} has {len(shared)} held-out documents in training too")
    source = start.find(str(workdir))
    params = start.params(source, mesh)
    assert source.step is not None
    with tqdm(total=evaluate.batches, desc="held out") as bar:
        scores = evaluate(params, each=bar.update)
    print(
        f"{len(store.documents):,} held-out documents, {scores[TOTAL].bytes:,} bytes, none of them "
        f"among the {len(train.documents):,} trained on"
    )
    print("\n".join(table(scores, source.step, xz_bits_per_byte(text(store)))))


def table(scores: Scores, done: int, xz: float) -> list[str]:
    """Lines: the model after `done` steps, `xz -9e`, and the model again by source and by year."""
    total = scores[TOTAL]
    lines = [
        f"  {f'model at step {done}':<24}{total.bits_per_byte:.3f} bits per byte "
        f"({total.loss:.4f} nats per token)",
        f"  {'xz -9e':<24}{xz:.3f} bits per byte",
    ]
    years = {name: score for name, score in scores.items() if name.startswith(YEAR)}
    sources = {name: scores[name] for name in scores if name != TOTAL and name not in years}
    for title, some in {"source": sources, "year": years}.items():
        lines.append(f"  the model by {title}")
        lines += [
            f"    {name.removeprefix(YEAR):<22}{score.bits_per_byte:.3f} bits per byte of "
            f"{score.bytes:>13,} bytes"
            for name, score in some.items()
        ]
    return lines


if __name__ == "__main__":
    CHECKPOINT = flags.DEFINE_string("checkpoint", None, "the --workdir of a run", required=True)
    STORE = flags.DEFINE_string("store", None, "the run's token store, if it has moved")
    entry.run(lambda: main(epath.Path(CHECKPOINT.value), STORE.value))
