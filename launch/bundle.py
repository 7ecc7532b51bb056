"""The copy of the repository that hosts run: its tracked files, with a name that says which.

The name has the commit, the sha256 of what was changed since, and that of the archive. The
archive has the same bytes for the same files, so that one that is in the bucket is not sent again.
"""

import dataclasses
import gzip
import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

from etils import epath

from biomedlm_jax.entry import Unavailable, UserError, in_cloud, passes, unanswered
from biomedlm_jax.pipeline.lines import appearing

FOLDER = "archives"  # in `Launch.place`


@dataclasses.dataclass(frozen=True)
class Bundle:
    """name: of its files, without an ending. data: a tar.gz of the tree, with these files. diff:
    what was changed since the commit, as git shows it; "" is nothing. untracked: files that git
    does not know and that are not in it."""

    commit: str
    data: bytes
    files: frozenset[str]
    diff: str
    untracked: tuple[str, ...]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def name(self) -> str:
        changed = f"-diff-{_sha256(self.diff)[:8]}" if self.diff else ""
        return f"biomedlm-{self.commit[:12]}{changed}-{self.sha256[:12]}"

    def path(self, place: str) -> str:
        """Of the archive. place: `Launch.place`."""
        return f"{place}/{FOLDER}/{self.name}.tar.gz"

    def described(self) -> str:
        """For people, one line."""
        state = f"with changes, saved as {self.name}.diff" if self.diff else "clean"
        left = f"; not in it: {_some(self.untracked)}" if self.untracked else ""
        return f"commit {self.commit[:12]}, {state}{left}"


def make(root: Path) -> Bundle:
    """The bundle of a git work tree.

    Raises:
      UserError: it is none, or has no commit.
    """
    commit = _git(root, "rev-parse", "HEAD").strip()
    names = [name for name in _git(root, "ls-files", "-z").split("\0") if name]
    untracked = _git(root, "ls-files", "-z", "--others", "--exclude-standard").split("\0")
    packed, files = io.BytesIO(), set[str]()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(names):
            path = root / name
            if not path.exists() and not path.is_symlink():
                continue  # removed since the commit; the diff says so
            _add(tar, name, path)
            files.add(name)
    data = gzip.compress(packed.getvalue(), mtime=0)
    # Whatever the user's git shows people otherwise.
    diff = _git(root, "diff", "--no-ext-diff", "--no-color", "--no-textconv", "--binary", "HEAD")
    return Bundle(commit, data, frozenset(files), diff, tuple(filter(None, untracked)))


def upload(bundle: Bundle, place: str) -> str:
    """Puts the archive, and the diff if there is one, where hosts find it, unless they are there.
    Returns the archive's path.

    Raises:
      UserError: it can not be written.
    """
    archive = epath.Path(bundle.path(place))
    files = {archive: bundle.data}
    if bundle.diff:
        files[archive.with_name(f"{bundle.name}.diff")] = bundle.diff.encode(
            errors="surrogateescape"
        )
    try:
        for file, content in files.items():
            if not file.exists():
                with appearing(file) as stream:
                    stream.write(content)
    except Exception as error:
        if not (isinstance(error, (OSError, ValueError)) or unanswered(error)):
            raise
        where = "an existing bucket" if in_cloud(place) else "a folder"
        reason = " ".join(str(error).split())
        raise (Unavailable if passes(error) else UserError)(
            f"the repository can not be copied to {archive.parent}: {reason}; name {where} that "
            "you may write to with --workdir"
        ) from error
    return str(archive)


def _add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    """With nothing in it of when, by whom and where it was made."""
    info = tarfile.TarInfo(name)
    if path.is_symlink():
        info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
        tar.addfile(info)
        return
    if path.is_dir():
        raise UserError(
            f"{name} is a folder where git has a file, or a repository of its own, which hosts "
            "would not get; git rm --cached it, or put the file back"
        )
    content = path.read_bytes()
    info.size, info.mode = len(content), 0o755 if path.stat().st_mode & 0o100 else 0o644
    tar.addfile(info, io.BytesIO(content))


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=True)
    except FileNotFoundError as error:
        raise UserError("git is not installed, and hosts get what it tracks") from error
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip().splitlines()[:1]
        raise UserError(
            f"{root} is no git repository with a commit, and hosts get what git tracks: "
            f"{''.join(reason)}"
        ) from error
    return done.stdout.decode(errors="surrogateescape")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if names[3:] else ""
    return f"{', '.join(names[:3])}{more}, which git does not track"
