"""One model on every mesh: the same losses, the same shapes, nothing large needed to know them."""

import itertools
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from biomedlm_jax import step
from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import UserError
from biomedlm_jax.model import gpt
from biomedlm_jax.settings import build
from tests.conftest import ROOT, TINY, changed, on, put, random_tokens, started
from tests.test_config import config_file

MESHES = [(8, 1, 1), (1, 8, 1), (4, 1, 2), (1, 4, 2), (2, 1, 4), (1, 2, 4), (2, 2, 2)]
CONTEXT = [(1, 1, 1, 2), (2, 1, 2, 2), (1, 2, 1, 4)]  # with sequences in pieces

PACKED = changed(TINY, data__segment_ids=True)


def random_segments(seed: int) -> np.ndarray:
    """Rows of one document, of a few, and of a token each, so that devices count other labels."""
    draw = np.random.default_rng(seed)
    rows = TINY.data.batch
    begins = draw.random((rows, TINY.model.context)) < np.linspace(0, 1, rows)[:, None] ** 2
    return np.cumsum(begins, axis=1, dtype=np.int32)


def curve(experiment: Experiment, mesh: tuple[int, ...], steps: int = 8) -> np.ndarray:
    """[steps, (loss, norm of the gradient)]"""
    experiment, devices = on(experiment, *mesh)
    state, train_step = started(experiment, devices), step.train_step(experiment, devices)
    found = []
    for number in range(steps):
        batch = [put(random_tokens(experiment, number), devices)]
        if experiment.data.segment_ids:
            batch.append(put(random_segments(number), devices))
        state, metrics = train_step(state, *batch)
        found.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    assert int(state.step) == steps
    return np.array(found)


@pytest.fixture(scope="module")
def one_device() -> np.ndarray:
    return curve(TINY, (1, 1, 1))


OFTEN = [(8, 1, 1), (1, 4, 2), (2, 2, 2), (2, 1, 2, 2)]  # the others cost as much and show less
EVERY = [mesh if mesh in OFTEN else pytest.param(mesh, marks=pytest.mark.slow)
         for mesh in MESHES + CONTEXT]  # fmt: skip


@pytest.mark.parametrize("mesh", EVERY, ids=str)
def test_losses_agree_on_every_mesh(mesh, one_device):
    np.testing.assert_allclose(curve(TINY, mesh), one_device, rtol=1e-5)


@pytest.fixture(scope="module")
def one_device_packed() -> np.ndarray:
    return curve(PACKED, (1, 1, 1))


@pytest.mark.parametrize(
    "mesh", [pytest.param((8, 1, 1), marks=pytest.mark.slow), (2, 2, 2), (2, 1, 1, 4)], ids=str
)
def test_losses_of_packed_documents_agree_on_every_mesh(mesh, one_device, one_device_packed):
    """The mean is over the labels that count on all devices, which differ in how many they have."""
    counts = (np.diff(random_segments(0)) == 0).sum(axis=1)
    assert (counts[0], counts[-1]) == (31, 0)
    np.testing.assert_allclose(curve(PACKED, mesh), one_device_packed, rtol=1e-5)
    assert np.abs(one_device_packed - one_device).min() > 1e-4


@pytest.mark.parametrize(("parts", "mesh"), [(2, (2, 2, 1)), (4, (1, 1, 2, 2))], ids=str)
def test_a_batch_in_parts_is_the_same_batch(parts, mesh, one_device_packed):
    found = curve(changed(PACKED, run__accumulate=parts), mesh)
    np.testing.assert_allclose(found, one_device_packed, rtol=1e-5)


