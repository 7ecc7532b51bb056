"""What every command line of the project shares: errors made for the person at the
keyboard, and outputs that appear whole or not at all. Nothing here imports JAX."""

import contextlib
import logging
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging

# How tensorstore says that the storage, or the way to it, is at fault, not what was asked.
AWAY = "UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED"


class UserError(ValueError):
    """A mistake that the user can repair. The message names the setting, what was found,
    what is allowed, and what to do; it is printed without a traceback."""


class Unavailable(UserError):  # noqa: N818
    """What is needed does not answer now: the storage, another machine. The same command may go
    well later."""


class Preempted(Exception):  # noqa: N818 (an end, not an error)
    """The machine is wanted back, and the state is saved; the same command goes on from there."""


class HostLost(Exception):  # noqa: N818
    """Another process of this run no longer answers; the message names it."""


# Exit codes; 69 is EX_UNAVAILABLE of sysexits.h, 75 EX_TEMPFAIL.
USER_ERROR, UNAVAILABLE, PREEMPTED, HOST_LOST = 2, 69, 75, 76

# What a process that is one of several does before it ends with an exit code; see `hosts`.
leave: Callable[[int], None] | None = None


def run(main: Callable[[], None], check: Callable[[list[str]], None] | None = None) -> None:
    """Runs `main` after absl has parsed the flags.

    A UserError, or what the operating system reports (disk full, no permission), becomes one line
    and exit code 2, or 69 where the same may go well later; Preempted is 75, HostLost 76. Anything
    else is a bug and keeps its traceback.

    check: called with the arguments before absl parses them, for messages better than absl's.
    """

    def guarded(argv: list[str]) -> None:
        # JAX logs every backend that is not there, gcsfs every file, orbax the stages of a save,
        # the futures of a save that failed each their own end; what goes wrong is raised as well.
        logging.getLogger("jax").setLevel(logging.WARNING)
        for name in ("gcsfs", "concurrent.futures", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        absl_logging.get_absl_handler().addFilter(lambda record: "orbax" not in record.pathname)
        with reported():
            if len(argv) > 1:
                raise UserError(f"unexpected {argv[1]!r}: settings are given as --name=value")
            main()

    if check:
        with reported():
            check(sys.argv[1:])
    app.run(guarded, flags_parser=_parsed)


def _parsed(arguments: list[str]) -> list[str]:
    with reported():
        try:
            return flags.FLAGS(arguments)
        except flags.Error as error:
            missing = re.match(r"flag --(\w+)=None: .* other than None", str(error))
            what = f"--{missing[1]} is missing" if missing else str(error)
            raise UserError(f"{what}; --help lists the settings") from error
    raise AssertionError("reported() ends the program")


@contextlib.contextmanager
def reported() -> Iterator[None]:
    try:
        yield
    except Preempted as end:
        print(end, flush=True)
        _end(PREEMPTED)
    except HostLost as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        _end(HOST_LOST)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        _end(UNAVAILABLE if passes(error) else USER_ERROR)
    except (Exception, KeyboardInterrupt) as error:
        if unanswered(error):
            print(f"error: gs:// does not answer: {error!r}", file=sys.stderr, flush=True)
            _end(UNAVAILABLE)
        if leave is None:
            raise
        traceback.print_exc()
        _end(1)
    if leave is not None:
        leave(0)


def unanswered(error: BaseException) -> bool:
    """Whether gs:// has not answered its client, which tries six times within a minute and has
    classes of its own for that; not all of them are OSError."""
    if "gcsfs" not in sys.modules:
        return False
    from gcsfs.retry import is_retriable  # it takes a second, which runs on a disk do not need
    from google.auth.exceptions import GoogleAuthError

    return is_retriable(error) or isinstance(error, GoogleAuthError)


def passes(error: BaseException) -> bool:
    """Whether the same may go well later: the storage, or another machine, does not answer now."""
    if isinstance(error, UserError):
        return isinstance(error, Unavailable)
    away = isinstance(error, ValueError) and re.search(AWAY, str(error))
    return bool(away) or isinstance(error, (ConnectionError, TimeoutError)) or unanswered(error)


def _end(code: int) -> None:
    """Ends the program. As one of several processes it does so at once: the ordinary way waits for
    the others, who may be waiting for this one, or be gone."""
    if leave is None:
        sys.exit(code)
    leave(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def in_cloud(path: os.PathLike | str) -> bool:
    """Whether it is on Google Cloud Storage, where a file has its name when it is whole, does not
    grow, and is not renamed."""
    return str(path).startswith("gs://")


def check_output(path: Path) -> None:
    """Raises UserError where an output folder is there already and not an empty folder."""
    if path.is_file():
        raise UserError(f"--output={path} is a file; name a folder")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"--output={path} is not empty; name another folder or remove it first")


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that becomes `path` only when the block ends without an error.

    Until then it is `<path>.partial`, beside the final place so that the rename is atomic; what
    an interrupted run left there is removed first, for it can hold nothing that was finished.

    Raises:
      UserError: `path` is there already and not an empty folder.
    """
    check_output(path)
    path = path.absolute()
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if path.is_dir():
        path.rmdir()
    partial.rename(path)
