"""The chunked loss against autodiff of its formula, on every split, and what it never stores."""

import functools
import importlib.util
import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from biomedlm_jax.kernels.cross_entropy import chunked
from biomedlm_jax.kernels.cross_entropy.api import cross_entropy
from tests.conftest import ROOT

VOCAB = 28_896  # of the published model


def formula(hidden, table, labels, weights, *, vocab, z_loss=0.0):
    """All logits at once, in float32."""
    hidden, table = hidden.astype(jnp.float32), table.astype(jnp.float32)
    logits = jnp.einsum("btd,vd->btv", hidden, table[:vocab], precision="highest")
    z = jax.nn.logsumexp(logits, axis=-1)
    nats = z - jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return (weights * (nats + z_loss * z**2)).sum(), nats


def with_gradients(loss, hidden, table, labels, weights, **options):
    """(sum, nats, its gradients to hidden, table and weights)"""

    def total(hidden, table, weights):
        return loss(hidden, table, labels, weights, **options)

    step = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))
    (found, nats), gradients = step(hidden, table, weights)
    return found, nats, *gradients


def inputs(seed=0, batch=2, length=24, width=16, vocab=90, padded=96, dtype=jnp.float32):
    """Logits of standard deviation 2; a third of the labels does not count."""
    draw = np.random.default_rng(seed)
    hidden = 2 * draw.normal(size=(batch, length, width))
    table = draw.normal(size=(padded, width)) / np.sqrt(width)
    table[vocab:] = 0
    labels = draw.integers(0, vocab, (batch, length))
    weights = draw.random((batch, length)) * (draw.random((batch, length)) < 2 / 3)
    return (
        jnp.asarray(hidden, dtype),
        jnp.asarray(table, dtype),
        jnp.asarray(labels, jnp.int32),
        jnp.asarray(weights, jnp.float32),
    )


