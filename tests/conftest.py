"""What all tests share: 8 CPU devices, the smallest experiment, a store of real form, shape checks.

Warnings are errors (pyproject.toml). Shapes in signatures are checked at run time, here only.
"""

import dataclasses
import functools
import gc
import hashlib
import os
import platform
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import hypothesis
import jaxtyping
import pytest

CHECKED = [
    "biomedlm_jax.model",
    "biomedlm_jax.kernels.dropout",
    "biomedlm_jax.kernels.attention.keep",
    "biomedlm_jax.kernels.attention.reference",  # api.py refuses wrong shapes itself
    "biomedlm_jax.kernels.cross_entropy.chunked",
    "biomedlm_jax.objective",
    "biomedlm_jax.pipeline.loader",
]
hook = jaxtyping.install_import_hook(CHECKED, "beartype.beartype")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import sentencepiece  # noqa: E402
from etils import epath  # noqa: E402
from jax._src import compilation_cache  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402

from biomedlm_jax import config, generate, mesh, step  # noqa: E402
from biomedlm_jax.pipeline.store import UNKNOWN_YEAR  # noqa: E402
from biomedlm_jax.pipeline.store_writer import StoreWriter  # noqa: E402
from biomedlm_jax.pipeline.vocabulary import Vocabulary  # noqa: E402
from data import documents  # noqa: E402
from data.documents import Document  # noqa: E402

hook.uninstall()
hypothesis.settings.register_profile("untimed", deadline=None)  # timing is for benchmarks
hypothesis.settings.load_profile("untimed")
jax.config.update("jax_num_cpu_devices", 8)

# Three quarters of the time of the tests go to XLA, for the same programs each time. What this
# processor has compiled for one device stays in the user's cache, as with ccache (for several:
# hosts.keep_programs); JAX's key has the program, the options and the versions. With a largest
# size, processes wait for each other and read whole files; one that was killed between the two
# files of an entry leaves the first.
_known = Path("/proc/cpuinfo")
_processor = _known.read_text().partition("\n\n")[0] if _known.exists() else platform.platform()
_facts = [x for x in _processor.splitlines() if "MHz" not in x and "bogomips" not in x.lower()]
_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "biomedlm_jax"
_place = _cache / f"tests-of-one-device-{hashlib.sha256(repr(_facts).encode()).hexdigest()[:8]}"
if "PYTEST_XDIST_WORKER" not in os.environ:
    for _entry in _place.glob("*-cache"):
        if not _entry.with_name(_entry.name.removesuffix("-cache") + "-atime").exists():
            _entry.unlink(missing_ok=True)
jax.config.update("jax_compilation_cache_dir", str(_place))
jax.config.update("jax_compilation_cache_max_size", 2 << 30)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
_put = compilation_cache.put_executable_and_time


def _put_of_one_device(key, name, executable, backend, seconds):
    if len(executable.local_devices()) == 1:
        _put(key, name, executable, backend, seconds)


compilation_cache.put_executable_and_time = _put_of_one_device

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell has it for what it starts in the background, and they for what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
TINY = config.Experiment(
    start="",
    model=config.Model(
        layers=2,
        width=64,
        heads=4,
        mlp=256,
        vocab=300,
        context=32,
        dropout=0.1,
        init_std=0.02,
        layer_norm_epsilon=1e-5,
        scale_attn_by_layer=True,
        compute_dtype="float32",
        classes=0,
        class_bias=False,
        lora_rank=0,
        lora_alpha=0.0,
        remat="none",
        attention="auto",
    ),
    data=config.Data(store="", batch=8, separators=True, segment_ids=False),
    task=None,
    mesh=config.Mesh(data=1, fsdp=1, model=1, context=1),
    optimizer=config.Optimizer(
        peak_lr=3e-3,
        warmup_steps=2,
        decay="cosine",
        final_lr_fraction=0.1,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.1,
        weight_decay_on="all",
        clip_norm=1.0,
        frozen_layers=0,
        ema_decay=0.0,
        z_loss=0.0,
    ),
    run=config.Run(
        seed=17,
        steps=10,
        accumulate=1,
        log_every=1,
        eval_every=0,
        eval_batches=2,
        sample_tokens=0,
        save_every=0,
        keep=2,
        keep_every=0,
        max_skipped=0,
        spike_sigmas=0.0,
        hang_seconds=0,
        tpu_vmem_mib=0,
        wait_seconds=60,
    ),
)


def pytest_addoption(parser):
    parser.addoption("--renew", action="store_true", help="write tests/golden anew")


@pytest.fixture
def collected() -> Iterator[None]:
    """When orbax fails to read one array, its coroutines for others are left, and complain when
    they are collected: here, and not in another test. FORGIVEN is for files with damaged saves."""
    yield
    gc.collect()


FORGIVEN = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def golden(request) -> Callable[[str, str], str]:
    """golden(name, found): the text of tests/golden/name; with --renew, what was found."""

    def read(name: str, found: str) -> str:
        file = ROOT / "tests/golden" / name
        if request.config.getoption("--renew"):
            file.write_text(found)
        return file.read_text()

    return read


def changed(experiment: config.Experiment, **settings) -> config.Experiment:
    """changed(TINY, model__layers=3): `experiment` with other settings."""
    for name, value in settings.items():
        section, _, field = name.partition("__")
        if not field:
            experiment = dataclasses.replace(experiment, **{name: value})
            continue
        part = dataclasses.replace(getattr(experiment, section), **{field: value})
        experiment = dataclasses.replace(experiment, **{section: part})
    return experiment


