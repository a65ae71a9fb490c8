"""CHGNet as a model of the registry: network plus elemental reference, trained as deep as the config says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from data.crystals.corrections import mp2020_minus_legacy
from data.task import Kind, Quantity
from models.config import GradientConfig
from models.crystals.augment import moved
from models.crystals.chgnet.anchors import load_anchors
from models.crystals.chgnet.features import FeatureInputs, GraphInputs
from models.crystals.chgnet.network import FREEZE_DEPTHS, CHGNetwork, FreezeDepth, WeightsName
from models.crystals.fitted_network import FittedNetwork, loaded_networks, loaded_reach, no_correction
from models.crystals.reach import Reach, Start, zero
from models.crystals.reference import (
    NO_REFERENCE,
    Reference,
    fit_class_reference,
    fit_energy_reference,
    fit_property_reference,
    unit_reference,
)
from models.crystals.reference_transform import ReferenceTransform, reference_transform
from models.crystals.rows import CrystalRows
from models.model import Model, TrainingPart
from models.training.inputs import Inputs, predict
from models.training.train import GradientRun

FROM_FEATURES = ("none", "readout")  # freeze depths that read the backbone's output where it is known
_DEEP = FREEZE_DEPTHS[2:]
_KEPT = {"weights", "freeze_depth", "undo_mp2020"}  # what a trained network is made of again
_OF_NO_TRAINING = ("weights", "freeze_depth", "epochs", "loss", "seed", "reference", "undo_mp2020")


class CHGNetConfig(GradientConfig):
    """Fine-tuning of CHGNet.

    Sources: gradual unfreezing and layer-wise rates, Howard & Ruder, arXiv 1801.06146.
    """

    only_with: ClassVar[dict[str, tuple[str, tuple[Any, ...]]]] = {
        **GradientConfig.only_with,
        "layer_decay": ("freeze_depth", _DEEP),
        "unfreeze_every": ("freeze_depth", _DEEP),
    }

    weights: WeightsName = Field(default="0.3.0", description="pretrained CHGNet weights, or random initialisation")
    freeze_depth: FreezeDepth = Field(
        default="readout",
        description="what trains, counted from the readout backwards; `none` fits the reference alone",
    )
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="factor of the learning rate from one freeze depth to the next deeper one"
    )
    unfreeze_every: int = Field(
        default=0, ge=0, description="epochs until one more depth begins to train, from the readout on; 0: all at once"
    )
    reference: Literal["robust", "ridge", "none"] = Field(
        default="robust",
        description="what the composition explains: robust (least absolute deviations, drawn to CHGNet's elemental "
        "energies; for what is no energy the same as ridge), ridge on the element fractions, or none",
    )
    refit_reference: bool = Field(default=False, description="fit the reference anew to the network after every epoch")
    undo_mp2020: bool = Field(
        default=False,
        description="put CHGNet's energies, which hold the Materials Project's corrections of 2020, on the scale of "
        "those before, which Matbench's formation energies hold",
    )
    jitter: float = Field(default=0.0, ge=0, le=1, description="noise on atoms in training, Angstrom")
    strain: float = Field(default=0.0, ge=0, le=0.5, description="noise on cells in training, strain")

    @model_validator(mode="after")
    def _fits_depth(self) -> Self:
        if (self.freeze_depth == "none") != (self.epochs == 0):
            raise ValueError(
                f"freeze_depth {self.freeze_depth!r} with epochs {self.epochs}: "
                "`none` trains nothing, so it goes with epochs 0 and no other level does"
            )
        if self.freeze_depth == "none":
            for field, info in type(self).model_fields.items():
                if field not in _OF_NO_TRAINING and getattr(self, field) != info.default:
                    raise ValueError(f"{field} {getattr(self, field)!r} changes nothing with freeze_depth none")
            if self.loss not in ("cross_entropy", type(self).model_fields["loss"].default):
                raise ValueError(f"loss {self.loss!r} changes nothing with freeze_depth none")
        if self.refit_reference and self.reference == "none":
            raise ValueError("refit_reference with reference none: there is nothing to fit again")
        if self.undo_mp2020 and self.weights in ("r2scan", "random"):
            raise ValueError(
                f"undo_mp2020 with weights {self.weights!r}: these have not learnt the corrections of 2020"
            )
        if self.loss == "cross_entropy" and (self.refit_reference or self.undo_mp2020):
            raise ValueError("refit_reference and undo_mp2020 go with energies or other regressions, not with classes")
        return self


def unsuited(config: CHGNetConfig, kind: Kind, quantity: Quantity) -> str | None:
    """See `Model`."""
    if config.undo_mp2020 and (kind == "classification" or quantity == "other"):
        return "undo_mp2020 corrects CHGNet's energies; this target is not declared to be an energy"
    return None


def mistake(parameters: Mapping[str, Any]) -> tuple[str, str] | None:
    """See `Model`."""

    def values(field: str) -> list[Any]:
        value = parameters.get(field, CHGNetConfig.model_fields[field].default)
        return next(iter(value.values())) if isinstance(value, dict) else [value]

    depths, epochs = values("freeze_depth"), values("epochs")
    has_ranges = any(isinstance(value, dict) for value in parameters.values())
    if "none" in depths and (len(depths) > 1 or has_ranges or max(epochs)):
        return (
            "freeze_depth",
            "freeze_depth none trains nothing: it goes with epochs 0, alone and without ranges",
        )
    if "none" not in depths and min(epochs) < 1:
        return "epochs", f"epochs can be {min(epochs)}; only freeze_depth none goes with 0"
    return None


def start_chgnet(config: CHGNetConfig, rows: CrystalRows, part: TrainingPart, device: str = "cpu") -> GradientRun:
    """Fit the reference on the training rows and make everything ready to train.

    Raises:
        TargetScaleError: an energy target that is not on the declared scale.
    """
    assert rows.graphs is not None, "CHGNet reads graphs"
    energies = _predicts(config.weights, part.kind, part.quantity)
    network = CHGNetwork(config.weights, seed=config.seed)
    network.to(device).eval()  # CHGNet has no dropout and no batch norm: eval mode trains the same
    corrections = _corrections(rows, np.arange(len(part.targets))) if config.undo_mp2020 else None
    if energies:
        on_graphs = GraphInputs(rows.graphs, network.bond_graph_cutoff, torch.device(device), rows.collapse)
        start = rows.outputs
        if start is None:
            start, visible = np.zeros(len(part.targets)), np.concatenate([part.train, part.val])
            start[visible] = predict(network, on_graphs, visible)
        outputs = start[part.train]
        # The network's output leaves CHGNet's own composition energies out, and so does the prior.
        prior = load_anchors(config.weights) - network.composition_energies().double().cpu().numpy()
        reference = _energy_reference(config, rows, part, corrections, prior, outputs)
    else:
        prior, start = None, np.zeros(len(part.targets))
        reference = _property_reference(config, rows, part)
        network.reset_readout(config.seed)
    network.freeze(config.freeze_depth)

    def refit(outputs: np.ndarray, current: Reference) -> Reference:
        """The composition's part anew; what a unit of output is worth stays."""
        worth = current.scale * outputs + current.intercept
        if prior is not None:
            new = _energy_reference(config, rows, part, corrections, prior, worth)
            return Reference(new.coefficients, new.intercept + current.intercept, current.scale)
        new = fit_property_reference(_fractions(rows, part), _per_atom(rows, part) - current.scale * outputs)
        return Reference(new.coefficients, new.intercept, current.scale)

    def moved_inputs(epoch: int) -> Inputs:
        assert rows.graphs is not None
        noisy = moved(rows.graphs, config.jitter, config.strain, [config.seed, epoch])
        # Noise leaves no symmetry to compute with.
        return GraphInputs(noisy, network.bond_graph_cutoff, torch.device(device), collapse=False)

    def fitted(networks: Sequence[nn.Module], transform: ReferenceTransform) -> FittedNetwork:
        arguments = config.model_dump(include=_KEPT)
        return _fitted(networks, transform.reference, part.kind, part.quantity, arguments, transform.reach)

    transform = reference_transform(
        config,
        reference,
        rows,
        part,
        network.rescale,
        corrections=corrections,
        start=start,
        refit=refit if config.refit_reference else None,
    )
    return GradientRun(
        config,
        network,
        transform,
        part,
        inputs=_inputs(network, config.freeze_depth, rows),
        fitted=fitted,
        moved_inputs=moved_inputs if config.jitter or config.strain else None,
        layer_decay=config.layer_decay,
        unfreeze_every=config.unfreeze_every,
    )


