"""The same model as `transformers.GPT2LMHeadModel` at real sizes, with the settings of `configs/`
but for float32 and no dropout: what every layer hands on, logits, loss, gradients, one update.

A gradient (or an update) of ours is held against theirs tensor by tensor: the 2-norm of the
difference over the 2-norm of theirs; `peer.furthest` says what is done where the true one is 0.
Nothing is clipped here: PyTorch's norm of 10^8 float32 numbers is wrong by 1e-4, and with it the
factor that all of its gradients would be multiplied by. `test_pytorch` compares clipping.
"""

import gc
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec

from biomedlm_jax import config, optimizer, step
from biomedlm_jax.hf import names
from biomedlm_jax.model import gpt
from biomedlm_jax.settings import build
from configs import pretrain_2p7b, pretrain_125m
from tests import peer
from tests.conftest import changed, on, put
from tests.peer import torch

GIB = 2**30
flattened, nested = partial(flatten_dict, sep="/"), partial(unflatten_dict, sep="/")
# Gradients of so many parameters at a time: all of them would take as much memory as the weights.
GROUPS = (("blocks/up",), ("blocks/down",), ("blocks/qkv", "blocks/out"), ("",))


def experiment_of(module, **settings) -> config.Experiment:
    built = build(config.Experiment, module.get_config().to_dict())
    return changed(
        built,
        model__compute_dtype="float32",
        model__dropout=0.0,
        model__remat="none",
        optimizer__warmup_steps=0,  # the first update is one of the peak learning rate
        optimizer__clip_norm=1e9,
        **settings,
    )


def tokens_of(model: config.Model, rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, model.vocab, (rows, length), np.int32)


def hold_layers(ours: dict, theirs: dict, logits: np.ndarray, expected: np.ndarray) -> None:
    """Layers to 1e-4 of their standard deviation, logits to 1e-4; the figures are printed."""
    assert ours.keys() == theirs.keys()
    assert logits.std() > 0.3  # far from constant
    for name, array in theirs.items():
        most = np.abs(ours[name] - array).max()
        print(f"{name}: at most {most:.1e} apart, of standard deviation {array.std():.3f}")
        assert most < 1e-4 * array.std(), name
    print(f"logits: at most {np.abs(logits - expected).max():.1e} apart")
    assert np.abs(logits - expected).max() < 1e-4


@pytest.mark.slow
def test_125m(tmp_path):
    experiment, devices = on(experiment_of(pretrain_125m), 1, 1, 1)
    model, chosen = experiment.model, experiment.optimizer
    params = peer.drawn(model, seed=0, spread=0.02)
    vocabulary = peer.vocabulary_of(model.vocab, tmp_path)
    theirs = peer.opened(peer.exported(params, model, vocabulary, tmp_path / "hf"))
    tokens = tokens_of(model, 2, 256)
    ids = torch.tensor(tokens, dtype=torch.long)
    with peer.listening_to_theirs(theirs) as layers:
        out = theirs(ids, labels=ids)
    out.loss.backward()
    gradients = peer.theirs_of(theirs, "grad")
    before = {name: array.copy() for name, array in peer.theirs_of(theirs, "data").items()}
    peer.adamw_of(theirs.parameters(), experiment).step()

    state = peer.state_of(params, experiment, devices)
    heard, logits = peer.layers_of(experiment, devices, state.params, put(tokens, devices))
    hold_layers(heard, layers, logits, out.logits.detach().numpy())
    state, metrics = step.train_step(experiment, devices)(state, tokens)
    assert float(metrics["loss"]) == pytest.approx(out.loss.item(), abs=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(peer.norm(gradients.values()), rel=1e-5)

    # AdamW's first moment after one step is (1 - b1) x the gradient.
    moments = peer.as_theirs(state.opt_state[0].mu, model)
    ours = {name: moment / (1 - chosen.b1) for name, moment in moments.items()}
    print("gradients:", far := peer.furthest(ours, gradients))
    assert far[0] < 1e-4
    updated, after = peer.as_theirs(state.params, model), peer.theirs_of(theirs, "data")
    moved = [{name: new[name] - before[name] for name in new} for new in (updated, after)]
    far = max((peer.apart(moved[0][n], moved[1][n]), n) for n in after if "c_attn.bias" not in n)
    print("updates:", far)
    assert far[0] < 5e-3  # at eps 1e-8, rounding decides the sign where a gradient is almost 0
    update = our_update(experiment)
    same = max(np.abs(update(before[n], gradients[n]) - after[n]).max() for n in after)
    print("of one gradient:", same)
    assert same < 1e-6


@pytest.mark.slow
def test_2p7b(tmp_path):
    """Every parameter of the full shape. Neither framework's gradients fit beside its weights, nor
    one framework's weights beside the other's, so each runs alone: ours gives gradients for a part
    of the parameters at a time, theirs lets go of each as soon as it is there, and the disk keeps
    both. 18 GiB of memory and 32 of disk."""
    needs_room(tmp_path, memory=18 * GIB, disk=40 * GIB)
    experiment, devices = on(experiment_of(pretrain_2p7b), 1, 1, 1)
    # Unrolled layers would have a copy of their weights each.
    experiment = changed(experiment, model__remat="full")
    model = experiment.model
    tokens = tokens_of(model, 2, 64)

    flat = flattened(peer.drawn(model, seed=0, spread=0.02))
    vocabulary = peer.vocabulary_of(model.vocab, tmp_path)
    peer.exported(nested(flat), model, vocabulary, tmp_path / "hf")
    tell("exported")
    shardings = flattened(step.state_shardings(experiment, devices).params)
    params = {}
    for name in list(flat):  # one by one, or there are two of each for a while
        params[name] = jax.block_until_ready(jax.device_put(flat.pop(name), shardings[name]))
    tell("parameters")
    heard, logits = peer.layers_of(experiment, devices, nested(params), put(tokens, devices))
    tell("our layers")
    losses = gradients_to_disk(experiment, devices, params, tokens, tmp_path)
    del params
    gc.collect()
    tell("our gradients")

    theirs = peer.opened(tmp_path / "hf")
    tell("theirs opened")
    ids = torch.tensor(tokens, dtype=torch.long)

    def keep(parameter, name):
        np.save(tmp_path / f"{name}.npy", parameter.grad.numpy())
        parameter.grad = None

    for name, parameter in theirs.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: keep(p, name))
    with peer.listening_to_theirs(theirs) as expected:
        out = theirs(ids, labels=ids)
    hold_layers(heard, expected, logits, out.logits.detach().numpy())
    print("losses:", losses, out.loss.item())
    assert losses == pytest.approx([out.loss.item()] * len(GROUPS), abs=1e-5)
    out.loss.backward()
    tell("their gradients")

    paths = {row.ours: path_of(tmp_path, row.ours) for row in names.TABLE}
    ours = nested({name: np.load(path, mmap_mode="r") for name, path in paths.items()})
    weights = dict(theirs.named_parameters())
    update = our_update(experiment)
    far, moved, same = [], [], []
    for name, gradient in names.to_hf(ours, model):
        their_gradient = np.load(tmp_path / f"{name}.npy")
        far.append(peer.furthest({name: gradient}, {name: their_gradient}))
        before = weights[name].detach()
        after = torch.nn.Parameter(before.clone())
        after.grad = torch.from_numpy(their_gradient)
        peer.adamw_of([after], experiment).step()
        after, before = after.detach().numpy(), before.numpy()
        same.append((np.abs(update(before, their_gradient) - after).max(), name))
        if "c_attn.bias" not in name:
            moved.append((peer.apart(update(before, gradient) - before, after - before), name))
    print("gradients:", max(far), "updates:", max(moved), "of one gradient:", max(same))
    assert len(far) == len(weights)
    tell("end")
    assert max(far)[0] < 1e-4
    assert max(moved)[0] < 5e-3
    assert max(same)[0] < 1e-6
    shutil.rmtree(tmp_path)


