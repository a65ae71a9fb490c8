"""The page that shows a finished sweep, in one file. Called by `tune/report.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from data.stores.storage import open_folder, write_whole
from tune.analysis import crystal_facts
from tune.analysis.crystal_facts import FactsError
from tune.pages import error_sections, report_sections, search_sections
from tune.pages.report_sections import Section, Shown
from tune.runs import SweepRun, contribution

_TEMPLATES = Path(__file__).parent


def look_at(sweep: SweepRun) -> Shown:
    """Gather all that the page shows, the structures as far as they can still be opened."""
    member = contribution(sweep)
    table = member.test.copy()
    table["elements"] = table["composition"].map(crystal_facts.elements_of)
    why, pictures = "", {}
    try:
        rows = crystal_facts.predicted_rows(sweep, table["id"])
        table = table.join(crystal_facts.crystal_facts(rows), on="id")
        crystals = crystal_facts.crystals_of(rows, table.nlargest(error_sections.WORST, "abs_error")["id"])
        pictures = {one: crystal_facts.picture(crystal) for one, crystal in crystals.items()}
    except FactsError as problem:
        why = str(problem)
    unit = sweep.task.get("unit", "") if sweep.metric.name == "mae" else ""
    return Shown(sweep, member, table, why, pictures, f" {unit}" if unit else "")


def write_report(sweep: SweepRun, file: str | None = None) -> str:
    """Write the page of a sweep.

    Args:
        sweep: what to show.
        file: path or URI; by default report.html in the sweep's folder, report-MEMBER.html of one member.

    Returns:
        Where it was written.
    """
    whole = sweep.name == sweep.results["sweep"]
    member = "" if whole else f"-{sweep.name.rpartition('/')[2]}"
    target = file or f"{sweep.address}/report{member}.html"
    folder, _, name = target.rpartition("/")
    filesystem, path = open_folder(folder or ".")
    write_whole(filesystem, f"{path}/{name}", page(look_at(sweep)).encode())
    return target


def page(shown: Shown) -> str:
    """The whole page as HTML, everything in it."""
    results = shown.sweep.results
    parts = sections(shown)
    drawn = [
        {**json.loads(picture.figure.to_json()), "height": picture.height}
        for part in parts
        for picture in part.pictures
    ]
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    task = shown.sweep.task
    about = {
        "task": task["name"],
        "target": f"{task['target']}{shown.in_unit}",
        "data": results["data"]["description"],
        "protocol": results["protocol"],
    }
    return environment.get_template("report.html").render(
        name=shown.sweep.name,
        about=about,
        notes=results["notes"],
        flags=results["flags"],
        sections=parts,
        # `</` inside a script would end it.
        figures=Markup(json.dumps(drawn, separators=(",", ":")).replace("</", "<\\/")),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        record=_record(results),
    )


def sections(shown: Shown) -> list[Section]:
    """All parts of the page, in order."""
    return [
        report_sections.scores(shown),
        report_sections.configuration(shown),
        search_sections.training(shown),
        *search_sections.search(shown),
        *error_sections.predictions(shown),
        *error_sections.groups(shown),
        error_sections.worst(shown),
        *error_sections.trust(shown),
        error_sections.calibration(shown),
        report_sections.levers(shown),
        *report_sections.queue(shown),
        report_sections.cost(shown),
    ]


def _record(results: dict[str, Any]) -> str:
    """Code, data and versions, for the foot of the page."""
    record = results["record"]
    facts = [f"Code {record['git_commit']}", record["created"], f"data {results['data']['sha256'][:12]}"]
    return ", ".join([*facts, *(f"{name} {version}" for name, version in record["versions"].items())])
