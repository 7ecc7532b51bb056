"""Generation on this CPU beside `transformers`' of the same model: make bench-decode

The 125M model in float32, with random weights that both sides have, continues the same prompts
greedily, one at a time and 16 together. Theirs is `GPT2LMHeadModel.generate` as a PyTorch user
calls it, with a cache, in its faster attention ("sdpa"). The time is of a whole call, prompts
included; the sides take turns. Writes record.json into --output.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from biomedlm_jax import entry
from biomedlm_jax.benchmarks.sides import SIDES, Side, answer, check_peer, write
from biomedlm_jax.config import Model

BATCHES = (1, 16)
PROMPT, NEW = 64, 64  # tokens
SEED = 17
MODEL = Model(  # of configs/pretrain_125m.py, in float32
    layers=12,
    width=768,
    heads=12,
    mlp=3072,
    vocab=28_896,
    context=1024,
    dropout=0.1,
    init_std=0.02,
    layer_norm_epsilon=1e-5,
    compute_dtype="float32",
    remat="named",
    attention="auto",
)


class Numbers:
    """A vocabulary for what is generated here, which has no text."""

    eos_id = MODEL.vocab  # which is no token, so nothing ends early

    def decode(self, ids: list[int]) -> str:
        return ""


def prompts(batch: int) -> np.ndarray:
    """Tokens [batch, PROMPT]."""
    return np.random.default_rng(batch).integers(0, MODEL.vocab, (batch, PROMPT))


def ours() -> Callable[[int], list[list[int]]]:
    import jax
    from jax.sharding import NamedSharding

    from biomedlm_jax.generate import Engine, Request, generate
    from biomedlm_jax.mesh import for_generation
    from biomedlm_jax.model import gpt

    mesh = for_generation(MODEL)
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), gpt.specs(MODEL))
    init = jax.jit(lambda: gpt.init(MODEL, jax.random.key(SEED)), out_shardings=places)
    params, numbers = init(), Numbers()
    engines = {b: Engine(MODEL, params, numbers, mesh, slots=b) for b in BATCHES}  # pyright: ignore

    def run(batch: int) -> list[list[int]]:
        requests = [
            Request(
                prompt=tuple(row),
                max_tokens=NEW,
                temperature=0.0,
                top_k=0,
                top_p=1.0,
                repetition_penalty=1.0,
                seed=0,
                stop=(),
            )
            for row in prompts(batch).tolist()
        ]
        return [list(one.tokens) for one in generate(engines[batch], requests)]

    return run


def pytorch() -> Callable[[int], list[list[int]]]:
    import jax
    import torch
    import transformers

    from biomedlm_jax.hf import names
    from biomedlm_jax.hf.config import config_json
    from biomedlm_jax.model import gpt

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    params = jax.device_get(gpt.init(MODEL, jax.random.key(SEED)))
    described = {**config_json(MODEL, eos_id=0), "attn_implementation": "sdpa"}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config.from_dict(described)).eval()
    tensors = {name: torch.tensor(array) for name, array in names.to_hf(params, MODEL)}
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    model.load_state_dict(tensors)
    chosen = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}

    def run(batch: int) -> list[list[int]]:
        ids = torch.tensor(prompts(batch))
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **chosen)
        return out[:, PROMPT:].tolist()

    return run


def serve(side: str) -> None:
    run = {"ours": ours, "pytorch": pytorch}[side]()

    def timed(batch: int) -> dict[str, Any]:
        start = time.perf_counter()
        tokens = run(batch)
        return {"seconds": time.perf_counter() - start, "tokens": tokens}

    answer(timed)


def measure(rounds: int) -> dict[int, dict[str, list[float]]]:
    """Seconds of each call, by batch and side; the first of each is not among them.

    Raises:
      RuntimeError: the sides wrote other tokens.
    """
    seconds = {batch: {name: [] for name in SIDES} for batch in BATCHES}
    sides = [Side(name, "biomedlm_jax.benchmarks.decode") for name in SIDES]
    try:
        for number in range(rounds + 1):
            for batch in BATCHES:
                found = {side.name: side.ask(batch) for side in sides}
                if found["ours"]["tokens"] != found["pytorch"]["tokens"]:
                    raise RuntimeError(f"the sides do not write the same with batch {batch}")
                for name in SIDES if number else ():
                    seconds[batch][name].append(found[name]["seconds"])
    finally:
        for side in sides:
            side.end()
    return seconds


def summary(seconds: dict[str, list[float]], batch: int) -> dict[str, float]:
    """Medians of tokens/s, and of the ratio within a round."""
    speed = {name: [batch * NEW / each for each in of_side] for name, of_side in seconds.items()}
    ratios = [a / b for a, b in zip(speed["ours"], speed["pytorch"], strict=True)]
    found = {name: statistics.median(values) for name, values in speed.items()}
    return found | {"ratio": statistics.median(ratios)}


def main() -> None:
    given = flags.FLAGS
    if given.side is not None:
        serve(given.side)
        return
    check_peer()
    seconds = measure(given.rounds)
    found = {batch: summary(of_batch, batch) for batch, of_batch in seconds.items()}
    write(Path(given.output), {"prompt": PROMPT, "new": NEW, "medians": found, "seconds": seconds})
    print(f"{MODEL.parameters:,} parameters, {NEW} tokens after {PROMPT}, {given.rounds} rounds:")
    for batch, values in found.items():
        print(
            f"batch {batch:2}: ours {values['ours']:6.1f} tokens/s, transformers "
            f"{values['pytorch']:6.1f}, ratio {values['ratio']:.2f}"
        )


if __name__ == "__main__":
    flags.DEFINE_string("output", "runs/bench-decode", "folder of the record")
    flags.DEFINE_integer("rounds", 5, "in which both sides take their turn", lower_bound=1)
    flags.DEFINE_enum("side", None, SIDES, "be that side, for the process that compares")
    entry.run(main)
