"""The command that scores: a fine-tuned checkpoint by its head, others in every form that fits;
what can not be scored is refused before a model is loaded."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath

from biomedlm_jax import ask, evaluate, step, train
from biomedlm_jax.benchmarks.read import read
from biomedlm_jax.entry import UserError
from biomedlm_jax.evaluate import Asked
from biomedlm_jax.hf import save
from biomedlm_jax.likelihood import LogLikelihood
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from biomedlm_jax.scoring import folder
from tests.benchmark_files import lines, write
from tests.conftest import ROOT, SHARED, TINY, changed, fine_tuning, on, started

QA, GPT2 = SHARED / "qa", SHARED / "tokenizers/gpt2/tokenizer.json"
OPTIONS = ("toto", "rika mel", "pasin dor", "\u03b2")


def medqa(count: int, word: str) -> str:
    """Questions of which the right option is the same word's number."""
    rows = [
        {
            "question": f"{word} kato {number}?",
            "options": dict(zip("ABCD", OPTIONS, strict=True)),
            "answer": OPTIONS[number % 4],
            "answer_idx": "ABCD"[number % 4],
        }
        for number in range(count)
    ]
    return lines(*rows)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    files = {f"US/{name}.jsonl": medqa(9, word) for name, word in
             {"train": "Mel", "dev": "Rika", "test": "Dorpa"}.items()}  # fmt: skip
    texts = {
        f"1_CancerGov_QA/000000{n}_1.xml": f"""<Document><QAPairs><QAPair pid="1">
  <Question qid="{n}-1" qtype="outlook">Kato {n}?</Question><Answer>Rika {n} mel.</Answer>
  </QAPair></QAPairs></Document>"""
        for n in (1, 2)
    }
    return write(tmp_path_factory.mktemp("qa"), files | texts)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, vocabulary):
    """A model that knows nothing."""
    place = tmp_path_factory.mktemp("evaluate") / "hf"
    settings = changed(TINY, model__dropout=0.0, model__context=96)
    experiment, devices = on(settings, 1, 1, 1)
    save.save(
        jax.device_get(started(experiment, devices).params),
        experiment.model,
        vocabulary,
        place,
        extra={},
    )
    return place


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, questions, vocabulary):
    experiment = fine_tuning(
        "multiple_choice",
        model=dict(vocab=303, dropout=0.0),
        benchmarks=str(questions),
        vocabulary=str(vocabulary),
        other_version=True,
    )
    workdir = tmp_path_factory.mktemp("tuned") / "run"
    mesh = dict(mesh__data=2, mesh__fsdp=2, mesh__model=2)
    experiment = changed(experiment, data__batch=4, run__steps=3, run__save_every=3, **mesh)
    state = train.fit(experiment, workdir)
    return workdir, jax.device_get(state.params), experiment


def asked(questions, *tasks, **settings) -> Asked:
    given = dict(forms=(), shots=0, seed=0, max_tokens=None, limit=None, other_version=True)
    given |= dict(split="test") | settings
    return Asked(benchmarks=str(questions), tasks=tasks, **given)  # pyright: ignore


def test_all_forms_that_fit(checkpoint, questions, vocabulary, tmp_path):
    out = epath.Path(tmp_path / "scores")
    written = evaluate.run(str(checkpoint), asked(questions, "medqa"), out, None)
    assert [file.name for file in written] == ["table.md", "report.html"]
    records = folder.read(out)
    assert {record.form for record in records} == set(ask.FORMS["multiple_choice"])
    assert {(record.split, record.benchmark, record.seed) for record in records} == {
        ("test", "medqa", None)
    }
    assert "letters" in (out / "table.md").read_text()
    # The answers are those of the model itself.
    split = read("medqa", questions, "test", other_version=True)
    experiment, devices = on(changed(TINY, model__dropout=0.0, model__context=96), 1, 1, 1)
    likelihood = LogLikelihood(experiment.model, started(experiment, devices).params, devices)
    (own,) = ask.scored(split, ["letters"], likelihood, Vocabulary(vocabulary),
                        {"place": "", "sha256": ""}, ask.NO_SHOTS)  # fmt: skip
    (record,) = (record for record in records if record.form == "letters")
    found = [line["scores"] for line in folder.answers(out, record)]
    assert np.array(found) == pytest.approx(own.scores, abs=1e-4)


