"""How long a step will take, predicted; nothing here was timed.

On TPU the compiler states cycles for every operation of its own, and the kernels' schedules are
theirs, so a step is built from them; waits that neither knows, for memory or for another chip, come
on top. On GPU no compiler says, nor where a kernel's cycles are not known, and the roofline stands
for the step: what it would take at the peaks of the data sheets.
"""

from typing import Any

from biomedlm_jax.compilers import traffic
from biomedlm_jax.compilers.chips import Gpu, Tpu
from biomedlm_jax.compilers.topologies import Topology
from biomedlm_jax.compilers.traffic import Collective, Total
from biomedlm_jax.planning.target import Target, attention_flops, utilization


def link(machine: Topology) -> str:
    """What a chip's collectives pass."""
    if isinstance(machine.chip, Tpu):
        return "ICI"
    inside = "NVLink" if machine.chip.network else "PCIe"
    return f"{inside} and network" if (machine.hosts or 1) > 1 else inside


def speed(machine: Topology, one: Collective) -> float:
    """Bytes a second one way of what a collective passes, all links of a chip together. Between
    hosts where the program does not say that it stays within one."""
    chip = machine.chip
    if isinstance(chip, Tpu):
        return chip.ici
    _, of_a_host = machine.shape
    if machine.hosts == 1 or (one.block and one.block <= of_a_host):
        return chip.link
    assert chip.network, "machines of several hosts have one"
    return chip.network


def totals(target: Target, figures: dict[str, Any]) -> dict[str, Total] | None:
    """By kind of collective; None where the program's text could not be counted."""
    if figures["collectives"] is None:
        return None
    return traffic.totals(_collectives(figures), target.machine.devices)


def _collectives(figures: dict[str, Any]) -> list[Collective]:
    return [Collective(**one) for one in figures["collectives"]]


def roofline(target: Target, figures: dict[str, Any]) -> dict[str, float | None]:
    """Seconds of a step that compute, device memory and links each need at their peak, and
    `seconds`, the longest of them; None where the program could not be counted. On GPU a collective
    sends what its own group makes it send; on TPU its group counts as all chips, as in `totals`."""
    machine, model = target.machine, target.model
    flops, found = figures["matrix_flops"], totals(target, figures)
    if flops is None or found is None:
        return {"compute": None, "memory": None, "links": None, "seconds": None}
    if figures["kernel_runs"]:  # attention's products are in kernels, and not in the text
        flops = flops + attention_flops(model, target.tokens) / machine.devices
    held = figures["memory"]["arguments"] + figures["memory"]["temporary"]
    found = {
        "compute": flops / machine.chip.flops,
        "memory": 2 * held / machine.chip.bandwidth,
        "links": sum(
            one.wire(_ring(machine, one)) / speed(machine, one) for one in _collectives(figures)
        ),
    }
    return {**found, "seconds": max(found.values())}


def _ring(machine: Topology, one: Collective) -> int:
    """Chips of the ring that a collective goes round, for the roofline."""
    own = one.group if isinstance(machine.chip, Gpu) else None
    return own or machine.devices


def parts(target: Target, figures: dict[str, Any]) -> dict[str, float] | None:
    """Seconds of a step by what they go into, as the compiler has them; None on GPU, or where a
    part is not known."""
    chip, found = target.machine.chip, totals(target, figures)
    cycles = figures["xla_cycles"], figures["kernel_cycles"]
    if isinstance(chip, Gpu) or found is None or None in cycles:
        return None
    alone = sum(total.alone for total in found.values())
    return {
        "operations": cycles[0] / chip.clock,
        "kernels": cycles[1] / chip.clock,
        "stand-alone collectives": alone / (chip.ici / chip.torus),
    }


def predicted(
    target: Target, figures: dict[str, Any], price: float | None = None
) -> dict[str, Any] | None:
    """Of the run; None where nothing can be said.

    price: of a chip-hour. Returns:
      seconds: of a step. of_roofline: they are the roofline's.
      tokens_per_second_per_chip; mfu: by convention; steps, days: of the run, by `Target.steps`;
      cost, with a price.
    """
    built = parts(target, figures)
    seconds = sum(built.values()) if built else roofline(target, figures)["seconds"]
    if not seconds:
        return None
    machine = target.machine
    hours = seconds * target.steps / 3600
    return {
        "seconds": seconds,
        "of_roofline": built is None,
        "tokens_per_second_per_chip": target.tokens / seconds / machine.devices,
        "mfu": utilization(
            target.model,
            target.tokens,
            seconds,
            machine.chip.flops * machine.devices,
        ),
        "steps": target.steps,
        "days": hours / 24,
        "cost": None if price is None else price * hours * machine.devices,
    }


def assumptions(target: Target, figures: dict[str, Any]) -> list[str]:
    """What the predictions take for granted, with the chip's figures."""
    machine, chip = target.machine, target.machine.chip
    if isinstance(chip, Tpu):
        links = f"ICI {chip.ici / 1e9:.0f} GB/s"
    else:
        links = f"{'NVLink' if chip.network else 'PCIe'} {chip.link / 1e9:.0f} GB/s"
    found = [
        f"{machine.name}: {chip.flops / 1e12:.0f} TFLOP/s dense bfloat16, "
        f"{chip.memory / 2**30:.2f} GiB of memory for a program at {chip.bandwidth / 1e9:,.0f} "
        f"GB/s, {links} one way over all links of a chip: data sheets, see "
        "compilers/chips.py for their sources.",
        "A collective of b bytes sends b (n - 1) / n over a chip's links, an all-reduce twice as "
        "much, a permute b; n is all chips, for figures that can be compared, so smaller groups "
        "send less.",
        "Roofline: matrix products at the peak; device memory moves twice what the program holds, "
        "in and out; links carry everything at full speed"
        + (", n being the chips of the collective's own group" if isinstance(chip, Gpu) else "")
        + "; the longest of the three counts.",
    ]
    if isinstance(chip, Tpu) and parts(target, figures):
        found += [
            "Predicted step: XLA's estimated cycles, with loops counted fully and every branch "
            "taken, and the static schedules of the kernels, each compiled alone, at "
            f"{chip.clock / 1e9:.3f} GHz (the clock that the peak implies), one after the other; "
            "then stand-alone collectives over one axis of the network, "
            f"{chip.ici / chip.torus / 1e9:.0f} GB/s.",
            "Collectives that run beside compute count nothing in it, nor do waits for memory in "
            "kernels, for other chips, for the host and for data.",
        ]
    else:
        found.append(
            f"{_why_not_built(target, figures)}: the predicted step is the roofline's, and what "
            "follows from it is as good. A real step does not reach every peak."
        )
    if isinstance(chip, Gpu):
        if chip.network and machine.hosts != 1:
            found.append(
                f"Collectives that leave a host pass the network, {chip.network / 1e9:.0f} GB/s of "
                "one adapter a GPU; those of neighbours in one host do not."
            )
        found.append(
            "Memory is what nvidia-smi shows less half a GiB, about what CUDA itself takes. JAX "
            "allocates three quarters unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise."
        )
    return found


def _why_not_built(target: Target, figures: dict[str, Any]) -> str:
    """Why a step is not built from cycles."""
    if isinstance(target.machine.chip, Gpu):
        return "No compiler estimates times for GPUs"
    if reason := figures.get("uncounted"):
        return f"The program could not be counted ({reason[:200]})"
    if reason := figures.get("kernels_unknown"):
        return f"The kernels' cycles are not known ({reason[:200]})"
    return "XLA estimates no cycles of this program"