def close(found, expected, rtol):
    """As vectors: the norm of the difference against the norm."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= rtol * np.linalg.norm(expected) + 1e-30


@settings(max_examples=10)
@given(data=st.data())
def test_sum_and_gradients_are_those_of_the_formula(data):
    """Any number of tokens and chunks, padding rows, labels that do not count."""
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40))
    vocab, padding = data.draw(st.integers(1, 40)), data.draw(st.integers(0, 9))
    shape = dict(batch=batch, length=length, width=data.draw(st.integers(1, 9)))
    arrays = inputs(data.draw(st.integers(0, 99)), **shape, vocab=vocab, padded=vocab + padding)
    if data.draw(st.booleans()):
        arrays = (*arrays[:3], jnp.zeros_like(arrays[3]))
    options = dict(vocab=vocab, z_loss=data.draw(st.sampled_from([0.0, 1e-4, 0.1])))
    rows = data.draw(st.integers(1, batch * length + 3))
    found = with_gradients(functools.partial(cross_entropy, rows=rows), *arrays, **options)
    expected = with_gradients(formula, *arrays, **options)
    for ours, plain in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=2e-5, atol=5e-6)
    assert not np.asarray(found[3])[vocab:].any()


@pytest.mark.parametrize("rows", [None, 17])
def test_bfloat16_rounds_operands_and_results_alone(rows):
    arrays = inputs(length=64, width=64, vocab=500, padded=512, dtype=jnp.bfloat16)
    options = dict(vocab=500, z_loss=1e-3)
    found = with_gradients(functools.partial(cross_entropy, rows=rows), *arrays, **options)
    expected = with_gradients(formula, *arrays, **options)
    assert [x.dtype for x in found[2:4]] == [jnp.bfloat16] * 2
    for ours, plain, rtol in zip(found, expected, [2e-4, 1e-3, 6e-3, 6e-3, 1e-3], strict=True):
        close(ours, plain, rtol)


def test_the_table_gradient_is_summed_in_float32():
    """Over 512 chunks a sum in bfloat16 would stop growing at 256 of the first addend."""
    hidden = jnp.ones((1, 512, 1), jnp.bfloat16)
    table = jnp.zeros((2, 1), jnp.bfloat16)
    labels, weights = jnp.zeros((1, 512), jnp.int32), jnp.ones((1, 512))
    *_, to_table, _ = with_gradients(
        functools.partial(cross_entropy, rows=1), hidden, table, labels, weights, vocab=2
    )
    assert to_table.tolist() == [[-256], [256]]


def test_what_all_logits_share_is_not_rounded():
    """In bfloat16 a logit of 8192 has neighbours 32 apart; the differences here are kept."""
    hidden, table, labels, weights = inputs(dtype=jnp.bfloat16)
    options = dict(vocab=90)
    raised = hidden.at[..., 0].set(256), table.at[:, 0].set(32)
    level = hidden.at[..., 0].set(0), table.at[:, 0].set(0)
    _, nats, *gradients = with_gradients(cross_entropy, *level, labels, weights, **options)
    _, moved, *others = with_gradients(cross_entropy, *raised, labels, weights, **options)
    np.testing.assert_allclose(moved, nats, atol=5e-3)
    close(others[0][..., 1:], gradients[0][..., 1:], 1e-2)
    close(others[1][:, 1:], gradients[1][:, 1:], 1e-2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("every", [1, 5])
def test_logits_of_ten_thousand_are_finite(dtype, every):
    """Of all tokens, and of some among ordinary ones."""
    hidden, table, labels, weights = inputs(dtype=dtype)
    hidden = hidden.at[:, ::every].multiply(jnp.asarray(3e3, dtype))
    arrays, options = (hidden, table, labels, weights), dict(vocab=90, z_loss=1e-4)
    logits = jnp.einsum("btd,vd->btv", *(x.astype(jnp.float32) for x in (hidden, table)))
    assert jnp.abs(logits).max() > 1e4
    found = with_gradients(cross_entropy, *arrays, **options)
    expected = with_gradients(formula, *arrays, **options)
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in found)
    for ours, plain in zip(found, expected, strict=True):
        close(ours, plain, 1e-4 if dtype == jnp.float32 else 1e-2)


@pytest.mark.parametrize("above", [60, 87, 89, 120])
def test_a_logit_far_above_the_label_counts_in_full(above):
    """On both sides of what exp() can hold in float32."""
    logits = jnp.full((4, 8), -30.0).at[:, 2].set(above)
    hidden, table = jnp.eye(4)[None], jnp.zeros((8, 4)).at[:].set(logits.T)
    labels, weights = jnp.full((1, 4), 1), jnp.ones((1, 4))
    hidden = hidden.at[0, 3].set(0)  # one token of the chunk has even logits
    found = with_gradients(cross_entropy, hidden, table, labels, weights, vocab=8)
    expected = with_gradients(formula, hidden, table, labels, weights, vocab=8)
    for ours, plain in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)


def test_labels_that_do_not_count_may_be_anything():
    """Also where all logits are so low that only a shift by one of them keeps a sum from 0."""
    hidden, table, labels, weights = inputs()
    hidden, table = hidden.at[..., 0].set(20), table.at[:90, 0].set(-10)
    odd = jnp.where(weights == 0, jnp.asarray([-1, 93, 10**6] * 8), labels)
    assert not jnp.array_equal(odd, labels)
    found = with_gradients(cross_entropy, hidden, table, odd, weights, vocab=90)
    expected = with_gradients(cross_entropy, hidden, table, labels, weights, vocab=90)
    for index in (0, 2, 3):
        np.testing.assert_array_equal(found[index], expected[index])
    nothing = with_gradients(cross_entropy, hidden, table, odd, 0 * weights, vocab=90)
    assert float(nothing[0]) == 0
    assert not any(np.asarray(x).any() for x in nothing[2:4])
    counted = cross_entropy(hidden, table, labels, weights > 0, vocab=90)[0]
    assert float(counted) == pytest.approx(float(jnp.where(weights > 0, found[1], 0).sum()))


def test_a_label_of_no_token_that_counts_is_no_number():
    hidden, table, labels, weights = inputs()
    for label in (-1, 90, 95, 96):
        wrong = labels.at[1, 3].set(label), weights.at[1, 3].set(1)
        assert np.isnan(cross_entropy(hidden, table, *wrong, vocab=90)[0])


SPLITS = [(1, 2, None), (1, 4, 5), (2, 1, 5), (2, 4, None)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("batches", "pieces", "rows"), SPLITS)
def test_a_split_vocabulary_has_the_same_loss(batches, pieces, rows, dtype):
    """Also where a piece is padding alone, where some pieces need a shift and others do not, and
    under remat. Each device gives its share."""
    hidden, table, labels, weights = inputs(vocab=70, dtype=dtype)
    arrays = (hidden.at[:, ::7].multiply(jnp.asarray(1e3, dtype)), table, labels, weights)
    options = dict(vocab=70, z_loss=1e-3, rows=rows)
    devices = np.array(jax.devices()[: batches * pieces]).reshape(batches, pieces)
    places = (P("data"), P("model"), P("data"), P("data"))

    @functools.partial(
        jax.shard_map,
        mesh=Mesh(devices, ("data", "model")),
        in_specs=places,
        out_specs=(P(), P("data"), *places[:2], P("data")),
    )
    def split(*arrays):
        loss = jax.checkpoint(functools.partial(cross_entropy, split=("model",), **options))
        total, *others = with_gradients(loss, *arrays)
        return jax.lax.psum(total, "data"), *others

    found = jax.jit(split)(*arrays)
    expected = with_gradients(cross_entropy, *arrays, **options)
    for ours, one_device in zip(found, expected, strict=True):
        close(ours, one_device, 2e-6 if dtype == jnp.float32 else 5e-3)


def structs(dtype, batch):
    """hidden, table, labels, weights of the published model."""
    yield jax.ShapeDtypeStruct((batch, 1024, 2560), dtype)
    yield jax.ShapeDtypeStruct((28_928, 2560), dtype)
    yield from (jax.ShapeDtypeStruct((batch, 1024), t) for t in (jnp.int32, jnp.float32))


def largest(compiled) -> int:
    """Elements of the largest array anywhere in a compiled program."""
    shapes = re.findall(r"[a-z]+[0-9]+\[([0-9,]+)\]", compiled.as_text())
    return max(math.prod(int(size) for size in shape.split(",")) for shape in shapes)


@pytest.mark.parametrize(("dtype", "batch"), [(jnp.float32, 8), (jnp.bfloat16, 16)])
def test_logits_of_the_batch_never_exist_together(dtype, batch):
    """Compiled at the published shape, not run: four chunks here; the formula stores them all."""
    logits = batch * 1024 * VOCAB
    for loss in (cross_entropy, formula):
        step = jax.jit(functools.partial(with_gradients, loss, vocab=VOCAB))
        compiled = step.lower(*structs(dtype, batch)).compile()
        assert (largest(compiled) >= logits) == (loss is formula)
        if dtype == jnp.float32:  # a CPU's bfloat16 products need float32 copies
            memory = compiled.memory_analysis().temp_size_in_bytes
            assert (memory >= 4 * logits) == (loss is formula)


@pytest.mark.parametrize(("rows", "written"), [(None, 1), (2048, 2), (512, 3)])
def test_a_chunk_meets_the_table_in_three_products(rows, written):
    """Logits and two gradients; without gradients, logits alone. Of many chunks the program has the
    first, the last and the loop's."""
    loss = functools.partial(cross_entropy, vocab=VOCAB, rows=rows)
    traced = jax.make_jaxpr(functools.partial(with_gradients, loss))(*structs(jnp.bfloat16, 4))
    assert str(traced).count("dot_general[") == 3 * written
    forward = jax.make_jaxpr(loss)(*structs(jnp.bfloat16, 4))
    assert str(forward).count("dot_general[") == 1


