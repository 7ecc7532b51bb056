"""Speed of the way from XML to batches beside named peers: make bench-data CORPUS=DIR

Every line is a ratio from one run on the same work: the two sides take turns, the median of
--rounds counts. `requirements-bench.txt` names the peers; one that is not installed is said to be
missing. Times are of this machine at this hour, so only the ratios mean something elsewhere.
"""

import contextlib
import datetime
import gzip
import importlib.metadata
import importlib.util
import io
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from biomedlm_jax import entry
from biomedlm_jax.pipeline.loader import Loader
from biomedlm_jax.pipeline.store import TokenStore
from biomedlm_jax.pipeline.store_writer import StoreWriter
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from data import documents, parse, tokenize, tokenizer
from data.parsing import pubmed

PEERS = ("pubmed_parser", "tokenizers")
SIZE = 8192  # of the vocabulary that is trained for the comparison
TOKENS = 100_000_000  # of the store that the loader is measured on: beyond the processor's caches
DOCUMENT = 2000  # tokens, as the mean of abstracts and articles together
BATCH, LENGTH = 256, 1024


def bench(corpus: Path, rounds: int) -> dict[str, dict[str, float | str]]:
    """Every measurement by name.

    Raises:
      UserError: `corpus` gives no document.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        with _silent():
            parse.parse(corpus, made / "documents", 20)
        texts = [document.text for document in documents.read(made / "documents")]
        return {
            "parse": parsing(corpus, rounds),
            "tokenize": tokenizing(made, texts, rounds),
            "loader": loading(made, rounds),
        }


def parsing(corpus: Path, rounds: int) -> dict[str, float | str]:
    """Citations a second and core; ours against pubmed_parser, on the files that both read."""
    if not importlib.util.find_spec("pubmed_parser"):
        return {"missing": "pubmed_parser is not installed"}
    import pubmed_parser  # pyright: ignore[reportMissingImports]

    def theirs(path: Path) -> int:
        return sum(1 for _ in pubmed_parser.parse_medline_xml(str(path), year_info_only=True))

    def ours(path: Path) -> int:
        with path.open("rb") as file, gzip.GzipFile(fileobj=file) as unpacked:
            stream = typing.cast(IO[bytes], unpacked)
            return sum(isinstance(item, pubmed.Citation) for item in pubmed.read(stream))

    files = [f for f in sorted(corpus.rglob("*.xml.gz")) if ours(f) and ours(f) == theirs(f)]
    if not files:
        return {"missing": f"{corpus} has no citation file that both read"}
    citations = sum(map(ours, files))
    mine, peer = _taking_turns(
        lambda: sum(map(ours, files)), lambda: sum(map(theirs, files)), rounds, time.process_time
    )
    return {
        "citations": citations,
        "citations_per_second": citations / mine,
        "pubmed_parser_citations_per_second": citations / peer,
        "ratio": peer / mine,
    }


def tokenizing(made: Path, texts: list[str], rounds: int) -> dict[str, float | str]:
    """Bytes a second on all cores; documents to a whole store, as `data.tokenize` writes it,
    against `tokenizers` encoding the same texts in batches from memory and keeping nothing. Each
    has a BPE vocabulary of the same size from the same text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    with _silent():
        options = tokenizer.Options(SIZE, train_bytes=20_000_000)
        tokenizer.train(made / "documents", made / "vocabulary", options)
    names = (made / f"store{number}" for number in itertools.count())

    def ours() -> None:
        with _silent():
            tokenize.tokenize(made / "documents", made / "vocabulary", next(names))

    peer = Tokenizer(models.BPE())
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, show_progress=False)
    peer.train_from_iterator(texts, trainer)
    nbytes = sum(len(text.encode()) for text in texts)
    ours_seconds, peer_seconds = _taking_turns(
        ours,
        lambda: peer.encode_batch_fast(texts),
        rounds,
        time.perf_counter,
    )
    return {
        "bytes": nbytes,
        "megabytes_per_second": nbytes / ours_seconds / 1e6,
        "tokenizers_megabytes_per_second": nbytes / peer_seconds / 1e6,
        "ratio": peer_seconds / ours_seconds,
    }


def loading(made: Path, rounds: int) -> dict[str, float | str]:
    """Tokens a second through the loader, and the first batch at step 1,000,000 against step 0."""
    vocabulary = Vocabulary(made / "vocabulary")
    folder = epath.Path(made / "store")
    draw = np.random.default_rng(0)

    def rows() -> Iterator[tuple[str, np.ndarray, str, str, int, int]]:
        for number in range(TOKENS // DOCUMENT):
            tokens = draw.integers(2, vocabulary.size, DOCUMENT)
            tokens[-1] = vocabulary.eos_id
            tokens[:-1][tokens[:-1] == vocabulary.eos_id] = 2
            yield "train", tokens, f"PMID:{number + 1}", "abstract", len(tokens), 2001

    StoreWriter.of(folder, folder / "work", vocabulary).write_all(rows())
    sharding = NamedSharding(Mesh(jax.devices()[:1], ("data",)), PartitionSpec("data"))

    def opened(separators: bool) -> Loader:
        return Loader(
            TokenStore(folder, "train"),
            batch=BATCH,
            length=LENGTH,
            separators=separators,
            segment_ids=not separators,
            seed=17,
            sharding=sharding,
        )

    def first(step: int) -> None:
        jax.block_until_ready(opened(True).batch(step))

    steps = TOKENS // (BATCH * LENGTH) // 2

    def half_an_epoch(separators: bool) -> None:
        for batch in opened(separators).batches(0, steps):
            jax.block_until_ready(batch)

    plain, segmented = _taking_turns(
        lambda: half_an_epoch(True), lambda: half_an_epoch(False), rounds, time.perf_counter
    )
    early, late = _taking_turns(lambda: first(0), lambda: first(1_000_000), 20, time.perf_counter)
    return {
        "tokens_per_second": steps * BATCH * LENGTH / plain,
        "tokens_per_second_without_separators_with_segment_ids": steps * BATCH * LENGTH / segmented,
        "first_batch_at_0_ms": early * 1e3,
        "first_batch_at_1000000_ms": late * 1e3,
        "ratio": late / early,
    }


def _taking_turns(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int,
    clock: Callable[[], float],
) -> tuple[float, float]:
    """Median seconds of each, after one round that does not count."""
    times = [(_seconds(ours, clock), _seconds(theirs, clock)) for _ in range(rounds + 1)]
    mine, peer = zip(*times[1:], strict=True)
    return statistics.median(mine), statistics.median(peer)


def _seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started


def _silent() -> contextlib.AbstractContextManager[object]:
    return contextlib.redirect_stderr(io.StringIO())  # progress bars of what is not measured


def main() -> None:
    given = flags.FLAGS
    found = bench(Path(given.corpus), given.rounds)
    record = {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in (*PEERS, "jax", "lxml", "sentencepiece", "tensorstore")
            if importlib.util.find_spec(name)
        },
        **found,
    }
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    flags.DEFINE_string("corpus", None, "Folder with NCBI's files.", required=True)
    flags.DEFINE_integer("rounds", 5, "Times that each side runs; the median counts.", 1)
    entry.run(main)
