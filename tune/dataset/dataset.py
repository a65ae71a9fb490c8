"""A task made ready for trials: graphs and features in Ray's object store, folds, validation splits.

The labels of the test parts leave this module in one way only, `Dataset.labels`, which `tune/sweep/evaluate.py`
alone reads. What trials get are `TrialFold`s, whose targets are NaN outside training and validation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from data.crystals.compositions import read_compositions
from data.crystals.elements import ATOMIC_NUMBERS
from data.crystals.graph_cache import graphs_of
from data.crystals.graphs import element_fractions
from data.crystals.left_out import leave_elements_out, leave_molecules_out
from data.crystals.molecules import molecular
from data.crystals.notes import commonest_notes, rows_were
from data.crystals.quality import bad_target_reasons
from data.crystals.rows import RowNumbers, Rows
from data.folds import Fold, Split, make_folds, split_fold
from data.machine.console import say
from data.split_rule import DEFAULT_SPLIT, LEAVE_ELEMENTS_OUT, LEAVE_MOLECULES_OUT, SplitRule
from data.tasks import Task
from models.crystals.chgnet.network import cutoffs
from models.crystals.rows import CrystalRows
from models.metrics import Kind
from models.registry import open_model
from tune.dataset.corrections import corrections_of
from tune.dataset.features import pretrained_outputs
from tune.dataset.trial_fold import TrialFold
from tune.errors import SweepError
from tune.spaces.space import SearchSpace

VALIDATION_FRACTION = 0.1  # of a fold's training part
ONE_COMPOSITION = (
    "All training rows of a fold have one composition: validation is drawn row by row, so that near-duplicates of "
    "training rows can be in it and flatter what is chosen by it. Name groups of rows that belong together."
)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A task as a sweep sees it; row k means the same everywhere.

    Attributes:
        task: its facts.
        ids: one a row.
        row_numbers: where the rows stand in the user's file.
        formulas: reduced formula, None where there is no graph.
        labels: all targets, the test parts' included; float64, NaN where there is none.
        quarantine: reason by row, for rows that take part in nothing.
        notes: what the reader of a row noted, by row; such rows take part.
        unscored: quarantined rows that have no usable label either (no target, or a repeated id).
        n_raised_cutoff: graphs whose cutoff was raised because an atom had no neighbour.
        data_sha256: of the rows.
        cache_key: of the graphs.
        folds: the five folds.
        split_rule: how they were made; those of the task unless the user asked for others.
        split_note: what a reader must know of others; "" of the task's.
        splits: by fold.
        rows_ref: `CrystalRows` in the object store.
        trial_folds: by fold, a `TrialFold` in the object store.
    """

    task: Task
    ids: list[str]
    row_numbers: RowNumbers
    formulas: list[str | None]
    labels: np.ndarray
    quarantine: dict[int, str]
    notes: dict[int, tuple[str, ...]]
    unscored: set[int]
    n_raised_cutoff: int
    data_sha256: str
    cache_key: str
    folds: list[Fold]
    split_rule: SplitRule
    split_note: str
    splits: dict[int, Split]
    rows_ref: ray.ObjectRef
    trial_folds: dict[int, ray.ObjectRef]


