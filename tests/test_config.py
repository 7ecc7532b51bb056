"""Settings: what is refused, and how."""

import dataclasses
import importlib.util
import math

import pytest

from biomedlm_jax.benchmarks.read import BENCHMARKS
from biomedlm_jax.config import Evaluation, Experiment, Model
from biomedlm_jax.entry import UserError
from biomedlm_jax.settings import build, check_arguments, differences, kind, overrides
from tests.conftest import ROOT, TINY, changed

VALUES = dataclasses.asdict(TINY)


def config_file(path):
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.get_config().to_dict()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_builds(path):
    values = config_file(path)
    if kind(values) is Experiment:
        assert isinstance(build(Experiment, values), Experiment)
    else:
        evaluation = build(Evaluation, values | {"start": "runs/demo/run"})
        assert {split.split("/")[0] for split in evaluation.splits.split("+")} <= set(BENCHMARKS)


def test_an_evaluation_is_no_experiment():
    values = config_file(ROOT / "configs/eval_paper.py")
    with pytest.raises(UserError, match=r"describes an evaluation.*python -m biomedlm_jax.main"):
        build(Experiment, values)
    check_arguments(["--config=configs/eval_paper.py", "--config.tuned.medqa=x"])
    with pytest.raises(UserError, match=r"config.tuned.medca is no setting; did you mean .*medqa"):
        check_arguments(["--config.tuned.medca=x", "--config=configs/eval_paper.py"])


def test_build_is_the_inverse_of_asdict():
    assert build(Experiment, VALUES) == TINY


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("model", "layer", 2, r"config\.model\.layer is no setting; did you mean layers"),
        ("model", "layers", 2.5, r"config\.model\.layers=2.5 is not of type int"),
        ("model", "layers", 0, r"config\.model\.layers=0 is not positive"),
        ("model", "heads", 5, r"width=64 does not split into .*heads=5; choose a multiple of 5"),
        ("model", "dropout", 1.0, r"config\.model\.dropout=1.0 is not in \[0, 1\)"),
        ("model", "remat", "some", r"config\.model\.remat='some'; allowed are 'none', 'named'"),
        ("mesh", "data", 0, r"config\.mesh\.data=0; a positive number, or -1"),
        ("optimizer", "b2", 1.0, r"config\.optimizer\.b2=1.0 is not in \[0, 1\)"),
        ("optimizer", "peak_lr", math.nan, r"config\.optimizer\.peak_lr=nan is not a finite"),
        ("optimizer", "warmup_steps", -5, r"config\.optimizer\.warmup_steps=-5 is not 0 or more"),
        ("run", "save_every", -1, r"config\.run\.save_every=-1 is not 0 or more"),
        ("optimizer", "warmup_steps", 10, r"warmup_steps=10 leaves nothing of config\.run\.steps"),
        ("run", "steps", True, r"config\.run\.steps=True is not of type int"),
        ("data", "separators", 1, r"config\.data\.separators=1 is not of type bool"),
        ("data", "segment_id", True, r"data\.segment_id is no setting; did you mean segment_ids"),
    ],
)
def test_a_bad_value_is_refused_by_name(section, name, value, message):
    with pytest.raises(UserError, match=message):
        build(Experiment, VALUES | {section: VALUES[section] | {name: value}})


def test_only_one_mesh_axis_takes_the_rest():
    one = changed(TINY, mesh__data=-1)
    with pytest.raises(UserError, match="only one axis can be -1"):
        changed(one, mesh__fsdp=-1)


def test_a_missing_setting_is_named():
    model = {name: value for name, value in VALUES["model"].items() if name != "context"}
    with pytest.raises(UserError, match=r"config\.model lacks context"):
        build(Experiment, VALUES | {"model": model})


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.model.lairs=3", r"config\.model\.lairs is no setting; did you mean layers"),
        ("--config.modle.layers=3", r"config\.modle is no setting; did you mean model"),
        ("--config.model.layers.x=3", r"config\.model\.layers\.x is no setting"),
        ("--config.model.layers", r"has no value; write --config\.model\.layers=value"),
    ],
)
def test_an_unknown_override_is_refused_with_the_nearest(argument, message):
    with pytest.raises(UserError, match=message):
        overrides(["--config=configs/demo.py", argument])


def test_known_overrides_pass():
    given = ["--workdir=x", "--config=a.py", "--config.model.layers=3", "-config.run.seed=1"]
    assert overrides(given) == ["--config.model.layers=3", "--config.run.seed=1"]


def test_a_config_that_is_no_file_is_refused():
    with pytest.raises(UserError, match=r"--config=configs/none\.py names no config file"):
        check_arguments(["--config=configs/none.py"])


def test_differences_are_those_that_change_what_is_learned():
    other = changed(TINY, model__dropout=0.2, mesh__fsdp=2, run__log_every=7, data__batch=16)
    other = changed(other, data__separators=False, data__segment_ids=True)
    assert differences(other, TINY) == [
        "config.model.dropout: 0.1 before, 0.2 now",
        "config.data.batch: 8 before, 16 now",
        "config.data.separators: True before, False now",
        "config.data.segment_ids: False before, True now",
    ]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("2p7b", 2_594_247_680), ("1b", 1_269_878_784), ("125m", 108_034_560)],
)
def test_published_sizes(name, parameters):
    experiment = build(Experiment, config_file(ROOT / f"configs/pretrain_{name}.py"))
    model, data = experiment.model, experiment.data
    assert (data.separators, data.segment_ids) == (False, False)  # as the authors' last loader
    assert isinstance(model, Model)
    assert model.parameters == parameters
    assert model.padded_vocab == 28_928
