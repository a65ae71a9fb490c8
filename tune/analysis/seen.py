"""Which test examples pretraining has seen, as a list of ids tells, or a file of examples that their family reads."""

from __future__ import annotations

from dataclasses import dataclass

from data.errors import UserError
from data.stores.places import expanded
from data.task import TaskError
from data.task_words import several
from data.tasks import read_ids
from models.family import FactsError, SeenExamples
from models.registry import open_facts
from tune.analysis.opened_rows import predicted_rows
from tune.analysis.ranking import Ranking


class SeenError(UserError, ValueError):
    """A file of what was seen that cannot be read or used; the message says why and what is expected."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What pretraining has seen.

    Attributes:
        source: the file or folder it was read from.
        ids: of examples, as the file names them.
        opened: what of an example is compared, such as `structure`; "" where the family says nothing.
        examples: which test examples may equal; None where the file is a list of ids.
    """

    source: str
    ids: set[str]
    opened: str
    examples: SeenExamples | None = None

    @property
    def n_unreadable(self) -> int:
        """Examples of the source that could not be read."""
        return 0 if self.examples is None else self.examples.n_unreadable


def read_seen(source: str, family: str) -> Seen:
    """Read what pretraining has seen.

    Args:
        source: a text file of ids, one a line, `#` begins a comment; or a file or folder of examples that the family
            reads.
        family: of the test examples.

    Raises:
        SeenError: there is nothing, or nothing of that kind, to read.
    """
    path = expanded(source)
    if not path.exists():
        raise SeenError(f"--contamination {source}: there is no such file or folder")
    facts = open_facts(family)
    opened = "" if facts is None else facts.OPENED
    try:
        if facts is not None and (examples := facts.read_seen(source)) is not None:
            return Seen(source, examples.ids, opened, examples)
    except FactsError as problem:
        raise SeenError(f"--contamination {problem}") from None
    if path.is_dir():
        raise SeenError(f"--contamination {source} is a folder, which tells nothing of {family}: give a list of ids")
    try:
        return Seen(source, read_ids(path), opened)
    except TaskError as problem:
        raise SeenError(f"--contamination: {problem}") from None


def seen_ids(ranking: Ranking, seen: Seen) -> tuple[set[str], set[str]]:
    """Test ids of a ranking that are listed, and others that equal an example.

    Raises:
        SeenError: examples are given, and those of the ranking's runs cannot be opened.
    """
    table = ranking.places[0].entry.table
    listed = set(table["id"]) & seen.ids
    if seen.examples is None:
        return listed, set()
    rest = table[~table["id"].isin(listed) & table["group"].isin(list(seen.examples.groups))]
    if rest.empty:
        return listed, set()
    groups = dict(zip(rest["id"], rest["group"], strict=True))
    reasons = []
    for run in ranking.runs:  # any of them will do
        try:
            return listed, seen.examples.equal_ids(predicted_rows(run, groups, seen.opened), groups)
        except FactsError as problem:
            reasons.append(f"{run.name}: {problem}")
    raise SeenError(
        f"{several(seen.opened)} of {ranking.task['name']} are needed, or a list of ids instead. {'; '.join(reasons)}"
    )
