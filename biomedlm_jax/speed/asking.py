"""Multiple choice answered on this CPU beside `transformers` of the same model: make bench-asking

The 12M model of configs/small.py with random weights that both sides have finds the likeliest
option of the same items, by their letters and by their texts, in float32. Theirs is a plain loop:
`GPT2LMHeadModel` on one item at a time, a row an option, no token of padding but to its longest,
log_softmax of all logits, in its faster attention ("sdpa") with all cores. Items are of random
tokens, with lengths as MedQA's have in a context of 256; none is cut. The time is of all items,
from token ids to numbers; the sides take turns. Both have to find the same numbers. Writes
record.json into --output.
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
from biomedlm_jax.config import Model
from biomedlm_jax.speed.sides import SIDES, Side, answer, check_peer, write

FORMS = ("letters", "option texts")
ITEMS, OPTIONS = 48, 4
QUESTION, OPTION = (60, 240), (2, 14)  # tokens, from and below
SEED = 17
CLOSE = 1e-3  # nats
MODEL = Model(  # of configs/small.py
    layers=5,
    width=384,
    heads=6,
    mlp=1536,
    vocab=8192,
    context=256,
    dropout=0.0,
    init_std=0.02,
    layer_norm_epsilon=1e-5,
    compute_dtype="float32",
    classes=0,
    class_bias=False,
    lora_rank=0,
    lora_alpha=0.0,
    remat="none",
    attention="auto",
    scale_attn_by_layer=True,
)
Item = tuple[list[int], list[list[int]]]


def items(form: str) -> list[Item]:
    """Token ids of each question and of what may follow it."""
    draw = np.random.default_rng(SEED)

    def tokens(lengths: tuple[int, int]) -> list[int]:
        return draw.integers(0, MODEL.vocab, draw.integers(*lengths)).tolist()

    found = [(tokens(QUESTION), [tokens(OPTION) for _ in range(OPTIONS)]) for _ in range(ITEMS)]
    letters = [[letter] for letter in range(OPTIONS)]
    return found if form == "option texts" else [(question, letters) for question, _ in found]


def ours() -> Callable[[list[Item]], list[float]]:
    import jax
    from jax.sharding import NamedSharding

    from biomedlm_jax.likelihood import LogLikelihood, Pair
    from biomedlm_jax.mesh import everywhere
    from biomedlm_jax.model import gpt

    mesh = everywhere(MODEL)
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), gpt.specs(MODEL, mesh.shape))
    init = jax.jit(lambda: gpt.init(MODEL, jax.random.key(SEED)), out_shardings=places)
    likelihood = LogLikelihood(MODEL, init(), mesh)

    def run(asked: list[Item]) -> list[float]:
        pairs = [Pair(question, option) for question, options in asked for option in options]
        return [one.nats for one in likelihood(pairs)]

    return run


def pytorch() -> Callable[[list[Item]], list[float]]:
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

    def of_item(question: list[int], options: list[list[int]]) -> list[float]:
        rows = [[*question, *option] for option in options]
        ids = torch.zeros((len(rows), max(map(len, rows)) - 1), dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row) - 1] = torch.tensor(row[:-1])
        chances = torch.log_softmax(model(ids).logits, -1)
        begin = len(question) - 1
        return [
            float(
                of_row[begin : begin + len(option)].gather(1, torch.tensor(option)[:, None]).sum()
            )
            for of_row, option in zip(chances, options, strict=True)
        ]

    def run(asked: list[Item]) -> list[float]:
        with torch.inference_mode():
            return [nats for item in asked for nats in of_item(*item)]

    return run


def serve(side: str) -> None:
    run = {"ours": ours, "pytorch": pytorch}[side]()

    def timed(form: str) -> dict[str, Any]:
        asked = items(form)
        start = time.perf_counter()
        nats = run(asked)
        return {"seconds": time.perf_counter() - start, "nats": nats}

    answer(timed)


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each call, by form and side; the first of each is not among them.

    Raises:
      RuntimeError: the sides found other numbers.
    """
    seconds = {form: {name: [] for name in SIDES} for form in FORMS}
    sides = [Side(name, "biomedlm_jax.speed.asking") for name in SIDES]
    try:
        for number in range(rounds + 1):
            for form in FORMS:
                found = {side.name: side.ask(form) for side in sides}
                nats = [np.array(found[name]["nats"]) for name in SIDES]
                if (apart := float(np.abs(nats[0] - nats[1]).max())) > CLOSE:
                    raise RuntimeError(f"the sides are {apart:.1e} nats apart in {form}")
                for name in SIDES if number else ():
                    seconds[form][name].append(found[name]["seconds"])
    finally:
        for side in sides:
            side.end()
    return seconds


def summary(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Medians of milliseconds an item, and of the ratio within a round."""
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["pytorch"], strict=True)]
    each = {name: 1e3 * statistics.median(of) / ITEMS for name, of in seconds.items()}
    return each | {"ratio": statistics.median(ratios)}


def main() -> None:
    given = flags.FLAGS
    if given.side is not None:
        serve(given.side)
        return
    check_peer()
    seconds = measure(given.rounds)
    found = {form: summary(of_form) for form, of_form in seconds.items()}
    record = {"items": ITEMS, "options": OPTIONS, "medians": found, "seconds": seconds}
    write(Path(given.output), record)
    print(f"{MODEL.parameters:,} parameters, {ITEMS} items of {OPTIONS}, {given.rounds} rounds:")
    for form, values in found.items():
        print(
            f"{form:13}: ours {values['ours']:6.1f} ms an item, transformers "
            f"{values['pytorch']:6.1f}, ratio {values['ratio']:.2f}"
        )


if __name__ == "__main__":
    flags.DEFINE_string("output", "runs/bench-asking", "folder of the record")
    flags.DEFINE_integer("rounds", 3, "in which both sides take their turn", lower_bound=1)
    flags.DEFINE_enum("side", None, SIDES, "be that side, for the process that compares")
    entry.run(main)
