"""The parts of a sweep's report that tell of its predictions: how far off, where, and whether they know it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from data.metrics import TRUSTED, scores_of
from models.family import Column
from tune.analysis.trusted import trust_facts, trust_sentence
from tune.pages import figures
from tune.pages.figures import Picture, number
from tune.pages.report_sections import Cell, PageContent, Section, Table, cell

WORST = 50  # examples in the list
_FREQUENT = 15  # values of a finer category in its figure; the table has all
_BINS = 8  # of the target


def predictions(content: PageContent) -> list[Section]:
    """Parity and residuals of a regression, ROC curve of a classification."""
    table, words = content.table, content.words
    n = f"{len(table):,} test {words.examples}"
    if not content.of_numbers:
        return []
    if not content.regression:
        try:
            picture = figures.roc(table, words)
        except ValueError as problem:
            return [Section("roc", "ROC curve", f"{problem}.")]
        return [Section("roc", "ROC curve", picture.sentence, [_silent(picture)], note=f"All {n}, folds together.")]
    parity = figures.parity(table, content.sweep.task["target"], content.in_unit, words)
    residuals = figures.residuals(table, content.in_unit, words)
    return [
        Section("parity", "Prediction against truth", parity.sentence, [_silent(parity)], note=f"All {n}."),
        Section("residuals", "Residuals", residuals.sentence, [_silent(residuals)]),
    ]


def error_means(content: PageContent) -> list[Section]:
    """Mean errors by what the family knows of its examples, and by target."""
    columns = [column for column in _columns(content) if column.title]
    return [
        *(_by_column(content, column) for column in columns if not column.opened),
        *(_by_its_target(content) if content.of_numbers else []),
        *(_by_column(content, column) for column in columns if column.opened),
    ]


def _columns(content: PageContent) -> list[Column]:
    return [] if content.facts is None else list(content.facts.COLUMNS)


def _by_its_target(content: PageContent) -> list[Section]:
    """Mean errors by target or by label."""
    return _by_target(content) if content.regression else [_by_label(content)]


def _by_target(content: PageContent) -> list[Section]:
    """Mean errors by range of the target; none where all have the same."""
    table, true, words = content.table, content.table["y_true"], content.words
    quantiles = np.quantile(true, np.linspace(0, 1, min(_BINS, max(2, len(table) // 10)) + 1))
    edges = np.unique([float(f"{quantile:.3g}") for quantile in quantiles])  # as they are written
    if len(edges) < 2:
        return []
    bins = np.clip(np.searchsorted(edges, true, side="right") - 1, 0, len(edges) - 2)
    labels = [f"{number(a)} to {number(b)}" for a, b in pairwise(edges)]
    means = _means(content, pd.Series(pd.Categorical([labels[k] for k in bins], labels), table.index))
    phrase = f"{content.sweep.task['target']} of {{}}{content.unit}"
    note = (
        f"From low to high, cut so that about as many {words.examples} are in each; where many have the same "
        "target, their range has more."
    )
    return [_section(content, Column("target", "number", "By target range", phrase, "ranges", note=note), means)]


def _by_label(content: PageContent) -> Section:
    """Mean errors of the examples that are true, and of the others."""
    labels = pd.Series(np.where(content.table["y_true"] >= 0.5, "true", "false"), content.table.index)
    column = Column("target", "category", "By label", f"{content.words.examples} labelled {{}}", "labels")
    return _section(content, column, _means(content, labels))


def _by_column(content: PageContent, column: Column) -> Section:
    """Mean errors by the values of a column, or why there are none."""
    if column.opened and content.why_not_opened:
        return Section(column.name, column.title, f"{content.why_not_opened}.")
    values = content.table[column.name]
    if column.kind == "number":
        ends = [-np.inf, *(end for end, _ in column.ranges)]
        values = pd.cut(values, ends, labels=[label for _, label in column.ranges])
    means = _means(content, values)
    if column.figure is not None:
        return _drawn_section(content, column, means)
    if column.kind == "category":
        means = means.sort_values("error", ascending=False)
    section = _section(content, column, means)
    for finer in _columns(content):
        if finer.within == column.name:
            _add_finer(content, section, finer)
    return section


def _add_finer(content: PageContent, section: Section, column: Column) -> None:
    """Add the most frequent values of a finer category to the section of a coarser one."""
    means = _means(content, content.table[column.name]).sort_values("n", ascending=False)
    frequent = figures.bars(means.head(_FREQUENT), content.error, content.table["abs_error"].mean())
    sentence = _sentence(content, column, means)
    sentence = f"The most frequent {column.several}. {sentence}"
    section.pictures.append(Picture(frequent.figure, sentence, frequent.height))
    section.tables.append(_table(content, column, means))


def _means(content: PageContent, values: pd.Series) -> pd.DataFrame:
    """Of each value: n, mean absolute error, its standard deviation, median and largest error; without empty ones.

    Args:
        content: of the page.
        values: one of each row, or a list of several.
    """
    table = pd.DataFrame({"value": values, "abs_error": content.table["abs_error"]})
    if not isinstance(values.dtype, pd.CategoricalDtype):
        table = table.explode("value")
    return table.dropna(subset="value").groupby("value", observed=True).agg(
        n=("abs_error", "size"), error=("abs_error", "mean"), spread=("abs_error", "std"),
        median=("abs_error", "median"), largest=("abs_error", "max"),
    )  # fmt: skip


def _sentence(content: PageContent, column: Column, means: pd.DataFrame) -> str:
    return figures.means_sentence(means, column.phrase, column.several, content.unit, content.words)


def _section(content: PageContent, column: Column, means: pd.DataFrame) -> Section:
    """Mean errors as bars and as a table."""
    sentence = _sentence(content, column, means)
    if len(means) < 2:
        return Section(column.name, column.title, sentence)
    bars = figures.bars(means, content.error, content.table["abs_error"].mean())
    note = (
        f"In brackets the number of {content.words.examples}, pale where below {figures.FEW}; lines are 95 % intervals "
        f"of the mean; the dotted line is the mean of all. {column.note}"
    )
    return Section(column.name, column.title, sentence, [bars], [_table(content, column, means)], note=note)


def _drawn_section(content: PageContent, column: Column, means: pd.DataFrame) -> Section:
    """Mean errors as the family draws them, and as a table."""
    assert column.figure is not None
    sentence = _sentence(content, column, means)
    if not len(means):
        return Section(column.name, column.title, sentence)
    table = _table(content, column, means.sort_values("error", ascending=False))
    if not means["error"].any():  # no colour stands for an error of 0 alone
        return Section(column.name, column.title, sentence, tables=[table])
    picture = figures.own(column.figure(means, content.error))
    return Section(column.name, column.title, sentence, [picture], [table], note=column.note)


def _table(content: PageContent, column: Column, means: pd.DataFrame) -> Table:
    heads = [column.head, content.words.examples, content.error, "median", "largest"]
    rows = [[Cell(str(name)), cell(int(row["n"])), *(cell(float(row[of])) for of in ("error", "median", "largest"))]
            for name, row in means.iterrows()]  # fmt: skip
    return Table(heads, rows, f"Numbers by {column.head}", folded=True)


def worst(content: PageContent) -> Section:
    """The examples with the largest errors, with their pictures."""
    n_worst = min(WORST, len(content.table))
    table = content.table.nlargest(n_worst, "abs_error")
    columns = [column for column in _columns(content) if column.list_head]
    picture_columns = [column for column in columns if column.kind == "picture" and content.pictures]
    other_columns = [
        Column("std", "number", list_head="std"),
        *(column for column in columns if column.kind != "picture"),
    ]
    other_columns = [column for column in other_columns if column.name in table]
    heads = ["#", *(column.list_head for column in picture_columns), _group_head(content), "id", "fold"]
    heads += [
        *(["true", "predicted", "|error|"] if content.of_numbers else ["error"]),
        *(column.list_head for column in other_columns),
    ]
    rows = []
    for rank, row in enumerate(table.to_dict("records"), start=1):
        cells = [cell(rank), *(Cell(Markup(content.pictures.get(row["id"], ""))) for _ in picture_columns)]
        cells += [*_named(content, row), *_numbers(content, row)]
        rows.append([*cells, *(_fact(row[column.name]) for column in other_columns)])
    share = table["abs_error"].sum() / max(content.table["abs_error"].sum(), 1e-300)
    sentence = (
        f"These {n_worst} of {len(content.table):,} {content.words.examples} hold {share:.0%} of the summed error"
    )
    sentence += "".join(_share_sentence(content, column, table) for column in _columns(content) if column.share)
    why = f"{content.why_not_opened}: no pictures. " if content.why_not_opened else ""
    note = " ".join(
        [f"{why}Target{content.in_unit}; a click on a head sorts.", *(column.note for column in picture_columns)]
    )
    return Section("worst", f"The {n_worst} worst", f"{sentence}.", tables=[Table(heads, rows)], note=note)


def _group_head(content: PageContent) -> str:
    return content.words.group if content.facts is None else content.facts.GROUP_HEAD


def _named(content: PageContent, row: dict[str, Any]) -> list[Cell]:
    """The group, id and fold of a row."""
    group = str(escape(row["group"])) if content.facts is None else content.facts.group_html(row["group"])
    return [Cell(Markup(group)), Cell(row["id"]), cell(row["fold"])]


def _numbers(content: PageContent, row: dict[str, Any]) -> list[Cell]:
    """The label, prediction and error of a row; where they are no numbers the error alone."""
    names = ("y_true", "y_pred", "abs_error") if content.of_numbers else ("abs_error",)
    return [cell(float(row[name]), 4) for name in names]


def _fact(value: Any) -> Cell:
    if pd.isna(value):
        return Cell("not known")
    return cell(int(value) if isinstance(value, float) and value.is_integer() else value)


def _share_sentence(content: PageContent, column: Column, worst_rows: pd.DataFrame) -> str:
    """Which value is in many of the worst examples and in fewer of all; "" where none is."""
    counts = worst_rows[column.name].explode().value_counts()
    if not len(counts):
        return ""
    everywhere = content.table[column.name].explode().value_counts() / len(content.table)
    lift = (counts[counts >= 3] / len(worst_rows) / everywhere).dropna()
    if not len(lift) or lift.max() <= 1.5:
        return ""
    value = str(lift.idxmax())
    return f"; {counts[value]} {column.share.format(value)}, as do {everywhere[value]:.0%} of all"


def trust(content: PageContent) -> list[Section]:
    """Which predictions are not to be trusted; nothing of a sweep of an earlier version, which has no marks."""
    table = content.table
    if "trusted" not in table:
        return []
    facts = trust_facts(
        [(int(str(fold)), fold_table) for fold, fold_table in table.groupby("fold")],
        content.sweep.metric,
        content.words.group,
    )
    metric, untrusted = content.sweep.metric.name, content.sweep.results["options"].get("untrusted", "keep")
    entry = {"trust": facts, "mean": _mean_over_folds(table, content)}
    sentence = trust_sentence(entry, metric, content.words.group, untrusted)
    rows = [
        [*_named(content, row), cell(float(row["trust"]), 3), *_numbers(content, row)]
        for row in table[~table["trusted"]].nsmallest(WORST, "trust").to_dict("records")
    ]  # fmt: skip
    columns = [_group_head(content), "id", "fold", "trust", "true", "predicted", "|error|"]
    when = f"the {content.words.example}, or the prediction, is far from what was trained on"
    when = when if content.facts is None else content.facts.TRUST
    note = f"Trust goes from 1 to 0, and below {TRUSTED} a prediction is marked: {when}."
    tables = [Table(columns, rows, f"The {len(rows)} least trusted")] if rows else []
    return [
        Section("trust", "What to trust", f"{sentence[0].upper()}{sentence[1:]}.",
                [figures.errors_by_trust(table, content.in_unit)], tables, note)
    ]  # fmt: skip


def _mean_over_folds(table: pd.DataFrame, content: PageContent) -> dict[str, float]:
    """The score of the shown member."""
    metric = content.sweep.metric
    by_fold = [scores_of(metric, fold_table)[metric.name] for _, fold_table in table.groupby("fold")]
    return {metric.name: float(np.mean(by_fold))}


def calibration(content: PageContent) -> list[Section]:
    """Whether the uncertainty, or the probability, can be believed; nothing where predictions are no numbers."""
    return [_calibration(content)] if content.of_numbers else []


def _calibration(content: PageContent) -> Section:
    key, title, table = "calibration", "Calibration", content.table
    if not content.regression:
        picture = figures.reliability(table, content.words)
        return Section(key, title, picture.sentence, [_silent(picture)])
    if "std" not in table or not (table["std"] > 0).any():
        why = "neither an ensemble (--seeds above 1) nor a model that knows its own"
        return Section(key, title, f"There is no uncertainty to judge: {why}.")
    with_std = table[table["std"].notna()]
    inside = figures.coverage(with_std)
    pictures = [_silent(inside)]
    if with_std[["std", "abs_error"]].nunique().min() > 1:
        pictures.append(figures.errors_by_std(with_std, content.in_unit, content.words))
    source = "the spread of the members" if content.member.name == "ensemble" else "the model's own"
    return Section(key, title, inside.sentence, pictures, note=f"The std is {source}.")


def _silent(picture: Picture) -> Picture:
    """The same without its sentence, which the section says."""
    return replace(picture, sentence="")
