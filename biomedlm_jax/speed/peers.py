"""The peers at their best block sizes: which were tried, which won, and what their cycles are.

Splash's grids hold steps that compute nothing: a block above the diagonal is skipped inside its
step, sums are set to zero in the first step of a row and written in the last. A static schedule
holds each of these parts once, and `cycles` weighs each by the steps that take it, to the peers'
favour. With segment ids tokamax prunes its grid at run time, so nothing static is known of it. The
winners are data, `peer_blocks.json`, with the date and versions of the sweep.
"""

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

from biomedlm_jax.compilers.child import CompileError, Compiler

RECORD = Path(__file__).with_name("peer_blocks.json")
MAKE = "biomedlm_jax.speed.attention:"
PEERS = {"jax splash": "jax_splash", "tokamax splash": "tokamax_splash"}
FORWARD = {"q": "block_q", "kv": "block_kv", "compute": "block_kv_compute"}
BACKWARD = {"q": "block_q_dkv", "kv": "block_kv_dkv", "compute": "block_kv_dkv_compute"}
# Options of tokamax that make it faster here: above the diagonal inside a block no products; no
# row maximum, for a user who knows a bound of the scores. `use_experimental_scheduler` is slower.
SKIP = (("qk_diag_skip", True), ("sv_diag_skip", True), ("qk_diag_grid", 4))
BOUNDED = (("max_logit_const", 20.0),)


class Blocks(NamedTuple):
    """Rows of a block, and what else a configuration says, as it is named there."""

    q: int
    kv: int
    compute: int
    extra: tuple[tuple[str, Any], ...] = ()


def candidates(peer: str, length: int) -> list[Blocks]:
    """What the sweep tries, forward and backward alike."""
    smallest = 512 if length >= 1024 else 128  # smaller ones lost by far at 1024
    sizes = [size for size in (128, 256, 512, 1024, 2048) if smallest <= size <= length]
    found = [
        Blocks(q, kv, compute)
        for q, kv, compute in itertools.product(sizes, sizes, sizes)
        if compute <= kv and compute <= 1024 and q * kv <= 2**21
    ]
    if peer == "tokamax splash":
        squares = [Blocks(size, size, size, SKIP) for size in sizes if size >= 512]
        found += [square for square in squares if square.q <= 1024]
        found += [blocks._replace(extra=blocks.extra + BOUNDED) for blocks in found]
    return found


def settings(forward: Blocks, backward: Blocks) -> dict[str, Any]:
    """Arguments of a peer's configuration. What is extra holds for both passes."""
    named = {FORWARD[key]: getattr(forward, key) for key in FORWARD}
    named |= {BACKWARD[key]: getattr(backward, key) for key in BACKWARD}
    return named | dict(forward.extra) | dict(backward.extra)


def cycles(
    kernel: dict[str, Any], blocks: Blocks, shape: tuple[int, ...], cores: int
) -> tuple[float, bool]:
    """(Cycles of one of splash's kernels, whether it is the backward one), from what
    `compilers.tpu.measure` says of it. `kernel` has its name besides. shape: B, N, T, H.

    Raises:
      ValueError: the kernel is not built as those of the tested versions.
    """
    batch, heads, length, _ = shape
    backward = "dkv" in kernel["name"]
    rows, columns = length // blocks.q, length // blocks.kv
    crossing = whole = 0
    for row, column in itertools.product(range(rows), range(columns)):
        last = column * blocks.kv + blocks.kv - 1
        whole += last <= row * blocks.q
        crossing += column * blocks.kv <= row * blocks.q + blocks.q - 1 and last > row * blocks.q
    dynamic = kernel["cycles_of_a_trip"] > 0  # a grid of the blocks that compute, and no other
    steps = crossing + whole if dynamic else rows * columns
    # Two steps more than the grid has fill and empty the pipeline.
    trips = batch * heads // cores * steps + 2 if dynamic else 1
    total = kernel["cycles"] + (trips - 1) * kernel["cycles_of_a_trip"]

    products = [part for part, slots in kernel["optional"] if slots]
    others = [part for part, slots in kernel["optional"] if not slots]
    if len(products) > 2:
        raise ValueError(f"{kernel['name']} has {len(products)} optional parts with products")
    shares = [whole / steps, crossing / steps]  # in the order of the source: without mask, with
    if len(products) == 1:
        shares = [(whole + crossing) / steps]
    for part, share in zip(products, shares, strict=bool(products)):
        total -= trips * part * (1 - share)
    once = (columns if backward else rows) / steps
    total -= trips * sum(others) * (1 - once)
    return total, backward


