"""Will it fit, how fast will it be, what will it cost: asked before there is a machine.

    python -m biomedlm_jax.plan --config=configs/pretrain_2p7b.py --topology=v5e:16x16

compiles the step that `main` would run for chips that need not be here, and reads the answer from
what the compilers say: memory of a chip by part, matrix flops, cycles, bytes over the network, and
from these a predicted time of a step. Nothing runs and nothing is measured. TPUs are planned for
with libtpu, GPUs with JAX's CUDA plugin (make compilers).

Several values with commas are compared: --topology=v5e:16x16,v5p:4x4x8, --batch_per_chip=4,8,
--mesh=16x16,8x32 (data x fsdp, and if given x model x context; -1 is what is left). --sweep looks
for the best meshes, remat policies and batches itself. Exit codes: 2 an error, 3 it does not fit.
"""

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import jax
from absl import flags
from etils import epath
from ml_collections import config_flags
from tqdm import tqdm

from biomedlm_jax import entry
from biomedlm_jax.compilers import child
from biomedlm_jax.compilers.programs import Programs
from biomedlm_jax.compilers.topologies import Topology, named
from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import UserError
from biomedlm_jax.pipeline.lines import appearing
from biomedlm_jax.planning import memory, sweep, times, words
from biomedlm_jax.planning.answer import Answer, ask
from biomedlm_jax.planning.page import page
from biomedlm_jax.planning.target import Target, target
from biomedlm_jax.settings import build, check_arguments

DOES_NOT_FIT = 3
AXES = ("data", "fsdp", "model", "context")


def meshes(texts: Sequence[str]) -> list[dict[str, int] | None]:
    """--mesh, each as axes; [None] is that of the config.

    Raises:
      UserError: one that is not two to four numbers.
    """
    found: list[dict[str, int] | None] = []
    for text in texts:
        if not re.fullmatch(r"(-1|[1-9]\d*)(x(-1|[1-9]\d*)){1,3}", text):
            raise UserError(
                f"--mesh={text}: two to four numbers, data x fsdp x model x context, as 16x16; one "
                "can be -1"
            )
        sizes = [*map(int, text.split("x")), 1, 1]
        found.append(dict(zip(AXES, sizes, strict=False)))
    return found or [None]


def batches(texts: Sequence[str]) -> list[int | None]:
    """--batch_per_chip; [None] is the config's batch.

    Raises:
      UserError: one that is no positive number.
    """
    for text in texts:
        if not re.fullmatch(r"[1-9]\d*", text):
            raise UserError(f"--batch_per_chip={text} is not a positive whole number of sequences")
    return [int(text) for text in texts] or [None]


def check(machines: Sequence[Topology]) -> None:
    """Raises UserError where what compiles for one of the machines is not installed."""
    for platform in dict.fromkeys(machine.platform for machine in machines):
        if reason := child.missing(platform):
            raise UserError(f"--topology: {reason}")


def answers(
    targets: Sequence[Target], answer: Callable[[Target], Answer], skip: bool = False
) -> list[Answer]:
    """One after the other, with progress on stderr; what does not compile is named there.

    skip: leave out what can not fit, by what others took.
    """
    found: list[Answer] = []
    if len(targets) == 1:
        print(f"compiling for {targets[0].machine.name}: about a minute", file=sys.stderr)
        return [answer(targets[0])]
    for one in (bar := tqdm(targets, desc="compile", unit="program", file=sys.stderr)):
        if skip and sweep.hopeless(one, found):
            continue
        bar.set_postfix_str(f"{one.machine.name}, {one.settings}")
        found.append(answer(one))
        if found[-1].refused:
            name = f"{one.machine.name}, {one.settings}"
            tqdm.write(f"does not compile: {name}: {found[-1].refused[:200]}", file=sys.stderr)
    return found


def different(targets: Iterable[Target]) -> list[Target]:
    return list(dict.fromkeys(targets))


def swept(bases: Sequence[Target]) -> list[Target]:
    """What a sweep around them compiles; where that is nothing, says why."""
    found = different(one for base in bases for one in sweep.many(base))
    if not found:
        for base in bases:
            least, limit = (words.gigabytes(size) for size in (
                memory.least(base), base.machine.chip.memory))  # fmt: skip
            print(
                f"{base.machine.name}: nothing was compiled. State and gradients, which every step "
                f"holds, are {least} a chip with {base.settings}; of the other settings none that "
                f"divides has them within the {limit} there are: take more or larger chips"
            )
    return found


def shown(answer: Answer) -> str:
    """All about one target."""
    text = f"{words.title(answer)}\n\n{words.table(words.lines(answer))}"
    if answer.figures is None:
        return text
    told = "\n".join(f"* {line}" for line in times.assumptions(answer.target, answer.figures))
    return f"{text}\n\n{told}"


def short_of(answer: Answer, answer_to: Callable[[Target], Answer], config: Experiment) -> str:
    """By how much a target does not fit, and the nearest that does. config: as it was given, which
    the flags that are named change."""
    held = answer.memory
    assert held
    name, over = answer.target.machine.name, words.gigabytes(held["needed"] - held["limit"])
    said = f"{name}, {answer.target.settings} does not fit: {over} too much a chip"
    print(f"{said}; looking for a setting that does", file=sys.stderr)

    count = 0

    def tried(one: Target) -> Answer:
        nonlocal count
        count += 1
        print(f"trying {one.settings}", file=sys.stderr)
        return answer_to(one)

    near = sweep.nearest(answer, tried)
    if near is None:
        none = f"none of the {count} that were tried fits" if count else "no other could fit"
        return f"{said}; of other remat, fsdp, accumulation and batch {none}"
    assert near.memory
    size = words.gigabytes(near.memory["needed"])
    flags_of = " ".join(overrides(config, near.target))
    return f"{said}; the nearest that fits is {near.target.settings} ({size}): {flags_of}"


