"""The parts of a sweep's report that tell of its predictions: how far off, where, and whether they know it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
from markupsafe import Markup

from data.metrics import TRUSTED
from tune.analysis.crystal_facts import FAMILIES_TOLD, SYMPREC, families
from tune.analysis.trusted import trust_facts, trust_sentence
from tune.pages import figures
from tune.pages.figures import Picture, number
from tune.pages.report_sections import Cell, Section, Shown, Table, cell, formula

WORST = 50  # crystals in the list
_SPACE_GROUPS = 15  # in the figure; the table has all
_BINS = 8  # of the target


def predictions(shown: Shown) -> list[Section]:
    """Parity and residuals of a regression, ROC curve of a classification."""
    table, sweep = shown.table, shown.sweep
    n = f"{len(table):,} test crystals"
    if not shown.regression:
        try:
            picture = figures.roc(table)
        except ValueError as problem:
            return [Section("roc", "ROC curve", f"{problem}.")]
        return [Section("roc", "ROC curve", picture.sentence, [_silent(picture)], note=f"All {n}, folds together.")]
    parity = figures.parity(table, sweep.task["target"], shown.in_unit)
    residuals = figures.residuals(table, shown.in_unit)
    return [
        Section("parity", "Prediction against truth", parity.sentence, [_silent(parity)], note=f"All {n}."),
        Section("residuals", "Residuals", residuals.sentence, [_silent(residuals)]),
    ]


def groups(shown: Shown) -> list[Section]:
    """Mean errors by element, family, target, and by what the structures tell."""
    table, true = shown.table, shown.table["y_true"]
    by_element = _by(table.assign(group=table["elements"].map(sorted)).explode("group"))
    n_elements = table["elements"].map(lambda symbols: figures.counted(len(symbols), "element"))
    of_families = table.assign(group=table["elements"].map(families)).explode("group")
    sections = [
        _elements(shown, by_element),
        _section(shown, "families", "By chemical family", _by(of_families).sort_values("error", ascending=False),
                 ("{}", "families"), note=FAMILIES_TOLD),
        _section(shown, "n_elements", "By number of elements", _by(table.assign(group=n_elements)),
                 ("compounds of {}", "numbers of elements")),
    ]  # fmt: skip
    quantiles = np.quantile(true, np.linspace(0, 1, min(_BINS, max(2, len(table) // 10)) + 1))
    edges = np.unique([float(f"{one:.3g}") for one in quantiles])  # as they are written
    if shown.regression and len(edges) > 1:
        bins = np.clip(np.searchsorted(edges, true, side="right") - 1, 0, len(edges) - 2)
        labels = [f"{number(a)} to {number(b)}" for a, b in pairwise(edges)]
        of_range = table.assign(group=pd.Categorical([labels[one] for one in bins], labels))
        unit, target = shown.unit, shown.sweep.task["target"]
        sections.append(
            _section(shown, "target", "By target range", _by(of_range), (f"{target} of {{}}{unit}", "ranges"),
                     note="From low to high, cut so that about as many crystals are in each; where many have the same "
                     "target, their range has more.")
        )  # fmt: skip
    elif not shown.regression:
        of_label = table.assign(group=np.where(true >= 0.5, "true", "false"))
        sections.append(_section(shown, "target", "By label", _by(of_label), ("crystals labelled {}", "labels")))
    return sections + _by_structure(shown)


def _by_structure(shown: Shown) -> list[Section]:
    table = shown.table
    titles = {"n_atoms": "By number of atoms", "symmetry": "By crystal system and space group"}
    if shown.why_no_structures:
        return [Section(key, title, f"{shown.why_no_structures}.") for key, title in titles.items()]
    known = table[table["n_atoms"].notna()]
    edges = [0, 2, 4, 6, 9, 12, 16, 24, 40, 80, np.inf]
    labels = [
        "1 or 2",
        "3 or 4",
        "5 or 6",
        "7 to 9",
        "10 to 12",
        "13 to 16",
        "17 to 24",
        "25 to 40",
        "41 to 80",
        "over 80",
    ]
    atoms = _by(known.assign(group=pd.cut(known["n_atoms"], edges, labels=labels)))
    systems = _by(known.assign(group=known["crystal_system"])).sort_values("error", ascending=False)
    space_groups = _by(known.assign(group=known["space_group"])).sort_values("n", ascending=False)
    tolerance = f"Space groups by spglib at a tolerance of {SYMPREC} Angstrom."
    frequent = figures.bars(space_groups.head(_SPACE_GROUPS), shown.error, table["abs_error"].mean())
    told = figures.group_sentence(space_groups, ("{}", "space groups"), shown.unit)
    what = ("{} crystals", "crystal systems")
    section = _section(shown, "symmetry", titles["symmetry"], systems, what, note=tolerance)
    section.pictures.append(Picture(frequent.figure, f"The most frequent space groups. {told}", frequent.height))
    section.tables.append(_table(space_groups, "space group", shown))
    return [_section(shown, "n_atoms", titles["n_atoms"], atoms, ("cells of {} atoms", "sizes")), section]


def _by(table: pd.DataFrame) -> pd.DataFrame:
    """Of each `group`: n, mean absolute error, its standard deviation, median and largest error; without empty ones."""
    return table.dropna(subset="group").groupby("group", observed=True).agg(
        n=("abs_error", "size"), error=("abs_error", "mean"), spread=("abs_error", "std"),
        median=("abs_error", "median"), largest=("abs_error", "max"),
    )  # fmt: skip


def _section(shown: Shown, key: str, title: str, found: pd.DataFrame, what: tuple[str, str], note: str = "") -> Section:
    sentence = figures.group_sentence(found, what, shown.unit)
    if len(found) < 2:
        return Section(key, title, sentence)
    bars = figures.bars(found, shown.error, shown.table["abs_error"].mean())
    small = (
        f"In brackets the number of crystals, pale where below {figures.FEW}; lines are 95 % intervals of the mean; "
        "the dotted line is the mean of all. "
    )
    return Section(key, title, sentence, [bars], [_table(found, "group", shown)], note=small + note)


def _elements(shown: Shown, found: pd.DataFrame) -> Section:
    if not len(found):
        return Section("elements", "By element", "No formula names an element.")
    sentence = figures.group_sentence(found, ("compounds with {}", "elements"), shown.unit)
    note = "The mean of the crystals that hold the element; how many they are shows on touching it, and in the table."
    table = _table(found.sort_values("error", ascending=False), "element", shown)
    if not found["error"].any():  # no colour stands for an error of 0 alone
        return Section("elements", "By element", sentence, tables=[table])
    return Section("elements", "By element", sentence, [figures.elements(found, shown.error)], [table], note=note)


def _table(found: pd.DataFrame, what: str, shown: Shown) -> Table:
    columns = [what, "crystals", f"{shown.error}", "median", "largest"]
    rows = [[Cell(str(name)), cell(int(row["n"])), *(cell(float(row[part])) for part in ("error", "median", "largest"))]
            for name, row in found.iterrows()]  # fmt: skip
    return Table(columns, rows, f"Numbers by {what}", folded=True)


def worst(shown: Shown) -> Section:
    """The crystals with the largest errors, with their pictures."""
    many = min(WORST, len(shown.table))
    table = shown.table.nlargest(many, "abs_error")
    extra = {"std": "std", "n_atoms": "atoms", "space_group": "space group"}
    extra = {name: title for name, title in extra.items() if name in table}
    columns = ["#", *(["cell"] if shown.pictures else []), "formula", "id", "fold", "true", "predicted", "|error|"]
    rows = []
    for rank, row in enumerate(table.to_dict("records"), start=1):
        pictured = [Cell(Markup(shown.pictures.get(row["id"], "")))] if shown.pictures else []
        numbers = [cell(float(row[name]), 4) for name in ("y_true", "y_pred", "abs_error")]
        others = [Cell("not known") if pd.isna(row[name]) else cell(int(row[name]) if name == "n_atoms" else row[name])
                  for name in extra]  # fmt: skip
        named = [Cell(formula(row["composition"])), Cell(row["id"]), cell(row["fold"])]
        rows.append([cell(rank), *pictured, *named, *numbers, *others])
    share = table["abs_error"].sum() / max(shown.table["abs_error"].sum(), 1e-300)
    common = table["elements"].explode().value_counts()
    sentence = f"These {many} of {len(shown.table):,} crystals hold {share:.0%} of the summed error"
    if len(common):
        everywhere = shown.table["elements"].explode().value_counts() / len(shown.table)
        lift = (common[common >= 3] / many / everywhere).dropna()
        if len(lift) and lift.max() > 1.5:
            element = str(lift.idxmax())
            sentence += f"; {common[element]} contain {element}, as do {everywhere[element]:.0%} of all"
    why = f"{shown.why_no_structures}: no pictures. " if shown.why_no_structures else ""
    note = f"{why}Target{shown.in_unit}; a click on a head sorts."
    if shown.pictures:
        note += " Cells are seen almost along a, c upwards; colours are Jmol's, and symbols name the elements."
    columns += extra.values()
    return Section("worst", f"The {many} worst", f"{sentence}.", tables=[Table(columns, rows)], note=note)


def trust(shown: Shown) -> list[Section]:
    """Which predictions are not to be trusted; nothing of a sweep of an earlier version, which has no marks."""
    table = shown.table
    if "trusted" not in table:
        return []
    facts = trust_facts(
        [(int(str(fold)), fold_table) for fold, fold_table in table.groupby("fold")], shown.sweep.metric
    )
    metric, untrusted = shown.sweep.metric.name, shown.sweep.results["options"].get("untrusted", "keep")
    entry = {"trust": facts, "mean": _mean_over_folds(table, shown)}
    sentence = trust_sentence(entry, metric, untrusted)
    rows = [
        [Cell(formula(row["composition"])), Cell(row["id"]), cell(row["fold"]), cell(float(row["trust"]), 3),
         *(cell(float(row[name]), 4) for name in ("y_true", "y_pred", "abs_error"))]
        for row in table[~table["trusted"]].nsmallest(WORST, "trust").to_dict("records")
    ]  # fmt: skip
    columns = ["formula", "id", "fold", "trust", "true", "predicted", "|error|"]
    note = (
        f"Trust goes from 1 to 0, and below {TRUSTED} a prediction is marked: the crystal's elements or environments, "
        "or the way from the untrained baseline's prediction, are more than 3 times what is usual on validation."
    )
    tables = [Table(columns, rows, f"The {len(rows)} least trusted")] if rows else []
    return [
        Section("trust", "What to trust", f"{sentence[0].upper()}{sentence[1:]}.",
                [figures.errors_by_trust(table, shown.in_unit)], tables, note)
    ]  # fmt: skip


def _mean_over_folds(table: pd.DataFrame, shown: Shown) -> dict[str, float]:
    """The score of the shown member."""
    metric = shown.sweep.metric
    by_fold = [
        metric.value(fold_table["y_true"].to_numpy(), fold_table["y_pred"].to_numpy())
        for _, fold_table in table.groupby("fold")
    ]
    return {metric.name: float(np.mean(by_fold))}


def calibration(shown: Shown) -> Section:
    """Whether the uncertainty, or the probability, can be believed."""
    key, title, table = "calibration", "Calibration", shown.table
    if not shown.regression:
        picture = figures.reliability(table)
        return Section(key, title, picture.sentence, [_silent(picture)])
    if "std" not in table or not (table["std"] > 0).any():
        why = "neither an ensemble (--seeds above 1) nor a model that knows its own"
        return Section(key, title, f"There is no uncertainty to judge: {why}.")
    known = table[table["std"].notna()]
    inside = figures.coverage(known)
    pictures = [_silent(inside)]
    if known[["std", "abs_error"]].nunique().min() > 1:
        pictures.append(figures.errors_by_std(known, shown.in_unit))
    source = "the spread of the members" if shown.member.name == "ensemble" else "the model's own"
    return Section(key, title, inside.sentence, pictures, note=f"The std is {source}.")


def _silent(picture: Picture) -> Picture:
    """The same without its sentence, which the section says."""
    return replace(picture, sentence="")
