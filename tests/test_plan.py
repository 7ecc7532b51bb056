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
from biomedlm_jax.entry import UserError
from biomedlm_jax.planning import memory, sweep, times, words
from biomedlm_jax.planning.answer import Answer
from biomedlm_jax.planning.page import page
from biomedlm_jax.planning.target import (
    attention_flops,
    matrix_flops,
    program,
    target,
    utilization,
)
from tests.conftest import ROOT, TINY, changed
from tests.planned import PUBLISHED, V5E, Told, asked


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


def test_a_gpu_has_no_estimate_and_is_said_to_be_of_the_roofline():
    figures = Told().program(
        "h100:16", "", experiment=dataclasses.asdict(target(PUBLISHED, named("h100:16")).experiment)
    ) | dict(xla_cycles=None, kernel_cycles=None)
    one = target(PUBLISHED, named("h100:16"))
    assert times.parts(one, figures) is None
    told = times.predicted(one, figures)
    assert told["of_roofline"]
    assert told["seconds"] == times.roofline(one, figures)["seconds"]
    answer = Answer(one, memory.parts(one, figures["memory"]), figures, told)
    text = words.table(words.lines(answer)) + words.rows([answer]) + plan.shown(answer)
    assert "from the roofline" in text
    assert "No compiler estimates times for GPUs" in text
    assert "XLA's estimated cycles" not in text
    assert "predicted step, from the roofline" in page([answer], None, "x")
    for wrong in ("at best", "<=", "shortest"):
        assert wrong not in text + page([answer], None, "x").partition("</style>")[2]
    assert [times.link(named(name)) for name in ("h100:16", "h100:8", "l4:2")] == [
        "NVLink and network", "NVLink", "PCIe"
    ]  # fmt: skip


def test_only_what_leaves_a_host_of_gpus_passes_the_network():
    inside = Collective("all-gather", 1, 10**9, True, "", block=8, group=8)
    across = dataclasses.replace(inside, block=16)
    unknown = dataclasses.replace(inside, block=None)
    two_hosts = named("h100:16")
    speeds = [times.speed(two_hosts, one) for one in (inside, across, unknown)]
    assert speeds == [450e9, 50e9, 50e9]
    assert times.speed(named("h100:8"), unknown) == 450e9
    assert times.speed(named("l4:2"), unknown) == 32e9
    assert times.speed(named("v5e:16x16"), across) == 200e9


def test_links_of_gpus_carry_what_each_collectives_own_group_sends():
    one = target(PUBLISHED, named("h100:16"))
    figures = asked(Told(), one).figures | dict(xla_cycles=None, kernel_cycles=None)
    gather = dict(kind="all-gather", runs=3, bytes=10**9, alone=True, operation="")
    figures["collectives"] = [gather | dict(block=16, group=2), gather | dict(block=8, group=8)]
    links = times.roofline(one, figures)["links"]
    assert links == pytest.approx(3e9 * (1 / 2 / 50e9 + 7 / 8 / 450e9))
    assert times.totals(one, figures)["all-gather"].wire == pytest.approx(15 / 16 * 6e9)
    figures["collectives"] = [gather | dict(block=None, group=None)]
    assert times.roofline(one, figures)["links"] == pytest.approx(3e9 * 15 / 16 / 50e9)


def test_kernels_that_are_not_known_are_said_with_their_reason():
    one = target(PUBLISHED, V5E)
    why = "attention_forward does not compile alone: Mosaic failed"
    figures = asked(Told(), one).figures | dict(kernel_cycles=None, kernels_unknown=why)
    told = times.predicted(one, figures)
    assert told["of_roofline"]
    answer = Answer(one, memory.parts(one, figures["memory"]), figures, told)
    assert why in words.table(words.lines(answer))
    assert answer.record()["kernels_unknown"] == why
    said = "\n".join(times.assumptions(one, figures))
    assert why in said
    assert "static schedules" not in said
    built = "\n".join(times.assumptions(one, asked(Told(), one).figures))
    assert "static schedules" in built
    assert "the predicted step is the roofline's" not in built


def test_a_program_without_kernels_is_built_from_its_cycles():
    one = target(PUBLISHED, V5E)
    figures = asked(Told(), one).figures | dict(kernel_runs={}, kernel_cycles=0)
    assert times.parts(one, figures)["kernels"] == 0
    assert not times.predicted(one, figures)["of_roofline"]


def test_a_run_of_another_batch_has_the_configs_tokens():
    base, half = target(PUBLISHED, V5E), target(PUBLISHED, V5E, None, 2)
    assert (base.steps, half.steps) == (300_000, 600_000)
    assert sweep.changed(half, remat="full").steps == 600_000
    answers = [asked(Told(), one, 1.0) for one in (base, half)]
    for answer in answers:
        told = answer.predicted
        assert told["steps"] == answer.target.steps
        assert told["days"] == pytest.approx(told["seconds"] * told["steps"] / 86_400)
        hours = told["seconds"] * told["steps"] / 3600
        assert told["cost"] == pytest.approx(256 * hours)
    texts = [words.table(words.lines(answer)) for answer in answers]
    assert "  300,000 steps\n" in texts[0]
    assert "  600,000 steps, the config's tokens\n" in texts[1]


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


def test_how_the_command_ends():
    one = target(PUBLISHED, V5E)
    fits, short = asked(Told(), one), asked(Told(activations=60e9), one)
    refused = asked(Told(refuse=lambda run: True), one)
    for found, swept in (([fits], False), ([fits, short, refused], True)):
        plan.conclude(found, swept)
    for found, swept in (([fits, short], False), ([short, refused], True), ([short], True)):
        with pytest.raises(SystemExit) as end:
            plan.conclude(found, swept)
        assert end.value.code == plan.DOES_NOT_FIT
    for found, swept in (([fits, refused], False), ([refused, refused], True)):
        with pytest.raises(UserError, match="of 2 programs do not compile: Mosaic failed"):
            plan.conclude(found, swept)


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
        ("b200:8", "of h100, .*as many as there are, .*; of .*l4.* at most 8"),
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
        (
            ["--topology=v5e:2x2", "--config.mesh.fsdp=4", "--dump_hlo=none/x"],
            "--dump_hlo=none/x: its folder does not exist",
        ),
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
