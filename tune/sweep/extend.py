"""`--extend`: more trials for a finished sweep, in a wider space if wanted, or its failed trials anew.

What was done stays: trials keep their results, tell the sampler and ASHA's rungs what they have seen, and if no fold's
best config changes nothing is trained again.
"""

from __future__ import annotations

from typing import Any

from data.machine.console import say
from tune.errors import SweepError
from tune.records.folder import Folder
from tune.records.going_on import command_to_go_on
from tune.records.options import Batch, Options
from tune.spaces.ranges import Range
from tune.spaces.space import SearchSpace


def extended(options: Options, *, num_samples: int | None, space: SearchSpace | None, only_failed: bool) -> Options:
    """The options of a finished sweep with one batch of trials more; says what will change.

    Args:
        options: of the sweep.
        num_samples: trials to add to each search; None: what the space says.
        space: that contains the sweep's own; None: its own.
        only_failed: run the trials that failed once more, and no others.

    Raises:
        SweepError: the sweep is not finished or searches nothing; or a space that leaves out what was tried.
    """
    folder = Folder(f"{options.storage}/{options.name}")
    results = folder.read_json("results.json")
    if results is None or len(results["options"].get("batches", [])) != len(options.batches):
        raise SweepError(f"{options.name} is not finished. First: `{command_to_go_on(options.storage, options.name)}`")
    if not options.space.searched:
        raise SweepError(f"{options.name} searched nothing (space {options.space.name} has no range)")
    failures = [trial for trial in results["trials"] if "failed" in trial]
    if only_failed:
        if num_samples or space:
            raise SweepError("--only-failed repeats what failed: leave out --num-samples and --space")
        if not failures:
            raise SweepError(f"no trial of {options.name} failed")
        batch = Batch(num_samples=0, space=options.space)
        say(
            f"{options.name}: {len(failures)} of {len(results['trials'])} trials failed and are run again", style="bold"
        )
        for trial in failures:
            say(f"  fold {trial['search_fold']}, trial {trial['trial']}: {trial['failed']}")
    else:
        if space is not None and (missing_values := outside(options.space, space)):
            raise SweepError(
                f"--extend widens a space, and {space.name} leaves out what was tried: {'; '.join(missing_values)}. "
                "Begin a new sweep with it"
            )
        wider = space or options.space
        batch = Batch(num_samples=num_samples or wider.num_samples, space=wider)
        say(f"{options.name}: {len(results['trials'])} trials are there, {len(failures)} of them failed", style="bold")
        searches = "" if len(options.search_folds) == 1 else f" in each of {len(options.search_folds)} searches"
        say(f"  + {batch.num_samples} trials{searches}")
        for line in changes(options.space, wider):
            say(f"  {line}")
    return options.model_copy(
        update={
            "space": batch.space,
            "num_samples": options.num_samples + batch.num_samples,
            "batches": [*options.all_batches, batch],
        }
    )


def changes(old: SearchSpace, new: SearchSpace) -> list[str]:
    """The differences between two spaces, a line each."""
    lines = []
    for field in {**old.parameters, **new.parameters}:
        before, after = (_setting(space, field) for space in (old, new))
        if before != after:
            lines.append(f"{field}: {before} -> {after}")
    for name in ("grace_epochs", "reduction_factor"):
        if getattr(old, name) != getattr(new, name):
            lines.append(f"{name}: {getattr(old, name)} -> {getattr(new, name)}")
    return lines


def outside(old: SearchSpace, new: SearchSpace) -> list[str]:
    """Fields of which the new space does not hold all that the old one does."""
    if old.model != new.model:
        return [f"model {old.model}"]
    return [
        f"{field} {_setting(old, field)} (now {_setting(new, field)})"
        for field in {**old.parameters, **new.parameters}
        if not _holds(new.default(field, None), old.default(field, None))
    ]


def _setting(space: SearchSpace, field: str) -> str:
    """The value or range of a field in words, which say so where it is the default."""
    return str(space.default(field, None)) + ("" if field in space.parameters else " (default)")


def _holds(new: Any, old: Any) -> bool:
    """Whether a value or range contains another one."""
    return new.holds(old) if isinstance(new, Range) else new == old
