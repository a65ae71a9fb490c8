"""Ray Tune runs: a search on one fold's validation split, and chosen configs trained on every fold."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.tune
import torch
from pyarrow import fs

from data.machine.console import say
from data.metrics import metric_of
from tune.arguments import Copies, Untrusted
from tune.dataset.dataset import Dataset
from tune.dataset.trial_fold import TrialFold
from tune.records.options import Batch
from tune.spaces.merged import as_offered
from tune.spaces.space import SearchSpace
from tune.trials.experiment import run_experiment, run_until_read, trial_id
from tune.trials.preemption import heeding, read_state
from tune.trials.resources import Resources
from tune.trials.scheduler import ResumableASHA, ToTheEnd, kept_values
from tune.trials.searcher import DistinctOptuna, Generator, Listed
from tune.trials.terminal import Terminal
from tune.trials.tracking import Tracking
from tune.trials.trial import STATE_FILE, TrialTask, kept_metric, run_trial, saved_state


@dataclass(frozen=True, eq=False)
class Outcome:
    """How one trial ended.

    Attributes:
        trial_id: Ray's.
        fold: whose validation split it was judged on.
        model: that was trained.
        config: fields of the model's config.
        history: one dict an epoch, fields of `EpochResult`.
        kept_metric: of the best epoch, on validation; None if no epoch ended.
        kept_epoch: 0 is the model before training.
        trained_parameters: what the config lets train: names and how many values each has.
        val_predictions: of the kept epoch, float64, shape (n_val,).
        tta: what test-time augmentation did (see `Family.judge_copies`), where it was asked for.
        device: what it trained on.
        error: why it failed, or None.
        folder: filesystem and path of its newest checkpoint, or None.
    """

    trial_id: str
    fold: int
    model: str
    config: dict[str, Any]
    history: list[dict[str, Any]]
    kept_metric: float | None
    kept_epoch: int
    trained_parameters: dict[str, int]
    val_predictions: np.ndarray
    tta: dict[str, Any] | None
    device: str
    error: str | None
    folder: tuple[fs.FileSystem, str] | None


def search_fold(
    dataset: Dataset,
    batches: Sequence[Batch],
    fold: int,
    *,
    seed: int,
    resources: Resources,
    folder: str,
    watch: Sequence[ray.tune.Callback] = (),
) -> list[Outcome]:
    """Search on one fold, batch after batch; the best trial comes first, failed ones last.

    ASHA and Optuna see the best validation metric so far, and nothing of the test part.

    Args:
        dataset: the task.
        batches: of trials; their spaces have at least one range, and each holds the one before.
        fold: whose training and validation parts are used.
        seed: of Optuna's sampler, and of every trial.
        resources: of a trial.
        folder: path or URI for Ray's record of the search; continued if it holds one.
        watch: callbacks beside the usual ones.
    """
    outcomes: list[Outcome] = []
    n_train = len(dataset.splits[fold].train)
    for number, batch in enumerate(batches):
        if batch.num_samples:
            outcomes = [_within(batch.space, outcome, n_train) for outcome in outcomes]
            outcomes += _search(dataset, batches, number, fold, outcomes, seed, resources, folder, watch)
            continue
        failures = [outcome for outcome in outcomes if outcome.error is not None]
        if not failures:  # in this one of several searches
            continue
        repetitions = train_chosen(
            dataset,
            [(fold, {"model": outcome.model, **outcome.config}) for outcome in failures],
            resources=resources,
            folder=f"{folder}-more-{number}",
            title=f"failed trials of fold {fold}",
            predict_test=False,
            watch=watch,
        )
        outcomes = [outcome for outcome in outcomes if outcome.error is None] + repetitions
    sign = 1 if metric_of(dataset.task).mode == "min" else -1
    return sorted(outcomes, key=lambda o: (o.kept_metric is None, o.error is not None, sign * (o.kept_metric or 0)))


def _within(space: SearchSpace, outcome: Outcome, n_train: int) -> Outcome:
    """An earlier trial as one of a wider space: what was not set then, and is searched now, had its default."""
    defaults = {field: space.config.model_fields[field].default for field in space.searched}
    return replace(outcome, config=as_offered(space, {**defaults, **outcome.config}, n_train))


def _search(
    dataset: Dataset,
    batches: Sequence[Batch],
    number: int,
    fold: int,
    earlier: list[Outcome],
    seed: int,
    resources: Resources,
    folder: str,
    watch: Sequence[ray.tune.Callback],
) -> list[Outcome]:
    """One batch of a search, in any order; ASHA's rungs are those of the whole search."""
    batch, own_folder = batches[number], f"{folder}-more-{number}" if number else folder
    metric, space = metric_of(dataset.task), batch.space
    points = [({field: outcome.config[field] for field in space.searched}, outcome.kept_metric) for outcome in earlier]
    trainable = _trainable(dataset, {fold: dataset.trial_folds[fold]}, resources, own_folder, predict_test=False)
    tune_config = ray.tune.TuneConfig(
        metric=f"kept_val_{metric.name}",
        mode=metric.mode,
        num_samples=batch.num_samples,
        search_alg=Generator(DistinctOptuna(seed + number, batch.num_samples, resources.max_concurrent, points)),
        scheduler=ResumableASHA(
            {outcome.trial_id: kept_values(outcome.config, outcome.history, metric.mode) for outcome in earlier},
            time_attr="epoch",
            max_t=space.most("epochs"),
            grace_period=min(space.grace_epochs, space.most("epochs")),  # a fit at once is one epoch
            reduction_factor=space.reduction_factor,
        ),
        reuse_actors=True,
        trial_dirname_creator=lambda trial: f"trial_{trial.trial_id}",
    )
    _allow_pending(batch.num_samples, resources)
    title = f"search fold {fold}"
    experiment = partial(
        run_experiment,
        trainable,
        {**space.ray_space(), "model": space.model, "fold": fold, "seed": seed},
        tune_config,
        own_folder,
        title,
        [
            Tracking(metric, own_folder, validation_targets(dataset), space),
            Terminal(title, batch.num_samples, metric, own_folder),
            *watch,
        ],
        retry=number == len(batches) - 1,
    )
    outcomes = run_until_read(experiment, _outcome, title)
    if len(outcomes) < batch.num_samples:
        say(f"  {title}: all {space.size} configurations of the space were tried")
    return outcomes


