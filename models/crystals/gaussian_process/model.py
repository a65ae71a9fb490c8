"""A Gaussian process on the pretrained backbone's output: no epochs, and an uncertainty for every prediction.

It learns what CHGNet's energy with its elemental reference (for a target that is no energy: a linear model of the
composition) leaves over. The covariance of two crystals is a kernel of their pooled atom features plus, unless it is
left out, one of their element fractions. Strengths, lengths and noise that the config leaves open maximise the marginal
likelihood of (some of) the training rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from data.crystals.corrections import mp2020_minus_legacy
from data.task import Kind, Quantity
from models.config import ModelConfig
from models.crystals.chgnet.anchors import load_anchors
from models.crystals.chgnet.features import FeatureInputs, GraphInputs, backbone_features
from models.crystals.chgnet.network import CHGNetwork
from models.crystals.gaussian_process.posterior import (
    Composition,
    Kernel,
    Points,
    Posterior,
    likely_strengths,
    posterior,
    projected_posterior,
)
from models.crystals.reference import Reference, fit_energy_reference, fit_property_reference
from models.crystals.rows import AtomFeatures, CrystalRows
from models.model import Model, Prediction, TrainingPart, fitted_once
from models.training.inputs import predict

ROWS_AT_ONCE = 4096  # of what pooling is computed for
ROWS_OF_LIKELIHOOD = 1000  # training rows, drawn at random, whose marginal likelihood is maximised
ATOMS_OF_LIKELIHOOD = 5000  # that they have at most, where the kernel is between atoms


class GaussianProcessConfig(ModelConfig):
    """Which kernel, and what is fixed beforehand."""

    weights: Literal["0.3.0", "0.2.0", "r2scan"] = Field(default="0.3.0", description="pretrained CHGNet weights")
    features: Literal["mean", "mean_and_spread", "atoms"] = Field(
        default="mean_and_spread",
        description="of a crystal's atoms: mean of their features, or also standard deviation; or all of them, and the "
        "covariance of two crystals is the mean over pairs of their atoms (slower)",
    )
    kernel: Kernel = Field(default="matern52", description="of the pooled features, each standardised")
    length_scale: Annotated[float, Field(gt=0)] | Literal["fitted"] = Field(
        default="fitted", description="root mean square difference of standardised features"
    )
    noise: Annotated[float, Field(gt=0)] | Literal["fitted"] = Field(
        default="fitted", description="standard deviation in the task's unit (a cell's energy: per atom)"
    )
    composition: Composition = Field(
        default="kernel",
        description="a further term, of the element fractions: a kernel as that of the features with a length of its "
        "own; linear; linear in the products of the fractions of each two elements (pairs); or none",
    )
    reference: Literal["robust", "ridge"] = Field(
        default="robust",
        description="what the composition explains beforehand: robust (least absolute deviations, drawn to CHGNet's "
        "elemental energies; for what is no energy the same as ridge), or ridge on the element fractions",
    )
    undo_mp2020: bool = Field(
        default=False,
        description="put CHGNet's energies, which hold the Materials Project's corrections of 2020, on the scale of "
        "those before, which Matbench's formation energies hold",
    )
    exact_up_to: int = Field(
        default=8000, ge=1, le=30_000, description="training rows; of more, inducing ones stand in"
    )
    inducing_rows: int = Field(default=2000, ge=1, le=10_000, description="training rows that stand in for all")

    @model_validator(mode="after")
    def _fits_weights(self) -> Self:
        if self.undo_mp2020 and self.weights == "r2scan":
            raise ValueError("undo_mp2020 with weights 'r2scan': these were trained on energies without corrections")
        return self

    def effective(self, n_train: int) -> dict[str, Any]:
        """See `ModelConfig`: as many rows as there are, or fewer, stand in for them only where they are too many."""
        fields = super().effective(n_train)
        if n_train <= self.exact_up_to:
            return {**fields, "exact_up_to": n_train, "inducing_rows": 0}
        return {**fields, "exact_up_to": 0, "inducing_rows": min(self.inducing_rows, n_train)}


@dataclass(frozen=True)
class FittedGaussianProcess:
    """prediction = energy - correction + reference(composition) + posterior mean, each where there is one.

    Attributes:
        config: fields of the config that say what is read of a crystal.
        quantity: of the target.
        reference: linear in the fractions.
        reference_covariance: of its coefficients, float64, shape (94, 94): what is not known of rare elements.
        shift, scale: of each feature before the kernel, float64, shape (64 or 128,).
        posterior: of what is left over, per atom where the target is an energy.
        device: to run the backbone on, for crystals whose features are not known.
    """

    config: GaussianProcessConfig
    quantity: Quantity
    reference: Reference
    reference_covariance: np.ndarray
    shift: np.ndarray
    scale: np.ndarray
    posterior: Posterior
    device: str = "cpu"

    def predict_rows(self, rows: CrystalRows, which: np.ndarray) -> Prediction:
        """Predictions of the rows at the positions `which`, with standard deviations of labels."""
        base, points = _seen(self.config, self.quantity, rows, which, self.device)
        fractions = points.fractions.numpy()
        mean, std = self.posterior.at(_standardised(points, self.shift, self.scale))
        std = np.sqrt(std**2 + ((fractions @ self.reference_covariance) * fractions).sum(axis=1))
        values = base + self.reference.predict(fractions) + mean
        per_cell = rows.n_atoms[which] if self.quantity == "energy_per_cell" else 1.0
        return Prediction(values * per_cell, std * per_cell)

    def content(self) -> dict[str, Any]:
        """Tensors and plain values, from which `load_gaussian_process` makes it again."""
        through = self.posterior.through
        return {
            "config": self.config.model_dump(),
            "quantity": self.quantity,
            "reference_coefficients": torch.from_numpy(self.reference.coefficients),
            "reference_intercept": self.reference.intercept,
            "reference_covariance": torch.from_numpy(self.reference_covariance),
            "shift": torch.from_numpy(self.shift),
            "scale": torch.from_numpy(self.scale),
            "strengths": self.posterior.strengths,
            "features": self.posterior.points.features,
            "fractions": self.posterior.points.fractions,
            "rows_of": self.posterior.points.rows_of,
            "shares": self.posterior.points.shares,
            "weights": torch.from_numpy(self.posterior.weights),
            "through": None if through is None else torch.from_numpy(through),
        }


def load_gaussian_process(content: dict[str, Any], device: str = "cpu") -> FittedGaussianProcess:
    """What `FittedGaussianProcess.content` describes; the device runs the backbone."""
    config, through = GaussianProcessConfig(**content["config"]), content["through"]
    points = Points(content["features"], content["fractions"], content["rows_of"], content["shares"])
    return FittedGaussianProcess(
        config=config,
        quantity=content["quantity"],
        reference=Reference(content["reference_coefficients"].numpy(), content["reference_intercept"], 1.0),
        reference_covariance=content["reference_covariance"].numpy(),
        shift=content["shift"].numpy(),
        scale=content["scale"].numpy(),
        posterior=Posterior(
            config.kernel,
            config.composition,
            content["strengths"],
            points,
            content["weights"].numpy(),
            None if through is None else through.numpy(),
        ),
        device=device,
    )


def unsuited(config: GaussianProcessConfig, kind: Kind, quantity: Quantity) -> str | None:
    """See `models.model.Model`."""
    if kind == "classification":
        return "model gaussian_process predicts numbers; for a classification choose another model"
    if config.undo_mp2020 and quantity == "other":
        return "undo_mp2020 corrects CHGNet's energies; this target is not declared to be an energy"
    return None


def draws_rows(config: GaussianProcessConfig, rows: CrystalRows, train: np.ndarray) -> bool:
    """Whether there are so many training rows that some are drawn: the seed has a part in nothing else."""
    if len(train) > min(ROWS_OF_LIKELIHOOD, config.exact_up_to):
        return True
    if config.features != "atoms":
        return False
    assert rows.features is not None, "a sweep of this model knows the backbone's output"
    return int(rows.features.rows_per_graph[train].sum()) > ATOMS_OF_LIKELIHOOD


def fit_gaussian_process(config: GaussianProcessConfig, rows: CrystalRows, part: TrainingPart) -> FittedGaussianProcess:
    """Fit reference, strengths and posterior on the training rows.

    Raises:
        TargetScaleError: an energy target that is not on the declared scale.
    """
    train = part.train
    base, points = _seen(config, part.quantity, rows, train, "cpu")
    fractions = points.fractions.numpy()
    targets = part.targets[train] / (rows.n_atoms[train] if part.quantity == "energy_per_cell" else 1.0)
    prior = np.zeros(94)
    if part.quantity != "other":  # the network's output leaves CHGNet's own composition energies out, so does the prior
        prior = CHGNetwork(config.weights).composition_energies().double().numpy() - load_anchors(config.weights)
    if part.quantity == "other" or config.reference == "ridge":
        reference = fit_property_reference(fractions, targets - base)
    else:
        reference = fit_energy_reference(fractions, base, targets, -prior)
    left_over = targets - base - reference.predict(fractions)
    unsure = _reference_covariance(fractions, left_over, reference.coefficients - prior)

    # By their shares, so that an atom that stands for others counts for them too.
    features, share = points.features.numpy(), points.shares.numpy()
    shift = np.average(features, axis=0, weights=share)
    scale = np.sqrt(np.average((features - shift) ** 2, axis=0, weights=share))
    scale = np.where(scale > 1e-6, scale, 1.0)
    points = _standardised(points, shift, scale)
    order = np.random.default_rng(config.seed).permutation(len(train))
    n_drawn = ROWS_OF_LIKELIHOOD
    if not points.pooled:
        n_drawn = min(n_drawn, int((np.cumsum(points.rows_of.numpy()[order]) <= ATOMS_OF_LIKELIHOOD).sum()))
    drawn = np.sort(order[: max(1, n_drawn)])
    fixed = _without_use(config.composition)
    fixed |= {k: value for k, value in ((1, config.length_scale), (4, config.noise)) if value != "fitted"}
    kernels = config.kernel, config.composition
    strengths = likely_strengths(*kernels, points.at(drawn), left_over[drawn], fixed, part.tell)
    part.tell(f"covariances of {len(train):,} training rows, then predictions")
    if len(train) <= config.exact_up_to:
        gaussian_posterior = posterior(*kernels, strengths, points, left_over)
    else:
        inducing = np.sort(order[: config.inducing_rows])
        gaussian_posterior = projected_posterior(*kernels, strengths, points, left_over, inducing)
    return FittedGaussianProcess(config, part.quantity, reference, unsure, shift, scale, gaussian_posterior)


GAUSSIAN_PROCESS = Model(
    name="gaussian_process",
    config=GaussianProcessConfig,
    reads="features",
    start=fitted_once(fit_gaussian_process),
    load=load_gaussian_process,
    unsuited=unsuited,
    by_chance=draws_rows,
)


def _reference_covariance(fractions: np.ndarray, left_over: np.ndarray, departures: np.ndarray) -> np.ndarray:
    """Of coefficients whose departures from the prior are as spread as those of the elements that training shows.

    Bayesian linear regression with what is left over as the noise (Rasmussen & Williams, equation 2.8). An element that
    training does not show is as uncertain as that spread; the kernels, which explain what is left over, know nothing
    of it.
    """
    coefficients_of_elements = departures[fractions.any(axis=0)]
    spread, noise = max(float(coefficients_of_elements.std()), 1e-12), max(float(left_over.std()), 1e-12)
    return np.linalg.inv(fractions.T @ fractions / noise**2 + np.eye(94) / spread**2)


def _without_use(composition: Composition) -> dict[int, float]:
    """What `covariance` takes and does not use: strength and length of the composition's term."""
    unused: dict[Composition, dict[int, float]] = {"none": {2: 0.0, 3: 1.0}, "linear": {3: 1.0}, "pairs": {3: 1.0}}
    return unused.get(composition, {})


