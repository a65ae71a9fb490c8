"""The mean of finished sweeps as a run of its own. Called by `tune/ensemble.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from data.metrics import METRICS, all_scores, over_folds
from data.task_words import task_words
from tune.analysis.paired import paired_predictions
from tune.analysis.trusted import trust_facts, trust_sentence
from tune.arguments import AverageWeights, On
from tune.errors import RunError
from tune.records.code_record import run_record
from tune.records.folder import Folder
from tune.records.labelled import Labelled
from tune.runs import (
    Member,
    SweepRun,
    arrays_of_fold,
    by_chance,
    chose_by_validation,
    contribution,
    copy_predictions,
    load_sweep,
    metric_of_fold,
    predictions,
    refuse_different,
    split_of,
    weights_of,
)

_HOW = {
    "equal": "equal weights",
    "validation": "weights by fold in proportion to 1 / MAE^2 on the fold's validation part",
}


@dataclass(frozen=True, eq=False)
class AveragedPart:
    """The test parts, or the validation parts, of all folds.

    Attributes:
        rows: fold, id, group; n rows.
        y_true: labels, shape (n, ...).
        members: predictions of each member, shape (members, n, ...).
        mean: their weighted mean, shape (n, ...).
        trust: the least of the members', shape (n,); None where one of them, by an earlier version, has none.
    """

    rows: pd.DataFrame
    y_true: np.ndarray
    members: np.ndarray
    mean: np.ndarray
    trust: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Average:
    """The mean of several runs.

    Attributes:
        names: of the members, such as `NAME/ensemble`.
        weights: by fold, shape (members,), sum 1.
        test: the test parts.
        validation: the validation parts; None where a member has none, or where the folds are split differently.
        why_no_validation: says which of the two; "" where there is one.
    """

    names: list[str]
    weights: dict[int, np.ndarray]
    test: AveragedPart
    validation: AveragedPart | None
    why_no_validation: str


def average(runs: list[SweepRun], weights: AverageWeights = "equal") -> Average:
    """Average the predictions of several runs.

    Weights by validation are w_k = MAE_k^-2 / sum_j MAE_j^-2, MAE_k being member k's on the fold's validation part:
    those of least variance for independent members, if a member's variance goes as MAE^2. They have nothing to fit,
    so that some 80 examples are enough for them, where a regression on the members' predictions would overfit.

    Args:
        runs: two or more, of the same task, rows and folds.
        weights: equal, or by the members' errors on each fold's validation part.

    Raises:
        RunError: fewer than two runs, the same one twice, runs that do not go together, or weights that cannot
            be had of them.
    """
    members, names = _members(runs)
    if weights == "validation" and runs[0].metric.name != "mae":
        raise RunError("--weights validation goes by the MAE, which a classification has not: take --weights equal")
    test = _aligned(runs, members, "test")
    validation, why = None, ""
    try:
        validation = _aligned(runs, members, "validation")
    except RunError as problem:
        if weights == "validation":
            raise
        why = str(problem)
    by_fold = {fold: np.full(len(runs), 1 / len(runs)) for fold in runs[0].folds}
    if weights == "validation":
        assert validation is not None
        rows, y_true, predicted, _ = validation
        by_fold = {fold: _weights_by_validation(rows, y_true, predicted, fold) for fold in runs[0].folds}
    return Average(
        names=names,
        weights=by_fold,
        test=_averaged(*test, by_fold),
        validation=None if validation is None else _averaged(*validation, by_fold),
        why_no_validation=why,
    )


def _members(runs: list[SweepRun]) -> tuple[list[Member], list[str]]:
    """What each run contributes, and its name; RunError unless the runs go together."""
    if len(runs) < 2:
        raise RunError(f"{len(runs)} run: an average takes at least two")
    first = runs[0]
    for run in runs[1:]:
        refuse_different(first, run)
        if set(run.folds) != set(first.folds):
            raise RunError(
                f"{first.name} and {run.name} do not go together: folds {sorted(first.folds)} and {sorted(run.folds)}"
            )
    members = [contribution(run) for run in runs]
    names = [f"{run.results['sweep']}/{member.name}" for run, member in zip(runs, members, strict=True)]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise RunError(f"{', '.join(duplicates)} is given more than once")
    return members, names


def _weights_by_validation(rows: pd.DataFrame, y_true: np.ndarray, predicted: np.ndarray, fold: int) -> np.ndarray:
    """Weights in proportion to 1 / MAE^2 on a fold's rows, shape (members,), sum 1."""
    is_here = (rows["fold"] == fold).to_numpy()
    mae = np.abs(predicted[:, is_here] - y_true[is_here]).reshape(len(predicted), -1).mean(axis=1)
    inverse = 1 / np.maximum(mae, 1e-12) ** 2  # a member without any error gets all the weight
    return inverse / inverse.sum()


Aligned = tuple[pd.DataFrame, np.ndarray, np.ndarray, np.ndarray | None]


