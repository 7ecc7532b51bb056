"""The whole way on one machine: NCBI's XML files to a Hugging Face folder that PyTorch reads.

    python -m launch.local --config=configs/demo.py --corpus=data/sample --output=runs/demo

Every stage is one of the project's own commands, shown as it is run. A folder that a stage has
finished is kept (folders appear whole or not at all); training goes on from its newest checkpoint.
"""

import importlib.util
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from biomedlm_jax import entry
from biomedlm_jax.config import Experiment
from biomedlm_jax.entry import UserError
from biomedlm_jax.settings import build, check_arguments, overrides

PROMPTS = ("The aim of this study was to", "Patients were randomly assigned to")


def main(config: str, experiment: Experiment, corpus: Path, output: Path) -> None:
    started = time.monotonic()
    if not corpus.is_dir():
        raise UserError(f"--corpus={corpus} is no folder; name the one that holds NCBI's files")
    output.mkdir(parents=True, exist_ok=True)
    commands = stages(config, experiment, corpus, output)
    for number, (name, command) in enumerate(commands.items(), 1):
        run_stage(f"[{number}/{len(commands) + 1}]", output, name, command)
    print(f"[{len(commands) + 1}/{len(commands) + 1}] read back by transformers", flush=True)
    load_back(output / "hf")
    print(f"\n{summary(output)}")
    print(f"Took {(time.monotonic() - started) / 60:.1f} minutes. What to run next:")
    print(f"  {Path(sys.executable).parent}/tensorboard --logdir={output}/run/tensorboard")
    if Path(config).stem == "demo":
        print(
            "  make small CORPUS=DIR      NCBI's own files below DIR, 12M parameters, this machine"
        )
    print("  configs/pretrain_125m.py   the smallest rung of the published ladder, on a TPU or GPU")


def stages(config: str, experiment: Experiment, corpus: Path, output: Path) -> dict[str, list[str]]:
    """{name in `output` of what a stage makes: its command after `python -m`}, in order."""
    made, run = output / "corpus", output / "run"
    settings = [*overrides(sys.argv[1:]), f"--config.data.store={made / 'store'}"]
    size = f"--size={experiment.model.vocab}"
    return {
        "corpus": ["data.build", f"--input={corpus}", f"--output={made}", size],
        "run": ["biomedlm_jax.main", f"--config={config}", f"--workdir={run}", *settings],
        "held_out.txt": ["biomedlm_jax.held_out", f"--checkpoint={run}"],
        "hf": ["biomedlm_jax.hf.save", f"--checkpoint={run}", f"--output={output / 'hf'}"],
    }


def run_stage(title: str, output: Path, name: str, command: list[str]) -> None:
    """Runs one stage, unless its folder is there and was made by the same command.

    Raises:
      UserError: it was made by another command, or the stage failed; its own message stands above.
    """
    made, record = output / name, output / f".{name}.command"
    shown = f"python -m {shlex.join(command)}"
    if name in ("corpus", "hf") and made.is_dir():
        if not record.is_file() or record.read_text() != shown:
            raise UserError(
                f"{made} was made by another command than\n  {shown}\nname another --output, or "
                f"remove {output}"
            )
        print(f"{title} {command[0]}: {made} is there", flush=True)
        return
    print(f"{title} {shown}", flush=True)
    record.write_text(shown)  # before the stage: a folder without its command can not come to be
    captured = subprocess.PIPE if name.endswith(".txt") else None
    done = subprocess.run([sys.executable, "-m", *command], stdout=captured, text=True, check=False)
    if done.returncode:
        raise UserError(f"{command[0]} ended with code {done.returncode}; see above")
    if captured:
        made.write_text(done.stdout)


def load_back(folder: Path) -> None:
    """What a PyTorch user would do with the folder."""
    absent = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if absent:
        print(f"  not done: {' and '.join(absent)} not installed")
        return
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        generated = model.generate(
            **inputs, max_new_tokens=50, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
        print(f"  {tokenizer.decode(generated[0], skip_special_tokens=True)!r}")


def summary(output: Path) -> str:
    """Where everything lies, and how good the model is."""
    places = {
        "data card": output / "corpus/card.html",
        "documents, dropped, quarantine": output / "corpus/documents",
        "vocabulary": output / "corpus/vocabulary",
        "token store": output / "corpus/store",
        "checkpoints, metrics, TensorBoard": output / "run",
        "loss curve": output / "run/loss.png",
        "Hugging Face folder": output / "hf",
    }
    lines = [f"{name:<34}{place}" for name, place in places.items()]
    return "\n".join([*lines, (output / "held_out.txt").read_text()])


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "a file of configs/")
    flags.DEFINE_string("corpus", None, "folder with NCBI's XML files", required=True)
    flags.DEFINE_string("output", None, "folder for all results", required=True)

    def start() -> None:
        given = flags.FLAGS
        if given.config is None:
            raise UserError("--config is missing; for example --config=configs/demo.py")
        experiment = build(Experiment, given.config.to_dict())
        config = config_flags.get_config_filename(given["config"])
        main(config, experiment, Path(given.corpus), Path(given.output))

    entry.run(start, check_arguments)
