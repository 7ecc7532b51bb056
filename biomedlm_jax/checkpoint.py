"""What a run keeps: its settings, and saves of the device state with the place in the data.

WORKDIR/config.json              the settings, for refusing a run with others (`claim.py`)
        vocabulary/              the vocabulary that the tokens belong to
        checkpoints/<step>/      state and position, together or not at all (orbax)
        damaged/<step>/          what was found to be no whole save; nothing reads it

WORKDIR is a local folder or gs://. The position holds a checksum of every array of the state, so
that whatever became of the files, a state that is restored is the state that was saved.
"""

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    EveryNSteps,
    LatestN,
    PreservationPolicy,
)

from biomedlm_jax import hosts
from biomedlm_jax.arrays import Arrays
from biomedlm_jax.checksums import checksums
from biomedlm_jax.claim import Identity, claim, read_claim
from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import Unavailable, UserError, passes
from biomedlm_jax.saves import (
    POSITION,
    REFUSED,
    STATE,
    STORAGE,
    DamagedError,
    absolute,
    check_room,
    damage,
    differing,
    first_sees,
    folder_of,
    move,
    none_whole,
    nothing_whole,
    passed_over,
    read_position,
    restored,
    state_handler,
    steps_in,
)
from biomedlm_jax.step import State, init, state_shardings

_calls = itertools.count()  # what hosts say to each other has a name of its own each time


