"""What a report says, section by section."""

import re
from collections.abc import Callable
from typing import Any

from biomedlm_jax.metrics import duration
from biomedlm_jax.reports import happened, page, times
from biomedlm_jax.reports.charts import Curve, bars, columns, legend, number, percent, plot, written
from biomedlm_jax.reports.page import Section, figure, figures, grid, notes, table, text
from biomedlm_jax.reports.record import Line, Record, finite, series
from biomedlm_jax.settings import flat

LAYERS = {  # in the order of the forward pass
    "tokens": "token embedding",
    "positions": "position embedding",
    "ln_1": "LayerNorm 1",
    "qkv": "queries, keys, values",
    "out": "attention output",
    "ln_2": "LayerNorm 2",
    "up": "MLP up",
    "down": "MLP down",
    "ln_f": "last LayerNorm",
}
SHOWN = 6  # continuations of one prompt that are not folded away
BITS = "bits_per_byte"


def all_of(record: Record) -> list[Section]:
    return [
        Section("Summary", summary(record)),
        Section("Learning", learning(record)),
        Section("Held-out text", held_out(record)),
        Section("Speed", speed(record)),
        Section("Time", time_budget(record)),
        Section("Events", happened.blocks(record)),
        Section("Continuations", continuations(record)),
        Section("Settings", [page.settings(_by_section(flat(record.claim.experiment)))]),
        Section("Environment", environment(record)),
        Section("Data", data(record)),
    ]


def status(record: Record) -> str:
    """One sentence: how far it is, and whether it goes on."""
    step, steps = record.step, record.claim.experiment.run.steps
    if not record.events and not record.train:
        return f"Nothing is known of its progress; {steps:,} steps are planned."
    last = record.events[-1]["event"] if record.events else ""
    how = {"end": "finished", "preempted": "stopped by a preemption"}.get(last, "not finished")
    if how == "not finished" and step >= steps:
        how = "all steps done"
    return f"Step {step:,} of {steps:,} ({percent(step, steps)}), {how}."


def summary(record: Record) -> list[Any]:
    experiment = record.claim.experiment
    model, batch, starts = experiment.model, experiment.data.batch, record.of("start")
    seen = ("tokens seen", number(record.step * batch * model.context))
    scored = ("held-out bits per byte", _last(record.evaluations, BITS))
    if experiment.task is not None:
        seen = ("items seen", number(record.step * batch))
        scored = ("accuracy on dev", _last(record.evaluations, "accuracy"))
    wanted: list[tuple[str, str | None]] = [
        ("parameters", number(model.parameters)),
        seen,
        ("training loss, last", _last(record.train, "loss")),
        scored,
        ("MFU (6N + 12LdT), median", _median(record.train, "mfu_6n_12ldt", percent)),
        ("tokens per second, median", _median(record.train, "tokens_per_second", number)),
        ("goodput", None if (share := times.goodput(record)) is None else percent(share)),
        ("restarts", f"{len(starts) - 1:,}" if starts else None),
    ]
    found = [figures([(name, "not known" if x is None else x) for name, x in wanted])]
    return [*found, notes(record.notes)] if record.notes else found


def learning(record: Record) -> list[Any]:
    train, end = record.train, record.step
    losses = [
        Curve("training", series(train, "loss"), 0),
        Curve("held out", series(record.evaluations, "held_out_loss"), 1, dots=True),
    ]
    caption = f"Loss, {record.claim.experiment.unit}"
    found = _figure(caption, losses, end, height=300, logarithmic=True)
    few = _figure(
        "Learning rate", [Curve("rate", series(train, "learning_rate"), 3)], end, height=190
    )
    norms = [
        Curve("gradient", series(train, "grad_norm"), 0),
        Curve("update", series(train, "update_norm"), 5),
    ]
    clip = record.claim.experiment.optimizer.clip_norm
    caption = f"Norms of gradient (clipped at {number(clip)}) and update"
    few += _figure(caption, norms, end, height=190, logarithmic=True)
    size = [Curve("parameters", series(train, "param_norm"), 6)]
    few += _figure("Norm of the parameters", size, end, height=190)
    skipped = [Curve("left out", series(train, "skipped"), 4)]
    if any(value for _, value in skipped[0].points):
        few += _figure("Updates left out in a row", skipped, end, height=190)
    small = []
    for layer in [*LAYERS, *_other_layers(train)]:
        curves = [
            Curve("gradient", series(train, f"grad_norm/{layer}"), 0),
            Curve("update", series(train, f"update_norm/{layer}"), 5),
        ]
        name = LAYERS.get(layer, layer)
        small += _figure(name, curves, end, height=110, logarithmic=True, keys=False)
    if few:
        found.append(grid(few, "two" if len(few) % 3 else "three"))
    if small:
        found += [page.heading("Norms by kind of layer"), legend(norms), grid(small, "three")]
    return found or [text("The run has left no metrics of training.")]


