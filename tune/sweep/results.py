"""What a sweep leaves: results.json, and per fold histories, predictions and models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray

from data.metrics import metric_of, over_folds
from data.task import Task
from data.task_words import several
from models.registry import open_family, open_model, planned_epochs
from tune.analysis.trusted import trust_facts
from tune.dataset.dataset import VALIDATION_FRACTION, Dataset, one_group_note
from tune.records.code_record import run_record
from tune.records.folder import Folder
from tune.records.options import Options
from tune.spaces.space import SearchSpace
from tune.sweep.evaluate import FoldScore, ensemble, model_file, score_fold
from tune.sweep.levers import inert_pairs
from tune.sweep.result_notes import one_class_notes, row_notes, same_seeds_notes, target_note, untrained_notes
from tune.sweep.tries import LeverCheck
from tune.trials.search import Outcome


def collect(
    options: Options,
    space: SearchSpace,
    dataset: Dataset,
    folder: Folder,
    searches: dict[int, list[Outcome]],
    configs: dict[int, dict[str, Any]],
    final_outcomes: list[Outcome],
    levers: list[LeverCheck],
) -> dict[str, Any]:
    """Score what was trained, write its files, and gather the results."""
    task, metric = dataset.task, metric_of(dataset.task)
    scores = [score_fold(dataset, outcome) for outcome in final_outcomes]
    n = len(options.folds)
    references = scores[:n]
    write_evaluation(folder, "reference", final_outcomes[:n], references, task)
    by_seed = [scores[position : position + n] for position in range(n, len(final_outcomes), n)]
    seed_entries = [
        _seed_entry(folder, final_outcomes[n * k : n * (k + 1)], part, task) for k, part in enumerate(by_seed, start=1)
    ]
    model, family = open_model(space.model), open_family(task.family)
    reference_title = family.baseline_title(final_outcomes[0].model, final_outcomes[0].config, task.quantity)
    overlap = family.pretraining_note(model, space.parameters) if task.pretraining_overlap else ""
    n_train = {fold: len(split.train) for fold, split in dataset.splits.items()}
    inert = [pair for fold, outcomes in searches.items() for pair in inert_pairs(outcomes, n_train[fold])]
    results: dict[str, Any] = {
        "sweep": options.name,
        "options": {
            **options.model_dump(exclude_none=True),
            "space": space.model_dump(exclude_none=True),  # as it was searched: a classification fixes the loss
            "searched": sorted(space.searched),
        },
        "record": {**run_record(space.model), "devices": sorted({outcome.device for outcome in final_outcomes})},
        "task": {key: value for key, value in vars(task).items() if value is not None and value != ()},
        "data": _data_facts(dataset, references),
        "notes": _notes(dataset, space, overlap, final_outcomes[n:], references),
        "flags": _flags(options, dataset, space, overlap, inert),
        "protocol": protocol(options, space, task),
        "metric": metric.name,
        **({"scales": {score.fold: score.metric.scale for score in references}} if metric.scaled else {}),
        "model": model_facts(space.model),
        "by_chance": space.trains and _by_chance(dataset, space, configs),
        "reference": {"title": reference_title, **summary(references, task)},
        "seeds": seed_entries,
        "chosen": [{"fold": fold, "config": {**config, "seed": options.seed}} for fold, config in configs.items()],
        "trials": write_trials(folder, searches, metric.name),
        "cost": cost(options, [*(trial for outcomes in searches.values() for trial in outcomes), *final_outcomes]),
        "levers": [asdict(check) for check in levers],
        "inert": inert,
    }
    if len(by_seed) > 1:
        members = [ensemble([part[k] for part in by_seed]) for k in range(n)]
        for member in members:
            write_predictions(folder, "ensemble", member, task)
        results["ensemble"] = summary(members, task)
        results["seed_std"] = float(np.std([entry["mean"][metric.name] for entry in seed_entries], ddof=1))
        results["notes"] += same_seeds_notes(members)
    return results


def _is_subset(dataset: Dataset) -> bool:
    """Whether the rows are fewer than those of the official task of that name."""
    return dataset.task.n_official is not None and len(dataset.ids) < dataset.task.n_official


def _data_facts(dataset: Dataset, references: Sequence[FoldScore]) -> dict[str, Any]:
    """How many rows there are, and how many of them take part in what; `references` are the baseline's scores."""
    n_rows = len(dataset.ids)
    return {
        "description": f"subset, n={n_rows} of {dataset.task.n_official}" if _is_subset(dataset) else f"n={n_rows}",
        "n_rows": n_rows,
        "n_quarantined": len(dataset.quarantine),
        "n_noted": len(dataset.notes),
        "n_fallback": sum(score.n_fallback for score in references),
        "n_scored": len({row_id for score in references for row_id in score.test.ids}),
        **dataset.facts,
        "sha256": dataset.data_sha256,
        "graph_cache_key": dataset.cache_key,
    }


