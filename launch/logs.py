"""What hosts say, read from the run's folder, where each of them puts its log now and then: nobody
has to reach a host for it, and it is there when the host is not."""

import re
from collections.abc import Callable

from etils import epath

from launch.startup import LOGS


class Logs:
    """Shows what is new. place: `Launch.place`. say: given a line. hosts: those that are shown,
    SLICE-WORKER; none of them is all."""

    def __init__(self, place: str, say: Callable[[str], None], hosts: tuple[str, ...] = ()):
        self.folder, self.say, self.hosts = epath.Path(place) / LOGS, say, hosts
        self.shown: dict[str, int] = {}  # bytes, by path
        self.written: dict[str, dict[str, int]] = {}  # bytes, by attempt and host

    def attempts(self) -> list[str]:
        """That have logs, in the order of their numbers; pods of launch.gke write beside them."""
        names = [entry.name for entry in self.folder.iterdir()] if self.folder.exists() else []
        found = [match for name in names if (match := re.fullmatch(r".*-a([1-9]\d*)", name))]
        return [match[0] for match in sorted(found, key=lambda match: int(match[1]))]

    def heard(self, attempt: str) -> int:
        """Bytes that its hosts had written when it was shown last."""
        return sum(self.written.get(attempt, {}).values())

    def show(self, attempt: str) -> None:
        """The lines that are new, each after the name of its host. A line that has no end yet is
        left for the next time."""
        folder = self.folder / attempt
        if not folder.exists():
            return
        for file in sorted(folder.iterdir(), key=lambda file: file.name):
            host = file.name.removesuffix(".log")
            if not file.name.endswith(".log"):
                continue
            length = file.stat().length
            self.written.setdefault(attempt, {})[host] = length
            if self.hosts and host not in self.hosts:
                continue
            self._show(file, host, length)

    def _show(self, file: epath.Path, host: str, length: int) -> None:
        before = self.shown.get(str(file), 0)
        if length <= before:
            return
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        for line in content[before:whole].decode(errors="replace").splitlines():
            self.say(f"[{host}] {line}")
        self.shown[str(file)] = max(before, whole)
