"""Several processes as one run: how they meet, wait for each other, compare what they have, and
notice that one is gone.

A process alone needs none of it, and everything here then does nothing. Messages between hosts go
through the key-value store that JAX's coordination service keeps on process 0, not through the
devices, so a wait can end and say who is missing.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
from etils import epath
from jax._src import clusters, distributed

from biomedlm_jax import entry, pulses, roll_call
from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import HostLost, Unavailable, UserError
from biomedlm_jax.pulses import ADVICE, Group
from biomedlm_jax.settings import flat

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy")
CLUSTERS = ("gketpu", "gcetpu", "slurm", "ompi")  # that JAX knows how to ask

# How a collective fails when another process is gone: gloo on CPU, NCCL on GPU, the coordination
# service.
BROKEN = re.compile(
    "closed by peer|reset by peer|broken pipe|gloo .* failed|nccl.*remote|remote process exited"
    "|heartbeat|unhealthy|unavailable",
    re.IGNORECASE,
)


class Store(Protocol):
    """What `facts` asks of what is learned."""

    @property
    def sha256(self) -> str: ...
    @property
    def vocabulary_sha256(self) -> str: ...


_group: Group | None = None
_gathered = itertools.count(1)  # calls of `gather`, the same number everywhere
_last_key = ""


def connect(
    coordinator: str | None,
    processes: int | None,
    process_id: int | None,
    wait_seconds: int,
    cpu_devices: Callable[[int], int] | None = None,
) -> None:
    """Makes several processes one JAX; call it before any use of a device.

    With coordinator (host:port of process 0), processes and process_id; without any of them as the
    cluster says, where there is one: Cloud TPU, Slurm, Open MPI. Else this process is alone.

    wait_seconds: for others to come, and later for one that is silent.
    cpu_devices: how many CPU devices each of so many processes has; None leaves it to JAX.

    Raises:
      UserError: some but not all are given; see also `roll_call.call`.
      HostLost: others did not come.
    """
    global _group
    given = {"coordinator": coordinator, "processes": processes, "process_id": process_id}
    own: dict[str, Any] = {}
    if all(value is None for value in given.values()):
        found = _cluster(wait_seconds)
        if found is None:
            return
        coordinator, processes, process_id, own["local_device_ids"] = found
    elif missing := [f"--{name}" for name, value in given.items() if value is None]:
        raise UserError(
            f"{', '.join(missing)} is missing; --coordinator=HOST:PORT, --processes and "
            "--process_id are given together, or none of them"
        )
    else:
        own["cluster_detection_method"] = "deactivate"
    assert coordinator is not None
    assert processes is not None
    assert process_id is not None
    if processes < 1 or not 0 <= process_id < processes:
        raise UserError(
            f"--process_id={process_id} with --processes={processes}; ids are from 0 to "
            f"{max(processes, 1) - 1}, one for each process"
        )
    if processes == 1:
        return

    names = roll_call.call(coordinator, processes, process_id, wait_seconds)
    group = Group(names, process_id, coordinator, wait_seconds)
    pulses.end_well_on_abort(group)
    if cpu_devices is not None:
        jax.config.update("jax_num_cpu_devices", cpu_devices(processes))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator,
        processes,
        process_id,
        initialization_timeout=wait_seconds,
        # Later than the pulses, which know names: JAX ends the process without an exception.
        heartbeat_timeout_seconds=math.ceil(1.5 * wait_seconds) + 5,
        shutdown_timeout_seconds=wait_seconds,
        **own,
    )
    _group = group
    pulses.start(group, distributed.global_state.client)
    entry.leave = functools.partial(pulses.leave, group)


def keep_programs(folder: epath.Path, cpu_devices: int) -> None:
    """Compiled programs are kept for the next start, in `folder` or JAX_COMPILATION_CACHE_DIR; call
    it before anything is compiled.

    cpu_devices: of the mesh, if it is of CPUs. Programs of several are not kept: of a program that
      was loaded XLA:CPU (jaxlib 0.12.0) runs collectives at once that were compiled to follow each
      other, and they take each other's places: numbers are wrong, or the process dies.
    """
    if jax.default_backend() == "cpu" and cpu_devices > 1:
        jax.config.update("jax_enable_compilation_cache", False)
    elif "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def primary() -> bool:
    """Whether this is process 0, which prints and writes for all."""
    return _group is None or _group.index == 0


def barrier(name: str, seconds: int) -> None:
    """Returns when all processes have come here.

    Raises:
      HostLost: some have not, after `seconds`.
    """
    gather(name, "", seconds)


def gather(name: str, value: str, seconds: int) -> list[str]:
    """Every process's value, in the order of the processes. All call it, in the same order.

    Raises:
      HostLost: some have not, after `seconds`.
    """
    global _last_key
    if _group is None:
        return [value]
    group, deadline, pause = _group, time.monotonic() + seconds, 0.01
    prefix = f"hosts/{next(_gathered)}/{name}/"
    group.client.key_value_set(f"{prefix}{group.index}", value)
    while len(found := group.read(prefix)) < len(group.names):
        absent = [i for i in range(len(group.names)) if i not in found]
        if time.monotonic() > deadline or any(i in absent for i in group.failed()):
            raise HostLost(
                f"{group.named(absent)} did not come to {name!r} within {seconds} s; {ADVICE}"
            )
        time.sleep(pause)
        pause = min(2 * pause, 0.25)
    if _last_key:  # all have read it, or they would not be here
        group.client.key_value_delete(_last_key)
    _last_key = f"{prefix}{group.index}"
    return [found[i] for i in range(len(group.names))]


def agree(facts: dict[str, str], seconds: int) -> None:
    """Compares facts that must be equal everywhere with those of process 0.

    Raises:
      UserError: on every process, with each difference.
      HostLost: see `gather`.
    """
    all_facts = [json.loads(found) for found in gather("facts", json.dumps(facts), seconds)]
    if _group is None:
        return
    first, wrong = all_facts[0], []
    for index, theirs in enumerate(all_facts):
        for name in sorted(first.keys() | theirs.keys()):
            a, b = first.get(name, "nothing"), theirs.get(name, "nothing")
            if a != b:
                wrong.append(f"{_group.named([index])} has {name} {b}, {_group.named([0])} has {a}")
    if wrong:
        more = [f"and {len(wrong) - 10} more"] if len(wrong) > 10 else []
        raise UserError(
            "the processes of this run differ:\n  "
            + "\n  ".join(wrong[:10] + more)
            + "\ninstall the same versions, and give the same command and store, everywhere"
        )


def versions() -> dict[str, str]:
    """Of Python, of what a run depends on, and of this package's own source."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        source.update(path.read_bytes())
    return found | {"biomedlm_jax of sha256": source.hexdigest()[:16]}


