"""Generation on this CPU beside `transformers`' of the same model: make bench-decode

The 125M model with random weights that both sides have continues the same prompts greedily, one at
a time and 16 together, in float32 and in bfloat16, which is what its config computes in. Theirs is
`GPT2LMHeadModel.generate` as a PyTorch user calls it, with a cache, in its faster attention
("sdpa"). The time is of a whole call, prompts included; the sides take turns. Both have to write
the same tokens in float32; in bfloat16 rounding decides between random weights' equals. Writes
record.json into --output.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from biomedlm_jax import entry
from biomedlm_jax.config import Model
from biomedlm_jax.speed.sides import SIDES, Side, answer, check_peer, write

CASES = [(dtype, batch) for dtype in ("float32", "bfloat16") for batch in (1, 16)]
PROMPT, NEW = 64, 64  # tokens
SEED = 17
MODEL = Model(  # of configs/pretrain_125m.py
    layers=12,
    width=768,
    heads=12,
    mlp=3072,
    vocab=28_896,
    context=1024,
    dropout=0.1,
    init_std=0.02,
    layer_norm_epsilon=1e-5,
    compute_dtype="bfloat16",
    classes=0,
    class_bias=False,
    lora_rank=0,
    lora_alpha=0.0,
    remat="named",
    attention="auto",
    scale_attn_by_layer=True,
)


class Numbers:
    """A vocabulary for what is generated here, which has no text."""

    size = MODEL.vocab
    eos_id = MODEL.vocab  # which is no token, so nothing ends early

    def decode(self, ids: list[int]) -> str:
        return ""


def prompts(batch: int) -> np.ndarray:
    """Tokens [batch, PROMPT]."""
    return np.random.default_rng(batch).integers(0, MODEL.vocab, (batch, PROMPT))


def ours() -> Callable[[str, int], list[list[int]]]:
    import jax
    from jax.sharding import NamedSharding

    from biomedlm_jax.generate import Engine, Request, generate
    from biomedlm_jax.mesh import for_generation
    from biomedlm_jax.model import gpt

    mesh = for_generation(MODEL)
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), gpt.specs(MODEL, mesh.shape))
    init = jax.jit(lambda: gpt.init(MODEL, jax.random.key(SEED)), out_shardings=places)
    params, numbers = init(), Numbers()
    engines = {
        (dtype, batch): Engine(
            dataclasses.replace(MODEL, compute_dtype=dtype),
            params,
            numbers,  # pyright: ignore
            mesh,
            slots=batch,
        )
        for dtype, batch in CASES
    }

    def run(dtype: str, batch: int) -> list[list[int]]:
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
        return [list(one.tokens) for one in generate(engines[dtype, batch], requests)]

    return run


def pytorch() -> Callable[[str, int], list[list[int]]]:
    import copy

    import jax
    import torch
    import transformers

    from biomedlm_jax.hf import names
    from biomedlm_jax.hf.config import config_json
    from biomedlm_jax.model import gpt

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    params = jax.device_get(gpt.init(MODEL, jax.random.key(SEED)))
    described = {**config_json(MODEL, eos_id=0), "attn_implementation": "sdpa"}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config.from_dict(described))
    model.eval()
    tensors = {name: torch.tensor(array) for name, array in names.to_hf(params, MODEL)}
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    model.load_state_dict(tensors)
    models = {dtype: copy.deepcopy(model).to(getattr(torch, dtype)) for dtype, _ in CASES}
    chosen = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}

    def run(dtype: str, batch: int) -> list[list[int]]:
        ids = torch.tensor(prompts(batch))
        with torch.no_grad():
            ones = torch.ones_like(ids)
            out = models[dtype].generate(ids, attention_mask=ones, **chosen)  # pyright: ignore
        return out[:, PROMPT:].tolist()

    return run


def serve(side: str) -> None:
    run = {"ours": ours, "pytorch": pytorch}[side]()

    def timed(case: tuple[str, int]) -> dict[str, Any]:
        start = time.perf_counter()
        tokens = run(*case)
        return {"seconds": time.perf_counter() - start, "tokens": tokens}

    answer(timed)


def measure(rounds: int) -> dict[tuple[str, int], dict[str, list[float]]]:
    """Seconds of each call, by case and side; the first of each is not among them.

    Raises:
      RuntimeError: the sides wrote other tokens in float32, or not as many.
    """
    seconds = {case: {name: [] for name in SIDES} for case in CASES}
    sides = [Side(name, "biomedlm_jax.speed.decode") for name in SIDES]
    try:
        for number in range(rounds + 1):
            for case in CASES:
                found = {side.name: side.ask(case) for side in sides}
                tokens = [found[name]["tokens"] for name in SIDES]
                if case[0] != "float32":
                    tokens = [[len(row) for row in of_side] for of_side in tokens]
                if tokens[0] != tokens[1]:
                    raise RuntimeError(f"the sides do not write the same in {case}")
                for name in SIDES if number else ():
                    seconds[case][name].append(found[name]["seconds"])
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
    found = {case: summary(of_case, case[1]) for case, of_case in seconds.items()}
    by_name = lambda of_cases: {f"{d} batch {b}": x for (d, b), x in of_cases.items()}  # noqa: E731
    record = {"medians": by_name(found), "seconds": by_name(seconds)}
    write(Path(given.output), {"prompt": PROMPT, "new": NEW, **record})
    print(f"{MODEL.parameters:,} parameters, {NEW} tokens after {PROMPT}, {given.rounds} rounds:")
    for name, values in by_name(found).items():
        print(
            f"{name:17}: ours {values['ours']:6.1f} tokens/s, transformers "
            f"{values['pytorch']:6.1f}, ratio {values['ratio']:.2f}"
        )


if __name__ == "__main__":
    flags.DEFINE_string("output", "runs/bench-decode", "folder of the record")
    flags.DEFINE_integer("rounds", 5, "in which both sides take their turn", lower_bound=1)
    flags.DEFINE_enum("side", None, SIDES, "be that side, for the process that compares")
    entry.run(main)
