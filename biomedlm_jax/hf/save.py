"""A model as an ordinary Hugging Face GPT-2 folder.

    python -m biomedlm_jax.hf.save --checkpoint=DIR --output=DIR

--checkpoint is the --workdir of a run, or anything else that `start.find` knows. What comes out
opens with transformers' AutoTokenizer and AutoModelForCausalLM, or with a head the class that has
it, where neither JAX nor SentencePiece is needed; torch isn't needed here. Adapters are merged;
with --adapters they are written alone, as a folder of PEFT (`hf/save_adapters.py`).

A parameter is read in pieces of 64 MB, or of a layer where that is more; some five of them are in
memory, for one is made while those before it are hashed and written (of a run on gs://, the whole
parameter is). receipt.json says what was written, from what, and what was checked: that what was
read is what was saved, that every number is finite and the padding zero, and that what the
safetensors library reads back is what was written.
"""

import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from absl import flags
from etils import epath
from flax import traverse_util
from tqdm import tqdm

from biomedlm_jax import entry, journal, start
from biomedlm_jax.arrays import cuts
from biomedlm_jax.benchmarks.prompts import PAD
from biomedlm_jax.checksums import Running
from biomedlm_jax.config import Model
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf import card as cards
from biomedlm_jax.hf import names, read, save_adapters, tokenizer, write
from biomedlm_jax.hf.card import card
from biomedlm_jax.hf.config import config_json
from biomedlm_jax.hf.foreign import PARAMS, RECEIPT
from biomedlm_jax.hf.names import Row
from biomedlm_jax.hf.read import finite
from biomedlm_jax.pipeline.vocabulary import MODEL_FILE, Place, Vocabulary
from biomedlm_jax.settings import flat
from biomedlm_jax.start import Source

Piece = tuple[str, int, int]  # our name of an array, where it begins and ends on the first axis
Pieces = Callable[[Row], Iterator[tuple[int, np.ndarray]]]  # where one starts on the first axis
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
POLICY = {
    "float32": "the float32 parameters, to the bit",
    "bfloat16": "the float32 parameters rounded to the nearest bfloat16",
    "float16": "the float32 parameters rounded to the nearest float16; none was too large for it",
}


def save(
    params: Mapping,
    model: Model,
    vocabulary: Place | None,
    output: Path,
    *,
    extra: Mapping[str, object],
    special: Sequence[str] = (),
    labels: Sequence[str] = (),
    dtype: str = "float32",
    shard_gb: float = 5.0,
) -> None:
    """Writes the folder `output`, of parameters that are in memory; see `export`.

    params: nested dict of float32 arrays as in `model/gpt.py`.

    Raises:
      UserError: see `export`; or `params` aren't the model's.
    """
    flattened: Any = traverse_util.flatten_dict(params, sep="/")
    names.to_hf(params, model)

    def pieces(row: Row) -> Iterator[tuple[int, np.ndarray]]:
        array = np.asarray(flattened[row.ours])
        for begin, end in cuts(array.shape):
            yield begin, array[begin:end]

    about = {"what": "parameters in memory"}
    text = {"extra": extra}
    export(
        pieces,
        lambda name, checksum: None,
        model,
        vocabulary,
        output,
        about,
        text,
        special=special,
        labels=labels,
        dtype=dtype,
        shard_gb=shard_gb,
    )


