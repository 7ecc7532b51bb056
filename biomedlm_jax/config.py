"""The settings of a run, as frozen dataclasses.

A file in `configs/` gives every value; `build` turns it into an `Experiment`, the only place
where names become objects. Below that line there are no defaults. What a value can be alone is
checked here; what depends on devices in `mesh.py`, what depends on the corpus in
`pipeline/loader.py` and `checkpoint.py`.
"""

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from biomedlm_jax.entry import UserError

VOCABULARY_MULTIPLE = 128  # lanes of a TPU's matrix unit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A GPT-2 decoder; BioMedLM is one with scale_attn_by_layer."""

    layers: int
    width: int
    heads: int
    mlp: int
    vocab: int  # tokens that exist; see padded_vocab for rows that are stored
    context: int  # positions
    dropout: float  # of embeddings, attention weights and both residual branches
    init_std: float
    layer_norm_epsilon: float
    scale_attn_by_layer: bool  # attention scores are also divided by layer index + 1
    compute_dtype: Literal["bfloat16", "float32"]
    remat: Literal["none", "named", "full"]
    attention: Literal[  # the implementation, of kernels/attention/api.py
        "auto",
        "pallas_tpu",
        "pallas_gpu",
        "cudnn",
        "cpu",
        "reference",
        "pallas_tpu_interpret",
        "pallas_gpu_interpret",
    ]

    def __post_init__(self) -> None:
        _positive(self, "model", "layers", "width", "heads", "mlp", "vocab", "context", "init_std")
        _positive(self, "model", "layer_norm_epsilon")
        if self.width % self.heads:
            raise UserError(
                f"config.model.width={self.width} does not split into config.model.heads="
                f"{self.heads}; choose a multiple of {self.heads}"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"config.model.dropout={self.dropout} is not in [0, 1)")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding on the device; those from `vocab` on are zero, masked in the
        loss, and never leave through an export."""
        return -(-self.vocab // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def parameters(self) -> int:
        """Parameters of the published model, embedding tied, without vocabulary padding."""
        d, f = self.width, self.mlp
        block = (3 * d * d + 3 * d) + (d * d + d) + (2 * d * f + f + d) + 4 * d
        return (self.vocab + self.context) * d + self.layers * block + 2 * d

    @property
    def flops_per_token(self) -> int:
        """Of one training step, 6 N + 12 L d T: the PaLM convention (arXiv 2204.02311, app. B).
        Attention counts in full though it is causal, recomputed work does not count."""
        return 6 * self.parameters + 12 * self.layers * self.width * self.context


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    store: str  # folder written by `python -m data.build` or `data.tokenize`
    batch: int  # sequences in a step, over all devices
    separators: bool  # the token that ends a document stays between documents, and is learned
    segment_ids: bool  # a token attends to its own document alone; positions run on all the same

    def __post_init__(self) -> None:
        _positive(self, "data", "batch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """Devices along each mesh axis; one of them may be -1, which takes all that are left."""

    data: int  # copies of the parameters in use; each stores some of the layers, if they divide
    fsdp: int  # pieces in which a copy is stored; also splits the batch
    model: int  # pieces in which a layer is computed
    context: int  # pieces in which a sequence is computed, for long ones

    def __post_init__(self) -> None:
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            if size < 1 and size != -1:
                raise UserError(f"config.mesh.{name}={size}; a positive number, or -1 for the rest")
        if list(sizes.values()).count(-1) > 1:
            raise UserError(f"config.mesh={sizes}: only one axis can be -1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Clipping by global norm, then AdamW on every parameter; linear warm-up, then cosine.

    What is made small is nats + z_loss * (log of the sum of exponentials of the logits)^2, each a
    mean over labels; the loss that a run reports is nats alone.
    """

    peak_lr: float
    warmup_steps: int
    final_lr_fraction: float  # of peak_lr, reached at run.steps
    b1: float
    b2: float
    eps: float
    weight_decay: float  # multiplied by the learning rate, as in optax and PyTorch
    weight_decay_on: Literal["all", "matrices"]  # matrices: no bias, no LayerNorm
    clip_norm: float
    ema_decay: float  # of an average of the parameters, which is then what is scored and exported;
    # 0 keeps none
    z_loss: float  # 0 switches it off; PaLM has 1e-4 (arXiv 2204.02311, section 5)

    def __post_init__(self) -> None:
        _positive(self, "optimizer", "peak_lr", "eps", "clip_norm")
        _positive(self, "optimizer", "warmup_steps", "weight_decay", "z_loss", or_zero=True)
        if not 0 <= self.final_lr_fraction <= 1:
            raise UserError(
                f"config.optimizer.final_lr_fraction={self.final_lr_fraction} is not in [0, 1]"
            )
        for name in ("b1", "b2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"config.optimizer.{name}={getattr(self, name)} is not in [0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Periods are in steps, and each also falls due at the last step. eval_every, which is due at
    step 0 too, and save_every may be 0, which means never."""

    seed: int  # of the parameters, the data order and dropout
    steps: int
    accumulate: int  # pieces in which a device computes its rows of a batch, to save memory
    log_every: int
    eval_every: int
    eval_batches: int  # of held-out text, the same each time
    sample_tokens: int  # of the continuations that an evaluation writes; 0 is none
    save_every: int
    keep: int  # newest checkpoints that stay
    keep_every: int  # those of every so many steps stay for good; 0 is none
    max_skipped: int  # updates in a row without finite numbers that are left out; then it stops
    spike_sigmas: float  # a loss so far above the mean of those before is reported; 0 is never
    hang_seconds: int  # without a step, and the process reports itself and ends; 0 is never
    wait_seconds: int  # for other hosts, before the missing ones are named
    tpu_vmem_mib: int  # of a TPU's VMEM that XLA may give to one operation; 0 is its own choice

    def __post_init__(self) -> None:
        _positive(self, "run", "steps", "accumulate", "log_every", "eval_batches", "keep")
        _positive(self, "run", "wait_seconds")
        others = ["seed", "eval_every", "sample_tokens", "save_every", "keep_every"]
        others += ["max_skipped", "spike_sigmas", "hang_seconds", "tpu_vmem_mib"]
        _positive(self, "run", *others, or_zero=True)
        if self.keep_every and (not self.save_every or self.keep_every % self.save_every):
            raise UserError(
                f"config.run.keep_every={self.keep_every} is no multiple of "
                f"config.run.save_every={self.save_every}, so no checkpoint would be kept for good"
            )

    def due(self, done: int, every: int) -> bool:
        """Whether something of period `every` happens when `done` steps are done."""
        return bool(every) and (done % every == 0 or done == self.steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    start: str  # what the parameters are at step 0: "" random, or a place that `start.find` knows
    model: Model
    data: Data
    mesh: Mesh
    optimizer: Optimizer
    run: Run

    def __post_init__(self) -> None:
        if self.optimizer.warmup_steps >= self.run.steps:
            raise UserError(
                f"config.optimizer.warmup_steps={self.optimizer.warmup_steps} leaves nothing of "
                f"config.run.steps={self.run.steps}; warm up for fewer steps"
            )


# A run may go on with other values of these: they do not change what is learned, beyond the
# rounding of sums that another mesh or remat policy takes in another order.
FREE_TO_CHANGE = (
    "mesh.",
    "data.store",
    "model.remat",
    "model.attention",
    "run.accumulate",
    "run.log_every",
    "run.eval_every",
    "run.eval_batches",
    "run.sample_tokens",
    "run.save_every",
    "run.keep",  # and keep_every
    "run.max_skipped",
    "run.spike_sigmas",
    "run.hang_seconds",
    "run.wait_seconds",
    "run.tpu_vmem_mib",
)


T = typing.TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], path: str = "config") -> T:
    """An instance of dataclass `cls` from the mapping of its fields, nested ones included.

    Raises:
      UserError: a name that is no field (with the nearest that are), one that is missing, a
        value of another type, or what the dataclass itself refuses.
    """
    hints = typing.get_type_hints(cls)
    for name in values:
        _known(name, hints, path)
    if missing := [name for name in hints if name not in values]:
        raise UserError(f"{path} lacks {', '.join(missing)}; every setting is given in the file")
    return cls(**{k: _typed(hint, values[k], f"{path}.{k}") for k, hint in hints.items()})


def overrides(arguments: list[str]) -> list[str]:
    """The arguments that change a setting, as --config.section.name=value.

    Raises:
      UserError: one of another form, or one that names no setting.
    """
    found = ["--" + x.lstrip("-") for x in arguments if re.match("--?config[.]", x)]
    for argument in found:
        if "=" not in argument:
            raise UserError(f"{argument} has no value; write {argument}=value")
        path, hint = "config", Experiment
        for name in argument.partition("=")[0].removeprefix("--config.").split("."):
            hints = typing.get_type_hints(hint) if dataclasses.is_dataclass(hint) else {}
            _known(name, hints, path)
            path, hint = f"{path}.{name}", hints[name]
    return found


def check_arguments(arguments: list[str]) -> None:
    """Says what absl would not, before it parses: see `overrides`, and that --config is a file.

    Raises:
      UserError: also when --config names no Python file.
    """
    overrides(arguments)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            example = "for example --config=configs/demo.py"
            if not equals:
                raise UserError(f"{argument} needs '='; {example}")
            if not (value.endswith(".py") and Path(value).is_file()):
                raise UserError(f"{argument} names no config file; {example}")


def _known(name: str, hints: dict[str, Any], path: str) -> None:
    if name not in hints:
        near = difflib.get_close_matches(name, hints, n=2, cutoff=0.4) or list(hints)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"{path}.{name} is no setting{meant}")


def _typed(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{path}={value!r} is not a section of settings")
        return build(typing.cast(type, hint), value, path)
    if typing.get_origin(hint) is Literal:
        if value not in (allowed := typing.get_args(hint)):
            raise UserError(f"{path}={value!r}; allowed are {', '.join(map(repr, allowed))}")
        return value
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise UserError(f"{path}={value!r} is not of type {hint.__name__}")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{path}={value!r} is not a finite number")
    return value


def _positive(section: Any, path: str, *names: str, or_zero: bool = False) -> None:
    for name in names:
        if (value := getattr(section, name)) < 0 or (value == 0 and not or_zero):
            wanted = "0 or more" if or_zero else "positive"
            raise UserError(f"config.{path}.{name}={value} is not {wanted}")


def flat(experiment: Experiment) -> dict[str, Any]:
    """{"start": "", "model.layers": 32, ...}"""
    found: dict[str, Any] = {}
    for name, value in dataclasses.asdict(experiment).items():
        inner = value.items() if isinstance(value, dict) else ()
        found |= {f"{name}.{field}": v for field, v in inner} or {name: value}
    return found


def differences(ours: Experiment, theirs: Experiment) -> list[str]:
    """The settings that would change what a run learns, with both values."""
    a, b = flat(ours), flat(theirs)
    return [
        f"config.{name}: {b[name]!r} before, {a[name]!r} now"
        for name in a
        if a[name] != b[name] and not name.startswith(FREE_TO_CHANGE)
    ]
