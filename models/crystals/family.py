"""The family of crystals: of tasks whose rows are structures or formulas. What each function is for: `Family`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data.crystals.compositions import read_compositions
from data.crystals.elements import ATOMIC_NUMBERS
from data.crystals.graphs import element_fractions
from data.crystals.left_out import leave_elements_out, leave_molecules_out
from data.crystals.left_out_rules import LEAVE_ELEMENTS_OUT, LEAVE_MOLECULES_OUT
from data.crystals.molecules import molecular
from data.crystals.rows import Rows
from data.crystals.task_table import DEMO
from data.fold import DEFAULT_SPLIT, Fold
from data.task import Kind, Quantity, Task
from models.config import ModelConfig
from models.crystals import trust as trusts
from models.crystals.cached_arrays import backbone_output, energy_corrections
from models.crystals.chgnet.features import GRAPHS_PER_PASS
from models.crystals.chgnet.model import CHGNET
from models.crystals.chgnet.network import cutoffs
from models.crystals.demo_rows import demo_rows
from models.crystals.needs import CrystalNeeds
from models.crystals.new_rows import new_rows as new_rows
from models.crystals.planning import counted_work as counted_work
from models.crystals.planning import reading as reading
from models.crystals.rows import CrystalRows
from models.crystals.trust import Trust, calibration_rows
from models.crystals.trust import load_trust as load_trust
from models.crystals.tta import averaged as mean_of_copies
from models.crystals.tta import judge_copies as judge_copies
from models.family import CachedArrays, FamilyRows
from models.model import Fitted, Model, Prediction, TrainingPart

PRETRAINED_ON = (
    "CHGNet was pretrained on Materials Project data, which this task comes from: its test crystals, or close "
    "relatives, may have been seen in pretraining. Do not rank "
    "it against models trained from scratch without saying so."
)
_COMPOSITIONS_ONLY = "compositions"
ROWS_PER_PASS = GRAPHS_PER_PASS


def needs(model: Model, parameters: Mapping[str, Any]) -> CrystalNeeds:
    """See `Family`."""
    structures = model.reads != _COMPOSITIONS_ONLY
    field = model.config.model_fields.get("weights")
    weights = parameters.get("weights", field.default) if structures and field else "0.3.0"
    return CrystalNeeds(structures, weights, "true" in str(parameters.get("undo_mp2020", "")).lower())


def refusal(model: Model, task: Task, split_rule: str, tta: str) -> str | None:
    """See `Family`."""
    if tta != "none" and _COMPOSITIONS_ONLY in (task.inputs, model.reads):
        return f"--tta {tta}: model {model.name} reads compositions, which moving atoms does not change"
    if task.inputs != _COMPOSITIONS_ONLY:
        return None
    if model.reads != _COMPOSITIONS_ONLY:
        return (
            f"model {model.name} reads structures, and {task.name} as given has compositions only: choose a space "
            "of a model that reads compositions, such as composition_network"
        )
    if split_rule == LEAVE_MOLECULES_OUT:
        return (
            f"--split {split_rule}: {task.name} as given has compositions only, and these do not say what is "
            f"molecular; {LEAVE_ELEMENTS_OUT} goes with compositions too"
        )
    return None


def read(
    task: Task,
    rows: Rows,
    need: CrystalNeeds,
    cache_folder: str,
    split_rule: str,
    *,
    collapse: bool,
    at_once: int | None,
) -> FamilyRows:
    """Formulas, or structures as graphs from the cache, which Ray actors build where it lacks some.

    Args:
        task: of the rows.
        rows: all rows of the task.
        need: what trials read.
        cache_folder: path or URI that holds the caches.
        split_rule: how folds are made.
        collapse: whether equivalent atoms of a crystal are computed once.
        at_once: processes that compute; None: as many as fit.
    """
    if task.inputs == _COMPOSITIONS_ONLY:
        compositions = read_compositions(rows)
        folds, note = _folds(rows.ids, compositions.fractions, None, split_rule)
        return FamilyRows(
            rows=CrystalRows(compositions.fractions, compositions.n_atoms),
            group_names=compositions.formulas,
            reasons=compositions.reasons,
            notes=compositions.notes,
            remarks=[],
            facts={"n_raised_cutoff": 0},
            cache_key="none",
            folds=folds,
            split_note=note,
        )
    from data.crystals.graph_cache import graphs_of  # brings Ray, which models are trained without

    stored, key = graphs_of(rows, cutoffs(need.weights), cache_folder, at_once=at_once)
    fractions, n_atoms = element_fractions(stored.graphs), stored.graphs.atoms_per_graph.astype(np.int32)
    is_molecular = molecular(stored.graphs) if split_rule == LEAVE_MOLECULES_OUT else None
    folds, note = _folds(rows.ids, fractions, is_molecular, split_rule)
    n_raised = stored.n_raised_cutoff
    return FamilyRows(
        rows=CrystalRows(fractions, n_atoms, stored.graphs if need.structures else None, collapse=collapse),
        group_names=stored.formulas,
        reasons=stored.reasons,
        notes=stored.notes,
        remarks=[f"{n_raised} crystals have isolated atoms; their cutoff was raised"] if n_raised else [],
        facts={"n_raised_cutoff": n_raised},
        cache_key=key,
        folds=folds,
        split_note=note,
    )


def caches(task: Task) -> bool:
    """See `Family`: graphs are, formulas are not."""
    return task.inputs != _COMPOSITIONS_ONLY


def arrays(need: CrystalNeeds, *, collapse: bool) -> list[CachedArrays]:
    """See `Family`."""
    if not need.structures:
        return []
    output = [backbone_output(need.weights, collapse)] if need.weights != "random" else []
    return output + ([energy_corrections()] if need.corrections else [])


def baseline(model: Model, parameters: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """CHGNet with its reference and no training, where its weights are trained; ridge on element fractions else."""
    if model.reads == _COMPOSITIONS_ONLY or "weights" not in model.config.model_fields:
        return {"model": "ridge"}
    fields: dict[str, Any] = {"weights": needs(model, parameters).weights, "freeze_depth": "none", "epochs": 0}
    if not model.trains(parameters):  # then it is all that the space asks for
        info = model.config.model_fields.get("reference")
        fields["reference"] = parameters.get("reference", info.default if info else None)
    if parameters.get("undo_mp2020") is True:  # else training would be given the credit for it
        fields["undo_mp2020"] = True
    if kind == "classification":
        fields["loss"] = "cross_entropy"
    return {"model": CHGNET.name, **CHGNET.config.model_validate(fields).model_dump()}


def baseline_title(model: str, config: Mapping[str, Any], quantity: Quantity) -> str:
    """See `Family`."""
    is_pretrained = model == CHGNET.name and quantity != "other" and config["weights"] != "random"
    title = "pretrained + reference" if is_pretrained else "reference: linear in the element fractions"
    return title + (", corrections of 2020 undone" if config.get("undo_mp2020") else "")


def pretraining_note(model: Model, parameters: Mapping[str, Any]) -> str:
    """See `Family`."""
    has_weights = model.reads != _COMPOSITIONS_ONLY and "weights" in model.config.model_fields
    return PRETRAINED_ON if has_weights and needs(model, parameters).weights != "random" else ""


def target_note(model: Model, task: Task) -> str:
    """See `Family`: asked of regressions of the user's own."""
    if task.official or task.name == DEMO.name or task.kind != "regression" or model.reads == _COMPOSITIONS_ONLY:
        return ""
    if task.quantity != "other":
        return f"The target is taken for CHGNet's energy, as declared (--quantity {task.quantity})."
    return "The target is not taken for an energy (no --quantity says so): CHGNet's own energy does not predict it."