def load_dataset(
    task: Task,
    rows: Rows,
    space: SearchSpace,
    cache_folder: str,
    *,
    used_folds: set[int],
    seed: int,
    gpus_per_task: float,
    collapse: bool = True,
    split_rule: SplitRule = DEFAULT_SPLIT,
    at_once: int | None = None,
) -> Dataset:
    """Build or read everything trials share, and put it where they can read it without a copy.

    Args:
        task: of the rows.
        rows: all rows of the task.
        space: whose trials are to run.
        cache_folder: path or URI that holds the caches.
        used_folds: folds to split; the others may be too small for it.
        seed: of the validation splits.
        gpus_per_task: share of a GPU for computing features; 0 for the CPU.
        collapse: whether equivalent atoms of a crystal are computed once.
        split_rule: how the folds are made.
        at_once: processes that compute; None: as many as fit.

    Raises:
        SweepError: a model that reads structures or a split by them, and a task that has none; or targets that are all
            the same.
        SplitError: too few rows to split.
        TargetScaleError: an energy target that is not on the declared scale.
    """
    inputs = _read(task, rows, space, cache_folder, gpus_per_task, collapse, split_rule, at_once)
    bad_labels = bad_target_reasons(rows.ids, rows.targets, rows.row_numbers)
    unreadable = {k: reason for k, reason in enumerate(inputs.reasons) if reason}
    both = {k: f"{bad_labels[k]}; {unreadable[k]}" for k in bad_labels.keys() & unreadable.keys()}
    quarantine = unreadable | bad_labels | both
    if quarantine:
        say(f"{len(quarantine)} of {len(rows)} rows quarantined; see quarantine.csv", style="yellow")
    notes = {k: of_row for k, of_row in enumerate(inputs.notes) if of_row and k not in quarantine}
    if notes:
        say(f"{rows_were(len(notes))} read with notes, of {len(rows)}; see notes.csv")
        for line in commonest_notes(notes.values()):
            say(f"  {line}")
    if inputs.n_raised_cutoff:
        say(f"{inputs.n_raised_cutoff} crystals have isolated atoms; their cutoff was raised")
    usable = np.ones(len(rows), dtype=bool)
    usable[list(quarantine)] = False
    if usable.any() and np.ptp(rows.targets[usable]) == 0:
        raise SweepError(
            f"all {usable.sum()} usable targets of {task.name} ({task.target}) are {rows.targets[usable][0]:g}: "
            "there is nothing to learn. Choose another target (--target)"
        )

    folds, split_note = _folds(task, rows, inputs, split_rule)
    compositions = [formula or "" for formula in inputs.formulas]
    splits = {
        fold.index: split_fold(
            fold,
            rows.ids,
            usable,
            compositions,
            groups=rows.groups,
            val_fraction=VALIDATION_FRACTION,
            seed=seed,
        )
        for fold in folds
        if fold.index in used_folds
    }
    if any(split.by_row for split in splits.values()):
        say(ONE_COMPOSITION, style="yellow")
    training_rows: CrystalRows = ray.get(inputs.rows_ref)
    trial_folds = {k: _without_test_labels(split, rows.targets) for k, split in splits.items()}
    reference = untrained(space, task.kind)
    for trial_fold in trial_folds.values():  # a wrong declaration of the target ends here, not in every trial
        fields = {key: value for key, value in reference.items() if key != "model"}
        model = open_model(reference["model"])
        model.start(model.config(**fields), training_rows, trial_fold.part(task.kind, task.quantity), "cpu")
    return Dataset(
        task=task,
        ids=rows.ids,
        row_numbers=rows.row_numbers,
        formulas=inputs.formulas,
        labels=rows.targets,
        quarantine=quarantine,
        notes=notes,
        unscored=set(bad_labels),
        n_raised_cutoff=inputs.n_raised_cutoff,
        data_sha256=rows.sha256,
        cache_key=inputs.cache_key,
        folds=folds,
        split_rule=split_rule,
        split_note=split_note,
        splits=splits,
        rows_ref=inputs.rows_ref,
        trial_folds={k: ray.put(trial_fold) for k, trial_fold in trial_folds.items()},
    )


@dataclass(frozen=True, eq=False)
class _Inputs:
    """What was read of a task's rows, whether they are structures or compositions."""

    formulas: list[str | None]
    reasons: list[str | None]
    notes: list[tuple[str, ...]]
    n_raised_cutoff: int
    cache_key: str
    rows_ref: ray.ObjectRef
    molecular: np.ndarray | None = None  # whether each crystal is, bool, shape (n_rows,), where the split asks for it


