"""Answers as text for a terminal."""

from collections.abc import Sequence
from typing import Any

from biomedlm_jax.planning import times
from biomedlm_jax.planning.answer import Answer
from biomedlm_jax.planning.target import attention_flops, matrix_flops

UNKNOWN = "not known"
Line = tuple[str, str, str]  # what, how much, a remark


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def title(answer: Answer) -> str:
    target, machine = answer.target, answer.target.machine
    chips = f"{machine.devices:,} chip" + "s" * (machine.devices > 1)
    rows = f"{target.experiment.data.batch:,} sequences, {target.tokens:,} tokens a step"
    return f"{machine.name}, {chips}: {target.settings}; {rows}"


def lines(answer: Answer) -> list[Line]:
    """Everything about one target, under its `title`."""
    if answer.refused:
        return [("compiles", "NO", answer.refused[:300])]
    found = [_verdict(answer), *memory_lines(answer)]
    if answer.figures is None:
        return found
    return found + _work(answer) + _links(answer) + _predicted(answer) + _compiler(answer)


def _verdict(answer: Answer) -> Line:
    held = answer.memory or {}
    left = held["limit"] - held["needed"]
    what = "headroom" if left >= 0 else "MORE THAN THE CHIP HAS"
    return ("fits", "yes" if answer.fits else "NO", f"{gigabytes(abs(left))} {what}")


def memory_lines(answer: Answer) -> list[Line]:
    held = answer.memory or {}
    found = [(f"  {part}", gigabytes(size), "") for part, size in held["parts"].items()]
    share = f"{held['needed'] / held['limit']:.0%} of {gigabytes(held['limit'])}"
    peak = "" if held["peak"] is None else f", compiler's peak {gigabytes(held['peak'])}"
    return [*found, ("  memory of a chip", gigabytes(held["needed"]), share + peak)]


def _work(answer: Answer) -> list[Line]:
    figures, target = answer.figures or {}, answer.target
    model, tokens = target.model, target.tokens / target.machine.devices
    of_model = matrix_flops(model, 1) * tokens
    matrix, cycles = figures["matrix_flops"], figures["kernel_cycles"]
    found: list[Line] = []
    if matrix is None:
        found.append(("matrix flops of a chip", UNKNOWN, figures["uncounted"][:200]))
    else:
        kernels = sum(figures["kernel_runs"].values())
        scores = "" if kernels else f", {attention_flops(model, 1) * tokens:.4g} causal scores"
        ratio = f"{matrix / of_model:.3f} of the model's own {of_model:.4g}{scores}"
        found.append(("matrix flops of a chip", f"{matrix:.4g}", ratio + "; outside kernels"))
        found.append(("kernels", f"{kernels:,} runs", ", ".join(figures["kernel_runs"])[:80]))
    xla = figures["xla_cycles"]
    estimate = "of a core, loops counted fully, outside kernels"
    found.append(("XLA's cycles", UNKNOWN if xla is None else f"{xla / 1e6:,.1f} M", estimate))
    unknown = figures.get("kernels_unknown") if cycles is None else None
    static = unknown[:200] if unknown else "of a core, from the static schedules"
    found.append(
        ("kernels' cycles", UNKNOWN if cycles is None else f"{cycles / 1e6:,.1f} M", static)
    )
    return found


def _links(answer: Answer) -> list[Line]:
    figures, target = answer.figures or {}, answer.target
    name = times.link(target.machine)
    totals = times.totals(target, figures)
    if totals is None:
        return [(f"bytes over {name}", UNKNOWN, "")]
    found: list[Line] = []
    for kind, total in totals.items():
        beside = 1 - total.alone / total.wire if total.wire else 0.0
        remark = f"{total.runs:,} runs of {total.count}, {beside:.0%} asynchronous"
        found.append((f"  {kind}", gigabytes(total.wire), remark))
    wire = sum(total.wire for total in totals.values())
    alone = sum(total.alone for total in totals.values())
    remark = f"a chip and step, {gigabytes(alone)} in stand-alone operations"
    return [*found, (f"bytes over {name}", gigabytes(wire), remark)]


def _predicted(answer: Answer) -> list[Line]:
    target, figures = answer.target, answer.figures or {}
    line = times.roofline(target, figures)
    found: list[Line] = []
    if line["seconds"]:
        each = ", ".join(f"{part} {milliseconds(line[part])}" for part in list(line)[:3])
        found.append(("roofline", milliseconds(line["seconds"]), each))
    told = answer.predicted
    if not told:
        return [*found, ("predicted step", UNKNOWN, "")]
    built = times.parts(target, figures) or {}
    each = ", ".join(f"{part} {milliseconds(seconds)}" for part, seconds in built.items())
    each = each or source(answer).lstrip(", ")
    mfu = ", ".join(f"{share:.1%} ({name})" for name, share in told["mfu"].items())
    rate = told["tokens_per_second_per_chip"]
    found += [
        ("predicted step", step(answer), each),
        ("predicted speed", f"{rate:,.0f} tokens/s/chip", f"predicted MFU {mfu}"),
        ("predicted run", duration(24 * told["days"]), steps(answer)),
    ]
    if told["cost"] is not None:
        found.append(("predicted cost", f"{told['cost']:,.0f} $", "at --price a chip-hour"))
    return found


def step(answer: Answer) -> str:
    return milliseconds(answer.predicted["seconds"]) if answer.predicted else UNKNOWN


def source(answer: Answer) -> str:
    """What to say behind a prediction that is not of compilers' cycles."""
    return ", from the roofline" if (answer.predicted or {}).get("of_roofline") else ""


def steps(answer: Answer) -> str:
    """Of the predicted run."""
    found = answer.target.steps
    same = found == answer.target.experiment.run.steps
    return f"{found:,} steps" + ("" if same else ", the config's tokens")


def _compiler(answer: Answer) -> list[Line]:
    figures = answer.figures or {}
    seconds = figures["trace_seconds"], figures["compile_seconds"]
    remark = f"peak {gigabytes(figures['host_bytes'])} of this host, {seconds[0]:.0f} s to trace"
    return [("compiled in", f"{seconds[1]:.0f} s", remark)]


def duration(hours: float) -> str:
    return f"{hours / 24:,.1f} days" if hours >= 48 else f"{hours:,.2g} hours"


def milliseconds(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else f"{1e3 * seconds:,.1f} ms"


def table(found: Sequence[Line]) -> str:
    first, second = (max(len(line[column]) for line in found) for column in (0, 1))
    return "\n".join(f"{a:{first}}  {b:>{second}}  {c}".rstrip() for a, b, c in found)


HEAD = ("machine", "settings", "memory", "predicted step", "tokens/s/chip", "MFU (6N + 12LdT)")


def row(answer: Answer) -> tuple[str, ...]:
    """One target on one line, under HEAD."""
    told: dict[str, Any] = answer.predicted or {}
    held = answer.memory
    size = "does not compile" if held is None else gigabytes(held["needed"])
    if held and not answer.fits:
        size += " does not fit"
    known = (
        step(answer) + source(answer),
        f"{told['tokens_per_second_per_chip']:,.0f}",
        f"{told['mfu']['6N + 12LdT']:.1%}",
    ) if told else (UNKNOWN,) * 3  # fmt: skip
    return (answer.target.machine.name, answer.target.settings, size, *known)


def rows(answers: Sequence[Answer]) -> str:
    cells = [HEAD, *map(row, answers)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )
