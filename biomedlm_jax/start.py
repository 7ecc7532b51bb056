"""Weights from anywhere: one home for what opens a model.

`find` tells by what is in a folder whether it is the --workdir of a run, what `hf/load.py` wrote,
a Hugging Face folder, or PEFT's adapters of one, and says what model and vocabulary are there;
`params` puts the weights on a mesh. Whatever they come from, they are checked: by the checksums of
the save or of the import, and of a Hugging Face folder of others, that every number is finite.
"""

import dataclasses
import hashlib
import json
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
from etils import epath
from jax.sharding import Mesh, NamedSharding

from biomedlm_jax import checkpoint, hosts
from biomedlm_jax.adapted import Adapted
from biomedlm_jax.arrays import Arrays
from biomedlm_jax.benchmarks.prompts import SPECIAL
from biomedlm_jax.benchmarks.read import classes
from biomedlm_jax.checksums import checksums
from biomedlm_jax.claim import read_claim
from biomedlm_jax.config import Experiment, Model
from biomedlm_jax.entry import UserError, in_cloud
from biomedlm_jax.hf import adapter_config, adapters, read, tokenizer
from biomedlm_jax.hf.config import labels_of
from biomedlm_jax.hf.foreign import PARAMS, Foreign, Merged, receipt
from biomedlm_jax.model import gpt
from biomedlm_jax.model.additions import without_adapters
from biomedlm_jax.pipeline.vocabulary import Place, Vocabulary
from biomedlm_jax.saves import (
    DamagedError,
    absolute,
    first_sees,
    nothing_whole,
    passed_over,
)
from biomedlm_jax.settings import build

PREFIX = "hf:"  # before a folder that has to be Hugging Face's
IMPORTED = "model.json"
# What makes of a text's tokens the next one's probabilities; the rest is how it is computed.
FUNCTION = ("layers", "width", "heads", "mlp", "vocab", "context")
FUNCTION += ("layer_norm_epsilon", "scale_attn_by_layer")
Kind = Literal["run", "imported", "hugging_face", "adapters"]
T = TypeVar("T")


@dataclasses.dataclass
class Source:
    """A model that was found somewhere.

    place: the folder.
    what: which kind it is.
    model: its settings; `remat` and `attention` are of whoever computes with it. There are no
      adapters: they are merged.
    vocabulary: the file that `Vocabulary` opens; None where none came with the weights.
    eos_id: the token that ends a text, where that is known.
    step: of the save, for a run; where `params` finds the newest damaged it is an older one's.
    experiment: the settings of the run, for a run.
    facts: what a receipt says of it.
    special: tokens of a task that follow those of the vocabulary (`benchmarks.prompts.SPECIAL`).
    labels: names of the classes of its head, of a classification.
    """

    place: epath.Path
    what: Kind
    model: Model
    vocabulary: Place | None
    eos_id: int | None
    step: int | None
    experiment: Experiment | None
    facts: dict[str, Any]
    arrays: Arrays | Adapted | Foreign
    special: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    _others: list[int] = dataclasses.field(default_factory=list)  # older saves
    _passed: dict[int, str] = dataclasses.field(default_factory=dict)
    _wait_seconds: int = 600

    def whole(self, act: Callable[[], T]) -> T:
        """act() with the newest save that act finds whole; damaged ones are named on stderr.

        Raises:
          UserError: none is; or another kind of source is damaged.
        """
        while True:
            try:
                return act()
            except DamagedError as error:
                self._pass_over(error)

    def _pass_over(self, error: DamagedError) -> None:
        if self.experiment is None or self.step is None:
            raise UserError(f"{self.place} is damaged: {error}; copy or load it again") from error
        print(passed_over(self.step, error), file=sys.stderr)
        self._passed[self.step] = str(error)
        self._open_next()

    def _open_next(self) -> None:
        """Makes the newest save that was not passed over, and whose position can be read, the one
        that is used."""
        assert self.experiment is not None
        while self._others:
            self.step = self._others.pop(0)
            opened = partial(self._opened, self.experiment, self.step)
            try:
                self.arrays = _together("position", opened, self._wait_seconds)
            except DamagedError as error:
                print(passed_over(self.step, error), file=sys.stderr)
                self._passed[self.step] = str(error)
            else:
                self.facts["step"] = self.step
                return
        every = self.experiment.run.save_every
        raise UserError(nothing_whole(self.place, every, self._passed))

    def _opened(self, experiment: Experiment, step: int) -> Arrays | Adapted:
        found = checkpoint.scored(self.place, experiment, step)
        if not experiment.model.lora_rank:
            return found
        return Adapted(found, experiment.model, self._wait_seconds)


def find(
    place: str | epath.Path,
    dropout: float | None = None,
    wait_seconds: int = 600,
    *,
    step: int | None = None,
) -> Source:
    """What is in a folder: a run's --workdir (also on gs://), what `hf/load.py` wrote, Hugging
    Face's, which may be written hf:DIR, or PEFT's adapters, merged into their base as it is read.

    dropout: of a Hugging Face folder, in place of its own.
    wait_seconds: for the other processes, all of which call it where there are several.
    step: of a run, the save that is meant, and no other; None is the newest that is whole.

    Raises:
      UserError: none of these, one that is not whole, or one that this model does not compute.
    """
    given = str(place)
    folder = absolute(given.removeprefix(PREFIX))
    kind = "hugging_face" if given.startswith(PREFIX) else _kind(folder)
    if dropout is not None and kind != "hugging_face":
        raise UserError(f"--dropout is for a Hugging Face folder, and {folder} is none")
    if kind == "run":
        return _run(folder, wait_seconds, step)
    if kind == "imported":
        return _imported(folder)
    return _hugging_face(folder, dropout, wait_seconds)


def params(source: Source, mesh: Mesh, wait_seconds: int = 600) -> dict:
    """The parameters as float32 arrays on `mesh`, stored as `gpt.specs` says, checked. Every
    process of a mesh calls it.

    wait_seconds: for the others.

    Raises:
      UserError: they are damaged, or can not be read; on all processes.
    """
    specs = gpt.specs(source.model, mesh.shape)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)

    def act() -> dict:
        found = _together("weights", lambda: source.arrays.restore(shardings), wait_seconds)
        _together("checksums", lambda: source.arrays.check(found), wait_seconds)
        return found

    return source.whole(act)


def weights(source: Source, params: dict) -> dict[str, Any]:
    """By what a run knows what it began with: what the source is, the step of its save, and a
    sha256 over the checksums of what `params` read there. Every process of a mesh calls it."""
    sums = json.dumps(checksums({PARAMS: params}), sort_keys=True)
    sha256 = hashlib.sha256(sums.encode()).hexdigest()
    return {"what": source.what, "save": source.step, "sha256": sha256}


def of_run(experiment: Experiment, vocabulary: Vocabulary, said: str) -> Source:
    """What config.start names, held against the settings and the vocabulary of the run.

    said: what the vocabulary is of, and what to do where it is another, for the message.

    Raises:
      UserError: see `find`; or a model that computes something else, or a vocabulary that gives
        other ids, with all differences.
    """
    source = find(experiment.start, wait_seconds=experiment.run.wait_seconds)
    name = f"config.start={experiment.start}"
    ours, theirs = function(experiment.model), function(source.model)
    if experiment.task is not None and theirs["vocab"] == vocabulary.size:
        theirs["vocab"] = ours["vocab"]  # the task's tokens are added
    if wrong := [
        f"config.model.{field}={ours[field]!r}, but {theirs[field]!r} there"
        for field in FUNCTION
        if ours[field] != theirs[field]
    ]:
        raise UserError(f"{name} is another model than the run's: {'; '.join(wrong)}")
    if not same_encoding(vocabulary, own_vocabulary(source)):
        raise UserError(f"{name} has another vocabulary than {said}")
    return source


