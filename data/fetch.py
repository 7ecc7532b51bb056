"""NCBI's files for `data.parse`: python -m data.fetch --source=pubmed --output=DIR

    pubmed           the yearly baseline of PubMed: some 1,300 files of about 20 MB
    pubmed_updates   the daily files since
    pmc_oa           archives of PMC's open access articles, by --collections

They lie below DIR as below the server's root, so one DIR holds all three for `data.parse`. The same
command again fetches what is new, changed or missing. PubMed's files are held against the server's
.md5. PMC's have none: their size, their gzip checksum and their list of articles are checked.
oa_comm are the articles whose licence allows commercial use; whatever the collection, `data.parse`
goes by the licence that each article states.

NLM has announced (NLM Tech Bull. 2026 Jan-Feb;(468):e8) that its server keeps PMC's archives until
August 2026, since April below /pub/pmc/deprecated; copies elsewhere are named by --mirror and
--pmc_folder.

NCBI asks its users not to overload its servers and, of its E-utilities, for three requests a second
(NBK25497); it gives no number for its files. Three connections are therefore the default, and eight
the most.
"""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from tqdm import tqdm

from biomedlm_jax import entry
from biomedlm_jax.entry import UserError
from data.fetching import download, ncbi
from data.fetching.download import ContentError, Record
from data.fetching.ncbi import Remote
from data.fetching.progress import Progress
from data.fetching.web import Client, FetchError, Settings

CONNECTIONS, MOST_CONNECTIONS = 3, 8
DEFAULTS = Settings()

_LOCK = ".fetch.lock"
_INTERRUPTED = 128 + signal.SIGINT  # exit code, as of a program that a signal ends
_SHOWN = 5  # names in a message


class Report(NamedTuple):
    """By paths below the output. fetched: bytes of each file. unchanged: those that were there and
    are what the server has. incomplete: archives that are whole, but not what their lists say.
    failed: why a file is not there. left_over: those that the server has no longer."""

    fetched: dict[str, int]
    unchanged: list[str]
    incomplete: dict[str, str]
    failed: dict[str, str]
    left_over: list[str]


def fetch(
    source: str,
    output: Path,
    mirror: str = ncbi.MIRROR,
    *,
    collections: Sequence[str] = ncbi.COLLECTIONS[:1],
    pmc_folder: str = ncbi.PMC_FOLDER,
    connections: int = CONNECTIONS,
    first: int = 0,
    settings: Settings = DEFAULTS,
) -> Report:
    """Fetches the files of one of `ncbi.SOURCES`; one that fails does not stop the others.

    first: only so many files, in the order of their publication; 0 is all.

    Raises:
      UserError: `mirror` is no web address or has no such files, another run is at work in
        `output`, or the disk has no room.
    """
    root, folders = ncbi.root(mirror), ncbi.folders(source, collections, pmc_folder)
    stop = threading.Event()
    client = Client(settings, stop, lambda line: tqdm.write(line, file=sys.stderr))
    with _alone(output), client:
        remotes: list[Remote] = []
        for folder in folders:
            remotes += ncbi.listed(client, source, f"{root}/{folder}/", output / folder)
        report = Report({}, [], {}, {}, [] if first else _left_over(source, remotes, output))
        remotes = remotes[: first or None]
        _require_space(output, remotes)
        with Progress({str(remote.target): remote.size for remote in remotes}) as progress:
            work = _Work(client, progress)
            one = work.archive if source == "pmc_oa" else work.citations
            pool = concurrent.futures.ThreadPoolExecutor(connections)
            try:
                futures = {pool.submit(one, remote): remote for remote in remotes}
                for future in concurrent.futures.as_completed(futures):
                    name = str(futures[future].target.relative_to(output))
                    _note(report, name, future)
            finally:
                client.end()
                pool.shutdown(cancel_futures=True)
    return report