class Checkpoints:
    """The saves of one run. A save goes on in the background and appears only when it is whole;
    an error in it (disk full) is raised by the next call. The newest run.keep stay, and those of
    every run.keep_every steps; an older one is removed when the one that replaces it is whole.

    With several processes all of them make one and call the same methods.

    stalled: seconds for which the last `save` stopped its caller.
    damaged: of each save that was moved aside, {"step": 10, "reason": ..., "moved_to": ...}.

    Raises:
      UserError: `workdir` holds a run with other settings; the message lists them.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        experiment: Experiment,
        store: Identity,
        weights: dict[str, Any] | None = None,
    ):
        """weights: what a run that begins found at config.start; see `claim`."""
        self.workdir, self.experiment = absolute(workdir), experiment
        self.stalled, self.damaged = 0.0, list[dict[str, Any]]()
        self._on_primary(lambda: claim(self.workdir, experiment, store, weights))
        kept: list[PreservationPolicy] = [LatestN(experiment.run.keep)]
        if experiment.run.keep_every:
            kept.append(EveryNSteps(experiment.run.keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,  # left by a kill in the middle of a save
            lightweight_initialize=True,  # reads nothing that may be damaged
        )
        parts = {STATE: state_handler(self.workdir), POSITION: ocp.JsonCheckpointHandler()}
        with self._reported():
            self.manager = ocp.CheckpointManager(
                folder_of(self.workdir), options=options, item_handlers=parts
            )

    def save(self, state: State, step: int) -> None:
        """Starts a save; blocks only while an earlier one is unfinished, for the checksums and to
        copy the state to the host.

        The place in the data is the number of the next batch, for batches are a function of it.

        Raises:
          UserError: there is no room for it, the folder is gone, or the save before it failed.
        """
        start = time.perf_counter()
        self._on_every_host(lambda: check_room(self.workdir, state))
        position = {"next_batch": step, "checksums": checksums(state)}
        parts = {STATE: ocp.args.PyTreeSave(state), POSITION: ocp.args.JsonSave(position)}
        with self._reported():
            self.manager.save(step, args=ocp.args.Composite(**parts), force=True)
        self.stalled = time.perf_counter() - start

    def latest(self, mesh: jax.sharding.Mesh) -> State | None:
        """The newest whole save on this mesh, which need not be the mesh that wrote it, or None
        where nothing was ever saved. Newer ones that are damaged are moved to WORKDIR/damaged.

        Raises:
          UserError: there are saves and none is whole, in which case none is moved; or the storage
            does not answer.
        """
        wait = self.experiment.run.wait_seconds
        steps, passed = first_sees(self.workdir, wait), dict[int, str]()
        for step in steps:
            state, reason = self._read(step, mesh)
            if state is not None:
                break
            passed[step] = reason
        else:
            if passed:
                raise UserError(none_whole(self.workdir, passed))
            aside = self.workdir / "damaged"
            if aside.exists():
                raise UserError(
                    f"--workdir={self.workdir} has no checkpoint but damaged ones, in {aside}; "
                    "repair one of them and put it back, remove that folder for a run from step 0, "
                    "or name another --workdir"
                )
            return None
        for damaged, reason in passed.items():
            self._move_aside(damaged, reason, step)
        if passed:
            self.manager.reload()
        return state

    def close(self) -> None:
        """Waits for the save that is under way."""
        with self._reported():
            self.manager.wait_until_finished()
            self.manager.close()

    def _read(self, step: int, mesh: jax.sharding.Mesh) -> tuple[State | None, str]:
        """A save, or what is wrong with it: all processes come to the same result. What they do
        together comes after each has said that it could read its part, so that none waits."""
        like = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            jax.eval_shape(lambda: init(self.experiment)),
            state_shardings(self.experiment, mesh),
        )
        arrays = jax.tree.map(
            lambda x: ocp.ArrayRestoreArgs(
                global_shape=x.shape, dtype=x.dtype, sharding=x.sharding
            ),
            like,
        )
        restore = ocp.args.PyTreeRestore(item=like, restore_args=arrays)
        folder = folder_of(self.workdir) / str(step)
        found = []

        def read() -> None:
            with damage():
                position = read_position(folder, step)
                found.extend([jax.block_until_ready(restored(folder / STATE, restore)), position])

        if reason := self._verdict(read):
            return None, reason
        state, position = found

        def compare() -> None:
            if wrong := differing(checksums(state), position["checksums"]):
                raise DamagedError(wrong)

        reason = self._verdict(compare)
        return (None, reason) if reason else (state, "")

    def _verdict(self, act: Callable[[], None]) -> str:
        """What any process found damaged, or an empty string."""
        reasons = []

        def judge() -> None:
            try:
                act()
            except DamagedError as error:
                reasons.append(str(error))

        self._on_every_host(judge)
        said = hosts.gather(
            _name("verdict"), reasons[0] if reasons else "", self.experiment.run.wait_seconds
        )
        wrong = {process: reason for process, reason in enumerate(said) if reason}
        if len(said) > 1:
            return "; ".join(f"process {process}: {reason}" for process, reason in wrong.items())
        return said[0]

    def _move_aside(self, step: int, reason: str, newest: int) -> None:
        source, aside = folder_of(self.workdir) / str(step), self.workdir / "damaged"
        target = aside / str(step)
        for number in itertools.count(2):
            if not target.exists():
                break
            target = aside / f"{step}-{number}"

        def put() -> None:
            try:
                aside.mkdir(parents=True, exist_ok=True)
                move(source, target)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"checkpoint {step} is damaged ({reason}) and can not be moved to {target}: "
                    f"{error}; see that --workdir={self.workdir} can be written"
                ) from error

        self._on_primary(put)
        self.damaged.append({"step": step, "reason": reason, "moved_to": str(target)})
        if hosts.primary():
            print(
                f"checkpoint {step} is damaged: {reason}; it was moved to {target}, going on from "
                f"{newest}",
                flush=True,
            )

    def _on_every_host(self, act: Callable[[], None]) -> None:
        """Does it on each; where one of them refuses, all do, with its words."""
        refusal, cause = "", None
        try:
            act()
        except UserError as error:
            passing = "passing" if isinstance(error, Unavailable) else ""
            refusal, cause = f"{passing}\0{error}", error
        said = hosts.gather(_name("refusal"), refusal, self.experiment.run.wait_seconds)
        if any(said):
            passing, _, words = min(filter(None, said)).partition("\0")
            raise (Unavailable if passing else UserError)(words) from cause

    def _on_primary(self, act: Callable[[], None]) -> None:
        self._on_every_host(lambda: act() if hosts.primary() else None)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # How tensorstore reports what the storage refused; another ValueError is a bug, or the
            # end of another host.
            refused = isinstance(error, ValueError) and REFUSED.search(str(error))
            ours = isinstance(error, ValueError) and STORAGE.search(str(error))
            if (hosts.lost(error) and not ours) or not (
                refused or isinstance(error, OSError) or passes(error)
            ):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise (Unavailable if passes(error) else UserError)(
                f"a checkpoint could not be written to {folder_of(self.workdir)}; those that were "
                "there are whole. See that --workdir is there and can be written, remove the cause "
                f"and give the same command again: {reason}"
            ) from error


def scored(workdir: epath.PathLike, experiment: Experiment, step: int) -> Arrays:
    """The parameters that are evaluated and exported, of the save of `step`, on a disk.

    Raises:
      DamagedError: its position can not be read.
    """
    folder = folder_of(absolute(workdir)) / str(step)
    with damage():
        sums = read_position(folder, step)["checksums"]
    state = jax.eval_shape(lambda: init(experiment))
    part = "params" if state.average is None else "average"
    return Arrays(folder / STATE, part, state.scored, sums)


def load(workdir: epath.PathLike) -> tuple[Experiment, dict, int]:
    """Settings, scored parameters as host arrays (float32, vocabulary padding included) and step of
    the newest whole save, whatever mesh wrote it and without its optimizer state. Nothing is moved;
    the damaged ones that were passed over are named on stderr.

    Raises:
      UserError: no run, no save yet, or none that is whole.
    """
    experiment, passed = read_claim(workdir).experiment, dict[int, str]()
    for step in steps_in(absolute(workdir)):
        try:
            return experiment, scored(workdir, experiment, step).restore(), step
        except DamagedError as error:
            passed[step] = str(error)
            print(passed_over(step, error), file=sys.stderr)
    raise UserError(nothing_whole(workdir, experiment.run.save_every, passed))


def _name(what: str) -> str:
    return f"checkpoint-{what}-{next(_calls)}"
