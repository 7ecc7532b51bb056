"""Files that hold many records: gzip, archives, The Pile's lines. What is wrong with one is named,
wherever it stands, and what was read before it is kept."""

import gzip
import io
import json
import tarfile

import pytest
import zstandard

from biomedlm_jax.pipeline.lines import Unpacked
from data.parsing import pile
from data.parsing.markup import Unreadable
from tests.test_jats import article
from tests.test_records import CITATION, parsed


class TestGzip:
    """NLM's files can be gzip of several members; a cut one gives what comes before the cut."""

    source = "".join(CITATION.replace(">31<", f">{n}<").format(date="") for n in range(100, 300))

    def halves(self):
        whole = f"<PubmedArticleSet>{self.source}</PubmedArticleSet>".encode()
        return gzip.compress(whole[: len(whole) // 2]), gzip.compress(whole[len(whole) // 2 :])

    def test_several_members(self, tmp_path):
        found, _, aside = parsed(tmp_path, **{"pubmed25n0001.xml.gz": b"".join(self.halves())})
        assert len(found) == 200
        assert not aside

    @pytest.mark.parametrize("kept", [5, 100, 0.5, 0.9])
    def test_the_second_member_is_cut(self, tmp_path, kept):
        first, second = self.halves()
        second = second[: int(kept * len(second)) if kept < 1 else kept]
        found, manifest, aside = parsed(tmp_path, **{"pubmed25n0001.xml.gz": first + second})
        assert 99 <= len(found) < 200
        assert len(aside) == manifest["quarantined"] == 1
        assert aside[0]["file"] == "pubmed25n0001.xml.gz"
        assert "damaged file" in aside[0]["reason"]
        assert manifest["files"][0]["bytes"] == len(first + second)

    def test_not_gzip_at_all(self, tmp_path):
        whole = f"<PubmedArticleSet>{self.source}</PubmedArticleSet>".encode()
        _, _, aside = parsed(
            tmp_path, **{"pubmed25n0001.xml.gz": whole, "pubmed25n0002.xml": whole}
        )
        (line,) = aside
        assert "damaged file: Not a gzipped file" in line["reason"]

    def test_a_cut_archive(self, tmp_path):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w:gz") as archive:
            for n in range(1, 60):
                content = article(n, f"<p>{'words ' * n * 20}</p>").encode()
                member = tarfile.TarInfo(f"PMC{n}.nxml")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        cut = raw.getvalue()[: len(raw.getvalue()) // 2]
        found, _, aside = parsed(tmp_path, **{"oa_comm_xml.PMC000xxxxxx.tar.gz": cut})
        assert 0 < len(found) < 59
        assert "damaged file" in aside[-1]["reason"]


class TestArchive:
    """NCBI's, and what can happen to it."""

    def members(self):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as archive:
            for n in range(1, 6):
                content = article(n, f"<p>{'words ' * 200}</p>").encode()
                member = tarfile.TarInfo(f"PMC{n}.nxml")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return bytearray(raw.getvalue()), 512 + -(-len(content) // 512) * 512

    def read(self, tmp_path, packed):
        found, _, aside = parsed(tmp_path, **{"oa_comm_xml.PMC000xxxxxx.tar.gz": bytes(packed)})
        return len(found), [line["reason"] for line in aside]

    def test_whole(self, tmp_path):
        assert self.read(tmp_path, gzip.compress(self.members()[0])) == (5, [])

    def test_a_damaged_header(self, tmp_path):
        tar, size = self.members()
        tar[2 * size + 150] ^= 1
        assert self.read(tmp_path, gzip.compress(tar)) == (2, ["damaged file: bad checksum"])

    def test_a_header_of_zeros(self, tmp_path):
        tar, size = self.members()
        tar[2 * size : 2 * size + 512] = bytes(512)
        count, (reason,) = self.read(tmp_path, gzip.compress(tar))
        assert count == 2
        assert "more behind the end" in reason

    @pytest.mark.parametrize("inside", [0, 100])
    def test_cut_between_members_or_in_a_header(self, tmp_path, inside):
        tar, size = self.members()
        count, (reason,) = self.read(tmp_path, gzip.compress(tar[: 2 * size + inside]))
        assert count == 2
        assert reason.startswith("damaged file: ")

    def test_two_archives_in_one(self, tmp_path):
        packed = gzip.compress(self.members()[0])
        count, (reason,) = self.read(tmp_path, packed + packed)
        assert count == 5
        assert "more behind the end" in reason

    def test_a_wrong_checksum(self, tmp_path):
        packed = bytearray(gzip.compress(self.members()[0]))
        packed[-8] ^= 1
        count, (reason,) = self.read(tmp_path, packed)
        assert count == 5
        assert "CRC check failed" in reason


class TestPile:
    """The Pile's JSONL, plain or through zstd in one frame or several."""

    lines = (
        {"text": "An abstract.", "meta": {"pile_set_name": "PubMed Abstracts"}},
        {"text": "A paper.\n\nIts body.", "meta": {"pile_set_name": "PubMed Central"}},
        {"text": "Code.", "meta": {"pile_set_name": "Github"}},
        {"text": "An abstract.", "meta": {"pile_set_name": "PubMed Abstracts"}},
        {"text": " \n", "meta": {"pile_set_name": "PubMed Abstracts"}},
    )

    def content(self):
        return "".join(json.dumps(line) + "\n" for line in self.lines).encode()

    def test_what_counts(self, tmp_path):
        packed = zstandard.compress(self.content()[:100]) + zstandard.compress(self.content()[100:])
        files = {"00.jsonl.zst": packed, "01.jsonl": self.content() + b"{broken\n"}
        found, manifest, aside = parsed(tmp_path, **files)
        assert sorted((d.source, d.text) for d in found.values()) == [
            ("pile_abstract", "An abstract."),
            ("pile_full_text", "A paper.\n\nIts body."),
        ]
        assert manifest["counts"]["pile_abstract"] == {"kept": 1, "same text": 3}
        assert manifest["other_sets"] == {"Github": 2}
        assert [(line["file"], line["position"]) for line in aside] == [
            ("00.jsonl.zst", "line 5"), ("01.jsonl", "line 5"), ("01.jsonl", "line 6"),
        ]  # fmt: skip

    def test_a_cut_file(self, tmp_path):
        packed = zstandard.compress(self.content() * 1000)
        found, _, aside = parsed(
            tmp_path, **{"00.jsonl.zst": packed[:-30], "1.jsonl": self.content()}
        )
        assert len(found) == 2
        assert any("cut" in line["reason"] for line in aside)

    def test_the_first_line_may_be_blank_or_deep(self, tmp_path):
        blank = json.dumps(self.lines[4]).encode() + b"\n"
        deep = b"[" * 100_000 + b"\n"
        found, _, aside = parsed(
            tmp_path, **{"0.jsonl": blank + self.content(), "1.jsonl": deep + self.content()}
        )
        assert len(found) == 2
        assert len(aside) == 4

    def test_a_bomb_is_unpacked_little_by_little(self):
        bomb = zstandard.compress(bytes(1 << 28), 19)
        unpacked = Unpacked(io.BytesIO(bomb))
        largest = 0
        buffer = bytearray(1 << 16)
        while unpacked.readinto(buffer):
            largest = max(largest, len(unpacked._rest))
        assert len(bomb) < 30_000
        assert largest < 1 << 28

    def test_other_jsonl_gets_one_word_and_not_one_a_line(self):
        found = list(pile.read(io.BytesIO(b'{"question": "?"}\n' * 1000)))
        assert len(found) == 1
        assert isinstance(found[0], Unreadable)

    def test_a_line_without_end_is_passed_over(self, monkeypatch):
        monkeypatch.setattr(pile, "LONGEST", 1000)
        long = json.dumps({"text": "x" * 5000, "meta": {"pile_set_name": "PubMed Central"}})
        found = list(pile.read(io.BytesIO(long.encode() + b"\n" + self.content())))
        assert found[0] == Unreadable("line 1", "over 1000 bytes long")
        assert [type(item).__name__ for item in found[1:]] == [
            "Piece", "Piece", "Other", "Piece", "Unreadable",
        ]  # fmt: skip