def own_vocabulary(source: Source) -> Vocabulary:
    """Raises UserError where none came with the weights."""
    if source.vocabulary is None:
        raise UserError(
            f"config.start={source.place} has no vocabulary, so nobody knows what its ids mean; "
            "put the tokenizer.json that belongs to it there"
        )
    return Vocabulary(source.vocabulary)


def function(model: Model) -> dict[str, Any]:
    """The settings that decide what a model computes from its weights."""
    return {name: getattr(model, name) for name in FUNCTION}


def same_encoding(ours: Vocabulary, theirs: Vocabulary) -> bool:
    """Whether they give the same ids for any text, however their files are written."""
    return ours.sha256 == theirs.sha256 or ours.rules() == theirs.rules()


def _together(name: str, act: Callable[[], T], wait_seconds: int) -> T:
    """Does it on every process; where one finds damage, or refuses, all do, with its words."""
    found, said, cause = list[T](), ("", ""), None
    try:
        found.append(act())
    except DamagedError as error:
        said, cause = ("damaged", str(error)), error
    except UserError as error:
        said, cause = ("refused", str(error)), error
    for other in hosts.gather(f"start-{name}", json.dumps(said), wait_seconds):
        kind, reason = json.loads(other)
        if kind:
            raise (DamagedError if kind == "damaged" else UserError)(reason) from cause
    return found[0]


def _kind(folder: epath.Path) -> Kind:
    if (folder / adapter_config.CONFIG).is_file():
        return "hugging_face"
    if (folder / IMPORTED).is_file():
        return "imported"
    file = folder / "config.json"
    if not file.is_file():
        there = "is not there" if not folder.exists() else "has neither config.json nor model.json"
        raise UserError(
            f"{folder} {there}, so it is no model; name the --workdir of a run, a folder that "
            "hf.load wrote, or a Hugging Face folder"
        )
    try:
        settings = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}") from error
    ours = isinstance(settings, dict) and "experiment" in settings
    return "run" if ours else "hugging_face"


def _run(workdir: epath.Path, wait_seconds: int, step: int | None) -> Source:
    claim = read_claim(workdir)
    if not (workdir / "vocabulary").is_dir():
        raise UserError(f"{workdir}/vocabulary is missing; copy it from the run's store")
    vocabulary = Vocabulary(workdir / "vocabulary")
    if vocabulary.sha256 != claim.vocabulary_sha256:
        raise UserError(
            f"{vocabulary.path} is not the file that the run in {workdir} began with; put back the "
            f"one of its token store, with sha256 {claim.vocabulary_sha256}"
        )
    task = claim.experiment.task
    facts = {
        "settings_sha256": _sha256(workdir / "config.json"),
        "vocabulary_sha256": vocabulary.sha256,
        "tokens_sha256": claim.tokens_sha256,
    }
    source = Source(
        workdir,
        "run",
        without_adapters(claim.experiment.model),
        vocabulary.path,
        vocabulary.eos_id,
        None,
        claim.experiment,
        facts,
        Arrays(workdir, "", {}, {}),  # until the next line
        SPECIAL[task.objective] if task else (),
        classes(task.train) if task and task.objective == "classification" else (),
        first_sees(workdir, wait_seconds) if step is None else [step],
        _wait_seconds=wait_seconds,
    )
    source._open_next()
    return source


