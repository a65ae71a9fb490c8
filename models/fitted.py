"""A trained model as a user has it: one file that predicts new examples, or a sweep's seeds together.

from models.fitted import load_model
load_model("ray_results/NAME", fold=0).predict(structures)
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyarrow import fs

from data.errors import UserError
from data.stores.storage import file_names, open_folder, read_whole
from models.family import Family
from models.model import Fitted, Model, Prediction
from models.registry import ModelError, open_family, open_model

FILE_FORMAT = 4
_WITHOUT_TRUST = 3  # an earlier format, which is read as well


class ModelFileError(UserError, ValueError):
    """A file that is not a model of ours, or one of another version."""


@dataclass(frozen=True)
class FittedModel:
    """A model of the registry, trained.

    Attributes:
        model: its entry.
        fitted: what training left.
        about: task, target, unit, where its labels come from and other facts for the reader.
        trust: judges its predictions; None of a file that an earlier version wrote.
        device: to describe examples on.
    """

    model: Model
    fitted: Fitted
    about: dict[str, str]
    trust: Any = None
    device: str = "cpu"

    @property
    def family(self) -> Family:
        """The family that the model belongs to."""
        return open_family(self.model.family)

    def predict(self, examples: Sequence[Any], *, copies: int | None = None) -> np.ndarray:
        """Predictions for new examples, float64, shape (n,), in the unit `about["unit"]`.

        Args:
            examples: of the model's family. Crystals are pymatgen structures, or what `structure_files` reads; for a
                model that reads compositions also formulas such as "Fe2O3".
            copies: test-time augmentation: the mean over so many copies of each example, each moved a little; 0: none.
                By default as many as the predictions that the model was scored by.

        Raises:
            UserError: one that cannot be predicted, such as `BadCrystalError`; the message names its position.
        """
        return self.predict_with_std(examples, copies=copies).values

    def predict_with_std(self, examples: Sequence[Any], *, copies: int | None = None) -> Prediction:
        """Predict with the model's own uncertainty, where it has one, and with the trust of each.

        Of a sweep with `--untrusted baseline` the values below a trust of 0.5 are the baseline's.

        Raises:
            UserError: one that cannot be predicted, such as `BadCrystalError`; the message names its position.
        """
        return self.predict_rows(self.rows_of(examples), copies=copies)

    def rows_of(self, examples: Sequence[Any]) -> Any:
        """New examples as the model reads them, with what its trust is judged by.

        Raises:
            UserError: one that cannot be predicted, such as `BadCrystalError`; the message names its position.
        """
        return self.family.new_rows(self.model, self.about, self.trust, examples, self.device)

    def predict_rows(self, rows: Any, *, copies: int | None = None) -> Prediction:
        """Predictions of all of some rows, which `rows_of` has made."""
        which = np.arange(len(self.family.sizes(rows)))
        if not len(which):
            return Prediction(np.empty(0))
        if copies is None:
            copies = int(self.about.get("copies", "0"))
        if copies:
            prediction = self.family.averaged(self.fitted, rows, which, copies)
        else:
            prediction = self.fitted.predict_rows(rows, which)
        if self.trust is None:
            return prediction
        return self.trust.mark(rows, which, prediction, replace_untrusted=self.about.get("untrusted") == "baseline")

    def save(self, path: Path) -> None:
        """Write everything `load_model` needs to one file, tensors and plain values only."""
        content = {
            "format": FILE_FORMAT,
            "model": self.model.name,
            "about": self.about,
            "content": self.fitted.content(),
        }
        if self.trust is not None:
            content["trust"] = self.trust.content()
        torch.save(content, path)


@dataclass(frozen=True)
class SeedEnsemble:
    """Models of several seeds: predicts their mean, with the spread between them."""

    members: list[FittedModel]

    @property
    def model(self) -> Model:
        """The entry of the registry that all are of."""
        return self.members[0].model

    @property
    def about(self) -> dict[str, str]:
        """Task, target, unit and other facts, the same for all members."""
        return self.members[0].about

    def predict(self, examples: Sequence[Any], *, copies: int | None = None) -> np.ndarray:
        """As `FittedModel.predict`."""
        return self.predict_with_std(examples, copies=copies).values

    def predict_with_std(self, examples: Sequence[Any], *, copies: int | None = None) -> Prediction:
        """The mean over the members, its std (ddof 1) between them, and the least of their trusts."""
        rows = self.members[0].rows_of(examples)  # of one model and one training part: the same for all
        predictions = [member.predict_rows(rows, copies=copies) for member in self.members]
        together = np.stack([prediction.values for prediction in predictions])
        trusts = [prediction.trust for prediction in predictions if prediction.trust is not None]
        trust = np.min(trusts, axis=0) if trusts else None
        return Prediction(together.mean(axis=0), together.std(axis=0, ddof=1), trust)


def load_model(
    path: str | Path, fold: int | None = None, *, device: str = "cpu", model: str | None = None
) -> FittedModel | SeedEnsemble:
    """Read what a sweep trained on a fold, or one model file.

    Args:
        path: folder or URI of a sweep, whose seeds are then one ensemble (where nothing was trained: its reference);
            of one seed, `NAME/seed_1`, or of `NAME/reference`; or a model file, without `fold`.
        fold: whose training part the model was trained on.
        device: to predict on.
        model: Python file that defines the model, where it is one of the user's own: a model file names it, but no
            code is run because a file says so.

    Raises:
        ModelFileError: not a model file, one of another format version, or a folder without models of that fold.
        FileNotFoundError: no such file.
        StorageError: the store refuses or stays away; any other OSError is that of the file system.
    """
    if fold is None:
        filesystem, file = open_folder(path)
        if filesystem.get_file_info(file).type == fs.FileType.Directory:
            raise ModelFileError(f"{path} is a folder: give a fold too, load_model({str(path)!r}, fold=0)")
        return _load_file(str(path), device, model)
    address = str(path).rstrip("/")
    filesystem, folder = open_folder(address)
    name = f"model_fold_{fold}.pth"
    entries = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    seeds = sorted(
        int(entry.base_name.removeprefix("seed_")) for entry in entries if re.fullmatch(r"seed_\d+", entry.base_name)
    )
    places = [address, *(f"{address}/seed_{seed}" for seed in seeds), *([] if seeds else [f"{address}/reference"])]
    folders = [place for place in places if name in file_names(*open_folder(place))]
    if not folders:
        if {"results.json", "sweep.json"} & set(file_names(filesystem, folder)) == {"results.json"}:
            raise ModelFileError(f"{path} is an average of runs, of which there is no model: predict with its members")
        raise ModelFileError(f"{path} has no {name}: no sweep trained on fold {fold} left its models there")
    members = [_load_file(f"{place}/{name}", device, model) for place in folders]
    return members[0] if len(members) == 1 else SeedEnsemble(members)


def _load_file(path: str, device: str, model: str | None) -> FittedModel:
    try:
        file_bytes = read_whole(*open_folder(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no model file {path}") from None
    try:
        with zipfile.ZipFile(io.BytesIO(file_bytes)) as archive:
            if archive.testzip() is not None:  # torch itself reads other numbers without a word
                raise zipfile.BadZipFile
        content = torch.load(io.BytesIO(file_bytes), map_location="cpu", weights_only=True)
        file_format = content["format"]
    except Exception:  # noqa: BLE001 - torch reports damage in many ways, and some advise to run the file's code
        raise ModelFileError(
            f"{path} is not a matsweep model file, or is damaged: a sweep leaves them as seed_S/model_fold_F.pth"
        ) from None
    if file_format not in (FILE_FORMAT, _WITHOUT_TRUST):
        raise ModelFileError(
            f"{path} has model format {file_format!r}; this version reads {FILE_FORMAT} and, without trust, "
            f"{_WITHOUT_TRUST}"
        )
    try:
        name = content["model"]
        if name.endswith(".py") and model is None:
            raise ModelFileError(f"{path} was trained with a model of {name}: give that file as `model`")
        entry = open_model(model or name)
        trust = open_family(entry.family).load_trust(content["trust"]) if "trust" in content else None
        return FittedModel(entry, entry.load(content["content"], device), content["about"], trust, device)
    except (KeyError, ValueError, RuntimeError, TypeError) as problem:  # RuntimeError: weights missing or misshapen
        if isinstance(problem, ModelFileError) or (isinstance(problem, ModelError) and model):
            raise
        raise ModelFileError(f"{path} is damaged, its content is not a whole model: {problem!r}") from problem