def _allow_pending(trials: int, resources: Resources) -> None:
    """Let as many trials wait as may run at once.

    Left alone, Ray starts one process at a time for a searcher's trials, and gives it up as soon as an earlier trial
    ends: where trials are shorter than a start, they would run one after the other. And an autoscaler starts nodes for
    what is pending: one after the other for one trial at a time.
    """
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(1, min(trials, resources.most_slots())))


def train_chosen(
    dataset: Dataset,
    chosen: Sequence[tuple[int, dict[str, Any]]],
    *,
    resources: Resources,
    folder: str,
    copies: Copies | None = None,
    untrusted: Untrusted = "keep",
    title: str = "training the chosen",
    predict_test: bool = True,
    watch: Sequence[ray.tune.Callback] = (),
) -> list[Outcome]:
    """Train configs on their folds to the end and, unless told otherwise, predict the test parts.

    Args:
        dataset: the task.
        chosen: (fold, `model` and the fields of its config) pairs.
        resources: of a trial.
        folder: path or URI for Ray's record, to which a hash of what is chosen is added: a record of another
            choice is never continued.
        copies: of each crystal to average over at test time.
        untrusted: what is predicted where a prediction is not trusted.
        title: for the terminal.
        predict_test: whether to.
        watch: callbacks beside the usual ones.

    Returns:
        One outcome a pair, in the same order.
    """
    metric = metric_of(dataset.task)
    runs = [{"fold": fold, **config} for fold, config in chosen]
    plan = hashlib.sha256(json.dumps([runs, asdict(copies) if copies else 0], sort_keys=True).encode()).hexdigest()[:8]
    folder = f"{folder}-{plan}"
    tune_config = ray.tune.TuneConfig(
        metric=f"kept_val_{metric.name}",
        mode=metric.mode,
        search_alg=Generator(Listed(runs, resources.max_concurrent)),
        scheduler=ToTheEnd(),
        reuse_actors=True,
        trial_dirname_creator=lambda trial: f"trial_{trial.trial_id}",
    )
    _allow_pending(len(runs), resources)
    experiment = partial(
        run_experiment,
        _trainable(
            dataset,
            dataset.trial_folds,
            resources,
            folder,
            predict_test=predict_test,
            copies=copies,
            untrusted=untrusted,
        ),
        {},
        tune_config,
        folder,
        title,
        [Tracking(metric, folder, validation_targets(dataset)), Terminal(title, len(runs), metric, folder), *watch],
    )
    by_run = {
        json.dumps({"fold": outcome.fold, "model": outcome.model, **outcome.config}, sort_keys=True): outcome
        for outcome in run_until_read(experiment, _outcome, title)
    }
    return [by_run[json.dumps(run, sort_keys=True)] for run in runs]


