"""What a run keeps: its settings, and saves of the device state with the place in the data.

WORKDIR/config.json              the settings, for refusing a run with others
        vocabulary/              the vocabulary that the tokens belong to
        checkpoints/<step>/      state and position, together or not at all (orbax)
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from biomedlm_jax.config import Experiment, build, differences
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.step import State, init, state_shardings

STATE, POSITION = "state", "position"  # the parts of a save


class Checkpoints:
    """The saves of one run. A save goes on in the background and appears only when it is whole;
    an error in it (disk full) is raised by the next call.

    Raises:
      UserError: `workdir` holds a run with other settings; the message lists them.
    """

    def __init__(self, workdir: Path, experiment: Experiment, store: TokenStore):
        claim(workdir, experiment, store)
        options = ocp.CheckpointManagerOptions(max_to_keep=experiment.run.keep)
        self.manager = ocp.CheckpointManager(_folder(workdir).absolute(), options=options)
        self.experiment = experiment

    def save(self, state: State, step: int) -> None:
        """Starts a save; blocks only while an earlier one is unfinished and to copy the state.

        The place in the data is the number of the next batch, for batches are a function of it.

        Raises:
          UserError: there is no room for it, or the save before it failed.
        """
        needed = sum(
            piece.data.nbytes
            for array in jax.tree.leaves(state)
            for piece in array.addressable_shards
            if piece.replica_id == 0
        )
        free = shutil.disk_usage(self.manager.directory).free
        if free < needed:  # asked first, for a save that fails half-way fails in many voices
            raise UserError(
                f"no space left in {self.manager.directory}: a checkpoint takes {needed:,} bytes, "
                f"{free:,} are free; those that are there are whole. Make room and give the same "
                "command again"
            )
        parts = {
            STATE: ocp.args.StandardSave(state),
            POSITION: ocp.args.JsonSave({"next_batch": step}),
        }
        with self._reported():
            self.manager.save(step, args=ocp.args.Composite(**parts), force=True)

    def latest(self, mesh: jax.sharding.Mesh) -> State | None:
        """The newest save on this mesh, which need not be the mesh that wrote it, or None.

        Raises:
          UserError: it can not be read.
        """
        step = self.manager.latest_step()
        if step is None:
            return None
        like = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            jax.eval_shape(lambda: init(self.experiment)),
            state_shardings(self.experiment, mesh),
        )
        parts = {STATE: ocp.args.StandardRestore(like), POSITION: ocp.args.JsonRestore()}
        found = _restored(self.manager, step, ocp.args.Composite(**parts))
        assert found[POSITION]["next_batch"] == int(found[STATE].step)
        return found[STATE]

    def close(self) -> None:
        """Waits for the save that is under way."""
        with self._reported():
            self.manager.wait_until_finished()
            self.manager.close()

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            # How tensorstore reports what the file system refused; another ValueError is a bug.
            if isinstance(error, ValueError) and "Error writing" not in str(error):
                raise
            reason = str(error).splitlines()[0]
            raise UserError(
                f"a checkpoint could not be written to {self.manager.directory}; those that were "
                f"there are whole. Remove the cause and give the same command again: {reason}"
            ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """What WORKDIR/config.json says: whose folder it is."""

    experiment: Experiment
    vocabulary_sha256: str
    tokens_sha256: str  # of the training split

    def check(self, workdir: Path, store: TokenStore) -> None:
        """Raises UserError where `store` is not the training split that the run began with."""
        for name, ours, theirs in [
            ("vocabulary", self.vocabulary_sha256, store.vocabulary_sha256),
            ("tokens", self.tokens_sha256, store.sha256),
        ]:
            if ours != theirs:
                raise UserError(
                    f"config.data.store={store.path} does not have the {name} of the run in "
                    f"{workdir}; use its store, or another --workdir"
                )


def claim(workdir: Path, experiment: Experiment, store: TokenStore) -> None:
    """Makes `workdir` the folder of this experiment, or finds that it is.

    Raises:
      UserError: it belongs to an experiment with other settings or another store, or to nobody
        knows whom.
    """
    if store.vocab_size != experiment.model.vocab:
        raise UserError(
            f"config.model.vocab={experiment.model.vocab}, but the vocabulary of config.data.store="
            f"{store.path} has {store.vocab_size} tokens; set one to the other"
        )
    ours = Claim(
        experiment=experiment,
        vocabulary_sha256=store.vocabulary_sha256,
        tokens_sha256=store.sha256,
    )
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
        if ours == before:
            return
    elif found := sorted({x.name for x in workdir.glob("*")} - {"vocabulary", "config.partial"}):
        raise UserError(  # those two are what an interrupted start leaves
            f"--workdir={workdir} has {', '.join(found[:3])} but no config.json, so it is no run's "
            "folder; name a new one"
        )
    (workdir / "vocabulary").mkdir(parents=True, exist_ok=True)
    shutil.copy2(store.vocabulary_path, workdir / "vocabulary")
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(dataclasses.asdict(ours), indent=2) + "\n")
    partial.rename(file)


def read_claim(workdir: Path) -> Claim:
    """Of the run in `workdir`.

    Raises:
      UserError: there is none.
    """
    file = workdir / "config.json"
    if not file.is_file():
        raise UserError(
            f"{workdir} is no folder of a run: {file} is missing; name the --workdir of a training "
            "run, not a folder inside it"
        )
    try:
        return build(Claim, json.loads(file.read_text()), str(file))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file} is not what a run of this version writes, so {workdir} is no --workdir: "
            f"{error}"
        ) from error


def load(workdir: Path) -> tuple[Experiment, dict, int]:
    """Settings, parameters as host arrays (float32, vocabulary padding included) and step of the
    newest save, whatever mesh wrote it and without its optimizer state.

    Raises:
      UserError: no run, or no save yet.
    """
    experiment = read_claim(workdir).experiment
    with ocp.CheckpointManager(_folder(workdir).absolute()) as manager:
        step = manager.latest_step()
        if step is None:
            every = experiment.run.save_every
            raise UserError(
                f"{workdir} has no checkpoint yet; "
                + (f"the first comes at step {every}" if every else "config.run.save_every is 0")
            )
        params = jax.eval_shape(lambda: init(experiment).params)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), params)
        restore = ocp.args.PyTreeRestore(
            item={"params": params}, restore_args={"params": as_numpy}, partial_restore=True
        )
        found = _restored(manager, step, ocp.args.Composite(**{STATE: restore}))
    return experiment, found[STATE]["params"], step


def _restored(manager: ocp.CheckpointManager, step: int, parts: ocp.args.Composite) -> Any:
    try:
        return manager.restore(step, args=parts)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"checkpoint {step} in {manager.directory} can not be read; put its folder somewhere "
            f"else, and the same command goes on from the one before: {error}"
        ) from error


def _folder(workdir: Path) -> Path:
    return workdir / "checkpoints"
