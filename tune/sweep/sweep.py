"""A sweep from task to results: what `tune/run_sweep.py` runs, and `tune/run_queue.py` for each experiment.

Top to bottom: `run` opens the task and makes the dataset (`tune/dataset/dataset.py`), proves the levers
(`tune/sweep/levers.py`), searches (`tune/trials/search.py`), trains the chosen configs and scores them
(`tune/sweep/evaluate.py`), and writes the results (`tune/sweep/results.py`). A trial is `tune/trials/trial.py`, the
training loop `models/training/train.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import ray

from data.fold import SplitError
from data.machine.console import say
from data.machine.ray_session import connect
from data.stores.storage import StorageError
from data.task import Task, TaskRows
from models.family import UnsuitedError
from models.registry import open_family
from tune.cluster.storage_check import check_storage
from tune.dataset.dataset import Dataset, load_dataset, untrained
from tune.errors import SweepError
from tune.records.folder import RECORD, Folder
from tune.records.going_on import noted
from tune.records.options import Batch, Options, check_record, keep_options, refuse_unsuited, write_record
from tune.spaces.merged import Merged, merge
from tune.spaces.space import SearchSpace
from tune.sweep.claim import claimed
from tune.sweep.levers import Pair, check_levers, lever_pairs, not_shown
from tune.sweep.packing import share_of_gpu
from tune.sweep.result_notes import target_note
from tune.sweep.results import collect, write_quarantine
from tune.sweep.summary import print_summary, results_markdown
from tune.sweep.tries import ALIKE, LeverCheck
from tune.trials.resources import Resources
from tune.trials.search import Outcome, search_fold, train_chosen
from tune.trials.trackers import trackers


def run(options: Options, *, address: str | None = None, resumed: bool = False) -> dict[str, Any]:
    """Run a sweep, or go on with one, and return its results as written to results.json.

    Raises:
        SweepError: a lever that does nothing, no trial succeeded, or a chosen config failed on a fold.
    """
    start, folder = datetime.now(), Folder(f"{options.storage}/{options.name}")
    task, rows = options.open_task()
    batches = [
        batch.model_copy(update={"space": batch.space.for_task(task.kind, task.quantity)})
        for batch in options.all_batches
    ]
    join(options, task, [batches[-1].space], address)
    with claimed(folder):
        if resumed:
            check_record(folder, options, rows.sha256)
        else:
            write_record(folder, options, rows.sha256)
        dataset, batches, levers = _prepare(options, batches, task, rows, folder, resumed, address)
        with noted(options.storage, options.name, address):
            return _run(options, batches, dataset, levers, folder, start)


def join(options: Options, task: Task, spaces: Sequence[SearchSpace], address: str | None) -> None:
    """Start or join Ray, and refuse what could not be done there before anything is.

    Raises:
        SweepError: a model, a split or copies that do not go with the task, or a trial that asks for more than this
            machine has.
        StorageError: a folder that cannot be used.
    """
    for space in spaces:
        refuse_unsuited(options, task, space)
    connect(address)
    places = {"--storage": options.storage}
    if open_family(task.family).caches(task):
        places["--cache"] = options.cache
    check_storage(places, cluster=address is not None)
    if address is None:
        refuse_impossible(options)


def _prepare(
    options: Options,
    batches: list[Batch],
    task: Task,
    rows: TaskRows,
    folder: Folder,
    resumed: bool,
    address: str | None,
) -> tuple[Dataset, list[Batch], list[LeverCheck]]:
    """Everything that trials share, the spaces that fit it, and the proof that the levers of the last do something."""
    refusals, space = (SweepError, SplitError, UnsuitedError), batches[-1].space
    say(f"{options.name}: {task.name}, {len(rows)} rows, space {space.name}. {space.description}", style="bold")
    for note in (task.labels, target_note(task, space), task.notes):
        if note:
            say(f"  {note}")
    try:
        with noted(options.storage, options.name, address, but_for=refusals):
            dataset = open_dataset(options, space, task, rows)
            write_quarantine(folder, dataset)
            batches, merged = merge_values(options, batches, dataset)
            levers = prove_levers(options, batches[-1].space, dataset, folder, merged=merged)
    except refusals:
        if not resumed:
            folder.delete(RECORD)  # of a sweep that was refused: its name stays free
        raise
    if resumed:
        keep_options(folder, options)  # only now that the levers of an extension are shown
    return dataset, batches, levers


def _run(
    options: Options, batches: list[Batch], dataset: Dataset, levers: list[LeverCheck], folder: Folder, start: datetime
) -> dict[str, Any]:
    """The sweep itself, from the search to the results."""
    space = batches[-1].space
    if options.pack_gpus:
        options = options.model_copy(update={"gpus_per_trial": share_of_gpu(options, space, dataset, folder)})
    resources = Resources(options.cpus_per_trial, options.gpus_per_trial, options.max_concurrent)

    searches: dict[int, list[Outcome]] = {}
    for fold in options.search_folds if space.searched else []:
        outcomes = search_fold(
            dataset,
            batches,
            fold,
            seed=options.seed,
            resources=resources,
            folder=f"{folder.address}/search_fold_{fold}",
            watch=trackers(options.track, options.name),
        )
        refuse_lost(outcomes, f"the search on fold {fold}")
        if outcomes[0].kept_metric is None or outcomes[0].error is not None:
            reasons = sorted({outcome.error or "no result" for outcome in outcomes})
            raise SweepError(f"all {len(outcomes)} trials of the search on fold {fold} failed: {'; '.join(reasons)}")
        searches[fold] = outcomes

    configs = {fold: chosen_config(space, searches, fold) for fold in options.folds}
    seeds = list(range(options.seed, options.seed + options.seeds)) if space.trains else []
    final_outcomes = train(options, space, dataset, folder, configs, seeds, with_reference=True)
    results = collect(options, space, dataset, folder, searches, configs, final_outcomes, levers)
    results["seconds_of_last_session"] = (datetime.now() - start).total_seconds()
    write_results(folder, results)
    print_summary(results, folder)
    return results


def open_dataset(options: Options, space: SearchSpace, task: Task, rows: TaskRows) -> Dataset:
    """Everything trials share, in the object store."""
    return load_dataset(
        task,
        rows,
        space,
        options.cache,
        used_folds={*options.folds, *(options.search_folds if space.searched else [])},
        seed=options.seed,
        gpus_per_task=options.gpus_per_trial,
        collapse=not options.every_atom,
        split_rule=options.split,
        at_once=options.max_concurrent,
    )


def merge_values(options: Options, batches: list[Batch], dataset: Dataset) -> tuple[list[Batch], list[Merged]]:
    """Let the search offer one of several values that are the same on so few rows, and say so."""
    n_train = len(dataset.splits[_largest_fold(options, batches[-1].space, dataset)].train)
    narrowed_spaces = [merge(batch.space, n_train) for batch in batches]
    for merged in narrowed_spaces[-1][1]:
        say(f"  {merged.sentence(n_train)}")
    return [
        batch.model_copy(update={"space": space}) for batch, (space, _) in zip(batches, narrowed_spaces, strict=True)
    ], narrowed_spaces[-1][1]


def _largest_fold(options: Options, space: SearchSpace, dataset: Dataset) -> int:
    """The largest fold of those searched, or else trained on: what its training part cannot tell apart none can."""
    folds = options.search_folds if space.searched else options.folds
    return max(folds, key=lambda fold: len(dataset.splits[fold].train))


def prove_levers(
    options: Options,
    space: SearchSpace,
    dataset: Dataset,
    folder: Folder,
    pairs: list[Pair] | None = None,
    merged: Sequence[Merged] = (),
) -> list[LeverCheck]:
    """Have tiny runs show that every lever of the space does something, or that of the given pairs.

    A sweep that goes on has shown it already; one that is extended tries what is new.
    """
    earlier_checks = [LeverCheck(**check) for check in folder.read_json("levers.json") or []]
    fold = _largest_fold(options, space, dataset)
    pairs = lever_pairs(space, options.seeds) if pairs is None else pairs
    pairs = not_shown(pairs, earlier_checks, space.model)
    if earlier_checks and not pairs:
        return earlier_checks
    checks = check_levers(dataset, space, fold, pairs)
    for check in checks:
        first, second = check.values
        by = check.difference if isinstance(check.difference, str) else f"predictions differ by {check.difference:.2g}"
        say(f"  lever {check.lever}, {first} or {second}: {by} on {check.rows} rows")
    n_train = len(dataset.splits[fold].train)
    alike = [LeverCheck(values.field, values.values, ALIKE, n_train) for values in merged]
    checks = earlier_checks + [check for check in alike if check not in earlier_checks] + checks
    folder.write_json("levers.json", [asdict(check) for check in checks])
    return checks


def train(
    options: Options,
    space: SearchSpace,
    dataset: Dataset,
    folder: Folder,
    configs: dict[int, dict[str, Any]],
    seeds: list[int],
    *,
    with_reference: bool,
) -> list[Outcome]:
    """Train to the end: on each fold the reference alone, if asked for, then the chosen config with every seed.

    Raises:
        SweepError: any of them failed.
    """
    reference = untrained(space, dataset.task.kind)
    runs = [(fold, reference) for fold in options.folds] if with_reference else []
    runs += [(fold, {"model": space.model, **configs[fold], "seed": seed}) for seed in seeds for fold in options.folds]
    outcomes = train_chosen(
        dataset,
        runs,
        resources=Resources(options.cpus_per_trial, options.gpus_per_trial, options.max_concurrent),
        folder=f"{folder.address}/evaluate",
        copies=options.copies(),
        untrusted=options.untrusted,
        watch=trackers(options.track, options.name),
    )
    refuse_lost(outcomes, "the final training")
    failures = [outcome for outcome in outcomes if outcome.error is not None]
    if failures:
        messages = "; ".join(sorted({f"fold {outcome.fold}: {outcome.error}" for outcome in failures}))
        raise SweepError(f"{len(failures)} of {len(outcomes)} final trainings failed: {messages}")
    return outcomes


def refuse_lost(outcomes: list[Outcome], title: str) -> None:
    """Raise StorageError if trials failed for want of storage: to choose among the others would be chance."""
    reasons = [outcome.error.partition("StorageError: ")[2] for outcome in outcomes if outcome.error]
    if storage_reasons := [reason for reason in reasons if reason]:
        raise StorageError(
            f"{len(storage_reasons)} of {len(outcomes)} trials of {title} could not go on: {storage_reasons[0]}"
        )


def chosen_config(space: SearchSpace, searches: dict[int, list[Outcome]], fold: int) -> dict[str, Any]:
    """The config to train on a fold: that of its own search, else of the first search, else the space itself."""
    if not searches:
        return space.config(**space.parameters).model_dump()
    outcomes = searches[fold] if fold in searches else next(iter(searches.values()))
    return space.config(**outcomes[0].config).model_dump()


def write_results(folder: Folder, results: dict[str, Any]) -> None:
    """For programs and for people."""
    folder.write_json("results.json", results)
    folder.write("RESULTS.md", results_markdown(results))


def refuse_impossible(options: Options) -> None:
    """Without a cluster that could grow, Ray would wait for ever for what this machine has not."""
    resources = ray.cluster_resources()
    for kind, amount in (("CPU", options.cpus_per_trial), ("GPU", options.gpus_per_trial)):
        if amount > resources.get(kind, 0):
            raise SweepError(
                f"a trial asks for {amount:g} {kind}, this machine has {resources.get(kind, 0):g}: "
                f"lower --{kind.lower()}s-per-trial"
            )
