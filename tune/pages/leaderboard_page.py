"""The leaderboard for people and for programs, on the terminal and as files. Called by `tune/leaderboard.py`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from data.fold import DEFAULT_SPLIT
from data.metrics import METRICS, TRUSTED
from data.task_words import task_family
from models.registry import open_facts
from tune.analysis.contamination import Exposure, exposure_markdown, exposures
from tune.analysis.entries import OVERLAP_FLAG, load_runs, short_protocol
from tune.analysis.peers import read_peers
from tune.analysis.ranking import Place, Ranking, rankings, seed_scores
from tune.analysis.trusted import untrusted_cell, untrusted_facts
from tune.records.folder import Folder
from tune.runs import split_of, weights_of

FILES = ("leaderboard.md", "leaderboard.csv", "leaderboard.json")
_ORIGIN_TEXT = {"run": "", "zero-shot": "nothing trained", "peer": "peer"}


def facts(place: Place, ranking: Ranking) -> dict[str, Any]:
    """All that is known of a place, for programs; what is not known is not there."""
    entry, metric = place.entry, ranking.metric.name
    line: dict[str, Any] = {"rank": place.rank, "tied": place.tied} if place.rank is not None else {}
    line |= {"name": entry.name, "kind": entry.origin, metric: place.scores[metric]}
    if len(place.by_fold) > 1:
        line["std_over_folds"] = float(pd.Series(place.by_fold).std())
    line |= place.scores
    if place.difference is not None:
        difference = place.difference
        line |= {
            "difference_to_best": difference.value,
            "low": difference.low,
            "high": difference.high,
            "n_common": place.n_common,
        }
    line |= {"n_ids": entry.table["id"].nunique(), "folds": sorted(place.by_fold), "flags": entry.flags}
    line |= untrusted_facts(entry.table, ranking.metric, ranking.words.group)
    run = entry.run
    if run is None:
        return line
    results, is_own_run = run.results, run.name == entry.name
    line |= {"member": entry.member, "run": run.name}
    line |= {name: results["record"][name] for name in ("created", "git_commit")}
    if weights_of(run) and (is_own_run or "members" not in results):
        line["weights"] = weights_of(run)
    if not is_own_run:  # the untrained network that a run started from
        return line | {"seeds": 0, "parameters": 0, "protocol": "nothing trained"}
    line |= {"protocol": short_protocol(run), "protocol_in_full": results["protocol"]}
    if "members" in results:
        line["members"] = [trial["member"] for trial in results["members"]]
    else:
        line |= {"seeds": entry.n_seeds, "by_chance": entry.by_chance, "model": results["model"]["name"]}
    if len(seed_scores(run)) > 1:
        line["seed_std"] = float(seed_scores(run).std(ddof=1))
    line |= {name: results["cost"][name] for name in ("cpu_hours", "gpu_hours")}
    n_parameters = [trial["n_trained"] for seed in results["seeds"] for trial in seed["training"]]
    if entry.member == "reference":
        line["parameters"] = 0
    elif n_parameters:
        line["parameters"] = max(n_parameters)
    return line


def decimals(ranking: Ranking) -> int:
    """Digits behind the point that show the best score with four significant ones."""
    best = abs(ranking.places[0].scores[ranking.metric.name])
    return min(6, max(0, 3 - math.floor(math.log10(best)))) if best > 0 else 4


def cells(place: Place, ranking: Ranking) -> dict[str, str]:
    """A line of the table as text; "" where nothing is known."""
    line, digits = facts(place, ranking), decimals(ranking)
    metric = ranking.metric.name
    score = f"{line[metric]:.{digits}f}"
    score += f" +- {line['std_over_folds']:.{digits}f}" if "std_over_folds" in line else ""
    behind = ""
    if place.difference is not None:
        difference = place.difference
        behind = f"{difference.value:+.{digits}f} ({difference.low:+.{digits}f} to {difference.high:+.{digits}f})"
    elif place.rank == 1:
        behind = "best"
    rank = "" if place.rank is None else f"{place.rank}{' =' if place.tied else ''}"
    other_scores = {METRICS[name].title: f"{line[name]:.{digits}f}" for name in ranking.metric.beside if name in line}
    title = ranking.metric.title
    return {
        "rank": rank,
        "name": line["name"],
        "what": _ORIGIN_TEXT[place.entry.origin] or line.get("model", "average"),
        title: score,
        **other_scores,
        f"{title} behind the best": behind,
        "untrusted": untrusted_cell(line, metric, digits),
        "seeds": str(line.get("seeds", "")),
        "parameters": f"{line['parameters']:,}" if "parameters" in line else "",
        "GPU h": _hours(line.get("gpu_hours")),
        "CPU h": _hours(line.get("cpu_hours")),
        "protocol": line.get("protocol", ""),
        "flags": ", ".join(flags_of(place)),
        "date": line.get("created", "")[:10],
    }


def flags_of(place: Place) -> list[str]:
    """What a reader must know of an entry, and where it has no rank, why."""
    if place.rank is not None:
        return place.entry.flags
    folds = ", ".join(map(str, sorted(place.by_fold)))
    return [*place.entry.flags, f"fold(s) {folds} only, {place.n_common} ids in common with the best"]


def _hours(hours: float | None) -> str:
    return "" if hours is None else f"{hours:.2g}" if hours else "0"


def heading(ranking: Ranking) -> str:
    """Task, target and unit of a ranking."""
    task = ranking.task
    metric_unit = ranking.metric.unit_of(task.get("unit") or "")
    unit = f", {metric_unit}" if metric_unit else ""
    split = split_of(ranking.runs[0])
    folds = "" if split == DEFAULT_SPLIT else f", --split {split}"
    return f"{task['name']}: {task['target']}{unit}{folds}"


def caption(ranking: Ranking) -> list[str]:
    """What a reader of a ranking's table must know, sentence by sentence."""
    best, metric, words = ranking.places[0], ranking.metric.title, ranking.words
    entry = best.entry
    folds = ", ".join(map(str, sorted(best.by_fold)))
    data = f"{ranking.data['description']}, data {ranking.data['sha256'][:12]}"
    n_ids, n_predictions = entry.table["id"].nunique(), len(entry.table)
    several = f" ({n_predictions:,} predictions: some are in several)" if n_predictions > n_ids else ""
    sentences = [f"{data}: {n_ids:,} test ids of fold(s) {folds}{several}. {ranking.task.get('labels', '')}".strip()]
    over_folds = " and its standard deviation over folds" if len(best.by_fold) > 1 else ""
    largest = "; the max error is the largest of all" if "max_error" in best.scores else ""
    sentences.append(
        f"{metric} is the mean over folds{over_folds}{largest}. In brackets the 95 % interval of the difference to the "
        f"best over {words.examples}, {ranking.n_resamples:,} resamples of {words.groups}."
    )
    if any(place.tied for place in ranking.places):
        why = "its interval holds 0"
        if ranking.spread is not None:
            trainings = ranking.spread.freedom
            why = (
                f"its interval over {words.examples} and seeds together holds 0 (one training has a standard deviation "
                f"of {ranking.spread.std:.2g} by its seed, {trainings} degree(s) of freedom; that of peers is taken to "
                "be the same)"
            )
        sentences.append(f"Rank 1 = is shared by all whose difference to the best is noise: {why}.")
    if ranking.spread is None:
        sentences.append("No run here has several seeds, so that nothing tells what another seed would have given.")
    if any("trusted" in place.entry.table for place in ranking.places):
        sentences.append(
            f"Untrusted are predictions whose trust is below {TRUSTED}: the row, or the prediction, is far from what "
            "was trained on; the scores count them."
        )
    flags = {flag for place in ranking.places for flag in place.entry.flags}
    if any(place.entry.origin == "peer" for place in ranking.places):
        whole = ranking.task.get("n_official")
        rows = f" of {whole:,} rows" if whole else ""
        sentences.append(
            f"Peers were trained by others on the whole task{rows}, ours on the rows above; both are scored on the "
            "same ids."
        )
    if OVERLAP_FLAG in flags:
        family = open_facts(task_family(ranking.task))
        pretraining = "weights pretrained on data" if family is None else family.PRETRAINED
        sentences.append(
            f"Models with the flag `{OVERLAP_FLAG}` start from {pretraining}, which this task comes from: they may "
            f"have seen test {words.examples}, and those without it have not."
        )
    return sentences