def _standardised(points: Points, shift: np.ndarray, scale: np.ndarray) -> Points:
    return replace(points, features=(points.features - torch.from_numpy(shift)) / torch.from_numpy(scale))


def _seen(
    config: GaussianProcessConfig, quantity: Quantity, rows: CrystalRows, which: np.ndarray, device: str
) -> tuple[np.ndarray, Points]:
    """Energy per atom less its correction (0 for another quantity), and features and fractions of some rows."""
    assert rows.graphs is not None, "a Gaussian process on CHGNet's features reads graphs"
    features, outputs = rows.features, rows.outputs
    start = which
    if features is None or (outputs is None and quantity != "other"):
        network = CHGNetwork(config.weights).to(device).eval()
        inputs = GraphInputs(rows.graphs, network.bond_graph_cutoff, torch.device(device), rows.collapse)
        features, start = backbone_features(network, inputs, which), np.arange(len(which))
        outputs = None
        if quantity != "other":
            feature_inputs = FeatureInputs(features, rows.graphs.atoms_per_graph[which], torch.device(device))
            outputs = predict(network, feature_inputs, start)
    base = np.zeros(len(which))
    if quantity != "other":
        assert outputs is not None
        base = outputs[start].astype(np.float64)
    if config.undo_mp2020:
        known_ones = rows.corrections
        base = base - (mp2020_minus_legacy(rows.graphs, which) if known_ones is None else known_ones[which])
    fractions = torch.from_numpy(rows.fractions[which].astype(np.float64))
    if config.features == "atoms":
        return base, atom_points(features, start, fractions)
    pooled = torch.from_numpy(pooled_features(features, start, spread=config.features == "mean_and_spread"))
    return base, Points(pooled, fractions, torch.ones(len(pooled), dtype=torch.int64), pooled.new_ones(len(pooled)))


