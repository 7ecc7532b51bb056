"""Static cycles of a TPU kernel, read from the schedule that the compiler writes.

A TensorCore issues one VLIW bundle a cycle, in the order of the program, so bundles, each loop
times its trips, are the cycles of a kernel as far as nothing makes it wait. What can make it wait
(transfers that come late, a matrix unit that is still busy) is not in them: hold them against the
matrix unit's own time as well.

libtpu writes two files for a kernel: `*final_bundles.txt`, the program with its control flow in
comments, and `*final_hlo-static-per-bundle-utilization.txt`, slots of each unit by bundle.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Iterator
from pathlib import Path

DELAY = 5  # bundles between a branch and its effect
ADDRESS = re.compile(r"^\s*(0x[0-9a-f]+|0)\s+[A-Z:]*\s*:")
REGION = re.compile(r"Start(?:/End empty)? region (\d+)")
BRANCH = re.compile(r"sbr\.rel (?:\(!?%p\w+\) )?target = \$region(\d+)")
EXIT_TEST = re.compile(r"scmp\.\w+\.s32\.totalorder %\w+, (\d+) /\* loop exit test")
SCHEDULE = re.compile(r"\d+-(?P<name>.+)-\d+-final_bundles\.txt")
SLOTS = re.compile(r"\d+-(?P<name>.+)-\d+-final_hlo-static-per-bundle-utilization\.txt")


@dataclasses.dataclass(frozen=True)
class Loop:
    """Bundles start to end - 1; trips is None where the bound is no constant."""

    start: int
    end: int
    trips: int | None

    def holds(self, start: int, end: int) -> bool:
        return self.start <= start and end <= self.end


@dataclasses.dataclass(frozen=True)
class Schedule:
    """One kernel. loops: innermost first. regions: (start, end) of what a branch may skip.
    slots: by name of a unit, how many of its slots each bundle uses."""

    bundles: int
    loops: tuple[Loop, ...]
    regions: tuple[tuple[int, int], ...]
    slots: dict[str, tuple[int, ...]]

    def cycles(self) -> int:
        """Bundles, each as often as it runs. Every region counts as taken, an upper bound; the body
        of a loop whose trips are no constant counts once."""
        return self._weighted(0, self.bundles)

    def cycles_of_a_trip(self) -> int:
        """By how much one more trip of the loops without constant trips raises `cycles`."""
        unknown = [loop for loop in self.loops if loop.trips is None]
        return sum(self._weighted(loop.start, loop.end) for loop in unknown)

    def optional(self) -> list[tuple[int, int]]:
        """What a step of the grid may skip, such as a block above the diagonal, in the order of the
        program: (the region's part of `cycles`, its matrix slots).

        Innermost regions inside another one, for the pipeline wraps the whole body of a kernel in
        a region that all steps take.
        """
        return [
            (self._weighted(start, end), self.used("MATMUL", start, end))
            for start, end in self._inner_regions()
        ]

    def idle(self) -> int:
        """What `cycles` counts and no trip takes: the loop over the grid makes two more trips than
        there are steps, to fill and to drain the pipeline, which skip the body of the kernel, the
        largest region in the loop."""
        if not self.loops or not self.regions:
            return 0
        grid = self.loops[-1]
        inside = [end - start for start, end in self.regions if grid.holds(start, end)]
        return 2 * max(inside, default=0)

    def used(self, unit: str, start: int = 0, end: int | None = None) -> int:
        """Slots of a unit in the program's text, loops counted once."""
        return sum(self.slots.get(unit, ())[start:end])

    def _weighted(self, start: int, end: int) -> int:
        """Cycles of a span that no loop crosses. A loop of n trips adds its body n - 1 times, as
        often as the loops around it run."""
        total = (end - start) * self._times(start, end)
        for loop in self.loops:
            if start <= loop.start and loop.end <= end and (loop.start, loop.end) != (start, end):
                times = self._times(loop.start, loop.end)
                total += (loop.end - loop.start) * (times - times // (loop.trips or 1))
        return total

    def _times(self, start: int, end: int) -> int:
        around = (loop.trips or 1 for loop in self.loops if loop.holds(start, end))
        return math.prod(around)

    def _inner_regions(self) -> Iterator[tuple[int, int]]:
        """Regions in another region that hold none in turn; small ones are the pipeline's."""
        large = [r for r in self.regions if r[1] - r[0] > 20]
        for region in large:
            inside = [r for r in large if r != region and region[0] <= r[0] and r[1] <= region[1]]
            around = [r for r in large if r != region and r[0] <= region[0] and region[1] <= r[1]]
            if around and not inside:
                yield region


def read(bundles: str, utilization: str = "") -> Schedule:
    """From the text of the two files.

    Raises:
      ValueError: there is no bundle in it.
    """
    starts: dict[int, int] = {}
    branches, exits, address = [], [], -1
    for line in bundles.splitlines():
        if found := ADDRESS.match(line):
            address = int(found[1], 16)
        if address < 0:
            continue
        starts |= dict.fromkeys(map(int, REGION.findall(line)), address)
        branches += [(address, int(target)) for target in BRANCH.findall(line)]
        exits += [(address, int(count)) for count in EXIT_TEST.findall(line)]
    if address < 0:
        raise ValueError("no bundles: this is no schedule of libtpu, or of an unknown form")
    loops, regions = [], []
    for at, target in branches:
        if target not in starts:
            continue  # the end of the program
        if starts[target] > at:
            regions.append((at + DELAY, starts[target]))
        else:
            loops.append((starts[target], min(at + DELAY, address + 1)))
    loops.sort(key=lambda loop: loop[1] - loop[0])
    trips: dict[tuple[int, int], int] = {}
    for at, count in exits:
        inner = [loop for loop in loops if loop[0] <= at < loop[1]]
        if inner:
            trips.setdefault(inner[0], count)
    found = tuple(Loop(start, end, trips.get((start, end))) for start, end in loops)
    return Schedule(address + 1, found, tuple(regions), _slots(utilization))


def _slots(utilization: str) -> dict[str, tuple[int, ...]]:
    lines = utilization.splitlines()
    head = next((i for i, line in enumerate(lines) if line.startswith(("MATMUL,", "MXU,"))), None)
    if head is None:
        return {}
    # libtpu 0.0.42 has one column MXU where 0.0.52 has MATMUL and MATPUSH.
    units = [unit.strip().replace("MXU", "MATMUL") for unit in lines[head].split(",")]
    rows = [line.split() for line in lines[head + 2 :] if re.fullmatch(r"[\d\s]+", line)]
    rows = [tuple(map(int, row)) for row in rows if len(row) == len(units)]
    return dict(zip(units, zip(*rows, strict=True), strict=True)) if rows else {}


def in_folder(folder: Path, names: Collection[str]) -> dict[str, Schedule]:
    """The schedules of the HLO instructions `names` in a folder that libtpu wrote, by name."""
    slots, found = {}, {}
    for path in folder.iterdir():
        if (match := SLOTS.fullmatch(path.name)) and not match["name"].endswith("pre-delay"):
            slots[match["name"]] = path
    for path in folder.iterdir():
        match = SCHEDULE.fullmatch(path.name)
        if match and match["name"] in names and "schedule-analysis" not in path.name:
            of_units = slots.get(match["name"])
            found[match["name"]] = read(
                path.read_text(errors="replace"), of_units.read_text() if of_units else ""
            )
    return found
