"""Errors on test crystals that pretraining has seen, and on those that it has not.

Crystals that were seen may be easier for any model, so that each is told beside the controls: the network before any
training, and models trained from scratch. `seen.py` tells what was seen, `tune/leaderboard.py` is the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.bootstrap import MIN_COMPOSITIONS, clusters, interval, resampled_scores
from tune.analysis.entries import OVERLAP_FLAG, Entry
from tune.analysis.paired import fold_scores, pair_up
from tune.analysis.ranking import Section, resamples_for
from tune.analysis.seen import Seen, SeenError, seen_ids
from tune.runs import weights_of


@dataclass(frozen=True)
class Measured:
    """A number and its 95 % interval over compositions."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One entry of a leaderboard on seen and on unseen crystals.

    Attributes:
        name: of the entry.
        role: `pretrained`, `zero-shot`, `from scratch` or `peer`.
        seen: its score on the crystals that were seen.
        unseen: its score on the others.
        advantage: how much better it is on the seen ones.
        beyond_control: its advantage less that of the control, on the same resamples; None of the control, or where
            there is none.
    """

    name: str
    role: str
    seen: Measured
    unseen: Measured
    advantage: Measured
    beyond_control: Measured | None


@dataclass(frozen=True, eq=False)
class Exposure:
    """A section of a leaderboard, split.

    Attributes:
        section: that was split.
        source: what was seen.
        n_by_id: test crystals that are listed; like the next two 0 where the section cannot be split.
        n_by_structure: others that equal a structure.
        n_unseen: the rest.
        n_unreadable: structures of the source that could not be read.
        control: name of the model from scratch that others are held against, or "".
        lines: one an entry; none where the section cannot be split.
        why_not: the reason for that, or "".
    """

    section: Section
    source: str
    n_by_id: int
    n_by_structure: int
    n_unseen: int
    n_unreadable: int
    control: str
    lines: list[Line]
    why_not: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without empty values."""
        if self.why_not:
            return {"source": self.source, "not_split_because": self.why_not}
        told: dict[str, Any] = {"source": self.source, "n_by_id": self.n_by_id, "n_by_structure": self.n_by_structure}
        told |= {"n_unseen": self.n_unseen, "n_unreadable": self.n_unreadable, "lines": []}
        told |= {"control": self.control} if self.control else {}
        for line in self.lines:
            entry = {what: one for what, one in vars(line).items() if one is not None}
            told["lines"].append({k: vars(one) if isinstance(one, Measured) else one for k, one in entry.items()})
        return told


def exposures(found: Sequence[Section], seen: Seen) -> list[Exposure]:
    """Split the errors of every section; one that cannot be split says why.

    Raises:
        SeenError: none of them can be split.
    """
    split = [_split(section, seen) for section in found]
    if all(one.why_not for one in split):
        raise SeenError(f"--contamination {seen.source}: {'; '.join(dict.fromkeys(one.why_not for one in split))}")
    return split


def role_of(entry: Entry) -> str:
    """What an entry is to a question of pretraining."""
    if entry.kind != "run":
        return entry.kind
    pretrained = OVERLAP_FLAG in entry.flags or (entry.run is not None and weights_of(entry.run) not in ("", "random"))
    return "pretrained" if pretrained else "from scratch"


def report(exposure: Exposure, digits: int) -> str:
    """A split section as Markdown; `digits` behind the point."""
    lines = [f"### Seen in pretraining, by {exposure.source}", ""]
    if exposure.why_not:
        return "\n".join([*lines, f"Not split: {exposure.why_not}."])
    metric = exposure.section.metric.name.upper()
    n_seen = exposure.n_by_id + exposure.n_by_structure
    columns = ["name", "role", f"{metric} seen", f"{metric} unseen", "advantage on seen"]
    columns += [f"beyond that of {exposure.control}"] if exposure.control else []
    lines += [
        (
            f"{n_seen:,} test crystals were seen ({exposure.n_by_id:,} by id, {exposure.n_by_structure:,} by "
            f"structure), {exposure.n_unseen:,} were not. 95 % intervals over compositions in brackets; an advantage "
            "is how much better the score of the seen ones is."
            + (f" {exposure.n_unreadable:,} structures could not be read." if exposure.n_unreadable else "")
        ),
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]

    def told(one: Measured | None, sign: str = "") -> str:
        if one is None:
            return ""
        return f"{one.value:{sign}.{digits}f} ({one.low:{sign}.{digits}f} to {one.high:{sign}.{digits}f})"

    for line in exposure.lines:
        role = f"{line.role} (control)" if line.name == exposure.control else line.role
        scores = [told(line.seen), told(line.unseen), told(line.advantage, "+"), told(line.beyond_control, "+")]
        lines.append(f"| {' | '.join([line.name, role, *scores][: len(columns)])} |")
    return "\n".join([*lines, "", sentence(exposure, digits)])


