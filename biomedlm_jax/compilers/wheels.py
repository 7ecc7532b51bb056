"""How what compiles for absent chips is installed: the versions of requirements-kernels.txt."""

from pathlib import Path

from packaging.requirements import Requirement

PINS = Path(__file__).parents[2] / "requirements-kernels.txt"


def install(*names: str) -> str:
    """The command that installs packages in the versions for this Python."""
    if not PINS.is_file():  # an installation without the repository
        return "make compilers, in the repository"
    lines = (line.partition("#")[0].strip() for line in PINS.read_text().splitlines())
    wanted = [Requirement(line) for line in lines if line and not line.startswith("-")]
    here = [
        f"{one.name}{one.specifier}"
        for one in wanted
        if one.name in names and (one.marker is None or one.marker.evaluate())
    ]
    return f"pip install {' '.join(here)} (or make compilers)"
