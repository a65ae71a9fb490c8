"""A Ray Tune experiment: begun, or gone on with where its record is."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import ray.tune
from pyarrow import fs
from ray import cloudpickle
from ray.exceptions import RayTaskError
from ray.tune.error import TuneError
from ray.tune.experiment import Trial

from data.machine.console import say
from data.machine.ray_internals import scheduler_of
from data.stores.storage import StorageError, file_names, open_folder
from tune.errors import SweepError
from tune.trials.fields import fields_of
from tune.trials.preemption import FILE as PAUSED
from tune.trials.terminal import Terminal
from tune.trials.trial import STATE_FILE

T = TypeVar("T")
Config = dict[str, Any]

# Restarts of a trial from its last checkpoint before it counts as failed. Machines that are lost count, too.
MAX_FAILURES = 5
# Errors of code or of numbers: a model that has raised one raises it again, on whatever machine.
_OF_THE_MODEL = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_STATE = "experiment_state-"  # Ray's records of an experiment, one a session, each with the time when it began
_BESIDE_IT = ("search_gen_state-", "searcher-state-")  # of a searcher, without which Ray cannot go on from one
_STAMP = "%Y-%m-%d_%H-%M-%S"


def run_experiment(
    trainable: Any,
    param_space: dict[str, Any],
    tune_config: ray.tune.TuneConfig,
    folder: str,
    title: str,
    callbacks: list[ray.tune.Callback],
    *,
    retry: bool = True,
    again: Collection[str] = (),
) -> list[tuple[Config, ray.tune.Result]]:
    """Run a new experiment, or go on with the one in `folder`.

    Args:
        trainable: what a trial does.
        param_space: configs of the trials.
        tune_config: of Ray Tune.
        folder: path or URI of Ray's record.
        title: for messages.
        callbacks: of a new experiment; one that goes on has its own.
        retry: whether trials that failed get another chance when it goes on.
        again: ids of trials that have ended, and go on from their newest whole checkpoints.

    Returns:
        Config and result of every trial.

    Raises:
        SweepError: Ray ended with trials unfinished or by an error of its own, or could not read its own record.
        StorageError: the driver could not write.
    """
    # A snapshot a second: a killed driver then runs no finished trial again.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # Tracking writes what is read
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C must end the sweep, not only the search
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    for noisy in ("ray.tune", "ray.train", "optuna"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    filesystem, place = open_folder(folder)
    storage, name = place.rsplit("/", 1)
    if ray.tune.Tuner.can_restore(place, storage_filesystem=filesystem):
        records = _whole_records(filesystem, place, has_searcher=tune_config.search_alg is not None)
        if records:
            _refuse_other_clock(max(records), title)
        _Unrestorable.refused(folder, whether=bool(records))  # without a record nothing was done yet
        tuner = ray.tune.Tuner.restore(
            place,
            storage_filesystem=filesystem,
            trainable=trainable,
            param_space=param_space,
            resume_errored=retry,
        )
        if again:
            scheduler_of(tuner).again = again
    else:
        tuner = ray.tune.Tuner(
            trainable,
            param_space=param_space,
            tune_config=tune_config,
            run_config=ray.tune.RunConfig(
                name=name,
                storage_path=storage,
                storage_filesystem=filesystem,
                verbose=0,
                callbacks=[*callbacks, _EndForWantOfStorage(), _CountRestarts()],
                failure_config=ray.tune.FailureConfig(max_failures=MAX_FAILURES),
                checkpoint_config=ray.tune.CheckpointConfig(num_to_keep=2),
            ),
        )
    try:
        results = tuner.fit()
    except TuneError as problem:
        raise _in_a_sentence(str(problem), title) from problem
    finally:
        Terminal.close()
    # A trial that failed before its first report has a config here only.
    trials = results._experiment_analysis.trials
    unfinished = [trial.trial_id for trial in trials if not trial.is_finished()]
    if unfinished:
        raise SweepError(f"{title} ended with {len(unfinished)} trials unfinished")
    return [(dict(trial.config), _with_reason(results[position], trial)) for position, trial in enumerate(trials)]


def _whole_records(filesystem: fs.FileSystem, place: str, *, has_searcher: bool) -> list[str]:
    """Ray's records of an experiment that it can go on from.

    Where a kill has cut the first of them short, as on its way to a bucket, Ray cannot tell what was done: it is moved
    aside, and the experiment begins anew.
    """
    names = file_names(filesystem, place)
    records = [name for name in names if name.startswith(_STATE)]
    if not has_searcher or all(any(name.startswith(prefix) for name in names) for prefix in _BESIDE_IT):
        return records
    for name in records:
        filesystem.move(f"{place}/{name}", f"{place}/cut-{name}")
    return []


def _in_a_sentence(traceback_text: str, title: str) -> Exception:
    """The error that ended an experiment: of what callbacks raise, Ray keeps the traceback's text alone."""
    _, ours, why = traceback_text.rpartition("StorageError: ")
    if ours:
        return StorageError(why.strip())
    last = (traceback_text.strip().splitlines() or ["Ray gives no reason"])[-1].strip()
    files = re.findall(r'^  File "(.+)", line (\d+), in ', traceback_text, re.MULTILINE)
    place = ", line ".join(files[-1]) if files else "Ray Tune"  # an error of the system need not say which file it met
    return SweepError(
        f"{title} was ended by an error of this machine or of the program, met in {place}: {last}. What is done is "
        "kept: mend what it names, then go on"
    )


