"""What a run learns from at a step, in words:

    python -m biomedlm_jax.pipeline.inspect --config=configs/demo.py --step=1000

Prints, for each row of that batch, its epoch and block, the documents it was cut from and its text.
The batch is a function of the seed and the step alone, so this needs the store and the config, no
checkpoint and no accelerator, and reads nothing of other batches. For a loss that jumped.
"""

from collections.abc import Iterator

import numpy as np
from absl import flags
from ml_collections import config_flags

from biomedlm_jax import entry
from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.loader import blocks_in, blocks_of
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from biomedlm_jax.settings import build, check_arguments


def rows(experiment: Experiment, step: int, limit: int | None = None) -> Iterator[str]:
    """The first `limit` rows of batch `step`, or all, each as a few lines of text.

    Raises:
      UserError: no such step, no store, or a store with less than one block.
    """
    data, length = experiment.data, experiment.model.context
    if not 0 <= step < experiment.run.steps:
        raise UserError(f"--step={step} is not in [0, config.run.steps={experiment.run.steps})")
    store = TokenStore(data.store, "train")
    blocks = blocks_in(store, length, data.separators)
    vocabulary = Vocabulary(store.vocabulary_path)
    epochs, block = blocks_of(step, batch=data.batch, blocks=blocks, seed=experiment.run.seed)
    epochs, starts = epochs[:limit], block[:limit] * length
    found = store.windows(starts, length, data.separators)
    for row, (epoch, start, tokens, segments) in enumerate(
        zip(epochs, starts, *found, strict=True)
    ):
        yield f"row {row}: epoch {epoch}, block {start // length} of {blocks}"
        ids = store.ids(int(start), length, data.separators)
        for segment in np.unique(segments):
            (places,) = np.nonzero(segments == segment)
            yield f"  [{places[0]}, {places[-1] + 1}) {ids[segment]}"
            yield f"    {vocabulary.decode(tokens[places].tolist())!r}"


def main() -> None:
    given = flags.FLAGS
    if given.config is None:
        raise UserError("--config is missing; for example --config=configs/demo.py")
    for line in rows(build(Experiment, given.config.to_dict()), given.step, given.rows):
        print(line)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "a file of configs/")
    flags.DEFINE_integer("step", None, "Which batch; the first is 0.", required=True)
    flags.DEFINE_integer("rows", None, "How many of its rows; all if not given.", 1)
    entry.run(main, check_arguments)
