"""What the planner says of fine-tuning: rows, flops, and memory, with adapters alone on one GPU."""

import dataclasses

import jax
import pytest

from biomedlm_jax.compilers import child, cost
from biomedlm_jax.compilers.programs import Programs
from biomedlm_jax.compilers.topologies import named
from biomedlm_jax.config import Experiment
from biomedlm_jax.model import gpt
from biomedlm_jax.planning import memory
from biomedlm_jax.planning.answer import ask
from biomedlm_jax.planning.target import attention_flops, matrix_flops, program, target
from biomedlm_jax.settings import build
from configs import finetune_medqa, finetune_meqsum, finetune_pubmedqa_lora
from tests.conftest import fine_tuning


def of(config) -> Experiment:
    return build(Experiment, config.get_config().to_dict())


@pytest.mark.parametrize(
    ("objective", "shapes"),
    [
        ("multiple_choice", [(32, 32), None, (8,), (32,), (8,)]),
        ("classification", [(8, 32), None, (8,), (8,), (8,)]),
        ("generation", [(8, 32), None, (8, 32), None, None]),
    ],
)
def test_the_step_is_compiled_for_the_longest_rows(objective, shapes):
    experiment = fine_tuning(objective)
    _, (_, *batch) = program(jax.devices()[0], experiment=dataclasses.asdict(experiment))
    assert [part and part.shape for part in batch] == shapes


def test_tokens_of_a_step():
    eight = named("h100:8")
    assert target(of(finetune_medqa), eight).tokens == 32 * 4 * 512
    assert target(of(finetune_meqsum), eight).tokens == 16 * 1022


@pytest.mark.parametrize("rank", [0, 4])
def test_flops_are_those_of_the_program(rank):
    """Nothing computed twice, attention in the text: on this machine's CPU."""
    model = dict(width=256, heads=2, mlp=1024, context=128, layers=4, attention="reference")
    model |= dict(lora_rank=rank, lora_alpha=float(rank))
    experiment = fine_tuning("classification", model=model, length=128)
    function, operands = program(jax.devices()[0], experiment=dataclasses.asdict(experiment))
    found = cost.read(function.lower(*operands).compile().as_text()).matrix_flops
    model, tokens = experiment.model, experiment.data.batch * 128
    scores = 2 * attention_flops(model, tokens)  # the reference computes all of them
    assert found == pytest.approx(matrix_flops(model, tokens) + scores, rel=0.01)


def test_adapters_alone_are_in_the_optimizer():
    one = target(of(finetune_pubmedqa_lora), named("l4:1"))
    held, model = memory.state(one), one.experiment.model
    shapes = jax.eval_shape(lambda: gpt.init(model, jax.random.key(0)))
    whole = sum(x.size for x in jax.tree.leaves(shapes))
    d, f, r = model.width, model.mlp, model.lora_rank
    trained = model.layers * r * ((d + 3 * d) + (d + d) + 2 * (d + f)) + 3 * d  # and the head
    assert held["parameters"] == 4 * whole
    assert held["optimizer state"] == pytest.approx(2 * 4 * trained, rel=1e-4)
    assert memory.besides(one) == {"gradients": 2 * 4 * trained}  # of a part, and their sums
    assert trained < 0.01 * whole


@pytest.mark.slow
def test_the_published_size_with_adapters_fits_one_gpu_of_24_gb():
    if reason := child.missing("gpu"):
        pytest.skip(reason)
    with Programs("gpu") as compiler:
        answer = ask(compiler, target(of(finetune_pubmedqa_lora), named("l4:1")))
    assert answer.memory, answer.refused
    assert answer.fits
    assert answer.memory["limit"] < 24e9
    assert answer.memory["needed"] < 13e9
