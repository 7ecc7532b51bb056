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
from collections.abc import Callable
from pathlib import Path

from absl import flags
from etils import epath

from biomedlm_jax import entry, journal, saves
from biomedlm_jax.entry import Unavailable, UserError, unanswered
from biomedlm_jax.journal import Journal
from launch import (
    buckets,
    bundle,
    leftovers,
    login,
    preflight,
    requests,
    spec,
    startup,
    tpu_api,
    watch,
)
from launch.checks import Check, conclude, confirmed, table
from launch.lifecycle import COMING, Run
from launch.logs import Logs
from launch.prices import costs
from launch.quotas import Quotas
from launch.spec import Launch
from launch.tpu_api import Tpus
from launch.watch import Shipped, Watched, Watcher

COMMANDS = ("create", "run", "status", "logs", "stop", "delete")
ROOT = Path(__file__).parent.parent


def problems(launch: Launch) -> list[str]:
    """What Cloud TPU would refuse of a launch whose accelerator is one, one line each."""
    if launch.machine.tpu:
        return []
    return [
        f"--accelerator={launch.accelerator} is no TPU; GPUs are launch.gke's and launch.slurm's"
    ]


def create(launch: Launch, changes: list[str], watching: bool) -> None:
    """Asks for slices; with `watching`, stays until the run is over."""
    given, packed = flags.FLAGS, bundle.make(ROOT)
    found = preflight.local(launch, changes, packed)
    if found[0].verdict == "ok":  # its accelerator is one
        found += [Check("accelerator", "wrong", said) for said in problems(launch)]
    shipped = Shipped(changes, packed.path(launch.place), packed.sha256)
    if given.dry_run:
        conclude(found)
        print(dry_create(launch, shipped))
        return
    tpus = None
    if all(check.verdict != "wrong" for check in found):
        tpus = _checked(launch, changes, found)
    print(table(found), flush=True)
    conclude(found)
    assert tpus is not None
    states = {tpu_api.name_of(one.state.state) for one in tpus.of_launch().values()}
    if not states & {"ACTIVE", *COMING} and not given.yes and not confirmed("Create it?"):
        raise UserError("nothing was created, for nobody said yes; --yes says so beforehand")
    with (
        watch.alone(launch) as lock,
        leftovers.named(launch, tpus, delete=given.delete_on_interrupt),
    ):
        (epath.Path(launch.place) / startup.STOP).unlink(missing_ok=True)
        bundle.upload(packed, launch.place)
        watcher = Watcher(launch, shipped, tpus)
        run = watcher.until_over(lock, created=not watching)
    if run.phase == "over":
        report(run)
        return
    print(f"{watcher.identifier} is asked for. Nobody watches it: python -m launch.tpu run with "
          f"the same flags does. To end it: {leftovers.delete_command(launch)}")  # fmt: skip


def report(run: Run) -> None:
    """Says how a run that is over ended. Raises UserError where that was not as it should."""
    match run.outcome:
        case "done":
            print("the run is done, and nothing is left running")
        case "stopped":
            print("the run has saved and stopped, and nothing is left running")
        case "withdrawn":
            print(f"nothing runs, and nothing is asked for; the newest checkpoint is of step "
                  f"{run.saved:,}")  # fmt: skip
        case why:
            raise UserError(f"given up, and nothing is left running: {why}")


