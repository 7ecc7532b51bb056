"""The planner's questions and answers, with a compiler that says what it is told to say."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import jax
import pytest
from etils import epath
from lxml import etree

from biomedlm_jax import plan
from biomedlm_jax.compilers import chips, cost
from biomedlm_jax.compilers.child import CompileError, MachineError
from biomedlm_jax.compilers.topologies import named
from biomedlm_jax.compilers.traffic import Collective
from biomedlm_jax.config import Experiment, build
from biomedlm_jax.entry import UserError
from biomedlm_jax.planning import memory, sweep, times, words
from biomedlm_jax.planning.answer import ask
from biomedlm_jax.planning.page import page
from biomedlm_jax.planning.target import (
    attention_flops,
    matrix_flops,
    program,
    target,
    utilization,
)
from configs import pretrain_2p7b
from tests.conftest import ROOT, TINY, changed

PUBLISHED = build(Experiment, pretrain_2p7b.get_config().to_dict())
V5E = named("v5e:16x16")


class Told:
    """In place of `Programs`: takes activations by remat and rows, cycles by what is computed
    twice; refuses what `refuse` names."""

    def __init__(self, activations=1e9, refuse=None):
        self.activations, self.refuse, self.asked = activations, refuse, []

    def program(self, machine, make, text_to=None, *, experiment):
        del make, text_to
        run = build(Experiment, experiment)
        self.asked.append(run)
        if self.refuse and self.refuse(run):
            raise CompileError("Mosaic failed to compile TPU kernel")
        one = target(run, named(machine))
        state = sum(memory.state(one).values())
        share = {"none": 4.0, "named": 1.0, "full": 0.2}[run.model.remat] / run.run.accumulate
        per_chip = run.data.batch / one.machine.devices
        wanted = int(share * per_chip * self.activations)
        twice = {"none": 1.0, "named": 1.05, "full": 1.3}[run.model.remat]
        flops = int(twice * matrix_flops(run.model, one.tokens) / one.machine.devices)
        gather = dict(
            kind="all-gather", runs=64, bytes=int(1e8), alone=False, operation="gather", block=16
        )
        reduce = dict(
            kind="all-reduce", runs=1, bytes=int(2e8), alone=True, operation="psum", block=None
        )
        dear = dict(name="fusion.1", opcode="fusion", shape="bf16[4]", operation="<b>dot</b>")
        return dict(
            trace_seconds=2.0,
            compile_seconds=30.0,
            host_bytes=int(1.5e9),
            memory=dict(arguments=state, results=0, temporary=wanted, code=10, peak=state + wanted),
            matrix_flops=flops,
            xla_cycles=flops // 100_000,
            kernel_runs={"attention_forward.1": 32},
            kernel_cycles=20_000_000,
            collectives=[one | {"operation": "psum"} for one in (gather, reduce)],
            dearest=[dear | dict(runs=32, cycles=5_000_000)],
        )


def asked(compiler, one, price=None):
    return ask(compiler, one, price)


def test_a_step_is_built_from_cycles_kernels_and_what_stands_alone():
    one = target(PUBLISHED, V5E)
    answer = asked(Told(), one, price=1.2)
    figures, told = answer.figures, answer.predicted
    clock = 197e12 / 131_072
    ring = 200e9 / 2  # one of the two axes of the network
    alone = 2 * 255 / 256 * 2e8
    seconds = (figures["xla_cycles"] + 20e6) / clock + alone / ring
    assert told["seconds"] == pytest.approx(seconds)
    assert told["tokens_per_second_per_chip"] == pytest.approx(4 * 1024 / seconds)
    assert told["days"] == pytest.approx(seconds * 300_000 / 86_400)
    assert told["cost"] == pytest.approx(1.2 * 256 * 24 * told["days"])
    line = times.roofline(one, figures)
    wire = 255 / 256 * (64 * 1e8 + 2 * 2e8)
    assert line["links"] == pytest.approx(wire / 200e9)
    scores = attention_flops(PUBLISHED.model, one.tokens) / 256
    assert line["compute"] == pytest.approx((figures["matrix_flops"] + scores) / 197e12)
    assert line["seconds"] == max(line["compute"], line["memory"], line["links"])
    assert line["seconds"] < seconds
    assert times.predicted(one, figures)["cost"] is None


def test_utilization_by_both_conventions():
    model = PUBLISHED.model
    found = utilization(model, tokens=1000, seconds=2.0, peak=1e15)
    assert found["6N + 12LdT"] == model.flops_per_token * 1000 / 2e15
    scores = 6 * model.layers * model.width * model.context
    assert found["6N + 6LdT"] == pytest.approx(found["6N + 12LdT"] - scores * 1000 / 2e15)


def test_a_gpu_has_no_estimate_and_is_said_at_best():
    figures = Told().program(
        "h100:16", "", experiment=dataclasses.asdict(target(PUBLISHED, named("h100:16")).experiment)
    ) | dict(xla_cycles=None, kernel_cycles=None)
    one = target(PUBLISHED, named("h100:16"))
    assert times.parts(one, figures) is None
    told = times.predicted(one, figures)
    assert told["at_best"]
    assert told["seconds"] == times.roofline(one, figures)["seconds"]
    assert [times.link(named(name)) for name in ("h100:16", "h100:8", "l4:2")] == [
        "NVLink and network", "NVLink", "PCIe"
    ]  # fmt: skip


def test_only_what_leaves_a_host_of_gpus_passes_the_network():
    inside = Collective("all-gather", 1, 10**9, True, "", block=8)
    across = dataclasses.replace(inside, block=16)
    unknown = dataclasses.replace(inside, block=None)
    two_hosts = named("h100:16")
    speeds = [times.speed(two_hosts, one) for one in (inside, across, unknown)]
    assert speeds == [450e9, 50e9, 50e9]
    assert times.speed(named("h100:8"), unknown) == 450e9
    assert times.speed(named("l4:2"), unknown) == 32e9
    assert times.speed(named("v5e:16x16"), across) == 200e9


def test_what_is_not_counted_is_not_known_and_never_zero():
    one = target(PUBLISHED, V5E)
    figures = asked(Told(), one).figures | dict(
        matrix_flops=None, xla_cycles=None, kernel_runs=None, kernel_cycles=None
    )
    figures |= dict(collectives=None, dearest=None, uncounted="loop while.1 has no end")
    assert times.predicted(one, figures) is None
    answer = dataclasses.replace(asked(Told(), one), figures=figures, predicted=None)
    text = words.table(words.lines(answer))
    assert text.count("not known") == 5
    assert "loop while.1 has no end" in text
    assert answer.record()["collectives"] is None
    assert "not known" in page([answer], None, "a command")


def test_flops_of_a_compiled_step_are_those_of_the_model():
    """Nothing computed twice, attention in the text: on this machine's CPU."""
    experiment = changed(TINY, model__attention="reference", model__context=128, model__vocab=256)
    function, operands = program(jax.devices()[0], experiment=dataclasses.asdict(experiment))
    found = cost.read(function.lower(*operands).compile().as_text()).matrix_flops
    tokens = experiment.data.batch * experiment.model.context
    model = experiment.model
    scores = 2 * attention_flops(model, tokens)  # the reference computes all of them
    assert found == pytest.approx(matrix_flops(model, tokens) + scores, rel=0.01)


