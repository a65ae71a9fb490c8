"""The training loop: a generator of one `EpochResult` per epoch, known to no scheduler.

Scripts, tests and Ray Tune all iterate over `GradientRun.epochs()`. It trains any network that is `Trainable`, with
every lever of `GradientConfig`. It never sees a label of the test part: those are NaN in the targets it is given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from models.config import GradientConfig
from models.model import EpochResult, Fitted, TrainingPart, fingerprint
from models.training.averaging import Averaging, Tensors, copied, load
from models.training.inputs import Inputs, Mix, predict
from models.training.objective import Objective, TargetTransform
from models.training.optimizer import flattened, make_optimizer, twin
from models.training.recorded import RecordedPasses
from models.training.schedule import halvings, learning_rate


class NonFiniteLossError(ArithmeticError):
    """Training met a loss that is NaN or infinite."""


class Trainable(Protocol):
    """A network (a `torch.nn.Module`) as the loop needs it."""

    def __call__(self, batch: Any, mix: Mix | None = None) -> Tensor:
        """The outputs for the rows of a batch, shape (n, ...)."""
        ...

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """Parameters that train, in groups from the output backwards."""
        ...

    def open_groups(self, n_groups: int) -> None:
        """Let the first so many groups train, and no other."""
        ...


class GradientRun:
    """One training run on one fold: network, optimiser, history, and the epoch kept so far."""

    def __init__(
        self,
        config: GradientConfig,
        network: nn.Module,
        transform: TargetTransform,
        part: TrainingPart,
        *,
        inputs: Inputs,
        fitted: Callable[[list[nn.Module], Any], Fitted],
        moved_inputs: Callable[[int], Inputs] | None = None,
        layer_decay: float = 1.0,
        unfreeze_every: int = 0,
    ) -> None:
        """Make everything ready to train.

        Args:
            config: of the run.
            network: `Trainable`, on the device it trains on.
            transform: makes of targets what the network is to output, and of outputs predictions.
            part: what the run may see of the fold.
            inputs: batches to judge on, and to train on unless `moved_inputs` is given.
            fitted: makes the model of networks, whose outputs are averaged, and a transform.
            moved_inputs: batches to train on in an epoch.
            layer_decay: factor of the learning rate from a group to the next one backwards.
            unfreeze_every: epochs until the next group begins to train; 0: all do from the start.

        Raises:
            ValueError: a loss that does not fit the kind of task.
        """
        self.config, self.network, self.part = config, network, part
        self.train, self.val, self.metric = part.train, part.val, part.metric
        self.inputs, self.moved_inputs, self.make_fitted = inputs, moved_inputs, fitted
        self.unfreeze_every = unfreeze_every
        self.device = next(network.parameters()).device
        self.objective = Objective(config, transform, part, self.device)
        trainable: Trainable = network  # type: ignore[assignment]
        groups = trainable.parameter_groups()
        if groups and layer_decay == 1.0 and not unfreeze_every:  # fewer calls a step
            groups = [[parameter for group in groups for parameter in group]]
        self.trained_parameters = {name: p.numel() for name, p in network.named_parameters() if p.requires_grad}
        self.flats: Tensors = []
        self.gradients: Tensors = []
        self.optimizer: torch.optim.Optimizer | None = None
        if groups:
            self.flats, self.gradients = map(list, zip(*map(flattened, groups), strict=True))
            self.lr_factors = [layer_decay**k for k in range(len(groups))]
            self.optimizer = make_optimizer(config, self.flats)
        self.n_open = len(groups)
        moved = moved_inputs or (lambda _: inputs)
        self.recorded = RecordedPasses(config, network, self.objective, self.gradients, self.train, moved)
        self.averaging = Averaging(config, self.flats)
        self.history: list[EpochResult] = []
        self.kept_epoch = -1
        self.kept: list[Tensors] = []
        self.kept_transform = transform
        self.val_predictions = np.empty(0)
        self.parts = 1  # that each pass is cut into, since memory ran out
        self.pausing = False
        self.midway: dict[str, Any] = {}  # place in an epoch that a pause has cut in two

    def epochs(self) -> Iterator[EpochResult]:
        """Train, yielding after every epoch not done yet; the first yield is epoch 0, before training.

        Ends early after `pause`: `state()` then holds the place, to the batch.
        """
        if not self.history:
            start = time.perf_counter()
            yield self._finish(
                0,
                self.objective.loss_value(predict(self.network, self.inputs, self.train), self.train),
                self.config.lr,
                start,
            )
        for epoch in range(self.history[-1].epoch + 1, self.config.epochs + 1):
            start = time.perf_counter() - self.midway.get("seconds", 0.0)
            train_loss, lr = self.train_epoch(epoch, start)
            if self.midway:
                return
            self.averaging.after_epoch(epoch)
            yield self._finish(epoch, train_loss, lr, start)

    def pause(self) -> None:
        """Stop before the next batch; may be called from another thread."""
        self.pausing = True

    def train_epoch(self, epoch: int, start: float) -> tuple[float, float]:
        """Pass once over the training rows, or over those that a pause has left; the loss on the way and the last rate.

        Args:
            epoch: from 1.
            start: by `time.perf_counter`, as if the epoch had never been interrupted.
        """
        config = self.config
        self._open(epoch)
        inputs = self.moved_inputs(epoch) if self.moved_inputs else self.inputs
        # Seeded by the epoch, so that a resumed run meets the same batches as an uninterrupted one.
        random = np.random.default_rng([config.seed, epoch])
        order = self.train[random.permutation(len(self.train))]
        self.network.train()
        seed = int(random.integers(2**62))  # of dropout, if any; `torch.manual_seed` is slow, for it tells all devices
        torch.cuda.manual_seed(seed) if self.device.type == "cuda" else torch.default_generator.manual_seed(seed)
        n_rows = config.rows_a_step(len(order))
        n_batches = math.ceil(len(order) / n_rows)
        halved = 0
        if config.schedule == "plateau":
            halved = halvings([result.val_metric for result in self.history], config.patience, self.metric)
        total, first, lr = 0.0, 0, config.lr
        if self.midway:
            total, first = self._go_on(random)
        for k in range(first, n_batches):
            if self.pausing:
                self.midway = self._place(k, total, random, start)
                break
            lr = learning_rate(config, (epoch - 1) * n_batches + k, config.epochs * n_batches, halved)
            which = order[k * n_rows : (k + 1) * n_rows]
            value = self._step(inputs, which, lr, random)
            if not math.isfinite(value):
                raise NonFiniteLossError(
                    f"loss {value} in epoch {epoch}, batch {k + 1} of {n_batches}, with {config!r}: "
                    "try a lower learning rate"
                )
            total += value * len(which)
        return total / len(order), lr

    def _place(self, batch: int, total: float, random: np.random.Generator, start: float) -> dict[str, Any]:
        """The place in an epoch before a batch, from which `_go_on` finds its way; `total` is the loss up to there."""
        return {
            "batch": batch,
            "total": total,
            "random": random.bit_generator.state,
            "dropout": self._generator.get_rng_state(),
            "seconds": time.perf_counter() - start,
        }

    def _go_on(self, random: np.random.Generator) -> tuple[float, int]:
        """Set the random numbers to those of the place where a pause was; the loss up to there and the next batch."""
        place, self.midway = self.midway, {}
        random.bit_generator.state = place["random"]
        self._generator.set_rng_state(place["dropout"].cpu())
        return place["total"], place["batch"]

    def _step(self, inputs: Inputs, which: np.ndarray, lr: float, random: np.random.Generator) -> float:
        """Train on one batch, with the learning rate of the first group of parameters; its mean loss."""
        assert self.optimizer is not None
        config = self.config
        for group, factor in zip(self.optimizer.param_groups, self.lr_factors, strict=True):
            group["lr"] = lr * factor
        share = random.beta(config.mixup_alpha, config.mixup_alpha) if self._mixes(random) else 1.0
        value = self._backward(inputs, which, max(share, 1 - share), random)
        if config.gradient_clip:
            nn.utils.clip_grad_norm_(self.flats[: self.n_open], config.gradient_clip, foreach=False)
        self.optimizer.step()
        self.averaging.after_step()
        return value

    def _backward(self, inputs: Inputs, which: np.ndarray, share: float, random: np.random.Generator) -> float:
        """Gradient of a batch, one however many passes memory asks for; its mean loss.

        Where memory runs out the batch is computed in twice as many passes, from then on.

        Raises:
            torch.OutOfMemoryError: one row alone does not fit.
        """
        recorded_loss = self.recorded.backward(inputs, which, self.n_open) if self.parts == 1 and share == 1.0 else None
        if recorded_loss is not None:
            return recorded_loss
        random_state = random.bit_generator.state
        while True:
            passes = [part for run in inputs.passes(which) for part in np.array_split(run, min(self.parts, len(run)))]
            for gradient in self.gradients[: self.n_open]:
                gradient.zero_()
            value = 0.0
            try:
                for run in passes:
                    loss = self._mixed_loss(inputs, run, share, random)
                    loss.backward(loss.new_tensor(len(run) / len(which)))
                    value += len(run) / len(which) * float(loss.detach())
                return value
            except torch.OutOfMemoryError:
                if max(map(len, passes)) == 1:
                    raise
            self.parts *= 2
            random.bit_generator.state = random_state
            torch.cuda.empty_cache()  # outside the except clause, whose traceback keeps tensors alive

    @property
    def _generator(self) -> Any:
        """The module that holds the state of random numbers on the network's device."""
        return torch.cuda if self.device.type == "cuda" else torch

    def _mixes(self, random: np.random.Generator) -> bool:
        return self.config.mixup and random.random() < self.config.mixup_probability

    def _mixed_loss(self, inputs: Inputs, run: np.ndarray, share: float, random: np.random.Generator) -> Tensor:
        """Loss of a pass; each row is mixed with another one where its own share is below one."""
        if share == 1.0:
            return self.objective.loss(self.network(inputs.batch(run)), run)
        partner = random.permutation(len(run))
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        outputs = self.network(inputs.batch(run), Mix(torch.from_numpy(partner).to(self.device), share, generator))
        return self.objective.loss(outputs, run, run[partner], share)

    def _open(self, epoch: int) -> None:
        """Let those groups train whose time has come."""
        if not self.unfreeze_every:
            return
        self.n_open = min(len(self.flats), 1 + (epoch - 1) // self.unfreeze_every)
        self.network.open_groups(self.n_open)  # type: ignore[operator]
        for k, (flat, gradient) in enumerate(zip(self.flats, self.gradients, strict=True)):
            flat.grad = gradient if k < self.n_open else None  # the optimiser leaves alone what has none

    def _outputs(self, weights: Tensors, which: np.ndarray) -> np.ndarray:
        """Output of the network with some weights, float64, shape (n, ...)."""
        if not self.flats or weights[0].data_ptr() == self.flats[0].data_ptr():
            return predict(self.network, self.inputs, which)
        own_weights = copied(self.flats)
        load(self.flats, weights)
        outputs = predict(self.network, self.inputs, which)
        load(self.flats, own_weights)
        return outputs

    def _finish(self, epoch: int, train_loss: float, lr: float, start: float) -> EpochResult:
        """Evaluate on the validation rows, keep the weights where they are to be kept, and report."""
        candidates = self.averaging.judged()
        if self.objective.transform.refits and epoch:
            on_train = np.mean([self._outputs(weights, self.train) for weights in candidates], axis=0)
            self.objective.refit(on_train)
        outputs = np.mean([self._outputs(weights, self.val) for weights in candidates], axis=0)
        predictions = self.objective.predictions(outputs, self.val)
        value = current = self.metric.value(self.part.targets[self.val], predictions)
        if self.config.averaging != "none":
            current_outputs = self._outputs([flat.detach() for flat in self.flats], self.val)
            current = self.metric.value(
                self.part.targets[self.val], self.objective.predictions(current_outputs, self.val)
            )
        val_loss = self.objective.loss_value(outputs, self.val)
        if not (math.isfinite(value) and math.isfinite(val_loss)):
            raise NonFiniteLossError(f"validation {self.metric.name} {value} after epoch {epoch} with {self.config!r}")
        keeps_last = self.config.keep == "last"
        if keeps_last or self.kept_epoch < 0 or self.metric.better(value, self.history[self.kept_epoch].val_metric):
            self.kept_epoch = epoch
            self.kept = [copied(weights) for weights in candidates]
            self.kept_transform = self.objective.transform
            self.val_predictions = predictions
        self.averaging.after_judging(epoch)
        seconds = time.perf_counter() - start
        result = EpochResult(
            epoch, train_loss, val_loss, value, current, lr, seconds, fingerprint(predictions), self.parts
        )
        self.history.append(result)
        return result

    def fitted(self) -> Fitted:
        """The model of the kept epoch; training cannot go on after this."""
        networks = []
        for weights in self.kept:
            load(self.flats, weights)
            networks.append(twin(self.network) if len(self.kept) > 1 else self.network)
        return self.make_fitted(networks, self.kept_transform)

    def state(self) -> dict[str, Any]:
        """All that changes while training, as tensors and plain values; a resumed run equals this one.

        Save it before training goes on: on the CPU its tensors are those that train.
        """
        return {
            "config": self.config.model_dump(),
            "weights": [flat.detach().cpu() for flat in self.flats],
            "averaging": self.averaging.state(),
            "optimizer": self.optimizer.state_dict() if self.optimizer else {},
            "transform": self.objective.transform.state(),
            "kept_epoch": self.kept_epoch,
            "kept": [[values.cpu() for values in weights] for weights in self.kept],
            "kept_transform": self.kept_transform.state(),
            "val_predictions": torch.from_numpy(self.val_predictions),
            "history": [asdict(result) for result in self.history],
            "midway": self.midway,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`.

        Raises:
            ValueError: the state is of a run with another config.
        """
        if state["config"] != self.config.model_dump():
            raise ValueError(f"checkpoint of another config: {state['config']}, this run has {self.config!r}")
        load(self.flats, state["weights"])
        self.averaging.restore(state["averaging"])
        if self.optimizer:
            self.optimizer.load_state_dict(state["optimizer"])
        self.objective.take(self.objective.transform.restored(state["transform"]))
        self.kept_epoch = state["kept_epoch"]
        self.kept = [[values.to(self.device) for values in weights] for weights in state["kept"]]
        self.kept_transform = self.kept_transform.restored(state["kept_transform"])
        self.val_predictions = state["val_predictions"].numpy()
        self.history = [EpochResult(**result) for result in state["history"]]
        self.parts = self.history[-1].parts if self.history else 1
        self.midway = state["midway"]
