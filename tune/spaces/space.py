"""Search spaces: `search_spaces/NAME.yaml` -> validated ranges over the fields of a model's config."""

from __future__ import annotations

import difflib
import itertools
import math
import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from data.errors import UserError
from data.machine.import_path import ROOT
from data.stores.places import expanded
from data.task import Quantity
from models.config import ModelConfig
from models.registry import DEFAULT_MODEL, ModelError, open_family, open_model
from tune.spaces.ranges import KINDS, Range, range_problem, values_of
from tune.spaces.yaml_lines import lines_of, parsed, repeated_key

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from data.task import Kind

SPACES_FOLDER = Path(ROOT) / "search_spaces"
# Chosen by the sweep, or fixed because rows are made ready for one set of weights.
_NOT_SEARCHED = {
    "seed": "set with --seed and --seeds",
    "weights": "one value a sweep: rows are made ready for it",
}
_MOST_COMBINATIONS = 2000  # that are tried before a sweep


class SpaceError(UserError, ValueError):
    """A search space that cannot be used; the message names file, line and what is allowed."""


class SearchSpace(BaseModel):
    """A search space: the model that a sweep trains, and a value or a range for fields of its config.

    Attributes:
        name: of the file, without its ending.
        description: one sentence for people.
        num_samples: trials of a search unless `--num-samples` says otherwise.
        grace_epochs: epochs every trial gets before ASHA may stop it.
        reduction_factor: ASHA keeps one in so many trials at each rung.
        seeds: that the chosen config is trained with unless `--seeds` says otherwise.
        model: of `models/registry.py`, or a Python file that defines one.
        parameters: a fixed value, or a one-key mapping from a range to its bounds, by field of the model's config.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str = ""
    num_samples: Annotated[int, Field(ge=1)] = 16
    grace_epochs: Annotated[int, Field(ge=1)] = 10
    reduction_factor: Annotated[float, Field(gt=1)] = 3
    seeds: Annotated[int, Field(ge=1)] = 1
    model: str = DEFAULT_MODEL
    parameters: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """The parameters, their ranges as `Range`."""
        return {
            field: Range.of(value) if isinstance(value, dict) else value for field, value in self.parameters.items()
        }

    @property
    def searched(self) -> dict[str, Range]:
        """The parameters that have a range."""
        return {field: value for field, value in self.settings.items() if isinstance(value, Range)}

    @property
    def size(self) -> float:
        """How many different configurations there are."""
        return math.prod(value_range.size for value_range in self.searched.values())

    @property
    def config(self) -> type[ModelConfig]:
        """The class of the model's configs."""
        return open_model(self.model).config

    @property
    def needs(self) -> Any:
        """The needs of its trials, as the model's family says it; spaces of equal needs share a dataset."""
        model = open_model(self.model)
        return open_family(model.family).needs(model, self.parameters)

    @property
    def trains(self) -> bool:
        """Whether anything but the baseline is fitted."""
        return open_model(self.model).trains(self.parameters)

    def for_task(self, kind: Kind, quantity: Quantity) -> SearchSpace:
        """The space as it is for a task of some kind: a classification has one loss, which is not searched.

        Raises:
            SpaceError: a trial that could not be trained on such a task.
        """
        space = self
        if kind == "regression":
            if "cross_entropy" in str(self.parameters.get("loss")):
                raise SpaceError(
                    f"space {self.name}: cross_entropy is the loss of a classification, this is a regression"
                )
        elif "loss" in self.config.model_fields:
            space = self.model_copy(update={"parameters": {**self.parameters, "loss": "cross_entropy"}})
        unsuited = open_model(self.model).unsuited
        for fields in combinations(space):
            try:
                problem = unsuited(space.config(**fields), kind, quantity)
            except ValidationError as refusal:
                problem = refusal.errors()[0]["msg"].removeprefix("Value error, ")
            if problem:
                raise SpaceError(f"space {self.name} does not go with this {kind}: {problem}")
        return space

    def default(self, field: str, without: Any) -> Any:
        """The value or range of a field, else its default; `without` where the model has no such field."""
        info = self.config.model_fields.get(field)
        return self.settings.get(field, info.default if info else without)

    def most(self, field: str) -> Any:
        """The largest value a numeric field can take; 1 where the model has none, as one fit is one epoch."""
        return max(values_of(self.default(field, 1)))

    def ray_space(self) -> dict[str, Any]:
        """The parameters as Ray Tune takes them: fixed values, and domains for what is searched."""
        return {**self.parameters, **{field: value_range.for_ray() for field, value_range in self.searched.items()}}

    def distributions(self) -> dict[str, BaseDistribution]:
        """The distribution of every field that is searched, as Optuna takes it."""
        return {field: value_range.for_optuna() for field, value_range in self.searched.items()}


