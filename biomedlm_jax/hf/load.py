"""A Hugging Face GPT-2 folder as a checkpoint of ours, for training, generation and export.

    python -m biomedlm_jax.hf.load --source=DIR --output=DIR

`start.find` also reads the folder as it is; what comes out of here is read by every host in pieces,
whatever the mesh, and holds a checksum of every array:

OUTPUT/params/         float32 arrays (orbax), each in as many pieces as there are devices here
       vocabulary/     the tokenizer as the vocabulary that it is, where there is one
       model.json      settings, checksums, and what was loaded, with the sha256 of every file
"""

import dataclasses
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import flags
from etils import epath

from biomedlm_jax import entry, mesh, saves, start
from biomedlm_jax.checksums import checksums
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf.foreign import PARAMS, RECEIPT, receipt
from biomedlm_jax.hf.names import count
from biomedlm_jax.hf.write import written
from biomedlm_jax.pipeline.vocabulary import Vocabulary, file_name
from biomedlm_jax.start import IMPORTED


def load(source: str, output: Path, dropout: float | None = None) -> start.Source:
    """Writes the folder `output`, which appears when it is complete; what it then is.

    source: a Hugging Face folder, or one of PEFT's adapters.
    dropout: in place of that of its config.json.

    Raises:
      UserError: `source` is none, or one that this model does not compute (see `start.find`), or
        has other files than its own receipt says; `output` is not empty, or has no room.
    """
    entry.check_output(output)
    found = start.find(source, dropout)
    if found.what not in ("hugging_face", "adapters"):
        raise UserError(
            f"--source={source} is no Hugging Face folder; what it is can be used as it is"
        )
    place = Path(found.facts.get("base", found.place))
    everywhere = mesh.everywhere(found.model)
    adapted = {n: found.facts[n] for n in ("adapters",) if n in found.facts}
    names = [*found.facts["files"], "config.json", *_tokenizer_files(place)]
    with (
        written(output, 4 * count(found.model)) as folder,
        ThreadPoolExecutor(1, thread_name_prefix="hash") as hashing,
    ):
        hashes = {name: hashing.submit(_digest, place / name) for name in names}
        params = start.params(found, everywhere)
        vocabulary = None if found.vocabulary is None else Vocabulary(found.vocabulary)
        if vocabulary is not None:
            (folder / "vocabulary").mkdir()
            copy = folder / "vocabulary" / file_name(vocabulary.path)
            copy.write_bytes(vocabulary.path.read_bytes())
        _write(folder / PARAMS, params)
        files = {name: digest.result() for name, digest in hashes.items()}
        _compare(place, files)
        about = {
            "model": dataclasses.asdict(found.model),
            "eos_id": found.eos_id,
            "special": found.special,
            "labels": found.labels,
            "vocabulary_sha256": None if vocabulary is None else vocabulary.sha256,
            "checksums": checksums({PARAMS: params}),
            "source": {
                "name": place.name,
                "dtype": found.facts["dtype"],
                "files": files,
                **adapted,
            },
        }
        # The last, for without it the rest is nothing.
        (folder / IMPORTED).write_text(json.dumps(about, indent=2) + "\n")
    return start.find(str(output))


def _write(folder: Path, params: dict) -> None:
    at_once = max(array.nbytes for array in jax.tree.leaves(params))
    handler = saves.state_handler(epath.Path(folder), at_once)
    try:
        handler.save(epath.Path(folder), args=ocp.args.PyTreeSave({PARAMS: params}))
    except ValueError as error:  # how tensorstore says what the disk refused
        if not saves.REFUSED.search(str(error)):
            raise
        raise OSError(str(error).splitlines()[0]) from error
    finally:
        handler.close()


def _tokenizer_files(place: Path) -> list[str]:
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
    return [name for name in (*names, "sentencepiece.model") if (place / name).is_file()]


def _digest(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": sha256}


def _compare(place: Path, files: dict[str, dict[str, Any]]) -> None:
    """Raises UserError where the folder's own receipt says something else of a file."""
    listed = receipt(place)["files"]
    if wrong := [name for name, digest in files.items() if listed.get(name, digest) != digest]:
        raise UserError(
            f"{place} has files that are not those of its {RECEIPT}: {', '.join(wrong)}; copy them "
            f"again, or remove {RECEIPT} if others changed them"
        )


def main() -> None:
    given = flags.FLAGS
    found = load(given.source, Path(given.output), given.dropout)
    model = found.model
    vocabulary = "no vocabulary" if found.vocabulary is None else f"{found.vocabulary.name}"
    print(
        f"{given.output}: {count(model):,} parameters, {model.layers} layers of {model.width}, "
        f"{model.vocab:,} tokens ({vocabulary})"
    )


if __name__ == "__main__":
    flags.DEFINE_string("source", None, "A Hugging Face folder of a GPT-2.", required=True)
    flags.DEFINE_string("output", None, "Folder to write; absent or empty.", required=True)
    flags.DEFINE_float("dropout", None, "In place of its config.json's.", 0, 1)
    entry.run(main)
