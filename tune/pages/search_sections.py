"""The parts of a sweep's report that tell of its trainings: learning curves, and what Optuna says of a search."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from data.metrics import METRICS
from tune.pages.figures import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, Picture, counted, number, style
from tune.pages.report_sections import PageContent, Section, short
from tune.spaces.space import SearchSpace

TRIALS = 4  # that a search needs before anything is said about its fields


class NoStudyError(Exception):
    """Trials that tell nothing of the fields; the message says why, for the page."""


def training(content: PageContent) -> Section:
    """Validation by epoch: of the search, and of the final trainings."""
    histories, metric = content.sweep.histories, content.sweep.metric.name
    title, pictures = "Learning curves", []
    trials = content.sweep.trials
    if len(trials) and f"kept_val_{metric}" in trials:
        pictures.append(search_curves(histories, trials, metric, content.axis))
    if "member" in histories and f"val_{metric}" in histories:
        seed_histories = histories[histories["member"].fillna("").str.startswith("seed_")]
        if len(seed_histories) and seed_histories["epoch"].nunique() > 1:
            pictures.append(training_curves(seed_histories, metric, content.axis))
    if not pictures:
        why = "an average trains nothing" if "members" in content.sweep.results else "the model has no epochs"
        return Section("curves", title, f"There are no learning curves: {why}.")
    sentences = [f"The search took {counted(len(trials), 'trial')}." if len(trials) else "There was no search."]
    if len(pictures) > bool(len(trials)):
        sentences.append("The chosen configuration was then trained on every fold.")
    return Section("curves", title, " ".join(sentences), pictures)


def search(content: PageContent) -> list[Section]:
    """What Optuna says of the searched fields, where there were enough trials."""
    key, title = "search", "What the search found"
    try:
        studies = _studies(content)
    except NoStudyError as problem:
        return [Section(key, title, str(problem))]
    fold, study = max(studies.items(), key=lambda item: (len(item[1].trials), -item[0]))
    by_fold = {index: optuna.importance.get_param_importances(fold_trials) for index, fold_trials in studies.items()}
    axis = content.axis
    pictures = [importances(by_fold), parallel_coordinates(study, axis)]
    values = {name: len({trial.params[name] for trial in study.trials}) for name in study.best_params}
    top = [name for name in by_fold[fold] if values[name] > 1][:2]
    if len(top) == 2:
        pictures.append(contour(study, top, axis))
    sentence = f"{counted(len(study.trials), 'trial')} of the search on fold {fold} over {len(values)} fields"
    sentence += f", the largest of {len(studies)} searches." if len(studies) > 1 else "."
    note = "A trial that ASHA stopped counts with the best score it reached, and looks worse than it might have become."
    return [Section(key, title, sentence, pictures, note=note)]


def _studies(content: PageContent) -> dict[int, optuna.Study]:
    """The searches as Optuna's studies, by fold; NoStudyError where there is none."""
    trials, metric = content.sweep.trials, content.sweep.metric
    kept_column = f"kept_val_{metric.name}"
    if not len(trials):
        raise NoStudyError("Nothing was searched, so that there is nothing to say about fields.")
    distributions = SearchSpace(**content.sweep.results["options"]["space"]).distributions()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    studies = {}
    for fold in trials["search_fold"].unique():
        fold_trials = trials[trials["search_fold"] == fold]
        scored_trials = (
            fold_trials[fold_trials[kept_column].notna()] if kept_column in fold_trials else fold_trials.iloc[:0]
        )
        if len(scored_trials) < TRIALS or scored_trials[kept_column].nunique() < 2:
            continue
        study = optuna.create_study(direction="minimize" if metric.mode == "min" else "maximize")
        for row in scored_trials.to_dict("records"):
            params = {name: row[f"config.{name}"] for name in distributions if f"config.{name}" in row}
            try:
                trial = optuna.trial.create_trial(
                    params={name: _plain(value) for name, value in params.items()},
                    distributions={name: distributions[name] for name in params},
                    value=row[kept_column],
                )
            except ValueError:  # the space of a classification was once written without the loss that it fixes
                raise NoStudyError(
                    "An earlier version of matsweep wrote these results, and their space does not hold the values of "
                    "all trials, so that there is nothing to say about fields."
                ) from None
            study.add_trial(trial)
        studies[int(fold)] = study
    if not studies:
        most = int(trials["search_fold"].value_counts().max())
        raise NoStudyError(
            f"The largest search had {counted(most, 'trial')}; at least {TRIALS} with different scores are needed "
            "before there is anything to say about fields."
        )
    return studies


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def search_curves(histories: pd.DataFrame, trials: pd.DataFrame, metric: str, axis: str) -> Picture:
    """Validation by epoch of every searched trial; a cross where ASHA stopped one."""
    column, kept_column = f"val_{metric}", f"kept_val_{metric}"
    scored_trials = trials[trials[kept_column].notna()] if kept_column in trials else trials.iloc[:0]
    epochs_planned = scored_trials["epochs"] if "epochs" in scored_trials else scored_trials["epochs_done"]
    is_failure = scored_trials["failed"].notna() if "failed" in scored_trials else False
    stopped_trials = set(
        scored_trials.loc[
            (scored_trials["epochs_done"] < epochs_planned) & ~pd.Series(is_failure, scored_trials.index), "trial"
        ]
    )
    best = set(scored_trials.sort_values("rank").groupby("search_fold")["trial"].first())
    figure = go.Figure()
    fields = [
        name
        for name in map(str, scored_trials)
        if name.startswith("config.") and scored_trials[name].astype(str).nunique() > 1
    ]
    crosses: list[tuple[float, float, str]] = []
    for label, colour in (("other trials", "#B0B0B0"), ("best of its search", BLUE)):
        first = True
        for row in scored_trials.sort_values("rank", ascending=False).to_dict("records"):
            if (row["trial"] in best) != (colour == BLUE):
                continue
            line = histories[histories["trial"] == row["trial"]].sort_values("epoch")
            config = "<br>".join(f"{name[7:]} {short(row[name])}" for name in fields)
            text = f"fold {row['search_fold']}, rank {row['rank']}<br>{config}"
            hover = f"{text}<br>epoch %{{x}}: %{{y:.4g}}<extra></extra>"
            figure.add_scatter(x=line["epoch"], y=line[column], mode="lines", name=label, legendgroup=label,
                               line={"color": colour, "width": 2.5 if colour == BLUE else 1.2}, showlegend=first,
                               hovertemplate=hover)  # fmt: skip
            first = False
            if row["trial"] in stopped_trials and len(line):
                crosses.append((line["epoch"].iloc[-1], line[column].iloc[-1], text))
    if crosses:
        x, y, texts = zip(*crosses, strict=True)
        marker = {"symbol": "x-thin", "size": 9, "line": {"color": VERMILLION, "width": 2}}
        figure.add_scatter(x=x, y=y, mode="markers", marker=marker, name="stopped by ASHA", text=texts,
                           hovertemplate="%{text}<br>stopped after epoch %{x}<extra></extra>")  # fmt: skip
    _epochs(figure, axis, metric)
    best_score, worst_score = (scored_trials[kept_column].min(), scored_trials[kept_column].max())[
        :: 1 if METRICS[metric].mode == "min" else -1
    ]
    scores = f"range from {number(worst_score)} to {number(best_score)}, the best"
    if worst_score == best_score:
        scores = f"all have {number(best_score)}, and nothing tells which is better"
    sentence = (
        f"ASHA stopped {len(stopped_trials)} of {counted(len(trials), 'trial')} before their epochs; on validation the "
        f"{len(scored_trials)} that were scored {scores}."
    )
    return Picture(figure, sentence)


