"""The rows that a finished sweep predicted, opened again, for what its files do not tell of them."""

from __future__ import annotations

from collections.abc import Iterable

from data.errors import UserError
from data.task import TaskRows
from data.task_words import several
from models.family import FactsError
from tune.records.options import load_options
from tune.runs import SweepRun


def predicted_rows(run: SweepRun, ids: Iterable[str], what: str) -> TaskRows:
    """The rows of a sweep's task that it predicted, in the order of the file.

    The task is opened as the sweep did; of an average, as any of its members did.

    Args:
        run: a finished sweep.
        ids: of the rows.
        what: a word for what is opened again, such as `structure`, for the message.

    Raises:
        FactsError: the task cannot be opened any more, or is not what it was.
    """
    folders = [run.address]
    for member in run.results.get("members", []):
        beside = run.address.rpartition("/")[0]
        folders += [member["address"], f"{beside}/{member['address'].rpartition('/')[2]}"]
    reasons = []
    for folder in dict.fromkeys(folders):
        storage, _, name = folder.rpartition("/")
        try:
            _, rows = load_options(storage or ".", name).open_task()
        except (UserError, OSError) as problem:
            reasons.append(str(problem))
            continue
        if rows.sha256 == run.data_sha256:
            names = set(ids)
            return rows.select([k for k, name in enumerate(rows.ids) if name in names], rows.sha256)
        reasons.append(f"the rows of {folder} are not those that were predicted (another SHA-256)")
    count_note = f" ({len(reasons)} sweeps were tried)" if len(reasons) > 1 else ""
    raise FactsError(f"The {several(what)} cannot be opened any more{count_note}: {reasons[-1].rstrip('.')}")
