"""Runs on Cloud TPU: python -m launch.tpu create|run|status|logs|stop|delete

    python -m launch.tpu run --config=configs/pretrain_2p7b.py --accelerator=v5e-256 --spot \\
        --project=my-project --zone=us-west4-a --workdir=gs://my-bucket/runs/pretrain-2p7b

`create` asks for slices, whose hosts start the run by themselves; `run` also watches over it:
slices that are preempted or fail are deleted and asked for anew, and the run goes on from its
checkpoint. `stop` lets it save and end; `delete` ends it at once. --dry_run says what each would
do, exactly, and does nothing. A launch file (--launch, see configs/launch.yaml) gives what no flag
does.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags
from etils import epath

from biomedlm_jax import entry, journal, saves
from biomedlm_jax.entry import UserError
from launch import bundle, preflight, requests, spec, startup, tpu_api, watch
from launch.logs import Logs
from launch.preflight import Check
from launch.spec import Launch
from launch.tpu_api import Tpus
from launch.watch import Shipped, Watcher

COMMANDS = ("create", "run", "status", "logs", "stop", "delete")
INTERRUPTED = 130  # exit code of a program that Ctrl-C ends
ROOT = Path(__file__).parent.parent


def create(launch: Launch, changes: list[str], watching: bool) -> None:
    """Asks for slices; with `watching`, stays until the run is over."""
    given, packed = flags.FLAGS, bundle.make(ROOT)
    checks = preflight.local(launch, changes, packed)
    shipped = Shipped(changes, packed.path(launch.place), packed.sha256)
    if given.dry_run:
        preflight.conclude(checks)
        print(dry_create(launch, shipped))
        return
    tpus = None
    if all(check.verdict != "wrong" for check in checks):
        tpus = _checked(launch, changes, checks)
    print(preflight.table(checks), flush=True)
    preflight.conclude(checks)
    assert tpus is not None
    if not tpus.of_launch() and not given.yes and not preflight.confirmed("Create it?"):
        raise UserError("nothing was created, for nobody said yes; --yes says so beforehand")
    with watch.alone(launch) as lock:
        (epath.Path(launch.place) / startup.STOP).unlink(missing_ok=True)
        bundle.upload(packed, launch.place)
        with naming_what_is_left(launch, tpus):
            watcher = Watcher(launch, shipped, tpus)
            run = watcher.until_over(lock, created=not watching)
    if run.phase != "over":
        print(f"{watcher.identifier} is asked for. Nobody watches it: python -m launch.tpu run "
              f"with the same flags does. To end it: {watch.delete_command(launch)}")  # fmt: skip
        return
    if run.outcome not in ("done", "stopped"):
        raise UserError(f"given up, and nothing is left running: {run.outcome}")
    print("the run is done" if run.outcome == "done" else "the run has saved and stopped")


def _checked(launch: Launch, changes: list[str], checks: list[Check]) -> Tpus | None:
    """Adds to `checks` what the cloud and the plan say."""
    if not tpu_api.elsewhere():
        checks.append(preflight.credentials())
        if checks[-1].verdict == "wrong":
            return None
    tpus, experiment = Tpus(launch), spec.experiment(launch, changes)
    checks += preflight.cloud(launch, experiment, tpus, preflight.location)
    if flags.FLAGS.plan:
        print("planning the run, about a minute; --noplan leaves it out", file=sys.stderr)
        checks.append(preflight.planned(launch, changes, experiment))
    return tpus


@contextlib.contextmanager
def naming_what_is_left(launch: Launch, tpus: Tpus) -> Iterator[None]:
    """Whatever ends the block otherwise than well, what still costs money is said, or deleted where
    --delete_on_interrupt says so."""
    try:
        yield
    except KeyboardInterrupt:
        if flags.FLAGS.delete_on_interrupt:
            print("\ninterrupted; deleting what is there (--delete_on_interrupt)", flush=True)
            try:
                _delete(launch, tpus, time.sleep)
            except (Exception, KeyboardInterrupt):
                print(f"\nnot all is deleted; {left(launch, tpus)}", file=sys.stderr, flush=True)
                raise
        else:
            print(f"\ninterrupted; {left(launch, tpus)}", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    except Exception:
        print(left(launch, tpus), file=sys.stderr, flush=True)
        raise


def left(launch: Launch, tpus: Tpus) -> str:
    """What is there, what it costs, and the command that deletes it."""
    command = f"to end it:\n  {watch.delete_command(launch)}"
    try:
        names = [one.name for one in tpus.of_launch().values()]
    except UserError as error:
        return f"requests by the name {launch.name}-aN may be there ({error}); {command}"
    if not names:
        return "nothing is left running"
    return (
        f"{', '.join(names)} goes on without this command; {watch.costs(launch)}; the same command "
        f"watches it again; {command}"
    )


def dry_create(launch: Launch, shipped: Shipped) -> str:
    """What `create` and `run` would send and what hosts would do, as text."""
    identifier = requests.attempt_id(launch, 1)
    script = shipped.script(launch, identifier)
    return "\n\n".join(
        [
            f"# copied to {launch.bucket or 'a folder'}, if it is not there\n{shipped.archive}",
            "# asked of tpu.googleapis.com, google.cloud.tpu.v2alpha1.Tpu; after a loss the same "
            f"with {launch.name}-a2, ...\n"
            + requests.shown(requests.create(launch, identifier, script)),
            f"# looked at every {launch.poll_seconds:g} s\n"
            + requests.shown(requests.get(launch, identifier))
            + "\n" + requests.shown(requests.list_nodes(launch)),
            f"# when it is lost or over\n{requests.shown(requests.delete(launch, identifier))}",
            f"# each of {launch.hosts} hosts runs, in the end\n"
            + spec.command(launch, shipped.settings),
            f"# the script of each host\n{script}",
        ]
    )  # fmt: skip


def status(launch: Launch) -> None:
    if flags.FLAGS.dry_run:
        print(requests.shown(requests.list_all(launch)))
        print(requests.shown(requests.list_nodes(launch)))
        return
    tpus, workdir = Tpus(launch), epath.Path(launch.workdir)
    there = tpus.of_launch()
    if not there:
        print(f"no request by the name {launch.name} is in {launch.zone} of {launch.project}")
    for number, request in there.items():
        identifier = requests.attempt_id(launch, number)
        print(f"{request.name}  {request.state.state.name}")
        for node in tpus.nodes(identifier):
            health = f"  {node.health.name} {node.health_description}".rstrip()
            print(f"  {node.name.rpartition('/')[2]}  {node.state.name}{health}")
        ends = watch.ended_hosts(launch, identifier)
        for host, code in sorted(ends.items()):
            print(f"  host {host} has ended with code {code}")
    if there:
        print(watch.costs(launch))
    print(f"newest checkpoint  {max(saves.steps_in(workdir), default=0):,}")
    if (share := watch.goodput_of(launch)) is not None:
        print(f"goodput  {share:.1%} of the time since the run began went into steps that count")
    for line in journal.read(epath.Path(launch.place) / watch.EVENTS)[-10:]:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(line.pop("time")))
        facts = "  ".join(f"{name} {value}" for name, value in line.items() if value is not None)
        print(f"{moment} UTC  {facts}")


def logs(launch: Launch, sleep: Callable[[float], None] = time.sleep) -> None:
    """What hosts of the newest attempt say; with --follow, for as long as nobody interrupts."""
    given, shown = flags.FLAGS, Logs(launch.place, print, tuple(flags.FLAGS.host))
    if given.dry_run:
        print(f"read: {launch.place}/{startup.LOGS}/ATTEMPT/SLICE-WORKER.log")
        return
    while True:
        attempts = [given.attempt] if given.attempt else shown.attempts()
        if attempts:
            shown.show(attempts[-1])
        elif not given.follow:
            raise UserError(
                f"no host has written to {launch.place}/{startup.LOGS} yet; a host writes first "
                "when it installs, minutes after its slice is there. status says how far it is"
            )
        if not given.follow:
            return
        sleep(launch.poll_seconds)


def stop(launch: Launch) -> None:
    """Lets hosts save and end, then sees to it that slices are deleted."""
    file = epath.Path(launch.place) / startup.STOP
    if flags.FLAGS.dry_run:
        print(f"write: {file}\nthen, when hosts have saved and ended:")
        print(requests.shown(requests.delete(launch, requests.attempt_id(launch, 1))))
        return
    tpus = Tpus(launch)
    if not tpus.of_launch():
        print(f"nothing runs by the name {launch.name}")
        return
    file.write_text("by launch.tpu stop\n")
    print(f"hosts see {file} within {launch.poll_seconds:g} s, save and end", flush=True)
    try:
        with watch.alone(launch) as lock, naming_what_is_left(launch, tpus):
            run = Watcher(launch, Shipped([], "", ""), tpus).until_over(lock)
    except UserError as error:
        if "another launcher" not in str(error):
            raise
        print("the launcher that watches it then deletes its slices")
        return
    print(f"over: {run.outcome}; nothing is left running")


def delete(launch: Launch, sleep: Callable[[float], None] = time.sleep) -> None:
    if flags.FLAGS.dry_run:
        print(requests.shown(requests.list_all(launch)))
        print(f"then for each of {launch.name}-aN:")
        print(requests.shown(requests.delete(launch, requests.attempt_id(launch, 1))))
        return
    tpus = Tpus(launch)
    names = [requests.attempt_id(launch, number) for number in tpus.of_launch()]
    if not names:
        print(f"no request by the name {launch.name} is in {launch.zone} of {launch.project}")
        return
    question = f"Delete {', '.join(names)}? What was not saved is lost; stop saves first."
    if not flags.FLAGS.yes and not preflight.confirmed(question):
        raise UserError("nothing was deleted, for nobody said yes; --yes says so beforehand")
    _delete(launch, tpus, sleep)


def _delete(launch: Launch, tpus: Tpus, sleep: Callable[[float], None]) -> None:
    for number in tpus.of_launch():
        identifier = requests.attempt_id(launch, number)
        tpus.delete(identifier)
        while tpus.get(identifier) is not None:
            sleep(min(launch.poll_seconds, 5.0))
        print(f"{identifier} is deleted", flush=True)


def main(command: str, changes: list[str]) -> None:
    launch = spec.from_flags()
    if launch.accelerator and not launch.machine.tpu:
        raise UserError(
            f"--accelerator={launch.accelerator} is no TPU; GPUs are launch.gke's and "
            "launch/slurm.sh's"
        )
    if command in ("create", "run"):
        create(launch, changes, watching=command == "run")
        return
    if wrong := [said for said in spec.problems(launch) if not said.startswith("--config ")]:
        raise UserError("\n  ".join(wrong))
    {"status": status, "logs": logs, "stop": stop, "delete": delete}[command](launch)


def started(arguments: list[str]) -> None:
    """Takes from `arguments`, as sys.argv is, what absl does not know."""
    command = arguments[1] if len(arguments) > 1 and not arguments[1].startswith("-") else ""
    with entry.reported():
        if command not in COMMANDS and not {"--help", "--helpfull"} & set(arguments):
            raise UserError(f"{command or 'nothing'!r} is no command of launch.tpu; say one of "
                            f"{', '.join(COMMANDS)}")  # fmt: skip
        changes, rest = spec.run_settings(arguments[2 if command else 1 :])
    sys.argv[1:] = rest
    entry.run(lambda: main(command, changes))


def define_flags() -> None:
    spec.define_flags()
    flags.DEFINE_bool("dry_run", False, "say what would be sent, written and run; do nothing")
    flags.DEFINE_bool("yes", False, "do not ask")
    flags.DEFINE_bool(
        "plan", True, "create, run: compile the step first: does it fit, what it costs"
    )
    flags.DEFINE_bool("delete_on_interrupt", False, "run: on Ctrl-C, delete the slices")
    flags.DEFINE_bool("follow", False, "logs: go on showing what is new")
    flags.DEFINE_list("host", [], "logs: of these hosts alone, SLICE-WORKER as 0-3")
    flags.DEFINE_string("attempt", "", "logs: of this request, not the newest")


if __name__ == "__main__":
    define_flags()
    started(sys.argv)
