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

import jax
import numpy as np
import orbax.checkpoint as ocp

from biomedlm_jax.config import Experiment, build, differences
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.step import State, init, state_shardings


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
        self.experiment, self.tokens = experiment, store.sha256

    def save(self, state: State, step: int) -> None:
        """Starts a save; blocks only while an earlier one is unfinished and to copy the state."""
        position = {"step": step, "tokens_sha256": self.tokens}
        parts = ocp.args.Composite(
            state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position)
        )
        with self._reported():
            self.manager.save(step, args=parts, force=True)

    def latest(self, mesh: jax.sharding.Mesh) -> State | None:
        """The newest save on this mesh, which need not be the mesh that wrote it, or None.

        Raises:
          UserError: it was trained on a store with other tokens, so its place in the data means
            nothing here.
        """
        step = self.manager.latest_step()
        if step is None:
            return None
        like = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            jax.eval_shape(lambda: init(self.experiment)),
            state_shardings(self.experiment, mesh),
        )
        parts = ocp.args.Composite(
            state=ocp.args.StandardRestore(like), position=ocp.args.JsonRestore()
        )
        found = self.manager.restore(step, args=parts)
        if found["position"]["tokens_sha256"] != self.tokens:
            raise UserError(
                f"config.data.store={self.experiment.data.store} holds other tokens than the run "
                f"was trained on up to step {step}; use its store, or another --workdir"
            )
        return found["state"]

    def close(self) -> None:
        """Waits for the save that is under way."""
        with self._reported():
            self.manager.wait_until_finished()
            self.manager.close()

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:  # how tensorstore reports what the file system refused
            reason = str(error).splitlines()[0]
            raise UserError(
                f"a checkpoint could not be written; those before it in {self.manager.directory} "
                f"are whole. Remove the cause and give the same command again: {reason}"
            ) from error


def claim(workdir: Path, experiment: Experiment, store: TokenStore) -> None:
    """Makes `workdir` the folder of this experiment, or finds that it is.

    Raises:
      UserError: it belongs to an experiment with other settings or another vocabulary.
    """
    if store.vocab_size != experiment.model.vocab:
        raise UserError(
            f"config.model.vocab={experiment.model.vocab}, but the vocabulary of config.data.store="
            f"{store.path} has {store.vocab_size} tokens; set one to the other"
        )
    file = workdir / "config.json"
    if file.exists():
        before, vocabulary = read_claim(workdir)
        if changed := differences(experiment, before):
            raise UserError(
                f"--workdir={workdir} belongs to a run with other settings:\n  "
                + "\n  ".join(changed)
                + "\nuse another --workdir, or the settings of that run"
            )
        if vocabulary != store.vocabulary_sha256:
            raise UserError(
                f"--workdir={workdir} belongs to a run with another vocabulary than that of "
                f"config.data.store={store.path}; use its store, or another --workdir"
            )
        return
    if _folder(workdir).exists():
        raise UserError(f"--workdir={workdir} has checkpoints but no config.json; use another one")
    (workdir / "vocabulary").mkdir(parents=True, exist_ok=True)
    shutil.copy2(store.vocabulary_path, workdir / "vocabulary")
    content = dataclasses.asdict(experiment) | {"vocabulary_sha256": store.vocabulary_sha256}
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.rename(file)


def read_claim(workdir: Path) -> tuple[Experiment, str]:
    """The settings of the run in `workdir`, and the hash of its vocabulary.

    Raises:
      UserError: there is no run.
    """
    file = workdir / "config.json"
    if not file.is_file():
        raise UserError(f"{workdir} is no folder of a run: {file} is missing")
    content = json.loads(file.read_text())
    vocabulary = content.pop("vocabulary_sha256")
    return build(Experiment, content), vocabulary


def load(workdir: Path) -> tuple[Experiment, dict, int]:
    """Settings, parameters as host arrays (float32, vocabulary padding included) and step of the
    newest save, whatever mesh wrote it and without its optimizer state.

    Raises:
      UserError: no run, or no save yet.
    """
    experiment, _ = read_claim(workdir)
    with ocp.CheckpointManager(_folder(workdir).absolute()) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"{workdir} has no checkpoint yet; set config.run.save_every and train")
        params = jax.eval_shape(lambda: init(experiment).params)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), params)
        restore = ocp.args.PyTreeRestore(
            item={"params": params}, restore_args={"params": as_numpy}, partial_restore=True
        )
        found = manager.restore(step, args=ocp.args.Composite(state=restore))
    return experiment, found["state"]["params"], step


def _folder(workdir: Path) -> Path:
    return workdir / "checkpoints"
