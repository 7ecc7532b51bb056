"""Text from the command line: one prompt, many, a conversation, and what can not be answered."""

import contextlib
import functools
import io
import json
import os
import pty
import runpy
import shutil
import signal
import subprocess
import sys

import pytest
from absl import flags

from biomedlm_jax import entry, generate, sample, serve
from biomedlm_jax.checkpoint import Checkpoints
from biomedlm_jax.entry import UserError
from biomedlm_jax.generate import Request
from biomedlm_jax.hf import load, save
from biomedlm_jax.pipeline.store import TokenStore
from tests.conftest import ROOT, TINY, changed, on, started

DRAWN = ("--temperature=0.9", "--seed=5", "--max_tokens=8")
PROMPTS = ["Kari tomel", "Sinka", "a\u2028b\u0085c\u2029\x0b\x1c d", "", "Dordor paka kari"]


def command(module, *arguments):
    """What `python -m module` does, in this process; errors are raised, not reported."""
    # What other tests of this process have defined may have the same names.
    others = {
        name: flags.FLAGS[name]
        for name in list(flags.FLAGS)
        if not str(flags.FLAGS.find_module_defining_flag(name)).startswith("absl.")
    }
    for name in others:
        delattr(flags.FLAGS, name)
    before = set(flags.FLAGS)

    def run(main):
        flags.FLAGS([module.__name__, *arguments])
        main()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entry, "run", run)
        try:
            runpy.run_path(module.__file__, run_name="__main__")
        finally:
            for name in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, name)
            for name, flag in others.items():
                flags.FLAGS[name] = flag
            flags.FLAGS.unparse_flags()


@pytest.fixture(scope="module")
def places(store, tmp_path_factory):
    """The model of a run as the run's workdir, as a Hugging Face folder, and loaded from that."""
    folder = tmp_path_factory.mktemp("places")
    found = {kind: str(folder / kind) for kind in ("run", "hugging_face", "imported")}
    # What is compiled for one of them serves all, where their settings are the same.
    experiment, mesh = on(changed(TINY, data__store=str(store), model__remat="named"), 1, 2, 1)
    with contextlib.closing(
        Checkpoints(found["run"], experiment, TokenStore(store, "train"))
    ) as kept:
        kept.save(started(experiment, mesh), 0)
    command(save, f"--checkpoint={found['run']}", f"--output={found['hugging_face']}")
    command(load, f"--source={found['hugging_face']}", f"--output={found['imported']}")
    return found


@pytest.fixture(scope="module")
def engine(places):
    return sample.open_engine(places["run"], slots=1, pieces=1)


@pytest.fixture(scope="module")
def offline(places):
    """offline(prompt): what the library writes with the settings DRAWN."""
    opened = functools.cache(lambda slots: sample.open_engine(places["run"], slots=slots, pieces=1))

    def write(prompt, slots=1):
        engine = opened(slots)
        tokens = tuple(engine.vocabulary.encode(prompt) or [engine.vocabulary.eos_id])
        settings = dict(max_tokens=8, temperature=0.9, top_k=0, top_p=1.0, seed=5)
        request = Request(prompt=tokens, repetition_penalty=1.0, stop=(), **settings)
        return generate.generate(engine, [request])[0]

    return write


@pytest.fixture
def said(places, capsys):
    """said(*arguments): stdout of the command."""

    def run(*arguments, of="run"):
        capsys.readouterr()
        command(sample, f"--checkpoint={places[of]}", "--pieces=1", *arguments)
        return capsys.readouterr().out

    return run


@pytest.fixture
def file(tmp_path):
    """file(text): the flag that names a file of it."""

    def write(text):
        path = tmp_path / "prompts"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"--prompts={path}"

    return write


def lines_of(prompts):
    return "".join(json.dumps(prompt, ensure_ascii=False) + "\n" for prompt in prompts)


@pytest.mark.parametrize("of", ["run", "hugging_face", "imported"])
def test_the_same_text_wherever_the_model_is(said, offline, of):
    assert said("--prompt=Kari tomel", *DRAWN, of=of) == offline("Kari tomel").text + "\n"


def test_one_prompt_is_printed_as_it_is_written(places, offline, monkeypatch):
    writes = []

    class Recorded(io.StringIO):
        def write(self, text):
            writes.append(text)
            return len(text)

        def flush(self):
            writes.append(None)

    monkeypatch.setattr(sys, "stdout", Recorded())
    command(sample, f"--checkpoint={places['run']}", "--pieces=1", "--prompt=Kari", *DRAWN)
    texts = [text for text in writes if text]
    assert "".join(texts) == offline("Kari").text + "\n"
    assert len(texts) > 3
    begun = writes.index(texts[0])
    assert None in writes[begun : writes.index(texts[1], begun + 1)], "it is held back"


