"""The words of a sweep's page; no fixture, no test."""

import re
from html import unescape
from pathlib import Path

from tune.pages.report_page import write_report
from tune.runs import load_sweep


def text_of(folder: Path) -> str:
    """What a page says, without its scripts and tags."""
    page = Path(write_report(load_sweep(str(folder)))).read_text()
    page = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", "", page)))