def _note(report: Report, name: str, future: concurrent.futures.Future[Any]) -> None:
    try:
        new, record = future.result()
    except FetchError as error:
        report.failed[name] = str(error)
        return
    if new:
        report.fetched[name] = record["bytes"]
    else:
        report.unchanged.append(name)
    if difference := _difference(record):
        report.incomplete[name] = difference


class _Work:
    """What one file takes. Both return whether it is new, and its record."""

    def __init__(self, client: Client, progress: Progress) -> None:
        self._client, self._progress = client, progress

    def citations(self, remote: Remote) -> tuple[bool, Record]:
        wanted = ncbi.md5(self._client, remote)

        def check(file: Path) -> Record:
            found = _md5(file)
            # NLM may have issued the file again since.
            if found != wanted and found != (now := ncbi.md5(self._client, remote)):
                raise ContentError(f"the md5 of what came is {found}, the server's .md5 says {now}")
            return {"md5": found}

        record = download.record_of(remote.target)
        if record.get("md5") == wanted:
            self._progress.settle(remote.target)
            return False, record
        return self._fetch(remote.url, remote.target, check, remote.most, {})

    def archive(self, remote: Remote) -> tuple[bool, Record]:
        listed = self._list(remote)  # if there is none, the archive need not be fetched
        before = download.record_of(remote.target)
        new, record = self._fetch(
            remote.url,
            remote.target,
            lambda file: self._compared(remote, file),
            remote.most,
            before,
        )
        if not new and record.get("list") != listed:
            compared = self._compared(remote, remote.target)
            record = download.restate(remote.target, {**record, **compared})
        return new, record

    def _compared(self, remote: Remote, archive: Path) -> Record:
        """The archive's articles with those of its list, which is fetched again if it is another
        now: NCBI may have issued both while the archive came."""
        found = ncbi.articles_in(archive)
        listed = self._list(remote)
        wanted = ncbi.articles_listed(_list_file(remote))
        return {
            "list": listed,
            "articles": len(found),
            "missing": sorted(wanted - found),
            "unlisted": sorted(found - wanted),
        }

    def _list(self, remote: Remote) -> str:
        """Fetches the list of an archive's articles if it is not there; returns its md5."""
        file = _list_file(remote)
        url = f"{remote.url.rsplit('/', 1)[0]}/{file.name}"
        try:
            self._fetch(url, file, _check_list, remote.most, download.record_of(file))
        except FetchError as error:
            raise FetchError(f"its list of articles, {file.name}: {error}") from error
        return _md5(file)

    def _fetch(
        self, url: str, target: Path, check: download.Check, most: int, unless: Record
    ) -> tuple[bool, Record]:
        try:
            return download.fetch(
                self._client, url, target, check,
                lambda at, size: self._progress.moved(target, at, size), most=most, unless=unless,
            )  # fmt: skip
        finally:
            self._progress.settle(target)


def _list_file(archive: Remote) -> Path:
    return archive.target.with_name(archive.target.name.removesuffix(".tar.gz") + ".filelist.csv")


def _check_list(file: Path) -> Record:
    return {"md5": _md5(file), "articles": len(ncbi.articles_listed(file))}


def _md5(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "md5").hexdigest()


def _difference(record: Record) -> str:
    """Between an archive and its list, for the user; empty if there is none."""
    notes = []
    ways = (("missing", "of its list are not in it"), ("unlisted", "are not on its list"))
    for key, what in ways:
        if names := record.get(key):
            more = ", ..." if len(names) > _SHOWN else ""
            notes.append(f"{len(names)} articles {what}: {', '.join(names[:_SHOWN])}{more}")
    return "; ".join(notes)


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Two runs in one folder would write into the same partial files."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        # What is there already stays as it is, and a link is not followed to somebody else's file.
        mode = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        lock = os.fdopen(os.open(output / _LOCK, mode, 0o666), "a")
    except OSError as error:
        raise UserError(
            f"--output={output} can not be written: {error.filename}: {error.strerror}"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"--output={output}: another data.fetch is at work there; wait for its end"
            ) from error
        yield


