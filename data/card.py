"""A corpus described: python -m data.card --store=DIR --output=DIR [--documents=DIR]

Writes card.md and card.html for whoever gets the token store: what is in it, what became of
everything that was read, and under which rules and terms. All numbers are those of the store's
manifest, which `cards/facts.py` holds against itself first; nothing but the store and the folder of
documents goes in, so the same corpus has the same card, byte for byte. With --documents, the folder
that the store was made from, it also says why things could not be read and how test items were
found.
"""

import contextlib

from absl import flags
from etils import epath

from biomedlm_jax import entry
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.lines import appearing
from data.cards import facts as card_facts
from data.cards import numbers as card_numbers
from data.cards import page as card_page
from data.cards import rules as card_rules
from data.cards.facts import NAMES, Facts
from data.cards.page import Section

MARKDOWN, PAGE = "card.md", "card.html"


def write(store: epath.Path, documents: epath.Path | None, output: epath.Path) -> None:
    """Writes card.md and card.html into the folder `output`, in place of older ones; both are
    written before either gets its name.

    documents: the folder that the store was made from, or None.

    Raises:
      UserError: see `card_facts.read`; or `output` can not be written.
    """
    facts = card_facts.read(store, documents)
    heading, found = title(facts), sections(facts)
    texts = {
        MARKDOWN: card_page.markdown(heading, found),
        PAGE: card_page.page(heading, found),
    }
    try:
        with contextlib.ExitStack() as files:
            for name, text in texts.items():
                files.enter_context(appearing(output / name)).write(text.encode())
    except OSError as error:
        raise UserError(
            f"--output={output} can not be written: {error.strerror or error}; make room there or "
            "name another folder"
        ) from error


def title(facts: Facts) -> str:
    *names, last = (NAMES[source] for source in facts.largest_first)
    listed = f"{', '.join(names)} and {last}" if names else last
    return f"Data card: {listed}, {facts.total['tokens']:,} tokens"


def sections(facts: Facts) -> list[Section]:
    return [
        Section("What it is", card_numbers.what(facts)),
        Section("What became of what was read", card_numbers.stages(facts)),
        Section("What is in it", card_numbers.contents(facts)),
        Section("Duplicates", card_rules.duplicates(facts)),
        Section("Test sets kept out", card_rules.benchmarks(facts)),
        Section("What could not be read", card_rules.quarantine(facts)),
        Section("Vocabulary", card_rules.vocabulary(facts)),
        Section("Rules", card_rules.rules(facts)),
        Section("Terms and limits", card_rules.terms(facts)),
        Section("Source files", card_rules.files(facts)),
        Section("Hashes and versions", card_rules.hashes(facts)),
    ]


def main() -> None:
    given = flags.FLAGS
    output = epath.Path(given.output)
    documents = epath.Path(given.documents) if given.documents else None
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={output} is a file; name a folder")
    output.mkdir(parents=True, exist_ok=True)
    write(epath.Path(given.store), documents, output)
    print(f"{output / MARKDOWN}\n{output / PAGE}")


def define_flags() -> None:
    flags.DEFINE_string("store", None, "Token store to describe.", required=True)
    flags.DEFINE_string("documents", None, "Folder of documents that it was made from.")
    flags.DEFINE_string("output", None, "Folder for card.md and card.html.", required=True)


if __name__ == "__main__":
    define_flags()
    entry.run(main)
