"""Proof that levers are on: tiny runs before a sweep spends anything, and a look at its trials afterwards.

A field of a config that no code reads, or whose values give the same predictions, is a placeholder: results "with"
it are results without it. So each field that a space sets is tried on a few rows, and a sweep with one that does
nothing is refused.
"""

from __future__ import annotations

import ast
import inspect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray
from pydantic import ValidationError

from models.config import ModelConfig
from models.model import Model, TrainingRows, fingerprint
from models.registry import open_family, open_model, planned_epochs
from tune.dataset.dataset import Dataset
from tune.dataset.trial_fold import TrialFold
from tune.errors import SweepError
from tune.spaces.merged import differing_base, trains_the_same
from tune.spaces.ranges import Range
from tune.spaces.space import SearchSpace, combinations
from tune.sweep.tries import ALIKE, ONE_LABEL, ONLY_ELSEWHERE, InertError, LeverCheck, Tries, value_of
from tune.trials.search import Outcome

FEW = 64  # training rows below which it may be for them that a lever shows nothing
NOT_COMPARED = ("weights",)  # one value a sweep: other graphs and features belong to another

Pair = tuple[str, dict[str, Any], dict[str, Any]]  # what is tried, and fields of two configs that differ in it alone


def lever_pairs(space: SearchSpace, seeds: int) -> list[Pair]:
    """The pairs of configs that show the levers of a space: every field that it searches or sets off the default.

    Args:
        space: to be swept.
        seeds: how many the chosen config will be trained with; with several the seed is a lever too.
    """
    model = open_model(space.model)
    base = combinations(space)[0]
    pairs: list[Pair] = []
    for field, value in space.settings.items():
        if isinstance(value, Range):
            first, *later_values = value.bounds
            pairs += [(field, {**base, field: first}, {**base, field: other}) for other in later_values]
        elif value == "cross_entropy":  # the one loss that a classification has
            continue
        elif field not in NOT_COMPARED and value != (default := model.config.model_fields[field].default):
            # Twice as many epochs show that field as well as the default does, and sooner.
            other = min(default, 2 * value) if field == "epochs" and value else default
            if (without := _put_back(model.config, base, field, other)) is not None:
                pairs.append((field, without, base))
    if seeds > 1:
        pairs.append(("seed", {**base, "seed": 0}, {**base, "seed": 1}))
    return pairs


def change_pairs(space: SearchSpace, base: SearchSpace, change: Iterable[str]) -> list[Pair]:
    """The pairs of configs that show an experiment's levers: each field that it changes, in the baseline and in it.

    Args:
        space: of the experiment, without a range.
        base: of the baseline, of the same model.
        change: fields that differ.
    """
    config = open_model(space.model).config
    pairs: list[Pair] = []
    for field in change:
        before = base.parameters.get(field, config.model_fields[field].default)
        if field not in NOT_COMPARED and (without := _put_back(config, space.parameters, field, before)) is not None:
            pairs.append((field, without, space.parameters))
    return pairs


def not_shown(pairs: Sequence[Pair], checks: Sequence[LeverCheck], model: str) -> list[Pair]:
    """The pairs whose two values of their lever no earlier check has compared."""
    fields = open_model(model).config.model_fields
    proven_pairs = [(check.lever, check.values) for check in checks]
    return [
        pair
        for pair in pairs
        if (pair[0], [value_of(config, pair[0], fields) for config in pair[1:]]) not in proven_pairs
    ]


def check_levers(dataset: Dataset, space: SearchSpace, fold: int, pairs: Sequence[Pair]) -> list[LeverCheck]:
    """Run both configs of each pair on a few rows.

    Args:
        dataset: of the task.
        space: to be swept; the pairs are of its model.
        fold: whose training rows are used.
        pairs: to try.

    Raises:
        SweepError: a field of the space, or of the model's own config, that no code reads; a pair without a
            difference; or predictions that are not one finite number a row.
    """
    if not space.trains:
        return []
    model = open_model(space.model)
    part: TrialFold = ray.get(dataset.trial_folds[fold])
    rows: TrainingRows = ray.get(dataset.rows_ref)
    tries = Tries(model, rows, part.part(dataset.task))
    checks = [_checked(tries, space, *pair) for pair in pairs]
    if all(isinstance(check.difference, str) for check in checks):  # what it reads is to be seen all the same
        tries.run(combinations(space)[0])
    if unread := sorted(set(space.parameters) - tries.read):
        raise SweepError(
            f"space {space.name}: no code of model {model.name} reads {', '.join(unread)}, so that setting it would "
            "change nothing"
        )
    if unread := read_nowhere(model, tries.read):
        raise SweepError(
            f"model {model.name}: no code reads {', '.join(unread)} of its {model.config.__name__}, so that setting it "
            "would change nothing: use it, or take it out"
        )
    return checks


