"""An evaluation: fine-tuned checkpoints as they learned to answer, others in every form that fits;
what can not be scored is refused before a model is loaded, and nothing is asked twice."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath

from biomedlm_jax import ask, candidate, evaluate, hosts, step, train
from biomedlm_jax.benchmarks.read import read
from biomedlm_jax.candidate import MADE_BY, Candidate
from biomedlm_jax.config import Evaluation, Tuned
from biomedlm_jax.entry import UserError
from biomedlm_jax.hf import save
from biomedlm_jax.likelihood import LogLikelihood
from biomedlm_jax.pipeline.vocabulary import Vocabulary
from biomedlm_jax.scoring import folder
from tests import tuned as tuning
from tests.benchmark_files import lines, write
from tests.conftest import ROOT, SHARED, TINY, changed, fine_tuning, on, put, started
from tests.runs import free_port

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


NOBODY = Tuned(medmcqa="", medqa="", mmlu="", pubmedqa="", bioasq="", meqsum="")


def asked(questions, start, splits, **settings) -> Evaluation:
    given = dict(tuned=NOBODY, forms="", shots=0, seed=0, max_tokens=5, limit=0, store="")
    given |= dict(other_version=True) | settings
    whole = dict(benchmarks=str(questions), start=str(start), splits=splits, **given)
    return Evaluation(**whole)  # pyright: ignore


def test_all_forms_that_fit(checkpoint, questions, vocabulary, tmp_path):
    out = epath.Path(tmp_path / "scores")
    written = evaluate.run(asked(questions, checkpoint, "medqa/test"), out)
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
    settings = dict(forms="letters", shots=2, seed=5, limit=3)
    evaluate.run(asked(questions, checkpoint, "medqa/dev", **settings), out)
    (record,) = folder.read(out)
    assert str(record) == "medqa dev, letters, 2 shots, first 3 items, seed 5"
    assert record.scores["items"] == 3
    assert record.checkpoint["asked"]["shots"] == 2
    assert evaluate.table(out).endswith("of 3")
    # A second call adds to it.
    evaluate.run(asked(questions, checkpoint, "medqa/test", forms="option texts"), out)
    assert len(folder.read(out)) == 2


def test_what_is_answered_is_not_asked_again(checkpoint, questions, tmp_path, monkeypatch):
    """A run that was stopped goes on; another program, or more text to write, asks again."""
    out, seen = epath.Path(tmp_path / "scores"), []
    answers, known = Candidate.answers, candidate._known

    def other_vocabulary(*of):
        return known(*of) | {"vocabulary_sha256": "another"}

    def watched(self, split, forms, *rest):
        seen.append((split.name, *forms))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return answers(self, split, forms, *rest)

    monkeypatch.setattr(Candidate, "answers", watched)
    wanted = asked(questions, checkpoint, "medqa/dev+medqa/test", forms="letters+option texts")
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(wanted, out)
    evaluate.run(wanted, out)
    evaluate.run(wanted, out)
    both = ("letters", "option texts")
    assert seen == [("dev", *both), ("test", *both), ("test", *both)]
    more = dataclasses.replace(wanted, splits="medqa/dev", forms="")
    evaluate.run(more, out)
    assert seen[3:] == [("dev", "option texts, per byte")]
    # An answers file that was lost is made again; another vocabulary or program asks again.
    (out / "answers/medqa_dev_letters.jsonl").unlink()
    evaluate.run(more, out)
    assert seen.pop(4) == ("dev", "letters")
    with monkeypatch.context() as patch:
        patch.setattr(candidate, "_known", other_vocabulary)
        evaluate.run(dataclasses.replace(more, forms="letters"), out)
    assert seen.pop(4) == ("dev", "letters")
    monkeypatch.setattr(hosts, "versions", lambda: {"jax": "another"})
    evaluate.run(more, out)
    assert seen[4:] == [("dev", *ask.FORMS["multiple_choice"])]
    texts = asked(questions, checkpoint, "medquad/train")
    for most in (2, 2, 3):
        evaluate.run(dataclasses.replace(texts, max_tokens=most), out)
    assert seen[5:] == [("train", "generated")] * 2


def test_a_fine_tuned_model_answers_by_its_head(tuned, questions, vocabulary, tmp_path):
    workdir, params, experiment = tuned
    out = epath.Path(tmp_path / "scores")
    evaluate.run(asked(questions, workdir, "medqa/test", shots=1), out)  # a head has no examples
    (record,) = folder.read(out)
    assert (record.form, record.seed) == ("classifier", experiment.run.seed)
    assert record.checkpoint["step"] == 3
    found = np.array([line["scores"] for line in folder.answers(out, record)])
    own = by_hand(
        params, experiment, vocabulary, read("medqa", questions, "test", other_version=True)
    )
    assert found == pytest.approx(own, abs=1e-5)
    with pytest.raises(UserError, match=r"config.forms='letters' has none for medqa.* classifier;"):
        evaluate.run(asked(questions, workdir, "medqa/test", forms="letters"), out)


def test_base_and_fine_tuned_answer_in_one_table(checkpoint, tuned, questions, tmp_path, capsys):
    """Of what `finetune` left, each seed by the save that was taken."""
    workdir, _, experiment = tuned
    place, out = tmp_path / "seeds", epath.Path(tmp_path / "scores")
    place.mkdir()
    (place / "seed_17").symlink_to(workdir)
    (place / "results.json").write_text(json.dumps({"saves": {"17": 3}}))
    assert experiment.run.seed == 17
    medqa = dataclasses.replace(NOBODY, medqa=str(place))
    wanted = asked(questions, checkpoint, "medqa/test+medquad/train", tuned=medqa)
    lines = evaluate.description(wanted).splitlines()
    assert [line.split()[:4] for line in lines[1:3]] == [
        ["medqa", "test", "9", "items"],
        ["medquad", "train", "2", "items"],
    ]
    assert lines[4].endswith("9 items  classifier")
    evaluate.run(wanted, out)
    assert [(r.benchmark, r.form) for r in folder.read(out)] == [
        ("medqa", "classifier"),
        *(("medqa", form) for form in sorted(ask.FORMS["multiple_choice"])),
        ("medquad", "generated"),
    ]
    assert "[2/2] seed_17: medqa test" in capsys.readouterr().err
    for tuned_for, said in (
        (dict(mmlu=str(place)), r"config.tuned.mmlu=.* has no split of it; add mmlu/test"),
        (dict(medqa=str(checkpoint)), r"config.tuned.medqa=.* has neither a head nor tokens"),
    ):
        wrong = dataclasses.replace(NOBODY, **tuned_for)
        with pytest.raises(UserError, match=said):
            evaluate.run(asked(questions, "", "medqa/test", tuned=wrong), out)


@pytest.mark.parametrize(
    ("results", "said"),
    [
        (None, r"has runs of several seeds and no results.json.*finetune` to its end"),
        ('{"saves": {"17"', r"results.json is damaged: JSONDecodeError"),
        ("{}", r"results.json is damaged: KeyError\('saves'\)"),
        ('{"saves": ["17"]}', r"results.json is damaged: AttributeError"),
    ],
)
def test_a_fine_tuning_that_is_not_done_is_refused(results, said, questions, tmp_path):
    (tmp_path / "seed_17").mkdir()
    if results is not None:
        (tmp_path / "results.json").write_text(results)
    tuned_for = dataclasses.replace(NOBODY, medqa=str(tmp_path))
    with pytest.raises(UserError, match=said):
        evaluate.plan(asked(questions, "", "medqa/test", tuned=tuned_for))


def test_two_checkpoints_for_one_place_in_the_table_are_refused(tuned, questions):
    both = dataclasses.replace(NOBODY, medqa=str(tuned[0]))
    with pytest.raises(UserError, match=r"both answer medqa test, classifier, seed 17; ask them"):
        evaluate.plan(asked(questions, tuned[0], "medqa/test+medqa/test", tuned=both))


def test_examples_are_of_the_train_split(checkpoint, tmp_path):
    apart = write(tmp_path / "qa", {"US/test.jsonl": medqa(3, "Dorpa")})
    with pytest.raises(
        UserError, match=r"config.shots=1 are drawn .*: there is no train split of medqa"
    ):
        evaluate.run(asked(apart, checkpoint, "medqa/test", shots=1), epath.Path(tmp_path / "x"))


def test_texts_are_written(checkpoint, questions, tmp_path):
    out = epath.Path(tmp_path / "scores")
    evaluate.run(asked(questions, checkpoint, "medquad/train"), out)
    (record,) = folder.read(out)
    assert (record.form, record.scores["items"]) == ("generated", 2)
    assert record.checkpoint["asked"]["max_tokens"] == 5
    assert all(line["written"] for line in folder.answers(out, record))
    assert "rouge1" in evaluate.table(out)


def test_what_was_fine_tuned_to_write_writes_after_its_own_prompt(questions, vocabulary, tmp_path):
    """The likeliest token again and again, of those that are text, as the decoder itself says."""
    experiment = tuning.experiment_of("generation", vocabulary, train="medquad")
    params = tuning.saved(experiment, vocabulary, tmp_path / "run")
    out = epath.Path(tmp_path / "scores")
    evaluate.run(asked(questions, tmp_path / "run", "medquad/train"), out)
    (record,) = folder.read(out)
    assert (record.form, record.seed) == ("generator", experiment.run.seed)
    words, (one, devices) = Vocabulary(vocabulary), on(changed(experiment, data__batch=1), 1, 1, 1)
    forward = step.forward(one, devices)
    split = read("medquad", questions, "train", other_version=True)
    room = record.checkpoint["asked"]["max_tokens"]
    assert room == 24  # half of the rows that it learned from
    for item, line in zip(split.items, folder.answers(out, record), strict=True):
        ids = [*words.encode(item.question), words.size + 1]
        begin = len(ids)
        while len(ids) - begin < room:
            row = np.zeros((1, one.model.context), np.int32)
            row[0, : len(ids)] = ids
            logits = np.asarray(forward(params, put(row, devices)))[0, len(ids) - 1]
            if (token := int(logits[: words.size].argmax())) == words.eos_id:
                break
            ids.append(token)
        assert line["written"] == words.decode(ids[begin:]).strip()
    with pytest.raises(UserError, match=r"has none for medqa.*fine-tuned for generation.* none"):
        evaluate.run(asked(questions, tmp_path / "run", "medqa/test"), out)


def test_items_that_the_store_gives_away_are_told_apart(
    checkpoint, questions, make_store, tmp_path
):
    out = epath.Path(tmp_path / "scores")
    store = str(make_store())
    evaluate.run(asked(questions, checkpoint, "medqa/test", forms="letters", store=store), out)
    (record,) = folder.read(out)
    assert record.contamination is not None
    assert record.contamination["store"]["documents"] == 40
    assert record.contamination["items"] == {}


def test_another_checkpoints_answers_are_refused_before_the_work(
    checkpoint, questions, tmp_path, monkeypatch
):
    out = epath.Path(tmp_path / "scores")
    wanted = asked(questions, checkpoint, "medqa/test", forms="letters")
    evaluate.run(wanted, out)
    before = (out / "scores.json").read_text()
    monkeypatch.setattr(
        candidate, "_known", lambda *_: {"place": "x", "sha256": "0", **dict.fromkeys(MADE_BY)}
    )
    monkeypatch.setattr(ask, "scored", None)
    with pytest.raises(UserError, match=r"has medqa test, letters of .*/hf, another checkpoint"):
        evaluate.run(wanted, out)
    assert (out / "scores.json").read_text() == before
    with pytest.raises(UserError, match=r"scores\.json is a file; name a folder"):
        evaluate.run(wanted, out / "scores.json")


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
    ("splits", "settings", "said"),
    [
        ("medqa6/test", {}, "there is no benchmark 'medqa6'; there are medqa, "),
        ("medqa", {}, "config.splits: 'medqa' is no benchmark and split, such as medqa/test"),
        ("", {}, "config.splits is empty, so nothing is asked"),
        ("medquad/train", {"max_tokens": 96}, "config.max_tokens=96 leaves nothing of the 96"),
        ("medqa/trial", {}, "medqa has no 'trial' split; .* train, dev, test"),
        ("medqa/test", {"shots": 10}, "config.shots=10, but the train split of medqa has 9 items"),
        ("mmlu/dev", {"shots": 1}, "there is no dev split of mmlu"),
        ("medqa/test", {"forms": "numbers"}, "config.forms: there is no numbers; there are class "),
        ("medqa/test", {"forms": "generated"}, "has none for medqa, a multiple_choice"),
    ],
)
def test_what_can_not_be_asked_is_refused_before_weights_are_read(
    splits, settings, said, checkpoint, questions, tmp_path, monkeypatch
):
    monkeypatch.setattr(candidate.start, "params", lambda *x: 1 / 0)
    with pytest.raises(UserError, match=said):
        evaluate.run(asked(questions, checkpoint, splits, **settings), epath.Path(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"start": ""}, "config.start is empty, and so is all of config.tuned, so nobody is asked"),
        ({"limit": -1}, "config.limit=-1 is not 0 or more"),
        ({"max_tokens": 0}, "config.max_tokens=0 is not positive"),
    ],
)
def test_settings_that_ask_nothing_are_refused(settings, said, questions):
    with pytest.raises(UserError, match=said):
        asked(questions, **(dict(start="x", splits="medqa/test") | settings))


def test_dev_is_that_of_the_fold_that_was_learned(tuned):
    one = Candidate(str(tuned[0]))
    assert one.fold("pubmedqa") is None
    assert one.task is not None
    third = dataclasses.replace(one.task, train="medqa+pubmedqa", fold=3)
    one.task = third
    assert one.fold("pubmedqa") == 3
    assert one.fold("medqa") is None
    one.task = dataclasses.replace(third, train="medqa")
    assert one.fold("pubmedqa") is None


@pytest.mark.slow
def test_the_command(checkpoint, questions, tmp_path):
    command = [sys.executable, "-m", "biomedlm_jax.main", "--config=configs/eval_paper.py"]
    command += [f"--config.start={checkpoint}", f"--config.benchmarks={questions}"]
    command += ["--config.other_version=True", "--config.splits=medqa/test+medqa/dev"]
    command += ["--config.forms=option texts, per byte+letters", f"--workdir={tmp_path / 'scores'}"]

    def run(*more: str) -> subprocess.CompletedProcess:
        whole = [*command, *more]
        return subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, check=False)

    done = run("--validate_only")
    assert done.returncode == 0, done.stderr
    assert "medqa test            9 items  letters; option texts, per byte" in done.stdout
    assert not (tmp_path / "scores").exists()
    done = run()
    assert done.returncode == 0, done.stderr
    assert "medqa test, option texts, per byte" in done.stdout
    assert len(json.loads((tmp_path / "scores/scores.json").read_text())) == 4
    for wrong, said in (
        ("--config.forms=numbers", "config.forms: there is no numbers; there are class words"),
        ("--config.tuned.medka=x", "config.tuned.medka is no setting; did you mean "),
        ("--config.run.seed=1", "config.run is no setting"),
    ):
        done = run(wrong)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr


@pytest.mark.slow
def test_two_processes_are_one_model(checkpoint, questions, tmp_path):
    """Process 0 writes, what one alone would have written."""
    port = free_port()
    command = [sys.executable, "-m", "biomedlm_jax.main", "--config=configs/eval_paper.py"]
    command += [f"--config.start={checkpoint}", f"--config.benchmarks={questions}"]
    command += ["--config.other_version=True", "--config.splits=medqa/test+medquad/train"]
    command += [f"--workdir={tmp_path / 'scores'}", f"--coordinator=localhost:{port}"]
    running = [
        subprocess.Popen(
            [*command, "--processes=2", f"--process_id={index}"],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert ["medqa test, letters" in text for text in said] == [True, False]
    alone = epath.Path(tmp_path / "alone")
    wanted = asked(questions, checkpoint, "medqa/test+medquad/train", max_tokens=64)
    evaluate.run(wanted, alone)
    together = epath.Path(tmp_path / "scores")
    for ours, theirs in zip(folder.read(alone), folder.read(together), strict=True):
        lines = zip(folder.answers(alone, ours), folder.answers(together, theirs), strict=True)
        for one, other in lines:
            scores = one.pop("scores", []), other.pop("scores", [])
            assert scores[0] == pytest.approx(scores[1], abs=1e-4)
            assert one == other


@pytest.mark.slow
@pytest.mark.skipif(not QA.is_dir(), reason=f"{QA} has the real questions")
def test_real_questions_of_every_kind(tmp_path):
    """With GPT-2's vocabulary and weights that know nothing; all the files are the published."""
    settings = changed(TINY, model__dropout=0.0, model__context=256, model__vocab=50257)
    experiment, devices = on(settings, 1, 1, 1)
    params = jax.device_get(started(experiment, devices).params)
    save.save(params, experiment.model, GPT2, tmp_path / "hf", extra={})
    out = epath.Path(tmp_path / "scores")
    plain, taught = "medqa/test+mmlu/test+bioasq/test", "pubmedqa/test+meqsum/test"
    for splits, shots in ((plain, 0), (taught, 2)):
        settings = dict(shots=shots, limit=4, max_tokens=4, other_version=False)
        evaluate.run(asked(QA, tmp_path / "hf", splits, **settings), out)
    records = folder.read(out)
    assert {f"{record.benchmark}/test" for record in records} == {*f"{plain}+{taught}".split("+")}
    assert len(records) == 3 + 3 + 1 + 1 + 1
    # 256 tokens hold no two abstracts and a third.
    (record,) = (record for record in records if record.benchmark == "pubmedqa")
    assert record.checkpoint["asked"]["left_out"] > 0
    assert (record.scores["items"], record.data["skipped"]) == (4, {})
