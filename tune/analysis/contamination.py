"""Errors on test examples that pretraining has seen, and on those that it has not.

Examples that were seen may be easier for any model, so that each score stands beside the controls: the network before
any training, and models trained from scratch. `seen.py` tells what was seen, `tune/leaderboard.py` is the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from data.task_words import several, task_family
from models.bootstrap import MIN_GROUPS, group_numbers, interval, resampled_scores
from tune.analysis.entries import OVERLAP_FLAG, Entry
from tune.analysis.paired import fold_scores, paired_predictions
from tune.analysis.ranking import Ranking, resamples_for
from tune.analysis.seen import Seen, SeenError, read_seen, seen_ids
from tune.runs import weights_of


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval over groups."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One entry of a leaderboard on seen and on unseen examples.

    Attributes:
        name: of the entry.
        role: `pretrained`, `zero-shot`, `from scratch` or `peer`.
        seen: its score on the examples that were seen.
        unseen: its score on the others.
        advantage: how much better it is on the seen ones.
        beyond_control: its advantage less that of the control, on the same resamples; None of the control, or where
            there is none.
    """

    name: str
    role: str
    seen: Estimate
    unseen: Estimate
    advantage: Estimate
    beyond_control: Estimate | None


@dataclass(frozen=True, eq=False)
class Exposure:
    """A ranking of a leaderboard, split.

    Attributes:
        ranking: that was split.
        source: what was seen.
        n_by_id: test examples that are listed; like the next two 0 where the ranking cannot be split.
        n_equal: others that equal an example of the source.
        n_unseen: the rest.
        n_unreadable: examples of the source that could not be read.
        opened: what of an example is compared, such as `structure`.
        control: name of the model from scratch that others are held against, or "".
        lines: one an entry; none where the ranking cannot be split.
        why_not: the reason for that, or "".
    """

    ranking: Ranking
    source: str
    n_by_id: int
    n_equal: int
    n_unseen: int
    n_unreadable: int
    opened: str
    control: str
    lines: list[Line]
    why_not: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without empty values."""
        if self.why_not:
            return {"source": self.source, "not_split_because": self.why_not}
        content: dict[str, Any] = {"source": self.source, "n_by_id": self.n_by_id}
        content |= {f"n_by_{self.opened}": self.n_equal, "n_unseen": self.n_unseen}
        content |= {"n_unreadable": self.n_unreadable, "lines": []}
        content |= {"control": self.control} if self.control else {}
        for line in self.lines:
            entry = {name: value for name, value in vars(line).items() if value is not None}
            content["lines"].append(
                {name: vars(value) if isinstance(value, Estimate) else value for name, value in entry.items()}
            )
        return content


def exposures(rankings: Sequence[Ranking], source: str) -> list[Exposure]:
    """Split the errors of every ranking by what a file says was seen; one that cannot be split says why.

    Raises:
        SeenError: the file cannot be read, or none of the rankings can be split.
    """
    families = dict.fromkeys(task_family(ranking.task) for ranking in rankings)
    seen = {family: read_seen(source, family) for family in families}
    split = [_split(ranking, seen[task_family(ranking.task)]) for ranking in rankings]
    if all(exposure.why_not for exposure in split):
        reasons = dict.fromkeys(exposure.why_not for exposure in split)
        raise SeenError(f"--contamination {source}: {'; '.join(reasons)}")
    return split


def role_of(entry: Entry) -> str:
    """What an entry is to a question of pretraining."""
    if entry.origin != "run":
        return entry.origin
    is_pretrained = OVERLAP_FLAG in entry.flags or (
        entry.run is not None and weights_of(entry.run) not in ("", "random")
    )
    return "pretrained" if is_pretrained else "from scratch"


def exposure_markdown(exposure: Exposure, digits: int) -> str:
    """A split ranking as Markdown; `digits` behind the point."""
    lines = [f"### Seen in pretraining, by {exposure.source}", ""]
    if exposure.why_not:
        return "\n".join([*lines, f"Not split: {exposure.why_not}."])
    metric, words = exposure.ranking.metric.title, exposure.ranking.words
    n_seen = exposure.n_by_id + exposure.n_equal
    columns = ["name", "role", f"{metric} seen", f"{metric} unseen", "advantage on seen"]
    columns += [f"beyond that of {exposure.control}"] if exposure.control else []
    lines += [
        (
            f"{n_seen:,} test {words.examples} were seen ({exposure.n_by_id:,} by id, {exposure.n_equal:,} by "
            f"{exposure.opened}), {exposure.n_unseen:,} were not. 95 % intervals over {words.groups} in brackets; "
            "an advantage is how much better the score of the seen ones is."
            + (
                f" {exposure.n_unreadable:,} {several(exposure.opened)} could not be read."
                if exposure.n_unreadable
                else ""
            )
        ),
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    for line in exposure.lines:
        role = f"{line.role} (control)" if line.name == exposure.control else line.role
        scores = [_text(line.seen, digits), _text(line.unseen, digits)]
        scores += [_text(line.advantage, digits, "+"), _text(line.beyond_control, digits, "+")]
        lines.append(f"| {' | '.join([line.name, role, *scores][: len(columns)])} |")
    return "\n".join([*lines, "", exposure_sentence(exposure, digits)])


def _text(estimate: Estimate | None, digits: int, sign: str = "") -> str:
    if estimate is None:
        return ""
    value, low, high = (f"{number:{sign}.{digits}f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def exposure_sentence(exposure: Exposure, digits: int) -> str:
    """What the split says of the best pretrained entry."""
    examples = exposure.ranking.words.examples
    pretrained_lines = [line for line in exposure.lines if line.role in ("pretrained", "zero-shot")]
    if not pretrained_lines:
        return "No model here was pretrained on what this task comes from."
    line = pretrained_lines[0]
    better = "better" if line.advantage.value >= 0 else "worse"
    text = f"{line.name} is {better} on seen {examples} by {abs(line.advantage.value):.{digits}f}"
    if line.beyond_control is None:
        return (
            f"{text}. No model trained from scratch is here to tell whether those {examples} are easier for any model: "
            "sweep --space scratch, or give --peers."
        )
    beyond = line.beyond_control
    text += (
        f"; compared with {exposure.control}, which has not seen them, that is {beyond.value:+.{digits}f} "
        f"({beyond.low:+.{digits}f} to {beyond.high:+.{digits}f})"
    )
    if beyond.low > 0:
        return f"{text}: more than {examples} that are easier for any model explain, so that its score flatters it."
    if beyond.high < 0:
        return f"{text}: less than for a model from scratch, so that nothing speaks for a gain from having seen them."
    return f"{text}: the interval holds 0, so that nothing shows a gain from having seen them."


def _split(ranking: Ranking, seen: Seen) -> Exposure:
    """A ranking split, or why it is not."""
    try:
        return _exposure(ranking, seen)
    except SeenError as problem:
        return Exposure(ranking, seen.source, 0, 0, 0, seen.n_unreadable, _opened(ranking, seen), "", [], str(problem))


def _exposure(ranking: Ranking, seen: Seen) -> Exposure:
    listed_ids, equal = seen_ids(ranking, seen)
    entries = [place.entry for place in ranking.places if place.rank is not None]
    control = _control(entries)
    # Of all the peers, that alone which the others are held against.
    entries = [entry for entry in entries if entry.origin != "peer" or entry is control]
    metric = ranking.metric
    paired = paired_predictions([entry.table for entry in entries], [], metric)
    was_seen = paired.rows["id"].isin(listed_ids | equal).to_numpy()
    sides = [(paired.rows[mask].reset_index(drop=True), paired.a[:, mask]) for mask in (was_seen, ~was_seen)]
    _refuse_few(ranking, [rows for rows, _ in sides])
    values, resampled = [], []
    n_resamples = resamples_for(int(group_numbers(paired.rows).max()) + 1, metric)
    for seed, (rows, predicted) in enumerate(sides):
        values.append(fold_scores(rows, predicted, metric).mean(axis=1))
        resampled.append(resampled_scores(rows, list(predicted[:, None]), metric, n_resamples, seed))
    control_position = None if control is None else entries.index(control)
    lines = _lines(entries, control_position, values, resampled, 1.0 if metric.mode == "min" else -1.0)
    name, n_unseen = "" if control is None else control.name, int((~was_seen).sum())
    opened = _opened(ranking, seen)
    return Exposure(
        ranking, seen.source, len(listed_ids), len(equal), n_unseen, seen.n_unreadable, opened, name, lines, ""
    )


def _opened(ranking: Ranking, seen: Seen) -> str:
    """The word for what is compared of examples."""
    return seen.opened or ranking.words.example


def _refuse_few(ranking: Ranking, sides: list[pd.DataFrame]) -> None:
    """Raise SeenError unless both the seen and the unseen rows have enough groups for an interval."""
    words, n_rows = ranking.words, sum(len(rows) for rows in sides)
    for side, rows in zip(("seen", "unseen"), sides, strict=True):
        if not len(rows):
            raise SeenError(f"none of the {n_rows:,} test {words.examples} of {ranking.task['name']} is {side}")
    few = min(int(group_numbers(rows).max()) + 1 for rows in sides)
    if few < MIN_GROUPS:
        raise SeenError(f"{few} {words.groups} on one side are too few for an interval, {MIN_GROUPS} are needed")


def _lines(
    entries: Sequence[Entry],
    control_position: int | None,
    values: list[np.ndarray],
    resampled: list[np.ndarray],
    sign: float,
) -> list[Line]:
    """The line of each entry.

    Args:
        entries: of a ranking.
        control_position: position of the control among them, or None.
        values: metric of each entry on the seen and on the unseen rows, shape (entries,).
        resampled: the same of resamples, shape (resamples, entries).
        sign: 1 where a lower metric is better, else -1.
    """
    advantage, resampled_advantage = (sign * (on_unseen - on_seen) for on_seen, on_unseen in (values, resampled))
    lines = []
    for k, entry in enumerate(entries):
        beyond = None
        if control_position is not None and k != control_position:
            differences = resampled_advantage[:, k] - resampled_advantage[:, control_position]
            beyond = Estimate(float(advantage[k] - advantage[control_position]), *interval(differences))
        on_seen, on_unseen = (Estimate(float(values[side][k]), *interval(resampled[side][:, k])) for side in (0, 1))
        gain = Estimate(float(advantage[k]), *interval(resampled_advantage[:, k]))
        lines.append(Line(entry.name, role_of(entry), on_seen, on_unseen, gain, beyond))
    return lines


def _control(entries: Sequence[Entry]) -> Entry | None:
    """The best model trained from scratch: with random weights, else another of ours, else a peer."""
    conditions = (
        lambda entry: entry.origin == "run" and entry.run is not None and weights_of(entry.run) == "random",
        lambda entry: role_of(entry) == "from scratch",
        lambda entry: role_of(entry) == "peer",
    )
    return next((entry for is_control in conditions for entry in entries if is_control(entry)), None)