def load_chgnet(content: dict[str, Any], device: str = "cpu") -> FittedNetwork:
    """What `FittedNetwork.content` describes, on a device."""
    networks = loaded_networks(content, lambda arguments: CHGNetwork(arguments["weights"]), device)
    reference, reach = Reference.of(content["reference"]), loaded_reach(content)
    return _fitted(networks, reference, content["kind"], content["quantity"], content["arguments"], reach)


CHGNET = Model(
    name="chgnet",
    config=CHGNetConfig,
    reads="structures",
    start=start_chgnet,
    load=load_chgnet,
    unsuited=unsuited,
    trains=lambda parameters: parameters.get("freeze_depth") != "none",
    mistake=mistake,
    costly=("freeze_depth",),
    reads_cached=lambda config: config.freeze_depth in FROM_FEATURES,
    demanding={"unfreeze_every": 0},  # what trains in the end, at once
    title="fine-tuned",
)


def _fitted(
    networks: Sequence[nn.Module],
    reference: Reference,
    kind: Kind,
    quantity: Quantity,
    arguments: dict[str, Any],
    reach: Reach | None,
) -> FittedNetwork:
    return FittedNetwork(
        networks=networks,
        reference=reference,
        kind=kind,
        quantity=quantity,
        inputs=lambda rows: _inputs(networks[0], arguments["freeze_depth"], rows),
        correction=_corrections if arguments["undo_mp2020"] else no_correction,
        arguments=arguments,
        reach=reach,
        start=_start(arguments["weights"], kind, quantity, str(next(networks[0].parameters()).device)),
    )


