"""A training step on this CPU beside PyTorch's of the same model: make bench-cpu

Both start from the same weights and see the same batch, each in a process of its own that waits
while the other works; they take turns for some rounds. The first step of a turn does not count: a
system takes back the memory of a process that waits, and training does not. Theirs is
`transformers.GPT2LMHeadModel`, eager, with clipping and AdamW, as a PyTorch user writes it. Writes
record.json into --output.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags

from biomedlm_jax import entry
from biomedlm_jax.config import Data, Experiment, Mesh, Model, Optimizer, Run
from biomedlm_jax.speed.sides import SIDES, Side, answer, check_peer, write

WARM_UP = 2  # steps of each side before the first round; the first one compiles
UNTIMED = 1  # at the start of a turn
EXPERIMENT = Experiment(
    start="",
    model=Model(
        layers=6,
        width=384,
        heads=6,
        mlp=1536,
        vocab=8192,
        context=256,
        dropout=0.0,
        init_std=0.02,
        layer_norm_epsilon=1e-5,
        scale_attn_by_layer=True,
        compute_dtype="float32",
        classes=0,
        class_bias=False,
        lora_rank=0,
        lora_alpha=0.0,
        remat="none",
        attention="auto",
    ),
    data=Data(store="", batch=8, separators=True, segment_ids=False),
    task=None,
    mesh=Mesh(data=1, fsdp=2, model=1, context=1),
    optimizer=Optimizer(
        peak_lr=1e-4,
        warmup_steps=0,
        decay="cosine",
        final_lr_fraction=1.0,  # the rate stays
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.1,
        weight_decay_on="all",
        clip_norm=1.0,
        frozen_layers=0,
        ema_decay=0.0,
        z_loss=0.0,
    ),
    run=Run(
        seed=17,
        steps=1000,
        accumulate=1,
        log_every=1,
        eval_every=0,
        eval_batches=1,
        sample_tokens=0,
        save_every=0,
        keep=1,
        keep_every=0,
        max_skipped=0,
        spike_sigmas=0.0,
        hang_seconds=0,
        wait_seconds=60,
        tpu_vmem_mib=0,
    ),
)


def batch(experiment: Experiment) -> np.ndarray:
    """Tokens [B, T], int32, as frequent as words are (Zipf's law)."""
    size, vocab = (experiment.data.batch, experiment.model.context), experiment.model.vocab
    frequency = 1 / np.arange(1, vocab + 1)
    draw = np.random.default_rng(0)
    return draw.choice(vocab, size, p=frequency / frequency.sum()).astype(np.int32)


def weights(experiment: Experiment) -> dict:
    """The parameters that both sides start from."""
    import jax

    from biomedlm_jax.model import gpt

    return jax.device_get(gpt.init(experiment.model, jax.random.key(experiment.run.seed)))


def ours(experiment: Experiment) -> Callable[[], float]:
    """A function that does one step and returns its loss."""
    import jax
    from jax.sharding import NamedSharding

    from biomedlm_jax import mesh, step

    devices = mesh.make(experiment)
    shardings = step.state_shardings(experiment, devices)
    state = jax.jit(lambda: step.init(experiment), out_shardings=shardings)()
    tokens = jax.device_put(batch(experiment), NamedSharding(devices, step.BATCH_SPEC))
    train = step.train_step(experiment, devices)

    def one() -> float:
        nonlocal state
        state, metrics = train(state, tokens)
        return float(metrics["loss"])

    return one


def pytorch(experiment: Experiment) -> Callable[[], float]:
    """The same by PyTorch with as many threads as our mesh has devices."""
    import torch
    import transformers

    from biomedlm_jax.hf import config, names

    torch.set_num_threads(math.prod(dataclasses.astuple(experiment.mesh)))
    chosen = experiment.optimizer
    described = transformers.GPT2Config.from_dict(config.config_json(experiment.model, eos_id=0))
    model = transformers.GPT2LMHeadModel(described)  # "eager", as the exported folder says
    tensors = {
        name: torch.tensor(array)
        for name, array in names.to_hf(weights(experiment), experiment.model)
    }
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    model.load_state_dict(tensors)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=chosen.peak_lr,
        betas=(chosen.b1, chosen.b2),
        eps=chosen.eps,
        weight_decay=chosen.weight_decay,
    )
    ids = torch.tensor(batch(experiment), dtype=torch.long)

    def one() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), chosen.clip_norm)
        optimizer.step()
        return loss.item()

    return one


def serve(side: str) -> None:
    """Answers each line on stdin, a number of steps, by {"seconds", "loss"}."""
    one = {"ours": ours, "pytorch": pytorch}[side](EXPERIMENT)

    def steps(count: int) -> dict[str, float]:
        start = time.perf_counter()
        losses = [one() for _ in range(count)]
        return {"seconds": time.perf_counter() - start, "loss": losses[-1]}

    answer(steps)


def measure(rounds: int, steps: int) -> list[dict[str, dict[str, float]]]:
    """What each side answers, by round."""
    sides = [Side(name, "biomedlm_jax.speed.cpu") for name in SIDES]
    try:
        for side in sides:
            side.ask(WARM_UP)
        return [{side.name: turn(side, steps) for side in sides} for _ in range(rounds)]
    finally:
        for side in sides:
            side.end()


def turn(side: Side, steps: int) -> dict[str, float]:
    side.ask(UNTIMED)
    return side.ask(steps)


def summary(rounds: list[dict[str, dict[str, float]]], tokens: int) -> dict[str, float]:
    """Medians over rounds: tokens/s of each side, and of the ratio within a round, which what else
    the machine does changes less. tokens: of a round."""
    speed = {name: [tokens / each[name]["seconds"] for each in rounds] for name in SIDES}
    ratios = [ours / theirs for ours, theirs in zip(*(speed[name] for name in SIDES), strict=True)]
    found = {name: statistics.median(speed[name]) for name in SIDES}
    return found | {"ratio": statistics.median(ratios)}


def main() -> None:
    given = flags.FLAGS
    if given.side is not None:
        serve(given.side)
        return
    output = Path(given.output)
    check_peer()
    rounds = measure(given.rounds, given.steps)
    tokens = given.steps * EXPERIMENT.data.batch * EXPERIMENT.model.context
    found = summary(rounds, tokens)
    write(
        output,
        {
            "experiment": dataclasses.asdict(EXPERIMENT),
            "parameters": EXPERIMENT.model.parameters,
            "steps": given.steps,
            "medians": found,
            "rounds": rounds,
        },
    )
    print(f"{EXPERIMENT.model.parameters:,} parameters, medians of {given.rounds} rounds:")
    print(f"ours     {found['ours']:7,.0f} tokens/s, loss {rounds[-1]['ours']['loss']:.5f}")
    print(f"PyTorch  {found['pytorch']:7,.0f} tokens/s, loss {rounds[-1]['pytorch']['loss']:.5f}")
    print(f"ratio    {found['ratio']:7.2f}")


if __name__ == "__main__":
    flags.DEFINE_string("output", "runs/bench-cpu", "folder of the record")
    flags.DEFINE_integer("rounds", 5, "in which both sides take their turn", lower_bound=1)
    flags.DEFINE_integer("steps", 4, "of a side in a round that count", lower_bound=1)
    flags.DEFINE_enum("side", None, SIDES, "be that side, for the process that compares")
    entry.run(main)
