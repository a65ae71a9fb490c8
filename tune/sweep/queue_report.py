"""What a queue has found, for people: its QUEUE.md."""

from __future__ import annotations

from typing import Any

from data.metrics import METRICS
from data.task_words import TaskWords
from tune.spaces.queue_file import BASELINE


def queue_markdown(ranking: dict[str, Any], data: str, words: TaskWords) -> str:
    """The ranking for people, of examples and groups that the task calls so."""
    metric, unit = ranking["metric"], f" ({ranking['unit']})" if ranking["unit"] else ""
    n_verdicts = sum(entry["verdict"] != BASELINE for entry in ranking["experiments"])
    explanation = (
        f"{data}; {METRICS[metric].title}{unit}, mean over folds and seeds. A gain is positive where the experiment is "
        f"better than the baseline; in brackets its 95 % interval, paired, over {words.examples} (grouped by "
        f"{words.group}) and seeds together. Verdict and order are by validation. Of experiments that do nothing one "
        f"in 20 is called better or worse by chance: of these {n_verdicts} about {n_verdicts / 20:.1f}, so repeat "
        "with other seeds what you build upon."
    )
    lines = [
        f"# Queue {ranking['queue']}",
        "",
        explanation,
        "",
        "| experiment | change | seeds | validation | gain on validation | verdict | test | gain on test | ensemble |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in ranking["experiments"]:
        change = ", ".join(f"{field} {value}" for field, value in entry["change"].items()) or "none"
        gains = [
            f"{entry[name]:+.4f} ({entry[f'{name}_interval'][0]:+.4f} to {entry[f'{name}_interval'][1]:+.4f})"
            if name in entry
            else ""
            for name in ("gain", "test_gain")
        ]
        ensemble = f"{entry['test_ensemble']:.4f}" if "test_ensemble" in entry else ""
        lines.append(
            f"| {entry['experiment']} | {change} | {entry['seeds']} | {entry['val']:.4f} | {gains[0]} "
            f"| {entry['verdict']} | {entry['test']:.4f} | {gains[1]} | {ensemble} |"
        )
    if "stopped" in ranking:
        lines += ["", f"The queue ended {ranking['stopped']}."]
    return "\n".join(lines) + "\n"
