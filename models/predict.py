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
    from data.machine.import_path import own_first

    own_first()

from pathlib import Path
from typing import Annotated

import typer

from data.machine.command_line import command


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
    from data.stores.storage import open_folder, write_whole
    from models.crystals.prediction import predict
    from models.fitted import load_model

    is_file = model.endswith(".pth") or Path(model).is_file()
    fitted_model = load_model(model, None if is_file else fold, model=code)
    table, reasons = predict(fitted_model, crystals)
    about = fitted_model.about
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
        typer.echo("All seeds predict the same: their std, 0, says nothing of how sure the predictions are", err=True)
    if len(table) and "trusted" not in table:
        typer.echo("Of an earlier version's model file it is not known which predictions to trust", err=True)
    elif n_doubted := int((~table["trusted"]).sum()) if len(table) else 0:
        consequence = "the baseline's is given" if about.get("untrusted") == "baseline" else "marked `trusted` False"
        typer.secho(
            f"{n_doubted} of {len(table)} predictions are not to be trusted: these crystals, or what the model "
            f"says of them, are far from what it was trained on ({consequence})",
            fg="yellow",
            err=True,
        )
    for crystal, reason in reasons.items():
        typer.secho(f"{crystal}: {reason}", fg="red", err=True)
    sys.exit(1 if reasons else 0)


app = command(main)

if __name__ == "__main__":
    app()