def sizes(rows: CrystalRows) -> np.ndarray:
    """Atoms of each crystal or formula, shape (n_rows,)."""
    return rows.n_atoms


def work(rows: CrystalRows) -> np.ndarray:
    """Bonds of each crystal, or atoms of each formula; shape (n_rows,)."""
    return rows.n_atoms if rows.graphs is None else np.diff(rows.graphs.bond_start)


def small_task(need: CrystalNeeds, kind: Kind, quantity: Quantity) -> tuple[CrystalRows, TrainingPart]:
    """The smallest crystals of the demo."""
    return demo_rows(need.weights, kind, quantity)


def fit_trust(
    config: ModelConfig, rows: CrystalRows, part: TrainingPart, predicted: Callable[[np.ndarray], np.ndarray]
) -> Trust:
    """See `Family`."""
    weights = getattr(config, "weights", "") if rows.features is not None else ""
    return trusts.fit_trust(
        rows,
        part,
        predicted(calibration_rows(part)),
        weights="" if weights == "random" else weights,
        energies=part.kind == "regression" and part.quantity != "other",
        undo_mp2020=bool(getattr(config, "undo_mp2020", False)),
    )


def averaged(fitted: Fitted, rows: CrystalRows, which: np.ndarray, copies: int) -> Prediction:
    """See `Family`: compositions cannot be moved."""
    return fitted.predict_rows(rows, which) if rows.graphs is None else mean_of_copies(fitted, rows, which, copies)


def about(config: ModelConfig) -> dict[str, str]:
    """See `Family`."""
    weights = getattr(config, "weights", None)
    return {} if weights is None else {"weights": weights}


def _folds(
    ids: list[str], fractions: np.ndarray, is_molecular: np.ndarray | None, split_rule: str
) -> tuple[list[Fold] | None, str]:
    """The folds that a rule makes, and what a reader must know of them; None of the task's own."""
    if split_rule == DEFAULT_SPLIT:
        return None, ""
    begins = f"Split {split_rule}, not the folds of the task: scores are of crystals unlike those trained on"
    if split_rule == LEAVE_ELEMENTS_OUT:
        folds, left_out = leave_elements_out(ids, fractions)
        symbols = {number: symbol for symbol, number in reversed(ATOMIC_NUMBERS.items())}
        lists = [f"fold {k}: {', '.join(symbols[z] for z in numbers)}" for k, numbers in enumerate(left_out)]
        return folds, f"{begins}. Elements that a fold tests and does not train on: {'; '.join(lists)}."
    assert is_molecular is not None
    folds = leave_molecules_out(ids, is_molecular, np.asarray(fractions.any(axis=1)))
    n_tested = sum(len(fold.test_ids) for fold in folds)
    return (
        folds,
        f"{begins}. Every fold trains on the crystals that are not molecular, and tests a fifth of {n_tested}.",
    )
