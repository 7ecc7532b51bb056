"""What is launched, where and on what: one description for all back ends.

A launch file (`configs/launch.yaml`) gives every value; a flag of the same name changes one, and
--config.section.name=value changes a setting of the run. Nothing here speaks to anybody.
"""

import dataclasses
import re
import runpy
import shlex
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from absl import flags
from ml_collections import config_flags

from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import UserError, in_cloud
from biomedlm_jax.settings import build, overrides
from launch import machines
from launch.machines import Machine

DEFAULT = "configs/launch.yaml"
NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")  # leaves room for what back ends append
PROJECT = re.compile(r"([a-z][-a-z0-9.]*[a-z0-9]:)?[a-z][-a-z0-9]{4,28}[a-z0-9]")
ZONE = re.compile(r"[a-z]+-[a-z]+\d+-([a-z]|ai\d+[a-z])")
RESOURCE = re.compile(r"[a-z0-9]([-a-z0-9_./:@]*[a-z0-9])?")  # of networks, accounts, versions
LONGEST_QUEUE = 24 * 365.0  # hours
BUCKET = re.compile(r"[a-z0-9][-a-z0-9_.]{1,61}[a-z0-9]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gke:
    """For launch.gke alone. "" is that a manifest says nothing of it."""

    cluster: str  # whose credentials kubectl has to have
    namespace: str
    service_account: str  # of Kubernetes, bound to one of Google's that may write to the bucket
    queue: str  # of Kueue
    image: str  # of a container with Python 3.11 or 3.12 and uv, or with the requirements


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slurm:
    """For launch/slurm.sh alone."""

    partition: str
    account: str
    hours: int  # after which Slurm ends it; it is then queued again

    def __post_init__(self) -> None:
        if self.hours < 1:
            raise UserError(f"launch.slurm.hours={self.hours} is not positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """name: of all that is created; "" is the last part of workdir. config: a file of configs/.
    workdir: of the run, gs://BUCKET/...; a folder that all hosts share does as well.
    """

    name: str
    config: str
    workdir: str
    project: str
    zone: str
    accelerator: str  # of `machines.named`
    slices: int
    capacity: Literal["on-demand", "spot", "reserved", "best-effort"]
    reservation: str  # its name, where capacity is reserved
    network: str  # "" is the project's default one
    subnetwork: str
    external_ips: bool  # hosts need one, or a network with Cloud NAT, to reach package servers
    service_account: str  # that hosts run as; "" is the default one of Compute Engine
    runtime: str  # software version of TPU hosts; "" is that of `machines`
    python: str  # on the hosts, with the requirements in it; "" makes an environment on each
    queue_hours: float  # a request that waits longer is given up
    poll_seconds: float  # between two looks at the state of a slice
    restarts: int  # in a row without a new checkpoint, before it is given up
    backoff_seconds: float  # before the first of them; doubles with each
    backoff_limit_seconds: float
    cross_region: bool  # the bucket may be in another region than the zone
    price: float  # dollars of a chip-hour; 0 is the list price of `prices`
    gke: Gke
    slurm: Slurm

    def __post_init__(self) -> None:
        for field in ("slices", "poll_seconds", "queue_hours", "backoff_seconds"):
            if getattr(self, field) <= 0:
                raise UserError(f"launch.{field}={getattr(self, field)} is not positive")
        for field in ("restarts", "price"):
            if getattr(self, field) < 0:
                raise UserError(f"launch.{field}={getattr(self, field)} is not 0 or more")
        if self.queue_hours > LONGEST_QUEUE:
            raise UserError(
                f"launch.queue_hours={self.queue_hours} is more than a year, {LONGEST_QUEUE:g}"
            )
        if self.backoff_limit_seconds < self.backoff_seconds:
            raise UserError(
                f"launch.backoff_limit_seconds={self.backoff_limit_seconds} is less than "
                f"launch.backoff_seconds={self.backoff_seconds}"
            )
        if bool(self.reservation) != (self.capacity == "reserved"):
            raise UserError(
                f"launch.capacity={self.capacity!r} and launch.reservation={self.reservation!r}: a "
                "reservation is named where capacity is 'reserved', and only there"
            )

    @property
    def machine(self) -> Machine:
        """Raises UserError where the accelerator is none."""
        return machines.named(self.accelerator)

    @property
    def hosts(self) -> int:
        """Of all slices; each runs one process."""
        return self.machine.hosts * self.slices

    @property
    def chips(self) -> int:
        return self.machine.chips * self.slices

    @property
    def region(self) -> str:
        return self.zone.rpartition("-")[0]

    @property
    def bucket(self) -> str:
        """ "" for a folder."""
        return self.workdir.removeprefix("gs://").split("/")[0] if in_cloud(self.workdir) else ""

    @property
    def place(self) -> str:
        """Where launchers keep what is theirs: archives, logs, records of how hosts ended."""
        return f"{self.workdir.rstrip('/')}/launch"


def problems(launch: Launch, cloud: bool = True) -> list[str]:
    """All that can be seen to be wrong without asking anybody, one line each.

    cloud: whether a project and a zone are needed.
    """
    found = []
    if not launch.config:
        found.append("--config is missing; for example --config=configs/pretrain_2p7b.py")
    if not launch.workdir:
        found.append("--workdir is missing; for example --workdir=gs://my-bucket/runs/one")
    if launch.name and not NAME.fullmatch(launch.name):
        found.append(
            f"--name={launch.name!r} would be refused by Google Cloud: a small letter first, then "
            f"small letters, digits and dashes, at most 40 in all; {valid(launch.name)!r} would do"
        )
    if in_cloud(launch.workdir) and not BUCKET.fullmatch(launch.bucket):
        found.append(f"--workdir={launch.workdir}: {launch.bucket!r} is no name of a bucket")
    if cloud and launch.workdir and not re.match("gs://|/", launch.workdir):
        found.append(
            f"--workdir={launch.workdir} means another folder on each host; name gs://BUCKET/..., "
            "or from / on a folder that all of them share"
        )
    for name in ("network", "subnetwork", "reservation", "service_account", "runtime"):
        value = getattr(launch, name)
        if value and not RESOURCE.fullmatch(value):
            found.append(f"--{name}={value!r} is no name that Google Cloud has")
    if re.search(r"[^\w./:-]", launch.workdir, re.ASCII):
        found.append(
            f"--workdir={launch.workdir!r} has other characters than letters, digits and ._-/; "
            "hosts put it into URLs"
        )
    for name, pattern, example in [
        ("project", PROJECT, "my-project"),
        ("zone", ZONE, "us-west4-a"),
    ]:
        value = getattr(launch, name)
        if cloud and not value:
            found.append(f"--{name} is missing; for example --{name}={example}")
        elif value and not pattern.fullmatch(value):
            found.append(f"--{name}={value!r} is no {name} of Google Cloud; one is as {example}")
    try:
        _ = launch.machine
    except UserError as error:
        found.append(f"--{error}" if launch.accelerator else "--accelerator is missing: v5e-256")
    return found


def valid(name: str) -> str:
    """The nearest name that Google Cloud takes."""
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    found = found if found[:1].isalpha() else f"run-{found}"
    return found[:40].strip("-")


def read(path: str, given: Mapping[str, Any] | None = None) -> Launch:
    """The launch of a YAML file. given: fields with the values of flags, None where not given.

    Raises:
      UserError: it can not be read, lacks a field, or has one that is none or of another type.
    """
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: of a date, of no UTF-8
        reason = " ".join(str(error).split())
        raise UserError(f"--launch={path} can not be read as YAML: {reason}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UserError(f"--launch={path} is no list of settings; copy {DEFAULT}")
    values |= {name: value for name, value in (given or {}).items() if value is not None}
    launch = build(Launch, values, "launch")
    if not launch.name and launch.workdir:
        last = launch.workdir.rstrip("/").rpartition("/")[2]
        launch = dataclasses.replace(launch, name=valid(last))
    return launch


def define_flags() -> None:
    """A flag for each field that is not a section, and --launch."""
    flags.DEFINE_string("launch", DEFAULT, "a YAML file that gives every value; flags change some")
    kinds = {
        str: flags.DEFINE_string,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        bool: flags.DEFINE_bool,
    }
    for name, hint in typing.get_type_hints(Launch).items():
        text = f"launch.{name} of the launch file"
        if typing.get_origin(hint) is Literal:
            flags.DEFINE_enum(name, None, list(typing.get_args(hint)), text)
        elif hint in kinds:
            kinds[hint](name, None, text)
    flags.DEFINE_bool("spot", None, "the same as --capacity=spot")


def from_flags() -> Launch:
    """The launch file with what flags change; see `read`."""
    given = {name: flags.FLAGS[name].value for name in typing.get_type_hints(Launch)
             if name in flags.FLAGS}  # fmt: skip
    if flags.FLAGS.spot:
        if given["capacity"] not in (None, "spot"):
            raise UserError(f"--spot and --capacity={given['capacity']} contradict; give one")
        given["capacity"] = "spot"
    return read(flags.FLAGS.launch, given)


def run_settings(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments that change a setting of the run, --config.section.name=value, and the others:
    absl knows only these.

    Raises:
      UserError: one that names no setting, or has no value.
    """
    found = overrides(arguments)
    return found, [x for x in arguments if not re.match("--?config[.]", x)]


def experiment(launch: Launch, settings: Sequence[str]) -> Experiment:
    """What is run. settings: as `run_settings` gives them.

    Raises:
      UserError: no such file, or a value that is refused.
    """
    if not (launch.config.endswith(".py") and Path(launch.config).is_file()):
        raise UserError(f"--config={launch.config} names no config file; see configs/")
    if Path(launch.config).is_absolute() or ".." in Path(launch.config).parts:
        raise UserError(
            f"--config={launch.config}: hosts have the repository alone, so name a file in it, as "
            "configs/pretrain_2p7b.py"
        )
    try:
        given = runpy.run_path(launch.config)["get_config"]()
    except Exception as error:  # whatever somebody has written there
        why = "it has no get_config" if isinstance(error, KeyError) else f"{error!r}"
        raise UserError(f"--config={launch.config} makes no config: {why}") from error
    values, line = flags.FlagValues(), ["", *settings]
    try:
        config_flags.DEFINE_config_dict("config", given, flag_values=values, sys_argv=line)
        values(line)
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(f"--config={launch.config} {shlex.join(settings)}: {error}") from error
    return build(Experiment, values.config.to_dict())


def arguments(launch: Launch, settings: Sequence[str]) -> list[str]:
    """What every host gives to Python."""
    line = ["-m", "biomedlm_jax.main", f"--config={launch.config}", f"--workdir={launch.workdir}"]
    return [*line, *settings]


def command(launch: Launch, settings: Sequence[str], python: str = "python") -> str:
    """The line that every host runs, quoted for a shell."""
    return f"{python} {shlex.join(arguments(launch, settings))}"
