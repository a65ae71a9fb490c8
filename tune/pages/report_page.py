"""The page that shows a finished sweep, in one file. Called by `tune/report.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from data.metrics import example_errors
from data.stores.storage import open_folder, write_whole
from models.family import FactsError
from models.registry import open_facts
from tune.analysis.opened_rows import predicted_rows
from tune.pages import error_sections, report_sections, search_sections
from tune.pages.report_sections import PageContent, Section
from tune.runs import SweepRun, contribution

_TEMPLATES = Path(__file__).parent


def page_content(sweep: SweepRun) -> PageContent:
    """Gather all that the page shows, the rows as far as they can still be opened."""
    member, facts = contribution(sweep), open_facts(sweep.family)
    table, why, pictures = member.test.copy(), "", {}
    table["abs_error"] = example_errors(sweep.metric, table)
    unit = sweep.metric.unit_of(sweep.task.get("unit", ""))
    if facts is not None:
        for name, values in facts.facts_of_groups(table["group"].tolist()).items():
            table[name] = pd.Series(values, table.index)
        try:
            rows = predicted_rows(sweep, table["id"], facts.OPENED)
            table = table.join(facts.facts_of_rows(rows), on="id")
            pictures = facts.pictures(rows, table.nlargest(error_sections.WORST, "abs_error")["id"])
        except FactsError as problem:
            why = str(problem)
    return PageContent(sweep, member, table, facts, why, pictures, f" {unit}" if unit else "")


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
    write_whole(filesystem, f"{path}/{name}", page(page_content(sweep)).encode())
    return target


def page(content: PageContent) -> str:
    """The whole page as HTML, everything in it."""
    results = content.sweep.results
    page_sections = sections(content)
    drawings = [
        {**json.loads(picture.figure.to_json()), "height": picture.height}
        for section in page_sections
        for picture in section.pictures
    ]
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    task = content.sweep.task
    about = {
        "task": task["name"],
        "target": f"{task['target']}{content.in_unit}",
        "data": results["data"]["description"],
        "protocol": results["protocol"],
    }
    return environment.get_template("report.html").render(
        name=content.sweep.name,
        about=about,
        notes=results["notes"],
        flags=results["flags"],
        sections=page_sections,
        # `</` inside a script would end it.
        figures=Markup(json.dumps(drawings, separators=(",", ":")).replace("</", "<\\/")),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        record=_record(results),
    )


def sections(content: PageContent) -> list[Section]:
    """All parts of the page, in order."""
    return [
        report_sections.scores(content),
        report_sections.configuration(content),
        search_sections.training(content),
        *search_sections.search(content),
        *error_sections.predictions(content),
        *error_sections.error_means(content),
        error_sections.worst(content),
        *error_sections.trust(content),
        *error_sections.calibration(content),
        report_sections.levers(content),
        *report_sections.queue(content),
        report_sections.cost(content),
    ]


def _record(results: dict[str, Any]) -> str:
    """Code, data and versions, for the foot of the page."""
    record = results["record"]
    facts = [f"Code {record['git_commit']}", record["created"], f"data {results['data']['sha256'][:12]}"]
    return ", ".join([*facts, *(f"{name} {version}" for name, version in record["versions"].items())])