def test_labels_that_do_not_count_are_as_if_they_were_not_there():
    """Answers that are learned and questions that are not; dropout is off, for one row is scored
    alone."""
    experiment, devices = on(changed(TINY, model__dropout=0.0), 2, 1, 2, 2)
    train_step, tokens = step.train_step(experiment, devices), random_tokens(TINY)
    counted = np.zeros(tokens.shape, bool)
    counted[3, 10:15] = counted[7, 0] = True  # the first token of a row is never a label
    batch = [put(tokens, devices), None, put(counted, devices)]
    logits = step.forward(experiment, devices)(started(experiment, devices).params, batch[0])
    log_p = np.asarray(jax.nn.log_softmax(logits))[3, 9:14]
    expected = -np.take_along_axis(log_p, tokens[3, 10:15, None], -1).mean()
    _, metrics = train_step(started(experiment, devices), *batch)
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)


def test_an_update_that_is_not_finite_is_left_out(monkeypatch):
    """Of three batches the second makes a NaN; the others do as if it had not been there."""
    experiment, devices = on(changed(TINY, optimizer__ema_decay=0.5), 2, 2, 2)
    batches = [random_tokens(TINY, number) for number in range(3)]
    poison, whole = batches[1][5, :3], step.loss

    def poisoned(experiment, graph, params, batch, *rest):
        total, nats = whole(experiment, graph, params, batch, *rest)
        hit = (batch.tokens[:, :3] == poison).all(1).any()
        return jax.numpy.where(hit, jax.numpy.nan, 1.0) * total, nats

    monkeypatch.setattr(step, "loss", poisoned)
    state, train_step = started(experiment, devices), step.train_step(experiment, devices)
    seen, states = [], []
    for batch in batches:
        state, metrics = train_step(state, put(batch, devices))
        seen.append({name: float(value) for name, value in metrics.items()})
        states.append(jax.device_get(state))
    assert [x["skipped"] for x in seen] == [0, 1, 0]
    assert [int(x.step) for x in states] == [1, 2, 3]
    assert np.isnan(seen[1]["grad_norm"])
    assert np.isfinite(seen[1]["loss"])
    for kept in ("params", "opt_state", "average"):
        before, during, after = ([*jax.tree.leaves(getattr(x, kept))] for x in states)
        assert all(np.array_equal(a, b) for a, b in zip(before, during, strict=True))
        assert all(np.isfinite(leaf).all() for leaf in after)
        assert not all(np.array_equal(a, b) for a, b in zip(during, after, strict=True))


def test_norms_by_layer_make_up_the_norm_of_all():
    experiment, devices = on(TINY, 1, 2, 2, 2)
    _, metrics = step.train_step(experiment, devices)(
        started(experiment, devices), put(random_tokens(TINY), devices)
    )
    for name in ("grad_norm", "update_norm"):
        layers = {key: float(x) for key, x in metrics.items() if key.startswith(f"{name}/")}
        assert {key.partition("/")[2] for key in layers} == {
            *("tokens", "positions", "ln_1", "qkv", "out", "ln_2", "up", "down", "ln_f")
        }
        assert math.hypot(*layers.values()) == pytest.approx(float(metrics[name]), rel=1e-6)


def shifted(params: dict, by: int) -> dict:
    """Parameters for which position 0 is what position `by` was."""
    return params | {"positions": np.roll(np.asarray(params["positions"]), -by, axis=0)}


