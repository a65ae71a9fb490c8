"""Says whether a prediction can be trusted, by how far its row is from training and it from a baseline's prediction.

`fit_trust` looks once at a trained model, at rows of its training and validation parts alone; `Trust.mark` then marks
the predictions of any rows. Four measures are each divided by what is usual on validation, and the worst counts:

- elements: the leverage of the row in a model linear in the element fractions, so that an element which training shows
  seldom or never counts;
- environments: of the pretrained backbone's features of its atoms, whitened, the distance to the nearest training atom,
  its mean over the crystal's atoms and, so that one odd atom in a large cell counts, its largest;
- move: the distance of the prediction to the baseline's, which is what training has to beat: the pretrained network
  with a reference where the target is an energy, else a model linear in the composition.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from data.metrics import TRUSTED
from models.crystals.baseline import Baseline, fit_baseline
from models.crystals.chgnet.features import FeatureInputs, GraphInputs, backbone_features
from models.crystals.chgnet.network import pretrained
from models.crystals.reference import Reference
from models.crystals.rows import AtomFeatures, CrystalRows
from models.model import Prediction, TrainingPart
from models.training.inputs import predict

LIMIT = 3.0  # trust is 0.5 at so many times what is usual: see docs/accuracy.md for how many rows that marks
USUAL = 0.95  # part of the validation rows that stay below what is called usual
ATOMS_KEPT = 8192  # most training atoms that distances are measured from; of more, those of rows drawn at random
ROWS_CALIBRATED = 2000  # most validation rows that say what is usual; of more, some drawn at random
FEW_ROWS = 50  # below so many validation rows the training rows, each against the others, are counted in
_RIDGE = 0.01  # an element that training does not show has the leverage of its fraction over the root of this
# Bounds of the usual leverage. The lower one is that of an element shown ten times: a smaller leverage is never
# unusual. The upper one is that of an element shown once: however many rows of a small task hold elements that training
# does not show, a third of a crystal of such an element is marked.
_USUAL_LEVERAGES = (0.3, 1.0)
_SHRINKAGE = 0.01  # part of the mean variance that is added to the variance of each direction before whitening
_SMALLEST_MOVE_OF_LOGITS = 1.0
_AT_ONCE = 2048  # atoms whose distances to the kept ones are computed together


@dataclass(frozen=True)
class Environments:
    """Atoms of the training part in the space of the backbone's features.

    Attributes:
        shift: float32, shape (64,).
        whiten: float32, shape (64, 64); atoms are at (features - shift) @ whiten.
        atoms: float32, shape (n, 64).
        owner: row that each is of, int64, shape (n,): a training row is not near itself.
    """

    shift: np.ndarray
    whiten: np.ndarray
    atoms: np.ndarray
    owner: np.ndarray

    def distances(self, features: AtomFeatures, which: np.ndarray, *, of_task: bool) -> np.ndarray:
        """Measures each crystal by its atoms' distances to the nearest training atom: their mean and the largest.

        Args:
            features: of all rows.
            which: positions of the crystals.
            of_task: whether these are rows of the task, where a training row is compared with the others alone.

        Returns:
            float64, shape (n, 2).
        """
        chosen = features.select(which)
        first = np.concatenate([[0], np.cumsum(chosen.rows_per_graph, dtype=np.int64)])
        row_of = np.repeat(which, chosen.rows_per_graph)
        squared_norms = (self.atoms**2).sum(axis=1)
        nearest = np.empty(len(chosen.values))
        for k in range(0, len(nearest), _AT_ONCE):
            here = slice(k, k + _AT_ONCE)
            places = (chosen.values[here] - self.shift) @ self.whiten
            squared = squared_norms - 2 * places @ self.atoms.T
            if of_task:
                squared[row_of[here, None] == self.owner] = np.inf
            nearest[here] = squared.min(axis=1) + (places.astype(np.float64) ** 2).sum(axis=1)
        nearest = np.sqrt(np.maximum(nearest, 0))
        count = chosen.atom_count.astype(np.float64)
        mean = np.add.reduceat(nearest * count, first[:-1]) / np.add.reduceat(count, first[:-1])
        return np.stack([mean, np.maximum.reduceat(nearest, first[:-1])], axis=1)


@dataclass(frozen=True)
class Trust:
    """Judges the predictions of a trained model by what `fit_trust` has learnt of it.

    Attributes:
        baseline: that moves are measured from.
        weights: of the pretrained network that describes atoms; "" where nothing but compositions is known.
        inverse: inverse of the element fractions' second moments in the training part, float64, shape (94, 94).
        environments: of its atoms; None where nothing but compositions is known.
        usual: what most validation rows stay below, by the name of the measure: `elements`, `mean`, `largest`, `move`.
        baseline_error: root mean square error of the baseline on validation, in the task's unit.
    """

    baseline: Baseline
    weights: str
    inverse: np.ndarray
    environments: Environments | None
    usual: dict[str, float]
    baseline_error: float

    def mark(
        self,
        rows: CrystalRows,
        which: np.ndarray,
        prediction: Prediction,
        *,
        of_task: bool = False,
        replace_untrusted: bool = False,
    ) -> Prediction:
        """The same prediction with its trust: 1 / (1 + (r / LIMIT)^2), r being the worst measure over what is usual.

        Args:
            rows: that hold the backbone's output where `weights` is set, see `described`.
            which: positions of the predicted rows.
            prediction: of them.
            of_task: whether they are rows of the task that was trained on.
            replace_untrusted: put the baseline's prediction where trust is below `TRUSTED`; its std is then at least
                the baseline's root mean square error on validation.
        """
        if not len(which):
            return replace(prediction, trust=np.empty(0))
        by_baseline = self.baseline.predict(rows, which)
        by_name = measures(self, rows, which, prediction.values, by_baseline, of_task=of_task)
        worst = np.max([values / max(self.usual[name], 1e-12) for name, values in by_name.items()], axis=0)
        trust = 1 / (1 + (worst / LIMIT) ** 2)
        values, std = prediction.values, prediction.std
        if replace_untrusted:
            is_doubted = trust < TRUSTED
            values = np.where(is_doubted, by_baseline, values)
            std = None if std is None else np.where(is_doubted, np.maximum(std, self.baseline_error), std)
        return Prediction(values, std, trust)

    def content(self) -> dict[str, Any]:
        """Tensors and plain values, from which `load_trust` makes it again."""
        kept = self.environments
        return {
            "reference": self.baseline.reference.content(),
            "baseline_weights": self.baseline.weights,
            "undo_mp2020": self.baseline.undo_mp2020,
            "kind": self.baseline.kind,
            "quantity": self.baseline.quantity,
            "weights": self.weights,
            "inverse": torch.from_numpy(self.inverse),
            "environments": None
            if kept is None
            else [torch.from_numpy(array) for array in (kept.shift, kept.whiten, kept.atoms)],
            "usual": self.usual,
            "baseline_error": self.baseline_error,
        }


def load_trust(content: dict[str, Any]) -> Trust:
    """Makes a `Trust` of what its `content` was."""
    environments = None
    if content["environments"] is not None:
        shift, whiten, atoms = (tensor.numpy() for tensor in content["environments"])
        environments = Environments(shift, whiten, atoms, np.full(len(atoms), -1))
    baseline = Baseline(
        Reference.of(content["reference"]),
        content["baseline_weights"],
        content["undo_mp2020"],
        content["kind"],
        content["quantity"],
    )
    return Trust(
        baseline,
        content["weights"],
        content["inverse"].numpy(),
        environments,
        content["usual"],
        content["baseline_error"],
    )


def fit_trust(
    rows: CrystalRows,
    part: TrainingPart,
    predicted: np.ndarray,
    *,
    weights: str = "",
    energies: bool = False,
    undo_mp2020: bool = False,
) -> Trust:
    """Learns what is usual from the training and validation rows of a part; test labels are none of its arguments.

    Args:
        rows: all rows of the task.
        part: what training has seen of the fold.
        predicted: by the trained model for the rows at `calibration_rows(part)`, in the task's unit.
        weights: of the pretrained network whose output `rows` hold; "" for none.
        energies: whether that network's energy predicts the target, so that it is the baseline.
        undo_mp2020: whether the baseline takes the corrections of 2020 off its energies.
    """
    train = part.train
    calibration = calibration_rows(part)
    fractions = rows.fractions[train].astype(np.float64)
    baseline = fit_baseline(
        rows, part, weights if energies and rows.outputs is not None else "", undo_mp2020=undo_mp2020
    )
    by_baseline = baseline.predict(rows, calibration)
    is_described = bool(weights) and rows.features is not None
    trust = Trust(
        baseline=baseline,
        weights=weights if is_described else baseline.weights,
        inverse=np.linalg.inv(fractions.T @ fractions + _RIDGE * np.eye(94)),
        environments=_environments(rows.features, train) if is_described and rows.features is not None else None,
        usual={},
        baseline_error=float(np.sqrt(np.mean((by_baseline - part.targets[calibration]) ** 2))),
    )
    by_name = measures(trust, rows, calibration, predicted, by_baseline, of_task=True)
    is_trained = np.isin(calibration, train)  # and so part of what leverage is measured by: taken out of it again
    squared = np.minimum(by_name["elements"] ** 2, 1 - 1e-6)
    by_name["elements"] = np.where(is_trained, np.sqrt(squared / (1 - squared)), by_name["elements"])
    # The only training row has no other one to be near to, and its distance is infinite.
    usual = {name: float(np.quantile(values[np.isfinite(values)], USUAL)) for name, values in by_name.items()}
    usual["elements"] = float(np.clip(usual["elements"], *_USUAL_LEVERAGES))
    # A move that is small beside the baseline's own errors is nothing unusual, however little training moves.
    smallest = _SMALLEST_MOVE_OF_LOGITS
    if part.kind == "regression":
        errors = baseline.moves(part.targets[calibration], by_baseline, rows.n_atoms[calibration])
        smallest = float(np.median(errors))
    usual["move"] = max(usual["move"], smallest)
    return replace(trust, usual=usual)


def calibration_rows(part: TrainingPart) -> np.ndarray:
    """Positions of the rows that say what is usual: validation rows, and of a small part training rows beside them."""

    def some(rows: np.ndarray) -> np.ndarray:
        if len(rows) <= ROWS_CALIBRATED:
            return rows
        return np.sort(np.random.default_rng(0).choice(rows, ROWS_CALIBRATED, replace=False))

    return np.concatenate([part.val, some(part.train)]) if len(part.val) < FEW_ROWS else some(part.val)


def described(rows: CrystalRows, weights: str, device: str) -> CrystalRows:
    """Adds to rows what the pretrained backbone and network make of them, where weights are named.

    Args:
        rows: with graphs, none of them rejected.
        weights: name of the network's weights; "" where nothing is to be computed.
        device: to compute on.
    """
    if not weights or (rows.features is not None and rows.outputs is not None):
        return rows
    assert rows.graphs is not None
    everything = np.arange(len(rows.n_atoms))
    network = pretrained(weights, device)
    inputs = GraphInputs(rows.graphs, network.bond_graph_cutoff, torch.device(device), rows.collapse)
    features = backbone_features(network, inputs, everything)
    outputs = predict(network, FeatureInputs(features, rows.n_atoms, torch.device(device)), everything)
    return replace(rows, features=features, outputs=outputs)


def measures(
    trust: Trust,
    rows: CrystalRows,
    which: np.ndarray,
    values: np.ndarray,
    by_baseline: np.ndarray,
    *,
    of_task: bool,
) -> dict[str, np.ndarray]:
    """Computes the measures of some rows by name, each float64, shape (n,), not yet divided by what is usual."""
    fractions = rows.fractions[which].astype(np.float64)
    by_name = {"elements": np.sqrt(((fractions @ trust.inverse) * fractions).sum(axis=1))}
    if trust.environments is not None:
        assert rows.features is not None
        by_name["mean"], by_name["largest"] = trust.environments.distances(rows.features, which, of_task=of_task).T
    by_name["move"] = trust.baseline.moves(values, by_baseline, rows.n_atoms[which])
    return by_name


def _environments(features: AtomFeatures, train: np.ndarray) -> Environments:
    """Whitens the features of the training atoms; of too many, those of rows drawn at random."""
    order = np.random.default_rng(0).permutation(train)
    n_rows = max(1, int((np.cumsum(features.rows_per_graph[order]) <= ATOMS_KEPT).sum()))
    kept = np.sort(order[:n_rows])
    chosen = features.select(kept)
    values = chosen.values.astype(np.float64)
    shift, spread = values.mean(axis=0), values.std(axis=0)
    spread = np.where(spread > 1e-6, spread, 1.0)
    standardised = (values - shift) / spread
    variance, directions = np.linalg.eigh(standardised.T @ standardised / len(standardised))
    variance = np.maximum(variance, 0)
    shrunk = variance + max(_SHRINKAGE * variance.mean(), 1e-12)
    whiten = (directions / np.sqrt(shrunk) / spread[:, None]).astype(np.float32)
    shift = shift.astype(np.float32)
    atoms = (chosen.values - shift) @ whiten
    return Environments(shift, whiten, atoms, np.repeat(kept, chosen.rows_per_graph))
