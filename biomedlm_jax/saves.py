"""The files of a save: what is in them, what is wrong with them, and moving them.

A save is WORKDIR/checkpoints/<step>/ with state/ (orbax) and position/, which is {"next_batch":
step, "checksums": {name: uint32}} in JSON. orbax gives it that name when it is whole; on gs://,
where nothing is renamed, commit_success.txt says so.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from biomedlm_jax import hosts
from biomedlm_jax.entry import AWAY, Unavailable, UserError, in_cloud, passes

STATE, POSITION = "state", "position"  # the parts of a save
# How tensorstore and Google's libraries say that it is not the files that are at fault.
PASSING = re.compile(
    f"{AWAY}|PERMISSION_DENIED|UNAUTHENTICATED|RESOURCE_EXHAUSTED|Forbidden|credentials"
)
REFUSED = re.compile(f"Error (writing|opening|reading)|NOT_FOUND|DATA_LOSS|{PASSING.pattern}")

# What no other host can have said.
STORAGE = re.compile(r"Error (writing|opening|reading)|HTTP \d\d\d|retry attempts failed")


class DamagedError(Exception):
    """What is in the files is not what was saved."""


@contextlib.contextmanager
def damage() -> Iterator[None]:
    """Makes of an error while a save is read the verdict that it is damaged, unless the storage or
    the machine is at fault: then a UserError, for the save may be whole; Unavailable where that
    may pass."""
    try:
        yield
    except DamagedError:
        raise
    except Exception as error:  # a damaged file can break the readers anywhere
        cause: BaseException = error
        while cause.__cause__ is not None:  # orbax wraps what tensorstore says
            cause = cause.__cause__
        reason = f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
        memory = isinstance(cause, (MemoryError, jax.errors.JaxRuntimeError))
        refused = isinstance(cause, PermissionError)
        if memory or refused or passes(cause) or PASSING.search(reason):
            raise (Unavailable if passes(cause) else UserError)(
                "a checkpoint can not be read now, which says nothing about whether it is whole; "
                f"remove the cause and give the same command again: {reason}"
            ) from error
        raise DamagedError(reason) from error


def read_position(folder: epath.Path, step: int) -> dict[str, Any]:
    found = json.loads((folder / POSITION / "metadata").read_text())
    if not isinstance(found, dict) or found.keys() != {"next_batch", "checksums"}:
        raise DamagedError("its position is not what this version writes")
    if found["next_batch"] != step:
        raise DamagedError(f"it is the save of step {found['next_batch']}")
    return found


def restored(folder: epath.Path, restore: ocp.args.PyTreeRestore) -> Any:
    """Not through orbax's manager, in which the hosts wait for each other, also for one that has
    failed. Of jax arrays no more than three of the largest are under way at a time: memory that was
    just used is quicker to have than more of it."""
    largest = max(array.size * array.dtype.itemsize for array in jax.tree.leaves(restore.item))
    return state_handler(folder, 3 * largest).restore(folder, args=restore)


def differing(found: dict[str, int], saved: dict[str, int]) -> str:
    wrong = [name for name, checksum in found.items() if saved.get(name) != checksum]
    if not wrong:
        return ""
    more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
    return f"the checksum of {wrong[0]}{more} is not the one that was saved"


def state_handler(folder: epath.Path, at_once: int | None = None) -> ocp.PyTreeCheckpointHandler:
    """Without compression: weights do not get smaller by it, and it takes longer than the disk.
    On a disk each piece of an array is a file of its own, for those are written and read side by
    side; on gs:// there are few large files (OCDBT), for there a request is what costs. Either is
    read wherever it lies.

    at_once: bytes that are restored, or copied from the devices; None is orbax's own limit."""
    # A fraction of a GB will do, and orbax waits while what is free is not more than is wanted.
    limit = None if at_once is None else (at_once + 1024) / 1e9
    return ocp.PyTreeCheckpointHandler(
        use_compression=False,
        use_ocdbt=in_cloud(folder),
        save_concurrent_gb=limit,  # pyright: ignore[reportArgumentType]
        restore_concurrent_gb=limit,  # pyright: ignore[reportArgumentType]
    )


def steps_in(workdir: epath.Path) -> list[int]:
    """Of the saves that were finished, newest first."""
    names = ocp.path.step.standard_name_format()
    return sorted((found.step for found in names.find_all(folder_of(workdir))), reverse=True)


def first_sees(workdir: epath.Path, wait_seconds: int) -> list[int]:
    """`steps_in` as process 0 has it, on every process: all have to choose the same save."""
    return json.loads(hosts.gather("steps", json.dumps(steps_in(workdir)), wait_seconds)[0])


def check_room(workdir: epath.Path, state: Any) -> None:
    """Raises UserError where the folder is gone, or its disk has no room for `state`, all of
    whose hosts write to it."""
    if not workdir.exists():
        raise UserError(
            f"--workdir={workdir} is gone, so nothing can be saved there; put it back or "
            "name another, and give the same command again"
        )
    if in_cloud(workdir):
        return
    needed = sum(array.nbytes for array in jax.tree.leaves(state))
    folder = folder_of(workdir)
    free = shutil.disk_usage(folder if folder.exists() else workdir).free
    if free < needed:  # asked first, for a save that fails half-way fails in many voices
        raise UserError(
            f"no space left in {folder}: a checkpoint takes {needed:,} bytes, "
            f"{free:,} are free; those that are there are whole. Make room and give the same "
            "command again"
        )


def none_whole(workdir: epath.Path, passed: dict[int, str]) -> str:
    listed = "".join(f"\n  {step}: {reason}" for step, reason in passed.items())
    return (
        f"--workdir={workdir} has checkpoints and none of them is whole; nothing was moved or "
        f"removed. Found were{listed}\nput a whole one there, or name another --workdir for a run "
        "from step 0"
    )


def nothing_whole(workdir: epath.PathLike, save_every: int, passed: dict[int, str]) -> str:
    """Why no save can be had; passed: those that are damaged, and what is wrong with them."""
    if passed:
        return none_whole(absolute(workdir), passed)
    return f"{workdir} has no checkpoint yet; " + (
        f"the first comes at step {save_every}" if save_every else "config.run.save_every is 0"
    )


def passed_over(step: int, reason: DamagedError) -> str:
    return f"checkpoint {step} is damaged and passed over: {reason}"


def move(source: epath.Path, target: epath.Path) -> None:
    if not in_cloud(source):
        source.rename(target)
        return
    files = [(path, path.relative_to(source)) for path in _files(source)]
    for path, name in files:
        (target / name).write_bytes(path.read_bytes())
    # First what makes it a save, so that what a kill leaves is none.
    for path, _ in sorted(files, key=lambda file: file[0].name != "commit_success.txt"):
        path.unlink(missing_ok=True)  # as it is where the first answer to this was lost
    if source.exists():
        source.rmtree()


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry)
        else:
            yield entry


def absolute(workdir: epath.PathLike) -> epath.Path:
    workdir = epath.Path(workdir)
    return workdir if in_cloud(workdir) else epath.Path(Path(workdir).absolute())


def folder_of(workdir: epath.Path) -> epath.Path:
    return workdir / "checkpoints"