def export(
    pieces: Pieces,
    compare: Callable[[str, int], None],
    model: Model,
    vocabulary: Place | None,
    output: Path,
    source: Mapping[str, Any],
    about: Mapping[str, Any],
    *,
    eos_id: int | None = None,
    special: Sequence[str] = (),
    labels: Sequence[str] = (),
    dtype: str = "float32",
    shard_gb: float = 5.0,
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Writes the folder `output`, which appears when it is complete.

    pieces: of a row's array, float32, in order; each starts where the one before ended.
    compare: is given the checksum of each array, by our name of it; raises where it is wrong.
    vocabulary: the file that the training text was encoded with, if known.
    source: what the receipt says about where the weights come from.
    about: of `card.card`.
    eos_id: that ends a text, where there is no vocabulary to say so.
    special: tokens of a task, whose ids follow those of the vocabulary.
    labels: names of the classes of a head; none are LABEL_0 and so on.
    dtype: of the tensors.
    shard_gb: of a file at most, in 10^9 bytes.
    beside: further files.

    Raises:
      UserError: `output` isn't empty or has no room, `vocabulary` isn't the model's, a number is
        not finite or too large for `dtype`, or padding is not zero.
    """
    pieced, converted, pad_id = None, None, None
    if vocabulary is not None:
        pieced, converted = Vocabulary(vocabulary), tokenizer.convert(vocabulary, special)
        if pieced.size + len(special) != model.vocab:
            more = f" and {len(special)} of the task" if special else ""
            raise UserError(
                f"config.model.vocab={model.vocab}, but {pieced.path} has {pieced.size} pieces"
                f"{more}; give the vocabulary that the model was trained with"
            )
        eos_id = pieced.eos_id
        pad_id = pieced.size + special.index(PAD) if PAD in special else None
    parts = names.rows(model)
    listed = [(name, row.shapes(model)[1]) for row in parts for name in row.names(model)]
    shards = write.plan(listed, dtype, int(shard_gb * 1e9))
    parameters = names.count(model)

    with ExitStack() as stack:
        folder = stack.enter_context(write.written(output, parameters * write.WIDTHS[dtype]))
        writer = stack.enter_context(closing(write.Writer(folder, shards, dtype)))
        sums, ends, zeros = _weights(pieces, compare, model, writer, dtype, len(listed))
        texts: dict[str, bytes] = dict(beside or {})
        if len(shards) > 1:
            texts[read.INDEX] = _json(write.index(shards, dtype))
        if pieced is not None and converted is not None:
            tokenizer.write(converted, folder, context=model.context, special=special)
            if pieced.kind == "sentencepiece":  # by which the folder can be loaded again
                texts[MODEL_FILE] = pieced.path.read_bytes()
        # Without a padding token some releases of transformers warn at each text and take eos.
        ids = {"bos_token_id": eos_id, "eos_token_id": eos_id}
        ids["pad_token_id"] = eos_id if pad_id is None else pad_id
        texts["generation_config.json"] = _json(ids)
        kind = None if pieced is None else pieced.kind
        said = {"dtype": dtype, "special": special, "labels": labels, **about}
        texts["README.md"] = card(model, kind, **said).encode()
        settings = _json(
            config_json(model, eos_id=eos_id, dtype=dtype, pad_id=pad_id, labels=labels)
        )
        for name, content in texts.items():
            (folder / name).write_bytes(content)
        read_back(folder, model, dtype, ends)  # while the disk still writes
        writer.sync()
        texts |= {path.name: path.read_bytes() for path in folder.glob("tokenizer*.json")}
        files = writer.files | {name: write.digest(content) for name, content in texts.items()}
        files["config.json"] = write.digest(settings)
        receipt = {
            "source": source,
            "files": dict(sorted(files.items())),
            "tensors": len(listed),
            "parameters": parameters,
            "dtype": dtype,
            "values": POLICY[dtype],
            "rounded_to_zero": zeros,
            "vocabulary_padding_removed": model.padded_vocab - model.vocab,
            "checks": [
                "every array has the checksum that its source has of it, where that has one",
                "every number is finite",
                "the rows of padding are zero",
                "read back through safetensors: the name, shape and dtype of every tensor, and the "
                "first and the last piece of every array, to the bit",
            ],
            "checksums": sums,
            "versions": {x: importlib.metadata.version(x) for x in ("jax", "safetensors")},
        }
        (folder / RECEIPT).write_bytes(_json(receipt))
        (folder / "config.json").write_bytes(settings)  # the last, for it makes it a model


def read_back(folder: Path, model: Model, dtype: str, ends: Mapping[Piece, int]) -> None:
    """Opens the weights as anybody would: that every tensor is there with its shape and dtype, and
    that the first and the last piece of each of our arrays, made of them again, is what it was.

    ends: {(our name, where a piece begins, where it ends): checksum}.

    Raises:
      UserError: something differs.
    """
    opened = read.Folder(folder, model=model)
    wrong = [] if opened.dtype == dtype else [f"the dtype is {opened.dtype}"]
    for (name, begin, end), checksum in ends.items():
        found = Running(names.row_of(name, model).shapes(model)[0])
        found.add(begin, opened.piece(name, begin, end))
        if found.value != checksum:
            wrong.append(f"{name}[{begin}:{end}] differs")
    if wrong:
        raise UserError(
            f"what is read back from {folder} is not what was written: {', '.join(wrong)}; this "
            "disk or this machine's memory is at fault"
        )


def _weights(
    pieces: Pieces,
    compare: Callable[[str, int], None],
    model: Model,
    writer: write.Writer,
    dtype: str,
    total: int,
) -> tuple[dict[str, int], dict[Piece, int], int]:
    """Writes all tensors; the checksums of our arrays as they are there, and of their ends, and how
    many numbers were too small for `dtype` and are 0 there.

    total: tensors, for the bar.
    """
    sums, ends, zeros = dict[str, int](), dict[Piece, int](), 0
    with tqdm(total=total, desc="export", unit="tensor") as bar:
        for row in names.rows(model):
            shape, _ = row.shapes(model)
            given, left, parts = Running(shape), Running(shape), cuts(shape)
            for begin, piece in pieces(row):
                given.add(begin, piece)
                rounded, again = _rounded(piece, dtype, row, begin)
                if again is not piece:
                    left.add(begin, again)
                    zeros += np.count_nonzero(piece) - np.count_nonzero(again)
                if (end := (begin, begin + len(piece))) in (parts[0], parts[-1]):
                    part = Running(shape)
                    part.add(begin, again)
                    ends[row.ours, *end] = part.value
                if row.axes[0] == "v" and piece[max(0, model.vocab - begin) :].any():
                    raise UserError(
                        f"{row.ours} has rows of padding, from {model.vocab} on, that are not "
                        "zero; they were never trained, so these are not this model's parameters"
                    )
                for name, tensor in row.leave(rounded, model, begin):
                    bar.update(writer.add(name, tensor))
            compare(row.ours, given.value)
            sums[f"{PARAMS}/{row.ours}"] = (given if dtype == "float32" else left).value
    return sums, ends, int(zeros)


def _rounded(piece: np.ndarray, dtype: str, row: Row, begin: int) -> tuple[np.ndarray, np.ndarray]:
    """In `dtype`, and that in float32 again; every number finite."""
    if not finite(piece):
        raise UserError(f"{_named(row, begin)} has values that are not finite (NaN or infinity)")
    if dtype == "float32":
        return piece, piece
    with np.errstate(over="ignore"):
        rounded = piece.astype(DTYPES[dtype])
    again = rounded.astype(np.float32)
    if not finite(again):
        raise UserError(
            f"{_named(row, begin)} has values that are too large for --dtype={dtype}; float32 has "
            "room for them"
        )
    return rounded, again


def _named(row: Row, begin: int) -> str:
    layers = f" from layer {begin} on" if row.axes[0] == "l" else ""
    return f"{row.theirs.format('*')} ({row.ours}{layers})"


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def described(source: Source) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What the card says of where the weights come from, and files for beside it."""
    if source.experiment is None or source.step is None:
        return {"extra": {}, "origin": f"converted from {source.place.name}"}, {}
    experiment = source.experiment
    seen = source.step * experiment.data.batch
    extra: dict[str, object] = {"step": source.step}
    if experiment.task is None:
        extra["tokens seen in training"] = f"{seen * experiment.model.context:,}"
    else:
        extra[f"items of {experiment.task.train} seen in training"] = f"{seen:,}"
        extra["tokens of a row at most"] = f"{experiment.task.length:,}"
    sections = {"Recipe": "The settings of the run:\n\n| | |\n|---|---|\n"}
    sections["Recipe"] += cards.table({n: f"`{v!r}`" for n, v in flat(experiment).items()})
    lines = journal.read(source.place / "metrics.jsonl")
    scored = [x for x in lines if "held_out_loss" in x and x["step"] <= source.step]
    if scored:
        last = scored[-1]
        what = "text of its own corpus" if experiment.task is None else "items"
        sections["Evaluation"] = (
            f"On held-out {what}, after {last['step']:,} steps:\n\n| | |\n|---|---|\n"
            + cards.table({n: f"{v:.4f}" for n, v in last.items() if n != "step"})
        )
    data = epath.Path(experiment.data.store).parent / "card.md"
    beside = {}
    if experiment.task is None and data.is_file():
        beside["data_card.md"] = data.read_bytes()
        sections["Data"] = "What it was trained on is described in data_card.md, beside this file."
    about = {"extra": extra, "sections": sections}
    if experiment.task is not None:
        about |= {
            "length": experiment.task.length,
            "origin": f"fine-tuned with it on {experiment.task.train}",
        }
    return about, beside


def main() -> None:
    given = flags.FLAGS
    output = Path(given.output)
    if given.base is not None and not given.adapters:
        raise UserError(f"--base={given.base} is of --adapters, which was not given")
    entry.check_output(output)
    source = start.find(given.checkpoint)

    def act() -> None:
        if given.adapters:
            save_adapters.write(source, given.base, output)
            return
        about, beside = described(source)
        facts = {"what": source.what, "name": source.place.name, "step": source.step}
        export(
            lambda row: source.arrays.pieces(row.ours),
            source.arrays.compare,
            source.model,
            source.vocabulary,
            output,
            facts | source.facts,
            about,
            eos_id=source.eos_id,
            special=source.special,
            labels=source.labels,
            dtype=given.dtype,
            shard_gb=given.shard_gb,
            beside=beside,
        )

    source.whole(act)


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "A run's --workdir, or another model.", required=True)
    flags.DEFINE_string("output", None, "Folder to write; absent or empty.", required=True)
    flags.DEFINE_enum("dtype", "float32", list(DTYPES), "Of the tensors.")
    flags.DEFINE_float("shard_gb", 5.0, "Of a file at most, in 10^9 bytes.", 1e-6)
    flags.DEFINE_bool("adapters", False, "A run's adapters alone, in PEFT's format.")
    flags.DEFINE_string(
        "base", None, "Of --adapters: the Hugging Face folder, if config.start is another place."
    )
    entry.run(main)
