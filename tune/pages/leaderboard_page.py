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
from data.metrics import TRUSTED
from tune.analysis.contamination import Exposure, exposures
from tune.analysis.contamination import report as exposure_report
from tune.analysis.entries import OVERLAP_FLAG, load_runs, short_protocol
from tune.analysis.peers import read_peers
from tune.analysis.ranking import Place, Section, sections, seed_scores
from tune.analysis.seen import read_seen
from tune.analysis.trusted import untrusted_cell, untrusted_facts
from tune.records.folder import Folder
from tune.runs import split_of, weights_of

FILES = ("leaderboard.md", "leaderboard.csv", "leaderboard.json")
_SHOWN_KIND = {"run": "", "zero-shot": "nothing trained", "peer": "peer"}


def facts(place: Place, section: Section) -> dict[str, Any]:
    """All that is known of a place, for programs; what is not known is not there."""
    entry, metric = place.entry, section.metric.name
    line: dict[str, Any] = {"rank": place.rank, "tied": place.tied} if place.rank is not None else {}
    line |= {"name": entry.name, "kind": entry.kind, metric: place.scores[metric]}
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
    line |= untrusted_facts(entry.table, section.metric)
    run = entry.run
    if run is None:
        return line
    results, own = run.results, run.name == entry.name
    line |= {"member": entry.member, "run": run.name}
    line |= {what: results["record"][what] for what in ("created", "git_commit")}
    if weights_of(run) and (own or "members" not in results):
        line["weights"] = weights_of(run)
    if not own:  # the untrained network that a run started from
        return line | {"seeds": 0, "parameters": 0, "protocol": "nothing trained"}
    line |= {"protocol": short_protocol(run), "protocol_in_full": results["protocol"]}
    if "members" in results:
        line["members"] = [trial["member"] for trial in results["members"]]
    else:
        line |= {"seeds": entry.n_seeds, "by_chance": entry.by_chance, "model": results["model"]["name"]}
    if len(seed_scores(run)) > 1:
        line["seed_std"] = float(seed_scores(run).std(ddof=1))
    line |= {what: results["cost"][what] for what in ("cpu_hours", "gpu_hours")}
    trained = [trial["n_trained"] for seed in results["seeds"] for trial in seed["training"]]
    if entry.member == "reference":
        line["parameters"] = 0
    elif trained:
        line["parameters"] = max(trained)
    return line


def decimals(section: Section) -> int:
    """Digits behind the point that show the best score with four significant ones."""
    best = abs(section.places[0].scores[section.metric.name])
    return min(6, max(0, 3 - math.floor(math.log10(best)))) if best > 0 else 4


def cells(place: Place, section: Section) -> dict[str, str]:
    """A line of the table as text; "" where nothing is known."""
    line, digits = facts(place, section), decimals(section)
    metric = section.metric.name
    score = f"{line[metric]:.{digits}f}"
    score += f" +- {line['std_over_folds']:.{digits}f}" if "std_over_folds" in line else ""
    behind = ""
    if place.difference is not None:
        found = place.difference
        behind = f"{found.value:+.{digits}f} ({found.low:+.{digits}f} to {found.high:+.{digits}f})"
    elif place.rank == 1:
        behind = "best"
    rank = "" if place.rank is None else f"{place.rank}{' =' if place.tied else ''}"
    others = {name: f"{line[name]:.{digits}f}" for name in ("rmse", "max_error", "accuracy") if name in line}
    return {
        "rank": rank,
        "name": line["name"],
        "what": _SHOWN_KIND[place.entry.kind] or line.get("model", "average"),
        metric.upper(): score,
        **{name.replace("_", " ").replace("rmse", "RMSE"): text for name, text in others.items()},
        f"{metric.upper()} behind the best": behind,
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


def heading(section: Section) -> str:
    """Task, target and unit of a section."""
    task = section.task
    unit = f", {task['unit']}" if task.get("unit") and section.metric.name == "mae" else ""
    split = split_of(section.runs[0])
    folds = "" if split == DEFAULT_SPLIT else f", --split {split}"
    return f"{task['name']}: {task['target']}{unit}{folds}"


def caption(section: Section) -> list[str]:
    """What a reader of a section's table must know, sentence by sentence."""
    best, metric = section.places[0], section.metric.name.upper()
    entry = best.entry
    folds = ", ".join(map(str, sorted(best.by_fold)))
    data = f"{section.data['description']}, data {section.data['sha256'][:12]}"
    n_ids, n_predictions = entry.table["id"].nunique(), len(entry.table)
    several = f" ({n_predictions:,} predictions: some are in several)" if n_predictions > n_ids else ""
    sentences = [f"{data}: {n_ids:,} test ids of fold(s) {folds}{several}. {section.task.get('labels', '')}".strip()]
    over_folds = " and its standard deviation over folds" if len(best.by_fold) > 1 else ""
    largest = "; the max error is the largest of all" if "max_error" in best.scores else ""
    sentences.append(
        f"{metric} is the mean over folds{over_folds}{largest}. In brackets the 95 % interval of the difference to the "
        f"best over crystals, {section.n_resamples:,} resamples of compositions."
    )
    if any(place.tied for place in section.places):
        why = "its interval holds 0"
        if section.spread is not None:
            trainings = section.spread.freedom
            why = (
                "its interval over crystals and seeds together holds 0 (one training has a standard deviation of "
                f"{section.spread.std:.2g} by its seed, {trainings} degree(s) of freedom; that of peers is taken to be "
                "the same)"
            )
        sentences.append(f"Rank 1 = is shared by all whose difference to the best is noise: {why}.")
    if section.spread is None:
        sentences.append("No run here has several seeds, so that nothing tells what another seed would have given.")
    if any("trusted" in place.entry.table for place in section.places):
        sentences.append(
            f"Untrusted are predictions whose trust is below {TRUSTED}: the row, or the prediction, is far from what "
            "was trained on; the scores count them."
        )
    flags = {flag for place in section.places for flag in place.entry.flags}
    if any(place.entry.kind == "peer" for place in section.places):
        whole = section.task.get("n_official")
        rows = f" of {whole:,} rows" if whole else ""
        sentences.append(
            f"Peers were trained by others on the whole task{rows}, ours on the rows above; both are scored on the "
            "same ids."
        )
    if OVERLAP_FLAG in flags:
        sentences.append(
            "Models with the flag `pretraining overlap` start from a CHGNet that was pretrained on Materials Project "
            "data, which this task comes from: they may have seen test crystals, and those without it have not."
        )
    return sentences


def markdown(found: Sequence[Section], exposed: Sequence[Exposure], skipped: dict[str, str], created: str) -> str:
    """All sections as Markdown."""
    lines = ["# Leaderboard", "", f"Made {created[:16].replace('T', ' ')} UTC by tune/leaderboard.py.", ""]
    for position, section in enumerate(found):
        table = [cells(place, section) for place in section.places]
        for place, line in zip(section.places, table, strict=True):
            if place.entry.kind == "run":
                line["name"] = f"**{line['name']}**"
        columns = [name for name in table[0] if any(line[name] for line in table)]
        lines += [f"## {heading(section)}", "", *(f"- {sentence}" for sentence in caption(section)), ""]
        lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(line[name] for name in columns)} |" for line in table]
        lines += [""]
        for one in exposed:
            if one.section is section:
                lines += [exposure_report(one, decimals(found[position])), ""]
    if skipped:
        lines += ["## Left out", "", *(f"- {name}: {reason}" for name, reason in skipped.items()), ""]
    return "\n".join(lines).rstrip() + "\n"