def facts(experiment: Experiment, store: Store) -> dict[str, str]:
    """What must be equal on all hosts, but for where it lies."""
    found = versions()
    found["tokens of sha256"] = store.sha256[:16]
    found["vocabulary of sha256"] = store.vocabulary_sha256[:16]
    found["local devices"] = str(jax.local_device_count())
    settings = {f"config.{name}": repr(value) for name, value in flat(experiment).items()}
    for where in ("config.data.store", "config.task.benchmarks", "config.task.vocabulary"):
        settings.pop(where, None)
    return found | settings


def lost(error: Exception) -> bool:
    """Whether this is how a collective fails when another process is gone: with a ValueError where
    it fails while it is started."""
    kinds = (jax.errors.JaxRuntimeError, ValueError)
    refused = isinstance(error, UserError)
    return isinstance(error, kinds) and not refused and bool(BROKEN.search(str(error)))


@contextlib.contextmanager
def naming_lost_hosts() -> Iterator[None]:
    """Turns the error of a collective whose other end is gone into HostLost with its name."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if _group is None or not lost(error):
            raise
        reason = str(error).splitlines()[0]
        deadline = time.monotonic() + 5 * _group.period
        while not (gone := silent()) and time.monotonic() < deadline:
            time.sleep(_group.period / 4)
        if gone:
            message = f"no answer from {_group.named(gone)}; {ADVICE} ({reason})"
        else:
            message = f"a process has left a computation that all take part in; {ADVICE} ({reason})"
        raise HostLost(message) from error


def silent() -> list[int]:
    """The processes that have ended otherwise than well, or have given no sign of life lately."""
    return _group.silent() if _group else []


def named(indices: list[int]) -> str:
    """process 1 (host b), process 3 (host d)"""
    assert _group is not None or not indices
    return _group.named(indices) if _group else ""


def _cluster(seconds: int) -> tuple[str, int, int, list[int] | None] | None:
    """Coordinator, number of processes, id of this one and which devices it has (None is all), as
    the cluster says; None where this process is alone."""
    kinds = [c for c in clusters.ClusterEnv._cluster_types if c.name in CLUSTERS]
    try:
        cluster = next((c for c in kinds if c.is_env_present()), None)
    except OSError as error:
        raise Unavailable(
            f"the metadata server of this Cloud TPU does not say which other hosts there are "
            f"({error}); set TPU_SKIP_MDS_QUERY=1 where there is none, or give each host "
            "--coordinator=HOST:PORT, --processes and --process_id"
        ) from error
    if cluster is None:
        if os.environ.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
            raise UserError(
                "Open MPI started several processes but does not say where the first one is; give "
                "each --coordinator=HOST:PORT, --processes and --process_id"
            )
        return None
    count = cluster.get_process_count()
    if count < 2:
        return None
    coordinator = cluster.get_coordinator_address(seconds, os.environ.get("JAX_COORDINATOR_PORT"))
    local = cluster.get_local_process_id()
    # JAX would give a process one GPU also where it is the only one on its machine.
    each = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get(
        "OMPI_COMM_WORLD_LOCAL_SIZE"
    )
    if local is None or re.fullmatch(r"1(\(x\d+\))?", each or ""):
        return coordinator, count, cluster.get_process_id(), None
    return coordinator, count, cluster.get_process_id(), [local]
