"""Fine-tuning in the loop of pre-training: what it begins with, learns, is scored on, and that a
stopped run goes on to the same bits."""

import dataclasses
import itertools
import json
import random

import jax
import numpy as np
import pytest
from etils import epath

from biomedlm_jax import finetune, generate, mesh, start, train
from biomedlm_jax.benchmarks.batches import Questions
from biomedlm_jax.benchmarks.item import Item, Split
from biomedlm_jax.benchmarks.prompts import Form
from biomedlm_jax.claim import read_claim
from biomedlm_jax.entry import Preempted, UserError
from biomedlm_jax.model import additions
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from tests.conftest import TINY, changed, fine_tuning, on, sentences, started

CLASSES = ("maybe", "no", "yes")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """PubMedQA in its authors' form: the answer is in the first word of the context."""
    folder, draw = tmp_path_factory.mktemp("qa"), random.Random(0)
    words = {"maybe": "Ka", "no": "Dor", "yes": "Mel"}
    texts = iter(sentences(200, seed=5))
    for split, count in {"train": 22, "dev": 9, "test": 9}.items():
        lines = []
        for number in range(count):
            label = draw.choice(CLASSES)
            row = {
                "id": f"{1000 + number}{len(split)}",
                "sentence1": f"{next(texts)[:9]} {len(split)}{number}?",
                "sentence2": f"{words[label]} {next(texts)[:20]}",
                "label": label,
            }
            lines.append(json.dumps(row))
        (folder / f"{split}.json").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def base(store, tmp_path_factory):
    """A run of pre-training, of one step."""
    workdir = tmp_path_factory.mktemp("base") / "run"
    experiment = changed(
        TINY, data__store=str(store), mesh__fsdp=-1, run__steps=3, run__save_every=3
    )
    train.fit(experiment, workdir)
    return workdir


@pytest.fixture
def experiment(questions, base):
    """Of two epochs; the last batch of an epoch has 6 of 8 items."""
    tuned = fine_tuning(
        "classification",
        model=dict(vocab=304),
        train="pubmedqa",
        dev="pubmedqa",
        benchmarks=str(questions),
        other_version=True,
    )
    tuned = dataclasses.replace(tuned, start=str(base))
    return changed(
        tuned,
        mesh__fsdp=-1,
        optimizer__decay="linear",
        run__steps=6,
        run__eval_every=3,
        run__save_every=3,
    )