def atom_points(features: AtomFeatures, which: np.ndarray, fractions: torch.Tensor) -> Points:
    """The atoms of each crystal at the positions `which`, those that are equivalent once, with their share."""
    first = np.concatenate([[0], np.cumsum(features.rows_per_graph, dtype=np.int64)])
    lengths = features.rows_per_graph[which].astype(np.int64)
    rows = np.concatenate([np.empty(0, np.int64), *(np.arange(first[k], first[k + 1]) for k in which)])
    count = torch.from_numpy(features.atom_count[rows].astype(np.float64))
    rows_of = torch.from_numpy(lengths)
    owner = torch.repeat_interleave(torch.arange(len(which)), rows_of)
    totals = count.new_zeros(len(which)).index_add(0, owner, count)
    values = torch.from_numpy(features.values[rows].astype(np.float64))
    return Points(values, fractions, rows_of, count / totals[owner])


def pooled_features(features: AtomFeatures, which: np.ndarray, *, spread: bool) -> np.ndarray:
    """Mean over the atoms of each crystal at the positions `which` and, if asked for, standard deviation.

    Returns:
        float64, shape (len(which), 64), or 128 with the standard deviations behind the means.
    """
    first = np.concatenate([[0], np.cumsum(features.rows_per_graph, dtype=np.int64)])
    pooled = np.empty((len(which), 128 if spread else 64))
    for k in range(0, len(which), ROWS_AT_ONCE):
        block = which[k : k + ROWS_AT_ONCE]
        lengths = features.rows_per_graph[block].astype(np.int64)
        ends = np.cumsum(lengths)
        rows = np.repeat(first[block] - (ends - lengths), lengths) + np.arange(ends[-1])
        count = features.atom_count[rows].astype(np.float64)
        values = features.values[rows].astype(np.float64)
        share = (count / np.repeat(np.add.reduceat(count, ends - lengths), lengths))[:, None]
        mean = np.add.reduceat(values * share, ends - lengths)
        pooled[k : k + len(block), :64] = mean
        if spread:
            deviation = values - np.repeat(mean, lengths, axis=0)
            pooled[k : k + len(block), 64:] = np.sqrt(np.add.reduceat(deviation**2 * share, ends - lengths))
    return pooled
