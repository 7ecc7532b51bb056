"""Writes the sample corpus: two PubMed files and an archive of full texts, all invented.

    python -m data.sample.generate --output=DIR

Nothing comes before. The same bytes come out every time; what ships beside this file came out
once. `data.parse` reads them as it reads NCBI's own. `plan.py` says which records there are.
"""

import gzip
import io
import random
import tarfile
from pathlib import Path

from absl import flags

from biomedlm_jax import entry
from data.sample.jats import article
from data.sample.plan import ARTICLES, records, update
from data.sample.pubmed import Record, article_set
from data.sample.words import Lexicon

SEED = 26
# Of the full texts that are not CC BY, by their place among the records.
LICENCES = {7: "CC BY-NC", 19: "CC BY-NC", 4: "CC0", 13: "CC0", 22: "CC0", 31: "CC0"}
ARCHIVE = "PMC009xxxxxx"

_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; must not exist or be empty.")


def write(folder: Path) -> None:
    """Writes `pubmed/` and `pmc/` into `folder`."""
    rng = random.Random(SEED)
    lexicon = Lexicon.draw(rng)
    first = records(rng, lexicon)
    changed, deleted = update(rng, lexicon, first)
    (folder / "pubmed").mkdir()
    (folder / "pmc").mkdir()
    _write_gzip(folder / "pubmed" / "pubmed26n0001.xml.gz", article_set(first))
    _write_gzip(folder / "pubmed" / "pubmed26n0002.xml.gz", article_set(changed, deleted))
    _write_gzip(folder / "pmc" / f"oa_comm_xml.{ARCHIVE}.tar.gz", _archive(first))


def _archive(found: list[Record]) -> bytes:
    """A tar of the full texts, with owners and times of zero so that bytes repeat."""
    packed = io.BytesIO()
    others = [other for other in found[ARTICLES:] if other.sections]
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for place, record in enumerate(found[:ARTICLES]):
            text = article(record, LICENCES.get(place, "CC BY"), others)
            member = tarfile.TarInfo(f"{ARCHIVE}/PMC{record.pmc}.xml")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    return packed.getvalue()


def _write_gzip(path: Path, content: bytes) -> None:
    # GzipFile rather than gzip.compress, which puts another byte in the header by Python version.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        packed.write(content)


def main() -> None:
    if not _OUTPUT.value:
        raise entry.UserError("--output is missing; give the folder to write, as --output=DIR")
    with entry.whole_folder(Path(_OUTPUT.value)) as folder:
        write(folder)


if __name__ == "__main__":
    entry.run(main)