def test_a_packed_document_is_as_if_it_were_alone():
    """At its positions, which run on through the row: logits, and the loss of its labels."""
    experiment, devices = on(changed(PACKED, model__dropout=0.0), 2, 2, 2)
    state = started(experiment, devices)
    tokens, cuts = random_tokens(experiment), [0, 9, 10, 27, 32]
    segments = np.repeat(np.arange(4, dtype=np.int32), np.diff(cuts))[None].repeat(8, axis=0)
    forward = step.forward(experiment, devices)
    packed = np.asarray(forward(state.params, tokens, segments))
    nats, labels = 0.0, 0
    for first, last in itertools.pairwise(cuts):
        moved = np.roll(np.asarray(state.params["positions"]), -first, axis=0)
        alone = np.asarray(forward(state.params | {"positions": moved}, tokens[:, first:last]))
        np.testing.assert_allclose(packed[:, first:last], alone, atol=2e-5)
        log_p = np.asarray(jax.nn.log_softmax(alone))[:, :-1]
        nats -= np.take_along_axis(log_p, tokens[:, first + 1 : last, None], -1).sum()
        labels += log_p[..., 0].size
    assert labels == 8 * (32 - 4)
    joined = np.asarray(forward(state.params, tokens))
    assert np.abs(packed - joined)[:, 9:].max() > 1e-3  # what comes before would have been seen
    groups = np.where(np.arange(31) < 15, 0, 1) + np.zeros((8, 1), np.int32)
    found = step.eval_step(experiment, devices, 2)(state.params, tokens, segments, groups)
    assert float(found.sum()) == pytest.approx(nats, rel=1e-5)

    train_step = step.train_step(experiment, devices)
    state, metrics = train_step(state, tokens, segments)
    assert float(metrics["loss"]) == pytest.approx(nats / labels, rel=1e-5)
    # Nothing but first tokens: no label, and so no loss, rather than 0 / 0.
    _, metrics = train_step(state, tokens, np.tile(np.arange(32, dtype=np.int32), (8, 1)))
    assert (float(metrics["loss"]), float(metrics["grad_norm"])) == (0, 0)


def test_segments_are_an_input_where_they_are_asked_for_and_nowhere_else():
    state = jax.eval_shape(lambda: step.init(TINY))
    for experiment, extra in ((TINY, 0), (PACKED, 1)):
        train_step = step.train_step(*on(experiment, 1, 1, 1))
        batch = [random_tokens(TINY), random_segments(0)]
        lowered = train_step.lower(state, *batch[: 1 + extra])
        inputs = len(jax.tree.leaves(lowered.in_avals))
        assert inputs == len(jax.tree.leaves(state)) + 1 + extra
        with pytest.raises(AssertionError):  # left out, or given for nothing
            train_step.lower(state, *batch[: 2 - extra])


@pytest.mark.parametrize("remat", ["named", "full"])
def test_losses_agree_under_every_remat_policy(remat, one_device):
    found = curve(changed(TINY, model__remat=remat), (1, 1, 1))
    np.testing.assert_allclose(found, one_device, rtol=1e-5)


def test_bfloat16_follows_float32(one_device):
    found = curve(changed(TINY, model__compute_dtype="bfloat16"), (1, 2, 2))
    np.testing.assert_allclose(found[:, 0], one_device[:, 0], rtol=1e-3)
    np.testing.assert_allclose(found[:, 1], one_device[:, 1], rtol=3e-2)
    assert not np.array_equal(found, one_device)


def test_dropout_acts_in_training_and_follows_the_seed(one_device):
    without = curve(changed(TINY, model__dropout=0.0), (1, 1, 1), steps=1)
    assert abs(without[0, 0] - one_device[0, 0]) > 1e-4
    reseeded = curve(changed(TINY, run__seed=18), (1, 1, 1), steps=1)
    assert not np.array_equal(reseeded, one_device[:1])


def test_published_model_without_memory():
    """The 2.7B's state by shape alone: parameters, and what one of 256 devices stores of them."""
    experiment = build(Experiment, config_file(ROOT / "configs/pretrain_2p7b.py"))
    state = jax.eval_shape(lambda: step.init(experiment))
    stored = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    padding = 32 * 2560
    assert stored - padding == experiment.model.parameters == 2_594_247_680
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state.params))
    mesh = jax.sharding.AbstractMesh((16, 16, 1), ("data", "fsdp", "model"))
    shardings = step.state_shardings(experiment, mesh)
    pieces = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)), state, shardings)
    assert sum(jax.tree.leaves(pieces.params)) < 1.002 * stored / 16
    assert sum(jax.tree.leaves(pieces.opt_state)) < 1.002 * 2 * stored / 16


def test_golden_losses(one_device, golden):
    """A change that is said to be neutral leaves these alone."""
    found = "".join(f"{loss:.9g} {norm:.9g}\n" for loss, norm in one_device)
    expected = np.loadtxt(golden("losses.txt", found).splitlines())
    np.testing.assert_allclose(one_device, expected, rtol=2e-6)


