"""Watches over a run on Cloud TPU: looks, does what `lifecycle` says, and keeps a record.

WORKDIR/launch/events.jsonl has a line for each request, loss, restart and end, with the newest
checkpoint and the run's goodput, and is what a watcher that is started again goes on from.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath

from biomedlm_jax import journal, saves
from biomedlm_jax.entry import UserError, in_cloud
from biomedlm_jax.journal import Journal
from biomedlm_jax.lock import COUNTS, Lock
from biomedlm_jax.reports import record, times
from launch import lifecycle, prices, requests, startup
from launch.lifecycle import Action, Policy, Run, Seen
from launch.logs import Logs
from launch.spec import Launch
from launch.tpu_api import StockOut, Tpus, Unanswered

EVENTS = "events.jsonl"
LOST_NODES = ("PREEMPTED", "TERMINATED", "STOPPED", "STOPPING", "UNKNOWN")
ILL_NODES = ("TIMEOUT", "UNHEALTHY_TENSORFLOW", "UNHEALTHY_MAINTENANCE")


@dataclasses.dataclass(frozen=True)
class Shipped:
    """What hosts run: settings of the run, and the archive's path and hash."""

    settings: Sequence[str]
    archive: str
    sha256: str

    def script(self, launch: Launch, identifier: str) -> str:
        return startup.script(launch, self.settings, identifier, self.archive, self.sha256)


def policy(launch: Launch) -> Policy:
    # On gs:// a run that was killed holds its folder for so long, and a new one would be refused.
    least = COUNTS if in_cloud(launch.workdir) else 0.0
    return Policy(
        restarts=launch.restarts,
        backoff=launch.backoff_seconds,
        longest=launch.backoff_limit_seconds,
        least=least,
        queue=launch.queue_hours * 3600,
        seed=launch.name,
        hosts=launch.hosts,
    )


@contextlib.contextmanager
def alone(launch: Launch) -> Iterator[Lock]:
    """No other launcher of this run until the block ends.

    Raises:
      UserError: there is one.
    """
    lock = Lock(launch.place)
    try:
        lock.__enter__()
    except UserError as error:
        if "in use by another run" not in str(error):
            raise
        who = str(error).partition("another run: ")[2]
        raise UserError(
            f"another launcher watches the run in {launch.workdir}: {who}. One is enough: "
            f"python -m launch.tpu status and logs go beside it"
        ) from error
    with contextlib.ExitStack() as stack:
        stack.push(lock.__exit__)
        yield lock