def overrides(config: Experiment, new: Target) -> list[str]:
    """The flags of `main` that make the target of a config, on the target's machine."""
    a, b = config, new.experiment
    found = []
    if a.model.remat != b.model.remat:
        found.append(f"--config.model.remat={b.model.remat}")
    for axis, size in new.axes.items():
        if getattr(a.mesh, axis) not in (-1, size):  # -1 is what the others leave
            found.append(f"--config.mesh.{axis}={size}")
    if a.run.accumulate != b.run.accumulate:
        found.append(f"--config.run.accumulate={b.run.accumulate}")
    if a.data.batch != b.data.batch:
        found.append(f"--config.data.batch={b.data.batch}")
    return found


def conclude(found: Sequence[Answer], swept: bool) -> None:
    """Ends the program where not all fit, or of a sweep none.

    Raises:
      UserError: programs do not compile; of a sweep, all of them.
    """
    refused = [one.refused for one in found if one.refused]
    if refused and (not swept or len(refused) == len(found)):
        raise UserError(f"{len(refused)} of {len(found)} programs do not compile: {refused[0]}")
    fit = [one.fits for one in found]
    if not (any(fit) if swept else all(fit)):
        sys.exit(DOES_NOT_FIT)


def write(name: str, path: str | None, text: Callable[[], str]) -> None:
    if path:
        made = text().encode()
        with appearing(epath.Path(path)) as file:
            file.write(made)
        print(f"{name} written to {path}", file=sys.stderr)


def main() -> None:
    given = flags.FLAGS
    jax.config.update("jax_platforms", "cpu")  # chips that are here may be at work
    if given.config is None:
        raise UserError("--config is missing; for example --config=configs/pretrain_2p7b.py")
    if not given.topology:
        raise UserError("--topology is missing; for example --topology=v5e:16x16")
    experiment = build(Experiment, given.config.to_dict())
    machines = [named(name) for name in given.topology]
    targets = different(
        target(experiment, machine, mesh, size)
        for machine in machines
        for mesh in meshes(given.mesh)
        for size in batches(given.batch_per_chip)
    )
    for name in ("json", "html", "dump_hlo"):
        path = given[name].value
        if path and Path(path).is_dir():
            raise UserError(f"--{name}={path} is a folder; name a file")
    if given.dump_hlo and (len(targets) > 1 or given.sweep):
        raise UserError(f"--dump_hlo={given.dump_hlo} is one file, and of one program: ask for one")
    if given.dump_hlo and not Path(given.dump_hlo).parent.is_dir():
        raise UserError(f"--dump_hlo={given.dump_hlo}: its folder does not exist; make it first")
    check(machines)
    if given.sweep and not (targets := swept(targets)):
        sys.exit(DOES_NOT_FIT)

    with ExitStack() as stack:
        compilers = {
            platform: stack.enter_context(Programs(platform))
            for platform in dict.fromkeys(machine.platform for machine in machines)
        }

        text = Path(f"{given.dump_hlo}.partial").absolute() if given.dump_hlo else None

        def answer(one: Target, text_to: Path | None = None) -> Answer:
            return ask(compilers[one.machine.platform], one, given.price, text_to)

        found = answers(targets, lambda one: answer(one, text), skip=given.sweep)
        if text and text.exists():
            text.replace(given.dump_hlo)
        front = sweep.pareto(found) if given.sweep else None
        if front is None:
            print("\n\n".join(map(shown, found)))
            if len(found) > 1:
                print(f"\n{words.rows(found)}")
        else:
            wrong = [one for one in found if one.refused]
            print(f"{len(found)} settings, {sum(one.fits for one in found)} fit, {len(wrong)} do "
                  f"not compile. None beats these in both memory and speed:\n")  # fmt: skip
            print(words.rows(front))
        command = shlex.join(["python", "-m", "biomedlm_jax.plan", *sys.argv[1:]])
        record = {"command": command, "answers": [one.record() for one in found]}
        if front is not None:
            record["front"] = [found.index(one) for one in front]
        write("JSON", given.json, lambda: json.dumps(record, indent=1) + "\n")
        write("page", given.html, lambda: page(found, front, command))

        short = [one for one in found if not one.fits and not one.refused]
        if front is None and short:
            print()
            for one in short:
                print(short_of(one, answer, experiment), flush=True)
    conclude(found, given.sweep)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "a file of configs/")
    flags.DEFINE_list("topology", [], "machines, as v5e:16x16, v5p:4x4x8, h100:8, l4:1")
    flags.DEFINE_list(
        "mesh", [], "data x fsdp [x model [x context]], as 16x16; not given: config's"
    )
    flags.DEFINE_list("batch_per_chip", [], "sequences a chip; not given: config.data.batch")
    flags.DEFINE_bool("sweep", False, "try meshes, remat policies and batches, show the best")
    flags.DEFINE_float("price", None, "dollars of a chip-hour; not given: no cost", 0.0)
    flags.DEFINE_string("json", None, "a file for all figures")
    flags.DEFINE_string("html", None, "a file for a page with drawings")
    flags.DEFINE_string("dump_hlo", None, "a file for the text of the optimised program")
    entry.run(main, check_arguments)
