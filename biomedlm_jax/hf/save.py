"""A trained checkpoint as an ordinary Hugging Face GPT-2 folder.

    python -m biomedlm_jax.hf.save --checkpoint=WORKDIR --output=DIR

Comes after training (`checkpoint.py` reads what it left in WORKDIR). What comes out opens with
transformers' AutoModelForCausalLM and AutoTokenizer, where neither JAX nor SentencePiece is
needed; torch isn't needed here. All parameters are in memory at once, about 4 bytes each, and
those of the qkv projections twice.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.numpy
from absl import flags
from etils import epath
from tqdm import tqdm

from biomedlm_jax import entry
from biomedlm_jax.config import Model
from biomedlm_jax.hf import names, tokenizer
from biomedlm_jax.hf.config import config_json
from biomedlm_jax.pipeline.vocabulary import END_OF_TEXT, Place, Vocabulary

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
language: en
tags: [biology, medical]
---

# A language model of biomedical text

A GPT-2 decoder, trained with biomedlm_jax on text of PubMed, in float32.
Attention scores are also divided by the layer's index + 1.

| | |
|---|---|
{rows}

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("this/folder")
    tokenizer = AutoTokenizer.from_pretrained("this/folder")

Releases of transformers before its pull request 44397 compute the division by layer only in
their "eager" attention and leave it out, without a word, in others. `config.json` asks for
"eager"; with a newer release one may pass `attn_implementation="sdpa"`.

The tokenizer gives the ids of the vocabulary that the model was trained with. {vocabulary} The text
`{end}` becomes the end-of-text token; load the tokenizer with `split_special_tokens=True` for text
from strangers, where it must not.

## Use and licence

For research. This is no medical device and gives no medical advice: what it writes can be wrong,
out of date or made up, and must not guide the treatment of anybody.

The software is under the Apache License 2.0. The licence of these weights is for those who
trained them to state, here, with the licences of the training text in mind.
"""

KINDS = {
    "sentencepiece": "It was a SentencePiece\nmodel; the character U+2581 comes back as a space.",
    "byte_level": "It is byte-level, as\nGPT-2's; any text comes back unchanged.",
}


def save(
    params: Mapping,
    model: Model,
    vocabulary: Place,
    output: Path,
    *,
    extra: Mapping[str, object],
) -> None:
    """Writes the folder `output`, which appears when it is complete.

    params: nested dict of float32 arrays as in `model/gpt.py`.
    vocabulary: the file that the training text was encoded with.
    extra: further lines of the model card's table, such as {"step": 300000}.

    Raises:
      UserError: `output` isn't empty, `vocabulary` isn't the model's, or `params` aren't; before
        anything is written.
    """
    pieces, converted = Vocabulary(vocabulary), tokenizer.convert(vocabulary)
    if pieces.size != model.vocab:
        raise entry.UserError(
            f"config.model.vocab={model.vocab}, but {pieces.path} has {pieces.size} pieces; give "
            f"the vocabulary that the model was trained with"
        )
    eos_id = pieces.eos_id
    tensors = names.to_hf(params, model)
    total = sum(len(row.names(model)) for row in names.TABLE)

    with entry.whole_folder(output) as folder:
        tokenizer.write(converted, folder, context=model.context)
        _write_json(folder / "config.json", config_json(model, eos_id=eos_id))
        # Without a padding token some releases of transformers warn at each text and take eos.
        tokens = {"bos_token_id": eos_id, "eos_token_id": eos_id, "pad_token_id": eos_id}
        _write_json(folder / "generation_config.json", tokens)
        (folder / "README.md").write_text(card(model, pieces.kind, extra), encoding="utf-8")
        weights = folder / "model.safetensors"
        laid_out = dict(tqdm(tensors, total=total, desc="export", unit="tensor"))
        try:
            safetensors.numpy.save_file(laid_out, weights, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:  # the file system's refusals too
            raise entry.UserError(f"{output} can not be written: {error}") from error
        # safetensors lets nobody but the owner read it; the others follow the user's umask.
        weights.chmod((folder / "config.json").stat().st_mode)


def card(model: Model, kind: str, extra: Mapping[str, object]) -> str:
    """The folder's README.md; kind: of the vocabulary."""
    facts = {
        "parameters": f"{model.parameters:,}",
        "layers": model.layers,
        "width": model.width,
        "heads": model.heads,
        "mlp": model.mlp,
        "vocabulary": model.vocab,
        "context": model.context,
        **extra,
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return CARD.format(rows=rows, end=END_OF_TEXT, vocabulary=KINDS[kind])


def _write_json(path: Path, values: Mapping[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    from biomedlm_jax import checkpoint

    workdir, output = epath.Path(flags.FLAGS.checkpoint), Path(flags.FLAGS.output)
    entry.check_output(output)
    trained_with = checkpoint.read_claim(workdir).vocabulary_sha256
    if not (workdir / "vocabulary").is_dir():
        raise entry.UserError(f"{workdir}/vocabulary is missing; copy it from the run's store")
    vocabulary = Vocabulary(workdir / "vocabulary")
    if vocabulary.sha256 != trained_with:
        raise entry.UserError(
            f"{vocabulary.path} is not the file that the run in --checkpoint={workdir} began with; "
            f"put back the one of its token store, with sha256 {trained_with}"
        )
    experiment, params, step = checkpoint.load(workdir)
    seen = step * experiment.data.batch * experiment.model.context
    extra = {"step": step, "tokens seen in training": f"{seen:,}"}
    save(params, experiment.model, vocabulary.path, output, extra=extra)


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "The --workdir of a run.", required=True)
    flags.DEFINE_string("output", None, "Folder to write; absent or empty.", required=True)
    entry.run(main)
