"""How far `fetch.py` has come, as a bar for whoever waits."""

import sys
import threading
from pathlib import Path
from typing import Any

from tqdm import tqdm


class Progress:
    """A bar over the bytes of all files. Those whose size is not known yet count as the mean."""

    def __init__(self, sizes: dict[str, int | None]) -> None:
        self._sizes = sizes
        self._at: dict[str, int] = {}
        self._lock = threading.Lock()
        self._bar = tqdm(desc="fetch", unit="B", unit_scale=True, file=sys.stderr)
        self._bar.total = self._total()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.close()

    def moved(self, target: Path, at: int, size: int | None) -> None:
        name = str(target)
        with self._lock:
            if name not in self._at:  # an earlier run's bytes say nothing of the speed
                self._at[name] = at
                self._bar.n += at
                self._bar.last_print_n += at
            if name not in self._sizes or size not in (None, self._sizes[name]):
                self._sizes[name] = size
                self._bar.total = self._total()
            self._bar.update(at - self._at[name])
            self._at[name] = at

    def settle(self, target: Path) -> None:
        """No more of this file will come."""
        with self._lock:
            self._sizes[str(target)] = self._at.get(str(target), 0)
            self._bar.total = self._total()
            self._bar.update(0)

    def _total(self) -> float | None:
        known = [size for size in self._sizes.values() if size is not None]
        return len(self._sizes) * sum(known) / len(known) if known else None