def test_what_does_not_fit_is_answered_with_the_nearest_that_does():
    compiler = Told(activations=6e9)
    answer = asked(compiler, target(PUBLISHED, V5E))
    assert not answer.fits
    said = plan.short_of(answer, lambda one: asked(compiler, one))
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
    assert "no other remat" in plan.short_of(answer, lambda one: asked(compiler, one))


def test_what_the_compiler_refuses_for_its_size_is_no_other_refusal(monkeypatch):
    def too_large(*arguments, **options):
        raise CompileError(
            "JaxRuntimeError: RESOURCE_EXHAUSTED: the total memory required for HLO temporaries "
            "(20.50G) exceeds available HBM (15.75G). HLO module: jit_step."
        )

    compiler = Told()
    monkeypatch.setattr(compiler, "program", too_large)
    answer = asked(compiler, target(PUBLISHED, V5E))
    assert not answer.fits
    assert answer.refused is None
    assert answer.memory["needed"] == sum(answer.memory["parts"].values()) == 20.5 * 2**30
    text = words.table(words.lines(answer))
    assert "5.10 GB MORE THAN THE CHIP HAS" in text
    assert json.dumps(answer.record())


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


def test_machines_have_fronts_of_their_own():
    pair = [
        asked(Told(), target(PUBLISHED, named(name), None, 4))
        for name in ("v5e:16x16", "v6e:16x16")
    ]
    assert sweep.pareto(pair) == pair


def test_progress_names_what_does_not_compile(capsys):
    compiler = Told(refuse=lambda run: run.model.remat == "none")
    targets = [target(PUBLISHED, V5E), sweep.changed(target(PUBLISHED, V5E), remat="none")]
    answers = plan.answers(targets, lambda one: asked(compiler, one))
    shown = capsys.readouterr()
    assert not shown.out
    assert "does not compile: v5e:16x16, data 16 x fsdp 16, 4 a chip, remat none" in shown.err
    assert "compiles" in words.table(words.lines(answers[1]))
    assert "does not compile" in words.rows(answers)


