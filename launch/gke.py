"""A run on Google Kubernetes Engine, on TPUs or GPUs, as a JobSet:

    python -m launch.gke --config=configs/pretrain_2p7b.py --accelerator=v5e-256 \
        --workdir=gs://my-bucket/runs/one --project=my-project --zone=us-west4-a --dry_run

--dry_run prints the commands and the manifest, and asks and changes nothing. --apply checks, asks,
ships the repository, lets kubectl create the JobSet, and says how to watch it and how to end it;
that it begins again after a preemption is then Kubernetes' business. The cluster has JobSet and a
node pool of the accelerator, one for each TPU slice.
"""

import dataclasses
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from etils import epath

from biomedlm_jax import entry
from biomedlm_jax.entry import UserError
from launch import buckets, bundle, login, preflight, spec, startup
from launch.bundle import Bundle
from launch.checks import Check, conclude, confirmed, table
from launch.jobset import jobset, pod_script, rendered, validated
from launch.spec import Launch

ROOT = Path(__file__).parent.parent


def problems(launch: Launch) -> list[str]:
    """What GKE would refuse of a launch that `spec.problems` finds good, one line each."""
    found = []
    if launch.capacity == "best-effort":
        found.append("--capacity=best-effort is Cloud TPU's; for GKE say spot, or on-demand")
    machine = launch.machine
    if machine.tpu and launch.slices > 1 and machine.hosts == 1:
        found.append(
            f"--slices={launch.slices}: GKE joins slices of several hosts, and {machine.name} is "
            "one; take a larger slice"
        )
    if not launch.gke.image:
        found.append("launch.gke.image is empty; a container with Python, as python:3.12")
    return found


def kubectl(launch: Launch, *arguments: str) -> list[str]:
    """A command of kubectl for the cluster; where none is named, the one that it speaks to anyway.

    `launch.gke.cluster` is its name in the region, or LOCATION/NAME.
    """
    command = ["kubectl"]
    if launch.gke.cluster:
        location, _, name = launch.gke.cluster.rpartition("/")
        command.append(f"--context=gke_{launch.project}_{location or launch.region}_{name}")
    return [*command, f"--namespace={launch.gke.namespace}", *arguments]


def advice(launch: Launch) -> str:
    """How to watch the JobSet and how to end it."""
    of_run = f"--selector=jobset.sigs.k8s.io/jobset-name={launch.name}"
    commands = {
        "state": ["get", "jobset", launch.name],
        "hosts": ["get", "pods", of_run],
        "logs": ["logs", of_run, "--follow", "--prefix", f"--max-log-requests={launch.hosts}"],
        "end": ["delete", "jobset", launch.name],
    }
    return "\n".join(f"{k:<6}  {shlex.join(kubectl(launch, *c))}" for k, c in commands.items())


def dry_run(launch: Launch, settings: Sequence[str], copy: Bundle) -> str:
    """All that --apply would do, as lines for a shell but for the first."""
    archive = copy.path(launch.place)
    manifest = validated(jobset(launch, pod_script(launch, settings, archive, copy.sha256)))
    create = shlex.join(kubectl(launch, "create", "--filename=-"))
    return (
        f"# copies the repository ({copy.described()}) to\n#   {archive}\n"
        f"{create} <<'END'\n{rendered(manifest)}END\n\n{_commented(advice(launch))}"
    )