class Watcher:
    """Of one launch, from the state in which it finds things.

    clock, sleep: of seconds. say: a line for people.
    """

    def __init__(
        self,
        launch: Launch,
        shipped: Shipped,
        tpus: Tpus,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        say: Callable[[str], None] = lambda line: print(line, flush=True),
    ):
        self.launch, self.shipped, self.tpus = launch, shipped, tpus
        self.clock, self.sleep, self.say = clock, sleep, say
        self.policy, self.place = policy(launch), epath.Path(launch.place)
        self.journal = Journal(self.place / EVENTS)
        self.logs = Logs(launch.place, say)
        self.known: dict[str, Any] = {"saved": 0, "stopping": False}
        self.unread: set[str] = set()  # what could not be read, and that was said
        self.run = self._found()

    @property
    def identifier(self) -> str:
        """Of the newest attempt's request."""
        return requests.attempt_id(self.launch, max(self.run.attempt, 1))

    def until_over(self, lock: Lock | None = None, created: bool = False) -> Run:
        """Watches until nothing more is to be done. created: returns when a request is there.

        Raises:
          UserError: the API refuses something; or the lock is lost.
        """
        while True:
            try:
                action = self._once()
            except Unanswered as error:  # slices go on without the API, and so does this
                self.say(f"{error}; watching on")
                action = "wait"
            if self.run.phase == "over":
                return self.run
            if created and self.run.phase in ("requested", "running"):
                return self.run
            if lock is not None:
                lock.check()
            if action != "create":
                self.sleep(self._pause())

    def _once(self) -> Action:
        seen, before = self.look(), self.run
        self.run, action = lifecycle.step(self.policy, before, seen, self.clock())
        self._tell(before, seen)
        if action == "create":
            self._create(seen)
        elif action == "delete":
            self.tpus.delete(self.identifier)
        return action

    def look(self) -> Seen:
        """What is to be seen now."""
        state, error, lost, ill = "", (0, ""), "", ""
        if self.run.phase != "waiting" and self.run.attempt:
            request = self.tpus.get(self.identifier)
            if request is not None:
                state = request.state.state.name
                failed = request.state.failed_data.error
                error = (failed.code, failed.message)
            if state in ("ACTIVE", "PROVISIONING"):
                lost, ill = self._nodes()
        ends: dict[str, int] = {}
        with self._reading("logs"):
            self.logs.show(self.identifier)
        with self._reading("state of the run"):
            ends = ended_hosts(self.launch, self.identifier)
            self.known["stopping"] = (self.place / startup.STOP).exists()
            self.known["saved"] = max(saves.steps_in(epath.Path(self.launch.workdir)), default=0)
        return Seen(state, error, lost, ill, ends, self.logs.heard(self.identifier), **self.known)

    def _pause(self) -> float:
        if self.run.phase == "waiting":
            return min(max(self.run.until - self.clock(), 0.0), self.launch.poll_seconds)
        return self.launch.poll_seconds

    def _create(self, seen: Seen) -> None:
        identifier = requests.attempt_id(self.launch, self.run.attempt + 1)
        script = self.shipped.script(self.launch, identifier)
        # Written first, so that whatever happens now, the name is on record.
        self._event("request", attempt=self.run.attempt + 1, name=identifier, **self._facts(seen))
        try:
            self.tpus.create(identifier, script)
        except StockOut as why:
            self.run = lifecycle.not_created(
                self.policy, self.run, seen.saved, str(why), self.clock()
            )
            self._event("lost", attempt=self.run.attempt, why=str(why), **self._facts(seen))
            self._announce()
            return
        self.run = lifecycle.created(self.run, seen.saved, self.clock())
        self.say(f"asked for {requests.path(self.launch, identifier)}; {costs(self.launch)}")

    def _tell(self, before: Run, seen: Seen) -> None:
        """Records and says what has changed."""
        if before.phase == self.run.phase:
            return
        match self.run.phase:
            case "running":
                self._event("active", attempt=self.run.attempt)
                self.say(f"{self.identifier} is there; {costs(self.launch)}")
            case "leaving":
                facts = self._facts(seen)
                self._event("lost", attempt=self.run.attempt, why=self.run.why, **facts)
                good = facts["goodput"]
                share = "" if good is None else f", goodput {good:.1%}"
                self.say(
                    f"{self.identifier}: {self.run.why}; newest checkpoint {seen.saved}{share}; "
                    "deleting it"
                )
            case "waiting":
                self._announce()
            case "over":
                self._event("over", attempt=self.run.attempt, outcome=self.run.outcome,
                            **self._facts(seen))  # fmt: skip

    def _announce(self) -> None:
        seconds = max(self.run.until - self.clock(), 0.0)
        row = (
            f", {self.run.failures} in a row without a new checkpoint" if self.run.failures else ""
        )
        self.say(f"{self.run.why}; asking again in {seconds:.0f} s{row}")

    def _facts(self, seen: Seen) -> dict[str, Any]:
        goodput = None
        with self._reading("goodput"):
            goodput = goodput_of(self.launch)
        return {"saved": seen.saved, "failures": self.run.failures, "goodput": goodput}

    def _event(self, kind: str, **facts: Any) -> None:
        self.journal.write({"event": kind, "time": round(self.clock(), 3), **facts})
        self.journal.flush()

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """From the run's folder, which may be out of reach for a while: that is said once, and what
        was read before counts on. The slices do not need this process."""
        try:
            yield
            self.unread.discard(what)
        except Exception as error:
            if not (isinstance(error, OSError) or saves.unanswered(error)):
                raise
            if what not in self.unread:
                reason = " ".join(str(error).split())[:200]
                self.say(f"the {what} can not be read now ({reason}); watching on")
            self.unread.add(what)

    def _nodes(self) -> tuple[str, str]:
        """(a node that is lost, one that is ill), each in words or ""."""
        lost = ill = ""
        for node in self.tpus.nodes(self.identifier):
            name = node.name.rpartition("/")[2]
            why = f": {node.health_description}" if node.health_description else ""
            if node.state.name in LOST_NODES:
                lost = f"node {name} is {node.state.name}{why}"
            elif node.health.name in ILL_NODES:
                ill = f"node {name} is unhealthy, {node.health.name}{why}"
        return lost, ill

    def _found(self) -> Run:
        """Where things stand: by what is in the cloud, and by the record of those before."""
        now, lines = self.clock(), journal.read(self.place / EVENTS)
        last = {"attempt": 0, "failures": 0, "saved": 0}
        for line in lines:
            last |= {name: line[name] for name in last if name in line}
        if lines and lines[-1]["event"] == "over":
            last["failures"] = 0  # a person has begun again
        there = self.tpus.of_launch()
        attempt = max([last["attempt"], *there])
        run = Run("waiting", attempt, now, failures=last["failures"], saved=last["saved"])
        for number in list(there)[:-1]:
            identifier = requests.attempt_id(self.launch, number)
            self.say(f"{identifier} is left of an earlier attempt; deleting it")
            self.tpus.delete(identifier)
        if not there:
            return run
        self.say(f"{requests.path(self.launch, self.launch.name)}-a{attempt} is there already")
        return dataclasses.replace(run, phase="requested")


def ended_hosts(launch: Launch, identifier: str) -> dict[str, int]:
    """{host: exit code} of an attempt."""
    folder, found = epath.Path(launch.place) / startup.ENDS / identifier, {}
    if folder.exists():
        for file in folder.iterdir():
            if file.name.endswith(".json"):
                found[file.name.removesuffix(".json")] = int(json.loads(file.read_text())["code"])
    return found


def goodput_of(launch: Launch) -> float | None:
    """Of the whole run so far, as its own folder tells; None before it does."""
    try:
        return times.goodput(record.read(epath.Path(launch.workdir)))
    except UserError:  # it has not begun
        return None


def costs(launch: Launch) -> str:
    """Of an hour, for people."""
    price = prices.chip_hour(launch.machine, launch.price)
    whose = "--price" if launch.price else "the list price"
    most = "at most " if launch.capacity == "spot" else ""
    hour = price * launch.chips
    return f"{launch.chips} chips cost {most}${hour:,.2f} an hour at {whose}"


def delete_command(launch: Launch) -> str:
    """That ends all by this launch's name."""
    return (
        f"python -m launch.tpu delete --name={launch.name} --project={launch.project} "
        f"--zone={launch.zone} --accelerator={launch.accelerator} --workdir={launch.workdir}"
    )
