"""The training loop: a generator of one `EpochResult` per epoch, known to no scheduler.

Scripts, tests and Ray Tune all iterate over `FineTuning.epochs()`. It never sees a label of the test
part: those are NaN in the targets it is given (`data/folds.py` makes the split, `tune/` masks).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.graphs import Graphs
from data.task_table import Quantity
from models.anchors import load_anchors
from models.chgnet import CHGNetwork
from models.config import TrainConfig
from models.features import AtomFeatures, FeatureInputs, GraphInputs, Inputs, predict
from models.fitted import FittedModel
from models.metrics import Kind, metric_of
from models.reference import fit_class_reference, fit_energy_reference, fit_property_reference

GRADIENT_NORM_LIMIT = 1.0  # without it a head was seen to blow up in one fold of perovskites
FROM_FEATURES = ("none", "readout")  # freeze depths that read the backbone's output where it is known
HUBER_DELTA = 0.1  # as stock CHGNet's trainer


class NonFiniteLossError(ArithmeticError):
    """Training met a loss that is NaN or infinite."""


@dataclass(frozen=True)
class TrainingRows:
    """All rows of a task as training sees them; shared between trials, never written to.

    Attributes:
        graphs: one a row.
        fractions: element fractions, float32, shape (n_rows, 94).
        features: backbone output of the pretrained network, or None.
        outputs: output of the pretrained network, float64, shape (n_rows,), NaN for rejected rows, or None.
        collapse: whether equivalent atoms of a crystal are computed once (`data/symmetry.py`).
    """

    graphs: Graphs
    fractions: np.ndarray
    features: AtomFeatures | None
    outputs: np.ndarray | None
    collapse: bool = True


@dataclass(frozen=True)
class EpochResult:
    """What one epoch tells. Epoch 0 is the model before training: pretrained network and reference.

    Attributes:
        epoch: counted from 1; 0 is before training.
        train_loss: mean over the training rows while they were trained on (before training: as it is).
        val_loss: mean over the validation rows after the epoch.
        val_metric: MAE in the task's unit, or ROC-AUC, over the validation rows.
        lr: learning rate at the end of the epoch.
        seconds: that the epoch took.
    """

    epoch: int
    train_loss: float
    val_loss: float
    val_metric: float
    lr: float
    seconds: float


class FineTuning:
    """One training run on one fold: model, optimiser, history, and the best epoch so far."""

    def __init__(
        self,
        config: TrainConfig,
        rows: TrainingRows,
        targets: np.ndarray,
        train: np.ndarray,
        val: np.ndarray,
        *,
        kind: Kind,
        quantity: Quantity,
        about: dict[str, str] | None = None,
        device: str = "cpu",
    ) -> None:
        """Fit the reference on the training rows and make everything ready to train.

        Args:
            config: of the run.
            rows: all rows of the task.
            targets: in the task's unit, float64, shape (n_rows,); only those of `train` and `val` are read.
            train: positions of the training rows, int64.
            val: positions of the validation rows, int64.
            kind: regression or classification.
            quantity: what the target is to an energy model.
            about: facts to store with the model.
            device: to train on.

        Raises:
            TargetScaleError: an energy target that is not on the declared scale.
            ValueError: a loss that does not fit the kind of task.
        """
        self.config, self.rows, self.train, self.val = config, rows, train, val
        self.device = torch.device(device)
        self.metric = metric_of(kind)
        self.n_atoms = rows.graphs.atoms_per_graph
        self.targets = targets
        per_atom = targets / np.maximum(self.n_atoms, 1) if quantity == "energy_per_cell" else targets

        if (config.loss == "cross_entropy") != (kind == "classification"):
            raise ValueError(f"loss {config.loss!r} for a {kind}: cross_entropy goes with classification alone")

        network = CHGNetwork(config.weights, seed=config.seed)
        fractions = rows.fractions[train].astype(np.float64)
        if kind == "classification":
            reference = fit_class_reference(fractions, per_atom[train])
        elif quantity == "other" or config.weights == "random":
            reference = fit_property_reference(fractions, per_atom[train])
        else:
            network.to(self.device)
            outputs = rows.outputs[train] if rows.outputs is not None else self._outputs(network, train)
            # The network's output leaves CHGNet's own composition energies out, and so does the prior.
            prior = load_anchors(config.weights) - network.composition_energies().double().cpu().numpy()
            reference = fit_energy_reference(fractions, outputs, per_atom[train], prior)
        if kind == "classification" or quantity == "other" or config.weights == "random":
            network.reset_readout(config.seed)
        network.to(self.device).eval()  # CHGNet has no dropout and no batch norm: eval mode trains the same
        self.trained_parameters = network.freeze(config.freeze_depth)
        self.model = FittedModel(network, reference, kind, quantity, about or {})
        self.inputs = self._inputs()

        offset = reference.predict(rows.fractions.astype(np.float64))
        # What the network is to say: the target less its reference for a regression; for a
        # classification the class, with the reference added to the logit in the loss.
        wanted = per_atom if kind == "classification" else (per_atom - offset) / reference.scale
        self.wanted = torch.from_numpy(wanted).float().to(self.device)
        self.logit_offset = torch.from_numpy(offset).float().to(self.device) if kind == "classification" else None

        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer: torch.optim.Optimizer | None = None
        if self.parameters:
            self.flat, self.gradient = _flattened(self.parameters)
            self.optimizer = torch.optim.AdamW([self.flat], lr=config.lr, weight_decay=config.weight_decay, fused=True)
        self.history: list[EpochResult] = []
        self.best_epoch = -1
        self.best_weights: dict[str, Tensor] = {}

    def epochs(self) -> Iterator[EpochResult]:
        """Train, yielding after every epoch not done yet; the first yield is epoch 0, before training."""
        if not self.history:
            began = time.perf_counter()
            yield self._finish(0, self._loss_of(self.train), self.config.lr, began)
        for epoch in range(self.history[-1].epoch + 1, self.config.epochs + 1):
            began = time.perf_counter()
            train_loss, lr = self._train_epoch(epoch)
            yield self._finish(epoch, train_loss, lr, began)

    def _train_epoch(self, epoch: int) -> tuple[float, float]:
        """One pass over the training rows; the loss on the way and the last learning rate."""
        assert self.optimizer is not None
        size = self.config.batch_size
        # Seeded by the epoch, so that a resumed run meets the same batches as an uninterrupted one.
        order = self.train[np.random.default_rng([self.config.seed, epoch]).permutation(len(self.train))]
        n_batches = math.ceil(len(order) / size)
        total = 0.0
        lr = self.config.lr
        for k in range(n_batches):
            progress = ((epoch - 1) * n_batches + k) / (self.config.epochs * n_batches)
            lr = self.config.lr * 0.5 * (1 + math.cos(math.pi * progress))
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            which = order[k * size : (k + 1) * size]
            self.gradient.zero_()
            value = 0.0
            for part in self.inputs.passes(which):  # one gradient, however many passes memory asks for
                share = len(part) / len(which)
                loss = self._loss(self.model.network(self.inputs.batch(part)), part)
                loss.backward(loss.new_tensor(share))
                value += share * float(loss.detach())
            nn.utils.clip_grad_norm_(self.flat, GRADIENT_NORM_LIMIT, foreach=False)
            self.optimizer.step()
            if not math.isfinite(value):
                raise NonFiniteLossError(
                    f"loss {value} in epoch {epoch}, batch {k + 1} of {n_batches}, with {self.config!r}: "
                    "try a lower learning rate"
                )
            total += value * len(which)
        return total / len(order), lr

    def _finish(self, epoch: int, train_loss: float, lr: float, began: float) -> EpochResult:
        """Evaluate on the validation rows, remember the weights if they are the best, and report."""
        outputs = predict(self.model.network, self.inputs, self.val)
        val_loss = float(self._loss(torch.from_numpy(outputs).float().to(self.device), self.val))
        predictions = self.model.combine(outputs, self.rows.fractions[self.val], self.n_atoms[self.val])
        value = self.metric.value(self.targets[self.val], predictions)
        if not (math.isfinite(value) and math.isfinite(val_loss)):
            raise NonFiniteLossError(f"validation {self.metric.name} {value} after epoch {epoch} with {self.config!r}")
        if self.best_epoch < 0 or self.metric.better(value, self.best_metric):
            self.best_epoch = epoch
            self.best_weights = {
                name: parameter.detach().clone()
                for name, parameter in self.model.network.named_parameters()
                if parameter.requires_grad
            }
        result = EpochResult(epoch, train_loss, val_loss, value, lr, time.perf_counter() - began)
        self.history.append(result)
        return result

    @property
    def best_metric(self) -> float:
        """The validation metric of the best epoch."""
        return self.history[self.best_epoch].val_metric

    def best_model(self) -> FittedModel:
        """The model of the best epoch; training cannot go on after this."""
        self.model.network.load_state_dict(self.best_weights, strict=False)
        return self.model

    def state(self) -> dict[str, Any]:
        """All that changes while training, as tensors and plain values; a resumed run equals this one.

        Save it before training goes on: on the CPU its tensors are those that train.
        """
        network = self.model.network
        return {
            "config": self.config.model_dump(),
            "weights": {n: p.detach().cpu() for n, p in network.named_parameters() if p.requires_grad},
            "optimizer": self.optimizer.state_dict() if self.optimizer else {},
            "best_epoch": self.best_epoch,
            "best_weights": {name: value.cpu() for name, value in self.best_weights.items()},
            "history": [asdict(result) for result in self.history],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`.

        Raises:
            ValueError: the state is of a run with another config.
        """
        if state["config"] != self.config.model_dump():
            raise ValueError(f"checkpoint of another config: {state['config']}, this run has {self.config!r}")
        self.model.network.load_state_dict(state["weights"], strict=False)
        if self.optimizer:
            self.optimizer.load_state_dict(state["optimizer"])
        self.best_epoch = state["best_epoch"]
        self.best_weights = {name: value.to(self.device) for name, value in state["best_weights"].items()}
        self.history = [EpochResult(**result) for result in state["history"]]

    def _loss(self, outputs: Tensor, which: np.ndarray) -> Tensor:
        rows = torch.from_numpy(which).to(self.device)
        wanted = self.wanted[rows]
        if self.logit_offset is not None:
            return nn.functional.binary_cross_entropy_with_logits(outputs + self.logit_offset[rows], wanted)
        if self.config.loss == "mae":
            return nn.functional.l1_loss(outputs, wanted)
        if self.config.loss == "mse":
            return nn.functional.mse_loss(outputs, wanted)
        return nn.functional.huber_loss(outputs, wanted, delta=HUBER_DELTA)

    def _loss_of(self, which: np.ndarray) -> float:
        outputs = predict(self.model.network, self.inputs, which)
        return float(self._loss(torch.from_numpy(outputs).float().to(self.device), which))

    def _outputs(self, network: CHGNetwork, which: np.ndarray) -> np.ndarray:
        return predict(network, self._graphs(network), which)

    def _inputs(self) -> Inputs:
        """Features where nothing before the readout trains and they are known, graphs otherwise."""
        network = self.model.network
        if self.config.freeze_depth in FROM_FEATURES and self.rows.features is not None:
            return FeatureInputs(self.rows.features, self.n_atoms, self.device)
        return self._graphs(network)

    def _graphs(self, network: CHGNetwork) -> GraphInputs:
        return GraphInputs(self.rows.graphs, network.bond_graph_cutoff, self.device, self.rows.collapse)


def _flattened(parameters: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
    """One tensor that holds all parameters, and one of their gradients; theirs become views of these.

    The optimiser and the limit on the gradient then take a few calls a step, not a few for each of up to 130 tensors.
    """
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters]).requires_grad_()
    gradient = flat.grad = torch.zeros_like(flat)
    done = 0
    for parameter in parameters:
        part = slice(done, done + parameter.numel())
        parameter.data = flat.detach()[part].view_as(parameter)
        parameter.grad = gradient[part].view_as(parameter)
        done += parameter.numel()
    return flat, gradient