def test_some_forms_after_examples_on_some_items(checkpoint, questions, tmp_path):
    out = epath.Path(tmp_path / "scores")
    settings = dict(forms=("letters",), shots=2, seed=5, limit=3, split="dev")
    evaluate.run(str(checkpoint), asked(questions, "medqa", **settings), out, None)
    (record,) = folder.read(out)
    assert str(record) == "medqa dev, letters, 2 shots, first 3 items, seed 5"
    assert record.scores["items"] == 3
    assert record.checkpoint["asked"]["shots"] == 2
    (line,) = evaluate.table(out)
    assert line.endswith("of 3")
    # A second call adds to it.
    evaluate.run(str(checkpoint), asked(questions, "medqa", forms=("option texts",)), out, None)
    assert len(folder.read(out)) == 2


def test_a_fine_tuned_model_answers_by_its_head(tuned, questions, vocabulary, tmp_path):
    workdir, params, experiment = tuned
    out = epath.Path(tmp_path / "scores")
    evaluate.run(str(workdir), asked(questions, "medqa"), out, None)
    (record,) = folder.read(out)
    assert (record.form, record.seed) == ("classifier", experiment.run.seed)
    assert record.checkpoint["step"] == 3
    found = np.array([line["scores"] for line in folder.answers(out, record)])
    own = by_hand(
        params, experiment, vocabulary, read("medqa", questions, "test", other_version=True)
    )
    assert found == pytest.approx(own, abs=1e-5)
    with pytest.raises(UserError, match=r"--shots=1, but .* answers by its head"):
        evaluate.run(str(workdir), asked(questions, "medqa", shots=1), out, None)
    with pytest.raises(UserError, match=r"--forms=letters has none for medqa; .* classifier"):
        evaluate.run(str(workdir), asked(questions, "medqa", forms=("letters",)), out, None)


def test_examples_are_of_the_train_split(checkpoint, tmp_path):
    apart = write(tmp_path / "qa", {"US/test.jsonl": medqa(3, "Dorpa")})
    with pytest.raises(
        UserError, match=r"--shots=1 are drawn .*: there is no train split of medqa"
    ):
        evaluate.run(
            str(checkpoint), asked(apart, "medqa", shots=1), epath.Path(tmp_path / "x"), None
        )


def test_texts_are_written(checkpoint, questions, tmp_path):
    out = epath.Path(tmp_path / "scores")
    settings = dict(split="train", max_tokens=5)
    evaluate.run(str(checkpoint), asked(questions, "medquad", **settings), out, None)
    (record,) = folder.read(out)
    assert (record.form, record.scores["items"]) == ("generated", 2)
    assert record.checkpoint["asked"]["max_tokens"] == 5
    assert all(line["written"] for line in folder.answers(out, record))
    (line,) = evaluate.table(out)
    assert "rouge1" in line


def test_items_that_the_store_gives_away_are_told_apart(
    checkpoint, questions, make_store, tmp_path
):
    out = epath.Path(tmp_path / "scores")
    store = make_store()
    evaluate.run(str(checkpoint), asked(questions, "medqa", forms=("letters",)), out, str(store))
    (record,) = folder.read(out)
    assert record.contamination is not None
    assert record.contamination["store"]["documents"] == 40
    assert record.contamination["items"] == {}


def test_another_checkpoints_answers_are_refused_before_the_work(
    checkpoint, questions, tmp_path, monkeypatch
):
    out = epath.Path(tmp_path / "scores")
    wanted = asked(questions, "medqa", forms=("letters",))
    evaluate.run(str(checkpoint), wanted, out, None)
    before = (out / "scores.json").read_text()
    monkeypatch.setattr(evaluate, "_known", lambda *_: {"place": "x", "sha256": "0"})
    monkeypatch.setattr(ask, "scored", None)
    with pytest.raises(UserError, match=r"has medqa test, letters of .*/hf, another checkpoint"):
        evaluate.run(str(checkpoint), wanted, out, None)
    assert (out / "scores.json").read_text() == before
    with pytest.raises(UserError, match=r"scores\.json is a file; name a folder"):
        evaluate.run(str(checkpoint), wanted, out / "scores.json", None)