def _with_reason(result: ray.tune.Result, trial: Trial) -> ray.tune.Result:
    """The result of a trial, which says why it failed if it did.

    Ray looks for the reason where the trials are kept. If that is full or away, it did not get there, and the trial
    would pass for one that has not failed.
    """
    if trial.status == Trial.ERROR:
        result.error = _reason(trial) or result.error or TuneError("it failed, and why was lost with what it wrote")
    return result


def _reason(trial: Trial) -> Exception | None:
    """Why a trial has failed, as Ray has written it to a disk of the driver's before anywhere else."""
    error_file = Path(trial.pickled_error_file or "")
    return cloudpickle.loads(error_file.read_bytes()) if error_file.is_file() else None


class _EndForWantOfStorage(ray.tune.Callback):
    """Ends an experiment when a trial has failed for good for want of storage.

    It could not be finished in any case, and its other trials would fail in the same way, each for minutes.
    """

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        _, ours, why = str(_reason(trial)).rpartition("StorageError: ")
        if ours:
            raise StorageError(why.strip())


class _CountRestarts(ray.tune.Callback):
    """Counts what a restart costs of the `MAX_FAILURES`.

    Of a trial that was told to end, and saved, nothing: machines that are taken back may be many. Of one that its own
    model has ended, and no machine, all but this one.
    """

    def __init__(self) -> None:
        """Nothing was saved yet."""
        self.saved: dict[str, datetime | None] = {}  # when a trial has, as far as is known

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        reason, metadata = _reason(trial), trial.run_metadata
        if isinstance(reason, RayTaskError):  # the trial has raised an error
            if isinstance(reason.as_instanceof_cause(), _OF_THE_MODEL):
                metadata.num_failures = max(trial.max_failures, metadata.num_failures)
        elif (pause_time := _when_paused(trial)) not in (None, self.saved.get(trial.trial_id)):
            self.saved[trial.trial_id] = pause_time
            metadata.num_failures -= 1


def _when_paused(trial: Trial) -> datetime | None:
    """When a trial last saved because it was told to end; None if it never did, or if the store does not tell."""
    with suppress(OSError):
        return trial.storage.storage_filesystem.get_file_info(f"{trial.storage.trial_fs_path}/{PAUSED}").mtime
    return None


def run_until_read(
    experiment: Callable[..., list[tuple[Config, ray.tune.Result]]],
    read: Callable[[ray.tune.Result, Config], T | None],
    title: str,
) -> list[T]:
    """Run an experiment and read how its trials ended.

    A trial that has ended, and whose last checkpoint cannot be read, goes on from the one before, or begins anew.

    Args:
        experiment: `run_experiment` with all its arguments but `again`.
        read: gives what a result says; None for one whose last checkpoint is gone or damaged.
        title: for messages.

    Raises:
        SweepError: a checkpoint cannot be read then, either.
    """
    damaged_files: dict[str, str] = {}
    for _ in range(2):
        results = experiment(again=damaged_files)
        outcomes = [read(result, fields_of(config)) for config, result in results]
        damaged_files = {
            trial_id(result): f"{result.checkpoint.path}/{STATE_FILE}"
            for (_, result), outcome in zip(results, outcomes, strict=True)
            if outcome is None and result.checkpoint
        }
        if not damaged_files:
            return [outcome for outcome in outcomes if outcome is not None]
        for file in damaged_files.values():
            say(f"  {title}: {file} is gone or damaged; its trial goes on from its checkpoint before, or begins anew")
    raise SweepError(
        f"{', '.join(damaged_files.values())} cannot be read, though just written: look at what its disk does, then "
        "go on"
    )


def trial_id(result: ray.tune.Result) -> str:
    """The id of the trial that a result belongs to."""
    return result.path.rstrip("/").rsplit("trial_", 1)[-1]


def _refuse_other_clock(newest: str, title: str) -> None:
    """Ray goes on from the record of the latest local time: with a clock set back that is not the newest one."""
    record_time = datetime.strptime(newest.removeprefix(_STATE).removesuffix(".json"), _STAMP)
    if (clock_time := datetime.now()) < record_time:
        raise SweepError(
            f"{title}: its record was begun at {record_time}, and by this machine's clock it is "
            f"{clock_time:%Y-%m-%d %H:%M:%S}. Set the clock or the time zone (TZ) to what it was, or wait until then"
        )


class _Unrestorable(logging.Handler):
    """Where Ray cannot read its record it says so in a log, and would begin anew: all that was done would be lost."""

    def __init__(self, folder: str) -> None:
        super().__init__(logging.ERROR)
        self.folder = folder

    @classmethod
    def refused(cls, folder: str, *, whether: bool) -> None:
        """Raise what Ray logs when it fails to read the record in `folder`; or not, from now on."""
        logger = logging.getLogger("ray.tune.execution.tune_controller")
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        logger.handlers = [cls(folder)] if whether else [logging.NullHandler()]

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and "Failed to restore" in record.getMessage():
            problem = record.exc_info[1]
            raise SweepError(
                f"the record of the trials in {self.folder} cannot be read: {type(problem).__name__}: {problem}. "
                "Nothing was changed; where it stays so, delete that folder, and its trials are run anew"
            ) from problem
