"""Promises about the code itself: imports point one way, files stay short, the README is true."""

import ast
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

ORDER = [
    "entry",
    "lock",
    "config",
    "settings",
    "roll_call",
    "pulses",
    "hosts",
    "layout",
    "mesh",
    "kernels.dropout",
    "kernels.varying",
    "kernels.interpret",
    "kernels.attention.keep",
    "kernels.attention.reference",
    "kernels.attention.block_sizes",
    "kernels.products",
    "kernels.attention.tpu_tiles",
    "kernels.attention.tpu_resident",
    "kernels.attention.tpu_streaming",
    "kernels.attention.pallas_tpu",
    "kernels.attention.pallas_gpu",
    "kernels.attention.cudnn",
    "kernels.attention.cpu",
    "kernels.attention.api",
    "kernels.attention.in_stack",
    "kernels.attention.cached",
    "kernels.cross_entropy.chunked",
    "kernels.cross_entropy.api",
    "model.layers",
    "model.layers_by_hand",
    "model.gpt",
    "model.forked",
    "model.decode",
    "model.additions",
    "objective",
    "optimizer",
    "step",
    "sharding",
    "pipeline.vocabulary",
    "pipeline.words",
    "pipeline.passages",
    "pipeline.lines",
    "pipeline.store",
    "pipeline.store_writer",
    "pipeline.tasks",
    "pipeline.loader",
    "pipeline.inspect",
    "benchmarks.item",
    "benchmarks.files",
    "benchmarks.forms",
    "benchmarks.mirage",
    "benchmarks.medqa",
    "benchmarks.medmcqa",
    "benchmarks.mmlu",
    "benchmarks.pubmedqa",
    "benchmarks.bioasq",
    "benchmarks.meqsum",
    "benchmarks.medquad",
    "benchmarks.apart",
    "benchmarks.read",
    "benchmarks.plain",
    "benchmarks.prompts",
    "benchmarks.batches",
    "benchmarks.exam",
    "scoring.answers",
    "scoring.measures",
    "scoring.rouge",
    "scoring.contamination",
    "scoring.scores",
    "scoring.published",
    "scoring.record",
    "scoring.folder",
    "scoring.beside",
    "benchmarks.tasks",
    "checksums",
    "saves",
    "arrays",
    "claim",
    "checkpoint",
    "generation.sampling",
    "generation.writing",
    "generation.slots",
    "generate",
    "continuations",
    "hf.config",
    "hf.names",
    "hf.read",
    "hf.tokenizer",
    "hf.write",
    "hf.adapter_config",
    "hf.adapters",
    "hf.foreign",
    "adapted",
    "start",
    "likelihood",
    "ask",
    "harness",
    "held_out",
    "journal",
    "compilers.chips",
    "metrics",
    "judge",
    "watch",
    "material",
    "train",
    "reports.record",
    "reports.times",
    "reports.charts",
    "reports.page",
    "reports.markdown",
    "scoring.drawings",
    "scoring.tables",
    "scoring.page",
    "candidate",
    "evaluate",
    "finetune",
    "reports.happened",
    "reports.sections",
    "report",
    "hf.load",
    "hf.usage",
    "hf.card",
    "hf.save_adapters",
    "hf.save",
    "sample",
    "serving.answers",
    "serving.asked",
    "serving.worker",
    "serving.guard",
    "serving.app",
    "serving.server",
    "serve",
    "main",
    "compilers.topologies",
    "compilers.wheels",
    "compilers.hlo",
    "compilers.products",
    "compilers.traffic",
    "compilers.cost",
    "compilers.calls",
    "compilers.whole",
    "compilers.schedules",
    "compilers.tpu",
    "compilers.gpu",
    "compilers.child",
    "compilers.programs",
    "planning.target",
    "planning.memory",
    "planning.times",
    "planning.answer",
    "planning.sweep",
    "planning.words",
    "planning.page",
    "plan",
    "speed.attention",
    "speed.peers",
    "speed.times",
    "speed.report",
    "speed.kernels",
    "speed.saves",
    "speed.sides",
    "speed.export",
    "speed.cpu",
    "speed.decode",
    "speed.asking",
]
PACKAGE = ROOT / "biomedlm_jax"
SOURCES = [*PACKAGE.rglob("*.py"), *(ROOT / "data").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]
HEAVY = ("torch", "tensorflow", "seqio", "transformers")


def module_name(path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported(path) -> set[str]:
    """Full names of what a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_has_its_place_in_the_order():
    found = {module_name(path) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    assert found == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_up_the_order(name):
    later = {f"biomedlm_jax.{other}" for other in ORDER[ORDER.index(name) :]}
    path = PACKAGE / (name.replace(".", "/") + ".py")
    assert not later & imported(path)
    assert not any(other.split(".")[0] in ("data", "launch", "tests") for other in imported(path))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short_and_say_what_they_are_for(path):
    limit = 800 if "kernels" in path.parts else 400
    assert len(path.read_text().splitlines()) <= limit
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree), f"{path} has no docstring"


def test_nothing_heavy_is_imported_by_training():
    """TensorFlow is for reading through seqio, in `tasks`; torch and transformers for nobody."""
    names = [f"biomedlm_jax.{name}" for name in ORDER if not name.endswith(".tasks")]
    script = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy, heavy
import jax
assert not jax._src.xla_bridge.backends_are_initialized(), "an import started JAX"
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def tracked() -> list[str]:
    found = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.splitlines()


def test_the_tree_in_the_readme_is_the_tree():
    """Every file of the package, the tools and the configs has its line, and no line is without."""
    (tree,) = re.findall(r"```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    listed, parents = set(), []
    for line in tree.splitlines():
        entry = re.match(r"( *)(\S+)", line)
        depth = len(entry[1]) // 2
        parents = [*parents[:depth], entry[2]]
        listed.add("".join(parents))
    shown = ("biomedlm_jax/", "data/", "configs/", "launch/")
    files = {
        path
        for path in tracked()
        if path.startswith(shown) and path.endswith(".py") and not path.endswith("__init__.py")
        if not path.startswith("data/sample/")
    }
    assert {path for path in listed if path.startswith(shown) and path.endswith(".py")} == files
    assert {path for path in listed if "/" not in path} <= set(tracked())


def test_nothing_is_left_to_fill_in():
    for name in set(tracked()) - {"tests/test_structure.py"}:
        if name.endswith((".md", ".py", ".txt")):
            assert not re.search("@[A-Z]+@|TODO|FIXME", (ROOT / name).read_text()), name


def test_commands_in_the_readme_exist():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z-]+)", readme)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for module in set(re.findall(r"python -m ([a-z_]+(?:\.[a-z_]+)+)", readme)):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
    for config in set(re.findall(r"configs/\w+\.py", readme)):
        assert (ROOT / config).is_file(), config
