"""The adapters of a run alone, as a folder of PEFT beside the Hugging Face folder of its base."""

import hashlib
import json
from pathlib import Path

from biomedlm_jax import start
from biomedlm_jax.adapted import Adapted
from biomedlm_jax.benchmarks.prompts import SPECIAL
from biomedlm_jax.checksums import Running
from biomedlm_jax.claim import read_claim
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf import adapters
from biomedlm_jax.hf.foreign import PARAMS
from biomedlm_jax.hf.names import rows
from biomedlm_jax.start import Source


def write(source: Source, base: str | None, output: Path) -> None:
    """Writes the folder `output`, which appears when it is complete.

    source: a run that trained adapters.
    base: the Hugging Face folder that they belong to; None is config.start, where that is one.

    Raises:
      UserError: the run has no adapters, or has learned with more than adapters; or `base` has not
        the weights that the run began with.
    """
    found, experiment = source.arrays, source.experiment
    if experiment is None or not isinstance(found, Adapted):
        raise UserError(
            f"--adapters is for a run with config.model.lora_rank, and {source.place} has none; "
            "without it the model is written whole"
        )
    task = experiment.task
    if task is not None and (added := SPECIAL[task.objective]):
        raise UserError(
            f"config.task.objective={task.objective!r} added the tokens {', '.join(added)}"
            f"{' and a head' if source.model.classes else ''}, which the base has not and a folder "
            "of adapters can not give it; write the model whole, without --adapters"
        )
    folder = _base(source, base or experiment.start)
    adapters.write(found.adapters, source.model, output, str(folder))


def _base(source: Source, named: str) -> Path:
    """The folder that `named` is, with the weights that the run began with."""
    known = read_claim(source.place).weights
    if not named or "sha256" not in known:
        raise UserError(
            f"the run in {source.place} began with random weights, or did not write down with "
            "which, so nobody knows which base its adapters belong to; write the model whole, "
            "without --adapters"
        )
    found = start.find(named)
    if found.what != "hugging_face":
        raise UserError(
            f"{named} is no Hugging Face folder, to which PEFT's adapters belong; write one with "
            f"`python -m biomedlm_jax.hf.save --checkpoint={named}` and name it with --base"
        )
    if (sha256 := weights_sha256(found)) != known["sha256"]:
        raise UserError(
            f"{named} has other weights than the run in {source.place} began with: sha256 "
            f"{sha256[:12]} now, {known['sha256'][:12]} then; name with --base a folder that has "
            "them"
        )
    return Path(found.place).resolve()


def weights_sha256(source: Source) -> str:
    """That of `start.weights`, from pieces, none of which stays in memory."""
    sums = dict[str, int]()
    for row in rows(source.model):
        running = Running(row.shapes(source.model)[0])
        for begin, piece in source.arrays.pieces(row.ours):
            running.add(begin, piece)
        sums[f"{PARAMS}/{row.ours}"] = running.value
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
