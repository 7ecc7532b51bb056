"""The whole corpus in one command: python -m data.build --input=DIR --output=DIR --size=28896

Chains `parse.py`, `clean.py`, `tokenizer.py` and `tokenize.py` in one pipeline of Apache Beam:

    OUTPUT/documents/          what is trained on and what is held out, as text; what was dropped
    OUTPUT/vocabulary/         learned from it; not there with --vocabulary=DIR, which names one
    OUTPUT/store/              all that a training run needs
    OUTPUT/card.md, card.html  what is in it, and what became of the rest

--runner=DirectRunner, the default, is all cores of this machine; with DataflowRunner all folders
are on gs://. The same command again goes on with the shards that a killed build had not finished.
"""

import dataclasses
import json
from typing import Any

from absl import flags
from etils import epath

from biomedlm_jax import entry
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from data import card, clean, documents, parse, stages, tokenize, tokenizer
from data.clean import Clean
from data.cleaning import contamination
from data.cleaning.describe import Rules
from data.documents import MANIFEST
from data.parse import Parse
from data.parsing import sources
from data.stages import SERIAL, Runner, Step
from data.tokenize import Tokenize
from data.tokenizer import Options


@dataclasses.dataclass(frozen=True)
class Build:
    """What the steps need to know; goes to every worker.

    folder: where the output is built.
    vocabulary: one that is there already, or how to learn one.
    """

    input: epath.Path
    folder: epath.Path
    heldout_per_mille: int
    rules: Rules
    benchmarks: epath.Path | None
    vocabulary: epath.Path | Options

    def steps(self, listing: sources.Listing) -> list[Step]:
        """Also reads what must be there before they begin.

        listing: what is to be read.

        Raises:
          UserError: `benchmarks` can not be read.
        """
        parse = Parse(self.input, self.folder / "work/parsed", self.heldout_per_mille)
        clean = Clean(parse.folder, self.folder / "documents", self.rules, self.benchmarks)
        words, learn = self.vocabulary, []
        if isinstance(words, Options):
            words = self.folder / "vocabulary"
            learn = [Step("vocabulary", self._once, self._learn, self.folder)]
        parse.fix(listing)
        clean.prepare()
        return [
            *parse.steps(),
            *clean.steps(),
            *learn,
            *Tokenize(clean.folder, words, self.folder / "store").steps(),
            Step("card", self._once, self._describe, self.folder),
        ]

    def _once(self) -> dict[str, int]:
        return {"all": 1}

    def _learn(self, _: str) -> dict[str, Any]:
        assert isinstance(self.vocabulary, Options)
        target = self.folder / "vocabulary"
        if target.exists():  # whole, but the build was killed before it knew
            target.rmtree()
        return tokenizer.train(self.folder / "documents", target, self.vocabulary)

    def _describe(self, _: str) -> dict[str, Any]:
        """Writes the card, and the manifest that makes the folder whole."""
        store, texts = self.folder / "store", self.folder / "documents"
        card.write(store, texts, self.folder)
        made = json.loads((store / MANIFEST).read_text())
        manifest = {
            "documents": documents.read_manifest(texts)["sha256"],
            "store": {name: split["sha256"] for name, split in made["splits"].items()},
            "vocabulary": made["vocabulary"]["sha256"],
        }
        (self.folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        return {}


def build(
    input: epath.PathLike,
    output: epath.PathLike,
    vocabulary: epath.PathLike | Options,
    *,
    heldout_per_mille: int = parse.HELDOUT_PER_MILLE,
    rules: Rules | None = None,
    benchmarks: epath.PathLike | None = None,
    runner: Runner = SERIAL,
) -> epath.Path:
    """Builds the corpus of the files below `input`; returns `output`.

    Raises:
      UserError: as `parse.parse`, `clean.clean`, `tokenizer.train` and `tokenize.tokenize`.
    """
    source, target, rules = epath.Path(input), epath.Path(output), rules or Rules()
    tests = epath.Path(benchmarks) if benchmarks else None
    words = vocabulary if isinstance(vocabulary, Options) else epath.Path(vocabulary)
    listing = sources.listing(source)
    settings = {
        "files": listing.fingerprint,
        "heldout_per_mille": heldout_per_mille,
        "rules": dataclasses.asdict(rules),
        "benchmarks": contamination.fingerprint(tests) if tests else None,
        "vocabulary": dataclasses.asdict(words)
        if isinstance(words, Options)
        else Vocabulary(words).sha256,
    }
    with stages.building(target, settings) as folder:
        work = Build(source, folder, heldout_per_mille, rules, tests, words)
        stages.run(work.steps(listing), runner)
    for name in ("documents", "store"):
        stages.remove_work(target / name)
    return target


def main() -> None:
    given = flags.FLAGS
    if (given.vocabulary is None) == (given.size is None):
        raise UserError(
            "either --size=28896, to learn a vocabulary of that many tokens, or "
            "--vocabulary=DIR, to use one, must be given"
        )
    words = given.vocabulary or tokenizer.given_options()
    output = build(
        given.input,
        given.output,
        words,
        heldout_per_mille=given.heldout_per_mille,
        rules=clean.given_rules(),
        benchmarks=given.benchmarks,
        runner=stages.given_runner(),
    )
    parse.print_counts(documents.read_manifest(output / "documents"))
    tokenize.print_sizes(json.loads((output / "store" / MANIFEST).read_text()))
    print(f"{output}/card.html says what is in it")


if __name__ == "__main__":
    from data import build as module  # workers find its functions under this name

    parse.define_flags()
    clean.define_flags()
    tokenizer.define_flags()
    flags.DEFINE_string("vocabulary", None, "Folder of a vocabulary to use, instead of --size.")
    flags.DEFINE_string("output", None, "Folder to write; absent or empty.", required=True)
    stages.define_flags()
    entry.run(module.main)