def measure(
    compiler: Compiler,
    peer: str,
    chip: str,
    shape: tuple[int, ...],
    forward: Blocks,
    backward: Blocks,
    cores: int,
    **options: Any,
) -> dict[str, float]:
    """Cycles of both passes, and of what XLA adds around them.

    Raises:
      CompileError: it doesn't compile.
    """
    found = compiler.measure(
        chip, MAKE + PEERS[peer], shape=shape, blocks=settings(forward, backward), **options
    )
    cost: dict[str, float] = {"forward": 0, "backward": 0, "xla": found["xla_cycles"]}
    for name, kernel in found["kernels"].items():
        blocks = backward if "dkv" in name else forward
        one, is_backward = cycles({**kernel, "name": name}, blocks, shape, cores)
        cost["backward" if is_backward else "forward"] += kernel["runs"] * one
    cost["total"] = sum(cost.values())
    return cost


def sweep(
    compiler: Compiler, peer: str, chip: str, shape: tuple[int, ...], cores: int
) -> dict[str, Any]:
    """The best blocks of each pass, chosen apart, and all that was tried."""
    tried = []
    for blocks in candidates(peer, shape[2]):
        row: dict[str, Any] = {"blocks": blocks}
        try:
            row |= measure(compiler, peer, chip, shape, blocks, blocks, cores)
        except CompileError as reason:
            row["refused"] = str(reason).splitlines()[0][:200]
        tried.append(row)
    ran = [row for row in tried if "refused" not in row]
    if not ran:
        raise CompileError(f"{peer} compiles for {chip}, {shape}, with no setting: {tried[0]}")
    # The passes are cut apart from each other, but SKIP holds for both or for none.
    skips = [SKIP[0] in row["blocks"].extra for row in ran]
    groups = [[r for r, skip in zip(ran, skips, strict=True) if skip == s] for s in (False, True)]
    best = []
    for group in filter(None, groups):
        forward = min(group, key=lambda row: row["forward"])["blocks"]
        # More than one block of keys leaves sums of dq to XLA.
        backward = min(group, key=lambda row: row["backward"] + row["xla"])["blocks"]
        cost = measure(compiler, peer, chip, shape, forward, backward, cores)
        best.append((cost["total"], forward, backward))
    _, forward, backward = min(best, key=lambda found: found[0])
    return {"forward": forward, "backward": backward, "tried": tried}


def key(peer: str, chip: str, shape: tuple[int, ...]) -> str:
    return f"{peer}, {chip}, " + " ".join(
        f"{name}{size}" for name, size in zip("BNTH", shape, strict=True)
    )


def write(found: dict[str, Any], head: dict[str, Any]) -> None:
    """Puts sweeps, by `key`, in place of those recorded. head: date, versions, command."""
    old = json.loads(RECORD.read_text())["winners"] if RECORD.exists() else {}
    rows = {name: {**sweep, **head} for name, sweep in found.items()}
    text = json.dumps({"winners": old | rows}, indent=1)
    RECORD.write_text(text + "\n")


def winners(name: str) -> tuple[Blocks, Blocks] | None:
    """(forward, backward) of a `key` by the recorded sweep; None where none was made."""
    found = json.loads(RECORD.read_text())["winners"].get(name)
    return (_blocks(found["forward"]), _blocks(found["backward"])) if found else None


def _blocks(row: list) -> Blocks:
    q, kv, compute, extra = row
    return Blocks(q, kv, compute, tuple((name, value) for name, value in extra))
