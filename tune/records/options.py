"""All that defines a sweep: what `--resume` needs and what a reader can repeat it from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from data.fold import DEFAULT_SPLIT
from data.task import Task, TaskRows
from data.tasks import open_task
from models.registry import family_of, open_family, open_model
from tune.arguments import AUTO_COPIES, Copies, Tracker, Untrusted
from tune.errors import SweepError
from tune.records.code_record import code_sha256, run_record
from tune.records.folder import RECORD, Folder, refuse_name, refuse_taken
from tune.spaces.space import SearchSpace


class Batch(BaseModel):
    """Trials of a search that were asked for together.

    Attributes:
        num_samples: how many; 0: those that had failed, once more.
        space: that they come from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_samples: int
    space: SearchSpace


class Options(BaseModel):
    """All that defines a sweep, kept in its `sweep.json` so that `--resume NAME` needs nothing else.

    Of a sweep that was extended, `num_samples` counts the trials of all batches, and `space` is that of the last.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    space: SearchSpace
    task: str
    target: str | None
    quantity: str | None
    ids: str | None
    search_folds: list[int]
    folds: list[int]
    num_samples: int
    seed: int
    seeds: int
    storage: str
    cache: str
    downloads: str
    cpus_per_trial: int
    gpus_per_trial: float
    pack_gpus: bool = False  # with 1 GPU a trial until the sweep has measured what fits
    max_concurrent: int | None
    every_atom: bool
    tta: str
    untrusted: Untrusted = "keep"
    track: Tracker | None = None
    split: str = DEFAULT_SPLIT
    batches: list[Batch] = []

    @property
    def all_batches(self) -> list[Batch]:
        """The trials that the sweep began with, and those that each `--extend` has added."""
        return self.batches or [Batch(num_samples=self.num_samples, space=self.space)]

    def copies(self) -> Copies | None:
        """The copies that `--tta` asks for: None, some if validation gains by them, or a number used always."""
        if self.tta == "none":
            return None
        return Copies(AUTO_COPIES, True) if self.tta == "auto" else Copies(int(self.tta), False)

    def open_task(self) -> tuple[Task, TaskRows]:
        """The task and all its rows; raises what `data.tasks.open_task` does."""
        return open_task(
            self.task,
            family=family_of(self.space.model),
            target=self.target,
            quantity=self.quantity,
            ids_file=Path(self.ids) if self.ids else None,
            download_dir=Path(self.downloads),
        )


def refuse_unsuited(options: Options, task: Task, space: SearchSpace) -> None:
    """Raise SweepError if a space's model, the split or the copies do not go with a task."""
    model, family = open_model(space.model), open_family(task.family)
    if model.family != task.family:
        raise SweepError(f"model {space.model} is of {model.family}, and {task.name} of {task.family}")
    if problem := family.refusal(model, task, options.split, options.tta):
        raise SweepError(problem)


def write_record(folder: Folder, options: Options, data_sha256: str) -> None:
    """Keep what defines a new sweep."""
    refuse_taken(
        "--name", options.name, options.storage
    )  # again: another one of the same name may have begun in the meantime
    record = run_record(options.space.model)
    folder.write_plain_json(RECORD, {"options": options.model_dump(), "data_sha256": data_sha256, **record})


def check_record(folder: Folder, options: Options, data_sha256: str) -> None:
    """Raise SweepError if a sweep that goes on has other data than it began with, or was extended in the meantime."""
    record = folder.read_json(RECORD)
    recorded_batches = _options_of(record, options.storage, options.name).all_batches
    if recorded_batches != options.all_batches[: len(recorded_batches)]:
        raise SweepError(f"{options.name} was extended by another command in the meantime: give this one again")
    before = record["data_sha256"]
    if before != data_sha256:
        raise SweepError(
            f"the data of {options.task!r} changed since this sweep began (SHA-256 {before[:12]} then, "
            f"{data_sha256[:12]} now): start a new sweep under another --name"
        )


def keep_options(folder: Folder, options: Options) -> None:
    """Write down the options of a sweep that was extended or moved; nothing where they are what they were."""
    record, current_options = folder.read_json(RECORD), options.model_dump()
    if record["options"] != current_options:
        folder.write_plain_json(RECORD, {**record, "options": current_options})


def load_options(storage: str, name: str) -> Options:
    """Options of a sweep that was begun, with its folder where it is now.

    Raises:
        SweepError: no such sweep.
    """
    return _options_of(_read_record(storage, name), storage, name)


def options_to_go_on(storage: str, name: str, option: str) -> Options:
    """Options that a sweep was begun with, for `--resume` or `--extend`, whichever `option` is.

    Raises:
        SweepError: also for one that its queue goes on with, or that other code began.
    """
    refuse_name(option, name, storage)
    record = _read_record(storage, name)
    if "gate" in record:
        raise SweepError(
            f"{storage}/{name} is an experiment of a queue: the queue's own command, run again, goes on with it"
        )
    options = _options_of(record, storage, name)
    refuse_other_code(record, options.space.model, name)
    return options


def _read_record(storage: str, name: str) -> dict[str, Any]:
    record = Folder(f"{storage}/{name}").read_json(RECORD)
    if record is None:
        raise SweepError(f"no sweep {name!r} in {storage}: --resume takes the name of a folder there")
    return record


def _options_of(record: dict[str, Any], storage: str, name: str) -> Options:
    try:
        return Options(**{**record["options"], "storage": storage})
    except (ValidationError, KeyError, TypeError) as problem:
        raise SweepError(
            f"{storage}/{name}/{RECORD} was written by another version of matsweep ({problem}): "
            "resume it with that version, or start anew"
        ) from None


def refuse_other_code(record: dict[str, Any], model: str, name: str) -> None:
    """Raise SweepError where the code that trains is not that of a sweep's record: half of each would be neither."""
    if (recorded_hash := record.get("code_sha256", "unknown")) != (current_hash := code_sha256(model)):
        model_clause = f", {model} among it," if model.endswith(".py") else ""
        raise SweepError(
            f"the code that trains{model_clause} has changed since {name} was begun "
            f"(commit {record.get('git_commit', 'unknown')}, SHA-256 {recorded_hash[:12]}; now {current_hash[:12]}): "
            "what it has done and what comes could not be compared. Go on with that version, or begin a new sweep; the "
            "cached graphs and features serve it too"
        )