def _aligned(runs: list[SweepRun], members: list[Member], on: On) -> Aligned:
    """Rows of all folds, labels, the members' predictions, and the least of their trusts, as in `AveragedPart`."""
    tables = [predictions(run, member, on) for run, member in zip(runs, members, strict=True)]
    metric = runs[0].metric
    paired = paired_predictions(tables[:1], tables[1:], metric)
    for run, table in zip(runs, tables, strict=True):
        if len(table) != len(paired.rows):
            raise RunError(
                f"the runs do not have the same ids in their {on} parts: {run.name} has {len(table)}, "
                f"{len(paired.rows)} of them are in all"
                + ("; split the folds alike (run_sweep.py --seed)" if on == "validation" else "")
            )
    rows = paired.rows[["fold", "id", "group"]]
    keys = pd.MultiIndex.from_frame(rows[["fold", "id"]])
    trust = None
    if all("trust" in table for table in tables):
        trust = np.min([table.set_index(["fold", "id"])["trust"].loc[keys].to_numpy() for table in tables], axis=0)
    if "y_pred" in tables[0]:
        by_key = [table.set_index(["fold", "id"]).loc[keys] for table in tables]
        y_true = by_key[0]["y_true"].to_numpy()
        return rows, y_true, np.stack([table["y_pred"].to_numpy() for table in by_key]), trust
    arrays = [_arrays(*run_parts, on, keys) for run_parts in zip(runs, members, tables, strict=True)]
    return rows, arrays[0][0], np.stack([y_pred for _, y_pred in arrays]), trust


