"""seqio tasks over a folder of benchmarks, for any program that uses seqio:

    export BIOMEDLM_BENCHMARKS=DIR BIOMEDLM_VOCABULARY=DIR

    import seqio
    import biomedlm_jax.benchmarks.tasks  # registers what is below; opens nothing yet

    task = seqio.get_mixture_or_task("medqa")
    dataset = task.get_dataset({"inputs": 1000, "targets": 24}, split="test", shuffle=False)

medqa, medqa5, medmcqa, mmlu, pubmedqa (fold 0), bioasq, meqsum, medquad: one task each, with the
splits that are published, read from DIR as `benchmarks.read` does and refused as there. An example:

    inputs, targets   int32 [tokens]: the prompt of `plain.py`, and the answer with the end of text
    inputs_pretokenized, targets_pretokenized   the same as text
    id                the item's
    options           string [options]; none where a text is to be written
    label             int32, the place of the right one; -1 where there is none

seqio's evaluation computes accuracy of the choices, macro F1 too of the classifications, and ROUGE
(by `rouge_score`) of the texts. A prompt that is cut to a length loses its end, and the question's
options with it: choose lengths that cut none. Import this only where questions are read through
seqio: it brings all of TensorFlow.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from etils import epath

from biomedlm_jax.benchmarks.item import Item, Kind, Split
from biomedlm_jax.benchmarks.plain import plain, read_plain
from biomedlm_jax.benchmarks.read import BENCHMARKS, read
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.tasks import GivenVocabulary
from biomedlm_jax.scoring import measures
from biomedlm_jax.scoring import rouge as scoring_rouge

FOLDER = "BIOMEDLM_BENCHMARKS"  # environment variable
NO_LABEL = -1


class GivenBenchmark(seqio.DataSource):
    """A benchmark of the folder that BIOMEDLM_BENCHMARKS names when it is read.

    Unshuffled, items come in the owners' order. A shuffled dataset draws from all of them.

    Raises:
      UserError: when read, the variable is not set, or as `benchmarks.read.read`.
    """

    def __init__(self, benchmark: str) -> None:
        super().__init__(splits=BENCHMARKS[benchmark].splits)
        self.benchmark = benchmark

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> list[str]:
        return [split]

    def num_input_examples(self, split: str) -> int:
        return len(_split(self.benchmark, split).items)

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        *,
        sequence_length: Any = None,
        use_cached: bool = False,
        num_epochs: int | None = 1,
    ) -> tf.data.Dataset:
        """All of an example but the tokens. The last three arguments are the caller's to heed, as
        for all of seqio's sources."""
        found = _split(self.benchmark, split)
        one: Any = tf.TensorSpec([], tf.string)
        dataset = tf.data.Dataset.from_generator(
            functools.partial(_examples, found.items, found.kind),
            output_signature={
                "inputs": one,
                "targets": one,
                "id": one,
                "options": tf.TensorSpec([None], tf.string),
                "label": tf.TensorSpec([], tf.int32),
            },
        )
        # A dataset of a known length can be packed and counted by who reads it.
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(found.items)))
        if shard_info is not None and shard_info.num_shards > 1:
            # Before it is shuffled, so that without a seed as well no item is in two shards.
            dataset = dataset.shard(shard_info.num_shards, shard_info.index)
        return dataset.shuffle(len(found.items), seed=seed) if shuffle else dataset


def _split(benchmark: str, split: str) -> Split:
    if not (folder := os.environ.get(FOLDER)):
        raise UserError(
            f"the environment variable {FOLDER} is not set; let it name a folder with the files "
            "of benchmarks, as their owners publish them"
        )
    return _read_once(folder, benchmark, split)


@functools.lru_cache(maxsize=4)
def _read_once(folder: str, benchmark: str, split: str) -> Split:
    return read(benchmark, epath.Path(folder), split)


def _examples(items: Sequence[Item], kind: Kind) -> Iterator[dict[str, Any]]:
    for item in items:
        inputs, targets = plain(item, kind)
        yield {
            "inputs": inputs,
            "targets": targets,
            "id": item.id,
            "options": list(item.options),
            "label": NO_LABEL if item.label is None else item.label,
        }


def _tokenize(dataset: tf.data.Dataset, output_features: dict[str, Any]) -> tf.data.Dataset:
    def tokenized(example: dict[str, Any]) -> dict[str, Any]:
        made = dict(example)
        for name, feature in output_features.items():
            made[f"{name}_pretokenized"] = example[name]
            made[name] = feature.vocabulary.encode_tf(example[name])
        return made

    return dataset.map(tokenized, num_parallel_calls=tf.data.AUTOTUNE)  # keeps the order


def _chosen(kind: Kind, text: str, example: dict[str, Any], is_target: bool) -> int:
    """The place of the option that a text names; of a target, the label itself."""
    if is_target:
        return int(example["label"])
    options = tuple(option.decode() for option in example["options"])
    return read_plain(text, options, kind)


def _written(text: str, example: dict[str, Any], is_target: bool) -> str:
    return text.strip()


def accuracy(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """The share of right choices; an answer that names no option is wrong.

    Raises:
      UserError: an item has no published answer.
    """
    if NO_LABEL in targets:
        raise UserError("the owners keep the answers of this split; score another, or ask them")
    return {"accuracy": float(np.mean(np.array(targets) == np.array(predictions)))}


def macro_f1(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """See `scoring/measures.py`."""
    labels, chosen = np.array(targets), np.array(predictions)
    count = int(max(labels.max(), chosen.max())) + 1
    return {"macro_f1": measures.macro_f1(measures.classes(labels, chosen, count))}


def rouge(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Means of the F1 of ROUGE-1, ROUGE-2 and ROUGE-L, 0 to 1; see `scoring/rouge.py`.

    Raises:
      ValueError: fewer than two texts.
    """
    found = scoring_rouge.rouge(predictions, targets)
    return {name: estimate.value for name, estimate in found.items()}


_METRICS = {
    "multiple_choice": [accuracy],
    "classification": [accuracy, macro_f1],
    "generation": [rouge],
}
for _name, _benchmark in BENCHMARKS.items():
    _source: Any = GivenBenchmark(_name)
    _generation = _benchmark.kind == "generation"
    seqio.TaskRegistry.add(
        _name,
        source=_source,
        preprocessors=[_tokenize, seqio.preprocessors.append_eos],
        postprocess_fn=_written if _generation else functools.partial(_chosen, _benchmark.kind),
        output_features={
            "inputs": seqio.Feature(GivenVocabulary(), add_eos=False, dtype=tf.int32),
            "targets": seqio.Feature(GivenVocabulary(), add_eos=True, dtype=tf.int32),
        },
        metric_fns=_METRICS[_benchmark.kind],
    )
