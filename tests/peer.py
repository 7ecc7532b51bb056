"""Our decoder beside transformers' GPT2LMHeadModel: one set of parameters for both, what each layer
of either hands on, and how far two arrays are apart.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util
from tokenizers import pre_tokenizers

from biomedlm_jax import step
from biomedlm_jax.config import Experiment, Model
from biomedlm_jax.hf import names, save
from biomedlm_jax.model import gpt
from biomedlm_jax.pipeline.vocabulary import END_OF_TEXT

torch = pytest.importorskip("torch", reason="torch is a test's need, not a run's")
transformers = pytest.importorskip("transformers")


def drawn(model: Model, *, seed: int, spread: float) -> dict:
    """Parameters of which no two numbers are alike: kernels and tables as a run begins with them,
    scales and biases `spread` around their 1 and 0, so that a swapped or forgotten one shows."""
    draw, shapes = np.random.default_rng(seed), jax.eval_shape(lambda: _init(model))
    flat = {}
    for name, leaf in traverse_util.flatten_dict(shapes, sep="/").items():
        layer, kind = name.split("/")[-2:] if "/" in name else (name, "")
        array = draw.standard_normal(leaf.shape, np.float32)
        if kind in ("scale", "bias"):
            array *= spread
        else:
            residual = layer in ("out", "down")
            array *= model.init_std / (math.sqrt(2 * model.layers) if residual else 1)
        if kind == "scale":
            array += 1
        if layer == "tokens":
            array[model.vocab :] = 0
        flat[name] = array
    return traverse_util.unflatten_dict(flat, sep="/")


def _init(model: Model) -> dict:
    return gpt.init(model, jax.random.key(0))


def vocabulary_of(size: int, folder: Path) -> Path:
    """A byte-level vocabulary of `size` ids, for models of real sizes: pairs of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in alphabet for b in alphabet][: size - 257]
    ids = {token: id for id, token in enumerate([*alphabet, *(a + b for a, b in pairs)])}
    rules = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end = {"id": size - 1, "content": END_OF_TEXT, "special": True, "normalized": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    path = folder / "tokenizer.json"
    described = {
        "version": "1.0",
        "added_tokens": [end | flags],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", **rules},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", **rules},
        "model": {"type": "BPE", "vocab": ids, "merges": pairs},
    }
    path.write_text(json.dumps(described))
    return path


def exported(params: dict, model: Model, vocabulary: Path, folder: Path) -> Path:
    """The folder that users get."""
    save.save(params, model, vocabulary, folder, extra={})
    return folder


def opened(folder: Path):
    """PyTorch's model of an exported folder, in float32 and without dropout."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.config.scale_attn_by_inverse_layer_idx
    assert theirs.config._attn_implementation == "eager"
    assert theirs.dtype == torch.float32
    return theirs.eval()


def as_theirs(tree: dict, model: Model) -> dict[str, np.ndarray]:
    """A tree like the parameters' (or their gradients', or moments') by Hugging Face's names."""
    return dict(names.to_hf(jax.device_get(tree), model))


def state_of(params: dict, experiment: Experiment, devices) -> step.State:
    """The state before the first step, with these parameters."""
    shardings = step.state_shardings(experiment, devices)
    state = jax.jit(lambda: step.init(experiment), out_shardings=shardings)()
    # Copies: the step takes its state's memory for its own.
    copies = jax.tree.map(np.array, params)
    return dataclasses.replace(state, params=jax.device_put(copies, shardings.params))


def theirs_of(module, attribute: str) -> dict[str, np.ndarray]:
    return {
        name: getattr(parameter, attribute).detach().numpy()
        for name, parameter in module.named_parameters()
    }


def adamw_of(parameters, experiment: Experiment):
    """PyTorch's AdamW with the settings of `experiment`, at its peak learning rate."""
    chosen = experiment.optimizer
    return torch.optim.AdamW(
        parameters,
        lr=chosen.peak_lr,
        betas=(chosen.b1, chosen.b2),
        eps=chosen.eps,
        weight_decay=chosen.weight_decay,
    )


def layers_of(experiment: Experiment, devices, params: dict, tokens) -> tuple[dict, np.ndarray]:
    """What each layer of ours hands on, {"embedding": ..., "0": ..., "ln_f": ...}, and the logits.

    `step.forward` runs as it is; listeners at `Block` and `GPT` tell the host what went by.
    """
    heard = {}

    def note_block(layer, came, went):
        if layer == 0:
            heard["embedding"] = np.array(came)
        heard[str(layer)] = np.array(went)

    def note_last(went):
        heard["ln_f"] = np.array(went)

    with (
        listening(
            gpt.Block, lambda out, x, layer, *_: jax.debug.callback(note_block, layer, x, out)
        ),
        listening(gpt.GPT, lambda out, *_: jax.debug.callback(note_last, out)),
    ):
        logits = jax.device_get(step.forward(experiment, devices)(params, tokens))
    jax.effects_barrier()
    return heard, logits


@contextlib.contextmanager
def listening(module: type, hear: Callable) -> Iterator[None]:
    """Inside, `hear(result, *arguments)` follows each call of a `module`."""
    plain = module.__call__

    def call(self, *arguments):
        out = plain(self, *arguments)
        hear(out, *arguments)
        return out

    module.__call__ = call
    try:
        yield
    finally:
        module.__call__ = plain


@contextlib.contextmanager
def listening_to_theirs(theirs) -> Iterator[dict[str, np.ndarray]]:
    """The dict that a forward pass inside fills with what each layer of theirs hands on."""
    decoder, heard = theirs.transformer, {}
    layers = {"embedding": decoder.drop, "ln_f": decoder.ln_f}
    layers |= {str(index): block for index, block in enumerate(decoder.h)}

    def note(name: str) -> Callable:
        def hook(module, arguments, out):
            heard[name] = (out[0] if isinstance(out, tuple) else out).detach().numpy().copy()

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in layers.items()]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The 2-norm of the difference over the 2-norm of theirs, of one tensor."""
    return norm([ours - theirs]) / norm([theirs])


def norm(arrays: Iterable[np.ndarray]) -> float:
    """The 2-norm of all the numbers in `arrays`, summed in float64."""
    return math.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in arrays))


def furthest(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """The largest `apart` of the tensors of two gradients, and whose it is.

    The bias of query, key and value counts as three. The key's adds one number to all scores of a
    query, so its true gradient is 0 and both have nothing but rounding there: it is left out, and
    has to be less than 1e-4 of the query's in either.
    """
    found = []
    for name, tensor in theirs.items():
        pairs = {name: (ours[name], tensor)}
        if name.endswith("c_attn.bias"):
            q, k, v = zip(np.split(ours[name], 3), np.split(tensor, 3), strict=True)
            pairs = {f"{name} of queries": q, f"{name} of values": v}
            for key, query in zip(k, q, strict=True):
                assert norm([key]) < 1e-4 * norm([query]), name
        found += [(apart(*pair), part) for part, pair in pairs.items()]
    return max(found)