def by_hand(params, experiment, vocabulary, split) -> np.ndarray:
    """The head's scores of question [SEP] option [SEP], a row at a time."""
    words = Vocabulary(vocabulary)
    one, devices = on(dataclasses.replace(experiment, data=dataclasses.replace(
        experiment.data, batch=1)), 1, 1, 1)  # fmt: skip
    ask_head = step.scores(one, devices)
    found = []
    for item in split.items:
        for option in item.options:
            ids = [*words.encode(item.question), 302, *words.encode(f" {option}"), 302]
            row = np.zeros((1, 32), np.int32)
            row[0, : len(ids)] = ids
            found.append(float(ask_head(params, row, np.array([len(ids) - 1], np.int32))[0, 0]))
    return np.array(found).reshape(len(split.items), -1)


@pytest.mark.parametrize(
    ("tasks", "settings", "said"),
    [
        (["medqa6"], {}, "there is no benchmark 'medqa6'; there are medqa, "),
        (["medqa"], {"split": "trial"}, "medqa has no 'trial' split; .* train, dev, test"),
        (["medqa"], {"shots": 10}, "--shots=10, but the train split of medqa has 9 items"),
        (["mmlu"], {"split": "dev", "shots": 1}, "there is no dev split of mmlu"),
        (["medquad"], {"split": "train"}, "say how long one may be with --max_tokens"),
    ],
)
def test_what_can_not_be_asked_is_refused_before_weights_are_read(
    tasks, settings, said, checkpoint, questions, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluate.start, "params", lambda *x: 1 / 0)
    with pytest.raises(UserError, match=said):
        evaluate.run(
            str(checkpoint), asked(questions, *tasks, **settings), epath.Path(tmp_path / "x"), None
        )
    assert not (tmp_path / "x").exists()


def test_dev_is_that_of_the_fold_that_was_learned(tuned):
    candidate = evaluate.Candidate(str(tuned[0]))
    assert candidate.fold("pubmedqa") is None
    third = dataclasses.replace(candidate.task, train="medqa+pubmedqa", fold=3)
    candidate.task = third
    assert candidate.fold("pubmedqa") == 3
    assert candidate.fold("medqa") is None
    candidate.task = dataclasses.replace(third, train="medqa")
    assert candidate.fold("pubmedqa") is None


@pytest.mark.slow
def test_the_command(checkpoint, questions, tmp_path):
    command = [sys.executable, "-m", "biomedlm_jax.evaluate", f"--checkpoint={checkpoint}"]
    command += [f"--benchmarks={questions}", "--tasks=medqa", "--split=test", "--other_version"]
    command += [f"--output={tmp_path / 'scores'}", "--forms=option texts, per byte; letters"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "medqa test, option texts, per byte" in done.stdout
    assert len(json.loads((tmp_path / "scores/scores.json").read_text())) == 2
    done = subprocess.run([*command, "--forms=numbers"], cwd=ROOT, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 2
    assert "--forms: there is no numbers; there are class words; classifier" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not QA.is_dir(), reason=f"{QA} has the real questions")
def test_real_questions_of_every_kind(tmp_path):
    """With GPT-2's vocabulary and weights that know nothing; all the files are the published."""
    settings = changed(TINY, model__dropout=0.0, model__context=256, model__vocab=50257)
    experiment, devices = on(settings, 1, 1, 1)
    params = jax.device_get(started(experiment, devices).params)
    save.save(params, experiment.model, GPT2, tmp_path / "hf", extra={})
    out = epath.Path(tmp_path / "scores")
    plain, taught = ("medqa", "mmlu", "bioasq"), ("pubmedqa", "meqsum")
    for tasks, shots in ((plain, 0), (taught, 2)):
        wanted = asked(QA, *tasks, shots=shots, limit=4, max_tokens=4, other_version=False)
        evaluate.run(str(tmp_path / "hf"), wanted, out, None)
    records = folder.read(out)
    assert {record.benchmark for record in records} == {*plain, *taught}
    assert len(records) == 3 + 3 + 1 + 1 + 1
    # 256 tokens hold no two abstracts and a third.
    (record,) = (record for record in records if record.benchmark == "pubmedqa")
    assert record.checkpoint["asked"]["left_out"] > 0
    assert (record.scores["items"], record.data["skipped"]) == (4, {})
