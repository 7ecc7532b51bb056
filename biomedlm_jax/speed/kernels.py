"""What attention costs on each chip, beside its peers: make bench-kernels

Programs are compiled for real TPUs, which need not be there, and their cycles read from the
compiler's schedules (see `compilers/schedules.py` for what that holds). Where a GPU is present,
times too.
Writes record.json, record.md and cycles.png into a folder of --output named by the date and JAX.
"""

import datetime
import importlib.metadata
import importlib.util
import json
import math
import platform
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from tqdm import tqdm

from biomedlm_jax import entry
from biomedlm_jax.compilers import child
from biomedlm_jax.compilers.child import CompileError, Compiler
from biomedlm_jax.compilers.chips import TPUS, Tpu
from biomedlm_jax.speed import peers, report, times

Shape = tuple[int, int, int, int]
SHAPE: Shape = (4, 20, 1024, 128)  # B, N, T, H of the 2.7B model on one chip
PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12", "tokamax")
REGISTERS_OF = ("a100-80", "h100")  # GPUs that the kernels were made for
PRODUCTS = {"forward": 2, "backward": 5}  # matrix products of a pass, each B N T T H


class Variant(NamedTuple):
    """limits: Mcycles by chip that this project set itself."""

    name: str
    shape: Shape = SHAPE
    segments: bool = False
    dropout: float = 0.0
    limits: dict[str, float] = {}  # noqa: RUF012 - read, never written


CAUSAL = Variant("causal", limits={"v5e": 0.68, "v5p": 0.36, "v6e": 0.46})
HEAD_64 = Variant("H 64, N 12", (4, 12, 1024, 64))
VARIANTS = (
    CAUSAL,
    Variant("+ segment ids", segments=True, limits={"v5e": 0.73}),
    Variant("+ dropout 0.1", dropout=0.1, limits={"v5e": 0.73}),
    Variant("+ both", segments=True, dropout=0.1, limits={"v5e": 0.77}),
    Variant("T 2048, B 2", (2, 20, 2048, 128), limits={"v5e": 1.28}),
    Variant("T 512, B 8", (8, 20, 512, 128), limits={"v5e": 0.47}),
    HEAD_64,
)


def floor(tpu: Tpu, shape: Shape, passes: tuple[str, ...] = tuple(PRODUCTS)) -> float:
    """Cycles of the matrix units, all busy, for the products under the diagonal and no other."""
    batch, heads, length, head_dim = shape
    flops = 2 * batch * heads * head_dim * length * (length + 1) / 2
    return sum(PRODUCTS[p] for p in passes) * flops / (tpu.cores * tpu.flops_per_cycle)


def tile_floor(tpu: Tpu, shape: Shape, way: str) -> float:
    """The same of one pass in tiles of 128 x 128, with heads that are narrower than the matrix unit
    leaving it part idle, as they do where the head dim is a contraction or an output's columns."""
    batch, heads, length, head_dim = shape
    tiles = math.ceil(length / 128)
    area = 128 * 128 * tiles * (tiles + 1) / 2
    wide = math.ceil(head_dim / tpu.mxu_width) * tpu.mxu_width
    flops = 2 * batch * heads * wide * area
    return PRODUCTS[way] * flops / (tpu.cores * tpu.flops_per_cycle)


def ours(compiler: Compiler, chip: str, variant: Variant) -> dict[str, Any]:
    """One row of the record.

    Raises:
      CompileError: it doesn't compile.
      ValueError: a kernel's cycles are not known from its text.
    """
    found = compiler.measure(
        chip,
        peers.MAKE + "ours",
        shape=variant.shape,
        segments=variant.segments,
        dropout=variant.dropout,
    )
    cost: dict[str, float] = {"forward": 0, "backward": 0, "xla": found["xla_cycles"]}
    for name, kernel in found["kernels"].items():
        if kernel["cycles_of_a_trip"]:
            raise ValueError(f"{name}: the trips of a loop are not constant")
        way = "backward" if "backward" in name else "forward"
        cost[way] += kernel["runs"] * kernel["cycles"]
    return {
        **row(TPUS[chip], variant.shape, cost),
        "idle": sum(kernel["runs"] * kernel["idle"] for kernel in found["kernels"].values()),
        "peak_bytes": found["peak_bytes"],
        "temporary_bytes": found["temporary_bytes"],
        "kernels": found["kernels"],
    }


def row(tpu: Tpu, shape: Shape, cost: dict[str, float]) -> dict[str, Any]:
    """bounded: each pass at least as long as the matrix unit needs for its tiles."""
    bounded = cost["xla"]
    for way in PRODUCTS:
        bounded += max(cost[way], tile_floor(tpu, shape, way))
    return {
        **cost,
        "total": cost["forward"] + cost["backward"] + cost["xla"],
        "bounded": bounded,
        "floor": floor(tpu, shape),
        "share_of_floor": floor(tpu, shape) / bounded,
    }


