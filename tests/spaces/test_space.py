"""Search spaces: what ships is sound, what is sound samples, and a mistake is named with file and line."""

import math
from pathlib import Path

import numpy as np
import pytest
import ray.tune
from ray.tune.search.variant_generator import generate_variants

from models.crystals.chgnet.model import CHGNetConfig
from tune.spaces.ranges import KINDS
from tune.spaces.space import SPACES_FOLDER, SearchSpace, SpaceError, load_space

SHIPPED = sorted(file.stem for file in SPACES_FOLDER.glob("*.yaml") if "experiments:" not in file.read_text())

GOOD = """\
description: Something of everything.
num_samples: 4
grace_epochs: 2
parameters:
  freeze_depth: {choice: [readout, full]}
  lr: {loguniform: [0.0001, 0.01]}
  epochs: {int: [3, 6]}
  batch_size: {logint: [4, 64]}
  weight_decay: {uniform: [0.0, 0.1]}
  loss: {choice: [mae, mse, huber]}
  weights: r2scan
"""


@pytest.fixture
def load(tmp_path):
    def written(text: str, **options):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return load_space(str(path), **options)

    return written


def samples(space, n: int) -> list[dict]:
    """Configs as a search meets them, each under a seed of its own."""
    found = []
    for seed in range(n):
        variants = generate_variants({**space.ray_space(), "seed": seed}, random_state=np.random.RandomState(seed))
        found += [config for _, config in variants]
    return found