_KEYS = [key for key in SearchSpace.model_fields if key != "name"]  # of a space's file


def load_space(name: str, folder: Path = SPACES_FOLDER) -> SearchSpace:
    """Read and check a search space.

    Args:
        name: of a file in `search_spaces/` without its ending, or a path to a YAML file.
        folder: where names are looked up.

    Raises:
        SpaceError: no such space, a typo, or an impossible range.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    content, root = _parsed_space(name, path, folder)
    lines = lines_of(root)

    def refuse(key: tuple[Any, ...], message: str) -> SpaceError:
        return SpaceError(f"{path}, line {lines.get(tuple(map(str, key)), 1)}: {message}")

    for key in content:
        if key not in _KEYS:
            raise refuse((key,), f"unknown key {key!r}{_suggestion(key, _KEYS)}")
    try:
        content["model"] = model_file(content.get("model", DEFAULT_MODEL), path)
        config = open_model(content["model"]).config
    except ModelError as problem:
        raise refuse(("model",), str(problem)) from None
    fields = ", ".join(field for field in config.model_fields if field != "seed")
    if not isinstance(content.get("parameters"), dict):
        raise refuse(("parameters",), f"`parameters` must map fields to values or ranges: {fields}")
    for field, value in content["parameters"].items():
        if complaint := field_problem(config, field, value):
            raise refuse(("parameters", field), complaint)
    try:
        space = SearchSpace(name=path.stem, **content)
    except ValidationError as problem:
        error = problem.errors()[0]
        raise refuse(error["loc"], f"{error['loc'][0]}: {error['msg']}, got {error['input']!r}") from None
    _check_together(space, refuse)
    return space


def _parsed_space(name: str, path: Path, folder: Path) -> tuple[dict[str, Any], yaml.Node | None]:
    """Read the YAML of a search space: its mapping, and its tree, which knows the lines.

    Raises:
        SpaceError: no such file, no YAML, no mapping, a queue, or a key that is there twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        files = sorted(folder.glob("*.yaml"))  # among them queues
        names = [file.stem for file in files if "\nexperiments:" not in file.read_text(encoding="utf-8")]
        raise SpaceError(f"no search space {name!r}: choose one of {', '.join(names)}, or give a YAML file") from None
    except UnicodeDecodeError as problem:
        raise SpaceError(f"{path}: not text: {problem}") from None
    try:
        content, root = parsed(text)
        duplicate = repeated_key(root)
    except yaml.YAMLError as problem:
        raise SpaceError(f"{path}: not YAML: {problem}") from None
    if not isinstance(content, dict):
        raise SpaceError(f"{path}, line 1: expected a mapping with the keys {', '.join(_KEYS)}")
    if "experiments" in content:
        raise SpaceError(f"{path} is a queue of experiments: run it with python tune/run_queue.py --queue {name}")
    if duplicate:
        raise SpaceError(f"{path}, line {duplicate.start_mark.line + 1}: {duplicate.value!r} is there twice")
    return content, root


def model_file(name: object, space_file: Path) -> str:
    """A file of one's own is looked for beside the space, then here; made absolute, for workers run elsewhere."""
    if not isinstance(name, str) or not name.endswith(".py"):
        return str(name)
    beside = space_file.parent / expanded(name)
    return str((beside if beside.exists() else expanded(name)).resolve())


