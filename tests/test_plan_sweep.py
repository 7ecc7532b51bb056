"""Other settings: the nearest that fits, those that none beats, what is not worth compiling."""

import pytest

from biomedlm_jax import plan
from biomedlm_jax.compilers.topologies import named
from biomedlm_jax.planning import sweep, words
from biomedlm_jax.planning.target import (
    target,
)
from tests.conftest import TINY, changed
from tests.planned import PUBLISHED, V5E, Told, asked


def test_what_does_not_fit_is_answered_with_the_nearest_that_does():
    compiler = Told(activations=6e9)
    answer = asked(compiler, target(PUBLISHED, V5E))
    assert not answer.fits
    said = plan.short_of(answer, lambda one: asked(compiler, one), PUBLISHED)
    assert "GB too much a chip; the nearest that fits is data 16 x fsdp 16, 4 a chip" in said
    assert said.endswith("--config.model.remat=full")
    assert len(compiler.asked) == 2, "the one that changes least is tried first"

    compiler = Told(activations=60e9)
    answer = asked(compiler, target(PUBLISHED, V5E))
    near = sweep.nearest(answer, lambda one: asked(compiler, one))
    assert near.fits
    assert len(compiler.asked) <= sweep.TRIES
    compiler = Told(activations=6e12)
    answer = asked(compiler, target(PUBLISHED, V5E))
    compiler.asked.clear()
    said = plan.short_of(answer, lambda one: asked(compiler, one), PUBLISHED)
    assert compiler.asked
    assert f"none of the {len(compiler.asked)} that were tried fits" in said


@pytest.mark.parametrize("start", [PUBLISHED, changed(PUBLISHED, mesh__data=-1)])
def test_the_config_with_the_flags_is_the_setting_that_was_found(start):
    """What --mesh and --batch_per_chip changed is no setting of the config's."""
    base = target(start, V5E, plan.meshes(["32x8"])[0], 8)
    for one in (base, sweep.changed(base, remat="full", accumulate=2, per_chip=2)):
        flags = dict(flag.split("=") for flag in plan.overrides(start, one))
        changes = {}
        for name, value in flags.items():
            name = name.removeprefix("--config.").replace(".", "__")
            changes[name] = value if name == "model__remat" else int(value)
        assert target(changed(start, **changes), V5E).experiment == one.experiment


def test_the_same_setting_is_compiled_once():
    sizes = [None, 4, 4, 2]
    assert len(plan.different(target(PUBLISHED, V5E, None, size) for size in sizes)) == 2
    small = target(TINY, named("l4:1"))
    cut = target(TINY, named("l4:1"), plan.meshes(["-1x1"])[0])
    assert len(plan.swept([small, cut])) == len(set(plan.swept([small])))


def test_a_sweep_of_nothing_that_can_fit_says_why(capsys):
    one = target(PUBLISHED, named("l4:1"), plan.meshes(["1x1"])[0], 2)
    assert plan.swept([one]) == []
    said = capsys.readouterr().out
    assert "l4:1: nothing was compiled. State and gradients, which every step holds, are" in said


def test_the_nearest_keeps_the_batch_as_long_as_it_can():
    order = list(sweep.nearer(target(PUBLISHED, V5E)))
    batches = [one.experiment.data.batch for one in order]
    assert batches == sorted(batches, reverse=True)
    assert order[0].experiment.model.remat == "full"
    assert order[0].axes == target(PUBLISHED, V5E).axes
    assert all(one.axes["fsdp"] >= 16 for one in order)


def test_the_front_holds_what_none_beats():
    compiler = Told(activations=1e9, refuse=lambda run: run.mesh.fsdp == 64)
    targets = sweep.many(target(PUBLISHED, V5E))
    assert {one.experiment.model.remat for one in targets} == set(sweep.REMAT)
    assert {one.experiment.data.batch for one in targets} == {512, 1024, 2048}
    answers = plan.answers(targets, lambda one: asked(compiler, one))
    front = sweep.pareto(answers)
    assert any(one.refused for one in answers)
    assert all(one.fits for one in front)

    def beats(a, b):
        held = a.memory["needed"], b.memory["needed"]
        fast = [x.predicted["tokens_per_second_per_chip"] for x in (a, b)]
        return (
            held[0] <= held[1] and fast[0] >= fast[1] and (held[0], fast[0]) != (held[1], fast[1])
        )

    able = [one for one in answers if one.fits and one.predicted]
    for one in front:
        assert not any(beats(other, one) for other in able)
    for one in able:
        assert any(beats(other, one) for other in front) or any(
            other.memory["needed"] == one.memory["needed"] for other in front
        )
    assert [x.memory["needed"] for x in front] == sorted(x.memory["needed"] for x in front)


def test_what_can_not_fit_is_not_compiled():
    full = sweep.changed(target(PUBLISHED, V5E), remat="full")
    failed = asked(Told(activations=60e9), full)
    assert not failed.fits
    assert sweep.hopeless(target(PUBLISHED, V5E), [failed]), "it keeps more"
    assert sweep.hopeless(sweep.changed(full, per_chip=8), [failed])
    assert sweep.hopeless(sweep.changed(full, mesh={**full.axes, "data": 1, "fsdp": 256}), [failed])
    assert not sweep.hopeless(sweep.changed(full, per_chip=2), [failed])
    assert not sweep.hopeless(sweep.changed(full, accumulate=2), [failed])
    asked_all, asked_few = Told(activations=6e9), Told(activations=6e9)
    targets = sweep.many(target(PUBLISHED, V5E))
    everything = plan.answers(targets, lambda one: asked(asked_all, one))
    some = plan.answers(targets, lambda one: asked(asked_few, one), skip=True)
    assert len(asked_few.asked) < len(asked_all.asked)
    shown = [words.rows(sweep.pareto(found)) for found in (everything, some)]
    assert shown[0] == shown[1]


def test_a_larger_fsdp_is_tried_where_half_a_gigabyte_is_missing():
    machine = named("v5e:4x4")
    one = target(PUBLISHED, machine, plan.meshes(["4x4"])[0], 8)
    needed = asked(Told(activations=0), one).memory["needed"]
    missing = machine.chip.memory + 0.5e9 - needed
    compiler = Told(activations=missing / 8)
    failed = asked(compiler, one)
    assert failed.memory["needed"] == pytest.approx(machine.chip.memory + 0.5e9, abs=1e3)
    for fsdp in (8, 16):
        mesh = {**one.axes, "data": 16 // fsdp, "fsdp": fsdp}
        larger = sweep.changed(one, mesh=mesh)
        assert not sweep.hopeless(larger, [failed])
        assert asked(compiler, larger).fits
    smaller = sweep.changed(one, mesh={**one.axes, "data": 8, "fsdp": 2})
    assert sweep.hopeless(smaller, [failed])


def test_machines_have_fronts_of_their_own():
    pair = [
        asked(Told(), target(PUBLISHED, named(name), None, 4))
        for name in ("v5e:16x16", "v6e:16x16")
    ]
    assert sweep.pareto(pair) == pair