def leaderboard_markdown(
    ranked: Sequence[Ranking], split: Sequence[Exposure], skipped: dict[str, str], created: str
) -> str:
    """All sections as Markdown."""
    lines = ["# Leaderboard", "", f"Made {created[:16].replace('T', ' ')} UTC by tune/leaderboard.py.", ""]
    for ranking in ranked:
        table = [cells(place, ranking) for place in ranking.places]
        for place, line in zip(ranking.places, table, strict=True):
            if place.entry.origin == "run":
                line["name"] = f"**{line['name']}**"
        columns = [name for name in table[0] if any(line[name] for line in table)]
        lines += [f"## {heading(ranking)}", "", *(f"- {sentence}" for sentence in caption(ranking)), ""]
        lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(line[name] for name in columns)} |" for line in table]
        lines += [""]
        for exposure in split:
            if exposure.ranking is ranking:
                lines += [exposure_markdown(exposure, decimals(ranking)), ""]
    if skipped:
        lines += ["## Left out", "", *(f"- {name}: {reason}" for name, reason in skipped.items()), ""]
    return "\n".join(lines).rstrip() + "\n"


def as_json(
    ranked: Sequence[Ranking], split: Sequence[Exposure], skipped: dict[str, str], created: str
) -> dict[str, Any]:
    """All sections for programs."""
    sections = []
    for ranking in ranked:
        section: dict[str, Any] = {
            "task": ranking.task["name"],
            "target": ranking.task["target"],
            "unit": ranking.task.get("unit", ""),
            "metric": ranking.metric.name,
            "data": {"description": ranking.data["description"], "sha256": ranking.data["sha256"]},
            "n_resamples": ranking.n_resamples,
            "entries": [facts(place, ranking) for place in ranking.places],
        }
        if ranking.spread is not None:
            section["seed_std"] = {"std": ranking.spread.std, "degrees_of_freedom": ranking.spread.freedom}
        for exposure in split:
            if exposure.ranking is ranking:
                section["contamination"] = exposure.as_dict()
        sections.append(section)
    return {"created": created, "sections": sections, "left_out": skipped}


