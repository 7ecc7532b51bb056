"""The loader and the evaluation on one, two and four hosts, real processes of four devices in all:

    python -m tests.test_hosts STORE OUTPUT ADDRESS PROCESSES INDEX

is one of them. It writes what its devices hold of each batch, which rows it read, and, where there
are SCORING of them, the scores of held-out text.
"""

import dataclasses
import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from biomedlm_jax.pipeline.loader import Loader, blocks_of
from biomedlm_jax.pipeline.store import TokenStore

ROOT = Path(__file__).parent.parent
DEVICES, BATCH, LENGTH, STEPS, AGAIN = 4, 8, 32, 12, 7
SCORING = 2  # enough to see that no host needs all devices
CASES = list(itertools.product([(4, 1, 1), (1, 2, 2)], [(True, False), (False, True)]))


def loader(store: str, shape: tuple[int, ...], form: tuple[bool, bool]) -> Loader:
    mesh = Mesh(np.array(jax.devices()).reshape(shape), ("data", "fsdp", "model"))
    return Loader(
        TokenStore(store, "train"),
        batch=BATCH,
        length=LENGTH,
        separators=form[0],
        segment_ids=form[1],
        seed=17,
        sharding=NamedSharding(mesh, PartitionSpec(("data", "fsdp"))),
    )


def scores(store: str) -> dict[str, np.ndarray]:
    """Of a model as it begins, on all devices."""
    from biomedlm_jax.held_out import Evaluator
    from tests.conftest import TINY, on, started

    experiment, mesh = on(TINY, 1, DEVICES, 1)
    found = Evaluator(experiment, mesh, TokenStore(store, "heldout"))(
        started(experiment, mesh).params
    )
    return {f"score {part}": np.array(dataclasses.astuple(x)) for part, x in found.items()}


