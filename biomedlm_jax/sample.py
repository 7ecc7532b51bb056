"""What a model goes on to write after the first words of documents that it has never seen.

Every token costs a whole forward pass over config.model.context positions: there is no cache of
keys and values. That is cheap beside an evaluation, and too slow for anything else.
"""

import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Int

from biomedlm_jax import step
from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import UserError
from biomedlm_jax.layout import BATCH, IN_USE, spec
from biomedlm_jax.pipeline.store import SOURCE_OF_CODE, TokenStore, document_id
from biomedlm_jax.pipeline.vocabulary import Vocabulary

PROMPT = 12  # tokens, of a document that has more
_compiled = functools.cache(step.next_tokens)  # one program for all evaluations of a run


def continuations(
    experiment: Experiment,
    mesh: Mesh,
    params: dict,
    store: TokenStore,
    count: int = 3,
    tokens: int | None = None,
) -> list[dict[str, str]]:
    """[{"prompt": text, "text": what the model writes after it, "document": "PMID:123"}, ...].

    Greedy: the likeliest token each time, until the end of the document, `tokens` tokens, or the
    last position. Every process of a run calls it and has the same answer.

    params: on `mesh`, as `step.state_shardings` has them.
    store: a split; its first document, its last, and those evenly between give the prompts, fewer
      than `count` where it has fewer.
    tokens: at most, config.run.sample_tokens if not given.

    Raises:
      UserError: no document of two tokens of text.
    """
    limit = experiment.run.sample_tokens if tokens is None else tokens
    documents, prompts = beginnings(store, count, experiment.model.context)
    best = _compiled(experiment, mesh)
    written = greedy(best, experiment, mesh, params, prompts, eos=store.eos_id, limit=limit)
    vocabulary = Vocabulary(store.vocabulary_path)
    return [
        {
            "prompt": vocabulary.decode(prompt),
            "text": vocabulary.decode(more),
            "document": document,
        }
        for document, prompt, more in zip(documents, prompts, written, strict=True)
    ]


def beginnings(store: TokenStore, count: int, context: int) -> tuple[list[str], list[list[int]]]:
    """The ids of documents, and the first PROMPT tokens of each; fewer of one that is no longer,
    or where the context ends.

    Raises:
      UserError: no document of two tokens of text.
    """
    firsts = store.documents[:, 0]
    lengths = np.append(firsts[1:], store.tokens) - firsts - 1  # without the end of the document
    (usable,) = np.nonzero(lengths >= 2)
    if not len(usable):
        raise UserError(
            f"{store.path} has no {store.split} document of two tokens of text to continue; build "
            "it from a larger corpus, or set config.run.sample_tokens=0"
        )
    chosen = usable[np.unique(np.linspace(0, len(usable) - 1, count).round().astype(int))]
    prompts = [
        store.read(firsts[row : row + 1], int(min(PROMPT, lengths[row] - 1, context - 1)))[0]
        for row in chosen
    ]
    ids = [
        document_id(SOURCE_OF_CODE[code], number)
        for code, number in store.documents[chosen, 2:4].tolist()
    ]
    return ids, [prompt.tolist() for prompt in prompts]


def greedy(
    best: Callable,
    experiment: Experiment,
    mesh: Mesh,
    params: dict,
    prompts: list[list[int]],
    *,
    eos: int,
    limit: int,
) -> list[list[int]]:
    """The tokens that come after each prompt, `eos` not included.

    best: of `step.next_tokens`. It always sees whole rows of the context, so it is compiled once;
      what stands after the last token of a row has no influence on it.
    """
    groups = math.prod(mesh.shape[axis] for axis in BATCH)
    rows = -(-len(prompts) // groups) * groups
    tokens = np.full((rows, experiment.model.context), eos, np.int32)
    lengths = np.array([len(prompts[row % len(prompts)]) for row in range(rows)], np.int32)
    for row in range(rows):
        tokens[row, : lengths[row]] = prompts[row % len(prompts)]
    segments = None
    if experiment.data.segment_ids:
        segments = _put(np.zeros_like(tokens), mesh, "bt")

    written: list[list[int]] = [[] for _ in prompts]
    going = set(range(len(prompts)))
    for _ in range(limit):
        going = {row for row in going if lengths[row] < experiment.model.context}
        if not going:
            break
        last = _put(lengths - 1, mesh, "b")
        found = np.asarray(best(params, _put(tokens, mesh, "bt"), segments, last))
        for row in sorted(going):
            if found[row] == eos:
                going.discard(row)
                continue
            written[row].append(int(found[row]))
            tokens[row, lengths[row]] = found[row]
            lengths[row] += 1
    return written


def _put(array: Int[np.ndarray, "..."], mesh: Mesh, axes: str) -> jax.Array:
    """Each process puts down the rows of its devices; all processes have the whole."""
    sharding = NamedSharding(mesh, spec(axes, IN_USE))
    return jax.make_array_from_callback(array.shape, sharding, lambda place: array[place])
