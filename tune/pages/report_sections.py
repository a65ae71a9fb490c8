"""What the parts of a sweep's report are made of; and its scores, configuration, levers and cost."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from data.metrics import METRICS
from data.stores.storage import file_names, open_folder, read_whole
from data.task_words import TaskWords
from models.family import FamilyFacts
from tune.pages.figures import Picture, counted, number
from tune.runs import Member, SweepRun

SCORES = {name: metric.title for name, metric in METRICS.items()}


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it shows, and what it is sorted by (its text where there is no number)."""

    text: str | Markup
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table of the page, sortable by its columns.

    Attributes:
        columns: their heads.
        rows: of cells, as many as columns.
        title: a line above.
        folded: shown only when it is asked for.
    """

    columns: list[str]
    rows: list[list[Cell]]
    title: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page: what one sees in a sentence, then figures and tables.

    Attributes:
        key: its anchor.
        title: its head.
        sentence: generated from the data.
        pictures: figures with their own sentences.
        tables: below them.
        note: how it was made, in small print.
    """

    key: str
    title: str
    sentence: str
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True, eq=False)
class PageContent:
    """What a page shows of a sweep.

    Attributes:
        sweep: all of it.
        member: whose predictions are shown.
        table: its test predictions, one row an example, with the facts that are known of it.
        facts: what the family says of its examples; None where it says nothing.
        why_not_opened: the sentence that says why some facts are not known; "" where all are.
        pictures: of the worst examples, HTML by id.
        unit: ` eV/atom`, with a blank before it; "" of a probability or where none is known.
    """

    sweep: SweepRun
    member: Member
    table: pd.DataFrame
    facts: FamilyFacts | None
    why_not_opened: str
    pictures: dict[str, str]
    unit: str

    @property
    def words(self) -> TaskWords:
        """What the task calls its examples and their groups."""
        return self.sweep.words

    @property
    def regression(self) -> bool:
        """Whether the task is one."""
        return bool(self.sweep.task["kind"] == "regression")

    @property
    def of_numbers(self) -> bool:
        """Whether predictions are numbers, which can be drawn against the labels."""
        return "y_pred" in self.table

    @property
    def in_unit(self) -> str:
        """The unit behind a label, ` (eV/atom)`."""
        return f" ({self.unit.strip()})" if self.unit else ""

    @property
    def axis(self) -> str:
        """What the metric is called on an axis, `MAE (eV/atom)`."""
        return f"{SCORES[self.sweep.metric.name]}{self.in_unit}"

    @property
    def error(self) -> str:
        """What errors are called on an axis."""
        if not self.of_numbers:
            title = self.sweep.metric.title
            return f"{title}{self.in_unit}" if self.sweep.metric.mode == "min" else f"1 - {title}"
        return f"mean |error|{self.in_unit}" if self.regression else "mean |label - probability|"


def cell(value: Any, digits: int | None = None) -> Cell:
    """A cell of anything: numbers with so many digits after the point, or three significant ones."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return Cell(str(value))
    if isinstance(value, int | np.integer):
        return Cell(f"{value:,}", float(value))
    return Cell(number(float(value)) if digits is None else f"{value:.{digits}f}", float(value))


def short(value: Any) -> str:
    """A value of a configuration."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _over_folds(entry: dict[str, Any], name: str) -> float:
    """The mean of a score, and of largest errors the largest."""
    values = [scores_of_fold[name] for scores_of_fold in entry["folds"]]
    return float(max(values) if name == "max_error" else np.mean(values))