def test_there_are_spaces_to_check():
    assert {"pretrained", "head_finetune", "full_finetune"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_space_gives_valid_configs_only(name):
    space = load_space(name)
    assert space.name == name
    assert space.description
    assert set(space.parameters) <= set(space.config.model_fields)
    configs = samples(space, 50)
    assert len(configs) == 50
    for config in configs:
        space.config(**config)
    for field in space.searched:
        assert len({config[field] for config in configs}) > 1
        if not isinstance(configs[0][field], str):
            assert max(config[field] for config in configs) <= space.most(field)


def test_every_kind_of_range_samples_within_its_bounds(load):
    space = load(GOOD)
    assert {searched.kind for searched in space.searched.values()} == set(KINDS)
    configs = [CHGNetConfig(**config) for config in samples(space, 200)]
    assert {config.freeze_depth for config in configs} == {"readout", "full"}
    assert {config.loss for config in configs} == {"mae", "mse", "huber"}
    assert {config.epochs for config in configs} == {3, 4, 5, 6}  # both ends included
    assert {config.weights for config in configs} == {"r2scan"} == {space.needs.weights}
    lr = np.array([config.lr for config in configs])
    assert 1e-4 <= lr.min() < 2e-4
    assert 5e-3 < lr.max() <= 1e-2
    assert 5e-4 < np.median(lr) < 2e-3  # of a log-uniform range the geometric mean
    batch_size = np.array([config.batch_size for config in configs])
    assert 4 <= batch_size.min() < 6
    assert 48 < batch_size.max() <= 64
    assert 0.04 < np.median([config.weight_decay for config in configs]) < 0.06
    assert space.most("epochs") == 6


def test_a_space_with_nothing_to_search_is_a_single_config(load):
    space = load("parameters: {freeze_depth: none, epochs: 0}\n")
    assert space.searched == {}
    assert samples(space, 1) == [{"freeze_depth": "none", "epochs": 0, "seed": 0}]
    assert load("parameters: {}\n").needs.weights == CHGNetConfig().weights


def test_a_name_is_looked_up_and_an_unknown_one_is_refused_with_the_known():
    with pytest.raises(SpaceError, match=f"'head'.*{', '.join(SHIPPED)}"):
        load_space("head")


def test_a_folder_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text(GOOD)
    assert load_space("mine", tmp_path).num_samples == 4


# What is wrong -> the line of GOOD (counted from 1), the line put in its place, what the message must say.
MISTAKES = {
    "key": (2, "num_sample: 4", "unknown key 'num_sample' (did you mean 'num_samples'?); allowed: description, num_"),
    "name": (1, "name: other", "unknown key 'name'"),
    "number as key": (2, "16: 4", "unknown key 16"),
    "field": (6, "  learning_rate: 0.001", "unknown field 'learning_rate'"),
    "field, nearly": (8, "  batchsize: 16", "did you mean 'batch_size'?"),
    "number as field": (6, "  3: 0.001", "unknown field 3"),
    "field twice": (8, "  lr: 0.001", "'lr' is there twice"),
    "key twice": (3, "num_samples: 8", "'num_samples' is there twice"),
    "range": (6, "  lr: {log_uniform: [0.0001, 0.01]}", "one range of choice, uniform, loguniform, int, logint"),
    "two ranges": (6, "  lr: {uniform: [0.1, 0.2], choice: [0.1]}", "expected a value or one range of choice"),
    "no bounds": (6, "  lr: {uniform: }", "uniform takes a list, got None"),
    "empty choice": (10, "  loss: {choice: []}", "choice takes a list, got []"),
    "low = high": (6, "  lr: {uniform: [0.01, 0.01]}", "[low, high] with low < high, got [0.01, 0.01]"),
    "low > high": (7, "  epochs: {int: [6, 3]}", "[low, high] with low < high, got [6, 3]"),
    "three bounds": (6, "  lr: {uniform: [0.1, 0.2, 0.3]}", "[low, high]"),
    "up to infinity": (
        9,
        "  gradient_clip: {uniform: [1.0, .inf]}",
        "uniform takes two finite numbers, got [1.0, inf]",
    ),
    "log from zero": (9, "  weight_decay: {loguniform: [0, 0.1]}", "bounds above zero, got [0, 0.1]"),
    "log of nothing": (6, "  lr: {loguniform: [0.0, 0.01]}", "lr: Input should be greater than 0, got 0.0"),
    "fractions of an epoch": (7, "  epochs: {uniform: [3, 6]}", "a field that takes int, logint or choice"),
    "whole learning rates": (6, "  lr: {int: [0.1, 1]}", "a field that takes uniform, loguniform or choice"),
    "range of words": (10, "  loss: {uniform: [mae, mse]}", "[low, high]"),
    "lr": (6, "  lr: 5", "lr: Input should be less than or equal to 1, got 5"),
    "lr of a range": (6, "  lr: {loguniform: [0.001, 5]}", "lr: Input should be less than or equal to 1, got 5"),
    "lr, no number": (6, "  lr: .nan", "lr: Input should be"),
    "text": (6, "  lr: 1e-3", "'1e-3' is text, expected a number (YAML reads 1e-3 as text; write 1.0e-3)"),
    "text in a range": (6, "  lr: {loguniform: [1e-4, 1.0e-2]}", "'1e-4' is text, expected a number"),
    "yes": (8, "  batch_size: yes", "batch_size: True is neither a number nor a word"),
    "half a crystal": (8, "  batch_size: 1.5", "batch_size: Input should be a valid integer"),
    "word": (
        10,
        "  loss: rmse",
        "loss: Input should be 'mae', 'mse', 'huber', 'log_cosh' or 'cross_entropy', got 'rmse'",
    ),
    "word in a choice": (5, "  freeze_depth: {choice: [readout, all]}", "Input should be 'none', 'readout', 'last_co"),
    "list without choice": (
        10,
        "  loss: [mae, mse]",
        "loss: Input should be 'mae', 'mse', 'huber', 'log_cosh' or 'cross_entropy'",
    ),
    "choice twice": (10, "  loss: {choice: [mae, mae]}", "choice lists ['mae', 'mae'], some twice"),
    "seed": (6, "  seed: {choice: [0, 1]}", "'seed': set with --seed and --seeds"),
    "fixed seed": (6, "  seed: 1", "'seed': set with --seed and --seeds"),
    "weights searched": (11, "  weights: {choice: ['0.3.0', r2scan]}", "'weights' cannot be searched"),
    "weights": (11, "  weights: 0.3", "weights: Input should be '0.3.0', '0.2.0', 'r2scan' or 'random', got 0.3"),
    "no epochs": (7, "  epochs: 0", "epochs can be 0; only freeze_depth none goes with 0"),
    "maybe no epochs": (7, "  epochs: {int: [0, 6]}", "epochs can be 0; only freeze_depth none goes with 0"),
    "none and ranges": (5, "  freeze_depth: none", "freeze_depth none trains nothing"),
    "none among others": (5, "  freeze_depth: {choice: [none, full]}", "freeze_depth none trains nothing"),
    "grace": (3, "grace_epochs: 7", "grace_epochs 7 exceeds the largest epochs, 6"),
    "no grace": (3, "grace_epochs: 0", "grace_epochs: Input should be greater than or equal to 1, got 0"),
    "no samples": (2, "num_samples: 0", "num_samples: Input should be greater than or equal to 1, got 0"),
    "some samples": (2, "num_samples: many", "num_samples: Input should be a valid integer"),
    "reduction": (3, "reduction_factor: 1", "reduction_factor: Input should be greater than 1, got 1"),
}


def test_the_space_without_mistakes_loads(load):
    assert load(GOOD).parameters["epochs"] == {"int": [3, 6]}


def test_a_network_that_trains_no_epoch_is_refused(load):
    with pytest.raises(SpaceError, match=r"line 3: epochs can be 0, which trains nothing"):
        load("model: composition_network\nparameters:\n  epochs: {choice: [0, 10]}\n")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_file_and_line(load, mistake, tmp_path):
    number, line, says = MISTAKES[mistake]
    lines = GOOD.splitlines()
    lines[number - 1] = line
    with pytest.raises(SpaceError) as problem:
        load("\n".join(lines))
    assert str(problem.value).startswith(f"{tmp_path / 'mine.yaml'}, line {number}: ")
    assert says in str(problem.value)


@pytest.mark.parametrize(
    "text",
    [
        "parameters:\n  freeze_depth: none\n  epochs: 0\n  lr: {uniform: [0.1, 0.2]}\n",
        "parameters:\n  freeze_depth: none\n",  # epochs are 100 unless said otherwise
        "parameters:\n  freeze_depth: {choice: [none]}\n  epochs: 0\n",
    ],
)
def test_training_nothing_goes_with_no_epochs_and_no_ranges(load, text):
    with pytest.raises(SpaceError, match="line 2: freeze_depth none trains nothing"):
        load(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: expected a mapping with the keys description, num_samples"),
        ("- lr\n- epochs\n", "line 1: expected a mapping"),
        ("description: hello\n", "line 1: `parameters` must map fields to values or ranges: epochs, batch_size"),
        ("description: hello\nparameters:\n", "line 2: `parameters` must map"),
        ("parameters: {lr: [0.1\n", "not YAML"),
        ("parameters:\n  ? [lr, epochs]\n  : 0.001\n", "not YAML"),
        ("parameters: &all\n  loss: *all\n", "not YAML: line 1: a mapping that holds itself"),
    ],
)
def test_a_file_of_another_shape_is_refused(load, text, says):
    with pytest.raises(SpaceError) as problem:
        load(text)
    assert "mine.yaml" in str(problem.value)
    assert says in str(problem.value)


