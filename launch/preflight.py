"""What can be known before anything costs money. Every check is made, and all that is wrong is said
at once.

`local` asks nobody; `cloud` asks Google's APIs; `planned` asks the compiler what the run will need.
"""

import dataclasses
import difflib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from etils import epath

from biomedlm_jax import mesh, saves, settings
from biomedlm_jax.claim import read_claim
from biomedlm_jax.compilers import child
from biomedlm_jax.compilers.topologies import named
from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import UserError, in_cloud
from biomedlm_jax.plan import DOES_NOT_FIT
from launch import prices, spec
from launch.bundle import Bundle
from launch.spec import Launch

ROOT = Path(__file__).parent.parent
CONTINENTS = {"us": "US", "northamerica": "US", "europe": "EU", "asia": "ASIA"}
BYTES_OF_STATE = 12  # a parameter: itself and two moments, float32


@dataclasses.dataclass(frozen=True)
class Check:
    """One line. verdict: "ok", "note" (unknown, or worth knowing), or "wrong"."""

    name: str
    verdict: Literal["ok", "note", "wrong"]
    said: str


def local(
    launch: Launch, changes: Sequence[str], bundle: Bundle, zoned: bool = True
) -> list[Check]:
    """Of names, settings, versions and the tree.

    changes: settings of the run, as `spec.run_settings` gives them. zoned: whether a project and a
    zone are needed.
    """
    found = [Check("names", "wrong", said) for said in spec.problems(launch, zoned)]
    if not found:
        zone = f" in {launch.zone} of {launch.project}" if zoned else ""
        hosts = f"{launch.chips} chips on {launch.hosts} hosts"
        slices = f"{launch.slices} x " if launch.slices > 1 else ""
        said = f"{launch.name}: {slices}{launch.accelerator}{zone}, {hosts}, {launch.capacity}"
        found.append(Check("names", "ok", said))
        found.append(_tried("config", lambda: _config(launch, changes)))
    found.append(_tried("versions", _versions))
    left = bundle.diff or bundle.untracked
    found.append(Check("tree", "note" if left else "ok", bundle.described()))
    return found


def cloud(
    launch: Launch, experiment: Experiment, tpus: Any, bucket_location: Callable[[str], str]
) -> list[Check]:
    """Of what Google has, by its own word. tpus: of `tpu_api.Tpus`. bucket_location: of a bucket's
    name; see `location`."""
    checks: dict[str, Callable[[], Check]] = {
        "zone": lambda: _zone(launch, tpus.zones()),
        "accelerator": lambda: _accelerator(launch, tpus.accelerator_types()),
        "runtime": lambda: _runtime(launch, tpus.runtimes()),
        "requests": lambda: _requests(launch, list(tpus.of_launch())),
    }
    found = [_tried(name, check) for name, check in checks.items()]
    found += stored(launch, experiment, bucket_location)
    said = (
        "not known before it is asked for: the Cloud TPU API does not tell. "
        f"{launch.chips} chips of {launch.machine.kind} are needed; see IAM & Admin > Quotas of "
        "the console"
    )
    return [*found, Check("quota", "note", said)]


def stored(
    launch: Launch, experiment: Experiment, bucket_location: Callable[[str], str]
) -> list[Check]:
    """Of the bucket, the run's folder, and what the run reads. bucket_location: see `cloud`."""
    checks: dict[str, Callable[[], Check]] = {
        "bucket": lambda: _bucket(launch, experiment, bucket_location),
        "workdir": lambda: _workdir(launch, experiment),
        "data": lambda: _data(launch, experiment),
    }
    return [_tried(name, check) for name, check in checks.items()]


def near(region: str, location: str) -> bool:
    """Whether reading from a bucket at `location` costs nothing in `region`: it is there, or on all
    of the continent. Both in small letters."""
    continent = CONTINENTS.get(region.split("-")[0], "")
    return location in (region, continent.lower())