def _checked(launch: Launch, changes: list[str], found: list[Check]) -> Tpus | None:
    """Adds to `found` what the cloud and the plan say."""
    if not tpu_api.elsewhere():
        found.append(login.credentials())
        if found[-1].verdict == "wrong":
            return None
    tpus, experiment = Tpus(launch), spec.experiment(launch, changes)
    where = buckets.location(launch.project)
    found += preflight.cloud(launch, experiment, tpus, Quotas(launch).limit, where)
    if flags.FLAGS.plan:
        print("planning the run, about a minute; --noplan leaves it out", file=sys.stderr)
        found.append(preflight.planned(launch, changes, experiment))
    return tpus


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
            + "\n" + requests.shown(requests.list_all(launch))
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
    there = tpus.of_launch(strict=False) or tpus.of_launch()
    if not there:
        print(f"no request by the name {launch.name} is in {launch.zone} of {launch.project}")
    for number, request in there.items():
        identifier = requests.attempt_id(launch, number)
        print(f"{request.name}  {tpu_api.name_of(request.state.state)}")
        for node in tpus.nodes(identifier):
            state, health = tpu_api.name_of(node.state), tpu_api.name_of(node.health)
            name, why = node.name.rpartition("/")[2], node.health_description
            print(f"  {name}  {state}  {health} {why}".rstrip())
        ends = watch.ended_hosts(launch, identifier)
        for host, code in sorted(ends.items()):
            print(f"  host {host} has ended with code {code}")
    if there:
        print(costs(launch))
    print(f"newest checkpoint  {max(saves.steps_in(workdir), default=0):,}")
    if (share := watch.goodput_of(launch)) is not None:
        print(f"goodput  {share:.1%} of the time since the run began went into steps that count")
    for line in journal.read(epath.Path(launch.place) / leftovers.EVENTS)[-10:]:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(line.pop("time", 0)))
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
    if not file.parent.exists():
        raise UserError(f"--workdir={launch.workdir} has no run of launch.tpu: {file.parent} is "
                        "not there")  # fmt: skip
    tpus, said = Tpus(launch), False
    # Before anybody looks: a launcher that waits between two attempts asks for nothing more.
    file.write_text("by launch.tpu stop\n")
    print(f"hosts see {file} within {launch.poll_seconds:g} s, save and end", flush=True)
    with leftovers.named(launch, tpus):
        while True:
            try:
                with watch.alone(launch) as lock:
                    late, _ = leftovers.asked_for(launch, time.time())
                    if not tpus.of_launch(strict=False) and not late:
                        file.unlink(missing_ok=True)
                        print(f"nothing runs by the name {launch.name}")
                        return
                    run = Watcher(launch, Shipped([], "", ""), tpus).until_over(lock)
                break
            except Watched as watched:  # it may also be dead, and its lock end later
                if not said:
                    print(f"{watched}. It sees the file as well; waiting for its end", flush=True)
                said = True
            time.sleep(min(launch.poll_seconds, 5.0))
    report(run)


def delete(launch: Launch) -> None:
    """Ends all at once, and tells a launcher that watches to ask for nothing more."""
    if flags.FLAGS.dry_run:
        print(requests.shown(requests.list_all(launch)))
        print(f"then for each of {launch.name}-aN:")
        print(requests.shown(requests.delete(launch, requests.attempt_id(launch, 1))))
        return
    tpus = Tpus(launch)
    there = tpus.of_launch(strict=False) or tpus.of_launch()
    names = [requests.attempt_id(launch, number) for number in there]
    late, _ = ("", 0.0) if names else leftovers.asked_for(launch, time.time())
    names = [late] if late else names
    question = f"Delete {', '.join(names)}? What was not saved is lost; stop saves first."
    if names and not flags.FLAGS.yes and not confirmed(question):
        raise UserError("nothing was deleted, for nobody said yes; --yes says so beforehand")
    held = list[Journal]()
    with contextlib.ExitStack() as stack, leftovers.named(launch, tpus):

        def alone() -> None:
            place = epath.Path(launch.place)
            try:
                if place.exists():
                    try:
                        stack.enter_context(watch.alone(launch))
                        held.append(Journal(place / leftovers.EVENTS))
                    except Watched as watched:
                        print(f"{watched}. It is told to ask for nothing more", flush=True)
                        (place / startup.STOP).write_text("by launch.tpu delete\n")
            except Exception as error:  # nothing of the folder's keeps requests from going
                print(f"{str(error) or type(error).__name__}; deleting nevertheless", flush=True)

        leftovers.delete_all(launch, tpus, told_all=alone)
        for record in held:  # so that nobody looks for what was asked for before
            with contextlib.suppress(UserError):
                record.write({"event": "deleted", "time": round(time.time(), 3)})
                record.close()
    if not names:
        print(f"no request by the name {launch.name} is in {launch.zone} of {launch.project}")


def main(command: str, changes: list[str]) -> None:
    launch = spec.from_flags()
    try:
        _obeyed(launch, command, changes)
    except Exception as error:
        if not unanswered(error):
            raise
        why = str(error) or type(error).__name__
        raise Unavailable(f"--workdir={launch.workdir} can not be read now: {why}") from error


def _obeyed(launch: Launch, command: str, changes: list[str]) -> None:
    if command in ("create", "run"):
        create(launch, changes, watching=command == "run")
        return
    wrong = [said for said in spec.problems(launch) if not said.startswith("--config ")]
    if wrong or (wrong := problems(launch)):
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