def _epochs(figure: go.Figure, axis: str, metric: str) -> None:
    """Axes of curves by epoch; logarithmic where errors fall by much."""
    style(figure, "epoch", f"validation {axis}")
    values = np.concatenate([np.asarray(trace.y, dtype=float) for trace in figure.data])
    values = values[np.isfinite(values)]
    if METRICS[metric].mode == "min" and values.min() > 0 and values.max() > 5 * values.min():
        figure.update_yaxes(type="log", dtick="D2", exponentformat="none")


def training_curves(histories: pd.DataFrame, metric: str, axis: str) -> Picture:
    """Validation by epoch of the chosen configuration: a thin line each fold and seed, a thick one their mean."""
    column = f"val_{metric}"
    figure = go.Figure()
    lines = {
        key: run_histories.set_index("epoch")[column] for key, run_histories in histories.groupby(["member", "fold"])
    }
    for position, ((member, fold), line) in enumerate(lines.items()):
        figure.add_scatter(x=line.index, y=line, mode="lines", line={"color": SKY, "width": 1}, legendgroup="one",
                           name="each fold and seed", showlegend=position == 0,
                           hovertemplate=f"{member}, fold {fold}<br>epoch %{{x}}: %{{y:.4g}}<extra></extra>",
                           )  # fmt: skip
    mean = pd.concat(lines, axis=1).mean(axis=1, skipna=False).dropna()
    figure.add_scatter(x=mean.index, y=mean, mode="lines+markers" if len(mean) == 1 else "lines", name="mean",
                       line={"color": BLUE, "width": 3}, hovertemplate="mean, epoch %{x}: %{y:.4g}<extra></extra>",
                       )  # fmt: skip
    _epochs(figure, axis, metric)
    best = int((mean if METRICS[metric].mode == "min" else -mean).argmin())
    sentence = (
        f"From before training to the last common epoch ({mean.index[-1]}) the mean goes from {number(mean.iloc[0])} "
        f"to {number(mean.iloc[-1])}; it is best, {number(mean.iloc[best])}, at epoch {mean.index[best]}."
    )
    return Picture(figure, sentence)


