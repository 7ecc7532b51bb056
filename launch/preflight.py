"""What can be known before anything costs money. Every check is made, and all that is wrong is said
at once.

`local` asks nobody; `cloud` asks Google's APIs; `planned` asks the compiler what the run will need.
"""

import contextlib
import difflib
import json
import posixpath
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from biomedlm_jax import mesh, saves, settings
from biomedlm_jax.claim import read_claim
from biomedlm_jax.compilers import child
from biomedlm_jax.compilers.topologies import named
from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import UserError, in_cloud
from biomedlm_jax.plan import DOES_NOT_FIT
from launch import buckets, prices, spec
from launch.bundle import Bundle
from launch.checks import Check, tried
from launch.lifecycle import SILENCE
from launch.spec import Launch

ROOT = Path(__file__).parent.parent
BYTES_OF_STATE = 12  # a parameter: itself and two moments, float32
BYTES_OF_TOKEN = 2  # in a store


def local(launch: Launch, changes: Sequence[str], bundle: Bundle) -> list[Check]:
    """Of names, settings, versions and the tree.

    changes: settings of the run, as `spec.run_settings` gives them.
    """
    found = [Check("names", "wrong", said) for said in spec.problems(launch)]
    if not found:
        where = f"in {launch.zone} of {launch.project}"
        hosts = f"{launch.chips} chips on {launch.hosts} hosts"
        slices = f"{launch.slices} x " if launch.slices > 1 else ""
        said = f"{launch.name}: {slices}{launch.accelerator} {where}, {hosts}, {launch.capacity}"
        found.append(Check("names", "ok", said))
        found.append(tried("config", lambda: _config(launch, changes, bundle)))
        with contextlib.suppress(UserError):  # which is said already
            experiment = spec.experiment(launch, changes)
            found += _of_this_machine(launch, experiment) if in_cloud(launch.workdir) else []
    found.append(tried("versions", _versions))
    left = bundle.diff or bundle.untracked
    found.append(Check("tree", "note" if left else "ok", bundle.described()))
    return found


def cloud(
    launch: Launch,
    experiment: Experiment,
    tpus: Any,
    limit: Callable[[str], int | None],
    bucket_location: Callable[[str], str],
) -> list[Check]:
    """Of what Google has, by its own word. tpus: `tpu_api.Tpus`. limit: of `quotas.Quotas`.
    bucket_location: of a bucket's name; see `buckets.location`."""
    from launch import quotas  # of whose client launch.gke has no need

    checks: dict[str, Callable[[], Check]] = {
        "zone": lambda: _zone(launch, tpus.zones()),
        "accelerator": lambda: _accelerator(launch, tpus.accelerator_types()),
        "runtime": lambda: _runtime(launch, tpus.runtimes()),
        "quota": lambda: quotas.check(launch, limit),
        "requests": lambda: _requests(launch, list(tpus.of_launch())),
    }
    found = [tried(name, check) for name, check in checks.items()]
    return found + stored(launch, experiment, bucket_location)


def stored(
    launch: Launch, experiment: Experiment, bucket_location: Callable[[str], str]
) -> list[Check]:
    """Of the bucket, the run's folder, and what the run reads. bucket_location: see `cloud`."""
    checks: dict[str, Callable[[], Check]] = {
        "bucket": lambda: _bucket(launch, experiment, bucket_location),
        "workdir": lambda: workdir(launch, experiment),
        "data": lambda: _data(launch, experiment, bucket_location),
    }
    return [tried(name, check) for name, check in checks.items()]


def planned(launch: Launch, changes: Sequence[str], experiment: Experiment) -> Check:
    """Whether it fits, hours and dollars, from `biomedlm_jax.plan`, which takes a minute.

    Of several slices one is planned for, with its share of the batch: the network between them is
    not counted."""
    machine = named(launch.machine.plan_topology)
    if reason := child.missing(machine.platform):
        said = f"whether it fits and for how long are not known: {reason}; {prices.costs(launch)}"
        return Check("plan", "note", said)
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
    seconds = answer["predicted"]["seconds"] if answer["predicted"] else 0.0
    steps = experiment.run.log_every
    if (line := seconds * steps) > SILENCE / 2:
        said = (
            f"config.run.log_every={steps} is a line of the log in {line / 60:.0f} minutes; "
            f"hosts that are silent for {SILENCE / 60:.0f} are taken for dead; say less"
        )
        return Check("plan", "wrong", said)
    return Check("plan", "ok", _predicted(launch, answer, price))


