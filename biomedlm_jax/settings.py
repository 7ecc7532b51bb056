"""Settings by their names: dataclasses from a file of `configs/` or of a run, what the command line
changes, and what differs between two runs."""

import dataclasses
import difflib
import math
import re
import runpy
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from biomedlm_jax.config import Evaluation, Experiment
from biomedlm_jax.entry import UserError

# A run may go on with other values of these: they do not change what is learned, beyond the
# rounding of sums that another mesh or remat policy takes in another order.
FREE_TO_CHANGE = (
    "mesh.",
    "data.store",
    "task.benchmarks",
    "task.vocabulary",
    "task.dev",
    "model.remat",
    "model.attention",
    "run.accumulate",
    "run.log_every",
    "run.eval_every",
    "run.eval_batches",
    "run.sample_tokens",
    "run.save_every",
    "run.keep",  # and keep_every
    "run.max_skipped",
    "run.spike_sigmas",
    "run.hang_seconds",
    "run.wait_seconds",
    "run.tpu_vmem_mib",
)


T = typing.TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], path: str = "config") -> T:
    """An instance of dataclass `cls` from the mapping of its fields, nested ones included.

    Raises:
      UserError: a name that is no field (with the nearest that are), one that is missing, a
        value of another type, or what the dataclass itself refuses.
    """
    if cls is Experiment and kind(values) is Evaluation:
        raise UserError(
            f"{path} describes an evaluation, and this needs an experiment; evaluations are run by "
            "`python -m biomedlm_jax.main`"
        )
    hints = typing.get_type_hints(cls)
    for name in values:
        _known(name, hints, path)
    if missing := [name for name in hints if name not in values]:
        raise UserError(f"{path} lacks {', '.join(missing)}; every setting is given in the file")
    return cls(**{k: _typed(hint, values[k], f"{path}.{k}") for k, hint in hints.items()})


def kind(values: Mapping[str, Any]) -> type[Experiment] | type[Evaluation]:
    """What a config file describes."""
    return Evaluation if "splits" in values else Experiment


def overrides(arguments: list[str], of: type = Experiment) -> list[str]:
    """The arguments that change a setting, as --config.section.name=value.

    Raises:
      UserError: one of another form, or one that names no setting of `of`.
    """
    found = ["--" + x.lstrip("-") for x in arguments if re.match("--?config[.]", x)]
    for argument in found:
        if "=" not in argument:
            raise UserError(f"{argument} has no value; write {argument}=value")
        path, hint = "config", of
        for name in argument.partition("=")[0].removeprefix("--config.").split("."):
            hints = typing.get_type_hints(hint) if dataclasses.is_dataclass(hint) else {}
            _known(name, hints, path)
            path, hint = f"{path}.{name}", _section(hints[name])
    return found


def check_arguments(arguments: list[str]) -> None:
    """Says what absl would not, before it parses: see `overrides`, and that --config is a file.

    Raises:
      UserError: also when --config names no Python file.
    """
    of = Experiment
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            example = "for example --config=configs/demo.py"
            if not equals:
                raise UserError(f"{argument} needs '='; {example}")
            if not (value.endswith(".py") and Path(value).is_file()):
                raise UserError(f"{argument} names no config file; {example}")
            if (made := runpy.run_path(value).get("get_config")) is None:
                raise UserError(f"{argument} has no function get_config; see configs/demo.py")
            of = kind(made())
    overrides(arguments, of)


def _known(name: str, hints: dict[str, Any], path: str) -> None:
    if name not in hints:
        near = difflib.get_close_matches(name, hints, n=2, cutoff=0.4) or list(hints)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"{path}.{name} is no setting{meant}")


def _section(hint: Any) -> Any:
    """The dataclass of a section that may be None; any other hint as it is."""
    return next(filter(dataclasses.is_dataclass, typing.get_args(hint)), hint)


def _typed(hint: Any, value: Any, path: str) -> Any:
    if (section := _section(hint)) is not hint:
        if value is None:
            return None
        hint = section
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{path}={value!r} is not a section of settings")
        return build(typing.cast(type, hint), value, path)
    if typing.get_origin(hint) is Literal:
        if value not in (allowed := typing.get_args(hint)):
            raise UserError(f"{path}={value!r}; allowed are {', '.join(map(repr, allowed))}")
        return value
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise UserError(f"{path}={value!r} is not of type {hint.__name__}")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{path}={value!r} is not a finite number")
    return value


def flat(experiment: Experiment) -> dict[str, Any]:
    """{"start": "", "model.layers": 32, ...}"""
    found: dict[str, Any] = {}
    for name, value in dataclasses.asdict(experiment).items():
        inner = value.items() if isinstance(value, dict) else ()
        found |= {f"{name}.{field}": v for field, v in inner} or {name: value}
    return found


def differences(ours: Experiment, theirs: Experiment) -> list[str]:
    """The settings that would change what a run learns, with both values."""
    a, b = flat(ours), flat(theirs)
    return [
        f"config.{name}: {b.get(name)!r} before, {a.get(name)!r} now"
        for name in a | b
        if a.get(name) != b.get(name) and not name.startswith(FREE_TO_CHANGE)
    ]