def held_out(record: Record) -> list[Any]:
    if not record.evaluations:
        return [text("Nothing was evaluated.")]
    last = record.evaluations[-1]
    parts = {
        name.removeprefix(f"{BITS}/"): float(value)
        for name, value in last.items()
        if name.startswith(f"{BITS}/") and finite(value)
    }
    years = {
        int(found[1]): value
        for name, value in parts.items()
        if (found := re.fullmatch(r"year_(\d{4})", name))
    }
    sources = {name: x for name, x in parts.items() if not re.fullmatch(r"year_\d{4}", name)}
    curves = [Curve("all", series(record.evaluations, BITS), 0, dots=True)]
    for place, name in enumerate(sorted(sources)[:6] if len(sources) > 1 else []):
        points = series(record.evaluations, f"{BITS}/{name}")
        curves.append(Curve(_plain(name), points, 1 + place, dots=True))
    found = _figure("Bits per byte", curves, record.step, logarithmic=True)
    pair, at = [], f"at step {last['step']:,}"
    if sources:
        shown = [(_plain(name), x, f"{x:.4f}") for name, x in sorted(sources.items())]
        pair.append(figure(f"Bits per byte by source, {at}", bars(shown)))
    if years:
        pair.append(figure(f"Bits per byte by year, {at}", columns(years, "bits per byte")))
    if pair:
        found.append(grid(pair, "two"))
    if parts:
        rows = [[_plain(name), f"{value:.4f}"] for name, value in sorted(parts.items())]
        folded = table(["part", "bits per byte"], rows, right=[1])
        found.append(page.folded("The same as a table", folded))
    return found


def speed(record: Record) -> list[Any]:
    train, end = record.train, record.step
    marks = [("spikes", "spike", 5), ("left out", "skipped", 1), ("saves", "save", 3)]
    rows = [(name, [event["step"] for event in record.of(kind)], colour)
            for name, kind, colour in marks]  # fmt: skip
    restarts = [event["step"] for event in record.of("start")[1:]]
    rows.insert(0, ("restarts", restarts, 4))
    caption = "Tokens per second; a line across is a restart, at the step that it went on from"
    curves = [Curve("tokens per second", series(train, "tokens_per_second"), 0)]
    found = _figure(caption, curves, end, rules=restarts, rows=rows)
    use = [
        Curve("6N + 12LdT", series(train, "mfu_6n_12ldt"), 0),
        Curve("6N", series(train, "mfu_6n"), 2),
    ]
    pair = _figure("Model flops utilization (MFU)", use, end, form=percent)
    shares = [
        Curve("waiting for data", series(train, "data_wait"), 5),
        Curve("saves", series(train, "save_stall"), 3),
    ]
    pair += _figure("Share of the time that stands still", shares, end, form=percent)
    if pair:
        found.append(grid(pair, "two"))
    if memory := series(train, "device_memory_bytes"):
        most = max(value for _, value in memory)
        found.append(text(f"Most memory in use on a device: {most / 1e9:.2f} GB."))
    return found or [text("The run has left no metrics of its speed.")]


def time_budget(record: Record) -> list[Any]:
    parts = times.budget(record)
    if parts is None:
        return [text("Without events nothing is known of where the time went.")]
    whole = sum(parts.values())
    shown = [
        (name, seconds, f"{duration(seconds)}  ({percent(seconds, whole)})")
        for name, seconds in parts.items()
    ]
    caption = f"{duration(whole)} since the run was first started"
    return [figure(caption, bars(shown, colours=True))]


def continuations(record: Record) -> list[Any]:
    if not record.samples:
        return [text("The run has written no continuations.")]
    prompts: dict[tuple[str, str], dict[int, str]] = {}
    for sample in record.samples:
        prompts.setdefault((sample["document"], sample["prompt"]), {})[sample["step"]] = sample[
            "text"
        ]
    found = [text("What the model writes after the first words of documents it has never seen, "
                  "the likeliest token each time.")]  # fmt: skip
    for (document, prompt), texts in prompts.items():
        steps = sorted(texts)
        some = steps
        if len(steps) > SHOWN:
            some = [steps[round(n * (len(steps) - 1) / (SHOWN - 1))] for n in range(SHOWN)]
        rows = {step: [step, texts[step] or "(the end of the document)"] for step in steps}
        found += [page.heading(document), page.quote(prompt)]
        found.append(table(["step", "continuation"], [rows[step] for step in some], right=[0]))
        if len(steps) > SHOWN:
            every = table(["step", "continuation"], list(rows.values()), right=[0])
            found.append(page.folded(f"All {len(steps):,} steps", every))
    return found


