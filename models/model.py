"""What a sweep asks of a model: a config, a run on the part of a fold it may see, and what that leaves.

A model is one `Model` entry of `models/registry.py`, or the constant `MODEL` of a file of your own. What is
fitted in one go needs a function and `fitted_once`; what trains epoch by epoch is a `Run` of its own.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import wraps
from typing import Any, Protocol

import numpy as np
import torch

from data.metrics import METRICS, TRUSTED, Metric
from data.task import USUAL_METRIC, Kind, Quantity
from models.config import ModelConfig


class TrainingRows(Protocol):
    """All rows of a task as a family's models read them; shared between trials, never written to."""

    def select(self, which: np.ndarray) -> TrainingRows:
        """The rows at the positions `which`, int64, in that order."""
        ...


@dataclass(frozen=True)
class TrainingPart:
    """The part of a fold that a model may see: no label of its test part is in it.

    Attributes:
        targets: in the task's unit, float64, shape (n_rows, ...), NaN for every row but those of `train` and `val`.
        train, val: row positions, int64. What is fitted is fitted on `train`; `val` is for choices.
        kind: regression or classification; the targets of the latter are 0, 1 and, with `n_classes`, more.
        quantity: what the target is to an energy model.
        tell: takes a line that says how far a fit has come, for who waits for it.
        metric_name: of what validation is judged by; "" for that of Matbench.
        n_classes: of a classification with more than two.
    """

    targets: np.ndarray
    train: np.ndarray
    val: np.ndarray
    kind: Kind
    quantity: Quantity
    tell: Callable[[str], None] = lambda _line: None
    metric_name: str = ""
    n_classes: int | None = None

    @property
    def metric(self) -> Metric:
        """The metric that validation is judged by."""
        return METRICS[self.metric_name or USUAL_METRIC[self.kind]].for_training(self.targets[self.train])

    @property
    def prediction_shape(self) -> tuple[int, ...]:
        """The shape of the prediction for one row."""
        return (*self.targets.shape[1:], *([self.n_classes] if self.n_classes else []))


@dataclass(frozen=True)
class Prediction:
    """Values in the task's unit (probabilities for a classification), finite, float64, shape (n, ...).

    `std` is the model's own uncertainty of each, same unit and shape, or None where it has none. `trust`, up to 1,
    shape (n,), says how near each row is to what was trained on, or is None where nothing is known of it.
    """

    values: np.ndarray
    std: np.ndarray | None = None
    trust: np.ndarray | None = None

    @property
    def trusted(self) -> np.ndarray | None:
        """Whether each trust is at least `TRUSTED`."""
        return None if self.trust is None else self.trust >= TRUSTED


@dataclass(frozen=True)
class EpochResult:
    """The figures of one epoch. Epoch 0 is the model before training: pretrained network and reference.

    Attributes:
        epoch: counted from 1; 0 is before training.
        train_loss: mean over the training rows while they were trained on (before training: as it is).
        val_loss: mean over the validation rows after the epoch.
        val_metric: MAE in the task's unit, or ROC-AUC, over the validation rows.
        val_metric_current: the same of the weights as they are, where `val_metric` is of averaged ones.
        lr: learning rate at the end of the epoch; 0 for what has none.
        seconds: that the epoch took.
        fingerprint: first digits of the SHA-256 of the validation predictions: two runs that share it are the same.
        parts: that batches were computed in by then because memory had run out; the gradient is that of the batch.
    """

    epoch: int
    train_loss: float
    val_loss: float
    val_metric: float
    val_metric_current: float
    lr: float
    seconds: float
    fingerprint: str
    parts: int = 1


def fingerprint(predictions: np.ndarray) -> str:
    """Twelve hexadecimal digits that tell predictions apart to the last bit."""
    return hashlib.sha256(np.ascontiguousarray(predictions, dtype=np.float64).tobytes()).hexdigest()[:12]