def test_the_page_holds_everything_and_text_is_text():
    answers = [
        asked(Told(), target(PUBLISHED, V5E), 1.0),
        asked(Told(), target(PUBLISHED, V5E, None, 2)),
    ]
    made = page(answers, None, "python -m biomedlm_jax.plan")
    root = etree.HTML(made)
    assert len(root.findall(".//svg")) >= 8
    assert "<b>dot" not in made
    assert "predicted days" in made or "predicted run" in made
    assert "data sheets" in made
    assert page(answers, answers[:1], "x").count("<section") < made.count("<section")


def test_answers_are_written_whole(tmp_path, capsys):
    plan.write("JSON", str(tmp_path / "a/b.json"), lambda: "{}")
    assert json.loads((tmp_path / "a/b.json").read_text()) == {}
    with pytest.raises(ZeroDivisionError):
        plan.write("JSON", str(tmp_path / "c.json"), lambda: str(1 / 0))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert epath.Path(tmp_path / "a/b.json").exists()
    assert "written to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v7:2x2", "there is no 'v7' in the table; known are v4:"),
        ("v5e:16", "v5e is 2 numbers of chips.*v5e:16x16"),
        ("v5p:4x4", "v5p is 3 numbers of chips.*v5p:4x4x8"),
        ("v5e:0x4", "2 numbers of chips"),
        ("h100:x", "say how many, as h100:8"),
        ("h100:12", "12 is no multiple of the 8 GPUs of a host"),
        ("l4:16", "its network to other hosts is not in the table"),
    ],
)
def test_machines_that_there_are_not(name, message):
    with pytest.raises(UserError, match=message):
        named(name)


def test_a_machine_that_the_compiler_does_not_know(monkeypatch):
    def unknown(*arguments, **options):
        raise MachineError("Topology layout is not divisible")

    compiler = Told()
    monkeypatch.setattr(compiler, "program", unknown)
    with pytest.raises(UserError, match=r"--topology=v5e:16x16: Topology layout.*known are"):
        asked(compiler, target(PUBLISHED, V5E))


def test_a_mesh_that_is_not_the_machines():
    with pytest.raises(UserError, match=r"v5e:16x16 has 256 chips: .*config.mesh.fsdp=3 "):
        target(PUBLISHED, V5E, plan.meshes(["2x3"])[0])
    with pytest.raises(UserError, match=r"config.data.batch=1024 does not split"):
        target(PUBLISHED, named("v5p:8x16x16"))
    assert target(PUBLISHED, V5E, plan.meshes(["-1x32"])[0]).axes["data"] == 8
    for wrong in ("16", "axb", "1x2x3x4x5", "0x4"):
        with pytest.raises(UserError, match="two to four numbers"):
            plan.meshes([wrong])
    with pytest.raises(UserError, match="--batch_per_chip=0 is not a positive"):
        plan.batches(["4", "0"])


def test_missing_compilers_are_named_with_what_installs_them(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"libtpu is not installed: pip install libtpu==0\.0\.\d+"):
        plan.check([named("v5e:2x2")])
    with pytest.raises(UserError, match=r"pip install jax-cuda12-plugin==.* jax-cuda12-pjrt=="):
        plan.check([named("h100:8")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--topology is missing; for example"),
        (["--topology=v9:2x2"], "there is no 'v9'"),
        (["--topology=v5e:2x2", "--config.model.dropuot=0.1"], "did you mean dropout"),
        (["--topology=v5e:2x2", "--sweep", "--dump_hlo=x"], "is one file, and of one program"),
        (["--topology=v5e:2x2", "--config.mesh.fsdp=4", "--json=."], "--json=. is a folder"),
    ],
)
def test_mistakes_are_one_line(flags, message):
    command = [sys.executable, "-m", "biomedlm_jax.plan", "--config=configs/pretrain_125m.py"]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_chips_are_known_by_what_jax_calls_them():
    kinds = {
        "TPU v5 lite": "v5e",
        "TPU v5": "v5p",
        "TPU v5p": "v5p",
        "TPU v6 lite": "v6e",
        "NVIDIA A10": "a10",
        "NVIDIA H100 80GB HBM3": "h100",
        "Tesla T4": "t4",
    }
    for kind, name in kinds.items():
        assert chips.of_kind(kind) is chips.CHIPS[name], kind
    assert chips.of_kind("NVIDIA A100-SXM4-40GB").flops == 312e12
    assert chips.of_kind("cpu") is chips.of_kind("NVIDIA L40S") is None
