"""The settings of a run, as frozen dataclasses.

A file in `configs/` gives every value; `settings.build` turns it into an `Experiment`, the only
place where names become objects. Below that line there are no defaults. What a value can be alone
is checked here; what depends on devices in `mesh.py`, what depends on the corpus in
`pipeline/loader.py` and `checkpoint.py`.
"""

import dataclasses
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
    classes: int  # outputs of a head on a row's last token; 0 is no head
    class_bias: bool  # of that head
    lora_rank: int  # of adapters beside the kernels of all layers, which alone are trained; 0: none
    lora_alpha: float  # an adapter counts lora_alpha / lora_rank times (arXiv 2106.09685, sec. 4.1)
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
        _positive(self, "model", "classes", "lora_rank", or_zero=True)
        if self.class_bias and not self.classes:
            raise UserError("config.model.class_bias=True is of a head, and config.model.classes=0")
        if (self.lora_rank > 0) != (self.lora_alpha > 0):
            raise UserError(
                f"config.model.lora_rank={self.lora_rank} and config.model.lora_alpha="
                f"{self.lora_alpha}: give both a positive number for adapters, or both 0"
            )
        if self.lora_rank and self.remat == "named":
            raise UserError(
                "config.model.remat='named' keeps what the gradients of all kernels need; for "
                f"adapters (config.model.lora_rank={self.lora_rank}) say 'full' or 'none'"
            )

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
        Attention counts in full though it is causal, recomputed work does not count. With adapters
        4 N, for kernels have no gradients then."""
        of_parameters = 4 if self.lora_rank else 6
        return of_parameters * self.parameters + 12 * self.layers * self.width * self.context

    @property
    def flops_in_words(self) -> str:
        return f"{4 if self.lora_rank else 6} N + 12 L d T"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    store: str  # folder written by `python -m data.build` or `data.tokenize`
    batch: int  # sequences in a step, over all devices
    separators: bool  # the token that ends a document stays between documents, and is learned
    segment_ids: bool  # a token attends to its own document alone; positions run on all the same

    def __post_init__(self) -> None:
        _positive(self, "data", "batch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What fine-tuning learns, in place of the tokens of a store; `benchmarks/prompts.py` has the
    prompts. Tokens of their own, such as [SEP], have the ids from the vocabulary's size on, and
    config.model.vocab counts them. config.data.batch is of items, the rest of config.data is off.
    """

    objective: Literal["multiple_choice", "classification", "generation", "next_token"]
    benchmarks: str  # folder with the files of their owners
    train: str  # one of `benchmarks.read`, or several with + between them
    dev: str  # what is scored while it learns: a benchmark's dev split; "" is nothing
    select: Literal["last", "best"]  # which save `finetune` takes: best of dev, among those kept
    fold: int  # of a benchmark that has folds, as PubMedQA; -1 for one that has none
    items: int  # of train, the first so many; 0 is all
    shuffle_options: bool  # of each question, anew in each epoch
    other_version: bool  # files of other counts than the published are taken, and it is said
    vocabulary: str  # the base's; "" is what belongs to config.start
    length: int  # tokens of a row, longer ones are cut

    def __post_init__(self) -> None:
        _positive(self, "task", "length")
        _positive(self, "task", "items", or_zero=True)
        if self.shuffle_options and self.objective != "multiple_choice":
            raise UserError(
                "config.task.shuffle_options=True is for config.task.objective='multiple_choice', "
                f"not {self.objective!r}"
            )


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
    """Clipping by global norm, then AdamW on every parameter; linear warm-up, then a decay.

    What is made small is nats + z_loss * (log of the sum of exponentials of the logits)^2, each a
    mean over labels; the loss that a run reports is nats alone.
    """

    peak_lr: float
    warmup_steps: int
    decay: Literal["cosine", "linear"]  # linear with half of the steps for warm-up is a triangle
    final_lr_fraction: float  # of peak_lr, reached at run.steps
    b1: float
    b2: float
    eps: float
    weight_decay: float  # multiplied by the learning rate, as in optax and PyTorch
    weight_decay_on: Literal["all", "matrices"]  # matrices: no bias, no LayerNorm
    clip_norm: float
    frozen_layers: (
        int  # the lowest so many, and both embeddings where it is not 0, stay as they are
    )
    ema_decay: float  # of an average of the parameters, which is then what is scored and exported;
    # 0 keeps none
    z_loss: float  # 0 switches it off; PaLM has 1e-4 (arXiv 2204.02311, section 5)

    def __post_init__(self) -> None:
        _positive(self, "optimizer", "peak_lr", "eps", "clip_norm")
        _positive(self, "optimizer", "warmup_steps", "weight_decay", "z_loss", or_zero=True)
        _positive(self, "optimizer", "frozen_layers", or_zero=True)
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
    task: Task | None  # None is pre-training
    mesh: Mesh
    optimizer: Optimizer
    run: Run

    def __post_init__(self) -> None:
        self._check_task()
        if self.optimizer.frozen_layers > self.model.layers:
            raise UserError(
                f"config.optimizer.frozen_layers={self.optimizer.frozen_layers}, but there are "
                f"{self.model.layers} layers"
            )
        if self.optimizer.warmup_steps >= self.run.steps:
            raise UserError(
                f"config.optimizer.warmup_steps={self.optimizer.warmup_steps} leaves nothing of "
                f"config.run.steps={self.run.steps}; warm up for fewer steps"
            )

    @property
    def unit(self) -> str:
        """Of the loss."""
        return "nats per item" if self.model.classes else "nats per token"

    def _check_task(self) -> None:
        """Raises UserError where model, data and run are not those of the task."""
        task, model, wrong = self.task, self.model, list[str]()
        if task is None:
            if model.classes or model.lora_rank:
                wrong.append("model.classes and lora_rank are for fine-tuning: set task")
        else:
            right = {"multiple_choice": model.classes == 1, "classification": model.classes > 1}
            if not right.get(task.objective, model.classes == 0):
                has = {"multiple_choice": "1", "classification": "one for each class"}
                wanted = f"task.objective={task.objective!r} has {has.get(task.objective, '0')}"
                wrong.append(f"model.classes={model.classes}, but {wanted}")
            if task.length > model.context:
                wrong.append(f"task.length={task.length} is over model.context={model.context}")
            if self.data.store or self.data.separators or self.data.segment_ids:
                wrong.append(
                    "data.store, separators and segment_ids are not a task's: '' and False"
                )
            if self.run.sample_tokens:
                wrong.append(f"run.sample_tokens={self.run.sample_tokens} is not a task's: 0")
        if wrong:
            raise UserError(f"config: {'; '.join(wrong)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned:
    """What was fine-tuned for each benchmark: a run, or the --workdir of `finetune`, of which each
    seed is asked; "" is nothing."""

    medmcqa: str
    medqa: str
    mmlu: str
    pubmedqa: str
    bioasq: str
    meqsum: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Questions to checkpoints, in place of an experiment; see `evaluate.py`. Several splits or
    forms have + between them."""

    start: str  # a place that `start.find` knows, asked about every split; "" is none
    tuned: Tuned  # asked about the splits of their benchmark, besides
    benchmarks: str  # folder with the files of their owners
    splits: str  # of `benchmarks.read`, such as medqa/test
    forms: str  # of `ask.FORMS`, in which start answers; "" is all that fit
    shots: int  # examples from the train split before a question
    seed: int  # by which they are drawn
    max_tokens: int  # of a text that start writes
    limit: int  # of items of each split, the first so many; 0 is all
    other_version: bool  # files of other counts than the published are taken, and it is said
    store: str  # that was trained on, searched for what is tested; "" is none

    def __post_init__(self) -> None:
        for name in ("shots", "limit", "max_tokens"):
            if (value := getattr(self, name)) < (name == "max_tokens"):
                wanted = "positive" if name == "max_tokens" else "0 or more"
                raise UserError(f"config.{name}={value} is not {wanted}")
        if not self.start and not any(vars(self.tuned).values()):
            raise UserError(
                "config.start is empty, and so is all of config.tuned, so nobody is asked; name a "
                "run, what hf.load wrote, or hf:DIR"
            )


def _positive(section: Any, path: str, *names: str, or_zero: bool = False) -> None:
    for name in names:
        if (value := getattr(section, name)) < 0 or (value == 0 and not or_zero):
            wanted = "0 or more" if or_zero else "positive"
            raise UserError(f"config.{path}.{name}={value} is not {wanted}")