def measure(chips: list[str], variants: tuple[Variant, ...] = VARIANTS) -> list[dict[str, Any]]:
    """Rows of all implementations; what does not compile has its reason as `refused`."""
    work = [(chip, variant, None, True) for chip in chips for variant in variants]
    for chip in chips:
        for variant in variants:
            work += [
                (chip, variant, peer, heads_first)
                for peer in peers.PEERS
                if not variant.dropout and peers.winners(peers.key(peer, chip, variant.shape))
                if peer != "tokamax splash"
                or (importlib.util.find_spec("tokamax") and not variant.segments)
                for heads_first in (True, False)[: 2 if variant == CAUSAL else 1]
            ]
    rows = []
    with Compiler("tpu") as compiler:
        for chip, variant, peer, heads_first in tqdm(work, desc="compile", unit="program"):
            who = "ours" if peer is None else peer
            layout = "[B, N, T, H]" if peer and heads_first else "[B, T, N*H]"
            head: dict[str, Any] = dict(chip=chip, variant=variant.name)
            head |= dict(implementation=who, layout=layout)
            head["limit"] = variant.limits.get(chip) if peer is None else None
            try:
                if peer is None:
                    rows.append(head | ours(compiler, chip, variant))
                else:
                    rows.append(head | _peer(compiler, peer, chip, variant, heads_first))
            except CompileError as reason:
                rows.append(head | {"refused": str(reason)})
    _limits_by_head(rows)
    return rows


def _peer(
    compiler: Compiler, peer: str, chip: str, variant: Variant, heads_first: bool
) -> dict[str, Any]:
    found = peers.winners(peers.key(peer, chip, variant.shape))
    assert found, "only peers with winners are asked for"
    cost = peers.measure(
        compiler,
        peer,
        chip,
        variant.shape,
        *found,
        TPUS[chip].cores,
        segments=variant.segments,
        heads_first=heads_first,
    )
    blocks = {"forward": found[0], "backward": found[1]}
    return row(TPUS[chip], variant.shape, cost) | {"blocks": blocks}


def _limits_by_head(rows: list[dict[str, Any]]) -> None:
    """A head of 64 is to take no longer than one of 128 of the same length.

    The pipeline's two idle trips are no work on a head, and weigh more on a grid of 24 steps than
    on one of 80: they are taken as they come.
    """
    for chip in {row["chip"] for row in rows}:
        mine = [r for r in rows if r["chip"] == chip and r["implementation"] == "ours"]
        (whole,) = (r for r in mine if r["variant"] == CAUSAL.name)
        for small in (r for r in mine if r["variant"] == HEAD_64.name):
            if "idle" in whole and "idle" in small:
                limit = (whole["total"] - whole["idle"]) * 12 / 20 + small["idle"]
                small["limit"] = limit / 1e6


def registers() -> list[dict[str, Any]]:
    """What the GPU kernels take on each GPU; the reason where they do not compile."""
    if reason := child.missing("gpu"):
        return [{"refused": reason}]
    rows = []
    with Compiler("gpu") as compiler:
        for chip in tqdm(REGISTERS_OF, desc="compile for GPUs", unit="program"):
            head = {"chip": chip}
            try:
                found = compiler.measure(chip, peers.MAKE + "ours", shape=SHAPE, impl="pallas_gpu")
                rows.append(head | found)
            except CompileError as reason:
                rows.append(head | {"refused": str(reason)})
    return rows


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def sweep(chips: list[str], head: dict[str, Any]) -> None:
    """Finds the peers' best blocks anew, on the chips named and at every shape of the variants."""
    shapes = dict.fromkeys(variant.shape for variant in VARIANTS)
    work = [
        (peer, chip, shape)
        for peer in peers.PEERS
        if peer != "tokamax splash" or importlib.util.find_spec("tokamax")
        for chip in chips
        for shape in shapes
    ]
    with Compiler("tpu") as compiler:
        for peer, chip, shape in (bar := tqdm(work, desc="sweep", unit="shape")):
            bar.set_postfix_str(peers.key(peer, chip, shape))
            found = peers.sweep(compiler, peer, chip, shape, TPUS[chip].cores)
            peers.write({peers.key(peer, chip, shape): found}, head)


def main() -> None:
    given = flags.FLAGS
    if reason := child.missing("tpu"):
        raise entry.UserError(reason)
    wrong = [chip for chip in given.chips if chip not in TPUS]
    if wrong:
        raise entry.UserError(f"--chips={','.join(wrong)}: known are {', '.join(TPUS)}")
    command = shlex.join(["python", "-m", f"{__package__}.kernels", *sys.argv[1:]])
    date = datetime.date.today().isoformat()
    head = {"date": date, "versions": versions(), "command": command}
    if given.sweep:
        sweep(given.chips, head)
    record = {
        **head,
        "rows": measure(given.chips),
        "registers": registers(),
        "times": times.on_gpu(SHAPE),
    }
    folder = Path(given.output) / f"{date}-jax-{head['versions']['jax']}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "record.md").write_text(report.markdown(record))
    report.plot(record, folder / "cycles.png")
    print(report.markdown(record))
    print(f"written to {folder}")


if __name__ == "__main__":
    flags.DEFINE_string("output", "runs/bench-kernels", "Folder of the records.")
    flags.DEFINE_list("chips", ["v5e", "v5p", "v6e"], "TPUs to compile for.")
    flags.DEFINE_bool("sweep", False, "First find the peers' best block sizes anew: an hour.")
    entry.run(main)
