"""WORKDIR/config.json: whose folder it is. A run goes on with the settings, the store and the
weights that it began with, or is refused."""

import dataclasses
import json
from typing import Any, Protocol

from etils import epath

from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import UserError, in_cloud
from biomedlm_jax.lock import FILE, LEASE
from biomedlm_jax.pipeline.vocabulary import Place
from biomedlm_jax.settings import build, differences


class Identity(Protocol):
    """Of what a run learns from.

    setting: that names it, with its value. vocab_size: of a model for it. sha256: of what is
    learned.
    """

    @property
    def setting(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def vocabulary_path(self) -> Place: ...
    @property
    def vocabulary_sha256(self) -> str: ...
    @property
    def sha256(self) -> str: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """What WORKDIR/config.json says: whose folder it is."""

    experiment: Experiment
    vocabulary_sha256: str
    tokens_sha256: str  # of the training split, or of the items
    weights: dict = dataclasses.field(default_factory=dict)  # of config.start: `start.weights`

    def check(self, workdir: epath.PathLike, store: Identity) -> None:
        """Raises UserError where `store` is not the training split that the run began with."""
        for name, ours, theirs in [
            ("vocabulary", self.vocabulary_sha256, store.vocabulary_sha256),
            ("tokens", self.tokens_sha256, store.sha256),
        ]:
            if ours != theirs:
                raise UserError(
                    f"{store.setting} does not have the {name} of the run in {workdir}; use what "
                    "it began with, or another --workdir"
                )


def claim(
    workdir: epath.PathLike,
    experiment: Experiment,
    store: Identity,
    weights: dict[str, Any] | None = None,
) -> None:
    """Makes `workdir` the folder of this experiment, or finds that it is.

    weights: that it begins with, where it begins with those of a model; see `start.weights`.

    Raises:
      UserError: it belongs to an experiment with other settings, another store or other weights,
        or to nobody knows whom.
    """
    if store.vocab_size != experiment.model.vocab:
        raise UserError(
            f"config.model.vocab={experiment.model.vocab}, but the vocabulary of {store.setting} "
            f"has {store.vocab_size} tokens; set one to the other"
        )
    ours = Claim(
        experiment=experiment,
        vocabulary_sha256=store.vocabulary_sha256,
        tokens_sha256=store.sha256,
        weights=weights or {},
    )
    workdir = epath.Path(workdir)
    file = workdir / "config.json"
    if file.exists():
        before = read_claim(workdir)
        if changed := differences(experiment, before.experiment):
            raise UserError(
                f"--workdir={workdir} belongs to a run with other settings:\n  "
                + "\n  ".join(changed)
                + "\nuse another --workdir, or the settings of that run"
            )
        before.check(workdir, store)
        if weights and before.weights and weights != before.weights:
            was, now = (
                f"save {x['save']} of it" if x["save"] else f"sha256 {x['sha256'][:12]}"
                for x in (before.weights, weights)
            )
            raise UserError(
                f"the run in {workdir} has no save yet, and config.start={experiment.start} is no "
                f"longer what it began with: {was} then, {now} now; name another --workdir to "
                "begin with what is there now"
            )
        ours = dataclasses.replace(ours, weights=weights or before.weights)
        if ours == before:
            return
    elif found := sorted(
        {entry.name for entry in (workdir.iterdir() if workdir.exists() else ())}
        - {"vocabulary", "config.partial", "compilation_cache", "launch", FILE, LEASE}
    ):
        raise UserError(  # those are what an interrupted start, or who launches it, leaves
            f"--workdir={workdir} has {', '.join(found[:3])} but no config.json, so it is no run's "
            "folder; name a new one"
        )
    (workdir / "vocabulary").mkdir(parents=True, exist_ok=True)
    vocabulary = workdir / "vocabulary" / store.vocabulary_path.name
    vocabulary.write_bytes(store.vocabulary_path.read_bytes())
    text = json.dumps(dataclasses.asdict(ours), indent=2) + "\n"
    if in_cloud(workdir):  # where nothing has a name before it is whole
        file.write_text(text)
    else:
        partial = workdir / "config.partial"
        partial.write_text(text)
        partial.replace(file)


def read_claim(workdir: epath.PathLike) -> Claim:
    """Of the run in `workdir`.

    Raises:
      UserError: there is none.
    """
    workdir = epath.Path(workdir)
    file = workdir / "config.json"
    if not file.is_file():
        raise UserError(
            f"{workdir} is no folder of a run: {file} is missing; name the --workdir of a training "
            "run, not a folder inside it"
        )
    try:
        return build(Claim, _with_later(json.loads(file.read_text())), str(file))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{file} is not what a run of this version writes, so {workdir} is no --workdir: "
            f"{error}"
        ) from error


def _with_later(settings: dict) -> dict:
    """What the file of a run that began with an earlier version does not have, as it was then."""
    experiment = settings["experiment"]
    later: dict[str, dict] = {
        "model": {"classes": 0, "class_bias": False, "lora_rank": 0, "lora_alpha": 0.0},
        "optimizer": {"decay": "cosine", "frozen_layers": 0},
        "run": {"tpu_vmem_mib": 0},  # which was XLA's own choice
    }
    sections = {name: values | experiment[name] for name, values in later.items()}
    return {"weights": {}, **settings, "experiment": {"task": None, **experiment, **sections}}