class Fitted(Protocol):
    """A fitted model, which training leaves: it predicts rows, and can be written to a file."""

    def predict_rows(self, rows: Any, which: np.ndarray) -> Prediction:
        """Predictions of the rows at the positions `which`; what is cached of rows may be missing in them."""
        ...

    def content(self) -> dict[str, Any]:
        """Tensors and plain values from which the model's `load` makes it again."""
        ...


class Run(Protocol):
    """One training run on one fold, epoch by epoch."""

    history: list[EpochResult]
    trained_parameters: dict[str, int]  # what the config lets train: name and how many values it has

    @property
    def kept_epoch(self) -> int:
        """The epoch whose model is kept so far: the best on validation unless the config says otherwise."""
        ...

    @property
    def val_predictions(self) -> np.ndarray:
        """The predictions of the kept epoch for the validation rows, float64, shape (n_val, ...)."""
        ...

    def epochs(self) -> Iterator[EpochResult]:
        """Train, yielding after every epoch not done yet; ends early after `pause`."""
        ...

    def pause(self) -> None:
        """Stop soon, where `state()` holds the place: the machine is about to go. Called from another thread."""
        ...

    def fitted(self) -> Fitted:
        """The model of the kept epoch; training cannot go on after this."""
        ...

    def state(self) -> dict[str, Any]:
        """All that changes while training, as tensors and plain values; a resumed run equals this one."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        ...


@dataclass(frozen=True)
class Model:
    """An entry of the registry.

    Attributes:
        name: as a search space calls it.
        config: its fields are what a space may set and search.
        reads: what it reads, in its family's words. Of crystals: `structures` needs graphs; `features` also the
            pretrained backbone's output (its config has a field `weights`); `compositions` runs on any task.
        start: begin a run on a device, from what a trial sees.
        load: make what `Fitted.content` describes, on a device.
        unsuited: why a config does not go with a kind of task and a quantity, or None; asked before anything is
            computed.
        by_chance: whether the seed has a part in what a config learns from the rows at some positions; where it has
            none, a gain needs no several seeds to be told from noise.
        family: whose rows it reads.
        trains: whether parameters of a space let anything but the baseline be fitted.
        mistake: the field and what is wrong with parameters of a space that no single value shows, or None.
        costly: fields by which the memory and time of a step differ, beside `batch_size`. Values of a `Literal` among
            them stand in the order in which they cost more.
        reads_cached: whether an epoch of a config reads the family's cached arrays instead of the rows themselves,
            where they are known, and so costs little a row.
        demanding: values of fields with which the first epoch takes as much memory as any later one.
        title: of its trainings in tables; its name where there is none.
    """

    name: str
    config: type[ModelConfig]
    reads: str
    start: Callable[[Any, Any, TrainingPart, str], Run]
    load: Callable[[dict[str, Any], str], Fitted]
    unsuited: Callable[[Any, Kind, Quantity], str | None] = lambda _config, _kind, _quantity: None
    by_chance: Callable[[Any, Any, np.ndarray], bool] = lambda _config, _rows, _train: True
    family: str = "crystals"
    trains: Callable[[Mapping[str, Any]], bool] = lambda _parameters: True
    mistake: Callable[[Mapping[str, Any]], tuple[str, str] | None] = lambda _parameters: None
    costly: tuple[str, ...] = ()
    reads_cached: Callable[[Any], bool] = lambda _config: False
    demanding: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""


def never(_config: ModelConfig, _rows: TrainingRows, _train: np.ndarray) -> bool:
    """`Model.by_chance` of what draws nothing at random."""
    return False


class BadPredictionsError(ValueError):
    """A model predicted something else than what a row's prediction is, such as one finite number."""