def apply(launch: Launch, settings: Sequence[str], copy: Bundle) -> None:
    """Creates the JobSet.

    Raises:
      UserError: kubectl is not there, can not reach the cluster or is refused; there is a JobSet of
        this name.
    """
    archive = copy.path(launch.place)
    manifest = validated(jobset(launch, pod_script(launch, settings, archive, copy.sha256)))
    if _run(launch, "get", "jobset", launch.name, "--ignore-not-found", "--output=name"):
        raise UserError(
            f"--name={launch.name}: there is a JobSet of this name. If its run is to begin again, "
            f"delete it first:\n{advice(launch)}"
        )
    bundle.upload(copy, launch.place)
    (epath.Path(launch.place) / startup.STOP).unlink(missing_ok=True)  # of launch.tpu stop
    print(f"copied the repository ({copy.described()}) to {archive}", flush=True)
    try:
        print(_run(launch, "create", "--filename=-", given=rendered(manifest)), flush=True)
    except (UserError, KeyboardInterrupt) as error:
        said = "interrupted" if isinstance(error, KeyboardInterrupt) else error
        raise UserError(
            f"{said}\nIf a JobSet was created all the same, this deletes it:\n"
            f"{shlex.join(kubectl(launch, 'delete', 'jobset', launch.name))}\nThe copy of the "
            f"repository stays for the next time; gcloud storage rm {archive} removes it"
        ) from error
    print(advice(launch))


def _run(launch: Launch, *arguments: str, given: str = "") -> str:
    """What a kubectl command says."""
    command = kubectl(launch, *arguments)
    if shutil.which(command[0]) is None:
        raise UserError(
            "there is no kubectl; install it, or --dry_run prints what it would be told"
        )
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{shlex.join(command)} was refused: {done.stderr.strip()}")
    return done.stdout.strip()


def _commented(text: str) -> str:
    return "".join(f"# {line}\n" for line in text.splitlines())


def main(settings: Sequence[str]) -> None:
    """settings: of the run, as `spec.run_settings` gives them.

    Raises:
      UserError: with all that is wrong with the launch; nobody said yes; see also `apply`.
    """
    given = flags.FLAGS
    if given.dry_run == given.apply:
        raise UserError("say --dry_run, which prints what would be done, or --apply, which does it")
    launch = spec.from_flags()
    changed = {name: given[name].value for name in ("image", "cluster", "queue")}
    changed = {name: value for name, value in changed.items() if value is not None}
    launch = dataclasses.replace(launch, gke=dataclasses.replace(launch.gke, **changed))
    copy = bundle.make(ROOT)
    found = preflight.local(launch, settings, copy)
    if found[0].verdict == "ok":  # its accelerator is one
        found += [Check("cluster", "wrong", said) for said in problems(launch)]
    if given.dry_run:
        conclude(found)
        print(dry_run(launch, settings, copy), end="")
        return
    if all(check.verdict != "wrong" for check in found):
        found += _asked(launch, settings)
    print(table(found), flush=True)
    conclude(found)
    if not given.yes and not confirmed("Create it?"):
        raise UserError("nothing was created, for nobody said yes; --yes says so beforehand")
    apply(launch, settings, copy)


def _asked(launch: Launch, settings: Sequence[str]) -> list[Check]:
    """What the bucket and the plan say; what the cluster has is for Kubernetes to say."""
    found = [login.credentials()] if launch.bucket else []
    if any(check.verdict == "wrong" for check in found):
        return found
    experiment = spec.experiment(launch, settings)
    found += preflight.stored(launch, experiment, buckets.location(launch.project))
    if flags.FLAGS.plan:
        print("planning the run, about a minute; --noplan leaves it out", file=sys.stderr)
        found.append(preflight.planned(launch, settings, experiment))
    return found


if __name__ == "__main__":
    spec.define_flags()
    flags.DEFINE_bool("dry_run", False, "print the commands and the manifest")
    flags.DEFINE_bool("apply", False, "create the JobSet")
    flags.DEFINE_bool("yes", False, "do not ask")
    flags.DEFINE_bool("plan", True, "compile the step first: does it fit, what it costs")
    flags.DEFINE_string("image", None, "launch.gke.image of the launch file")
    flags.DEFINE_string("cluster", None, "launch.gke.cluster of the launch file")
    flags.DEFINE_string("queue", None, "launch.gke.queue of the launch file")
    settings: list[str] = []

    def separate(arguments: list[str]) -> None:
        settings[:], sys.argv[1:] = spec.run_settings(arguments)

    entry.run(lambda: main(settings), separate)