def planned(launch: Launch, changes: Sequence[str], experiment: Experiment) -> Check:
    """Whether it fits, hours and dollars, from `biomedlm_jax.plan`, which takes a minute.

    Of several slices one is planned for, with its share of the batch: the network between them is
    not counted."""
    machine = named(launch.machine.plan_topology)
    if reason := child.missing(machine.platform):
        return Check("plan", "note", f"not known: {reason}")
    price = prices.chip_hour(launch.machine, launch.price)
    command = ["--config=" + launch.config, *changes, f"--topology={machine.name}"]
    if launch.slices > 1:
        command.append(f"--config.data.batch={experiment.data.batch // launch.slices}")
        if experiment.mesh.data > 0:
            command.append(f"--config.mesh.data={experiment.mesh.data // launch.slices}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        done = subprocess.run(
            [sys.executable, "-m", "biomedlm_jax.plan", *command, f"--json={file}",
             f"--price={price}"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode not in (0, DOES_NOT_FIT):
            last = (done.stderr.strip().splitlines() or ["no reason"])[-1]
            return Check("plan", "wrong", last.removeprefix("error: "))
        answer = json.loads(file.read_text())["answers"][0]
    if not answer["fits"]:
        return Check("plan", "wrong", done.stdout.strip().splitlines()[-1])
    return Check("plan", "ok", _predicted(launch, answer, price))


def table(checks: Sequence[Check]) -> str:
    width = max(len(check.name) for check in checks)
    marks = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}
    return "\n".join(f"{c.name:<{width}}  {marks[c.verdict]}  {c.said}" for c in checks)


def conclude(checks: Sequence[Check]) -> None:
    """Raises UserError where something is wrong, with all of it."""
    wrong = [check.said for check in checks if check.verdict == "wrong"]
    if wrong:
        count = "1 thing is" if len(wrong) == 1 else f"{len(wrong)} things are"
        listed = "".join(f"\n  * {said}" for said in wrong)
        raise UserError(f"{count} wrong, and nothing was created:{listed}")


def location(bucket: str) -> str:
    """Where a bucket is, in small letters: a region, or as "us" or "nam4" several.

    Raises:
      UserError: there is none, or it may not be seen.
    """
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import storage

    try:
        return str(storage.Client().get_bucket(bucket, timeout=60).location).lower()
    except GoogleAuthError as error:
        raise UserError(f"gs://{bucket} can not be asked about without credentials") from error
    except GoogleAPICallError as error:
        raise UserError(
            f"gs://{bucket}: {' '.join(str(error.message).split())[:200]}; make it with "
            f"gcloud storage buckets create gs://{bucket} --location=REGION, or name another"
        ) from error


def credentials() -> Check:
    """Whether there are any; what they are is not shown."""
    import google.auth
    from google.auth.exceptions import GoogleAuthError

    from launch import tpu_api

    try:
        google.auth.default()
    except GoogleAuthError as error:
        return Check("credentials", "wrong", tpu_api.no_credentials(error))
    return Check("credentials", "ok", "found")


def _tried(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except (UserError, OSError) as error:
        return Check(name, "wrong", str(error))


def _config(launch: Launch, changes: Sequence[str]) -> Check:
    experiment = spec.experiment(launch, changes)
    axes = mesh.sizes(experiment.mesh, launch.chips)
    mesh.check(experiment, axes)
    if axes["data"] % launch.slices:
        raise UserError(
            f"config.mesh.data={axes['data']} does not divide over --slices={launch.slices}: of "
            "the axes only data goes from one slice to another"
        )
    shape = " x ".join(f"{name} {size}" for name, size in axes.items() if size > 1)
    said = f"{launch.config}: {experiment.run.steps:,} steps of {experiment.data.batch}, {shape}"
    return Check("config", "ok", said)


def _versions() -> Check:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    loose = [x for x in lines if x.strip() and not x.startswith(("#", "-")) and "==" not in x]
    if loose:
        raise UserError(f"requirements.txt does not pin {', '.join(loose)}; write name==version")
    return Check("versions", "ok", "all of requirements.txt are pinned")


def _zone(launch: Launch, zones: list[str]) -> Check:
    if launch.zone in zones:
        return Check("zone", "ok", launch.zone)
    same = [zone for zone in zones if zone.startswith(launch.region)]
    nearest = same or difflib.get_close_matches(launch.zone, zones, n=3, cutoff=0.3) or zones[:8]
    raise UserError(f"--zone={launch.zone} has no TPUs; nearest that have: {', '.join(nearest)}")


def _accelerator(launch: Launch, types: list[str]) -> Check:
    wanted = launch.machine.api_type
    if wanted in types:
        return Check("accelerator", "ok", f"{wanted} is offered in {launch.zone}")
    kind, _, size = wanted.rpartition("-")
    same = [name for name in types if name.rpartition("-")[0] == kind]
    same.sort(key=lambda name: abs(int(name.rpartition("-")[2]) - int(size)))
    kinds = sorted({name.rpartition("-")[0] for name in types})
    other = f"it has {', '.join(same[:3])}" if same else f"it has {', '.join(kinds) or 'none'}"
    raise UserError(f"--accelerator={launch.accelerator} is not in {launch.zone}; {other}")


def _runtime(launch: Launch, versions: list[str]) -> Check:
    wanted = launch.runtime or launch.machine.runtime
    if wanted in versions:
        return Check("runtime", "ok", wanted)
    nearest = difflib.get_close_matches(wanted, versions, n=3, cutoff=0.3)
    raise UserError(f"--runtime={wanted} is not in {launch.zone}; nearest: {', '.join(nearest)}")


def _bucket(launch: Launch, experiment: Experiment, where: Callable[[str], str]) -> Check:
    if not launch.bucket and not Path(launch.workdir).is_absolute():
        raise UserError(
            f"--workdir={launch.workdir} means another folder on each host; name gs://BUCKET/..., "
            "or from / on a folder that all of them share"
        )
    if not launch.bucket:
        return Check("bucket", "note", f"{launch.workdir} is a folder, which all hosts must share")
    found = where(launch.bucket)
    if near(launch.region, found):
        return Check("bucket", "ok", f"gs://{launch.bucket} is in {found}")
    said = (
        f"gs://{launch.bucket} is in {found}, the chips in {launch.region}: {_crossing(experiment)}"
    )
    if launch.cross_region:
        return Check("bucket", "note", said)
    raise UserError(f"{said}; take a bucket in {launch.region}, or say --cross_region")


def _crossing(experiment: Experiment) -> str:
    """What checkpoints cost between regions."""
    run = experiment.run
    size = experiment.model.parameters * BYTES_OF_STATE / 1e9
    count = run.steps // run.save_every if run.save_every else 0
    dollars = size * count * prices.EGRESS_GB
    return (
        f"{count} checkpoints of {size:.1f} GB between regions cost at least ${dollars:,.2f} "
        f"(${prices.EGRESS_GB} a GB, more between continents), as each restart and all reading of "
        "data do"
    )


def _workdir(launch: Launch, experiment: Experiment) -> Check:
    workdir = epath.Path(launch.workdir)
    if not (workdir / "config.json").exists():
        return Check("workdir", "ok", f"{launch.workdir} is new")
    if changed := settings.differences(experiment, read_claim(workdir).experiment):
        raise UserError(
            f"--workdir={launch.workdir} belongs to a run with other settings: "
            f"{'; '.join(changed)}; name another --workdir"
        )
    step = max(saves.steps_in(workdir), default=0)
    return Check("workdir", "ok", f"{launch.workdir} goes on from step {step:,}")


def _data(launch: Launch, experiment: Experiment) -> Check:
    place = experiment.task.benchmarks if experiment.task else experiment.data.store
    name = "config.task.benchmarks" if experiment.task else "config.data.store"
    if in_cloud(launch.workdir) and not in_cloud(place):
        raise UserError(
            f"{name}={place} is a folder of this machine, which hosts do not have; copy it to "
            f"gs://{launch.bucket} and name it there"
        )
    if not experiment.task and not (epath.Path(place) / "manifest.json").exists():
        raise UserError(f"{name}={place} is no store: it has no manifest.json; see data.build")
    return Check("data", "ok", place)


def _requests(launch: Launch, attempts: list[int]) -> Check:
    if attempts:
        names = ", ".join(f"{launch.name}-a{number}" for number in attempts)
        return Check("requests", "note", f"{names} is there already, and is gone on with")
    return Check("requests", "ok", f"none by the name {launch.name} is there")


def _predicted(launch: Launch, answer: dict[str, Any], price: float) -> str:
    found, memory = answer["predicted"], answer["memory"]
    room = f"fits, {memory['needed'] / 1e9:.1f} of {memory['limit'] / 1e9:.1f} GB a chip"
    if found is None:
        return f"{room}; nothing can be said of its time"
    hours = found["days"] * 24
    whose = "yours" if launch.price else f"list price of {prices.AS_OF}, may have changed"
    spot = ", Spot costs less" if launch.capacity == "spot" else ""
    return (
        f"{room}; {found['seconds']:.2f} s a step, {hours:,.1f} hours, "
        f"${hours * launch.chips * price:,.0f} at ${price:.2f} a chip-hour ({whose}{spot}); "
        "predicted, nothing was measured"
    )


def confirmed(question: str) -> bool:
    """Whether a person says yes; no where nobody is there."""
    try:
        return bool(re.fullmatch(r"y(es)?", input(f"{question} [y/N] ").strip(), re.IGNORECASE))
    except EOFError:
        return False
