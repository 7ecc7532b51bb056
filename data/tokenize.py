"""Documents to tokens: python -m data.tokenize --documents=DIR --vocabulary=DIR --output=DIR

Writes the token store that `biomedlm_jax/pipeline/store.py` describes; that folder is all that a
training run needs. Comes after `parse.py`, `clean.py` and `tokenizer.py`. Over all cores
(`stages.py`): each shard of documents is encoded, then each shard of the store is written. The
seqio tasks of `biomedlm_jax/pipeline/tasks.py` give the same tokens, with TensorFlow.
"""

import dataclasses
import functools
import importlib.metadata
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from absl import flags
from etils import epath

from biomedlm_jax import entry
from biomedlm_jax.pipeline.store import UNKNOWN_YEAR
from biomedlm_jax.pipeline.store_writer import StoreWriter
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from data import documents, stages
from data.documents import SHARDS, Document, Tally
from data.stages import SERIAL, Runner, Step

_BATCH = 1 << 22  # characters that are encoded at once; their tokens take some 40 MB
_LIBRARY = {"sentencepiece": "sentencepiece", "byte_level": "tokenizers"}


@dataclasses.dataclass(frozen=True)
class Tokenize:
    """What the steps need to know; goes to every worker.

    input: folder of documents, read when the steps begin. folder: where the store is built.
    vocabulary: folder that `tokenizer.py` wrote; read when the steps begin.
    """

    input: epath.Path
    vocabulary: epath.Path
    folder: epath.Path

    def steps(self) -> list[Step]:
        return [
            Step("tokenize", self._shards, self._encode, self.folder),
            Step("store", self._create, self._write, self.folder),
            Step("stored", lambda: {"all": 1}, self._finish, self.folder),
        ]

    @functools.cached_property
    def _manifest(self) -> dict[str, Any]:
        return documents.read_manifest(self.input)

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.vocabulary)

    @property
    def _writer(self) -> StoreWriter:
        return StoreWriter.of(self.folder, self.folder / "work/pieces", self._vocabulary)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was cached."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _shards(self) -> dict[str, int]:
        """{place in the manifest: bytes on disk}.

        Raises:
          UserError: the documents or the vocabulary are missing or damaged, or there is nothing to
            train on.
        """
        if not self._manifest["splits"]["train"]["documents"]:
            raise entry.UserError(
                f"--documents={self.input} has no document to train on; parse more text, or with "
                "a smaller --heldout_per_mille"
            )
        assert self._writer  # refuses a vocabulary that is too large
        files = [self.input / SHARDS / shard["name"] for shard in self._manifest["shards"]]
        return {f"{number:05}": file.stat().length for number, file in enumerate(files)}

    def _encode(self, name: str) -> dict[str, Any]:
        """Keeps the tokens of a shard as a piece of the store."""
        tally, eos = Tally(), self._vocabulary.eos_id
        with self._writer.piece(name) as piece:
            for document, ids in self._encoded(name):
                nbytes = len(document.text.encode())
                split = documents.split_of(document, self._manifest["heldout_per_mille"])
                tokens = np.array([*ids, eos])
                year = document.year or UNKNOWN_YEAR
                piece.append(split, tokens, document.id, document.source, nbytes, year)
                tally.add(document, split, tokens=len(tokens))
        return {"piece": piece.summary(), "tally": tally.summary()}

    def _encoded(self, name: str) -> Iterator[tuple[Document, list[int]]]:
        """Documents of a shard with their ids; the next ones are encoded meanwhile, and those after
        them read."""
        shard = self._manifest["shards"][int(name)]
        file = self.input / SHARDS / shard["name"]
        batches = _ahead(_batches(documents.read_shard(file, shard["sha256"])))
        encoded = (
            (batch, self._vocabulary.encode_batch([document.text for document in batch]))
            for batch in batches
        )
        for batch, rows in _ahead(encoded):
            yield from zip(batch, rows, strict=True)

    def _pieces(self) -> dict[str, dict[str, dict[str, int]]]:
        found = stages.summaries(self.folder, "tokenize")
        return {name: summary["piece"] for name, summary in found.items()}

    def _create(self) -> dict[str, int]:
        return self._writer.create(self._pieces())

    def _write(self, item: str) -> dict[str, Any]:
        return self._writer.write(item)

    def _finish(self, _: str) -> dict[str, Any]:
        """Writes the manifest.

        Raises:
          UserError: there are not as many documents as their own manifest says.
        """
        pieces = self._pieces()
        for name, said in self._manifest["splits"].items():
            found = {unit: sum(p[name][unit] for p in pieces.values()) for unit in said}
            if found != said:
                raise entry.UserError(
                    f"--documents={self.input} holds {found} of {name}, its manifest.json says "
                    f"{said}; parse again"
                )
        tallies = (s["tally"] for s in stages.summaries(self.folder, "tokenize").values())
        packages = (_LIBRARY[self._vocabulary.kind], "tensorstore")
        self._writer.close(
            pieces,
            stages.summaries(self.folder, "store"),
            tally=Tally(tallies).summary(),
            documents=self._manifest,
            versions={name: importlib.metadata.version(name) for name in packages},
        )
        return {}


def tokenize(
    folder: epath.PathLike,
    vocabulary: epath.PathLike,
    output: epath.PathLike,
    runner: Runner = SERIAL,
) -> dict[str, Any]:
    """Writes the store and returns its manifest.

    Raises:
      UserError: the documents or the vocabulary are missing or damaged, there is nothing to train
        on, the ids do not fit into uint16, or `output` is not empty or can not be written.
    """
    source, words, target = (epath.Path(place) for place in (folder, vocabulary, output))
    settings = {
        "documents": documents.read_manifest(source)["sha256"],
        "vocabulary": Vocabulary(words).sha256,
    }
    with stages.building(target, settings) as place:
        stages.run(Tokenize(source, words, place).steps(), runner)
    return json.loads((target / "manifest.json").read_text())


def _batches(found: Iterator[Document]) -> Iterator[list[Document]]:
    """Lists of documents that are worth the start of threads."""
    batch: list[Document] = []
    characters = 0
    for document in found:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same, with the next item made by a thread while the present one is used."""
    nothing = object()
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(next, items, nothing)
        while (item := ahead.result()) is not nothing:
            ahead = thread.submit(next, items, nothing)
            yield item


def print_sizes(manifest: dict[str, Any]) -> None:
    for name, split in manifest["splits"].items():
        per_token = split["bytes"] / max(1, split["tokens"])
        print(
            f"{name:10}{split['documents']:>14,} documents {split['tokens']:>18,} tokens"
            f"{per_token:>8.2f} bytes per token"
        )


def main() -> None:
    given = flags.FLAGS
    runner = stages.given_runner()
    print_sizes(tokenize(given.documents, given.vocabulary, given.output, runner))


if __name__ == "__main__":
    from data import tokenize as module  # workers find its functions under this name

    flags.DEFINE_string("documents", None, "Folder of documents.", required=True)
    flags.DEFINE_string("vocabulary", None, "Folder written by data.tokenizer.", required=True)
    flags.DEFINE_string("output", None, "Folder to write; absent or empty.", required=True)
    stages.define_flags()
    entry.run(module.main)