def losses(workdir) -> list[float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_a_run_learns_is_scored_and_goes_on_to_the_same_bits(experiment, tmp_path, monkeypatch):
    whole = train.fit(experiment, tmp_path / "whole")
    claim = read_claim(tmp_path / "whole")
    assert claim.weights["what"] == "run"
    lines = (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    scored = [json.loads(line) for line in lines if "accuracy" in line]
    assert [line["step"] for line in scored] == [0, 3, 6]
    assert all(0 <= line["accuracy"] <= 1 for line in scored)
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0]
    looks = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(train.Preemption, "requested", lambda self, count: next(looks) > 7)
        with pytest.raises(Preempted, match=r"stopped at step \d as asked"):
            train.fit(experiment, tmp_path / "cut/run")
    again = train.fit(experiment, tmp_path / "cut/run")
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert losses(tmp_path / "cut/run") == losses(tmp_path / "whole")


def test_what_a_run_begins_with(experiment, base):
    """All of the base, rows for new tokens inside the padding, and a head; drawn by the seed."""
    tuned, devices = on(experiment, 2, 2, 2)
    source = start.find(base)
    before = jax.device_get(start.params(source, devices))
    after = jax.device_get(
        additions.fitted(start.params(source, devices), source.model, tuned, devices)
    )
    head = after.pop("head")
    assert head["kernel"].shape == (64, 3)
    assert 0.015 < head["kernel"].std() < 0.025
    table = after["tokens"].pop("table")
    np.testing.assert_array_equal(table[:300], before["tokens"].pop("table")[:300])
    assert 0.01 < table[300:304].std() < 0.03
    assert not table[304:].any()
    jax.tree.map(np.testing.assert_array_equal, after, before)
    # From a run that was fine-tuned, everything stays.
    params = started(tuned, devices).params
    kept = additions.fitted(params, tuned.model, tuned, devices)
    assert kept is params
    # But for a head of another number of classes, which is drawn anew.
    two = changed(tuned, model__classes=2)
    found = additions.fitted(params, tuned.model, two, devices)
    assert found["head"]["kernel"].shape == (64, 2)
    np.testing.assert_array_equal(found["tokens"]["table"], kept["tokens"]["table"])


def test_more_tokens_than_the_padding_has(base):
    source = start.find(base)
    tuned = fine_tuning("classification", model=dict(vocab=400))
    tuned, devices = on(tuned, 1, 2, 1)
    found = additions.fitted(start.params(source, devices), source.model, tuned, devices)
    table = jax.device_get(found["tokens"]["table"])
    assert table.shape == (512, 64)
    assert table[:400].any(1).all()
    assert not table[400:].any()


def many(count: int, options: int = 4) -> Split:
    items = tuple(
        Item(
            id=str(number),
            question=f"Kari to {number}?",
            options=tuple(f"mel {place}" for place in range(options)),
            label=number % options,
        )
        for number in range(count)
    )
    return Split("medqa", "train", "multiple_choice", items, {}, {})


def batches_of(experiment, vocabulary, split, mesh=(1, 1, 1)) -> Questions:
    experiment, devices = on(experiment, *mesh)
    form = Form("multiple_choice", Vocabulary(vocabulary), 32)
    return Questions(experiment, devices, form, split)


def test_an_epoch_has_every_item_once_in_an_order_of_its_own(vocabulary):
    asked = fine_tuning("multiple_choice", model=dict(vocab=303))
    questions = batches_of(asked, vocabulary, many(21))
    assert questions.epoch == 3
    epochs = [
        [number for step in range(3 * epoch, 3 * epoch + 3) for number in questions.chosen(step)]
        for epoch in range(2)
    ]
    assert all(sorted(epoch) == list(range(21)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    last = questions.batch(2)
    assert last.counted.tolist() == [True] * 5 + [False] * 3
    assert last.tokens.shape[0] == 32
    labels = [number % 4 for number in questions.chosen(2)]
    assert last.labels[:5].tolist() == labels


def test_batches_do_not_depend_on_the_mesh(vocabulary):
    asked = fine_tuning("multiple_choice", model=dict(vocab=303))
    one, two = (batches_of(asked, vocabulary, many(21), mesh) for mesh in [(1, 1, 1), (2, 2, 2)])
    for step in (0, 2, 5):
        for a, b in zip(one.batch(step), two.batch(step), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a, b)


def test_shuffled_options_keep_their_labels(vocabulary):
    asked = fine_tuning("multiple_choice", model=dict(vocab=303), shuffle_options=True)
    split = many(16)
    questions = batches_of(asked, vocabulary, split)
    plain = batches_of(
        dataclasses.replace(asked, task=dataclasses.replace(asked.task, shuffle_options=False)),
        vocabulary,
        split,
    )
    moved = 0
    for step in range(4):
        chosen = questions.chosen(step)
        a, b = questions.batch(step), plain.batch(step)
        rows = [np.asarray(x.tokens).reshape(8, 4, -1) for x in (a, b)]
        for place in range(len(chosen)):
            right = [
                part[place, int(x.labels[place])] for part, x in zip(rows, (a, b), strict=True)
            ]
            np.testing.assert_array_equal(*right)
            moved += int(a.labels[place] != b.labels[place])
    assert moved > 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model__vocab=303), "config.model.vocab=303, but .* adds .*CONTEXT.*: set it to 304"),
        (dict(model__classes=2), "config.model.classes=2, but .* has 3: maybe, no, yes"),
        (dict(task__train="pubmedqua"), "no benchmark 'pubmedqua'.*'pubmedqa'"),
        (dict(start=""), "config.task.vocabulary is empty, and so is config.start"),
        (dict(task__other_version=False), "450"),
    ],
)
def test_refusals(experiment, changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train.fit(changed(experiment, **changes), tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model__classes=0), "model.classes=0, but task.objective='classification' has one"),
        (dict(task__length=33), "task.length=33 is over model.context=32"),
        (dict(data__separators=True), "data.store, separators and segment_ids are not a task's"),
        (dict(run__sample_tokens=3), "run.sample_tokens=3 is not a task's: 0"),
        (dict(optimizer__frozen_layers=3), "config.optimizer.frozen_layers=3, but there are 2"),
        (dict(task__shuffle_options=True), "config.task.shuffle_options=True is for"),
        (dict(task=None), "model.classes and lora_rank are for fine-tuning: set task"),
        (dict(model__remat="named", model__lora_rank=2), "lora_rank=2 and config.model.lora_alpha"),
        (dict(model__class_bias=True, model__classes=0), "is of a head"),
    ],
)
def test_settings_that_do_not_go_together(experiment, changes, message):
    with pytest.raises(UserError, match=message):
        changed(experiment, **changes)


