"""The whole way on one machine: NCBI's XML files to a Hugging Face folder that PyTorch reads.

    python -m launch.local --config=configs/demo.py --corpus=data/sample --output=runs/demo

Every stage is one of the project's own commands, shown as it is run. A stage that has finished is
not run again; training goes on from its newest checkpoint.
"""

import importlib.util
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from biomedlm_jax import entry
from biomedlm_jax.config import Experiment, build, check_overrides
from biomedlm_jax.entry import UserError

PROMPTS = ("The aim of this study was to", "Patients were randomly assigned to")
OVERRIDE = "--config."


def main(config: Path, experiment: Experiment, corpus: Path, output: Path) -> None:
    started = time.monotonic()
    if not corpus.is_dir():
        raise UserError(f"--corpus={corpus} is no folder; name the one that holds NCBI's files")
    overrides = [argument for argument in sys.argv[1:] if argument.startswith(OVERRIDE)]
    documents, vocabulary, store = (output / n for n in ("documents", "vocabulary", "store"))
    workdir, folder = output / "run", output / "hf"
    size = experiment.model.vocab
    stages = {
        documents: ["data.parse", f"--input={corpus}", f"--output={documents}"],
        vocabulary: [
            "data.tokenizer",
            f"--documents={documents}",
            f"--output={vocabulary}",
            f"--size={size}",
        ],
        store: [
            "data.tokenize",
            f"--documents={documents}",
            f"--vocabulary={vocabulary}",
            f"--output={store}",
        ],
        workdir: [
            "biomedlm_jax.main",
            f"--config={config}",
            f"--workdir={workdir}",
            *overrides,
            f"--config.data.store={store}",
        ],
        output / "held_out.txt": ["biomedlm_jax.held_out", f"--checkpoint={workdir}"],
        folder: ["biomedlm_jax.hf.save", f"--checkpoint={workdir}", f"--output={folder}"],
    }
    output.mkdir(parents=True, exist_ok=True)
    record = output / "stages.json"
    before = json.loads(record.read_text()) if record.exists() else {}
    for number, (result, command) in enumerate(stages.items(), 1):
        title = f"[{number}/{len(stages) + 1}] {command[0]}"
        if before.get(result.name, command) != command:
            raise UserError(
                f"{result} was made by another command ({shlex.join(before[result.name])}); "
                f"name another --output or remove {output}"
            )
        if result.name in before and result.exists():
            print(f"{title}: done before, kept in {result}", flush=True)
            continue
        print(f"{title}: python -m {shlex.join(command)}", flush=True)
        capture = result if result.suffix == ".txt" else None
        run(command, capture)
        before[result.name] = command
        record.write_text(json.dumps(before, indent=2) + "\n")

    print(f"[{len(stages) + 1}/{len(stages) + 1}] read back by transformers", flush=True)
    load_back(folder)
    print(
        f"\n{summary(output, workdir, folder)}\n"
        f"Took {(time.monotonic() - started) / 60:.1f} minutes. What to run next:\n"
        f"  tensorboard --logdir={workdir}/tensorboard\n"
        f"  python -m biomedlm_jax.main --config=configs/pretrain_125m.py --workdir=DIR "
        "--config.data.store=STORE   (on a TPU or GPU)\n"
        "  make small CORPUS=DIR   (NCBI's own files below DIR, 12M parameters, this machine)"
    )


def run(command: list[str], capture: Path | None) -> None:
    """Runs `python -m command`, and keeps what it prints in `capture` too.

    Raises:
      UserError: it failed; its own message stands above.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE if capture else None, text=True
    )
    printed, _ = process.communicate()
    if process.returncode:
        raise UserError(f"{command[0]} ended with code {process.returncode}; see above")
    if capture:
        print(printed, end="", flush=True)
        capture.write_text(printed)


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


def summary(output: Path, workdir: Path, folder: Path) -> str:
    places = {
        "documents, quarantine, counts": output / "documents",
        "token store": output / "store",
        "checkpoints, metrics.jsonl": workdir,
        "loss curve": workdir / "loss.png",
        "held-out bits per byte": output / "held_out.txt",
        "Hugging Face folder": folder,
    }
    return "\n".join(f"{name:<32}{place}" for name, place in places.items())


if __name__ == "__main__":
    CONFIG = config_flags.DEFINE_config_file("config", None, "a file of configs/")
    CORPUS = flags.DEFINE_string("corpus", None, "folder with NCBI's XML files", required=True)
    OUTPUT = flags.DEFINE_string("output", None, "folder for all results", required=True)
    entry.run(
        lambda: main(
            Path(config_flags.get_config_filename(flags.FLAGS["config"])),
            build(Experiment, CONFIG.value.to_dict()),
            Path(CORPUS.value),
            Path(OUTPUT.value),
        ),
        check_overrides,
    )
