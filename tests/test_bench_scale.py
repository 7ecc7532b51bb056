"""Copies of a corpus for measurements: of a folder that has nothing to copy they end with words."""

import io
import tarfile

import pytest

from biomedlm_jax.entry import UserError
from data import bench_scale

CITATIONS = (
    b"<PubmedArticleSet><PubmedArticle><PMID>7</PMID>" + b"<A>a word</A>" * 20 + b"</PubmedArticle>"
    b"</PubmedArticleSet>"
)
ARCHIVE = "oa_comm_xml.PMC000xxxxxx.tar.gz"


def corpus(folder, citations=True, articles=True):
    folder.mkdir()
    if citations:
        (folder / "pubmed25n0001.xml").write_bytes(CITATIONS)
    if articles:
        with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
            member = tarfile.TarInfo("PMC/1.nxml")
            member.size = 5
            archive.addfile(member, io.BytesIO(b"<a></"))
    return folder


def test_copies_are_made_until_there_is_enough(tmp_path):
    source = corpus(tmp_path / "in")
    bench_scale.one_file(source, tmp_path, 2000)
    made = (tmp_path / "pubmed25n0001.xml").read_bytes()
    assert 2000 < len(made) < 2400
    numbers = [int(found[2]) for found in bench_scale._NUMBER.finditer(made)]
    assert numbers == [7 + copy * 10**9 for copy in range(len(numbers))]
    bench_scale.one_archive(source, tmp_path, 5000)
    with tarfile.open(tmp_path / ARCHIVE) as archive:
        assert archive.getnames() == [f"PMC/{n}_0.nxml" for n in range(len(archive.getnames()))]
        assert len(archive.getnames()) >= 4


@pytest.mark.parametrize(
    ("make", "missing"),
    [(bench_scale.one_file, "citations"), (bench_scale.one_archive, "articles")],
)
def test_a_corpus_with_nothing_to_copy_is_refused(tmp_path, make, missing):
    source = corpus(tmp_path / "in", **{missing: False})
    with pytest.raises(UserError, match=rf"--corpus has no .*{missing}.* to copy"):
        make(source, tmp_path, 2000)