@pytest.mark.slow
def test_seeds_are_trained_selected_on_dev_and_tested_once(experiment, tmp_path, monkeypatch):
    experiment = changed(experiment, task__select="best", run__keep=2)
    asked = []
    real = finetune.asked_of
    monkeypatch.setattr(finetune, "asked_of", lambda *x: asked.append(x[1]) or real(*x))
    place = epath.Path(tmp_path / "runs")
    with monkeypatch.context() as patch:  # ended while the second seed's test would be asked
        real_answer = finetune.answer
        patch.setattr(finetune, "answer", lambda *x: real_answer(*x) if x[3] == "dev" else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            finetune.finetune(experiment, place, [1, 2], test=True)
    found = finetune.finetune(experiment, place, [1, 2], test=True)
    assert asked == ["test", "dev", "dev", "test", "test", "test"]  # the check, and each once
    assert found == json.loads((place / "results.json").read_text(), object_hook=numbers)
    assert found["test_was_asked"]
    for split in ("dev", "test"):
        seeds = found[split]["accuracy"]["seeds"]
        assert found[split]["accuracy"]["value"] == pytest.approx(np.mean(list(seeds.values())))
    for seed, save in found["saves"].items():
        lines = (place / f"seed_{seed}/metrics.jsonl").read_text().splitlines()
        scored = {x["step"]: x["accuracy"] for x in map(json.loads, lines) if "accuracy" in x}
        assert found["dev"]["accuracy"]["seeds"][seed] == pytest.approx(scored[save])
        assert scored[save] == max(scored[3], scored[6])
    assert (place / "scores/report.html").is_file()
    # Without --test nothing of it is lost, and nothing is asked again.
    monkeypatch.setattr(finetune, "answer", lambda *x: 1 / 0)
    assert finetune.finetune(experiment, place, [1, 2], test=False) == found
    with pytest.raises(UserError, match=r"of the save of step \d, and step 9 would be taken now"):
        finetune.known(place, experiment.task, "test", 1, 9)


def test_a_test_without_answers_or_with_what_is_trained_on_is_refused_first(
    experiment, tmp_path, monkeypatch
):
    place, real = epath.Path(tmp_path / "runs"), finetune.asked_of

    def other(task, split, change):
        found = real(task, split)
        return dataclasses.replace(found, items=tuple(map(change, found.items)))

    hidden = lambda item: dataclasses.replace(item, label=None)  # noqa: E731
    monkeypatch.setattr(finetune, "asked_of", lambda task, split: other(task, split, hidden))
    with pytest.raises(UserError, match="keep 9 of its answers to themselves"):
        finetune.finetune(experiment, place, [1], test=True)
    monkeypatch.setattr(finetune, "asked_of", lambda task, split: real(task, "train"))
    with pytest.raises(UserError, match="22 of the items of pubmedqa to train on are in the train"):
        finetune.finetune(experiment, place, [1], test=True)
    assert not place.exists()


def numbers(pairs: dict) -> dict:
    """JSON's names of seeds as the numbers that they are."""
    return {int(name) if name.isdecimal() else name: value for name, value in pairs.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(task__dev=""), "config.task.dev names nothing to select by"),
        (dict(run__save_every=0), "config.run.save_every=0 leaves no save to score"),
        (
            dict(task__select="best", run__keep=1),
            "compares the 2 saves of a run: set .* run.keep to 2",
        ),
    ],
)
def test_what_can_not_be_selected_is_refused_before_it_runs(experiment, changes, message, tmp_path):
    place = epath.Path(tmp_path / "runs")
    with pytest.raises(UserError, match=message):
        finetune.finetune(changed(experiment, **changes), place, [1], test=False)
    assert not place.exists()


def test_rows_split_over_the_context_axis_or_are_refused():
    tuned = fine_tuning("classification", length=30)
    axes = dict(data=1, fsdp=1, model=1)
    mesh.check(tuned, {**axes, "context": 2})
    with pytest.raises(UserError, match=r"length=30 does not split over .*=4; 28 or 32 would"):
        mesh.check(tuned, {**axes, "context": 4})


def test_a_model_with_tokens_of_a_task_does_not_write_here(base, vocabulary):
    tuned, devices = on(fine_tuning("generation", model=dict(vocab=302)), 1, 1, 1)
    params = started(tuned, devices).params
    with pytest.raises(UserError, match=r"has 2 tokens more than its vocabulary.*hf.save"):
        generate.Engine(tuned.model, params, Vocabulary(vocabulary), devices, slots=1)