def test_a_binary_file_is_refused(tmp_path):
    path = Path(tmp_path / "mine.yaml")
    path.write_bytes(b"\x93NUMPY\xff\xfe")
    with pytest.raises(SpaceError, match=r"mine\.yaml: not text"):
        load_space(str(path))


def test_ray_gets_domains_for_ranges_and_values_for_values(load):
    space = load(GOOD).ray_space()
    assert space["weights"] == "r2scan"
    assert isinstance(space["lr"], ray.tune.search.sample.Float)
    assert isinstance(space["batch_size"], ray.tune.search.sample.Integer)
    assert isinstance(space["loss"], ray.tune.search.sample.Categorical)


@pytest.mark.parametrize(
    ("parameters", "size"),
    [
        ({}, 1),
        ({"lr": {"choice": [0.1, 0.2, 0.3]}, "epochs": {"int": [5, 8]}}, 12),
        ({"lr": {"choice": [0.1, 0.2]}, "weight_decay": {"uniform": [0.0, 0.1]}}, math.inf),
    ],
)
def test_a_space_knows_how_many_configs_it_has(parameters, size):
    assert SearchSpace(name="x", parameters=parameters).size == size


@pytest.mark.parametrize(
    ("parameters", "kind", "says"),
    [
        ({"undo_mp2020": True}, "regression", "corrects CHGNet's energies"),
        ({"undo_mp2020": {"choice": [False, True]}}, "regression", "corrects CHGNet's energies"),
        ({"undo_mp2020": True}, "classification", "not with classes"),
        ({"target_scale": "robust"}, "classification", "classes have no scale"),
        ({"loss": "huber", "loss_delta": 0.2}, "classification", "loss_delta 0.2 changes nothing"),
        ({"loss": "cross_entropy"}, "regression", "loss of a classification"),
    ],
)
def test_what_a_task_cannot_have_is_refused_before_anything_is_computed(parameters, kind, says):
    space = SearchSpace(name="mine", parameters=parameters)
    with pytest.raises(SpaceError, match=f"space mine.*{says}"):
        space.for_task(kind, "other")


def test_the_loss_of_a_classification_is_not_searched():
    space = load_space("head_finetune")
    assert space.for_task("regression", "energy_per_atom") is space
    assert space.for_task("classification", "other").parameters["loss"] == "cross_entropy"


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"averaging": "snapshots", "epochs": 150}, "a cycle takes whole epochs"),
        ({"averaging": "snapshots", "epochs": 60, "warmup": 0.1}, "begin at the full rate"),
        ({"freeze_depth": "none", "epochs": 0, "loss": "huber"}, "loss 'huber' changes nothing"),
    ],
)
def test_a_field_that_would_not_do_what_it_says_is_refused(parameters, says):
    with pytest.raises(ValueError, match=says):
        CHGNetConfig(**parameters)