def scores(content: PageContent) -> Section:
    """The main table: the untrained reference, seeds and ensemble, by fold."""
    results, metric = content.sweep.results, content.sweep.metric.name
    entries = [(results["reference"]["title"], results["reference"])]
    entries += [(f"seed {entry['seed']}", entry) for entry in results["seeds"]]
    if "ensemble" in results:
        entries.append(
            (results["ensemble"].get("title", f"ensemble of {len(results['seeds'])} seeds"), results["ensemble"])
        )
    folds = content.sweep.folds
    other_metrics = [
        name
        for name in SCORES
        if name != metric and all(name in scores_of_fold for _, e in entries for scores_of_fold in e["folds"])
    ]
    rows = []
    for title, entry in entries:
        values = {scores_of_fold["fold"]: scores_of_fold[metric] for scores_of_fold in entry["folds"]}
        mean = entry["mean"][metric]
        spread = entry.get("std_over_folds", {}).get(metric)
        rows.append(
            [
                Cell(title),
                Cell(f"{mean:.4f}" + ("" if spread is None else f" ± {spread:.4f}"), mean),
                *(cell(float(values[fold]), 4) for fold in folds),
                *(cell(_over_folds(entry, name), 4) for name in other_metrics),
            ]
        )
    columns = ["model", f"{SCORES[metric]}{content.in_unit}", *(f"fold {fold}" for fold in folds)]
    columns += [SCORES.get(name, name) for name in other_metrics]
    before, after = entries[0][1]["mean"][metric], entries[-1][1]["mean"][metric]
    change = ""
    if len(entries) > 1 and before:
        verb = "lower" if after < before else "higher"
        by = f"{abs(after / before - 1):.0%}" if content.regression else f"{abs(after - before):.4f}"
        change = f", {by} {verb} than {entries[0][0]} ({before:.4f})"
    over = f"the mean over {len(folds)} folds" if len(folds) > 1 else f"fold {folds[0]} alone"
    sentence = f"{entries[-1][0].capitalize()}: test {SCORES[metric]} {after:.4f}{content.unit}, {over}{change}."
    titles = {f"seed_{entry['seed']}": f"seed {entry['seed']}" for entry in results["seeds"]}
    seed_members = [name for name in content.sweep.members if name.startswith("seed_")]
    member = titles.get(content.member.name, f"the {content.member.name}")
    note = f"The rest of this page shows the predictions of {member}"
    if content.member.name == "ensemble":
        note += ", the mean of the members" if not seed_members else f", the mean of the {len(seed_members)} seeds"
    if "seed_std" in results:
        note += f"; the mean differs between seeds by {number(results['seed_std'])}{content.unit} (standard deviation)"
    spread_note = " ± is the standard deviation over folds." if len(folds) > 1 else ""
    return Section("scores", "Test scores", sentence, tables=[Table(columns, rows)], note=f"{note}.{spread_note}")


def configuration(content: PageContent) -> Section:
    """The chosen configuration, and where each value comes from."""
    results = content.sweep.results
    configs = {entry["fold"]: entry["config"] for entry in results["chosen"]}
    space = results["options"].get("space", {}).get("parameters", {})
    ranges = {name: value for name, value in space.items() if isinstance(value, dict)}
    names = list(dict.fromkeys(name for config in configs.values() for name in config))

    def row(name: str) -> list[Cell]:
        values = {fold: config.get(name, "not there") for fold, config in configs.items()}
        texts = {fold: short(value) for fold, value in values.items()}
        if len(set(texts.values())) == 1:
            text = next(iter(texts.values()))
        else:
            text = ", ".join(f"{text} (fold {fold})" for fold, text in texts.items())
        return [Cell(name), Cell(text), Cell(where_from(name))]

    def where_from(name: str) -> str:
        if name in ranges:
            return "searched, " + " ".join(f"{k} {', '.join(map(short, v))}" for k, v in ranges[name].items())
        if name == "seed":
            return f"--seed {results['options']['seed']}"
        if name == "loss" and not content.regression:
            return "that of every classification"
        return "set by the space" if name in space else "default"

    own_fields = [name for name in names if name in space or name == "seed"]
    average = "members" in results
    rest = [name for name in names if name not in own_fields]
    if average:
        sentence = f"An average of {len(results['members'])} runs: nothing was trained, the weights are below."
    elif ranges:
        choice = ", ".join(f"{name} {row(name)[1].text}" for name in ranges if name in names)
        sentence = f"The search chose {choice}."
    else:
        sentence = "Nothing was searched: the space fixes every field."
    columns = ["field", "value", "where from"]
    if average:
        tables = [Table(["member", "weight"], [row(name)[:2] for name in names])]
    else:
        tables = [Table(columns, [row(name) for name in own_fields])] if own_fields else []
        tables.append(
            Table(columns, [row(name) for name in rest], counted(len(rest), "field") + " left at the default", True)
        )
    return Section("configuration", "Best configuration", sentence, tables=tables)


