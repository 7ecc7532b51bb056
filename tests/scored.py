"""Small splits and answers for the tests of `scoring`."""

import numpy as np

from biomedlm_jax.benchmarks.item import Item, Split
from biomedlm_jax.scoring.answers import Answers

CHECKPOINT = {"place": "runs/tuned", "sha256": "ab" * 32, "step": 500, "parameters": 2_594_247_680}
CLASSES = ("maybe", "no", "yes")


def choice(labels, options=4, subjects=(), benchmark="medqa", name="test") -> Split:
    """Questions whose options are "first thing", "second thing", ..."""
    texts = tuple(f"{word} thing" for word in ("first", "second", "third", "fourth")[:options])
    subjects = subjects or [""] * len(labels)
    items = tuple(
        Item(f"{name}-{n}", f"question {n}?", texts, label, subject=subject)
        for n, (label, subject) in enumerate(zip(labels, subjects, strict=True))
    )
    return Split(benchmark, name, "multiple_choice", items, {"a/test.jsonl": "cd" * 32}, {})


def classified(labels, benchmark="pubmedqa") -> Split:
    items = tuple(
        Item(str(n + 1), f"question {n}?", CLASSES, CLASSES.index(label), pmids=(n + 1,))
        for n, label in enumerate(labels)
    )
    return Split(benchmark, "test", "classification", items, {}, {"no label": ["9"]})


def generated(references) -> Split:
    items = tuple(Item(str(n), f"question {n}?", answer=r) for n, r in enumerate(references))
    return Split("meqsum", "test", "generation", items, {}, {})


def scored(split, scores, form="classifier", seed=None, **checkpoint) -> Answers:
    values = np.array(scores, np.float64).reshape(len(split.items), -1)
    return Answers(split, form, values, None, CHECKPOINT | checkpoint, seed)


def written(split, texts, form="generated", seed=None) -> Answers:
    return Answers(split, form, None, tuple(texts), CHECKPOINT, seed)


def choosing(split, chosen, form="classifier", seed=None, **checkpoint) -> Answers:
    """Scores of 0 for what is chosen and -2 for the others."""
    scores = np.full((len(split.items), len(split.items[0].options)), -2.0)
    scores[np.arange(len(chosen)), chosen] = 0
    return scored(split, scores, form, seed, **checkpoint)
