"""Steps of work over many items, in parallel with Apache Beam, and never done twice.

A step is a list of items and a function that does one of them and returns a summary. The summary
is written to `work/<step>/<item>.json` as the last thing, so an item that has one is finished: a
run that was killed goes on with the items that have none. A step begins when the one before has
ended. What items make are files; Beam hands out the names, so any runner of Beam's will do, and
no text passes through it.

Beam's direct runner here is its FnApiRunner with a process for each core. `--runner=DataflowRunner`
needs the extra `gcp`, folders on gs://, Google Cloud's options, as in --beam=--project=P
--beam=--region=R, and workers that have this code: --beam=--sdk_container_image=IMAGE.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from absl import flags
from etils import epath
from tqdm import tqdm

from biomedlm_jax import entry
from biomedlm_jax.entry import UserError, in_cloud
from biomedlm_jax.pipeline.lines import appearing

WORK = "work"
_LOST = "Channel closed prematurely"  # what Beam says when a worker is gone
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_ITEMS = "items.txt"  # of a step: names and weights, for the progress bar
_SAFE = re.compile(r"[\w.-]+")


class Step(NamedTuple):
    """name: of its folder and its bar. items: {name: weight in bytes}, asked for when the steps
    before have ended. work: does one item; may be called again for an item that was cut off, and
    must then make the same. Both go to other processes and are pickled. folder: where its
    summaries lie, below `work`."""

    name: str
    items: Callable[[], dict[str, int]]
    work: Callable[[str], dict[str, Any]]
    folder: epath.Path


class Runner(NamedTuple):
    """name: a runner of Beam's, or "serial": in this process, one item after another."""

    name: str = "serial"
    workers: int = 0  # processes of the direct runner; 0: one a core
    options: tuple[str, ...] = ()  # for Beam, as on its own command lines


SERIAL = Runner()


def define_flags() -> None:
    flags.DEFINE_string(
        "runner", "DirectRunner", "Of Apache Beam's, such as DataflowRunner; or serial."
    )
    flags.DEFINE_integer("workers", 0, "Processes of the direct runner; 0 is one a core.", 0)
    flags.DEFINE_multi_string("beam", [], "An option for Beam, such as --beam=--region=R.")


def given_runner() -> Runner:
    given = flags.FLAGS
    return Runner(given.runner, given.workers, tuple(given.beam))


@contextlib.contextmanager
def building(output: epath.Path, settings: dict[str, Any]) -> Iterator[epath.Path]:
    """The folder to build `output` in, which an interrupted run with the same settings and the
    same code has perhaps begun. On a disk it is `<output>.partial`, locked until it is renamed at
    the end; on gs://, where a folder can not be renamed, it is `output` and nobody takes it for
    whole without its manifest.

    Raises:
      UserError: `output` is not empty, somebody else's, being built by another run, or can not be
        written.
    """
    remote = in_cloud(output)
    output = output if remote else epath.Path(Path(output).absolute())
    partial = output if remote else output.with_name(output.name + ".partial")
    wanted = json.dumps({"code": _code(), **settings}, indent=1, sort_keys=True)
    record = partial / WORK / "settings.json"
    with _writable(output, partial), contextlib.ExitStack() as held:
        if not remote:
            entry.check_output(Path(output))
        if partial.exists() and any(partial.iterdir()) and not record.parent.exists():
            raise UserError(
                f"--output={output}: {partial} is not empty and no build that was begun; move it "
                "away or name another folder"
            )
        if remote and (output / "manifest.json").exists():
            raise UserError(f"--output={output} is not empty; name another folder")
        record.parent.mkdir(parents=True, exist_ok=True)
        if not remote:
            held.enter_context(_locked(Path(record.parent) / "lock", output))
        _begin(partial, record, wanted)
        yield partial
        if not remote:
            for file in [*Path(partial).rglob("*.partial")]:  # of a run that was killed
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            if output.exists():
                output.rmdir()
            partial.rename(output)
        remove_work(output)  # last: a run killed here has lost nothing


def _begin(partial: epath.Path, record: epath.Path, wanted: str) -> None:
    """Keeps what an earlier run left, if it was made with the same settings, input and code."""
    if record.exists() and record.read_text() == wanted:
        return
    if record.exists():
        print(f"{partial}: other settings, input or code than before; begins again", flush=True)
        for left in (*partial.iterdir(), *record.parent.iterdir()):
            if left != record.parent and left.name != "lock":
                left.rmtree() if left.is_dir() else left.unlink()
    with appearing(record) as stream:
        stream.write(wanted.encode())


@contextlib.contextmanager
def _locked(file: Path, output: epath.Path) -> Iterator[None]:
    """Raises UserError where another run has the lock, or had it until now and has finished."""
    with file.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"--output={output} is being built by another run") from error
        if not file.exists():
            raise UserError(f"--output={output} was finished by another run")
        yield


def run(steps: list[Step], runner: Runner) -> None:
    """Does all items of all steps that have no summary yet.

    Raises:
      UserError: of an item, or a disk that can not be written.
    """
    if runner.name == "serial":
        for step in steps:
            with _progress(step):
                for item in _listed(step):
                    _done(step, item)
        return
    with _quiet() as log, _progress(*steps):
        try:
            _on_beam(steps, runner)
        except Exception as error:
            found = re.findall(r"UserError: (.*?)(?: \[while running|\\n|\n|$)", str(error))
            if _LOST in str(error):
                raise UserError(
                    "a worker process was ended from outside, as the system does where memory runs "
                    "out; the same command goes on where this one stopped, with fewer --workers if "
                    "need be"
                ) from error
            if not found:
                log.flush()
                log.seek(0)
                os.write(_stderr(), log.read()[-20_000:])
                raise
            raise UserError(found[-1]) from error