def levers(content: PageContent) -> Section:
    """The tiny runs that proved each lever, and what turned out to do nothing in the search."""
    results = content.sweep.results
    checks, inert = results.get("levers", []), results["inert"]
    key, title = "levers", "Levers"
    if "members" in results:
        return Section(key, title, "An average trains nothing; the levers of its members are in their own reports.")
    if not checks and not inert:
        return Section(key, title, "No lever was tried: the space sets nothing that differs from the default.")
    rows = []
    for check in checks:
        difference = check["difference"]
        verdict = "inert" if difference == 0 else "changes predictions"
        if isinstance(difference, str):
            verdict = "nothing to measure"
        values = " and ".join(short(v) for v in check["values"])
        rows.append([Cell(check["lever"]), Cell(values), cell(difference), cell(check["rows"]), Cell(verdict)])
    columns = ["lever", "values", f"largest difference of predictions{content.in_unit}", "rows", "verdict"]
    tables = [Table(columns, rows)] if rows else []
    measurements = [check for check in checks if isinstance(check["difference"], int | float)]
    sentence = "No lever was tried before the sweep."
    if measurements:
        most, least = (pick(measurements, key=lambda check: check["difference"]) for pick in (max, min))
        names = {check["lever"] for check in measurements}
        sentence = f"{most['lever']} changes predictions by up to {number(most['difference'])}{content.unit}"
        if len(names) > 1:
            sentence += (
                f", the most of {len(names)} levers; the least is {number(least['difference'])}, {least['lever']}"
            )
        sentence += "."
    if inert:
        columns = ["fold", "trials", "fields that did nothing"]
        pairs = [[cell(p["fold"]), Cell(" and ".join(p["trials"])), Cell(", ".join(p["levers"]))] for p in inert]
        tables.append(Table(columns, pairs, "Inert: pairs of trials with identical predictions"))
        sentence += f" In the search {counted(len(inert), 'pair')} of trials gave identical predictions."
    note = "Before the sweep, two tiny runs that differ in one lever alone; how far they differ says nothing of gains."
    return Section(key, title, sentence, tables=tables, note=note)


def queue(content: PageContent) -> list[Section]:
    """Of an experiment of a queue: all of the queue's, with their verdicts against its baseline."""
    above, _, own_name = content.sweep.address.rpartition("/")
    filesystem, path = open_folder(above or ".")
    if "queue.json" not in file_names(filesystem, path):
        return []
    ranking = json.loads(read_whole(filesystem, f"{path}/queue.json"))
    entries = {entry["experiment"]: entry for entry in ranking["experiments"]}
    if own_name not in entries:
        return []
    rows = []
    for entry in entries.values():
        change = ", ".join(f"{field} {short(value)}" for field, value in entry["change"].items()) or "none"
        gains = [_gain(entry, which) for which in ("gain", "test_gain")]
        rows.append([Cell(entry["experiment"]), Cell(change), cell(entry["seeds"]), cell(entry["val"], 4), gains[0],
                     Cell(entry["verdict"]), cell(entry["test"], 4), gains[1]])  # fmt: skip
    counts = pd.Series([entry["verdict"] for entry in entries.values()]).value_counts()
    numbers = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if verdict != "baseline")
    verdict = entries[own_name]["verdict"]
    sentence = f"{own_name} is the baseline" if verdict == "baseline" else f"{own_name} against the baseline: {verdict}"
    sentence += f". Of all experiments of the queue {ranking['queue']}: {numbers or 'no other one ran yet'}."
    columns = ["experiment", "change", "seeds", f"validation{content.in_unit}", "gain on validation", "verdict"]
    note = (
        "A gain is positive where the experiment is better than the baseline; in brackets its 95 % interval, "
        f"paired, over {content.words.examples} (grouped by {content.words.group}) and seeds together. The verdict "
        "is by validation. Of experiments that do nothing one in 20 is called better or worse by chance."
    )
    table = Table([*columns, f"test{content.in_unit}", "gain on test"], rows)
    return [Section("queue", "Experiments with one change", sentence, tables=[table], note=note)]


def _gain(entry: dict[str, Any], which: str) -> Cell:
    if which not in entry:
        return Cell("")
    low, high = entry[f"{which}_interval"]
    return Cell(f"{entry[which]:+.4f} ({low:+.4f} to {high:+.4f})", entry[which])


def cost(content: PageContent) -> Section:
    """What the trainings took."""
    results = content.sweep.results
    spent, record = results["cost"], results["record"]
    hours = {"cpu_hours": "core-hours", "gpu_hours": "GPU-hours"}
    hours_text = " and ".join(f"{number(spent[name])} {unit}" for name, unit in hours.items() if spent.get(name))
    trainings = f"{counted(spent['trainings'], 'training')} of {counted(spent['epochs'], 'epoch')} together"
    sentence = f"{trainings} took {hours_text or 'no time'}."
    labels = {**hours, "trainings": "trainings", "epochs": "epochs"}
    rows = [[Cell(labels.get(name, name.replace("_", " "))), cell(value)] for name, value in spent.items()]
    about = [("machine", record.get("machine")), ("devices", ", ".join(record.get("devices", [])))]
    rows += [[Cell(name), Cell(str(value))] for name, value in about if value]
    note = "Held by trainings, those of the search included; opening the data, graphs and tests are not in it."
    return Section("cost", "Cost", sentence, tables=[Table(["what", "how much"], rows)], note=note)
