"""Whether a prediction can be trusted: how far its row lies from training, and how far it is from a baseline's.

`fit_trust` looks once at a trained model, at rows of its training and validation parts alone; `Trust.judge` then marks
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

from models.baseline import Baseline, fit_baseline
from models.features import AtomFeatures, FeatureInputs, GraphInputs, backbone_features, predict
from models.metrics import TRUSTED
from models.model import Prediction, TrainingPart, TrainingRows
from models.network import CHGNetwork
from models.reference import Reference

LIMIT = 3.0  # times what is usual, where trust is 0.5: see docs/accuracy.md for how many rows that marks
USUAL = 0.95  # of the validation rows stay below what is called usual
ATOMS_KEPT = 8192  # of the training part, as places to measure distances from; of more, those of rows drawn at random
ROWS_CALIBRATED = 2000  # of the validation part, drawn at random
FEW_ROWS = 50  # validation rows below which the training rows, each against the others, are counted in
_RIDGE = 0.01  # what an element that training does not show adds to the leverage is its fraction over the root of this
# Of an element shown ten times: a smaller leverage is never unusual. And of one that is shown once: however many rows
# of a small task hold elements that training does not show, a third of a crystal of such an element is marked.
_USUAL_LEVERAGES = (0.3, 1.0)
_SHRINKAGE = 0.01  # of the mean variance, added to that of each direction before whitening
_SMALLEST_MOVE_OF_LOGITS = 1.0
_AT_ONCE = 2048  # atoms whose distances to all kept ones are computed together


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
        """Of each crystal the mean over its atoms of the distance to the nearest training atom, and the largest.

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
    """What `fit_trust` has learnt of a trained model.

    Attributes:
        baseline: that moves are measured from.
        weights: of the pretrained network that describes atoms; "" where nothing but compositions is known.
        inverse: of the element fractions' second moments in the training part, float64, shape (94, 94).
        environments: of its atoms; None where nothing but compositions is known.
        usual: by name what most validation rows stay below: `elements`, `mean`, `largest`, `move`.
        baseline_error: root mean square error of the baseline on validation, in the task's unit.
    """

    baseline: Baseline
    weights: str
    inverse: np.ndarray
    environments: Environments | None
    usual: dict[str, float]
    baseline_error: float

    def judge(
        self,
        rows: TrainingRows,
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
        found = measures(self, rows, which, prediction.values, by_baseline, of_task=of_task)
        worst = np.max([_over(found[name], self.usual[name]) for name in found], axis=0)
        trust = 1 / (1 + (worst / LIMIT) ** 2)
        values, std = prediction.values, prediction.std
        if replace_untrusted:
            doubted = trust < TRUSTED
            values = np.where(doubted, by_baseline, values)
            std = None if std is None else np.where(doubted, np.maximum(std, self.baseline_error), std)
        return Prediction(values, std, trust)

    def content(self) -> dict[str, Any]:
        """Tensors and plain values, from which `load_trust` makes it again."""
        places = self.environments
        return {
            "reference": self.baseline.reference.content(),
            "baseline_weights": self.baseline.weights,
            "undo_mp2020": self.baseline.undo_mp2020,
            "kind": self.baseline.kind,
            "quantity": self.baseline.quantity,
            "weights": self.weights,
            "inverse": torch.from_numpy(self.inverse),
            "environments": None
            if places is None
            else [torch.from_numpy(part) for part in (places.shift, places.whiten, places.atoms)],
            "usual": self.usual,
            "baseline_error": self.baseline_error,
        }


def load_trust(content: dict[str, Any]) -> Trust:
    """What `Trust.content` describes."""
    places = content["environments"]
    environments = None
    if places is not None:
        shift, whiten, atoms = (part.numpy() for part in places)
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
    rows: TrainingRows,
    part: TrainingPart,
    predicted: np.ndarray,
    *,
    weights: str = "",
    energies: bool = False,
    undo_mp2020: bool = False,
) -> Trust:
    """Learn what is usual, from the training and validation rows of a part.

    Args:
        rows: all rows of the task.
        part: what training has seen of the fold.
        predicted: by the trained model for the rows at `calibration_rows(part)`, in the task's unit.
        weights: of the pretrained network whose output `rows` hold; "" for none.
        energies: whether that network's energy predicts the target, so that it is the baseline.
        undo_mp2020: whether the baseline takes the corrections of 2020 off its energies.
    """
    train = part.train
    known = calibration_rows(part)
    fractions = rows.fractions[train].astype(np.float64)
    baseline = fit_baseline(
        rows, part, weights if energies and rows.outputs is not None else "", undo_mp2020=undo_mp2020
    )
    by_baseline = baseline.predict(rows, known)
    is_described = bool(weights) and rows.features is not None
    trust = Trust(
        baseline=baseline,
        weights=weights if is_described else baseline.weights,
        inverse=np.linalg.inv(fractions.T @ fractions + _RIDGE * np.eye(94)),
        environments=_environments(rows.features, train) if is_described and rows.features is not None else None,
        usual={},
        baseline_error=float(np.sqrt(np.mean((by_baseline - part.targets[known]) ** 2))),
    )
    found = measures(trust, rows, known, predicted, by_baseline, of_task=True)
    is_trained = np.isin(known, train)  # and so part of what leverage is measured by: taken out of it again
    seen = np.minimum(found["elements"] ** 2, 1 - 1e-6)
    found["elements"] = np.where(is_trained, np.sqrt(seen / (1 - seen)), found["elements"])
    usual = {name: float(np.quantile(values, USUAL)) for name, values in found.items()}
    usual["elements"] = float(np.clip(usual["elements"], *_USUAL_LEVERAGES))
    # A move that is small beside the baseline's own errors is nothing unusual, however little training moves.
    smallest = _SMALLEST_MOVE_OF_LOGITS
    if part.kind == "regression":
        smallest = float(np.median(baseline.moves(part.targets[known], by_baseline, rows.n_atoms[known])))
    usual["move"] = max(usual["move"], smallest)
    return replace(trust, usual=usual)