def _start(weights: str, kind: Kind, quantity: Quantity, device: str) -> Start:
    """Output of the pretrained network where it predicts the target; a fresh readout begins at zero."""
    if not _predicts(weights, kind, quantity):
        return zero

    def start(rows: CrystalRows, which: np.ndarray) -> np.ndarray:
        if rows.outputs is not None:
            return rows.outputs[which].astype(np.float64)
        network = CHGNetwork(weights).to(device).eval()
        return predict(network, _inputs(network, "none", rows), which)

    return start


def _predicts(weights: str, kind: Kind, quantity: Quantity) -> bool:
    """Whether the pretrained network's energies predict a target."""
    return kind == "regression" and quantity != "other" and weights != "random"


def _inputs(network: nn.Module, freeze_depth: str, rows: CrystalRows) -> Inputs:
    """Features where nothing before the readout trains and they are known, graphs otherwise."""
    assert isinstance(network, CHGNetwork)
    assert rows.graphs is not None
    device = next(network.parameters()).device
    if freeze_depth in FROM_FEATURES and rows.features is not None:
        return FeatureInputs(rows.features, rows.n_atoms, device)
    return GraphInputs(rows.graphs, network.bond_graph_cutoff, device, rows.collapse)


def _corrections(rows: CrystalRows, which: np.ndarray) -> np.ndarray:
    """eV/atom, shape (len(which),); computed here for crystals that no task holds."""
    assert rows.graphs is not None
    return mp2020_minus_legacy(rows.graphs, which) if rows.corrections is None else rows.corrections[which]


def _fractions(rows: CrystalRows, part: TrainingPart) -> np.ndarray:
    return rows.fractions[part.train].astype(np.float64)


def _per_atom(rows: CrystalRows, part: TrainingPart) -> np.ndarray:
    """Targets of the training rows, per atom where they are energies of a cell."""
    targets = part.targets[part.train]
    return targets / rows.n_atoms[part.train] if part.quantity == "energy_per_cell" else targets


def _energy_reference(
    config: CHGNetConfig,
    rows: CrystalRows,
    part: TrainingPart,
    corrections: np.ndarray | None,
    prior: np.ndarray,
    outputs: np.ndarray,
) -> Reference:
    """From the network's outputs for the training rows, eV/atom."""
    energies = outputs if corrections is None else outputs - corrections[part.train]
    fractions, targets = _fractions(rows, part), _per_atom(rows, part)
    if config.reference == "none":
        return NO_REFERENCE
    if config.reference == "ridge":
        ridge = fit_property_reference(fractions, targets - energies)
        return Reference(ridge.coefficients, ridge.intercept, 1.0)
    return fit_energy_reference(fractions, energies, targets, prior)


def _property_reference(config: CHGNetConfig, rows: CrystalRows, part: TrainingPart) -> Reference:
    fractions, targets = _fractions(rows, part), _per_atom(rows, part)
    if config.reference == "none":
        return unit_reference(targets, part.kind)
    fit = fit_class_reference if part.kind == "classification" else fit_property_reference
    return fit(fractions, targets)
