"""Predict crystals with a trained model.

python models/predict.py ray_results/NAME *.cif -o out.csv
python models/predict.py ray_results/NAME/seed_0/model_fold_0.pth POSCAR
python models/predict.py ray_results/NAME Fe2O3 NaCl          # of a model that reads compositions
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # before anything of the user's could be imported by the name of something else
    sys.path.insert(0, os.path.realpath(__file__).rsplit("/", 2)[0])
    from data.import_path import own_first

    own_first()

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from data.compositions import parse_formulas
from data.convert import reduced_formula
from data.crystal import BadCrystalError, ReadCrystal
from data.storage import StorageError, open_folder, write_whole
from data.structure_files import read_structure_file, structure_file_format
from models.fitted import FittedModel, ModelFileError, SeedEnsemble, load_model
from models.registry import ModelError


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
        it, `trust` and `trusted` (`models/trust.py`), and `note` if the reader noted anything of any; and {crystal:
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


app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@app.command()
def main(
    model: Annotated[str, typer.Argument(help="Folder of a sweep or of one seed, or a model file.")],
    crystals: Annotated[list[str], typer.Argument(help="CIF, POSCAR or other files; formulas for compositions.")],
    out: Annotated[
        str | None,
        typer.Option("-o", "--out", metavar="FILE", help="CSV to write: path or URI. Default: the terminal."),
    ] = None,
    fold: Annotated[int, typer.Option(min=0, help="Of a folder: the fold whose model predicts.")] = 0,
    code: Annotated[str | None, typer.Option(help="Python file of a model of your own.")] = None,
) -> None:
    """Predict crystals with a trained model; exit code 1 if any could not be, the others are written all the same."""
    try:
        is_file = model.endswith(".pth") or Path(model).is_file()
        loaded = load_model(model, None if is_file else fold, model=code)
        table, reasons = predict(loaded, crystals)
        about = loaded.about
        unit = about["unit"] or "no unit"
        typer.echo(f"Predicted is {about['target']} ({unit}), learnt from {about['task']}. {about['labels']}", err=True)
        if "note" in table:
            for crystal, note in zip(table["crystal"], table["note"], strict=True):
                typer.echo(f"{crystal}: {note}", err=True) if note else None
        text = table.to_csv(index=False)
        if out is None:
            typer.echo(text, nl=False)
        else:
            filesystem, path = open_folder(out)
            write_whole(filesystem, path, text.encode())
            typer.echo(f"{len(table)} predictions in {out}", err=True)
        if len(table) and "std" in table and (table["std"] <= 1e-6 * table["prediction"].abs().max()).all():
            typer.echo(
                "All seeds predict the same: their std, 0, says nothing of how sure the predictions are", err=True
            )
        if len(table) and "trusted" not in table:
            typer.echo("Of an earlier version's model file it is not known which predictions to trust", err=True)
        elif n_doubted := int((~table["trusted"]).sum()) if len(table) else 0:
            say = "the baseline's is given" if about.get("untrusted") == "baseline" else "marked `trusted` False"
            typer.secho(
                f"{n_doubted} of {len(table)} predictions are not to be trusted: these crystals, or what the model "
                f"says of them, are far from what it was trained on ({say})",
                fg="yellow",
                err=True,
            )
    except (ModelFileError, ModelError, StorageError, OSError) as problem:
        typer.secho(f"{type(problem).__name__}: {problem}", fg="red", err=True)
        sys.exit(1)
    for crystal, reason in reasons.items():
        typer.secho(f"{crystal}: {reason}", fg="red", err=True)
    sys.exit(1 if reasons else 0)


if __name__ == "__main__":
    app()
