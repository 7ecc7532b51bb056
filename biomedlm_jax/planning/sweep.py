"""Other settings: which to try, the nearest that fits, which of many are worth having."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from biomedlm_jax.entry import UserError
from biomedlm_jax.planning import memory
from biomedlm_jax.planning.answer import Answer
from biomedlm_jax.planning.target import Target, target

REMAT = ("none", "named", "full")  # from most memory to least
TRIES = 8  # programs that are compiled in search of one that fits


def changed(
    old: Target,
    *,
    remat: str | None = None,
    accumulate: int | None = None,
    mesh: dict[str, int] | None = None,
    per_chip: int | None = None,
) -> Target | None:
    """The target with other settings; None where they do not divide."""
    experiment = old.experiment
    if remat:
        changes: dict[str, Any] = {"remat": remat}
        model = dataclasses.replace(experiment.model, **changes)
        experiment = dataclasses.replace(experiment, model=model)
    if accumulate:
        run = dataclasses.replace(experiment.run, accumulate=accumulate)
        experiment = dataclasses.replace(experiment, run=run)
    try:
        return target(experiment, old.machine, mesh, per_chip, old.config_batch)
    except UserError:
        return None


def meshes(old: Target) -> Iterator[dict[str, int]]:
    """Shapes with `data` and `fsdp` cut otherwise; `model` and `context` as they are."""
    axes = old.axes
    both = axes["data"] * axes["fsdp"]
    for fsdp in (n for n in range(1, both + 1) if both % n == 0):
        yield {**axes, "data": both // fsdp, "fsdp": fsdp}


def many(old: Target) -> list[Target]:
    """What a sweep tries: meshes, remat policies and batches around the target's own."""
    per_chip = old.experiment.data.batch / old.machine.devices
    sizes = sorted({max(1, int(per_chip * factor)) for factor in (0.5, 1, 2)})
    found = [
        changed(old, remat=remat, mesh=mesh, per_chip=size)
        for mesh in meshes(old)
        for remat in REMAT
        for size in sizes
    ]
    roomy = [t for t in found if t and memory.least(t) <= t.machine.chip.memory]
    return list(dict.fromkeys(roomy))


def nearer(old: Target) -> Iterator[Target]:
    """Targets that take less memory, those first that change least: what is computed twice, then
    how the state is cut, then the rows that go through at once, and last the batch itself."""
    model, run = old.experiment.model, old.experiment.run
    remats = REMAT[REMAT.index(model.remat) :]
    cuts = [mesh for mesh in meshes(old) if mesh["fsdp"] >= old.axes["fsdp"]]
    rows = old.experiment.data.batch // (old.axes["data"] * old.axes["fsdp"])
    pieces = [n for n in range(run.accumulate, rows + 1) if rows % n == 0]
    per_chip = old.experiment.data.batch // old.machine.devices
    smaller = [size for size in (per_chip // 2, per_chip // 4, 1) if 0 < size < per_chip]
    tried = [changed(old, remat=remat) for remat in remats]
    tried += [changed(old, remat=remat, mesh=mesh) for mesh in cuts for remat in remats]
    tried += [
        changed(old, remat=remats[-1], mesh=mesh, accumulate=n) for n in pieces for mesh in cuts
    ]
    tried += [
        changed(old, remat=remats[-1], mesh=mesh, accumulate=1, per_chip=size)
        for size in smaller
        for mesh in cuts
    ]
    found = (t for t in tried if t and t != old and memory.least(t) <= t.machine.chip.memory)
    yield from dict.fromkeys(found)


def nearest(old: Answer, answer: Callable[[Target], Answer]) -> Answer | None:
    """The first of `nearer` that fits, of at most TRIES that are compiled."""
    known, tries = [old], 0
    for one in nearer(old.target):
        if hopeless(one, known):
            continue
        known.append(answer(one))
        tries += 1
        if known[-1].fits:
            return known[-1]
        if tries == TRIES:
            break
    return None


def hopeless(one: Target, known: Iterable[Answer]) -> bool:
    """Whether it can not fit, because what another took that keeps no more, besides `memory.least`,
    leaves no room for what this one takes at least. Where `fsdp` is larger than the other's, what
    may have been gradients on their way is less too, and counts nothing."""
    limit = one.machine.chip.memory
    for other in known:
        if other.fits or other.memory is None or other.target.machine != one.machine:
            continue
        alike = _rows(other.target) <= _rows(one) and _remat(other.target) >= _remat(one)
        besides = other.memory["needed"] - memory.least(other.target)
        if one.axes["fsdp"] > other.target.axes["fsdp"]:
            besides -= memory.scattered(other.target)
        if alike and _pieces(other.target) == _pieces(one) and memory.least(one) + besides > limit:
            return True
    return False


def _rows(one: Target) -> float:
    """That go through the model of a chip at once."""
    axes, experiment = one.axes, one.experiment
    return experiment.data.batch / (axes["data"] * axes["fsdp"]) / experiment.run.accumulate


def _remat(one: Target) -> int:
    return REMAT.index(one.experiment.model.remat)


def _pieces(one: Target) -> tuple[int, int]:
    """In which a layer and a sequence are computed."""
    return one.axes["model"], one.axes["context"]


def pareto(answers: Iterable[Answer]) -> list[Answer]:
    """Those that fit and that no other of the same machine beats in both memory and predicted time
    of a token; of each machine from the least memory to the least time."""
    machines: dict[str, list[Answer]] = {}
    for answer in answers:
        machines.setdefault(answer.target.machine.name, []).append(answer)
    return [one for each in machines.values() for one in _front(each)]


def _front(answers: Iterable[Answer]) -> list[Answer]:

    def cost(answer: Answer) -> tuple[int, float]:
        assert answer.memory
        assert answer.predicted
        return answer.memory["needed"], -answer.predicted["tokens_per_second_per_chip"]

    known = sorted((a for a in answers if a.fits and a.predicted), key=cost)
    front: list[Answer] = []
    for answer in known:
        if not front or cost(answer)[1] < cost(front[-1])[1]:
            front.append(answer)
    return front