def fine_tuning(objective: str, *, model: dict | None = None, **task) -> config.Experiment:
    """The smallest experiment that learns questions. model: settings of its model."""
    classes = {"multiple_choice": 1, "classification": 3}.get(objective, 0)
    head = dict(classes=classes, class_bias=objective == "multiple_choice")
    settings = dict(
        objective=objective,
        benchmarks="",
        train="medqa",
        dev="",
        select="last",
        fold=-1,
        items=0,
        shuffle_options=False,
        other_version=False,
        vocabulary="",
        length=32,
    )
    return dataclasses.replace(
        TINY,
        model=dataclasses.replace(TINY.model, **{**head, **(model or {})}),
        data=dataclasses.replace(TINY.data, separators=False),
        task=config.Task(**{**settings, **task}),
    )


def on(experiment: config.Experiment, data: int, fsdp: int, model: int, context: int = 1):
    """`experiment` on data x fsdp x model x context of the 8 devices, and their mesh."""
    shape = config.Mesh(data=data, fsdp=fsdp, model=model, context=context)
    experiment = dataclasses.replace(experiment, mesh=shape)
    return experiment, mesh.make(experiment, jax.devices()[: data * fsdp * model * context])


def started(experiment: config.Experiment, on_mesh: jax.sharding.Mesh) -> step.State:
    shardings = step.state_shardings(experiment, on_mesh)
    return jax.jit(lambda: step.init(experiment), out_shardings=shardings)()


def put(tokens: np.ndarray, on_mesh: jax.sharding.Mesh) -> jax.Array:
    return jax.device_put(tokens, NamedSharding(on_mesh, step.BATCH_SPEC))


def random_tokens(experiment: config.Experiment, seed: int = 0) -> np.ndarray:
    shape = (experiment.data.batch, experiment.model.context)
    return np.random.default_rng(seed).integers(0, experiment.model.vocab, shape, np.int32)


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory) -> Path:
    """A SentencePiece model of 300 pieces over invented words."""
    path = tmp_path_factory.mktemp("vocabulary") / "sentencepiece"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(400, seed=0)),
        model_prefix=str(path),
        vocab_size=TINY.model.vocab,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        unk_id=0,
        eos_id=1,
        eos_piece="<|endoftext|>",
        bos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    return path.with_suffix(".model")


@pytest.fixture(scope="session")
def make_store(vocabulary, tmp_path_factory) -> Callable[..., Path]:
    """make_store(documents=40, heldout=4, seed=0): a token store of that many documents, of three
    years and of none in turn."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))

    def rows(documents: int, heldout: int, seed: int) -> Iterator[tuple]:
        for number in range(documents + heldout):
            split = "heldout" if number >= documents else "train"
            text = " ".join(sentences(6, seed=1000 * seed + number))
            tokens = np.array([*pieces.encode(text), 1])
            year = (1999, 2000, 2001, UNKNOWN_YEAR)[number % 4]
            yield split, tokens, f"PMID:{number + 1}", "abstract", len(text.encode()), year

    def make(documents: int = 40, heldout: int = 4, seed: int = 0) -> Path:
        folder = tmp_path_factory.mktemp("store")
        place = epath.Path(folder)
        writer = StoreWriter.of(place, place / "work", Vocabulary(vocabulary))
        writer.write_all(rows(documents, heldout, seed))
        return folder

    return make


def write_documents(folder: Path, found: Iterable[Document], heldout_per_mille: int) -> Path:
    """A folder of documents with one shard, as `data.parse` leaves it."""
    place = epath.Path(folder) / documents.SHARDS
    place.mkdir(parents=True)
    with documents.ShardWriter(place / "00000.jsonl.zst", heldout_per_mille) as writer:
        for document in found:
            writer.write(document)
    documents.finish(epath.Path(folder), [writer.summary()], heldout_per_mille)
    return folder


@pytest.fixture(scope="session")
def make_engine(vocabulary) -> Callable[..., generate.Engine]:
    """make_engine(slots=4, of="other"): an engine of the smallest model, which knows nothing. With
    the same arguments it is the same one, for its programs take seconds to compile."""
    words = Vocabulary(vocabulary)

    @functools.cache
    def made(slots: int, of: str, context: int) -> generate.Engine:
        settings = changed(TINY, model__dropout=0.0, model__context=context)
        experiment, on_mesh = on(settings, 1, 1, 1)
        params = started(experiment, on_mesh).params
        return generate.Engine(experiment.model, params, words, on_mesh, slots=slots)

    def make(slots: int = 4, of: str = "other", context: int = 32) -> generate.Engine:
        return made(slots, of, context)

    return make


@pytest.fixture(scope="session")
def store(make_store) -> Path:
    return make_store()


def sentences(count: int, *, seed: int) -> list[str]:
    """Invented sentences with something to learn: a word is often followed by the same one."""
    draw = random.Random(seed)
    syllables = ["ka", "ri", "to", "mel", "sin", "dor", "pa", "lu"]
    words = ["".join(a + b) for a in syllables for b in syllables]
    following = {word: random.Random(word).sample(words, 3) for word in words}
    out = []
    for _ in range(count):
        sentence = [draw.choice(words)]
        while len(sentence) < 12:
            sentence.append(draw.choice(following[sentence[-1]]))
        out.append(" ".join(sentence).capitalize() + ".")
    return out
