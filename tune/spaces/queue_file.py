"""Queues of experiments: `search_spaces/daily.yaml` and its like -> a baseline and what each experiment changes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from models.registry import DEFAULT_MODEL, ModelError, open_model
from tune.spaces.space import SPACES_FOLDER, SearchSpace, SpaceError, combinations, field_problem, model_file
from tune.spaces.yaml_lines import parsed, repeated_key

BASELINE = "baseline"
# An experiment is a folder in the queue's; these are what the folder of a run has inside.
_NAME = re.compile(r"(?!(?:seed_\d+|ensemble|reference)$)[A-Za-z0-9_-][A-Za-z0-9_.-]*")


class Gate(BaseModel):
    """The score that an experiment's first seed must reach on validation: the mean over folds of the task's metric.

    Attributes:
        continue_below: the other seeds are trained only if it is better than this; better is lower for an MAE and
            higher for a ROC-AUC.
        stop_above: the whole queue ends where it is worse than this.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    continue_below: FiniteFloat | None = None
    stop_above: FiniteFloat | None = None


class _Baseline(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = DEFAULT_MODEL
    parameters: dict[str, Any]


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str = ""
    seeds: Annotated[int, Field(ge=1)] = 1
    gate: Gate = Gate()
    baseline: _Baseline
    experiments: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]


class Experiment(BaseModel):
    """One config against the baseline.

    Attributes:
        name: of the experiment.
        change: fields that differ from the baseline's, and `model` where that differs.
        space: without a range: the whole config.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    change: dict[str, Any]
    space: SearchSpace


class Queue(BaseModel):
    """Experiments in the order in which they run; the first one is the baseline.

    Attributes:
        name: of the file, without its ending.
        description: one sentence for people.
        gate: what a first seed must reach.
        experiments: the baseline and what is compared with it.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    description: str
    gate: Gate
    experiments: list[Experiment]


def load_queue(name: str, folder: Path = SPACES_FOLDER) -> Queue:
    """Read and check a queue.

    Args:
        name: of a file in `search_spaces/` without its ending, or a path to a YAML file.
        folder: where names are looked up.

    Raises:
        SpaceError: no such file, a typo, or an experiment that changes more than one field without saying so.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
        content, root = parsed(text)
        if duplicate := repeated_key(root):
            raise SpaceError(f"{path}, line {duplicate.start_mark.line + 1}: {duplicate.value!r} is there twice")
        file = _File.model_validate(content)
    except OSError:
        raise SpaceError(f"no queue {name!r}: give a file of {folder.name}/ such as `daily`, or a path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise SpaceError(f"{path}: not YAML: {problem}") from None
    except ValidationError as problem:
        error = problem.errors()[0]
        key_path = ".".join(map(str, error["loc"])) or "the file"
        raise SpaceError(
            f"{path}: {key_path}: {error['msg']}. A queue has `baseline` (with `parameters`) and `experiments`, and "
            "may have `description`, `seeds`, `gate`"
        ) from None
    base = _experiment(path, file, BASELINE, {})
    experiments = [
        _experiment(path, file, experiment_name, dict(change)) for experiment_name, change in file.experiments.items()
    ]
    return Queue(name=path.stem, description=file.description, gate=file.gate, experiments=[base, *experiments])


def _experiment(path: Path, file: _File, name: str, change: dict[str, Any]) -> Experiment:
    """The baseline with a change.

    Raises:
        SpaceError: see `load_queue`.
    """
    if name == BASELINE and change:
        raise SpaceError(f"{path}: an experiment cannot be called {BASELINE!r}")
    place = f"{path}, experiment {name!r}"
    if not _NAME.fullmatch(name):
        raise SpaceError(
            f"{place}: the name becomes a folder: letters, digits, `_`, `-` and `.`, not beginning with `.`, and not "
            "seed_N, ensemble or reference, which stand for parts of a run"
        )
    several = change.pop("several", False)
    if several not in (True, False):
        raise SpaceError(f"{place}: several is {several!r}, expected true or false")
    model = model_file(change.get("model", file.baseline.model), path)
    has_other_model = model != model_file(file.baseline.model, path)
    fields = {field: value for field, value in change.items() if field != "model"}
    parameters = fields if has_other_model else {**file.baseline.parameters, **fields}
    try:
        config = open_model(model).config
    except ModelError as problem:
        raise SpaceError(f"{place}: {problem}") from None
    for field, value in parameters.items():
        if isinstance(value, dict):
            raise SpaceError(f"{place}: {field} {value!r} is a range: an experiment has one value for each field")
        if complaint := field_problem(config, field, value):
            raise SpaceError(f"{place}: {complaint}")
    changes = {
        field: value
        for field, value in fields.items()
        if has_other_model or value != file.baseline.parameters.get(field, config.model_fields[field].default)
    }
    changes |= {"model": model} if has_other_model else {}
    if name != BASELINE and not changes:
        raise SpaceError(f"{place} changes nothing: {fields or 'nothing'} is what the baseline has")
    if len(changes) > 1 and not several:
        raise SpaceError(
            f"{place} changes {len(changes)} fields, {', '.join(changes)}: nobody could tell which one did it. Make "
            "an experiment of each, or say `several: true`"
        )
    seeds = file.seeds if "epochs" in config.model_fields else 1  # what is fitted at once has no chance in it
    space = SearchSpace(name=name, description=file.description, seeds=seeds, model=model, parameters=parameters)
    try:
        config(**combinations(space)[0])
    except ValidationError as problem:
        complaint = problem.errors()[0]["msg"].removeprefix("Value error, ")
        if not ("cross_entropy" in complaint and "loss" not in parameters):
            raise SpaceError(f"{place}: {complaint}") from None
    return Experiment(name=name, change=changes, space=space)