def test_golden_parameters(golden):
    """Names and shapes are a contract with every checkpoint."""
    shapes = jax.eval_shape(lambda: gpt.init(TINY.model, jax.random.key(0)))
    flat, _ = jax.tree.flatten_with_path(shapes)
    found = "".join(
        f"{jax.tree_util.keystr(path, simple=True, separator='/'):<22} {leaf.shape}\n"
        for path, leaf in flat
    )
    assert found == golden("parameters.txt", found)


def test_init_is_the_published_one():
    wide = changed(TINY, model__layers=8, model__width=256, model__mlp=1024)
    params = jax.jit(lambda: gpt.init(wide.model, jax.random.key(0)))()
    blocks = params["blocks"]
    for kernel in (params["positions"], blocks["qkv"]["kernel"], blocks["up"]["kernel"]):
        assert float(kernel.std()) == pytest.approx(0.02, rel=0.02)
    for kernel in (blocks["out"]["kernel"], blocks["down"]["kernel"]):
        assert float(kernel.std()) == pytest.approx(0.02 / math.sqrt(2 * 8), rel=0.02)
        assert not np.array_equal(kernel[0], kernel[1])
    for layer in ("qkv", "out", "up", "down", "ln_1", "ln_2"):
        assert not np.asarray(blocks[layer]["bias"]).any()
    assert (np.asarray(blocks["ln_1"]["scale"]) == 1).all()


@pytest.mark.parametrize(
    ("mesh", "settings", "message"),
    [
        (
            (3, 1, 2),
            {},
            r"data\.batch=8 does not split over .*data=3 .* = 3 groups.*; 6 or 9 would",
        ),
        ((1, 1, 8), {}, r"model\.heads is 4, .*mesh\.model=8 x .* = 8; 1, 2, 4 would fit"),
        ((1, 5, 1), {"data__batch": 5}, r"model\.width is 64, .*mesh\.fsdp=5 = 5; 1, 2, 4 would"),
        ((1, 3, 1), {"data__batch": 3, "model__width": 72}, r"mlp is 256, .* = 3; 1, 2 would fit"),
        ((1, 1, 7), {"model__width": 56, "model__heads": 7, "model__mlp": 224}, r"vocab, padded"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would(mesh, settings, message):
    with pytest.raises(UserError, match=message):
        on(changed(TINY, **settings), *mesh)


def test_a_mesh_of_another_size_than_the_machine_is_refused():
    from biomedlm_jax import mesh as meshes

    with pytest.raises(UserError, match=r"fsdp=3 .* does not give the 8 devices"):
        meshes.sizes(changed(TINY, mesh__data=-1, mesh__fsdp=3).mesh, 8)
    assert meshes.sizes(changed(TINY, mesh__data=-1, mesh__fsdp=4).mesh, 8)["data"] == 2


@pytest.mark.parametrize(
    ("platform", "kind", "vmem", "told"),
    [
        ("tpu", "TPU v5 lite", 28, {"xla_tpu_scoped_vmem_limit_kib": "28672"}),
        ("tpu", "TPU v4", 16, {"xla_tpu_scoped_vmem_limit_kib": "16384"}),
        ("tpu", "TPU v4", 0, None),
        ("cpu", "cpu", 28, None),
    ],
)
def test_what_xla_is_told(platform, kind, vmem, told):
    assert (
        step.compiler_options(changed(TINY, run__tpu_vmem_mib=vmem), on_a(platform, kind)) == told
    )


def test_more_vmem_than_a_chip_has_is_refused():
    experiment = changed(TINY, run__tpu_vmem_mib=28)
    with pytest.raises(UserError, match="tpu_vmem_mib=28, but a TPU v4 has 16 MiB; say --config"):
        step.compiler_options(experiment, on_a("tpu", "TPU v4"))


def on_a(platform: str, kind: str) -> SimpleNamespace:
    """A mesh of one such device."""
    device = SimpleNamespace(platform=platform, device_kind=kind)
    return SimpleNamespace(devices=np.array([device]))
