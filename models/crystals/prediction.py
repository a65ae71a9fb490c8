"""Predictions of crystals, read from their files, with a trained model. Called by `models/predict.py`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from data.crystals.compositions import parse_formulas
from data.crystals.convert import reduced_formula
from data.crystals.crystal import BadCrystalError, ReadCrystal
from data.crystals.formats.structure_files import read_structure_file, structure_file_format
from models.fitted import FittedModel, SeedEnsemble


def read(crystal: str, reads: str) -> ReadCrystal | str:
    """A crystal from its file; for a model that reads compositions also a formula as it is.

    Raises:
        BadCrystalError: no such file, or one that is not one whole, ordered crystal.
    """
    path = Path(crystal)
    if reads == "compositions" and not (path.is_file() and structure_file_format(path.name)):
        return crystal
    if not path.exists():
        raise BadCrystalError("no such file; this model reads structures, from files")
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise BadCrystalError(f"it cannot be read: {problem.strerror}; expected a structure file") from None
    return read_structure_file(path.name, content)


def predict(model: FittedModel | SeedEnsemble, crystals: list[str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Predictions of those crystals that can be read, and the reason for each of the others.

    Returns:
        One row a crystal: `crystal` as given, `formula`, `prediction` in the model's unit, `std` where the model knows
        it, `trust` and `trusted` (`trust.py`), and `note` if the reader noted anything of any; and {crystal:
        reason}.
    """
    rows, notes, reasons = [], [], {}
    for crystal in crystals:
        try:
            reading = read(crystal, model.model.reads)
            prediction = model.predict_with_std([reading if isinstance(reading, str) else reading.crystal])
        except BadCrystalError as problem:
            # one crystal at a time: its position or name, which the message begins with, says nothing here
            reasons[crystal] = str(problem).split(" 0: ", 1)[-1].removeprefix(f"{Path(crystal).name}: ")
            continue
        formula = reading if isinstance(reading, str) else reduced_formula(reading.crystal)
        row = {"crystal": crystal, "formula": formula, "prediction": float(prediction.values[0])}
        row |= {} if prediction.std is None else {"std": float(prediction.std[0])}
        if prediction.trust is not None and prediction.trusted is not None:
            row |= {"trust": float(prediction.trust[0]), "trusted": bool(prediction.trusted[0])}
        rows.append(row)
        notes.append("; ".join(parse_formulas([reading]).notes[0] if isinstance(reading, str) else reading.notes))
    table = pd.DataFrame(rows, columns=None if rows else ["crystal", "formula", "prediction"])
    return table.assign(note=notes) if any(notes) else table, reasons