def _left_over(source: str, remotes: list[Remote], output: Path) -> list[str]:
    """Files in the same folders that are no longer on the server."""
    known = {remote.target for remote in remotes}
    places = sorted({target.parent for target in known if target.parent.is_dir()})
    files = [file for place in places for file in sorted(place.iterdir())]
    here = [file for file in files if ncbi.names(source).fullmatch(file.name)]
    return [str(file.relative_to(output)) for file in here if file not in known]


def _require_space(output: Path, remotes: list[Remote]) -> None:
    needed = 0
    for remote in remotes:
        partial = remote.target.with_name(remote.target.name + download.PARTIAL)
        if remote.size and not download.record_of(remote.target):
            # Also a file that is wrong: the new one takes its place.
            there = (file.stat().st_size for file in (partial, remote.target) if file.exists())
            needed += max(0, remote.size - sum(there))
    free = shutil.disk_usage(output).free
    if needed > free:
        raise UserError(
            f"--output={output} has {free / 1e9:.1f} GB free, and about {needed / 1e9:.1f} GB are "
            "to be fetched; make room, name a folder on another disk, or fetch less with --first=N"
        )


def _show(report: Report) -> None:
    """Prints what was done.

    Raises:
      UserError: a file failed or is not complete.
    """
    size = sum(report.fetched.values()) / 1e6
    print(f"fetched {len(report.fetched):,} files, {size:,.1f} MB")
    print(f"there already: {len(report.unchanged):,} files")
    if report.left_over:
        print(
            f"{len(report.left_over):,} files are no longer on the server, such as "
            f"{report.left_over[0]}; data.parse would read them too: move away what is out of date"
        )
    messages = []
    if report.failed:
        messages.append(
            f"{len(report.failed):,} files could not be fetched; the same command tries again"
        )
        messages += [f"  {name}: {reason}" for name, reason in sorted(report.failed.items())]
    if report.incomplete:
        messages.append(
            f"{len(report.incomplete):,} archives are whole, but not what their lists say; they "
            f"are kept, and NAME{download.RECORD} beside has all names"
        )
        messages += [f"  {name}: {note}" for name, note in sorted(report.incomplete.items())]
    if messages:
        raise UserError("\n".join(messages))


def main() -> None:
    given = flags.FLAGS
    try:
        report = fetch(
            given.source,
            Path(given.output),
            given.mirror,
            collections=given.collections,
            pmc_folder=given.pmc_folder,
            connections=given.connections,
            first=given.first,
            settings=Settings(retries=given.retries, timeout=given.timeout),
        )
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    _show(report)


def define_flags() -> None:
    flags.DEFINE_enum("source", None, ncbi.SOURCES, "What to fetch.", required=True)
    flags.DEFINE_string("output", None, "Folder to write or to go on with.", required=True)
    flags.DEFINE_string("mirror", ncbi.MIRROR, "Web address of NCBI's server, or of a copy of it.")
    flags.DEFINE_list(
        "collections",
        list(ncbi.COLLECTIONS[:1]),
        f"Of pmc_oa: {' or '.join(ncbi.COLLECTIONS)}, or both.",
    )
    flags.DEFINE_string("pmc_folder", ncbi.PMC_FOLDER, "Where the server keeps the collections.")
    flags.DEFINE_integer(
        "connections", CONNECTIONS, "Files fetched at a time.", 1, MOST_CONNECTIONS
    )
    flags.DEFINE_integer("retries", 5, "Attempts after the first, for each file.", 0)
    flags.DEFINE_float("timeout", 60.0, "Seconds without a byte that end an attempt.", 0.001)
    flags.DEFINE_integer("first", 0, "Only the first N files; 0 is all.", 0)


if __name__ == "__main__":
    define_flags()
    entry.run(main)