def _flags(options: Options, dataset: Dataset, space: SearchSpace, overlap: str, inert: Sequence[Any]) -> list[str]:
    """Short words for what sets these results apart from those of an official, nested sweep.

    Args:
        options: of the sweep.
        dataset: its rows.
        space: as it was searched.
        overlap: what the pretraining has seen of the rows; "" for nothing.
        inert: levers that made no difference in the search.
    """
    conditions = {
        "subset": _is_subset(dataset),
        dataset.split_rule: bool(dataset.split_note),
        **dict.fromkeys(dataset.task.flags, True),
        "pretraining overlap": bool(overlap),
        "search saw other folds": bool(space.searched) and not set(options.folds) <= set(options.search_folds),
        "inert": bool(inert),
        "baseline where not trusted": options.untrusted == "baseline",
    }
    return [flag for flag, is_raised in conditions.items() if is_raised]


def _notes(
    dataset: Dataset,
    space: SearchSpace,
    overlap: str,
    outcomes: Sequence[Outcome],
    references: Sequence[FoldScore],
) -> list[str]:
    """Sentences that a reader of the results must know.

    Args:
        dataset: the rows.
        space: as it was searched.
        overlap: what the pretraining has seen of the rows; "" for nothing.
        outcomes: of the final trainings, without the baseline's.
        references: the baseline's scores by fold.
    """
    task = dataset.task
    return [
        *(note for note in (task.labels, target_note(task, space), task.notes, dataset.split_note) if note),
        *([one_group_note(task)] if any(split.by_row for split in dataset.splits.values()) else []),
        *([overlap] if overlap else []),
        *row_notes(dataset, sum(score.n_fallback for score in references)),
        *untrained_notes(outcomes),
        *(one_class_notes(references) if task.metric == "rocauc" else []),
    ]


def _seed_entry(folder: Folder, outcomes: list[Outcome], scores: list[FoldScore], task: Task) -> dict[str, Any]:
    """Write what one seed has left on every fold; its scores, and how it was trained."""
    seed, metric = outcomes[0].config["seed"], metric_of(task)
    write_evaluation(folder, f"seed_{seed}", outcomes, scores, task)
    training = [
        {
            "fold": outcome.fold,
            "kept_epoch": outcome.kept_epoch,
            f"kept_val_{metric.name}": outcome.kept_metric,
            "trained_parameters": outcome.trained_parameters,
            "n_trained": sum(outcome.trained_parameters.values()),
            **({"tta": outcome.tta} if outcome.tta else {}),
        }
        for outcome in outcomes
    ]
    return {"seed": seed, **summary(scores, task), "training": training}


def _by_chance(dataset: Dataset, space: SearchSpace, configs: dict[int, dict[str, Any]]) -> bool:
    """Whether the seed has a part in what was trained on any fold."""
    model, rows = open_model(space.model), ray.get(dataset.rows_ref)
    return any(
        model.by_chance(space.config(**config), rows, ray.get(dataset.trial_folds[fold]).train)
        for fold, config in configs.items()
    )