def _config(launch: Launch, changes: Sequence[str], bundle: Bundle) -> Check:
    experiment = spec.experiment(launch, changes)
    if posixpath.normpath(launch.config) not in bundle.files:
        raise UserError(
            f"--config={launch.config} is no file that git tracks, and hosts get those alone; "
            f"git add {launch.config}"
        )
    axes = meshed(launch, experiment)
    shape = " x ".join(f"{name} {size}" for name, size in axes.items() if size > 1)
    said = f"{launch.config}: {experiment.run.steps:,} steps of {experiment.data.batch}, {shape}"
    return Check("config", "ok", said)


def read(experiment: Experiment) -> dict[str, str]:
    """{setting: folder} of what hosts read."""
    from biomedlm_jax.start import PREFIX

    found = {"config.start": experiment.start.removeprefix(PREFIX)}
    if task := experiment.task:
        found |= {"config.task.benchmarks": task.benchmarks}
        found |= {"config.task.vocabulary": task.vocabulary}
    else:
        found |= {"config.data.store": experiment.data.store}
    return {name: place for name, place in found.items() if place}


def _of_this_machine(launch: Launch, experiment: Experiment) -> list[Check]:
    """What hosts would read and do not have."""
    said = (
        "is a folder of this machine, which hosts do not have; copy it to "
        f"gs://{launch.bucket} and name it there"
    )
    needed = read(experiment).items()
    return [Check("data", "wrong", f"{n}={x} {said}") for n, x in needed if not in_cloud(x)]


def meshed(launch: Launch, experiment: Experiment) -> dict[str, int]:
    """{axis: size} on the chips of a launch. Raises UserError where the run does not divide so."""
    axes = mesh.sizes(experiment.mesh, launch.chips)
    mesh.check(experiment, axes)
    if axes["data"] % launch.slices:
        raise UserError(
            f"config.mesh.data={axes['data']} does not divide over --slices={launch.slices}: of "
            "the axes only data goes from one slice to another"
        )
    return axes


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
    if not launch.bucket:
        return Check("bucket", "note", f"{launch.workdir} is a folder, which all hosts must share")
    return buckets.placed(
        launch, f"--workdir={launch.workdir}", "bucket", where, _crossing(experiment)
    )


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


def workdir(launch: Launch, experiment: Experiment) -> Check:
    """Whether the folder is this run's, or nobody's. Raises UserError where it is another's."""
    folder = epath.Path(launch.workdir)
    if not (folder / "config.json").exists():
        return Check("workdir", "ok", f"{launch.workdir} is new")
    if changed := settings.differences(experiment, read_claim(folder).experiment):
        raise UserError(
            f"--workdir={launch.workdir} belongs to a run with other settings: "
            f"{'; '.join(changed)}; name another --workdir"
        )
    step = max(saves.steps_in(folder), default=0)
    return Check("workdir", "ok", f"{launch.workdir} goes on from step {step:,}")


def _data(launch: Launch, experiment: Experiment, where: Callable[[str], str]) -> Check:
    found = []
    for name, place in read(experiment).items():
        check = Check("data", "ok", place)
        if in_cloud(place) and not place.startswith(f"gs://{launch.bucket}/"):
            check = buckets.placed(launch, f"{name}={place}", "data", where, _reading(experiment))
        store = name == "config.data.store"
        if store and not (epath.Path(place) / "manifest.json").exists():
            raise UserError(f"{name}={place} is no store: it has no manifest.json; see data.build")
        if not store and not epath.Path(place).exists():
            raise UserError(f"{name}={place} is not there; copy it there first")
        found.append(check)
    notes = [check for check in found if check.verdict == "note"]
    return Check("data", "note" if notes else "ok", "; ".join(x.said for x in notes or found))


def _reading(experiment: Experiment) -> str:
    """What the tokens of a run cost between regions."""
    if experiment.task:
        return f"what each host reads, at ${prices.EGRESS_GB} a GB or more"
    tokens = experiment.run.steps * experiment.data.batch * experiment.model.context
    size = tokens * BYTES_OF_TOKEN / 1e9
    return (
        f"all that the run reads is {size:,.1f} GB and costs at least "
        f"${size * prices.EGRESS_GB:,.2f} between regions (${prices.EGRESS_GB} a GB, more between "
        "continents)"
    )


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