def _imported(folder: epath.Path) -> Source:
    file = folder / IMPORTED
    try:
        found = json.loads(file.read_text())
        model = build(Model, dict(found["model"]), str(file))
        eos_id, sums, facts = found["eos_id"], found["checksums"], found["source"]
        special, labels = (tuple(found.get(name, ())) for name in ("special", "labels"))
        if not all(isinstance(x, str) for x in (*special, *labels)):
            raise TypeError("special and labels are no lists of names")
        if not isinstance(sums, dict) or not isinstance(facts, dict):
            raise TypeError("checksums and source are no objects")
        if type(eos_id) not in (int, type(None)):
            raise TypeError(f"eos_id={eos_id!r} is no id")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is not what this version of hf.load writes: {error}; load it again"
        ) from error
    vocabulary = None
    if (folder / "vocabulary").is_dir():
        opened = Vocabulary(folder / "vocabulary")
        if opened.sha256 != found.get("vocabulary_sha256"):
            raise UserError(f"{opened.path} is not the file that was loaded; load it again")
        vocabulary = opened.path
    elif found.get("vocabulary_sha256") is not None:
        raise UserError(f"{folder}/vocabulary is missing; load it again")
    like = jax.eval_shape(partial(gpt.init, model), jax.random.key(0))
    arrays = Arrays(folder / PARAMS, PARAMS, like, sums)
    about = (model, vocabulary, eos_id, None, None, facts, arrays, special, labels)
    return Source(folder, "imported", *about)


def _hugging_face(place: epath.Path, dropout: float | None, wait_seconds: int) -> Source:
    if in_cloud(place):
        raise UserError(f"{place} is on gs://, from where no Hugging Face folder is read; copy it")
    path = Path(place)
    if not path.is_dir():
        raise UserError(f"{path} is no folder; name a Hugging Face folder")
    own = path
    if adapted := (own / adapter_config.CONFIG).is_file():
        path = adapter_config.base_of(own)  # from here on
        folder = Merged(own, path, dropout)
    else:
        folder = read.Folder(path, dropout)

    def scratch() -> Path:  # for as long as the weights can be read
        made = Path(tempfile.mkdtemp(prefix="vocabulary-"))
        weakref.finalize(folder, shutil.rmtree, made, ignore_errors=True)
        return made

    vocabulary, special = tokenizer.found_in(path, scratch)
    its, added = tokenizer.found_in(own, scratch) if adapted else (None, ())
    if its is not None:
        opened = Vocabulary(its)
        if (
            vocabulary is None
            or added != special
            or not same_encoding(opened, Vocabulary(vocabulary))
        ):
            raise UserError(
                f"{own} has a tokenizer, {its.name}, that gives other ids than that of its base "
                f"{path}; adapters belong to the base's, so remove it there"
            )
    eos_id = folder.settings.get("eos_token_id")
    if vocabulary is not None:
        opened = Vocabulary(vocabulary)
        if (size := opened.size + len(special)) != folder.model.vocab:
            raise UserError(
                f"{path} has a tokenizer of {size} tokens and a config.json with vocab_size="
                f"{folder.model.vocab}; they do not belong together"
            )
        if eos_id not in (None, opened.eos_id):
            raise UserError(
                f"{path}/config.json has eos_token_id={eos_id}, but the end of text is "
                f"{opened.eos_id} in its tokenizer; correct one of them"
            )
        eos_id = opened.eos_id
    facts = {
        "settings_sha256": _sha256(path / "config.json"),
        "vocabulary_sha256": Vocabulary(vocabulary).sha256 if vocabulary else None,
        "files": {file.name: file.stat().st_size for file in folder.files},
        "dtype": folder.dtype,
    }
    if adapted:
        files = {name: _sha256(own / name) for name in (adapter_config.CONFIG, adapters.WEIGHTS)}
        facts |= {"base": str(path), "adapters": files}
    arrays = Foreign(folder, receipt(path)["checksums"], wait_seconds)
    kind: Kind = "adapters" if adapted else "hugging_face"
    labels = labels_of(folder.settings, folder.model)
    about = (folder.model, vocabulary, eos_id, None, None, facts, arrays, special, labels)
    return Source(place, kind, *about)


def _sha256(file: Path | epath.Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