def cost(options: Options, outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The cost of all trainings together: how many, their epochs, and hours of the cores and GPUs they held."""
    hours = sum(_seconds(outcome) for outcome in outcomes) / 3600
    return {
        "trainings": len(outcomes),
        "epochs": sum(outcome.history[-1]["epoch"] for outcome in outcomes if outcome.history),
        "cpu_hours": hours * options.cpus_per_trial,
        "gpu_hours": hours * options.gpus_per_trial,
    }


def _seconds(outcome: Outcome) -> float:
    return sum(epoch["seconds"] for epoch in outcome.history)


def model_facts(name: str) -> dict[str, str]:
    """Which model a sweep trained; of a file of the user's own the hash, so that a changed one is seen."""
    if not name.endswith(".py"):
        title = open_model(name).title
        return {"name": name, **({"title": title} if title else {})}
    return {"name": Path(name).name, "file": name, "sha256": hashlib.sha256(Path(name).read_bytes()).hexdigest()}


def protocol(options: Options, space: SearchSpace, task: Task) -> str:
    """How configurations were chosen, in a sentence for everyone who reads the results."""
    use = "the search uses it alone" if space.searched else "no choice is made by it"
    if "epochs" in space.config.model_fields:
        use = "best epoch and early stopping use it alone"
    split = (
        f"validation is {VALIDATION_FRACTION:.0%} of the fold's training part, grouped by {task.groups} "
        f"(seed {options.seed}); {use}; the test part is predicted once"
    )
    if options.untrusted == "baseline":
        split += (
            "; predictions whose trust is below 0.5, by a rule that has seen no test label "
            f"(models/{task.family}/trust.py), are the baseline's"
        )
    if not space.searched:
        return f"no search, the space fixes every parameter; {split}."
    if options.max_concurrent != 1:
        split += (
            "; trials ran side by side, so that a repeated search may choose otherwise (--max-concurrent 1 repeats it "
            "exactly), while a training gives the same predictions again"
        )
    if set(options.folds) <= set(options.search_folds):
        return f"nested: one search per fold on that fold's own validation split; {split}."
    other_folds = sorted(set(options.folds) - set(options.search_folds))
    return (
        f"searched on fold(s) {options.search_folds}; fold(s) {other_folds} use the configuration found on fold "
        f"{options.search_folds[0]}, whose training part holds {several(task.example)} of their test parts, so that "
        "the choice of hyper-parameters, and nothing else, has seen those labels (--search-folds all avoids this); "
        f"{split}."
    )


def write_quarantine(folder: Folder, dataset: Dataset) -> None:
    """Write which rows take part in nothing, and why; and what the readers noted of others, where they did."""
    folder.write_csv("quarantine.csv", _by_row(dataset, "reason", sorted(dataset.quarantine.items())))
    if dataset.notes:
        note_texts = [(row, note) for row, notes in sorted(dataset.notes.items()) for note in notes]
        folder.write_csv("notes.csv", _by_row(dataset, "note", note_texts))


def _by_row(dataset: Dataset, column: str, texts: list[tuple[int, str]]) -> pd.DataFrame:
    """A table of what is said of rows, with their numbers in the user's file and their ids."""
    rows = [row for row, _ in texts]
    return pd.DataFrame(
        {
            dataset.row_numbers.unit: [dataset.row_numbers.values[row] for row in rows],
            "id": [dataset.ids[row] for row in rows],
            column: [text for _, text in texts],
        }
    )


def write_history(folder: Folder, name: str, outcome: Outcome, metric_name: str) -> None:
    """Write the epochs of one trial."""
    names = {"val_metric": f"val_{metric_name}", "val_metric_current": f"val_{metric_name}_current"}
    table = pd.DataFrame(outcome.history).rename(columns=names)
    folder.write_csv(name, table)


def write_trials(folder: Folder, searches: dict[int, list[Outcome]], metric_name: str) -> list[dict[str, Any]]:
    """Write the history of every searched trial, and return the ranking of each search."""
    ranking = []
    for fold, outcomes in searches.items():
        for rank, outcome in enumerate(outcomes, start=1):
            entry: dict[str, Any] = {
                "search_fold": fold,
                "rank": rank,
                "trial": outcome.trial_id,
                "config": outcome.config,
                "epochs": planned_epochs({"model": outcome.model, **outcome.config}),
                "epochs_done": outcome.history[-1]["epoch"] if outcome.history else 0,
                "seconds": _seconds(outcome),
            }
            if outcome.kept_metric is not None:
                entry[f"kept_val_{metric_name}"] = outcome.kept_metric
                entry["kept_epoch"] = outcome.kept_epoch
                file = f"search_fold_{fold}/trial_{outcome.trial_id}/history_fold_{fold}.csv"
                write_history(folder, file, outcome, metric_name)
            if outcome.error is not None:
                entry["failed"] = outcome.error
            ranking.append(entry)
    return ranking


def write_evaluation(
    folder: Folder, name: str, outcomes: Sequence[Outcome], scores: Sequence[FoldScore], task: Task
) -> None:
    """Write history, predictions and model of one config on every fold, under a folder of its own."""
    for outcome, score in zip(outcomes, scores, strict=True):
        write_history(folder, f"{name}/history_fold_{score.fold}.csv", outcome, metric_of(task).name)
        write_predictions(folder, name, score, task)
        folder.write(f"{name}/model_fold_{score.fold}.pth", model_file(outcome))


def write_predictions(folder: Folder, name: str, score: FoldScore, task: Task) -> None:
    """Write the predictions of one config on the test part and the validation part of a fold."""
    score.test.write(folder, name, "test", score.fold, score.metric, task.groups)
    score.validation.write(folder, name, "validation", score.fold, score.metric, task.groups)


def summary(scores: Sequence[FoldScore], task: Task) -> dict[str, Any]:
    """Scores by fold, their mean, their standard deviation over folds where there are several, and what to trust."""
    result = over_folds([(score.fold, len(score.test.ids), score.scores) for score in scores])
    tables = [(score.fold, score.test.table(score.metric)) for score in scores]
    facts = trust_facts(tables, metric_of(task), task.groups)
    return result | ({"trust": facts} if facts else {})