def as_table(ranked: Sequence[Ranking]) -> pd.DataFrame:
    """One row an entry, all sections together; empty cells where nothing is known."""
    rows = []
    for ranking in ranked:
        about = {"task": ranking.task["name"], "target": ranking.task["target"], "unit": ranking.task.get("unit", "")}
        about |= {"data_sha256": ranking.data["sha256"], "metric": ranking.metric.name}
        for place in ranking.places:
            line = facts(place, ranking)
            line["flags"], line["folds"] = "; ".join(line["flags"]), " ".join(map(str, line["folds"]))
            if "worst_untrusted" in line:
                line["worst_untrusted"] = "; ".join(line["worst_untrusted"])
            line.pop("members", None)  # the protocol names them
            rows.append(about | line)
    return pd.DataFrame(rows).convert_dtypes()


def show(ranked: Sequence[Ranking], console: Console) -> None:
    """The tables on the terminal, without the columns that do not fit there."""
    for ranking in ranked:
        console.print(f"\n[bold]{heading(ranking)}[/bold]")
        for sentence in caption(ranking):
            console.print(sentence, style="dim", markup=False, highlight=False)
        lines = [cells(place, ranking) for place in ranking.places]
        # A flag is a number in the table, for its words would take several lines of each row.
        flags = list(dict.fromkeys(flag for place in ranking.places for flag in flags_of(place)))
        score = ranking.metric.title
        untrusted = ["untrusted"] if any(line["untrusted"] for line in lines) else []
        columns = ["rank", "name", "what", score, f"{score} behind the best", *untrusted, "seeds", "flags"]
        table = Table(box=SIMPLE_HEAD, show_edge=False)
        for name in columns:
            table.add_column(name, no_wrap=name != "name", overflow="fold")
        for place, line in zip(ranking.places, lines, strict=True):
            style = {"run": "", "zero-shot": "cyan", "peer": "dim"}[place.entry.origin]
            line["untrusted"] = line["untrusted"].partition(" ")[0].rstrip(":")  # the files name the worst
            line["flags"] = " ".join(str(number) for number, flag in enumerate(flags, 1) if flag in flags_of(place))
            table.add_row(*(line[name] for name in columns), style=style)
        console.print(table)
        if flags:
            legend = "; ".join(f"{number} {flag}" for number, flag in enumerate(flags, 1))
            console.print(f"Flags: {legend}", markup=False, highlight=False)


def write_leaderboard(
    runs: Sequence[str], peers: Sequence[str], contamination: str | None, storage: str, out: str
) -> None:
    """Rank runs, write the files, and show the tables.

    Args:
        runs: names or addresses of finished sweeps; none for all in `storage`.
        peers: files with predictions of other models.
        contamination: file or folder of what pretraining has seen.
        storage: folder or URI where names are looked up.
        out: folder or URI to write to.
    """
    start = time.monotonic()
    created = datetime.now(UTC).isoformat(timespec="seconds")
    console = Console(soft_wrap=False, width=None if sys.stdout.isatty() else 160)
    sweep_runs, skipped = load_runs(runs, storage)
    results = rankings(sweep_runs, {file: read_peers(file) for file in peers})
    split = exposures(results, contamination) if contamination else []
    folder = Folder(out)
    folder.write(FILES[0], leaderboard_markdown(results, split, skipped, created))
    folder.write_csv(FILES[1], as_table(results))
    folder.write_json(FILES[2], as_json(results, split, skipped, created))
    show(results, console)
    for exposure in split:
        typer.echo(f"\n{exposure_markdown(exposure, decimals(exposure.ranking))}")
    for name, reason in skipped.items():
        console.print(f"Left out: {name}: {reason}", style="yellow", markup=False)
    typer.echo(f"\nWritten to {out}: {', '.join(FILES)} ({time.monotonic() - start:.0f} s)")
