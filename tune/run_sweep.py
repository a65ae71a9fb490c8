"""Sweep a search space on a task: graphs, search, training of the best on every fold, one test each.

    python tune/run_sweep.py --space head_finetune
    python tune/run_sweep.py --space full_finetune --task matbench_mp_e_form --gpus-per-trial 0.25
    python tune/run_sweep.py --resume NAME

The flow, top to bottom: `run` opens the task and the space, makes the dataset (`tune/dataset.py`),
searches (`tune/search.py`), trains the chosen configs and scores them (`tune/evaluate.py`), and writes
the results (`tune/results.py`). A trial is `tune/trial.py`, the training loop `models/train.py`.
"""

from __future__ import annotations

import json
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from pydantic import BaseModel, ConfigDict
from rich.table import Table

from data.build_cache import connect, console, default_cache
from data.crystal import BadCrystalError
from data.download import DownloadError
from data.folds import N_FOLDS, SplitError
from data.shards import DamagedShardError
from data.storage import StorageError, read_whole
from data.tasks import TaskError, open_task
from models.config import TrainConfig
from models.metrics import metric_of
from tune.dataset import VALIDATION_FRACTION, Dataset, load_dataset
from tune.evaluate import FoldScore, PredictionError, ensemble, score_fold
from tune.results import (
    OVERLAP,
    Folder,
    results_markdown,
    run_record,
    summary,
    write_evaluation,
    write_trials,
)
from tune.search import Outcome, Resources, search_fold, train_chosen
from tune.space import SearchSpace, SpaceError, load_space


class SweepError(RuntimeError):
    """A sweep that cannot start or go on; the message says why and what to do."""


USER_ERRORS = (
    SweepError,
    SpaceError,
    TaskError,
    SplitError,
    DownloadError,
    StorageError,
    DamagedShardError,
    BadCrystalError,
    PredictionError,
)