ON_TPU = """
import jax
from jax.experimental import topologies
from tests.test_cross_entropy import VOCAB, cross_entropy, jnp, structs, with_gradients

devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
one = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,), devices=devices[:1])
here = jax.sharding.NamedSharding(one, jax.P())
shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for x in structs(jnp.bfloat16, 4)]
step = jax.jit(lambda *arrays: with_gradients(cross_entropy, *arrays, vocab=VOCAB))
with jax.set_mesh(one):  # by which the loss knows what it is for
    compiled = step.trace(*shapes).lower(lowering_platforms=("tpu",)).compile()
print(compiled.memory_analysis().temp_size_in_bytes)
"""


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_a_tpu_stores_the_published_batch_in_half_of_float32_logits():
    """All in one chunk there, as bfloat16. In a process of its own: libtpu is loaded once."""
    flags = dict(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    done = subprocess.run(
        [sys.executable, "-c", ON_TPU], cwd=ROOT, env=os.environ | flags, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    bfloat16_logits = 2 * 4 * 1024 * 28_928
    assert bfloat16_logits <= int(done.stdout) < 1.01 * bfloat16_logits


def test_chunks_are_few_and_even():
    rows = functools.partial(chunked.rows_of_a_chunk, rows_of_table=28_928)
    assert [rows(n, dtype=jnp.bfloat16) for n in (1, 1023, 4096)] == [1, 1023, 4096]
    assert [rows(n, dtype=jnp.bfloat16) for n in (5000, 8192, 16_384)] == [2560, 4096, 4096]
    assert rows(4096, dtype=jnp.float32) == 2048
    assert chunked.rows_of_a_chunk(8192, 28_928 // 2, jnp.bfloat16) == 8192
    assert chunked.rows_of_a_chunk(300, 2**30, jnp.float32) == chunked.TILE


def test_refusals_say_what_was_found():
    hidden, table, labels, weights = inputs()
    whole = functools.partial(cross_entropy, vocab=90)
    with pytest.raises(ValueError, match=r"hidden \(2, 24, 16\) and table \(96, 15\) are not"):
        whole(hidden, table[:, 1:], labels, weights)
    with pytest.raises(ValueError, match="hidden bfloat16 and table float32 are not one float"):
        whole(hidden.astype(jnp.bfloat16), table, labels, weights)
    with pytest.raises(ValueError, match=r"labels \(2, 23\) and weights \(2, 24\) are not"):
        whole(hidden, table, labels[:, 1:], weights)
    with pytest.raises(ValueError, match="labels are float32, not integers"):
        whole(hidden, table, weights, weights)
    for vocab in (0, 97):
        with pytest.raises(ValueError, match=f"vocab={vocab} is not in 1 to 96"):
            cross_entropy(hidden, table, labels, weights, vocab=vocab)
    with pytest.raises(ValueError, match="z_loss=-1 is negative"):
        whole(hidden, table, labels, weights, z_loss=-1)
    with pytest.raises(ValueError, match="rows=0; a chunk has one token or more"):
        whole(hidden, table, labels, weights, rows=0)
