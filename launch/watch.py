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
from biomedlm_jax.entry import UserError, in_cloud, unanswered
from biomedlm_jax.journal import Journal
from biomedlm_jax.lock import COUNTS, Lock, Unrenewed
from biomedlm_jax.reports import record, times
from launch import lifecycle, requests, startup
from launch.leftovers import EVENTS, asked_for
from launch.lifecycle import AGAIN, SETTLED, Policy, Run, Seen
from launch.logs import Logs
from launch.prices import costs
from launch.spec import Launch
from launch.tpu_api import StockOut, Tpus, Unanswered, name_of

NEEDED = {"wish to stop", "state"}  # to be read before anything is asked for
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


class Watched(UserError):  # noqa: N818 (all is well)
    """Another launcher watches over this run."""


@contextlib.contextmanager
def alone(launch: Launch) -> Iterator[Lock]:
    """No other launcher of this run until the block ends.

    Raises:
      Watched: there is one.
      UserError: the folder can not be written.
    """
    lock = Lock(launch.place)
    try:
        lock.__enter__()
    except UserError as error:
        if "in use by another run" not in str(error):
            raise
        who = str(error).partition("another run: ")[2]
        raise Watched(
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
        self.looked = set[str]()  # at what of the run's folder
        self.promised = 0  # the attempt whose request is to be on record next
        self.away: set[str] = set()  # of the run's folder, what is out of reach, which was said
        self.told: dict[str, float] = {}  # when others than the newest request were told to go
        self.run = self._found()

    @property
    def identifier(self) -> str:
        """Of the newest attempt's request."""
        return requests.attempt_id(self.launch, max(self.run.attempt, 1))

    def until_over(self, lock: Lock | None = None, created: bool = False) -> Run:
        """Watches until nothing more is to be done. created: returns when a request is there.

        Raises:
          UserError: the API refuses something; or the lock is another's.
        """
        while True:
            try:
                self._once(lock)
            except Unanswered as error:  # slices go on without the API, and so does this
                self.say(f"{error}; watching on")
            if self.run.phase == "over":
                return self.run
            there = self.run.phase in ("requested", "running")
            if created and there and (self.run.asked or self.run.known):
                return self.run
            self.sleep(self._pause())

    def _holds(self, lock: Lock) -> bool:
        """Whether nobody else can be watching; where that is not known, nothing is done."""
        try:
            lock.check()
        except Unrenewed as error:
            self._out_of_reach("lease", error)
            return False
        self.away.discard("lease")
        return True

    def _once(self, lock: Lock | None) -> None:
        seen, before = self.look(), self.run
        # After the look, which may take minutes, in which another can have taken over.
        if lock is not None and not self._holds(lock):
            return
        self.run, action = lifecycle.step(self.policy, before, seen, self.clock())
        self._tell(before, seen)
        match action:
            case "create":
                if self.looked >= NEEDED:
                    self._create(seen)
            case "delete":
                self.tpus.delete(self.identifier)
            case "clear":
                self._clear(seen)

    def look(self) -> Seen:
        """What is to be seen now."""
        state, error, lost, ill = "", (0, ""), "", ""
        there = self.tpus.of_launch(strict=False)
        others = {number: name_of(one.state.state) for number, one in there.items()}
        if max(others, default=0) > self.run.attempt:
            raise UserError(
                f"{requests.attempt_id(self.launch, max(others))} was asked for by another "
                "launcher, so this one ends"
            )
        if self.run.phase != "waiting" and self.run.attempt:
            others.pop(self.run.attempt, None)
            # Either may lag behind the other; what one of them knows is there.
            request = self.tpus.get(self.identifier) or there.get(self.run.attempt)
            if request is not None:
                state = name_of(request.state.state)
                failed = request.state.failed_data.error
                error = (failed.code, failed.message)
            if state in ("ACTIVE", "PROVISIONING"):
                lost, ill = self._nodes()
        ends, heard = dict[str, int](), None
        with self._reading("wish to stop"):
            self.known["stopping"] = (self.place / startup.STOP).exists()
        with self._reading("logs"):
            self.logs.show(self.identifier)
            heard = self.logs.heard(self.identifier)
        with self._reading("state"):
            saved = max(saves.steps_in(epath.Path(self.launch.workdir)), default=0)
            # Together: what an end means depends on what was saved.
            ends, self.known["saved"] = ended_hosts(self.launch, self.identifier), saved
        return Seen(state, error, lost, ill, ends, heard, others, **self.known)

    def _pause(self) -> float:
        until = self.run.until - self.clock() if self.run.phase == "waiting" else 0.0
        return min(until, self.launch.poll_seconds) if until > 0 else self.launch.poll_seconds

    def _create(self, seen: Seen) -> None:
        identifier = requests.attempt_id(self.launch, self.run.attempt + 1)
        script = self.shipped.script(self.launch, identifier)
        number, facts, asked = self.run.attempt + 1, self._facts(seen), True
        # Written first, so that whatever happens now, the name is on record, and never used again:
        # hosts that ended under it have left their records.
        if self.promised != number:
            self.promised = number
            written = self._event("request", attempt=number, name=identifier, **facts)
        else:
            written = self._recorded(self.journal.flush)
        if not written:
            return
        try:
            self.tpus.create(identifier, script)
        except KeyboardInterrupt:  # nor is it known
            self._event("interrupted", attempt=number, name=identifier)
            raise
        except Unanswered as error:  # but it may have been done
            self.say(f"{error}; looking whether it is there")
            self._event("unanswered", attempt=number, name=identifier)
            asked = False
        except StockOut as why:
            self.run = lifecycle.not_created(
                self.policy, self.run, seen.saved, str(why), self.clock()
            )
            self._event("lost", attempt=self.run.attempt, why=str(why), **self._facts(seen))
            self._tell(dataclasses.replace(self.run, phase="leaving"), seen)
            return
        except UserError as why:
            self._event("refused", attempt=number, why=str(why), **facts)
            raise
        self.run = lifecycle.created(self.run, seen.saved, self.clock(), asked)
        if not asked:
            return
        self._event("asked", attempt=number, name=identifier)
        self.say(f"asked for {requests.path(self.launch, identifier)}; {costs(self.launch)}")

    def _clear(self, seen: Seen) -> None:
        for number, state in seen.others.items():
            identifier, now = requests.attempt_id(self.launch, number), self.clock()
            if state == "DELETING" or now - self.told.get(identifier, -AGAIN) < AGAIN:
                continue
            self.say(f"{identifier} is left of another attempt; deleting it")
            self.tpus.delete(identifier)
            self.told[identifier] = now

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
                self._event("lost", attempt=self.run.attempt, why=self.run.why,
                            outcome=self.run.outcome, **facts)  # fmt: skip
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
        if self.run.refused:
            row = f", {self.run.refused} times in a row without chips"
        self.say(f"{self.run.why}; asking again in {seconds:.0f} s{row}")

    def _facts(self, seen: Seen) -> dict[str, Any]:
        goodput = None
        with self._reading("goodput"):
            goodput = goodput_of(self.launch)
        told = {"failures": self.run.failures, "mistaken": self.run.mistaken}
        return {"saved": seen.saved, "goodput": goodput, **told}

    def _event(self, kind: str, **facts: Any) -> bool:
        """Whether it is on record; else it will be with the next."""
        line = {"event": kind, "time": round(self.clock(), 3), **facts}
        return self._recorded(lambda: (self.journal.write(line), self.journal.flush()))

    def _recorded(self, write: Callable[[], Any]) -> bool:
        try:
            write()
        except UserError as error:
            self._out_of_reach("record", error)
            return False
        self.away.discard("record")
        return True

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """From the run's folder, which may be out of reach for a while: that is said once, and what
        was read before counts on. The slices do not need this process."""
        try:
            yield
            self.away.discard(what)
            self.looked.add(what)
        except Exception as error:
            if not (isinstance(error, OSError) or unanswered(error)):
                raise
            self._out_of_reach(what, error)

    def _out_of_reach(self, what: str, error: Exception) -> None:
        if what not in self.away:
            reason = " ".join(str(error).split())[:200]
            self.say(f"the {what} of the run is out of reach now ({reason}); watching on")
        self.away.add(what)

    def _nodes(self) -> tuple[str, str]:
        """(a node that is lost, one that is ill), each in words or ""."""
        lost = ill = ""
        for node in self.tpus.nodes(self.identifier):
            name = node.name.rpartition("/")[2]
            why = f": {node.health_description}" if node.health_description else ""
            state, health = name_of(node.state), name_of(node.health)
            if state in LOST_NODES:
                lost = f"node {name} is {state}{why}"
            elif health in ILL_NODES:
                ill = f"node {name} is unhealthy, {health}{why}"
        return lost, ill

    def _found(self) -> Run:
        """Where things stand: by what is in the cloud, and by the record of those before."""
        now, lines = self.clock(), journal.read(self.place / EVENTS)
        last = {"attempt": 0, "failures": 0, "saved": 0, "mistaken": False}
        for line in lines:
            last |= {name: line[name] for name in last if name in line}
        if lines and lines[-1].get("event") == "over":
            last |= {"failures": 0, "mistaken": False}  # a person has begun again
        there = self.tpus.of_launch()
        used = [requests.number_of(self.launch, name) or 0 for name in self.logs.attempts()]
        attempt = max([last["attempt"], *used, *there])
        run = Run("waiting", attempt, now, failures=last["failures"], saved=last["saved"])
        run = dataclasses.replace(run, mistaken=bool(last["mistaken"]))
        newest, (name, until) = there.get(attempt), asked_for(self.launch, now)
        if lines and lines[-1].get("event") == "lost" and newest is not None:
            why, outcome = lines[-1]["why"], lines[-1].get("outcome", "")
            self.say(f"{newest.name} was to go: {why}")
            return dataclasses.replace(run, phase="leaving", since=0.0, why=why, outcome=outcome)
        if newest is not None and name_of(newest.state.state) != "DELETING":
            self.say(f"{newest.name} is there already")
            return dataclasses.replace(run, phase="requested", asked=True, known=True)
        if newest is None and name:  # whoever asked for it was interrupted; it is looked for
            return dataclasses.replace(run, phase="requested", since=until - SETTLED)
        return run


def ended_hosts(launch: Launch, identifier: str) -> dict[str, int]:
    """{host: exit code} of an attempt; 1 of a host whose record is damaged."""
    folder, found = epath.Path(launch.place) / startup.ENDS / identifier, {}
    if folder.exists():
        for file in folder.iterdir():
            if file.name.endswith(".json"):
                host = file.name.removesuffix(".json")
                try:
                    found[host] = int(json.loads(file.read_text())["code"])
                except (ValueError, TypeError, KeyError):
                    found[host] = 1
    return found


def goodput_of(launch: Launch) -> float | None:
    """Of the whole run so far, as its own folder tells; None before it does."""
    try:
        return times.goodput(record.read(epath.Path(launch.workdir)))
    except UserError:  # it has not begun
        return None