def checked_predictions(
    fitted: Fitted, rows: TrainingRows, which: np.ndarray, of_a_row: tuple[int, ...] = ()
) -> np.ndarray:
    """The predictions of a model for the rows at the positions `which`, float64, shape (n, *of_a_row).

    Raises:
        BadPredictionsError: it has another shape or is not finite, or the uncertainty that goes with it; numpy would go
            on with many another shape, and a NaN is like no other.
    """
    prediction, beginning = fitted.predict_rows(rows, which), f"{type(fitted).__name__}.predict_rows returned"
    shape = (len(which), *of_a_row)
    expectation = (
        f"expected shape {shape}: one finite number a row" if not of_a_row else f"expected finite ones of shape {shape}"
    )
    if not isinstance(prediction, Prediction):
        raise BadPredictionsError(f"{beginning} a {type(prediction).__name__}, expected a Prediction")
    for name, array in (("values", prediction.values), ("std", prediction.std)):
        if array is None and name == "std":
            continue
        try:
            numbers = np.asarray(array, dtype=np.float64)
        except (TypeError, ValueError, RuntimeError):  # the last of a tensor that has a gradient
            raise BadPredictionsError(f"{beginning} {name} that are no numbers, {expectation}") from None
        if numbers.shape != shape:
            raise BadPredictionsError(f"{beginning} {name} of shape {numbers.shape}, {expectation}")
        if n_bad := int((~np.isfinite(numbers)).sum()):
            raise BadPredictionsError(
                f"{beginning} {name} of which {n_bad} of {len(which)} are not finite, {expectation}"
            )
    return np.asarray(prediction.values, dtype=np.float64)


Fit = Callable[[Any, Any, TrainingPart], Fitted]


def fitted_once(fit: Fit) -> Callable[[Any, Any, TrainingPart, str], Run]:
    """`Model.start` of what has no epochs: the function fits a config on the training rows of a part."""

    @wraps(fit)  # so that who looks for the model's source finds it
    def start(config: ModelConfig, rows: TrainingRows, part: TrainingPart, _device: str) -> Run:
        return OneFit(fit, config, rows, part)

    return start


class OneFit:
    """A run of one epoch, which is the whole fit."""

    def __init__(self, fit: Fit, config: ModelConfig, rows: TrainingRows, part: TrainingPart) -> None:
        """Prepare; nothing is fitted yet."""
        self.fit, self.config, self.rows, self.part = fit, config, rows, part
        self.history: list[EpochResult] = []
        self.trained_parameters: dict[str, int] = {}
        self.kept_epoch = 1
        self.val_predictions = np.empty(0)
        self._fitted: Fitted | None = None

    def epochs(self) -> Iterator[EpochResult]:
        """Fit, if that is not done.

        Raises:
            BadPredictionsError: what was fitted does not predict what a row's prediction is.
        """
        if self.history:
            return
        start = time.perf_counter()
        self._fitted = self.fit(self.config, self.rows, self.part)
        metric = self.part.metric
        train, val = self.part.train, self.part.val
        of_a_row = self.part.prediction_shape
        self.val_predictions = checked_predictions(self._fitted, self.rows, val, of_a_row)
        predictions = checked_predictions(self._fitted, self.rows, train, of_a_row)
        on_train = metric.value(self.part.targets[train], predictions)
        on_val = metric.value(self.part.targets[val], self.val_predictions)
        seconds = time.perf_counter() - start
        digits = fingerprint(self.val_predictions)
        self.history.append(EpochResult(1, on_train, on_val, on_val, on_val, 0.0, seconds, digits))
        yield self.history[0]

    def pause(self) -> None:
        """Nothing: a fit has no place to stop at."""

    def fitted(self) -> Fitted:
        """The fitted model; fitted again in a run that was restored."""
        return self._fitted or self.fit(self.config, self.rows, self.part)

    def state(self) -> dict[str, Any]:
        """That it was fitted, and how well."""
        return {
            "config": self.config.model_dump(),
            "history": [asdict(result) for result in self.history],
            "kept_epoch": self.kept_epoch,
            "val_predictions": torch.from_numpy(self.val_predictions),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the history; fitting again, which is deterministic, is left to `fitted`."""
        self.history = [EpochResult(**result) for result in state["history"]]
        self.val_predictions = state["val_predictions"].numpy()
