"""A queue of experiments from its baseline to the ranking: what `tune/run_queue.py` runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.fold import SplitError
from data.machine.console import say
from data.metrics import Metric, metric_of
from data.stores.storage import file_names
from data.task import Task, TaskRows
from data.task_words import task_words
from models.family import UnsuitedError
from tune.analysis.comparison import compare
from tune.analysis.paired import fold_scores, paired_predictions
from tune.dataset.dataset import Dataset
from tune.errors import SweepError
from tune.records.code_record import run_record
from tune.records.folder import RECORD, Folder, refuse_taken
from tune.records.options import Options, refuse_other_code
from tune.runs import compared_members, load_sweep, predictions
from tune.spaces.queue_file import BASELINE, Experiment, Queue
from tune.spaces.space import SpaceError
from tune.sweep.claim import claimed
from tune.sweep.levers import change_pairs, lever_pairs
from tune.sweep.packing import share_of_gpu
from tune.sweep.queue_report import queue_markdown
from tune.sweep.results import collect, write_quarantine
from tune.sweep.sweep import join, open_dataset, prove_levers, train, write_results
from tune.sweep.tries import LeverCheck
from tune.trials.search import Outcome

ORDER = ("better", BASELINE, "identical (inert)", "within noise", "undecided", "worse")


def run_queue(queue: Queue, options: Options, *, address: str | None = None) -> dict[str, Any]:
    """Run what is not done yet of a queue, in order, and rank it.

    Args:
        queue: of experiments.
        options: of all of them; `name` is the queue's folder, `space` is not used.
        address: of a Ray cluster to join.

    Returns:
        The ranking as written to queue.json.

    Raises:
        SweepError: a name that is taken; an experiment that differs in nothing, failed, or is there with other
            options.
    """
    refuse_taken("--name", options.name, options.storage, by_queue=False)
    top = Folder(f"{options.storage}/{options.name}")
    task, rows = options.open_task()
    queue = queue_for_task(queue, task)
    join(options, task, [experiment.space for experiment in queue.experiments], address)
    with claimed(top):
        return _run(queue, options, task, rows, top)


def queue_for_task(queue: Queue, task: Task) -> Queue:
    """A queue whose spaces are as the task's kind wants them.

    Raises:
        SpaceError: an experiment that does not go with the task, or changes nothing there.
    """
    experiments = []
    for experiment in queue.experiments:
        space = experiment.space.for_task(task.kind, task.quantity)
        experiments.append(experiment.model_copy(update={"space": space}))
        base = experiments[0].space
        if len(experiments) > 1 and (space.model, space.parameters) == (base.model, base.parameters):
            raise SpaceError(
                f"queue {queue.name}, experiment {experiment.name!r}: of a {task.kind} it is what the baseline is. "
                "Make a queue without it"
            )
    return queue.model_copy(update={"experiments": experiments})


def _run(queue: Queue, options: Options, task: Task, rows: TaskRows, top: Folder) -> dict[str, Any]:
    """Every experiment in turn, the ranking written after each."""
    say(f"{options.name}: {task.name}, {len(rows)} rows, queue {queue.name}. {queue.description}", style="bold")
    datasets = _Datasets(task, rows)
    _prove(queue, options, datasets)
    entries: list[dict[str, Any]] = []
    for experiment in queue.experiments:
        results = _run_experiment(queue, experiment, options, datasets)
        entries.append(_entry(options, experiment, results))
        entry = entries[-1]
        say(f"{experiment.name}: validation {results['metric']} {entry['val']:.4f}, {entry['verdict']}", style="bold")
        ranked_entries = sorted(entries, key=lambda entry: (ORDER.index(entry["verdict"]), -entry.get("gain", 0.0)))
        stop_reason = _worse_than(queue.gate.stop_above, results["first_seed_val"], metric_of(task))
        ranking = {
            "queue": queue.name,
            "metric": results["metric"],
            "unit": metric_of(task).unit_of(task.unit),
            "experiments": ranked_entries,
        }
        if stop_reason and experiment is not queue.experiments[-1]:
            ranking["stopped"] = (
                f"after {experiment.name}: its first seed's {results['first_seed_val']:.4g} is worse than stop_above "
                f"{queue.gate.stop_above}"
            )
        top.write_json("queue.json", ranking)
        top.write("QUEUE.md", queue_markdown(ranking, results["data"]["description"], task_words(results["task"])))
        if "stopped" in ranking:
            say(f"The queue ends {ranking['stopped']}.", style="yellow")
            break
    say(f"Ranking: {top.address}/QUEUE.md")
    return ranking


@dataclass
class _Datasets:
    """The datasets of experiments, one at a time, for each is large; experiments with the same graphs share one."""

    task: Task
    rows: TaskRows
    key: tuple[Any, ...] = ()
    dataset: Dataset | None = None

    def of(self, options: Options) -> Dataset:
        key = (options.space.model, options.space.needs)
        if self.dataset is None or key != self.key:
            self.dataset = None
            self.key, self.dataset = key, open_dataset(options, options.space, self.task, self.rows)
        return self.dataset


def _options_and_folder(experiment: Experiment, options: Options) -> tuple[Options, Folder]:
    """Options and folder of an experiment."""
    space, name = experiment.space, f"{options.name}/{experiment.name}"
    experiment_options = options.model_copy(update={"name": name, "space": space, "seeds": space.seeds})
    return experiment_options, Folder(f"{experiment_options.storage}/{name}")


def _prove(queue: Queue, options: Options, datasets: _Datasets) -> None:
    """Have tiny runs show that every lever of every experiment does something, before anything is trained.

    Raises:
        SweepError: some do not; or an experiment is there that is of another queue, of other options or other code.
    """
    base, rest = queue.experiments[0].space, {"data_sha256": datasets.rows.sha256, "gate": queue.gate.model_dump()}
    to_prove: list[tuple[Experiment, Options, Folder]] = []
    for experiment in queue.experiments:
        experiment_options, folder = _options_and_folder(experiment, options)
        record = {"options": experiment_options.model_dump(mode="json"), **rest}
        if (before := folder.read_json(RECORD)) is not None:
            if {name: before.get(name) for name in record} != record:
                raise SweepError(f"{folder.address} is of another queue or of other options: choose another --name")
            refuse_other_code(before, experiment_options.space.model, folder.address)
        if before is None or folder.read_json("levers.json") is None:
            to_prove.append((experiment, experiment_options, folder))
    problems: dict[str, list[str]] = {}
    try:
        for experiment, experiment_options, folder in to_prove:
            code = run_record(experiment_options.space.model)
            folder.write_plain_json(RECORD, {"options": experiment_options.model_dump(mode="json"), **rest, **code})
            has_comparison = experiment.name != BASELINE and experiment_options.space.model == base.model
            pairs = (
                change_pairs(experiment_options.space, base, experiment.change)
                if has_comparison
                else lever_pairs(experiment_options.space, experiment_options.seeds)
            )
            try:
                prove_levers(
                    experiment_options, experiment_options.space, datasets.of(experiment_options), folder, pairs
                )
            except SweepError as problem:
                problems.setdefault(str(problem), []).append(experiment.name)
        if problems:
            messages = "; ".join(f"experiment {' and '.join(names)}: {why}" for why, names in problems.items())
            raise SweepError(f"queue {queue.name}: {messages}")
    except (SweepError, SplitError, UnsuitedError):
        for _, _, folder in to_prove:  # the name stays free, for what the queue is when it has been mended
            for name in {RECORD, "levers.json"} & set(file_names(folder.filesystem, folder.path)):
                folder.delete(name)
        raise


def _run_experiment(queue: Queue, experiment: Experiment, options: Options, datasets: _Datasets) -> dict[str, Any]:
    """Results of one experiment, which is run unless they are there."""
    space = experiment.space
    experiment_options, folder = _options_and_folder(experiment, options)
    if (results := folder.read_json("results.json")) is not None:
        return results
    dataset = datasets.of(experiment_options)
    write_quarantine(folder, dataset)
    if experiment_options.pack_gpus:
        experiment_options = experiment_options.model_copy(
            update={"gpus_per_trial": share_of_gpu(experiment_options, space, dataset, folder)}
        )
    levers = [LeverCheck(**check) for check in folder.read_json("levers.json") or []]

    config = {fold: space.config(**space.parameters).model_dump() for fold in experiment_options.folds}
    seeds = list(range(experiment_options.seed, experiment_options.seed + space.seeds)) if space.trains else []
    gate = queue.gate
    at_first = seeds if (gate.continue_below, gate.stop_above) == (None, None) else seeds[:1]
    outcomes = train(experiment_options, space, dataset, folder, config, at_first, with_reference=True)
    n = len(experiment_options.folds)
    first = _mean_val(outcomes[n : 2 * n] or outcomes)  # of what trains nothing the reference itself
    metric = metric_of(datasets.task)
    limits = [limit for limit in (gate.continue_below, gate.stop_above) if _worse_than(limit, first, metric)]
    is_gated = bool(limits)
    if is_gated:
        say(f"{experiment.name}: first seed {first:.4g}, not better than {limits[0]}: no other seed")
    elif at_first != seeds:
        outcomes += train(experiment_options, space, dataset, folder, config, seeds[1:], with_reference=False)
    result_options = experiment_options.model_copy(update={"seeds": max(1, len(seeds[:1] if is_gated else seeds))})
    results = collect(result_options, space, dataset, folder, {}, config, outcomes, levers)
    results["first_seed_val"] = first
    write_results(folder, results)
    return results


def _entry(options: Options, experiment: Experiment, results: dict[str, Any]) -> dict[str, Any]:
    """One line of the ranking: scores, and what the paired comparisons with the baseline say."""
    metric, seed_results = results["metric"], results["seeds"] or [results["reference"]]
    name = f"{options.storage}/{options.name}/{experiment.name}"
    entry: dict[str, Any] = {
        "experiment": experiment.name,
        "change": experiment.change,
        "seeds": len(seed_results),
        "test": float(np.mean([seed_result["mean"][metric] for seed_result in seed_results])),
        "verdict": BASELINE,
    }
    run = load_sweep(name)
    tables = [predictions(run, member, "validation") for member in compared_members(run)]
    comparison = paired_predictions(tables, tables[:1], run.metric)
    entry["val"] = float(fold_scores(comparison.rows, comparison.a, run.metric).mean())
    if "ensemble" in results:
        entry["test_ensemble"] = results["ensemble"]["mean"][metric]
    if experiment.name != BASELINE:
        base = load_sweep(f"{options.storage}/{options.name}/{BASELINE}")
        by_val, by_test = compare(base, run, on="validation"), compare(base, run, on="test")
        sign = 1 if run.metric.mode == "min" else -1
        entry |= {
            "verdict": by_val.verdict,
            "sentence": by_val.sentence,
            "gain": sign * by_val.difference.value,
            "gain_interval": sorted(sign * end for end in by_val.interval),
            "test_gain": sign * by_test.difference.value,
            "test_gain_interval": sorted(sign * end for end in by_test.interval),
            "test_verdict": by_test.verdict,
        }
    return entry


def _mean_val(outcomes: list[Outcome]) -> float:
    return float(np.mean([outcome.kept_metric for outcome in outcomes]))


def _worse_than(limit: float | None, value: float, metric: Metric) -> bool:
    return limit is not None and metric.better(limit, value)
