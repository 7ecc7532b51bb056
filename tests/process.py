"""One of the processes of `test_processes`, light on imports, for each costs seconds:

python -m tests.process SCENE ADDRESS PROCESSES INDEX WAIT_SECONDS
"""

import os
import signal
import sys
import time

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from biomedlm_jax import entry, hosts, watch
from biomedlm_jax.entry import HostLost, Preempted, UserError


def steps(index: int, end: int | None) -> None:
    """Sums over all devices, until SIGTERM has come to one process; `end` is a signal that the last
    process has at its tenth step."""
    devices = np.array(jax.devices())
    assert (len(devices), jax.local_device_count()) == (4, 2)
    mesh = Mesh(devices, ("x",))
    x = jax.make_array_from_callback(
        (4,), NamedSharding(mesh, PartitionSpec("x")), lambda _: np.ones(1)
    )
    add = jax.jit(lambda x: x + x.sum(), out_shardings=x.sharding)
    preemption = watch.Preemption()
    for tick in range(1000):
        jax.block_until_ready(add(x))
        if tick == 10 and index == 1 and end:
            os.kill(os.getpid(), end)
        if preemption.requested(tick):
            raise Preempted(f"stopped at tick {tick}")
        time.sleep(0.02)


def talk(index: int) -> None:
    assert hosts.primary() == (index == 0)
    assert hosts.gather("squares", str((index + 3) ** 2), 30) == ["9", "16"]
    hosts.agree({"jax": "0.10.2"}, 30)
    try:
        hosts.agree({"jax": f"0.{10 + index}", "python": "3"}, 30)
    except UserError as error:
        print(error)
    if index == 1:
        time.sleep(2)
    try:
        hosts.barrier("the save", 1)
    except HostLost as error:
        print(error)
    hosts.barrier("the next save", 30)
    steps(index, signal.SIGTERM)


def killed(index: int) -> None:
    with hosts.naming_lost_hosts():
        steps(index, signal.SIGKILL)


def first_killed(index: int) -> None:
    hosts.barrier("both are here", 30)
    if index == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def failed(index: int) -> None:
    if index == 0:
        raise UserError("no room for the save")
    hosts.barrier("the save", 60)


def one(scene: str, address: str, processes: str, index: str, wait_seconds: str) -> None:
    sys.argv = sys.argv[:1]

    def main() -> None:
        both = int(processes), int(index), int(wait_seconds)
        hosts.connect(address, *both, cpu_devices=lambda count: 4 // count)
        globals()[scene](int(index))

    entry.run(main)


if __name__ == "__main__":
    one(*sys.argv[1:])
