"""The model card: README.md of an exported folder."""

from collections.abc import Mapping, Sequence

from biomedlm_jax.config import Model
from biomedlm_jax.hf import usage
from biomedlm_jax.hf.names import count
from biomedlm_jax.pipeline.vocabulary import END_OF_TEXT

CARD = """\
---
library_name: transformers
pipeline_tag: {tag}
language: en
tags: [biology, medical]
---

# A language model of biomedical text

A GPT-2 decoder of biomedlm_jax, {origin}, in {dtype}.
{scores}

| | |
|---|---|
{rows}

{usage}

{eager}
{vocabulary}
{sections}
## Use and licence

For research. This is no medical device and gives no medical advice: what it writes can be wrong,
out of date or made up, and must not guide the treatment of anybody.

The software is under the Apache License 2.0. The licence of these weights is for those who
trained them to state, here, with the licences of the training text in mind.
"""
TRAINED = "trained with it on text of PubMed"
SCALED = "Attention scores are also divided by the layer's index + 1."
PLAIN = "Attention scores are divided by the root of the head's width alone, as in GPT-2."
EAGER = """\
Releases of transformers before its pull request 44397 compute the division by layer only in
their "eager" attention and leave it out, without a word, in others. `config.json` asks for
"eager"; with a newer release one may pass `attn_implementation="sdpa"`.
"""
VOCABULARY = """\
The tokenizer gives the ids of the vocabulary that the model was trained with. {kind} {strangers}
"""
STRANGERS = """\
The text
`{end}` becomes the end-of-text token; load the tokenizer with
`split_special_tokens=True` for text from strangers, where it must not."""
SPECIAL = """\
The texts
{tokens} become these tokens wherever they
stand, as the prompt needs it; take them out of text from strangers first."""
KINDS = {
    "sentencepiece": "It was a\nSentencePiece model; any text comes back unchanged.",
    "byte_level": "It is byte-level, as\nGPT-2's; any text comes back unchanged.",
}
NO_VOCABULARY = "No tokenizer came with these weights.\n"


def card(
    model: Model,
    kind: str | None,
    extra: Mapping[str, object],
    *,
    dtype: str = "float32",
    origin: str = TRAINED,
    sections: Mapping[str, str] | None = None,
    special: Sequence[str] = (),
    labels: Sequence[str] = (),
    length: int | None = None,
) -> str:
    """The text of the card.

    kind: of the vocabulary, or None.
    extra: further lines of its table, such as {"step": 300000}.
    origin: where the weights come from, after a comma.
    sections: further ones, title and text.
    special: tokens of a task, which tell the form of its prompts.
    labels: names of the classes of a head.
    length: tokens of a row that was learned; None is the context.
    """
    facts = {
        "parameters": f"{count(model):,}",
        "layers": model.layers,
        "width": model.width,
        "heads": model.heads,
        "mlp": model.mlp,
        "vocabulary": model.vocab,
        "context": model.context,
        **({"classes": ", ".join(labels) or model.classes} if model.classes > 1 else {}),
        **extra,
    }
    vocabulary = NO_VOCABULARY
    if kind is not None:
        tokens = ", ".join(f"`{token}`" for token in (END_OF_TEXT, *special))
        strangers = SPECIAL.format(tokens=tokens) if special else STRANGERS.format(end=END_OF_TEXT)
        vocabulary = VOCABULARY.format(kind=KINDS[kind], strangers=strangers)
    more = [f"## {title}\n\n{text}\n" for title, text in (sections or {}).items()]
    return CARD.format(
        tag=usage.tag(model),
        usage=usage.of(model, special, length or model.context).rstrip(),
        origin=origin,
        dtype=dtype,
        scores=SCALED if model.scale_attn_by_layer else PLAIN,
        rows=table(facts),
        eager=EAGER if model.scale_attn_by_layer else "",
        vocabulary=vocabulary,
        sections="\n".join(more),
    )


def table(facts: Mapping[str, object]) -> str:
    """Lines of a Markdown table of two columns."""
    return "\n".join(f"| {name} | {value} |" for name, value in facts.items())