def calibration_rows(part: TrainingPart) -> np.ndarray:
    """Rows by which is measured what is usual: some of the validation part, of a small one the training rows too."""
    val, train = part.val, part.train
    drawn = np.random.default_rng(0)
    if len(val) < FEW_ROWS:
        few = train if len(train) <= ROWS_CALIBRATED else np.sort(drawn.choice(train, ROWS_CALIBRATED, replace=False))
        return np.concatenate([val, few])
    return val if len(val) <= ROWS_CALIBRATED else np.sort(drawn.choice(val, ROWS_CALIBRATED, replace=False))


def described(rows: TrainingRows, weights: str, device: str) -> TrainingRows:
    """The same rows with the output of the pretrained backbone and network, where some weights are named.

    Args:
        rows: with graphs, none of them rejected.
        weights: of the network; "" where nothing is to be computed.
        device: to compute on.
    """
    if not weights or (rows.features is not None and rows.outputs is not None):
        return rows
    assert rows.graphs is not None
    everything = np.arange(len(rows.n_atoms))
    network = CHGNetwork(weights).to(device).eval()
    inputs = GraphInputs(rows.graphs, network.bond_graph_cutoff, torch.device(device), rows.collapse)
    features = backbone_features(network, inputs, everything)
    outputs = predict(network, FeatureInputs(features, rows.n_atoms, torch.device(device)), everything)
    return replace(rows, features=features, outputs=outputs)


def measures(
    trust: Trust,
    rows: TrainingRows,
    which: np.ndarray,
    values: np.ndarray,
    by_baseline: np.ndarray,
    *,
    of_task: bool,
) -> dict[str, np.ndarray]:
    """The measures of some rows by name, each float64, shape (n,), before they are divided by what is usual."""
    fractions = rows.fractions[which].astype(np.float64)
    found = {"elements": np.sqrt(((fractions @ trust.inverse) * fractions).sum(axis=1))}
    if trust.environments is not None:
        assert rows.features is not None
        found["mean"], found["largest"] = trust.environments.distances(rows.features, which, of_task=of_task).T
    found["move"] = trust.baseline.moves(values, by_baseline, rows.n_atoms[which])
    return found


def _over(values: np.ndarray, usual: float) -> np.ndarray:
    """`values / usual`, 0 where both are 0."""
    return values / max(usual, 1e-12)


def _environments(features: AtomFeatures, train: np.ndarray) -> Environments:
    """Of the training rows, or where they have too many atoms of as many as may be kept, drawn at random."""
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
