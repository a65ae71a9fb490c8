"""The pictures of a sweep's report, each with the sentence that says what one sees: DataFrames in, plotly out."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log10
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.ndimage import gaussian_filter
from scipy.stats import norm, spearmanr
from sklearn.metrics import roc_auc_score, roc_curve

from data.task_words import TaskWords, several

# Okabe and Ito's colours, told apart by colour-blind people.
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
GREY, INK, GRID = "#8C8C8C", "#222", "#E6E6E6"
FEW = 5  # examples that a category or range needs to be spoken of
_POINTS = 4000  # a parity plot with more is a picture of counts
_LEVELS = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.68, 0.8, 0.9, 0.95, 0.99])
FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif", "size": 13}


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure of the report.

    Attributes:
        figure: plotly's.
        sentence: what one sees in it.
        height: in pixels.
        least_width: in pixels; on a narrower screen it scrolls in a box of its own.
        square: about as wide as high, on a phone too.
    """

    figure: go.Figure
    sentence: str
    height: int = 400
    least_width: int = 0
    square: bool = False


def number(value: float) -> str:
    """A number with three significant digits, without an exponent where one can do without."""
    if not np.isfinite(value):
        return "not known"
    if value == 0 or not 1e-5 <= abs(value) < 1e7:
        return f"{value:.3g}"
    return f"{value:,.{max(0, 2 - floor(log10(abs(value))))}f}"


def counted(n: int, word: str) -> str:
    """A number with its noun: `1 trial`, `2 trials`."""
    return f"{n:,} {word if n == 1 else several(word)}"