class Options(BaseModel):
    """All that defines a sweep, kept in its `sweep.json` so that `--resume NAME` needs nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    space: SearchSpace
    task: str
    target: str | None
    quantity: str | None
    ids: str | None
    search_folds: list[int]
    folds: list[int]
    num_samples: int
    seed: int
    seeds: int
    storage: str
    cache: str
    downloads: str
    cpus_per_trial: int
    gpus_per_trial: float
    max_concurrent: int | None


def run(options: Options, *, address: str | None = None, resumed: bool = False) -> dict[str, Any]:
    """Run a sweep, or go on with one, and return its results as written to results.json.

    Raises:
        SweepError: no trial succeeded, or a chosen config failed on a fold.
    """
    began = datetime.now()
    folder = Folder(f"{options.storage}/{options.name}")
    space = options.space
    ids_file = Path(options.ids) if options.ids else None
    task, rows = open_task(
        options.task,
        target=options.target,
        quantity=options.quantity,
        ids_file=ids_file,
        download_dir=Path(options.downloads),
    )
    _check_or_write_record(folder, options, rows.sha256, resumed)
    console.print(f"[bold]{options.name}[/]: {task.name}, {len(rows)} crystals, space {space.name}")
    console.print(f"  {task.labels}", highlight=False)
    connect(address)
    dataset = load_dataset(
        task, rows, space.weights, options.cache, seed=options.seed, gpus_per_task=options.gpus_per_trial
    )
    _write_quarantine(folder, dataset)
    resources = Resources(options.cpus_per_trial, options.gpus_per_trial, options.max_concurrent)

    searches: dict[int, list[Outcome]] = {}
    for fold in options.search_folds if space.searched else []:
        outcomes = search_fold(
            dataset,
            space,
            fold,
            num_samples=options.num_samples,
            seed=options.seed,
            resources=resources,
            folder=f"{folder.address}/search_fold_{fold}",
        )
        if outcomes[0].best_metric is None or outcomes[0].error is not None:
            reasons = sorted({outcome.error or "no result" for outcome in outcomes})
            raise SweepError(f"all {len(outcomes)} trials of the search on fold {fold} failed: {'; '.join(reasons)}")
        searches[fold] = outcomes

    # What is trained to the end: on each fold the reference alone, and the chosen config with every seed.
    reference = TrainConfig(weights=space.weights, freeze_depth="none", epochs=0).model_dump()
    seeds = range(options.seed, options.seed + options.seeds)
    chosen = {fold: chosen_config(space, searches, fold) for fold in options.folds}
    plan = [(fold, reference) for fold in options.folds]
    if space.parameters.get("freeze_depth") != "none":
        plan += [(fold, {**chosen[fold], "seed": seed}) for seed in seeds for fold in options.folds]
    trained = train_chosen(dataset, plan, resources=resources, folder=f"{folder.address}/evaluate")
    failed = [outcome for outcome in trained if outcome.error is not None]
    if failed:
        reasons = "; ".join(f"fold {outcome.fold}: {outcome.error}" for outcome in failed)
        raise SweepError(f"{len(failed)} of {len(trained)} final trainings failed: {reasons}")

    results = _collect(options, dataset, folder, searches, chosen, trained)
    results["seconds"] = (datetime.now() - began).total_seconds()
    folder.write_json("results.json", results)
    folder.write("RESULTS.md", results_markdown(results, dataset))
    _print_summary(results, folder, dataset)
    return results


def chosen_config(space: SearchSpace, searches: dict[int, list[Outcome]], fold: int) -> dict[str, Any]:
    """The config to train on a fold: that of its own search, else of the first search, else the space itself."""
    if not searches:
        return TrainConfig(**space.parameters).model_dump()
    outcomes = searches[fold] if fold in searches else next(iter(searches.values()))
    return TrainConfig(**outcomes[0].config).model_dump()


def protocol(options: Options) -> str:
    """How configurations were chosen, in a sentence for everyone who reads the results."""
    split = (
        f"validation is {VALIDATION_FRACTION:.0%} of the fold's training part, grouped by composition "
        f"(seed {options.seed}); best epoch and early stopping use it alone; the test part is predicted once"
    )
    if not options.space.searched:
        return f"no search, the space fixes every parameter; {split}."
    if set(options.folds) <= set(options.search_folds):
        return f"nested: one search per fold on that fold's own validation split; {split}."
    borrowed = sorted(set(options.folds) - set(options.search_folds))
    return (
        f"searched on fold(s) {options.search_folds}; fold(s) {borrowed} use the configuration found on fold "
        f"{options.search_folds[0]}, whose training part holds crystals of their test parts, so that the choice of "
        f"hyper-parameters, and nothing else, has seen those labels (--search-folds all avoids this); {split}."
    )


def _collect(
    options: Options,
    dataset: Dataset,
    folder: Folder,
    searches: dict[int, list[Outcome]],
    chosen: dict[int, dict[str, Any]],
    trained: list[Outcome],
) -> dict[str, Any]:
    """Score what was trained, write its files, and gather the results."""
    task, metric = dataset.task, metric_of(dataset.task.kind)
    scores = [score_fold(dataset, outcome) for outcome in trained]
    n = len(options.folds)
    reference = "pretrained + reference" if task.quantity != "other" else "reference: linear in the element fractions"
    if options.space.weights == "random":
        reference = "reference: linear in the element fractions"
    write_evaluation(folder, "reference", trained[:n], scores[:n], metric.name)
    by_seed: list[list[FoldScore]] = []
    seed_entries = []
    for position in range(n, len(trained), n):
        seed = trained[position].config["seed"]
        part, outcomes = scores[position : position + n], trained[position : position + n]
        write_evaluation(folder, f"seed_{seed}", outcomes, part, metric.name)
        epochs = [
            {
                "fold": outcome.fold,
                "best_epoch": outcome.best_epoch,
                f"best_val_{metric.name}": outcome.best_metric,
                "trained_parameters": outcome.trained_parameters,
            }
            for outcome in outcomes
        ]
        seed_entries.append({"seed": seed, **summary(part), "training": epochs})
        by_seed.append(part)

    subset = task.n_official is not None and len(dataset.ids) < task.n_official
    description = f"subset, n={len(dataset.ids)} of {task.n_official}" if subset else f"n={len(dataset.ids)}"
    notes = [task.labels]
    notes += [task.notes] if task.notes else []
    notes += [OVERLAP] if task.pretraining_overlap and options.space.weights != "random" else []
    n_fallback = sum(score.n_fallback for score in scores[:n])
    if dataset.quarantine:
        notes.append(
            f"{len(dataset.quarantine)} rows are quarantined (quarantine.csv); {n_fallback} of them are test "
            "crystals without a graph, predicted by the mean of the training labels."
        )
    results: dict[str, Any] = {
        "sweep": options.name,
        "options": options.model_dump(exclude_none=True),
        "record": run_record(),
        "task": {key: value for key, value in vars(task).items() if value is not None},
        "data": {
            "description": description,
            "n_rows": len(dataset.ids),
            "n_quarantined": len(dataset.quarantine),
            "n_fallback": n_fallback,
            "n_raised_cutoff": dataset.n_raised_cutoff,
            "sha256": dataset.data_sha256,
            "graph_cache_key": dataset.cache_key,
        },
        "notes": notes,
        "protocol": protocol(options),
        "metric": metric.name,
        "reference": {"title": reference, **summary(scores[:n])},
        "seeds": seed_entries,
        "chosen": [{"fold": fold, "config": config} for fold, config in chosen.items()],
        "trials": write_trials(folder, searches, metric.name),
    }
    if len(by_seed) > 1:
        members = [ensemble(dataset, [part[k] for part in by_seed]) for k in range(n)]
        for member in members:
            folder.write_csv(f"ensemble/preds_fold_{member.fold}.csv", member.predictions)
        results["ensemble"] = summary(members)
        results["seed_std"] = float(np.std([entry["mean"][metric.name] for entry in seed_entries], ddof=1))
    return results


def _check_or_write_record(folder: Folder, options: Options, data_sha256: str, resumed: bool) -> None:
    """Keep what defines the sweep; refuse to go on with other data."""
    if not resumed:
        record = {"options": options.model_dump(), "data_sha256": data_sha256, **run_record()}
        folder.write("sweep.json", json.dumps(record, indent=1))
        return
    before = json.loads(read_whole(folder.filesystem, f"{folder.path}/sweep.json"))["data_sha256"]
    if before != data_sha256:
        raise SweepError(
            f"the data of {options.task!r} changed since this sweep began (SHA-256 {before[:12]} then, "
            f"{data_sha256[:12]} now): start a new sweep under another --name"
        )


def _write_quarantine(folder: Folder, dataset: Dataset) -> None:
    lines = ["row,id,reason"]
    for row, reason in sorted(dataset.quarantine.items()):
        quoted = reason.replace('"', '""')
        lines.append(f'{row},{dataset.ids[row]},"{quoted}"')
    folder.write("quarantine.csv", "\n".join(lines) + "\n")


def _print_summary(results: dict[str, Any], folder: Folder, dataset: Dataset) -> None:
    metric, unit = results["metric"], dataset.task.unit if results["metric"] == "mae" else ""
    ranked = [trial for trial in results["trials"] if f"best_val_{metric}" in trial]
    if ranked:
        fields = sorted({field for trial in ranked for field in trial["config"]} - {"seed", "weights"})
        table = Table("search fold", "rank", f"val {metric}", "epochs", *fields, title="Ranking on validation")
        for trial in ranked[:10]:
            cells = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in (trial["config"].get(f) for f in fields)]
            table.add_row(
                str(trial["search_fold"]),
                str(trial["rank"]),
                f"{trial[f'best_val_{metric}']:.4f}",
                str(trial["epochs_done"]),
                *cells,
            )
        console.print(table)
        best = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in ranked[0]["config"].items())
        console.print(f"Best configuration: {best}", highlight=False)
    for title, entry in [(results["reference"]["title"], results["reference"])] + [
        (f"fine-tuned, seed {entry['seed']}", entry) for entry in results["seeds"]
    ] + ([("ensemble", results["ensemble"])] if "ensemble" in results else []):
        spread = f" +- {entry['std_over_folds'][metric]:.4f} over folds" if "std_over_folds" in entry else ""
        console.print(
            f"Test {metric} of {entry['n_folds']} fold(s), {title}: "
            f"[bold]{entry['mean'][metric]:.4f}[/]{spread} {unit} ({results['data']['description']})",
            highlight=False,
        )
    for note in results["notes"]:
        console.print(f"Note: {note}", highlight=False)
    console.print(f"Everything is in {folder.address} (start with RESULTS.md)", highlight=False, soft_wrap=True)
    logdir = folder.address if "://" not in folder.address else f"ray_results/{results['sweep']}"
    console.print(f"Curves: tensorboard --logdir {shlex.quote(logdir)}", highlight=False, soft_wrap=True)


def _folds(text: str, option: str) -> list[int]:
    """`all`, or indices separated by commas."""
    if text == "all":
        return list(range(N_FOLDS))
    try:
        folds = sorted({int(part) for part in text.split(",")})
    except ValueError:
        folds = [-1]
    if not all(0 <= fold < N_FOLDS for fold in folds):
        raise SweepError(f"{option} {text!r}: expected `all` or folds of 0 to {N_FOLDS - 1} such as 0,2")
    return folds


app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
SWEEP, PROTOCOL, MACHINE = "What to sweep", "Protocol", "Machine and folders"


@app.command()
def main(
    space: Annotated[
        str, typer.Option(help="Search space: a file of search_spaces/ without .yaml, or a path.", rich_help_panel=SWEEP)
    ] = "head_finetune",
    task: Annotated[
        str,
        typer.Option(
            help="`demo` (embedded, no network), an official name such as `matbench_mp_e_form` (downloaded on first "
            "use), a json.gz file in Matbench's layout, or a folder of CIF/POSCAR files with a CSV of targets.",
            rich_help_panel=SWEEP,
        ),
    ] = "demo",
    ids: Annotated[
        Path | None, typer.Option(help="Text file of ids, one a line: use these rows only.", rich_help_panel=SWEEP)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Column of the targets, where your own file has several.", rich_help_panel=SWEEP)
    ] = None,
    quantity: Annotated[
        str | None,
        typer.Option(
            help="What your own target is to an energy model: energy_per_atom, energy_per_cell, or other "
            "(a fresh readout is trained). Default: other.",
            rich_help_panel=SWEEP,
        ),
    ] = None,
    folds: Annotated[
        str, typer.Option(help="Folds to train and test on: `all`, or indices such as 0,2.", rich_help_panel=PROTOCOL)
    ] = "all",
    search_folds: Annotated[
        str,
        typer.Option(
            help="Folds that are searched; `all`: one search per fold. Folds without one use the first's result.",
            rich_help_panel=PROTOCOL,
        ),
    ] = "0",
    num_samples: Annotated[
        int | None, typer.Option(min=1, help="Trials of a search. Default: the space's own.", rich_help_panel=PROTOCOL)
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of validation splits, Optuna and training.", rich_help_panel=PROTOCOL)
    ] = 0,
    seeds: Annotated[
        int,
        typer.Option(min=1, help="Train the chosen configs with so many seeds, and their ensemble.", rich_help_panel=PROTOCOL),
    ] = 1,
    name: Annotated[
        str | None, typer.Option(help="Of the sweep. Default: task, space and time.", rich_help_panel=MACHINE)
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="NAME", help="Go on with a killed sweep.", rich_help_panel=MACHINE)
    ] = None,
    storage: Annotated[
        str, typer.Option(help="Where sweeps are kept: a folder, s3://..., gs://...", rich_help_panel=MACHINE)
    ] = "ray_results",
    cache: Annotated[
        str | None,
        typer.Option(help="Where graphs are kept: a folder or URI. [default: ~/.cache/matsweep/graphs]", rich_help_panel=MACHINE),
    ] = None,
    downloads: Annotated[
        Path | None,
        typer.Option(help="Where datasets are kept. [default: ~/.cache/matsweep/downloads]", rich_help_panel=MACHINE),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join; `auto` on one of its nodes.", rich_help_panel=MACHINE)
    ] = None,
    gpus_per_trial: Annotated[
        float, typer.Option(min=0, help="Share of a GPU a trial gets, such as 0.25; 0: CPU only.", rich_help_panel=MACHINE)
    ] = 0,
    cpus_per_trial: Annotated[int, typer.Option(min=1, help="Threads of a trial.", rich_help_panel=MACHINE)] = 1,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="Trials at once. Default: as many as fit.", rich_help_panel=MACHINE)
    ] = None,
) -> None:
    """Sweep hyper-parameters of CHGNet on a Matbench task and test the best once per fold.

    Without options: the `head_finetune` space on the embedded demo. Results go to `ray_results/NAME/`;
    ray_results/README.md says what each file is.
    """
    try:
        place = storage if "://" in storage else str(Path(storage).expanduser().resolve())
        if resume is not None:
            options = _load_options(place, resume)
        else:
            loaded = load_space(space)
            stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
            options = Options(
                name=name or f"{Path(task).name.split('.')[0]}-{loaded.name}-{stamp}",
                space=loaded,
                task=task,
                target=target,
                quantity=quantity,
                ids=str(ids) if ids else None,
                search_folds=_folds(search_folds, "--search-folds"),
                folds=_folds(folds, "--folds"),
                num_samples=num_samples or loaded.num_samples,
                seed=seed,
                seeds=seeds,
                storage=place,
                cache=cache or str(default_cache() / "graphs"),
                downloads=str(downloads or default_cache() / "downloads"),
                cpus_per_trial=cpus_per_trial,
                gpus_per_trial=gpus_per_trial,
                max_concurrent=max_concurrent,
            )
            _refuse_taken(options)
        run(options, address=address, resumed=resume is not None)
    except USER_ERRORS as problem:
        console.print(f"[red]{type(problem).__name__}:[/] {problem}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _load_options(storage: str, name: str) -> Options:
    folder = Folder(f"{storage}/{name}")
    try:
        record = json.loads(read_whole(folder.filesystem, f"{folder.path}/sweep.json"))
    except FileNotFoundError:
        raise SweepError(f"no sweep {name!r} in {storage}: --resume takes the name of a folder there") from None
    return Options(**record["options"])


def _refuse_taken(options: Options) -> None:
    folder = Folder(f"{options.storage}/{options.name}")
    try:
        read_whole(folder.filesystem, f"{folder.path}/sweep.json")
    except FileNotFoundError:
        return
    raise SweepError(f"sweep {options.name!r} exists in {options.storage}: --resume it, or choose another --name")


if __name__ == "__main__":
    app()