def environment(record: Record) -> list[Any]:
    """What the run ran on, once for all starts that had the same."""
    places: list[tuple[dict[str, str], list[int]]] = []
    for start in record.of("start"):
        known = {k: v for k, v in start.items() if k not in ("time", "event", "step")}
        shown = {}
        for name, value in known.items():
            if isinstance(value, dict):
                shown[name] = ", ".join(f"{k} {written(v)}" for k, v in value.items())
            elif name == "peak_flops" and finite(value):
                shown[name] = number(float(value))
            else:
                shown[name] = written(value)
        if places and places[-1][0] == shown:
            places[-1][1].append(start["step"])
        else:
            places.append((shown, [start["step"]]))
    if not places:
        return [text("No start of the run is recorded.")]
    found, before = [], {}
    for shown, steps in places:
        if len(places) > 1:
            where = ", ".join(f"{step:,}" for step in steps[:10])
            rest = ", what was not as before" if before else ""
            found.append(page.heading(f"Started at step {where}{rest}"))
        before, shown = shown, {k: v for k, v in shown.items() if before.get(k) != v}
        found.append(
            table(["what", "value"], [[_plain(name), value] for name, value in shown.items()])
        )
    return found


def data(record: Record) -> list[Any]:
    claim, manifest, task = record.claim, record.manifest, record.claim.experiment.task
    what = "training tokens" if task is None else "training items"
    rows = [[what, claim.tokens_sha256], ["vocabulary", claim.vocabulary_sha256]]
    hashes = table(["trained on", "sha256"], rows, unbroken=[0])
    if task is not None:
        return [text(f"Items of {task.train}, from {task.benchmarks}"), hashes]
    found = [text(f"Store: {claim.experiment.data.store}")]
    if manifest is None:
        return [*found, text("Its manifest could not be read, so only hashes are known."), hashes]
    splits, vocabulary = manifest.get("splits"), manifest.get("vocabulary")
    if isinstance(splits, dict):
        names = ("documents", "tokens", "bytes")
        lines = [[name, *(_count(part, n) for n in names)] for name, part in splits.items()]
        found.append(table(["split", *names], lines, right=[1, 2, 3]))
        now = _of(splits.get("train"), "sha256")
        same = now == claim.tokens_sha256
        words = "still are those" if same else "are NOT those"
        found.append(text(f"The training tokens of the store {words} that the run began with."))
        tokens = _of(splits.get("train"), "tokens")
        if finite(tokens) and tokens > 0:
            seen = record.step * claim.experiment.data.batch * claim.experiment.model.context
            found.append(text(f"The run has seen {seen / tokens:.2f} times as many tokens."))
    if isinstance(vocabulary, dict):
        found.append(text(f"Vocabulary: {_count(vocabulary, 'size')} tokens."))
    return [*found, hashes]


def _figure(
    caption: str, curves: list[Curve], end: int, *, keys: bool = True, **options: Any
) -> list[Any]:
    """Nothing where there is nothing to draw."""
    if not any(curve.points for curve in curves):
        return []
    return [figure(caption, plot(curves, end, **options), curves if keys else [])]


def _last(lines: list[Line], name: str) -> str | None:
    points = series(lines, name)
    return f"{points[-1][1]:.4f}" if points else None


def _median(lines: list[Line], name: str, form: Callable[[float], str]) -> str | None:
    values = sorted(value for _, value in series(lines, name))
    return form(values[len(values) // 2]) if values else None


def _other_layers(lines: list[Line]) -> list[str]:
    names = {name.partition("/")[2] for line in lines for name in line if "_norm/" in name}
    return sorted(names - LAYERS.keys())[:20]


def _by_section(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, _, setting = name.rpartition(".")
        found.setdefault(section or "experiment", {})[setting] = value
    return found


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _of(part: Any, name: str) -> Any:
    return part[name] if isinstance(part, dict) and name in part else None


def _count(part: Any, name: str) -> str:
    value = _of(part, name)
    return f"{value:,}" if type(value) is int else "not known"