def _checked(tries: Tries, space: SearchSpace, lever: str, first: dict[str, Any], second: dict[str, Any]) -> LeverCheck:
    """Tries a lever on these rows, beside other values of the other fields if need be; else on the family's own."""
    fields, n_train = tries.model.config.model_fields, len(tries.part.train)
    values = [value_of(config, lever, fields) for config in (first, second)]
    if np.ptp(tries.part.targets[tries.part.train]) == 0:
        return LeverCheck(lever, values, ONE_LABEL, n_train)
    if trains_the_same(space.model, first, second, n_train):
        base = differing_base(space, lever, values, n_train)
        if base is None:
            return LeverCheck(lever, values, ALIKE, n_train)
        first, second = ({**base, lever: value} for value in values)
    try:
        return tries.compare(lever, first, second)
    except InertError:
        family = open_family(tries.model.family)
        small = family.small_task(space.needs, tries.part.kind, tries.part.quantity) if n_train < FEW else None
        if small is None:
            raise
    elsewhere = Tries(tries.model, *small)
    try:
        elsewhere.compare(lever, first, second)
    finally:
        tries.read |= elsewhere.read
    return LeverCheck(lever, values, ONLY_ELSEWHERE, n_train)


def read_nowhere(model: Model, read_fields: set[str]) -> list[str]:
    """Fields that a model's own config declares and no code reads; those of the project's base classes are not its own.

    A try may not meet what is read on some condition only, so the source of the model must not name it either: as an
    attribute, or as a text.

    Args:
        model: whose config it is.
        read_fields: fields that tries have read.
    """
    kinds = [kind for kind in model.config.__mro__ if issubclass(kind, ModelConfig)]
    ours = [kind for kind in kinds[1:] if kind.__module__.startswith("models.")]
    inherited_fields = {field for kind in ours for field in kind.model_fields}
    files = set()
    for source in (*(kind for kind in kinds if kind not in ours), inspect.unwrap(model.start), model.load):
        with suppress(TypeError, OSError):  # a partial function, say, has no source of its own
            files.add(inspect.getsourcefile(source))
    named_fields = {name for file in files if file for name in _names(Path(file))}
    return [field for field in model.config.model_fields if field not in read_fields | inherited_fields | named_fields]


def inert_pairs(outcomes: Sequence[Outcome], n_train: int) -> list[dict[str, Any]]:
    """Trials of one fold with different configs and identical predictions: what they differ in did nothing.

    Those whose configs are the same on so many training rows are left out: on more rows they would differ.

    Only trials that ran all their epochs are compared: had one that was stopped early gone on, averaged weights might
    have begun, or the learning rate fallen. Every epoch must be the same, and the model that is kept. Which epoch that
    is `keep` decides; where the best one is the last it has done so all the same, and is no lever that did nothing.
    """
    alike: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in outcomes:
        n_epochs = planned_epochs({"model": outcome.model, **outcome.config})
        if outcome.error is None and outcome.history and outcome.history[-1]["epoch"] >= n_epochs:
            fingerprints = (*(epoch["fingerprint"] for epoch in outcome.history), fingerprint(outcome.val_predictions))
            alike.setdefault(fingerprints, []).append(outcome)
    entries = []
    for first, second in itertools.chain(*(itertools.combinations(group, 2) for group in alike.values())):
        differences = {k for k in {*first.config, *second.config} if first.config.get(k) != second.config.get(k)}
        same = trains_the_same(first.model, first.config, second.config, n_train)
        if (levers := sorted(differences - {"keep"})) and not same:
            entries.append({"fold": first.fold, "trials": [first.trial_id, second.trial_id], "levers": levers})
    return entries


def _names(file: Path) -> Iterator[str]:
    """Every attribute and every text in the source of a file."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _put_back(config: type[ModelConfig], fields: dict[str, Any], field: str, value: Any) -> dict[str, Any] | None:
    """Fields with another value of one, and without what goes only with its old value; None where no config is so."""
    useless = {
        name for name, (condition, values) in config.only_with.items() if condition == field and value not in values
    }
    rest = {**{key: field_value for key, field_value in fields.items() if key not in useless}, field: value}
    try:
        config(**rest)
    except ValidationError:
        return None
    return rest