def _arrays(
    run: SweepRun, member: Member, table: pd.DataFrame, on: On, keys: pd.MultiIndex
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions that are arrays, in the order of some (fold, id)."""
    by_fold = [arrays_of_fold(run, member, on, fold) for fold in run.folds]
    order = pd.MultiIndex.from_frame(table[["fold", "id"]]).get_indexer(keys)
    y_true, y_pred = (np.concatenate([arrays[name] for arrays in by_fold])[order] for name in ("y_true", "y_pred"))
    return y_true, y_pred


def _averaged(
    rows: pd.DataFrame,
    y_true: np.ndarray,
    predicted: np.ndarray,
    trust: np.ndarray | None,
    weights: dict[int, np.ndarray],
) -> AveragedPart:
    row_weights = np.stack([weights[fold] for fold in rows["fold"]], axis=1)
    row_weights = row_weights.reshape(*row_weights.shape, *[1] * (predicted.ndim - 2))
    return AveragedPart(rows, y_true, predicted, (row_weights * predicted).sum(axis=0), trust)


def labelled_by_fold(part: AveragedPart) -> dict[int, Labelled]:
    """By fold the mean beside its labels; `std` is the spread (ddof 1) between the members."""
    by_fold, fold = {}, part.rows["fold"].to_numpy()
    for index in np.unique(fold).tolist():
        which = np.flatnonzero(fold == index)
        by_fold[index] = Labelled(
            part.rows["id"].iloc[which].tolist(),
            part.rows["group"].iloc[which].tolist(),
            part.y_true[which],
            part.mean[which],
            part.members[:, which].std(axis=0, ddof=1),
            None if part.trust is None else part.trust[which],
        )
    return by_fold


def tables(part: AveragedPart, run: SweepRun) -> dict[int, pd.DataFrame]:
    """By fold the table of the mean, as the metric of a run has it."""
    return {fold: rows.table(metric_of_fold(run, fold)) for fold, rows in labelled_by_fold(part).items()}


def scores(part: AveragedPart, predicted: np.ndarray, run: SweepRun) -> dict[str, Any]:
    """Scores by fold, their mean and their standard deviation over folds, as in a sweep's results.json."""
    fold = part.rows["fold"].to_numpy()
    rows_by_fold = {int(index): np.flatnonzero(fold == index) for index in np.unique(fold)}
    return over_folds(
        [
            (index, len(which), all_scores(metric_of_fold(run, index), part.y_true[which], predicted[which]))
            for index, which in rows_by_fold.items()
        ]
    )


def average_results(name: str, runs: list[SweepRun], mean: Average, weights: AverageWeights) -> dict[str, Any]:
    """What goes into results.json: a sweep's, without seeds and trials, and with `members`."""
    first = runs[0]
    title = f"mean of {len(runs)} runs"
    trust = trust_facts(list(tables(mean.test, first).items()), first.metric, first.words.group)
    costs = {run.address: run.results["cost"] for run in runs}.values()  # members of one sweep share its cost
    results = {
        "sweep": name,
        "options": {"name": name, "members": mean.names, "weights": weights, "split": split_of(first)},
        "record": run_record(),
        "task": first.task,
        "data": first.results["data"],
        "notes": _notes(runs, mean, weights),
        "flags": list(dict.fromkeys(flag for run in runs for flag in run.results["flags"])),
        "protocol": f"{title}, {_HOW[weights]}; nothing was trained. "
        + " ".join(f"{run.name}: {run.results['protocol']}" for run in runs),
        "metric": first.metric.name,
        **({"scales": first.results["scales"]} if "scales" in first.results else {}),
        "reference": first.results["reference"],
        "seeds": [],
        "chosen": [
            {
                "fold": fold,
                "config": {f"weight of {name}": float(w) for name, w in zip(mean.names, fold_weights, strict=True)},
            }
            for fold, fold_weights in mean.weights.items()
        ],
        "trials": [],
        "cost": {quantity: sum(spent[quantity] for spent in costs) for quantity in first.results["cost"]},
        "inert": [],
        "ensemble": {
            "title": title,
            **scores(mean.test, mean.test.mean, first),
            **({"trust": trust} if trust else {}),
        },
        "members": _member_entries(runs, mean),
        "by_chance": any(by_chance(run) for run in runs),
        "chose_by_validation": any(chose_by_validation(run) for run in runs),
        "weights": ", ".join(sorted({name for run in runs for name in weights_of(run).split(", ") if name})),
    }
    if mean.validation is not None:
        results["validation"] = scores(mean.validation, mean.validation.mean, first)["mean"]
    return results


def _member_entries(runs: list[SweepRun], mean: Average) -> list[dict[str, Any]]:
    """Of each member its name, where it is, how it was trained, and its scores."""
    members = []
    for position, (run, name) in enumerate(zip(runs, mean.names, strict=True)):
        member = {"member": name, "address": run.address, "notes": run.results["notes"]}
        member["git_commit"] = run.results["record"]["git_commit"]
        member["chosen"] = [{"fold": fold, "config": config} for fold, config in run.configs.items()]
        for on, part in (("test", mean.test), ("validation", mean.validation)):
            if part is not None:
                member[on] = scores(part, part.members[position], runs[0])["mean"]
        members.append(member)
    return members


def _notes(runs: list[SweepRun], mean: Average, weights: AverageWeights) -> list[str]:
    """The notes of all runs, and what a reader must know of their average."""
    notes = list(dict.fromkeys(note for run in runs for note in run.results["notes"]))
    if mean.validation is None:
        notes.append(f"No predictions of the validation parts: {mean.why_no_validation}.")
    flattered_names = [name for run, name in zip(runs, mean.names, strict=True) if chose_by_validation(run)]
    if weights == "validation" and len(flattered_names) in range(1, len(runs)):
        notes.append(
            f"The epoch or the config of {', '.join(flattered_names)} was chosen on the validation parts, that of the "
            "others was not: the weights flatter it."
        )
    return notes


def average_markdown(results: dict[str, Any]) -> str:
    """RESULTS.md: members, weights and scores."""
    task, metric = results["task"], results["metric"]
    unit = METRICS[metric].unit_of(task["unit"])
    unit = f" ({unit})" if unit else ""
    folds = [entry["fold"] for entry in results["chosen"]]
    lines = [
        f"# {results['sweep']}",
        "",
        f"**{task['name']}**, target `{task['target']}`{unit}: {results['data']['description']}.",
        "",
        *(f"- {note}" for note in results["notes"]),
        f"- Protocol: {results['protocol']}",
        "- The test column is for reporting: to choose the members by it is to choose on test data.",
        "",
        f"| {METRICS[metric].title}{unit}, mean over folds | validation | test |",
        "|---|---|---|",
    ]
    mean = {"member": f"**{results['ensemble']['title']}**", "test": results["ensemble"]["mean"]}
    mean |= {"validation": results["validation"]} if "validation" in results else {}
    for entry in [*results["members"], mean]:
        cells = [f"{entry[on][metric]:.4f}" if on in entry else "not there" for on in ("validation", "test")]
        lines.append(f"| {entry['member']} | {' | '.join(cells)} |")
    lines += ["", "| weight | " + " | ".join(f"fold {fold}" for fold in folds) + " |", "|---" * (len(folds) + 1) + "|"]
    for member in results["members"]:
        fold_weights = [entry["config"][f"weight of {member['member']}"] for entry in results["chosen"]]
        lines.append(f"| {member['member']} | " + " | ".join(f"{weight:.3f}" for weight in fold_weights) + " |")
    if sentence := trust_sentence(results["ensemble"], metric, task_words(task).group):
        lines += ["", f"Of the mean {sentence}."]
    record = results["record"]
    lines += ["", f"Code {record['git_commit']}, {record['created']}; data {results['data']['sha256'][:12]}."]
    return "\n".join(lines) + "\n"


def write_average(folder: Folder, runs: list[SweepRun], mean: Average, results: dict[str, Any]) -> None:
    """Write the run; results.json last, for it says that the rest is there."""
    # Readers of a sweep expect the untrained model beside what is judged; that of the first run.
    first = runs[0]
    reference = load_sweep(f"{first.address}/reference").members["reference"]
    part_of: dict[On, AveragedPart | None] = {"test": mean.test, "validation": mean.validation}
    for on, part in part_of.items():
        for fold, rows in labelled_by_fold(part).items() if part is not None else ():
            rows.write(folder, "ensemble", on, fold, metric_of_fold(first, fold), first.words.group)
    table_of: dict[On, pd.DataFrame | None] = {"test": reference.test, "validation": reference.validation}
    for on, table in table_of.items():
        for fold in sorted(set(table["fold"])) if table is not None else ():
            copy_predictions(first, reference, on, fold, folder)
    folder.write("RESULTS.md", average_markdown(results))
    folder.write_json("results.json", results)
