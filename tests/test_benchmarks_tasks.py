"""What a program that knows nothing but seqio gets of a folder of benchmarks."""

import json

import numpy as np
import pytest

from biomedlm_jax.benchmarks import pubmedqa
from biomedlm_jax.benchmarks.plain import plain
from biomedlm_jax.benchmarks.read import BENCHMARKS, read
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from tests.conftest import SHARED

seqio = pytest.importorskip("seqio")
tasks = pytest.importorskip("biomedlm_jax.benchmarks.tasks")

VOCABULARY = "BIOMEDLM_VOCABULARY"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """PubMedQA's and MMLU's dev splits with the published numbers of rows, invented."""
    place = tmp_path_factory.mktemp("benchmarks")
    labels = [pubmedqa.CLASSES[number % 3] for number in range(50)]
    with (place / "dev.json").open("w") as file:
        for number, label in enumerate(labels):
            row = {"id": str(1000 + number), "sentence1": f"Is it {number}?", "label": label}
            file.write(json.dumps({**row, "sentence2": f"It is {label}."}) + "\n")
    with (place / "test.source").open("w") as source, (place / "test.target").open("w") as target:
        for number in range(500):
            source.write(f"My message {number}.\n")
            target.write(f"What are the treatments of {number}?\n")
    return place


@pytest.fixture
def named(folder, vocabulary, monkeypatch):
    monkeypatch.setenv(tasks.FOLDER, str(folder))
    monkeypatch.setenv(VOCABULARY, str(vocabulary))
    return Vocabulary(vocabulary)


def examples(name, split="dev", shuffle=False, **options):
    task = seqio.get_mixture_or_task(name)
    lengths = {"inputs": 500, "targets": 50}
    return list(
        task.get_dataset(lengths, split=split, shuffle=shuffle, **options).as_numpy_iterator()
    )


def test_examples_are_the_items_in_ids(named, folder):
    found, items = examples("pubmedqa"), read("pubmedqa", folder, "dev").items
    assert len(found) == len(items) == 50
    for example, item in zip(found, items, strict=True):
        prompt, answer = plain(item, "classification")
        assert example["inputs_pretokenized"].decode() == prompt
        assert example["inputs"].tolist() == named.encode(prompt)
        assert example["targets"].tolist() == [*named.encode(answer), named.eos_id]
        assert example["id"].decode() == item.id
        assert [option.decode() for option in example["options"]] == list(item.options)
        assert example["label"] == item.label
        assert example["inputs"].dtype == example["label"].dtype == np.int32
    (first, *_) = examples("meqsum", "test")
    assert first["options"].tolist() == []
    assert first["label"] == tasks.NO_LABEL
    assert named.decode(first["targets"].tolist()[:-1]) == " What are the treatments of 0?"


def test_shuffled_and_sharded(named):
    ids = [example["id"] for example in examples("pubmedqa")]
    drawn = [example["id"] for example in examples("pubmedqa", shuffle=True, seed=1)]
    assert drawn != ids
    assert sorted(drawn) == sorted(ids)
    assert drawn == [example["id"] for example in examples("pubmedqa", shuffle=True, seed=1)]
    for shuffle in (False, True):
        shards = [
            examples("pubmedqa", shuffle=shuffle, shard_info=seqio.ShardInfo(part, 3))
            for part in range(3)
        ]
        assert sorted(example["id"] for shard in shards for example in shard) == sorted(ids)
    assert seqio.get_mixture_or_task("pubmedqa").num_input_examples("dev") == 50


def test_every_benchmark_has_its_task(named, monkeypatch):
    for name, benchmark in BENCHMARKS.items():
        assert tuple(seqio.get_mixture_or_task(name).splits) == benchmark.splits
    with pytest.raises(UserError, match="there is no dev split of medqa in the folder"):
        examples("medqa")
    monkeypatch.delenv(tasks.FOLDER)
    with pytest.raises(UserError, match="BIOMEDLM_BENCHMARKS is not set"):
        examples("pubmedqa")


def evaluated(name, split, written):
    """The metrics that seqio's own evaluation computes of written texts."""
    evaluator = seqio.Evaluator(
        mixture_or_task_name=name,
        feature_converter=seqio.PrefixLMFeatureConverter(pack=False),
        eval_split=split,
        sequence_length={"inputs": 500, "targets": 50},
    )
    vocabulary = evaluator.eval_tasks[0].output_features["targets"].vocabulary

    def predict(dataset):
        """As a model writes: to the end of text, and whatever then, all of a length."""
        ends = [[*vocabulary.encode(text), vocabulary.eos_id] for text in written]
        return [(number, (ids + [7] * 50)[:50]) for number, ids in enumerate(ends)]

    metrics, _ = evaluator.evaluate(
        compute_metrics=True, predict_fn=predict, score_fn=lambda dataset: []
    )
    return metrics.result()[name]


def test_seqio_scores_answers(named):
    """Of 50 items 17, 17 and 16 are maybe, no and yes, the last is no. Who says no to all but the
    last, of which he says what can not be read, has 16 right; F1 of no is 2 * 16 / (17 + 49), of
    the others 0."""
    assert evaluated("pubmedqa", "dev", [" no"] * 49 + [" yes?"]) == pytest.approx(
        {"accuracy": 16 / 50, "macro_f1": (2 * 16 / 66) / 3}
    )
    right = [f" {pubmedqa.CLASSES[number % 3]}" for number in range(50)]
    assert evaluated("pubmedqa", "dev", right) == {"accuracy": 1.0, "macro_f1": 1.0}


def test_seqio_scores_texts(named):
    """Of "what are the treatments of 0" (6 words), 5 stand in the answer of 6 others."""
    pytest.importorskip("rouge_score")
    written = [f" What are the treatments of {number}?" for number in range(500)]
    assert evaluated("meqsum", "test", written) == {"rouge1": 1, "rouge2": 1, "rougeL": 1}
    found = tasks.rouge(["what are the treatments of 0"] * 2, ["what are the treatments of x"] * 2)
    assert found == pytest.approx({"rouge1": 5 / 6, "rouge2": 4 / 5, "rougeL": 5 / 6})


def test_unpublished_answers_are_not_scored():
    with pytest.raises(UserError, match="the owners keep the answers"):
        tasks.accuracy([0, tasks.NO_LABEL], [0, 0])


@pytest.mark.skipif(not (SHARED / "qa").is_dir(), reason=f"{SHARED}/qa is missing")
@pytest.mark.parametrize(
    ("name", "split", "count"),
    [("medqa", "test", 1273), ("mmlu", "train", 30), ("bioasq", "test", 409)],
)
def test_published_files(named, monkeypatch, name, split, count):
    monkeypatch.setenv(tasks.FOLDER, str(SHARED / "qa"))
    found = examples(name, split)
    assert len(found) == count
    assert all(0 <= example["label"] < len(example["options"]) for example in found)