def sentence(exposure: Exposure, digits: int) -> str:
    """What the split says of the best pretrained entry."""
    pretrained = [line for line in exposure.lines if line.role in ("pretrained", "zero-shot")]
    if not pretrained:
        return "No model here was pretrained on what this task comes from."
    line = pretrained[0]
    better = "better" if line.advantage.value >= 0 else "worse"
    text = f"{line.name} is {better} on seen crystals by {abs(line.advantage.value):.{digits}f}"
    if line.beyond_control is None:
        return (
            f"{text}. No model trained from scratch is here to tell whether those crystals are easier for any model: "
            "sweep --space scratch, or give --peers."
        )
    beyond = line.beyond_control
    text += (
        f"; compared with {exposure.control}, which has not seen them, that is {beyond.value:+.{digits}f} "
        f"({beyond.low:+.{digits}f} to {beyond.high:+.{digits}f})"
    )
    if beyond.low > 0:
        return f"{text}: more than crystals that are easier for any model explain, so that its score flatters it."
    if beyond.high < 0:
        return f"{text}: less than for a model from scratch, so that nothing speaks for a gain from having seen them."
    return f"{text}: the interval holds 0, so that nothing shows a gain from having seen them."


def _split(section: Section, seen: Seen) -> Exposure:
    """A section split, or why it is not."""
    try:
        return _measured(section, seen)
    except SeenError as problem:
        return Exposure(section, seen.source, 0, 0, 0, seen.n_unreadable, "", [], str(problem))


def _measured(section: Section, seen: Seen) -> Exposure:
    listed, equal = seen_ids(section, seen)
    entries = [place.entry for place in section.places if place.rank is not None]
    control = _control(entries)
    # Of all the peers, that alone which the others are held against.
    entries = [entry for entry in entries if entry.kind != "peer" or entry is control]
    pair = pair_up([entry.table for entry in entries], [])
    was_seen = pair.rows["id"].isin(listed | equal).to_numpy()
    for which, n in (("seen", int(was_seen.sum())), ("unseen", int((~was_seen).sum()))):
        if n == 0:
            raise SeenError(f"none of the {len(was_seen):,} test crystals of {section.task['name']} is {which}")
    parts = [(pair.rows[mask].reset_index(drop=True), pair.a[:, mask]) for mask in (was_seen, ~was_seen)]
    few = min(int(clusters(rows).max()) + 1 for rows, _ in parts)
    if few < MIN_COMPOSITIONS:
        raise SeenError(f"{few} compositions on one side are too few for an interval, {MIN_COMPOSITIONS} are needed")
    metric = section.metric
    values, resampled = [], []
    n_resamples = resamples_for(int(clusters(pair.rows).max()) + 1, metric)
    for seed, (rows, predicted) in enumerate(parts):
        values.append(fold_scores(rows, predicted, metric).mean(axis=1))
        resampled.append(resampled_scores(rows, list(predicted[:, None]), metric, n_resamples, seed))
    sign = 1.0 if metric.mode == "min" else -1.0
    advantage, of_resamples = (sign * (unseen - seen_) for seen_, unseen in (values, resampled))
    held = None if control is None else entries.index(control)
    lines = []
    for k, entry in enumerate(entries):
        beyond = None
        if held is not None and k != held:
            differences = of_resamples[:, k] - of_resamples[:, held]
            beyond = Measured(float(advantage[k] - advantage[held]), *interval(differences))
        on_seen, on_unseen = (Measured(float(values[part][k]), *interval(resampled[part][:, k])) for part in (0, 1))
        gain = Measured(float(advantage[k]), *interval(of_resamples[:, k]))
        lines.append(Line(entry.name, role_of(entry), on_seen, on_unseen, gain, beyond))
    name, n_unseen = "" if control is None else control.name, int((~was_seen).sum())
    return Exposure(section, seen.source, len(listed), len(equal), n_unseen, seen.n_unreadable, name, lines, "")


def _control(entries: Sequence[Entry]) -> Entry | None:
    """The best model trained from scratch: with random weights, else another of ours, else a peer."""
    wanted = (
        lambda entry: entry.kind == "run" and entry.run is not None and weights_of(entry.run) == "random",
        lambda entry: role_of(entry) == "from scratch",
        lambda entry: role_of(entry) == "peer",
    )
    return next((entry for is_wanted in wanted for entry in entries if is_wanted(entry)), None)