def remove_work(folder: epath.Path) -> None:
    """Removes what steps leave in a folder beside their result."""
    if (folder / WORK).exists():
        (folder / WORK).rmtree()


def summaries(folder: epath.Path, step: str) -> dict[str, dict[str, Any]]:
    """What the items of a step returned, by name in order."""
    names = sorted(_weights(folder, step))
    return {name: json.loads(_summary(folder, step, name).read_text()) for name in names}


def _on_beam(steps: list[Step], runner: Runner) -> None:
    import apache_beam as beam  # 2 s, and needed here only
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

    options = list(runner.options)
    if direct := runner.name == "DirectRunner":
        workers = runner.workers or os.cpu_count() or 1
        options += ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
    # Beam's DirectRunner may fetch another runner from the network; this is the one it falls
    # back to.
    engine: Any = FnApiRunner() if direct else runner.name
    given = PipelineOptions(options)
    try:
        known, asked = (
            given.get_all_options(True, retain_unknown_options=r) for r in (False, True)
        )
    except SystemExit as error:  # argparse
        said = ", ".join(f"--beam={option}" for option in runner.options)
        raise UserError(f"{said}: Apache Beam can not read a value of these") from error
    if unknown := sorted(asked.keys() - known.keys()):
        raise UserError(f"--beam=--{unknown[0]} is no option of Apache Beam's")
    try:
        pipeline = beam.Pipeline(engine, options=given)
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--runner={runner.name} can not be used: {reason}") from error
    with pipeline:
        ended: Any = pipeline | beam.Create([None])
        for step in steps:
            ended = (
                ended
                | f"{step.name}: items" >> beam.FlatMap(lambda _, s=step: _listed(s))
                | f"{step.name}: spread" >> beam.Reshuffle()
                | f"{step.name}: work" >> beam.Map(lambda item, s=step: _done(s, item))
                | f"{step.name}: end" >> beam.combiners.Count.Globally()
            )


def _listed(step: Step) -> list[str]:
    """The items of a step, the heaviest first, so that no worker ends long after the others."""
    with explained(step.name):
        weights = step.items()
        for name in weights:
            assert _SAFE.fullmatch(name), name
        place = step.folder / WORK / step.name
        place.mkdir(parents=True, exist_ok=True)
        _write(place / _ITEMS, "".join(f"{name} {weight}\n" for name, weight in weights.items()))
    return sorted(weights, key=lambda name: (-weights[name], name))


def _done(step: Step, item: str) -> None:
    file = _summary(step.folder, step.name, item)
    if not file.exists():
        with explained(f"{step.name} {item}"):
            _write(file, json.dumps(step.work(item)))


def _summary(folder: epath.Path, step: str, item: str) -> epath.Path:
    return folder / WORK / step / f"{item}.json"


def _write(file: epath.Path, text: str) -> None:
    with appearing(file) as stream:
        stream.write(text.encode())


def _weights(folder: epath.Path, step: str) -> dict[str, int]:
    file = folder / WORK / step / _ITEMS
    if not file.exists():
        return {}
    lines = (line.split() for line in file.read_text().splitlines())
    return {name: int(weight) for name, weight in lines}


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """What the system reports is for the user, from whatever process it comes."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        remedy = "make room or name a folder on another disk; " if error.errno in _NO_ROOM else ""
        raise UserError(
            f"{what}: {error.strerror or error}{where}; {remedy}the same command goes on where "
            "this one stopped"
        ) from error


@contextlib.contextmanager
def _writable(output: epath.Path, partial: epath.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--output={output} can not be written: {error.strerror or error}; make room there "
            f"or name a folder on another disk; {partial} holds what was finished"
        ) from error


@contextlib.contextmanager
def _progress(*steps: Step) -> Iterator[None]:
    """A bar for each step, by the weight of the items that have a summary."""
    ended = threading.Event()

    def show() -> None:
        for step in steps:
            if ended.is_set() and not _weights(step.folder, step.name):
                return  # it never began
            with tqdm(desc=step.name, unit="B", unit_scale=True, file=_Terminal()) as bar:
                while not _advance(bar, step) and not ended.wait(0.5):
                    pass
                _advance(bar, step)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _advance(bar: tqdm, step: Step) -> bool:
    """Moves the bar; whether the step has ended."""
    weights = _weights(step.folder, step.name)
    if not weights:
        return False
    present = {file.name for file in (step.folder / WORK / step.name).iterdir()}
    bar.total = sum(weights.values())
    done = [weight for name, weight in weights.items() if f"{name}.json" in present]
    bar.n = sum(done)
    bar.refresh()
    return len(done) == len(weights)


class _Terminal:
    """Standard error, also while `_quiet` holds its descriptor."""

    def write(self, text: str) -> None:
        if _HELD:
            os.write(_HELD[-1], text.encode())
        else:
            sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


_HELD: list[int] = []  # the terminal, while descriptor 2 leads to a file


def _stderr() -> int:
    return _HELD[-1] if _HELD else 2


@contextlib.contextmanager
def _quiet() -> Iterator[IO[bytes]]:
    """Standard error as a file, also for processes that are started: each of Beam's workers
    reports a dozen stages of its life there."""
    with tempfile.TemporaryFile() as log:
        sys.stderr.flush()
        _HELD.append(os.dup(2))
        os.dup2(log.fileno(), 2)
        try:
            yield log
        finally:
            os.dup2(_HELD[-1], 2)
            os.close(_HELD.pop())


def _code() -> str:
    """A hash of what makes documents and tokens: work of other code is not gone on with."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    places = (here, here.parent / "biomedlm_jax/pipeline")
    for file in sorted(file for place in places for file in place.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