def needs_room(folder, *, memory: int, disk: int) -> None:
    free = bytes_in(Path("/proc/meminfo"), "MemAvailable")
    if free < memory or shutil.disk_usage(folder).free < disk:
        pytest.skip(
            f"needs {memory / GIB:.0f} GiB of memory and {disk / GIB:.0f} GiB of disk, free"
        )


def tell(stage: str) -> None:
    now, peak = (bytes_in(Path("/proc/self/status"), name) / GIB for name in ("VmRSS", "VmHWM"))
    print(f"{stage}: {now:.1f} GiB resident, at most {peak:.1f}", flush=True)


def bytes_in(file: Path, name: str) -> int:
    """Bytes of the line `name` of a file of /proc that counts in KiB."""
    (line,) = (line for line in file.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def path_of(folder, name: str):
    return folder / f"{name.replace('/', '.')}.npy"


def gradients_to_disk(experiment, devices, params: dict, tokens, folder) -> list[float]:
    """Writes the gradient of every parameter of ours, a file each; returns the losses, one of each
    of the passes that this takes."""
    losses, left = [], list(params)
    for prefixes in GROUPS:
        group = [name for name in left if name.startswith(prefixes)]
        left = [name for name in left if name not in group]
        others = {name: array for name, array in params.items() if name not in group}
        chosen = {name: params[name] for name in group}
        loss, found = gradients_of(experiment, devices, group)(chosen, others, put(tokens, devices))
        losses.append(float(loss))
        del chosen, others
        for name in group:
            np.save(path_of(folder, name), np.asarray(found.pop(name)))
        tell(f"gradients of {prefixes}")
    assert not left
    return losses


def gradients_of(experiment: config.Experiment, devices, group: list[str]) -> Callable:
    """gradients(params of the group, the others, tokens) -> (loss, gradients of the group), by the
    code of `step.train_step`; parameters by their paths."""
    graph = gpt.graph(experiment.model)
    specs = flattened(gpt.specs(experiment.model, devices.shape))
    wanted = {name: specs.pop(name) for name in group}

    def local(chosen, others, tokens):
        weights = jnp.full(tokens[:, 1:].shape, 1 / tokens[:, 1:].size)

        def mean_loss(chosen, part):
            params = nested({**others, **chosen})
            total, nats = step.loss(experiment, graph, params, step.Batch(part[0]), weights, None)
            return total, nats.sum() / weights.size

        dtype = experiment.model.compute_dtype
        return step.gradients(mean_loss, chosen, wanted, (tokens[None],), dtype)

    in_specs, out_specs = (wanted, specs, step.BATCH_SPEC), (PartitionSpec(), wanted)
    return jax.jit(jax.shard_map(local, mesh=devices, in_specs=in_specs, out_specs=out_specs))


def our_update(experiment: config.Experiment) -> Callable:
    """update(parameter, gradient) -> the parameter after the first step, of one array."""
    tx, lr = optimizer.adamw(experiment), optimizer.schedule(experiment)(0)

    @jax.jit
    def update(parameter, gradient):
        direction, _ = tx.update(gradient, tx.init(parameter), parameter)
        return optax.apply_updates(parameter, -lr * direction)

    return lambda *arrays: np.asarray(update(*arrays))
