"""Files that grow: whole lines, also after a kill, on a disk and where files can not grow."""

import errno
import json
import resource
import signal

import pytest
from etils import epath

from biomedlm_jax import journal
from biomedlm_jax.entry import UserError
from biomedlm_jax.journal import Journal


def test_lines_stay_and_a_cut_one_goes(tmp_path):
    file = epath.Path(tmp_path / "events.jsonl")
    with_two = Journal(file)
    with_two.write({"step": 1})
    with_two.write({"step": 2, "text": "a\nb"})
    assert journal.read(file) == [{"step": 1}, {"step": 2, "text": "a\nb"}]
    file.write_text(file.read_text() + '{"step": 3, "te')
    assert [line["step"] for line in journal.read(file)] == [1, 2]
    again = Journal(file)
    again.write({"step": 3})
    again.close()
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]


def test_lines_of_steps_that_come_again_are_taken_back(tmp_path):
    file = epath.Path(tmp_path / "metrics.jsonl")
    first = Journal(file)
    for step in range(6):
        first.write({"step": step})
    first.close()
    again = Journal(file, keep=lambda line: line["step"] <= 3)
    again.write({"step": 4})
    assert [line["step"] for line in journal.read(file)] == [0, 1, 2, 3, 4]
    assert journal.read(file.with_name("none.jsonl")) == []


class Remote(Journal):
    """On a disk, as it is on gs://."""

    remote = property(lambda self: True, lambda self, value: None)


def test_where_files_can_not_grow_they_are_written_anew(tmp_path, monkeypatch):
    file, now = epath.Path(tmp_path / "metrics.jsonl"), [1000.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])
    lines = Remote(file)
    lines.write({"step": 1})
    assert journal.read(file) == []  # not for every line
    now[0] += journal.SECONDS + 1
    lines.write({"step": 2})
    lines.pending.result()
    assert [line["step"] for line in journal.read(file)] == [1, 2]
    lines.write({"step": 3})
    lines.flush()
    assert [line["step"] for line in journal.read(file)] == [1, 2, 3]
    lines.write({"step": 4})
    lines.close()
    assert [line["step"] for line in journal.read(file)] == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", [Journal, Remote])
def test_what_could_not_be_written_is_with_the_next(kind, tmp_path):
    """In its place and once, for one who goes on."""
    file = epath.Path(tmp_path / "events.jsonl")
    lines = kind(file)
    lines.write({"step": 1})
    lines.flush()
    file.rename(tmp_path / "kept")
    file.mkdir()
    for step in (2, 3):
        with pytest.raises(UserError, match="Is a directory"):
            _ = [lines.write({"step": step}), lines.flush()]
    file.rmdir()
    (tmp_path / "kept").rename(file)
    lines.write({"step": 4})
    lines.close()
    assert [line["step"] for line in journal.read(file)] == [1, 2, 3, 4]


def test_half_a_line_is_taken_back(tmp_path):
    """Of what did not fit on the disk."""
    file = epath.Path(tmp_path / "events.jsonl")
    lines = Journal(file)
    lines.write({"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN  # as Python begins
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().length + 5, limits[1]))
    try:
        with pytest.raises(UserError, match="File too large"):
            lines.write({"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_text() == '{"step": 1}\n'
    lines.write({"step": 3})
    assert [line["step"] for line in journal.read(file)] == [1, 2, 3]


@pytest.mark.parametrize("kind", [Journal, Remote])
def test_a_full_disk_is_one_clear_error(kind, tmp_path, monkeypatch):
    lines = kind(epath.Path(tmp_path / "metrics.jsonl"))

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal, "_append", full)
    monkeypatch.setattr(type(lines.file), "write_text", full)
    said = r"metrics\.jsonl can not be written to --workdir=.*: No space left"
    with pytest.raises(UserError, match=said):
        _ = [lines.write({"step": 1}), lines.flush()]