def test_every_setting_reaches_the_engine(said, engine):
    settings = dict(temperature=1.3, top_k=40, top_p=0.7, repetition_penalty=1.4, seed=8)
    base = dict(prompt=tuple(engine.vocabulary.encode("Kari")), max_tokens=20, **settings)
    (whole,) = generate.generate(engine, [Request(stop=(), **base)])
    stop = whole.text[len(whole.text) // 2 :][:2]
    (expected,) = generate.generate(engine, [Request(stop=("zzz", stop), **base)])
    assert expected.finish == "stop" != whole.finish
    given = [f"--{name}={value}" for name, value in settings.items()]
    given += ["--prompt=Kari", "--max_tokens=20", "--stop=zzz", f"--stop={stop}"]
    assert said(*given) == expected.text + "\n"


@pytest.mark.parametrize("slots", [1, 16])
def test_many_prompts_are_answered_in_their_order(said, file, offline, slots):
    """Whatever is in them, however many there is room for, from the command line and a file."""
    out = said("--prompt=Lulu", file(lines_of(PROMPTS)), f"--slots={slots}", *DRAWN)
    answers = [json.loads(line) for line in out.split("\n")[:-1]]
    assert [answer["prompt"] for answer in answers] == ["Lulu", *PROMPTS]
    for answer in answers:
        one = offline(answer["prompt"], min(slots, len(answers)))
        assert (answer["text"], answer["finish"]) == (one.text, one.finish)
        assert answer["tokens"] == len(one.tokens)


@pytest.mark.parametrize("text", ['"Kari"', '"Kari"\n', '"Kari"\r\n'])
def test_a_file_of_one_prompt_is_answered_as_one_of_many(said, file, offline, text):
    line = said(file(text), *DRAWN)
    assert json.loads(line)["text"] == offline("Kari").text


def test_without_max_tokens_an_answer_may_fill_the_context(said, engine, file):
    tokens = engine.vocabulary.encode("Kari tomel")
    found = json.loads(said(file('"Kari tomel"')))
    assert found["finish"] == "stop" or found["tokens"] == TINY.model.context - len(tokens)


LONG = "kari " * 40


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --prompt or --prompts, or else --interactive"),
        (["--prompt=a", "--interactive"], "give --prompt or --prompts, or else --interactive"),
        ([f"--prompt={LONG}"], "tokens, and the context is 32; shorten it: 'kari"),
        (["--prompt=a", f"--prompt={LONG}"], "tokens, and the context is 32"),
        (["--prompt=a", "--max_tokens=40"], "max_tokens=40 are more than the 32 of the context"),
        (["--prompt=a", "--prompt=b", "--top_p=0"], "top_p=0"),
        (["--prompt=\udcff"], r"no UTF-8, or has half of a surrogate pair: '\udcff'"),
        (["--prompt=a", "--pieces=3"], "--pieces=3 does not divide config.model.heads=4"),
    ],
)
def test_what_can_not_be_answered_is_named(said, arguments, words):
    with pytest.raises(UserError) as error:
        said(*arguments)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty; put a JSON string in each line"),
        ('"Kari"\nKari\n', "line 2 is no JSON: "),
        ('"Kari"\n\n"Kari"\n', "line 2 is no JSON: "),
        ('"Kari"\n["Kari"]\n', 'line 2 is no string but ["Kari"]'),
        ("[" * 100_000, "line 1 is no JSON: "),
        (b'"Kar\xff"', "can not be read: 'utf-8' codec can't decode byte 0xff"),
        (r'"\ud800"', r"half of a surrogate pair: '\ud800'"),
    ],
)
def test_a_file_that_is_none_of_prompts(said, file, text, words):
    with pytest.raises(UserError) as error:
        said(file(text))
    assert words in str(error.value)


def test_a_file_that_is_not_there(said, tmp_path):
    with pytest.raises(UserError, match=f"--prompts={tmp_path}/no can not be read: .*No such file"):
        said(f"--prompts={tmp_path}/no")


def test_a_model_without_a_vocabulary(places, tmp_path):
    folder = shutil.copytree(places["hugging_face"], tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "sentencepiece.model"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match=f"{folder} has no vocabulary, .* put the tokenizer.json"):
        command(sample, f"--checkpoint={folder}", "--prompt=a")


def test_lines_from_another_program(said, offline, tmp_path, monkeypatch):
    """Nothing but the answers is in the output, and the end of the input is the end."""
    path = tmp_path / "lines"
    path.write_bytes(b"Kari\nTo\xffmel\nSinka")
    with path.open() as lines:
        monkeypatch.setattr(sys, "stdin", lines)
        out = said("--interactive", *DRAWN)
    assert out == "".join(offline(prompt).text + "\n" for prompt in ("Kari", "Sinka"))


def process(*arguments, **how):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "biomedlm_jax.sample", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, **how)


def until(terminal, ending):
    """What a terminal shows until it ends so."""
    shown = b""
    while not shown.endswith(ending):
        shown += os.read(terminal, 1000)
    return shown.decode()


def test_a_conversation_at_a_terminal(places, offline):
    """A prompt, one that is too long, another one, and Ctrl-C while that is answered or after."""
    terminal, inside = pty.openpty()
    ends = dict(stdin=inside, stdout=inside, stderr=inside, start_new_session=True)
    given = (f"--checkpoint={places['run']}", "--interactive", "--pieces=1", *DRAWN)
    with process(*given, **ends) as running:
        try:
            os.close(inside)
            assert "a prompt a line; Ctrl-D ends it" in until(terminal, b"> ")
            for prompt, answer in (
                ("Kari", offline("Kari").text),
                (LONG, "error: a prompt has "),
                ("Sinka", offline("Sinka").text),
            ):
                os.write(terminal, prompt.encode() + b"\n")
                shown = until(terminal, b"\r\n> ").replace("\r\n", "\n")
                assert answer in shown.removeprefix(prompt)
            os.write(terminal, b"Tomel\n")
            running.send_signal(signal.SIGINT)
            assert running.wait(60) == 0
            rest = os.read(terminal, 10_000).decode()
            assert "Traceback" not in rest
        finally:
            running.kill()
            os.close(terminal)


def test_a_place_without_a_model():
    with pytest.raises(UserError, match="nothing is not there, so it is no model; name the"):
        command(sample, "--checkpoint=nothing", "--prompt=a")


@pytest.mark.parametrize("module", [sample, serve])
def test_slots_have_a_limit(module):
    with pytest.raises(flags.IllegalFlagValueError, match=r"--slots=257: .*\[1, 256\]"):
        command(module, "--checkpoint=a", "--slots=257")