def validation_targets(dataset: Dataset) -> dict[int, np.ndarray]:
    """The targets of every fold's validation rows, as its trials see them and in their order."""
    folds: dict[int, TrialFold] = {fold: ray.get(part) for fold, part in dataset.trial_folds.items()}
    return {fold: part.targets[part.val] for fold, part in folds.items()}


def _trainable(
    dataset: Dataset,
    folds: dict[int, ray.ObjectRef],
    resources: Resources,
    folder: str,
    *,
    predict_test: bool,
    copies: Copies | None = None,
    untrusted: Untrusted = "keep",
) -> Any:
    task = TrialTask(
        task=dataset.task,
        about={
            "task": dataset.task.name,
            "target": dataset.task.target,
            "unit": dataset.task.unit,
            "quantity": dataset.task.quantity,
            "labels": dataset.task.labels,
        },
        gpus_per_trial=resources.gpus_per_trial,
        cpus_per_trial=resources.cpus_per_trial,
        folder=folder,
        copies=copies,
        untrusted=untrusted,
    )
    with_data = ray.tune.with_parameters(
        run_trial, rows=dataset.rows_ref, folds=folds, task=task, predict_test=predict_test
    )
    return ray.tune.with_resources(
        heeding(with_data), {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}
    )


def _outcome(result: ray.tune.Result, config: dict[str, Any]) -> Outcome | None:
    """How a trial has ended; None for one that did not fail and whose last checkpoint is gone or damaged."""
    state: dict[str, Any] = {"history": [], "kept_epoch": -1, "trained_parameters": {}, "device": "none"}
    state["val_predictions"] = torch.empty(0)
    folder = None
    if result.checkpoint:
        folder = result.checkpoint.filesystem, result.checkpoint.path
        newest_state = read_state(folder[0], f"{folder[1]}/{STATE_FILE}")
        if newest_state is None and result.error is None:
            return None
        state = newest_state or saved_state(result.checkpoint) or state
    return Outcome(
        trial_id=trial_id(result),
        fold=config["fold"],
        model=config["model"],
        config={field: value for field, value in config.items() if field not in ("fold", "model")},
        history=state["history"],
        kept_metric=kept_metric(state),
        kept_epoch=state["kept_epoch"],
        trained_parameters=state["trained_parameters"],
        val_predictions=state["val_predictions"].numpy(),
        tta=state.get("tta"),
        device=state["device"],
        error=state.get("failed") or _reason(result.error),
        folder=folder,
    )


def _reason(error: Exception | None) -> str | None:
    """The last line of a remote traceback: the exception itself."""
    if error is None:
        return None
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