def host(store: str, output: str, address: str, processes: str, index: str) -> None:
    count = int(processes)
    if count == SCORING:
        import tests.conftest  # noqa: F401  it sets the number of devices, too
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES // count)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, count, int(index))
    assert jax.process_count() == count
    assert (jax.device_count(), jax.local_device_count()) == (DEVICES, DEVICES // count)

    read: list[int] = []
    for name in ("read", "windows"):
        whole = getattr(TokenStore, name)

        def watched(self, starts, *rest, whole=whole):
            read.extend(starts.tolist())
            return whole(self, starts, *rest)

        setattr(TokenStore, name, watched)

    found = {}
    for case, (shape, form) in enumerate(CASES):
        for name, first in {"through": 0, "again": AGAIN}.items():
            made = loader(store, shape, form)
            for step, batch in enumerate(made.batches(first, STEPS), first):
                for part, array in batch._asdict().items():
                    for shard in array.addressable_shards if array is not None else ():
                        rows = shard.index[0].indices(BATCH)
                        key = f"{case} {name} {step} {part} {shard.device.id}"
                        found[key] = np.array(shard.data)
                        found[f"{key} rows"] = np.arange(*rows)
            found[f"{case} {name} read"] = np.array(read)
            read.clear()
    # A sum over all hosts: the arrays are one array, not a copy on each of them.
    batch = loader(store, *CASES[0]).batch(0).tokens
    found["sum"] = np.array(jax.jit(jax.numpy.sum)(batch))
    if count == SCORING:
        found |= scores(store)
    np.savez(f"{output}/{processes}-{index}.npz", **found)
    jax.distributed.shutdown()


def start(store: Path, output: Path, processes: int) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.test_hosts", str(store), str(output), address]
    running = []
    for index in range(processes):
        with (output / f"{processes}-{index}.log").open("w") as log:
            running.append(
                subprocess.Popen(
                    [*command, str(processes), str(index)],
                    cwd=ROOT,
                    env={**os.environ, "JAX_PLATFORMS": "cpu"},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return running


@pytest.fixture(scope="module")
def hosts(make_store, tmp_path_factory):
    """{processes: what each of them found}, and the store."""
    store, output = make_store(documents=8), tmp_path_factory.mktemp("hosts")
    for count in (1, 2, 4):
        running = start(store, output, count)
        try:
            for index, process in enumerate(running):
                code = process.wait(timeout=300)
                assert code == 0, (output / f"{count}-{index}.log").read_text()
        finally:
            for process in running:
                process.kill()
                process.wait()
    found = {n: [dict(np.load(output / f"{n}-{i}.npz")) for i in range(n)] for n in (1, 2, 4)}
    return found, store


def assembled(parts: list[dict], case: int, name: str, step: int, part: str) -> np.ndarray:
    """A global batch from the pieces of all processes."""
    whole = np.full((BATCH, LENGTH), -1, np.int32)
    devices = set()
    for held in parts:
        for key in held:
            if key.startswith(f"{case} {name} {step} {part} ") and not key.endswith("rows"):
                rows = held[f"{key} rows"]
                before = whole[rows]
                assert ((before == -1) | (before == held[key])).all()
                whole[rows] = held[key]
                devices.add(key)
    assert len(devices) == DEVICES
    assert (whole >= 0).all()
    return whole


@pytest.mark.parametrize("case", range(len(CASES)), ids=[str(case) for case in CASES])
def test_global_batches_do_not_depend_on_the_hosts(case, hosts):
    """To the bit, over more than one epoch, and from step 7 on as well as from the start."""
    found, store = hosts
    (_, form), split = CASES[case], TokenStore(store, "train")
    blocks = split.length(form[0]) // LENGTH
    assert blocks < STEPS * BATCH / 2
    one_host = [assembled(found[1], case, "through", step, "tokens") for step in range(STEPS)]
    assert not np.array_equal(one_host[0], one_host[1])
    for parts in found.values():
        for part in ("tokens", "segments") if form[1] else ("tokens",):
            for step in range(STEPS):
                expected = assembled(found[1], case, "through", step, part)
                assert np.array_equal(assembled(parts, case, "through", step, part), expected)
                if step >= AGAIN:
                    assert np.array_equal(assembled(parts, case, "again", step, part), expected)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("case", range(len(CASES)), ids=[str(case) for case in CASES])
def test_a_host_reads_the_rows_of_its_devices_once_and_no_others(case, processes, hosts):
    found, store = hosts
    (shape, form), split = CASES[case], TokenStore(store, "train")
    blocks = split.length(form[0]) // LENGTH
    shares = []
    for held in found[processes]:
        for name, first in {"through": 0, "again": AGAIN}.items():
            expected = []
            for step in range(first, STEPS):
                prefix = f"{case} {name} {step} tokens "
                rows = {r for k in held if k.startswith(prefix) and k.endswith("rows")
                        for r in held[k].tolist()}  # fmt: skip
                _, block = blocks_of(step, batch=BATCH, blocks=blocks, seed=17)
                expected += (block[sorted(rows)] * LENGTH).tolist()
            assert held[f"{case} {name} read"].tolist() == expected
        shares.append(len(held[f"{case} through read"]) / (STEPS * BATCH))
    groups = shape[0] * shape[1]  # of devices with the same rows, on one host or several
    assert shares == [max(1 / processes, 1 / groups)] * processes


def test_hosts_hold_one_array(hosts):
    sums = {int(held["sum"]) for parts in hosts[0].values() for held in parts}
    whole = assembled(hosts[0][1], 0, "through", 0, "tokens")
    assert sums == {int(whole.sum())}


def test_scores_do_not_depend_on_the_hosts(hosts):
    found, store = hosts
    expected = scores(str(store))
    assert len(expected) == 6  # all, one source, three years and none
    for held in found[SCORING]:
        for name, score in expected.items():
            np.testing.assert_allclose(held[name], score, rtol=1e-6)


if __name__ == "__main__":
    host(*sys.argv[1:])