def style(figure: go.Figure, x: str = "", y: str = "", **layout: Any) -> go.Figure:
    """One look for all figures: white, thin grid, legend on top."""
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": GREY, "ticks": "outside", "tickcolor": GREY,
            "ticklen": 4, "automargin": True}  # fmt: skip
    figure.update_layout(
        template="none",
        font={**FONT, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        margin={"l": 12, "r": 12, "t": 12, "b": 12},
        title=None,
        hoverlabel={"font": FONT, "bgcolor": "white"},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        autosize=True,
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    if x:
        figure.update_xaxes(title={"text": x, "standoff": 8})
    if y:
        figure.update_yaxes(title={"text": y, "standoff": 8})
    return figure.update_layout(**layout)


def parity(table: pd.DataFrame, target: str, unit: str, words: TaskWords) -> Picture:
    """Prediction against truth, coloured by how many examples lie about there; counts where there are many."""
    true, predicted = table["y_true"].to_numpy(), table["y_pred"].to_numpy()
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    pad = 0.03 * (high - low or 1.0)
    ends = [low - pad, high + pad]
    bins = 120 if len(table) > _POINTS else 80
    counts, edges, _ = np.histogram2d(true, predicted, bins=bins, range=[ends, ends])
    bar = {"thickness": 10, "len": 0.6, "orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"}
    figure = go.Figure()
    if len(table) > _POINTS:
        middle = (edges[1:] + edges[:-1]) / 2
        with np.errstate(divide="ignore"):
            logarithms = np.where(counts > 0, np.log10(counts), np.nan).T
        ticks = list(range(int(np.nanmax(logarithms)) + 1))
        figure.add_heatmap(
            x=middle, y=middle, z=logarithms, colorscale="Viridis", hoverongaps=False, text=counts.T.astype(int),
            hovertemplate="true %{x:.3g}, predicted %{y:.3g}: %{text}<extra></extra>",
            colorbar={**bar, "title": {"text": words.examples, "side": "top"}, "tickvals": ticks,
                      "ticktext": [f"{10**tick:,}" for tick in ticks]},
        )  # fmt: skip
    else:
        smooth = gaussian_filter(counts, 1.5)
        place = [np.clip(np.searchsorted(edges, values) - 1, 0, bins - 1) for values in (true, predicted)]
        density = smooth[place[0], place[1]] / smooth.max()
        order = np.argsort(density)  # the crowd on top
        sorted_rows = table.iloc[order]
        figure.add_scatter(
            x=true[order], y=predicted[order], mode="markers", showlegend=False,
            marker={"size": 6, "color": density[order], "colorscale": "Viridis", "showscale": True,
                    "colorbar": {**bar, "title": {"text": f"density of {words.examples}, largest = 1", "side": "top"}}},
            customdata=sorted_rows[["id", "group"]].to_numpy(),
            hovertemplate="%{customdata[1]} (%{customdata[0]})<br>true %{x:.4g}, predicted %{y:.4g}<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": INK, "width": 1, "dash": "dot"}, showlegend=False,
                       hoverinfo="skip")  # fmt: skip
    style(figure, f"true {target}{unit}", f"predicted {target}{unit}")
    figure.update_xaxes(range=ends, constrain="domain")
    figure.update_yaxes(range=ends, scaleanchor="x", constrain="domain")
    total = ((true - true.mean()) ** 2).sum()
    begins = f"R² is {1 - ((true - predicted) ** 2).sum() / total:.3f}, and t" if total > 0 else "T"
    row = table.iloc[int(table["abs_error"].argmax())]
    sentence = (
        f"{begins}he {words.example} farthest from the line is {row['group']} ({row['id']}): "
        f"{number(row['y_pred'])} instead of {number(row['y_true'])}."
    )
    return Picture(figure, sentence, 620, square=True)


def residuals(table: pd.DataFrame, unit: str, words: TaskWords) -> Picture:
    """Histogram of prediction minus truth."""
    error = (table["y_pred"] - table["y_true"]).to_numpy()
    half = f"{number(float(np.median(np.abs(error))))} {unit.removeprefix(' (').removesuffix(')')}".rstrip()
    reach = float(np.quantile(np.abs(error), 0.99)) or 1.0
    inside = error[np.abs(error) <= reach]
    counts, edges = np.histogram(inside, bins=int(np.clip(len(error) ** 0.5, 11, 61)), range=(-reach, reach))
    figure = go.Figure(
        go.Bar(x=(edges[1:] + edges[:-1]) / 2, y=counts, width=np.diff(edges), marker={"color": BLUE},
               hovertemplate="%{x:.3g}: %{y}<extra></extra>")
    )  # fmt: skip
    figure.add_vline(x=0, line={"color": INK, "width": 1, "dash": "dot"})
    style(figure, f"prediction - truth{unit}", words.examples, bargap=0.02)
    bias, outside = error.mean(), len(error) - len(inside)
    sentence = (
        f"Half of the errors are below {half}, and "
        f"predictions are on average {number(abs(bias))} too {'high' if bias > 0 else 'low'}; "
        f"{counted(outside, words.example)} beyond {number(reach)} {'is' if outside == 1 else 'are'} not in the "
        "picture."
    )
    return Picture(figure, sentence, 340)


def roc(table: pd.DataFrame, words: TaskWords) -> Picture:
    """ROC curve of all test examples together."""
    true, predicted = table["y_true"].to_numpy(), table["y_pred"].to_numpy()
    if len(np.unique(true)) < 2:
        raise ValueError(f"All test {words.examples} are of one class, so that there is no ROC curve")
    false_rate, true_rate, _ = roc_curve(true, predicted)
    figure = go.Figure(go.Scatter(x=false_rate, y=true_rate, mode="lines", line={"color": BLUE, "width": 2.5}))
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": INK, "width": 1, "dash": "dot"})
    style(figure, "false positive rate", "true positive rate", showlegend=False)
    figure.update_xaxes(range=[-0.01, 1.01], constrain="domain")
    figure.update_yaxes(range=[-0.01, 1.01], scaleanchor="x", constrain="domain")
    sentence = (
        f"The area under the curve of all {len(table):,} test {words.examples} together is "
        f"{roc_auc_score(true, predicted):.3f}; {(true >= 0.5).mean():.0%} of them are true."
    )
    return Picture(figure, sentence, 520, square=True)


def reliability(table: pd.DataFrame, words: TaskWords) -> Picture:
    """How often what is given a probability comes true, in ten bins of it."""
    bins = np.clip((table["y_pred"] * 10).astype(int), 0, 9)
    means = table.groupby(bins).agg(p=("y_pred", "mean"), share=("y_true", "mean"), n=("y_true", "size"))
    figure = go.Figure(
        go.Scatter(x=means["p"], y=means["share"], mode="lines+markers", marker={"size": 8}, line={"color": BLUE},
                   text=means["n"],
                   hovertemplate=f"said %{{x:.2f}}, is %{{y:.2f}}: %{{text}} {words.examples}<extra></extra>")
    )  # fmt: skip
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": INK, "width": 1, "dash": "dot"})
    style(figure, "predicted probability", "share that is true", showlegend=False)
    figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_yaxes(range=[-0.02, 1.02])
    gap = float((means["n"] * (means["p"] - means["share"]).abs()).sum() / means["n"].sum())
    high = (means["n"] * (means["p"] - means["share"])).sum() > 0
    sentence = (
        f"Probabilities are off by {number(gap)} on average over the bins, and on the whole "
        f"{'higher' if high else 'lower'} than what comes true."
    )
    return Picture(figure, sentence, 480, square=True)


def own(figure: go.Figure) -> Picture:
    """A figure that a family has drawn, in the look of the others; it brings its height and its least width."""
    height, least_width = int(figure.layout.height), int(figure.layout.width)
    figure.update_layout(template="none", font={**FONT, "color": INK}, margin={"l": 4, "r": 4, "t": 4, "b": 4},
                         paper_bgcolor="white", plot_bgcolor="white", width=None, height=None,
                         autosize=True)  # fmt: skip
    return Picture(figure, "", height, least_width)


def bars(means: pd.DataFrame, axis: str, overall: float) -> Picture:
    """Mean error by category or range with its 95 % interval; each a row, drawn from the top in their order."""
    half = 1.96 * means["spread"] / np.sqrt(means["n"])
    few = means["n"] < FEW
    figure = go.Figure(
        go.Bar(
            y=[f"{name}  ({n:,})" for name, n in zip(means.index, means["n"], strict=True)], x=means["error"],
            orientation="h", marker={"color": np.where(few, "#C9D6DF", BLUE)},
            error_x={"type": "data", "symmetric": False, "color": INK, "thickness": 1, "width": 3,
                     "array": half.fillna(0), "arrayminus": np.minimum(half.fillna(0), means["error"])},
            hovertemplate="%{y}: %{x:.4g}<extra></extra>",
        )
    )  # fmt: skip
    figure.add_vline(x=overall, line={"color": VERMILLION, "width": 1.5, "dash": "dot"})
    style(figure, axis, showlegend=False, bargap=0.25)
    figure.update_yaxes(autorange="reversed", ticks="", ticklabelstandoff=6)
    figure.update_xaxes(rangemode="tozero")
    return Picture(figure, "", 90 + 27 * len(means))


def coverage(table: pd.DataFrame) -> Picture:
    """How many errors lie within the interval that the std gives, against how many should (normal errors)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (table["abs_error"] / table["std"]).fillna(0).to_numpy()
    shares = [(z <= norm.ppf(0.5 + level / 2)).mean() for level in _LEVELS]
    figure = go.Figure(
        go.Scatter(x=[0, *_LEVELS, 1], y=[0, *shares, 1], mode="lines+markers", line={"color": BLUE, "width": 2.5},
                   hovertemplate="should be %{x:.0%}, is %{y:.0%}<extra></extra>")
    )  # fmt: skip
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": INK, "width": 1, "dash": "dot"}, hoverinfo="skip"
    )
    style(figure, "share of errors that should lie inside", "share that lies inside", showlegend=False)
    figure.update_xaxes(range=[-0.01, 1.01], tickformat=".0%")
    figure.update_yaxes(range=[-0.01, 1.01], tickformat=".0%")
    within = (z <= 1).mean()
    verdict = "about right" if abs(within - 0.683) < 0.05 else "too small" if within < 0.683 else "too large"
    sentence = f"The std is {verdict}: {within:.0%} of the errors are within one std, where normal ones would be 68%."
    return Picture(figure, sentence, 480, square=True)


def errors_by_std(table: pd.DataFrame, unit: str, words: TaskWords) -> Picture:
    """Mean absolute error in bins of equally many examples by their std."""
    bins = pd.qcut(table["std"].rank(method="first"), min(10, max(2, len(table) // 20)), labels=False)
    means = table.groupby(bins).agg(std=("std", "mean"), error=("abs_error", "mean"), n=("std", "size"))
    figure = go.Figure(
        go.Scatter(x=means["std"], y=means["error"], mode="lines+markers", line={"color": BLUE, "width": 2.5},
                   marker={"size": 8}, name="measured", text=means["n"],
                   hovertemplate="std %{x:.3g}: mean |error| %{y:.3g} of %{text}" + f" {words.examples}<extra></extra>")
    )  # fmt: skip
    ends = [0, float(means["std"].max())]
    figure.add_scatter(x=ends, y=[end * (2 / np.pi) ** 0.5 for end in ends], mode="lines", hoverinfo="skip",
                       line={"color": INK, "width": 1, "dash": "dot"}, name="normal errors of that std")  # fmt: skip
    style(figure, f"mean std{unit}", f"mean |error|{unit}")
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(rangemode="tozero")
    rank = float(spearmanr(table["std"], table["abs_error"]).statistic)
    ratio = means["error"].iloc[-1] / max(means["error"].iloc[0], 1e-300)
    sentence = (
        f"The std {'tells' if rank > 0.2 else 'hardly tells'} which {words.examples} are hard (rank correlation "
        f"{rank:.2f}): errors of the most uncertain bin are {number(ratio)} times those of the least uncertain."
    )
    return Picture(figure, sentence, 400)


def errors_by_trust(table: pd.DataFrame, unit: str) -> Picture:
    """Mean absolute error in bins of equally many examples by their trust, the least trusted last."""
    bins = pd.qcut((-table["trust"]).rank(method="first"), min(10, max(2, len(table) // 20)), labels=False)
    means = table.groupby(bins).agg(trust=("trust", "mean"), error=("abs_error", "mean"), n=("trust", "size"))
    figure = go.Figure(
        go.Bar(x=[f"{trust:.2f}" for trust in means["trust"]], y=means["error"], marker={"color": BLUE},
               customdata=means["n"], hovertemplate="trust %{x}: mean |error| %{y:.3g} of %{customdata}<extra></extra>")
    )  # fmt: skip
    style(figure, "mean trust", f"mean |error|{unit}", showlegend=False)
    figure.update_xaxes(type="category")
    ratio = means["error"].iloc[-1] / max(means["error"].iloc[0], 1e-300)
    return Picture(figure, f"Errors of the least trusted bin are {number(ratio)} times those of the most trusted.", 360)


def means_sentence(means: pd.DataFrame, phrase: str, several: str, unit: str, words: TaskWords) -> str:
    """Where errors are largest and where smallest, of the categories or ranges with enough examples.

    Args:
        means: `n` and mean `error` of each.
        phrase: puts one into the sentence.
        several: what they are together.
        unit: of errors, with a blank before it.
        words: of the task.
    """
    enough = means[means["n"] >= FEW].sort_values("error")
    if len(enough) < 2:
        few = f"Fewer than two {several} have at least {FEW} {words.examples}"
        return f"{few}, so that nothing can be said of differences."
    worst, best = enough.iloc[-1], enough.iloc[0]
    return (
        f"Errors are largest for {phrase.format(worst.name)}: {number(worst['error'])}{unit} over "
        f"{counted(int(worst['n']), words.example)}, and smallest for {phrase.format(best.name)}: "
        f"{number(best['error'])}{unit} over {counted(int(best['n']), words.example)}."
    )
