"""The script that each host of a slice runs when it starts: `startup.sh`, with its values above."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch import spec
from launch.spec import Launch

PYTHON_VERSION = "3.12"  # one of those that requirements.txt is tested with
UV_VERSION = "0.13.8"
LOGS, ENDS, STOP = "logs", "ends", "stop"  # in `Launch.place`, as the script has them


def script(launch: Launch, settings: Sequence[str], attempt: str, archive: str, sha256: str) -> str:
    """The whole script for a host of Cloud TPU.

    settings: of the run, as `spec.run_settings` gives them. attempt: the name of the request.
    archive: the path of the copy of the repository, and what its bytes hash to.
    """
    values = {
        "ATTEMPT": attempt,
        "PLACE": launch.place,
        "ARCHIVE": archive,
        "SHA256": sha256,
        "PYTHON": launch.python,
        "VERSION": PYTHON_VERSION,
        "EXTRA": launch.machine.extra,
        "UV": UV_VERSION,
        "PERIOD": f"{launch.poll_seconds:g}",
    }
    return rendered(values, shlex.join(spec.arguments(launch, settings)))


def rendered(values: Mapping[str, str], command: str) -> str:
    """The script with values of its variables. command: the items of COMMAND as a shell reads
    them, so that they may have variables in them."""
    # In quotes also where a shell needs none: shellcheck takes run-a1 for a subtraction.
    quoted = {name: value.replace("'", "'\"'\"'") for name, value in values.items()}
    lines = [f"{name}='{value}'" for name, value in quoted.items()]
    lines.append(f"COMMAND=({command})")
    first, rest = Path(__file__).with_suffix(".sh").read_text().split("\n", 1)
    return "\n".join([first, *lines, rest])
