"""Files of a folder of benchmarks: plain or .gz, at any depth, told apart by what they hold."""

import contextlib
import functools
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from biomedlm_jax.entry import UserError

_SPLIT = re.compile(  # BioASQ numbers them: training11b, testset1
    r"(?i)(?:^|[._-])(train|training|dev|val|validation|test)(?:(?:data)?set)?(?:\d+b?)?(?=[._-]|$)"
)
_OURS = {"training": "train", "val": "dev", "validation": "dev"}


def split_in_name(name: str) -> str | None:
    """Of SPLITS, from the name of a file; None if it names none."""
    found = _SPLIT.search(name)
    return _OURS.get(found[1].lower(), found[1].lower()) if found else None


class File:
    """One file, read when it is first asked for.

    name: its path below the folder. base: its name without .gz.
    """

    def __init__(self, name: str, read: Callable[[], bytes]) -> None:
        self.name = name
        self.base = name.rsplit("/", 1)[-1].removesuffix(".gz")
        self._read = read

    @functools.cached_property
    def data(self) -> bytes:
        """What it holds, unpacked.

        Raises:
          UserError: it can not be read, or is cut.
        """
        try:
            data = self._read()
            return gzip.decompress(data) if self.name.endswith(".gz") else data
        except (OSError, EOFError, zlib.error) as error:
            raise self.damaged(repr(error)) from error

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def split(self) -> str | None:
        return split_in_name(self.base)

    def damaged(self, what: str) -> UserError:
        return UserError(f"{self.name} is damaged: {what}; copy it again from its owners")

    @functools.cached_property
    def text(self) -> str:
        try:
            return self.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.damaged(f"it is not UTF-8 ({error})") from error

    @functools.cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of JSON lines, or of a JSON list of objects; none where it is other JSON.

        Raises:
          UserError: it is no JSON.
        """
        number = 0
        try:
            rows = []  # U+2028 may stand in JSON as it is, so lines end with \n alone
            for number, line in enumerate(self.text.split("\n"), start=1):  # noqa: B007
                if line.strip():
                    rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            try:
                rows = json.loads(self.text)
            except (ValueError, RecursionError):
                raise self.damaged(f"line {number} is no JSON ({error})") from error
        if len(rows) == 1 and isinstance(rows, list) and isinstance(rows[0], list):
            (rows,) = rows
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            return []
        return rows

    @functools.cached_property
    def first(self) -> dict[str, Any]:
        """The first of `rows`, which tells whose they are, without reading on; {} if there is none.

        Raises:
          UserError: it is no JSON.
        """
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(row := json.loads(self.text.lstrip().partition("\n")[0]), dict):
                return row
        return self.rows[0] if self.rows else {}

    def has(self, *columns: str) -> bool:
        """Whether the first row has these columns."""
        return self.first.keys() >= set(columns)

    @functools.cached_property
    def table(self) -> dict[str, Any]:
        """The members of a JSON object; none where it is other JSON.

        Raises:
          UserError: it is no JSON.
        """
        try:
            found = json.loads(self.text)
        except (ValueError, RecursionError) as error:
            if self.rows:
                return {}
            raise self.damaged(f"it is no JSON ({error})") from error
        return found if isinstance(found, dict) else {}


def below(folder: epath.PathLike) -> list[File]:
    """All files below `folder`, in order of their paths, but hidden ones, which systems leave
    beside copies (._dev.jsonl). Opens none.

    Raises:
      UserError: it is no folder.
    """
    place = epath.Path(folder)
    if not place.is_dir():
        raise UserError(f"{folder} is no folder; name the one with the benchmarks' files")
    paths = sorted(_below(place))
    return [File(str(path.relative_to(place)), path.read_bytes) for path in paths]


def _below(folder: epath.Path) -> Iterator[epath.Path]:
    for inside in folder.iterdir():
        if inside.name.startswith("."):
            continue
        if inside.is_dir():
            yield from _below(inside)
        else:
            yield inside
