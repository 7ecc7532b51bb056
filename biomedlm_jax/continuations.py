"""What a model goes on to write after the first words of documents that it has never seen."""

import numpy as np
from jax.sharding import Mesh

from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import UserError
from biomedlm_jax.generate import Engine, Request, generate
from biomedlm_jax.generation.slots import groups, without_context
from biomedlm_jax.pipeline.store import SOURCE_OF_CODE, TokenStore, document_id
from biomedlm_jax.pipeline.vocabulary import Vocabulary

PROMPT = 12  # tokens, of a document that has more


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
    context = experiment.model.context
    documents, prompts = beginnings(store, count, context)
    vocabulary = Vocabulary(store.vocabulary_path)
    rows = groups(without_context(mesh))
    slots = -(-len(prompts) // rows) * rows
    engine = Engine(experiment.model, params, vocabulary, mesh, slots=slots)
    requests = [
        Request(
            prompt=tuple(prompt),
            max_tokens=min(limit, context - len(prompt)),
            temperature=0.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            seed=0,
            stop=(),
        )
        for prompt in prompts
    ]
    return [
        {"prompt": vocabulary.decode(prompt), "text": completion.text, "document": document}
        for document, prompt, completion in zip(
            documents, prompts, generate(engine, requests), strict=True
        )
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
