"""A trained model as a user has it: one file that predicts crystals.

from models.fitted import load_model
load_model("model_fold_0.pth").predict(structures)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from data.crystal import BadCrystalError, crystal_from_structure
from data.graphs import convert, element_fractions, stack
from data.quality import check_crystal
from models.chgnet import cutoffs
from models.model import Fitted, Prediction, TrainingRows
from models.registry import ModelError, open_model

if TYPE_CHECKING:
    from pymatgen.core import Structure

FILE_FORMAT = 2


class ModelFileError(ValueError):
    """A file that is not a model of ours, or one of another version."""


@dataclass(frozen=True)
class FittedModel:
    """A model of the registry, trained.

    Attributes:
        model: its name, or the path of the user's own file that defines it.
        fitted: what training left.
        about: task, target, unit, where its labels come from and other facts for the reader.
    """

    model: str
    fitted: Fitted
    about: dict[str, str]

    def predict(self, structures: Sequence[Structure]) -> np.ndarray:
        """Predictions for new crystals, float64, shape (n,), in the unit `about["unit"]`.

        Raises:
            BadCrystalError: a structure that cannot be predicted; the message names its position.
        """
        return self.predict_with_std(structures).values

    def predict_with_std(self, structures: Sequence[Structure]) -> Prediction:
        """The same with the model's own uncertainty, where it has one.

        Raises:
            BadCrystalError: a structure that cannot be predicted; the message names its position.
        """
        graphs = []
        for position, structure in enumerate(structures):
            try:
                crystal = crystal_from_structure(structure)
                check_crystal(crystal)
                graphs.append(convert(crystal, cutoffs(self.about.get("weights", "0.3.0"))[0]))
            except BadCrystalError as problem:
                raise BadCrystalError(f"structure {position}: {problem}") from None
        if not graphs:
            return Prediction(np.empty(0))
        together = stack(graphs)
        rows = TrainingRows(element_fractions(together), together.atoms_per_graph, together)
        return self.fitted.predict_rows(rows, np.arange(len(together)))

    def save(self, path: Path) -> None:
        """Write everything `load_model` needs to one file, tensors and plain values only."""
        content = {"format": FILE_FORMAT, "model": self.model, "about": self.about, "content": self.fitted.content()}
        torch.save(content, path)


def load_model(path: str | Path, device: str = "cpu", model: str | None = None) -> FittedModel:
    """Read a model file.

    Args:
        path: of the file.
        device: to predict on.
        model: Python file that defines the model, where it is one of the user's own: a model file names it, but no
            code is run because a file says so.

    Raises:
        ModelFileError: not a model file, or one of another format version.
        FileNotFoundError: no such file.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = content["format"]
    except FileNotFoundError:
        raise
    except Exception as problem:  # torch reports damage in many ways; all mean the same to the user
        raise ModelFileError(f"{path} is not a matsweep model file, or is damaged: {problem}") from problem
    if found != FILE_FORMAT:
        raise ModelFileError(f"{path} has model format {found!r}; this version reads {FILE_FORMAT}")
    try:
        name = content["model"]
        if name.endswith(".py") and model is None:
            raise ModelFileError(f"{path} was trained with a model of {name}: give that file as `model`")
        fitted = open_model(model or name).load(content["content"], device)
        return FittedModel(name, fitted, content["about"])
    except (KeyError, ValueError, RuntimeError, TypeError) as problem:  # RuntimeError: weights missing or misshapen
        if isinstance(problem, ModelFileError) or (isinstance(problem, ModelError) and model):
            raise
        raise ModelFileError(f"{path} is damaged, its content is not a whole model: {problem!r}") from problem