def as_json(
    found: Sequence[Section], exposed: Sequence[Exposure], skipped: dict[str, str], created: str
) -> dict[str, Any]:
    """All sections for programs."""
    told = []
    for section in found:
        one: dict[str, Any] = {
            "task": section.task["name"],
            "target": section.task["target"],
            "unit": section.task.get("unit", ""),
            "metric": section.metric.name,
            "data": {"description": section.data["description"], "sha256": section.data["sha256"]},
            "n_resamples": section.n_resamples,
            "entries": [facts(place, section) for place in section.places],
        }
        if section.spread is not None:
            one["seed_std"] = {"std": section.spread.std, "degrees_of_freedom": section.spread.freedom}
        for exposure in exposed:
            if exposure.section is section:
                one["contamination"] = exposure.as_dict()
        told.append(one)
    return {"created": created, "sections": told, "left_out": skipped}


def as_table(found: Sequence[Section]) -> pd.DataFrame:
    """One row an entry, all sections together; empty cells where nothing is known."""
    rows = []
    for section in found:
        about = {"task": section.task["name"], "target": section.task["target"], "unit": section.task.get("unit", "")}
        about |= {"data_sha256": section.data["sha256"], "metric": section.metric.name}
        for place in section.places:
            line = facts(place, section)
            line["flags"], line["folds"] = "; ".join(line["flags"]), " ".join(map(str, line["folds"]))
            if "worst_untrusted" in line:
                line["worst_untrusted"] = "; ".join(line["worst_untrusted"])
            line.pop("members", None)  # the protocol names them
            rows.append(about | line)
    return pd.DataFrame(rows).convert_dtypes()


def show(found: Sequence[Section], console: Console) -> None:
    """The tables on the terminal, without the columns that do not fit there."""
    for section in found:
        console.print(f"\n[bold]{heading(section)}[/bold]")
        for sentence in caption(section):
            console.print(sentence, style="dim", markup=False, highlight=False)
        lines = [cells(place, section) for place in section.places]
        # A flag is a number in the table, for its words would take several lines of each row.
        flags = list(dict.fromkeys(flag for place in section.places for flag in flags_of(place)))
        score = section.metric.name.upper()
        untrusted = ["untrusted"] if any(line["untrusted"] for line in lines) else []
        columns = ["rank", "name", "what", score, f"{score} behind the best", *untrusted, "seeds", "flags"]
        table = Table(box=SIMPLE_HEAD, show_edge=False)
        for name in columns:
            table.add_column(name, no_wrap=name != "name", overflow="fold")
        for place, line in zip(section.places, lines, strict=True):
            style = {"run": "", "zero-shot": "cyan", "peer": "dim"}[place.entry.kind]
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
    begun = time.monotonic()
    created = datetime.now(UTC).isoformat(timespec="seconds")
    console = Console(soft_wrap=False, width=None if sys.stdout.isatty() else 160)
    loaded, skipped = load_runs(runs, storage)
    found = sections(loaded, {file: read_peers(file) for file in peers})
    exposed = exposures(found, read_seen(contamination)) if contamination else []
    folder = Folder(out)
    folder.write(FILES[0], markdown(found, exposed, skipped, created))
    folder.write_csv(FILES[1], as_table(found))
    folder.write_json(FILES[2], as_json(found, exposed, skipped, created))
    show(found, console)
    for one in exposed:
        typer.echo(f"\n{exposure_report(one, decimals(one.section))}")
    for name, reason in skipped.items():
        console.print(f"Left out: {name}: {reason}", style="yellow", markup=False)
    typer.echo(f"\nWritten to {out}: {', '.join(FILES)} ({time.monotonic() - begun:.0f} s)")
