"""lm_eval's tasks on a checkpoint as it is, without a Hugging Face folder:

    python -m biomedlm_jax.harness --checkpoint=DIR --tasks=NAME,... --output=OUT

DIR is the --workdir of a run, what `hf.load` wrote, or a Hugging Face folder. The numbers are those
that lm_eval's own `hf` model has of the exported folder: contexts are cut from the left, a text as
a whole goes through in windows, written texts are greedy. --include_path=DIR adds tasks as YAML.

lm_eval [1] is no part of what this project needs: `pip install lm_eval==0.4.13` brings it. What is
used here of it imports no torch. From Python, `model_class()` is its class of a model, registered
under "biomedlm_jax".

[1] EleutherAI/lm-evaluation-harness
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from biomedlm_jax import entry, start
from biomedlm_jax import mesh as meshes
from biomedlm_jax.entry import UserError
from biomedlm_jax.generate import Engine, Piece, Request, joined, stream
from biomedlm_jax.generation.slots import groups, without_context
from biomedlm_jax.likelihood import LogLikelihood, Pair
from biomedlm_jax.pipeline.vocabulary import Vocabulary

VERSION = "0.4.13"  # of lm_eval, that was tested
NAME = "biomedlm_jax"  # in lm_eval's list of models
SLOTS = 16  # texts of a group of devices at once
NEW = 256  # tokens of a text where a task does not say, as lm_eval has it
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
OF_DRAWING = ("temperature", "top_k", "top_p")  # without do_sample they change nothing
RESULTS, SAMPLES = "results.json", "samples_{}.jsonl"


class Model:
    """What lm_eval asks of a model, for any place that `start.find` opens.

    Raises:
      UserError: see `start.find`; or no vocabulary came with the weights.
    """

    def __init__(self, checkpoint: str) -> None:
        source = start.find(checkpoint)
        if source.vocabulary is None:
            raise UserError(
                f"{checkpoint} has no vocabulary, so text can not be read; put the tokenizer.json "
                "that belongs to it there"
            )
        self.vocabulary = Vocabulary(source.vocabulary)
        self.context = source.model.context
        self._model, self._mesh = source.model, meshes.everywhere(source.model)
        self._params = start.params(source, self._mesh)
        self._likelihood = LogLikelihood(self._model, self._params, self._mesh)

    @functools.cached_property
    def _engine(self) -> Engine:
        slots = SLOTS * groups(without_context(self._mesh))
        return Engine(self._model, self._params, self.vocabulary, self._mesh, slots=slots)

    def likelihoods(self, pairs: Sequence[Pair], quiet: bool = False) -> list[tuple[float, bool]]:
        """(log p in nats, whether it is the greedy text) of each continuation."""
        with _bar(len(pairs), "log-likelihoods", quiet) as bar:
            found = self._likelihood(pairs, bar.update)
        return [(one.nats, bool(one.greedy.all())) for one in found]

    def rolling(self, texts: Sequence[str], quiet: bool = False) -> list[float]:
        """Log p in nats of each whole text, after the end of text."""
        encoded = self.vocabulary.encode_batch(list(texts))
        count = sum(-(-len(ids) // self.context) for ids in encoded)
        with _bar(count, "windows", quiet) as bar:
            return self._likelihood.rolling(encoded, self.vocabulary.eos_id, bar.update)

    def until(self, asked: Sequence[tuple[str, dict[str, Any]]], quiet: bool = False) -> list[str]:
        """The greedy text after each context, to the first of its "until", which is not in it.

        Raises:
          UserError: a setting asks for something else; before any text is begun.
        """
        requests = [self._request(context, dict(settings)) for context, settings in asked]
        for request in requests:
            self._engine.check(request)
        pieces: list[list[Piece]] = [[] for _ in requests]
        with _bar(len(requests), "texts", quiet) as bar:
            for number, piece in stream(self._engine, requests):
                pieces[number].append(piece)
                bar.update(1 if piece.finish else 0)
        return [joined(of_one).text for of_one in pieces]

    def _request(self, context: str, settings: dict[str, Any]) -> Request:
        until = settings.pop("until", None) or []
        given = [settings.pop(name, None) for name in LENGTHS]
        new = int(next((value for value in given if value is not None), NEW))
        if settings.pop("do_sample", False):
            raise UserError(
                "a task draws its texts (do_sample is true), and here they are greedy; say "
                "do_sample: false in its generation_kwargs, or use lm_eval's hf model"
            )
        for name in OF_DRAWING:
            settings.pop(name, None)
        if settings:
            raise UserError(
                f"generation_kwargs has {', '.join(settings)}; known are until, do_sample, "
                f"{', '.join((*LENGTHS, *OF_DRAWING))}"
            )
        if not 0 < new < self.context:
            raise UserError(
                f"a task asks for texts of {new} tokens, and config.model.context is "
                f"{self.context}; set its max_gen_toks to {self.context - 1} at most"
            )
        ids = self.vocabulary.encode(context)[new - self.context :] or [self.vocabulary.eos_id]
        return Request(
            prompt=tuple(ids),
            max_tokens=new,
            temperature=0.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            seed=0,
            stop=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
        )


def _bar(total: int, what: str, quiet: bool) -> tqdm:
    return tqdm(total=total, desc=what, disable=quiet)


@functools.cache
def model_class() -> type:
    """lm_eval's class of a model, to be made with checkpoint=DIR; after this call lm_eval knows it
    by NAME.

    Raises:
      UserError: lm_eval is not there.
    """
    _check_installed()
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
    from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]

    @register_model(NAME)
    class OnOurEngine(TemplateLM):
        """batch_size, max_batch_size and device are what lm_eval gives all models; the rows and
        the devices are chosen here."""

        def __init__(
            self,
            checkpoint: str,
            batch_size: object = None,
            max_batch_size: object = None,
            device: object = None,
        ) -> None:
            super().__init__()
            self.asked = Model(checkpoint)
            self.max_length = self.asked.context

        @property
        def eot_token_id(self) -> int:
            return self.asked.vocabulary.eos_id

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
        ) -> list[int]:
            return self.asked.vocabulary.encode(string)

        def _loglikelihood_tokens(
            self, requests: list, disable_tqdm: bool = False, **kwargs: Any
        ) -> list[tuple[float, bool]]:
            pairs = [Pair(context, continuation) for _, context, continuation in requests]
            found = self.asked.likelihoods(pairs, disable_tqdm)
            for (texts, _, _), answer in zip(requests, found, strict=True):
                self.cache_hook.add_partial("loglikelihood", texts, answer)
            return found

        def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
            texts = [request.args[0] for request in requests]
            found = self.asked.rolling(texts, disable_tqdm)
            for text, nats in zip(texts, found, strict=True):
                self.cache_hook.add_partial("loglikelihood_rolling", (text,), nats)
            return found

        def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
            asked = [request.args for request in requests]
            found = self.asked.until(asked, disable_tqdm)
            for one, text in zip(asked, found, strict=True):
                self.cache_hook.add_partial("generate_until", one, text)
            return found

    return OnOurEngine


def _check_installed() -> None:
    try:
        import lm_eval.api.model  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"lm_eval can not be imported ({error}); pip install lm_eval=={VERSION}, which needs "
            "no torch"
        ) from error


def run(
    checkpoint: str,
    tasks: Sequence[str],
    output: Path,
    *,
    include_path: str | None,
    shots: int | None,
    limit: int | None,
) -> dict[str, dict[str, Any]]:
    """Runs tasks, writes RESULTS and SAMPLES into `output`, and returns the metrics by task.

    shots: None leaves it to the tasks.
    limit: of items of each task, the first so many.

    Raises:
      UserError: lm_eval is not there, or has no such task; see `Model`.
    """
    entry.check_output(output)
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"--include_path={include_path} is no folder; name one with YAML files")
    made = model_class()
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    from lm_eval.utils import (  # pyright: ignore[reportMissingImports]
        handle_non_serializable,
        make_table,
    )

    evaluate: Any = lm_eval.simple_evaluate
    manager = TaskManager(include_path=include_path)
    if unknown := [name for name in tasks if name not in manager.all_tasks]:
        raise UserError(
            f"--tasks={','.join(tasks)}: lm_eval has no {', '.join(unknown)}; `lm_eval ls tasks` "
            "lists what it has, and --include_path adds a folder of YAML files"
        )
    found = evaluate(
        model=made(checkpoint),
        tasks=list(tasks),
        task_manager=manager,
        num_fewshot=shots,
        limit=limit,
    )
    samples = found.pop("samples")
    write = functools.partial(json.dumps, default=handle_non_serializable, ensure_ascii=False)
    with entry.whole_folder(output) as folder:
        (folder / RESULTS).write_text(write(found, indent=1) + "\n", encoding="utf-8")
        for name, rows in samples.items():
            lines = "".join(write(row) + "\n" for row in rows)
            (folder / SAMPLES.format(name)).write_text(lines, encoding="utf-8")
    print(make_table(found))
    return found["results"]


if __name__ == "__main__":
    CHECKPOINT = flags.DEFINE_string(
        "checkpoint", None, "a run, or a model's folder", required=True
    )
    TASKS = flags.DEFINE_list("tasks", None, "names, with commas between them", required=True)
    OUTPUT = flags.DEFINE_string("output", None, "a new folder for the results", required=True)
    INCLUDE = flags.DEFINE_string("include_path", None, "a folder of tasks as YAML")
    SHOTS = flags.DEFINE_integer("shots", None, "examples; not given: as a task says", 0)
    LIMIT = flags.DEFINE_integer("limit", None, "the first so many items of each task", 1)
    entry.run(
        lambda: run(
            CHECKPOINT.value,
            TASKS.value,
            Path(OUTPUT.value),
            include_path=INCLUDE.value,
            shots=SHOTS.value,
            limit=LIMIT.value,
        )  # pyright: ignore
    )