def _folds(task: Task, rows: Rows, inputs: _Inputs, split_rule: SplitRule) -> tuple[list[Fold], str]:
    """The folds that a rule makes, and what a reader must know of those that are not the task's own."""
    if split_rule == DEFAULT_SPLIT:
        return make_folds(task, rows.ids, rows.groups), ""
    fractions = ray.get(inputs.rows_ref).fractions
    begins = f"Split {split_rule}, not the folds of the task: scores are of crystals unlike those trained on"
    if split_rule == LEAVE_ELEMENTS_OUT:
        folds, left_out = leave_elements_out(rows.ids, fractions)
        symbols = {number: symbol for symbol, number in reversed(ATOMIC_NUMBERS.items())}
        lists = [f"fold {k}: {', '.join(symbols[z] for z in numbers)}" for k, numbers in enumerate(left_out)]
        return folds, f"{begins}. Elements that a fold tests and does not train on: {'; '.join(lists)}."
    assert inputs.molecular is not None
    folds = leave_molecules_out(rows.ids, inputs.molecular, fractions.any(axis=1))
    n_tested = sum(len(fold.test_ids) for fold in folds)
    return (
        folds,
        f"{begins}. Every fold trains on the crystals that are not molecular, and tests a fifth of {n_tested}.",
    )


def _read(
    task: Task,
    rows: Rows,
    space: SearchSpace,
    cache_folder: str,
    gpus_per_task: float,
    collapse: bool,
    split_rule: SplitRule,
    at_once: int | None,
) -> _Inputs:
    model = open_model(space.model)
    if task.inputs == "compositions":
        if model.reads != "compositions":
            raise SweepError(
                f"model {space.model} reads structures, and {task.name} as given has compositions only: choose a space "
                "of a model that reads compositions, such as composition_network"
            )
        if split_rule == LEAVE_MOLECULES_OUT:
            raise SweepError(
                f"--split {split_rule}: {task.name} as given has compositions only, and these do not say what is "
                f"molecular; {LEAVE_ELEMENTS_OUT} goes with compositions too"
            )
        compositions = read_compositions(rows)
        rows_ref = ray.put(CrystalRows(compositions.fractions, compositions.n_atoms))
        return _Inputs(compositions.formulas, compositions.reasons, compositions.notes, 0, "none", rows_ref)
    stored, key = graphs_of(rows, cutoffs(space.weights), cache_folder, at_once=at_once)
    # Read from now on where the trials will read it: the driver keeps no copy of its own.
    graphs_ref = ray.put(stored.graphs)
    stored = replace(stored, graphs=ray.get(graphs_ref))
    cache = f"{cache_folder.rstrip('/')}/{key}"
    features = outputs = corrections = None
    if model.reads != "compositions" and space.weights != "random":
        features, outputs = pretrained_outputs(graphs_ref, space.weights, cache, gpus_per_task, collapse, at_once)
    if space.undoes_corrections:
        corrections = corrections_of(graphs_ref, len(rows), cache, at_once)
    graphs = None if model.reads == "compositions" else stored.graphs
    fractions, n_atoms = element_fractions(stored.graphs), stored.graphs.atoms_per_graph.astype(np.int32)
    rows_ref = ray.put(CrystalRows(fractions, n_atoms, graphs, features, outputs, corrections, collapse))
    is_molecular = molecular(stored.graphs) if split_rule == LEAVE_MOLECULES_OUT else None
    return _Inputs(stored.formulas, stored.reasons, stored.notes, stored.n_raised_cutoff, key, rows_ref, is_molecular)


def untrained(space: SearchSpace, kind: Kind) -> dict[str, Any]:
    """What every result is compared with: `model` and its config.

    CHGNet with its reference and no training, where that is what the space trains; ridge on element fractions else.
    """
    model = open_model(space.model)
    if model.reads == "compositions" or "weights" not in model.config.model_fields:
        return {"model": "ridge"}
    fields: dict[str, Any] = {"weights": space.weights, "freeze_depth": "none", "epochs": 0}
    if not space.trains:  # then it is all that the space asks for
        fields["reference"] = space.default("reference", None)
    if space.parameters.get("undo_mp2020") is True:  # else training would be given the credit for it
        fields["undo_mp2020"] = True
    if kind == "classification":
        fields["loss"] = "cross_entropy"
    return {"model": "chgnet", **open_model("chgnet").config.model_validate(fields).model_dump()}


def _without_test_labels(split: Split, targets: np.ndarray) -> TrialFold:
    visible = np.full(len(targets), np.nan)
    for part in (split.train, split.val):
        visible[part] = targets[part]
    return TrialFold(visible, split.train, split.val, split.test)
