"""How often a training leaves wild predictions: of molecules in crystals, which its rows do not show.

    python -m benchmarks.wild ../shared/data/mp_e_form_subset.json.gz --seeds 16
    python -m benchmarks.wild ../shared/data/mp_e_form_subset.json.gz --seeds 4 --freeze-depth full --epochs 8

A prediction is wild that is further than 1 eV/atom from that of the pretrained network with the same reference. The
crystals are the molecules of ASE's G2 collection, each in a cell that leaves 3.2 Angstrom to its copies, and every
further structure file that is given.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from ase.build import molecule
from ase.collections import g2

from data.crystals.convert import convert_chunk
from data.crystals.crystal import Crystal
from data.crystals.formats.structure_files import read_structure_file
from data.crystals.graphs import convert, element_fractions, stack
from data.folds import make_folds, split_fold
from data.tasks import open_task
from models.crystals.chgnet.features import GraphInputs, backbone_features
from models.crystals.chgnet.model import CHGNetConfig, start_chgnet
from models.crystals.chgnet.network import CHGNetwork, cutoffs
from models.crystals.rows import CrystalRows
from models.model import TrainingPart
from models.training.inputs import predict

WILD = 1.0  # eV/atom
GAP = 3.2  # Angstrom


def molecules() -> list[Crystal]:
    """Those of ASE's G2 collection that have bonds, as crystals."""
    crystals = []
    for name in g2.names:
        atoms = molecule(name)
        if len(atoms) > 1:
            atoms.center(vacuum=GAP / 2)
            atoms.pbc = True
            crystals.append(Crystal(atoms.numbers.astype(np.uint8), atoms.get_scaled_positions(), atoms.cell.array))
    return crystals


def described(rows: CrystalRows, network: CHGNetwork) -> CrystalRows:
    """The same rows with what the pretrained network makes of them."""
    assert rows.graphs is not None
    everything = np.arange(len(rows.n_atoms))
    inputs = GraphInputs(rows.graphs, network.bond_graph_cutoff, torch.device("cpu"))
    features, outputs = backbone_features(network, inputs, everything), predict(network, inputs, everything)
    return replace(rows, features=features, outputs=outputs)


def main(
    task_file: Annotated[Path, typer.Argument(help="Task of energies to train on, all of whose rows can be read.")],
    others: Annotated[
        list[Path] | None, typer.Argument(help="Structure files to predict beside the molecules.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each fold.")] = 16,
    freeze_depth: Annotated[str, typer.Option(help="Of the trainings.")] = "readout",
    epochs: Annotated[int, typer.Option(help="Of the trainings.")] = 100,
    lr: Annotated[float, typer.Option(help="Of the trainings.")] = 0.00466,
    batch_size: Annotated[int, typer.Option(help="Of the trainings.")] = 64,
    weight_decay: Annotated[float, typer.Option(help="Of the trainings.")] = 0.00611,
) -> None:
    """Train, predict with and without the limit of `models/crystals/reach.py`, and count."""
    torch.set_num_threads(1)
    cutoff, network = cutoffs("0.3.0")[0], CHGNetwork("0.3.0").eval()
    task, source = open_task(str(task_file), download_dir=Path())
    graphs = stack(convert_chunk(source.chunk(0, len(source)), cutoff)[1])
    rows = described(CrystalRows(element_fractions(graphs), graphs.atoms_per_graph.astype(np.int32), graphs), network)
    files = [read_structure_file(path.name, path.read_bytes()).crystal for path in others or []]
    crystals = [*molecules(), *files]
    graphs = stack([convert(crystal, cutoff) for crystal in crystals])
    new = described(CrystalRows(element_fractions(graphs), graphs.atoms_per_graph.astype(np.int32), graphs), network)
    everything, compositions = np.arange(len(crystals)), [str(row.tobytes()) for row in rows.fractions]
    fields = {"freeze_depth": freeze_depth, "epochs": epochs, "lr": lr, "batch_size": batch_size}
    fields |= {"weight_decay": weight_decay}
    outcomes = []
    for fold in make_folds(task, source.ids, source.groups):
        split = split_fold(
            fold, source.ids, np.ones(len(source), dtype=bool), compositions, groups=source.groups, seed=0
        )
        targets = np.full(len(source), np.nan)
        for which in (split.train, split.val):
            targets[which] = source.targets[which]
        part = TrainingPart(targets, split.train, split.val, task.kind, task.quantity)
        for seed in range(seeds):
            config = CHGNetConfig(seed=seed, **fields)
            run = start_chgnet(config, rows, part)
            val = min(result.val_metric for result in run.epochs())
            fitted = run.fitted()
            free = replace(fitted, reach=None)
            start = run.kept_transform.reference.predict(new.fractions.astype(np.float64)) + new.outputs
            moves = [np.abs(model.predict_rows(new, everything).values - start) for model in (free, fitted)]
            on_val = [model.predict_rows(rows, split.val).values for model in (free, fitted)]
            counts, largest = [int((move > WILD).sum()) for move in moves], [float(move.max()) for move in moves]
            outcomes.append([val, *counts])
            typer.echo(
                f"fold {fold.index} seed {seed}: validation MAE {val:.4f}, {int((on_val[0] != on_val[1]).sum())} of "
                f"its rows limited; of {len(crystals)} crystals {counts[0]} wild without the limit (largest move "
                f"{largest[0]:.2f} eV/atom), {counts[1]} with it ({largest[1]:.2f})"
            )
    table = np.array(outcomes)
    typer.echo(
        f"{len(table)} trainings, validation MAE {table[:, 0].mean():.4f}: without the limit "
        f"{int((table[:, 1] > 0).sum())} have wild predictions, {int(table[:, 1].sum())} in all, with it "
        f"{int((table[:, 2] > 0).sum())}, {int(table[:, 2].sum())} in all"
    )


if __name__ == "__main__":
    typer.run(main)