def field_problem(config: type[ModelConfig], field: str, value: object) -> str | None:
    """A sentence that says what is wrong with one entry of `parameters`, or None."""
    fields = [name for name in config.model_fields if name != "seed"]
    if field not in fields:
        hint = _NOT_SEARCHED.get(field)
        return f"{field!r}: {hint}" if hint else f"unknown field {field!r}{_suggestion(field, fields)}"
    if not isinstance(value, dict):
        return _value_problem(config, field, value)
    if field in _NOT_SEARCHED:
        return f"{field!r} cannot be searched: {_NOT_SEARCHED[field]}"
    if len(value) != 1 or next(iter(value)) not in KINDS:
        return f"{field}: expected a value or one range of {', '.join(KINDS)}, got {value!r}"
    ((kind, bounds),) = value.items()
    if not isinstance(bounds, list) or not bounds:
        return f"{field}: {kind} takes a list, got {bounds!r}"
    for bound in bounds:
        if problem := _value_problem(config, field, bound):
            return problem
    complaint = range_problem(value, whole_numbers=config.model_fields[field].annotation is int)
    return f"{field}: {complaint}" if complaint else None


def _value_problem(config: type[ModelConfig], field: str, value: object) -> str | None:
    """A sentence that says what is wrong with one value of a field, or None."""
    info = config.model_fields[field]
    if isinstance(value, bool) and bool not in (
        info.annotation,
        *get_args(info.annotation),
    ):  # pydantic would take it for 0 or 1
        return f"{field}: {value!r} is neither a number nor a word"
    if isinstance(value, str) and info.annotation in (int, float):
        return f"{field}: {value!r} is text, expected a number (YAML reads 1e-3 as text; write 1.0e-3)"
    try:
        annotation: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
        TypeAdapter(annotation).validate_python(value)
    except ValidationError as problem:
        return f"{field}: {problem.errors()[0]['msg']}, got {value!r}"
    return None


def _check_together(space: SearchSpace, refuse: Any) -> None:
    """Combinations that no single field shows: every trial must be one that the config accepts."""
    if mistake := open_model(space.model).mistake(space.parameters):
        field, message = mistake
        raise refuse(("parameters", field), message)
    if space.trains and "epochs" in space.config.model_fields:
        least = min(values_of(space.default("epochs", 1)))
        if least < 1:
            raise refuse(("parameters", "epochs"), f"epochs can be {least}, which trains nothing")
        if space.searched and space.grace_epochs > space.most("epochs"):
            raise refuse(
                ("grace_epochs",),
                f"grace_epochs {space.grace_epochs} exceeds the largest epochs, {space.most('epochs')}",
            )
    for fields in combinations(space):
        for kind_of_loss in (fields, {**fields, "loss": "cross_entropy"}):  # a space may be for classifications alone
            try:
                space.config(**kind_of_loss)
                break
            except ValidationError as problem:
                complaint = problem.errors()[0]["msg"].removeprefix("Value error, ")
        else:
            fields_in_message = [field for field in space.parameters if field in complaint]
            raise refuse(("parameters", *fields_in_message[:1]), f"{complaint} (a trial could have {_as_text(fields)})")


def combinations(space: SearchSpace) -> list[dict[str, Any]]:
    """Configs at the ends of the ranges and with every choice: all of them, or some at random where there are many."""
    values = {field: values_of(value) for field, value in space.settings.items()}
    if math.prod(map(len, values.values())) <= _MOST_COMBINATIONS:
        rows = list(itertools.product(*values.values()))
    else:
        draw = random.Random(0)
        rows = [tuple(draw.choice(field_values) for field_values in values.values()) for _ in range(_MOST_COMBINATIONS)]
    return [dict(zip(values, combination, strict=True)) for combination in rows]


def _as_text(fields: dict[str, Any]) -> str:
    """Fields with their values, for a message."""
    return ", ".join(f"{field} {value}" for field, value in fields.items())


def _suggestion(word: str, candidates: list[str]) -> str:
    near = difflib.get_close_matches(str(word), candidates, n=1)
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{guess}; allowed: {', '.join(candidates)}"