def importances(by_fold: dict[int, dict[str, float]]) -> Picture:
    """How much of the differences between trials each searched field explains, by search."""
    table = pd.DataFrame(by_fold).fillna(0.0)
    order = table.mean(axis=1).sort_values()
    figure = go.Figure()
    colours = [BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY]
    for position, fold in enumerate(by_fold):
        figure.add_bar(y=list(order.index), x=table[fold][order.index], orientation="h",
                       name=f"search on fold {fold}", marker={"color": colours[position % len(colours)]},
                       hovertemplate="%{y}: %{x:.2f}<extra></extra>")  # fmt: skip
    style(figure, "importance (they add up to 1)", showlegend=len(table.columns) > 1, bargap=0.3)
    sentence = f"By Optuna's PED-ANOVA, {order.index[-1]} matters most: {order.iloc[-1]:.0%} of the importance."
    return Picture(figure, sentence, 110 + 34 * len(order))


def parallel_coordinates(study: Any, axis: str) -> Picture:
    """Optuna's: each trial a line through its values."""
    from optuna.visualization import plot_parallel_coordinate

    figure = plot_parallel_coordinate(study, target_name=axis.split(" ")[0])
    values = [trial.value for trial in study.trials]
    low, high = min(values), max(values)
    for trace in figure.select_traces({"mode": "lines"}):
        height = (float(trace.customdata[0][1]) - low) / (high - low)  # Optuna puts the score first
        better = 1 - height if study.direction.name == "MINIMIZE" else height
        trace.line = {"width": 2, "color": sample_colorscale("Viridis", float(np.clip(better, 0, 1)))[0]}
        trace.opacity = 0.9
    figure.update_traces(marker_colorbar={"thickness": 12, "title": {"text": axis, "side": "right"}},
                         marker_colorscale="Viridis", marker_reversescale=study.direction.name == "MINIMIZE",
                         selector={"mode": "markers"})  # fmt: skip
    style(figure)
    figure.update_xaxes(ticks="", showline=False)
    figure.update_annotations(bgcolor="rgba(255,255,255,0.8)")
    best = ", ".join(f"{name} {short(value)}" for name, value in study.best_params.items())
    return Picture(figure, f"The best trial ({number(study.best_value)}) has {best}.", 400, 640)


def contour(study: Any, fields: list[str], axis: str) -> Picture:
    """Optuna's: validation over two searched fields."""
    from optuna.visualization import plot_contour

    figure = plot_contour(study, fields, target_name=axis)
    figure.update_traces(
        selector={"type": "contour"},
        colorscale="Viridis",
        reversescale=study.direction.name == "MINIMIZE",
        colorbar={"title": {"text": axis, "side": "right"}, "thickness": 12},
    )
    style(figure, showlegend=False)
    for log_axis in (*figure.select_xaxes({"type": "log"}), *figure.select_yaxes({"type": "log"})):
        log_axis.update(dtick="D2", exponentformat="none")
    values = " and ".join(f"{name} {short(study.best_params[name])}" for name in fields)
    sentence = (
        f"Validation over {' and '.join(fields)}, drawn between the points of {len(study.trials)} trials; the best has "
        f"{values}."
    )
    return Picture(figure, sentence)
