"""Crystals and training runs for the tests of the models; no fixture, no test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.core import Structure

from data.crystals.convert import convert_chunk
from data.crystals.graphs import Graphs, element_fractions, stack
from data.crystals.rows import Rows
from data.crystals.task_table import DEMO
from data.task import Kind, Quantity, Task
from data.tasks import open_task
from models.crystals.chgnet.features import FeatureInputs, GraphInputs, backbone_features
from models.crystals.chgnet.model import CHGNetConfig, start_chgnet
from models.crystals.chgnet.network import CHGNetwork, cutoffs
from models.crystals.rows import CrystalRows
from models.model import TrainingPart
from models.training.inputs import predict
from models.training.train import GradientRun

SHARED = Path(__file__).parents[3] / "shared" / "data"
FORMATION_ENERGIES, PEROVSKITES = "mp_e_form_subset.json.gz", "perovskites_subset.json.gz"

# For every field other values than those of the baseline in tests/training/test_train.py.
OTHER_VALUES = {
    "weights": ["0.2.0", "r2scan", "random"],
    "freeze_depth": ["none", "last_conv", "last_two_convs", "last_three_convs", "full"],
    "epochs": [1, 3],
    "lr": [1e-3, 4e-3],
    "batch_size": [1, 7, 16],
    "weight_decay": [0.0, 1.0],
    "loss": ["mse", "huber"],
    "seed": [1],
}  # all other levers: tests/training/test_levers.py


@dataclass(frozen=True, eq=False)
class Sample:
    """Some rows of a task, as pymatgen has them and as training does."""

    task: Task
    structures: list[Structure]
    targets: np.ndarray
    rows: CrystalRows


@contextmanager
def one_thread() -> Iterator[None]:
    """A single torch thread inside; the setting is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def sample(n_rows: int, weights: str = "0.3.0", file: str = FORMATION_ENERGIES, *, small: bool = False) -> Sample:
    """Rows spread evenly over a shared file or the demo, or its smaller half; with pretrained features."""
    task, rows = open_rows(file)
    candidates = np.arange(len(rows))
    if small:
        candidates = np.sort(np.argsort(np.diff(rows.spans).ravel(), kind="stable")[: len(rows) // 2])
    spread = np.linspace(0, len(candidates) - 1, n_rows).astype(int)
    chosen = rows.select(candidates[spread].tolist(), "")
    graphs = _graphs(chosen, weights)
    features = outputs = None
    if weights != "random":
        everything, cpu = np.arange(n_rows), torch.device("cpu")
        with one_thread():
            network = CHGNetwork(weights)
            inputs = GraphInputs(graphs, network.bond_graph_cutoff, cpu, collapse=False)
            features = backbone_features(network, inputs, everything)
            outputs = predict(network, FeatureInputs(features, graphs.atoms_per_graph, cpu), everything)
    return Sample(
        task=task,
        structures=[
            Structure(crystal.lattice, crystal.numbers, crystal.frac_coords)
            for crystal in chosen.chunk(0, n_rows).crystals()
        ],
        targets=chosen.targets,
        rows=CrystalRows(element_fractions(graphs), graphs.atoms_per_graph, graphs, features, outputs),
    )


@cache
def open_rows(file: str) -> tuple[Task, Rows]:
    """All of a shared file of real structures, or of the demo."""
    if file == DEMO.name:
        return open_task(file, download_dir=SHARED)
    if not (SHARED / file).exists():
        pytest.skip(f"the shared {file} of real structures is not here")
    return open_task(str(SHARED / file), download_dir=SHARED)


def _graphs(rows: Rows, weights: str) -> Graphs:
    _, graphs, _ = convert_chunk(rows.chunk(0, len(rows)), cutoffs(weights)[0])
    assert not any(isinstance(graph, str) for graph in graphs)
    return stack(graphs)


def thirds(n_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of training, validation and test rows: of every six rows four, one and one."""
    place = np.arange(n_rows) % 6
    return np.flatnonzero(place < 4), np.flatnonzero(place == 4), np.flatnonzero(place == 5)


def fine_tuning(
    data: Sample,
    targets: np.ndarray | None = None,
    *,
    rows: CrystalRows | None = None,
    kind: Kind = "regression",
    quantity: Quantity = "energy_per_atom",
    parts: tuple[np.ndarray, np.ndarray] | None = None,
    collapse: bool = False,
    device: str = "cpu",
    **fields,
) -> GradientRun:
    """A short run on a sample; `fields` change the config, `parts` are training and validation rows."""
    loss = "cross_entropy" if kind == "classification" else "mae"
    defaults = {"epochs": 3, "batch_size": 8, "lr": 3e-3, "loss": loss}
    if fields.get("freeze_depth") == "none":
        defaults = {"epochs": 0, "loss": loss}
    train, val = parts or thirds(len(data.targets))[:2]
    return start_chgnet(
        CHGNetConfig(**(defaults | fields)),
        replace(rows or data.rows, collapse=collapse),
        TrainingPart(data.targets if targets is None else targets, train, val, kind, quantity),
        device,
    )


def finished(run: GradientRun) -> GradientRun:
    """The same run, trained to its end on one thread."""
    with one_thread():
        for _ in run.epochs():
            pass
    return run


def numbers(run: GradientRun) -> np.ndarray:
    """What the history of a run says, less the seconds; shape (n_epochs + 1, 5)."""
    return np.array([[r.epoch, r.train_loss, r.val_loss, r.val_metric, r.lr] for r in run.history])


def predictions(run: GradientRun, which: np.ndarray | None = None) -> np.ndarray:
    """Predictions of the weights a run has now, for all rows or some; no reach limits them."""
    which = np.arange(len(run.part.targets)) if which is None else which
    with one_thread():
        return replace(run.objective.transform, reach=None).predictions(predict(run.network, run.inputs, which), which)


def graphs_alone(rows: CrystalRows) -> CrystalRows:
    """The same rows without anything precomputed."""
    return CrystalRows(rows.fractions, rows.n_atoms, rows.graphs)


def assert_same_run(a: GradientRun, b: GradientRun) -> None:
    """Two runs agree to the last bit: history, predictions, kept epoch, and predictions of the kept weights."""
    np.testing.assert_array_equal(numbers(a), numbers(b))
    np.testing.assert_array_equal(predictions(a), predictions(b))
    assert a.kept_epoch == b.kept_epoch
    a.fitted(), b.fitted()
    np.testing.assert_array_equal(predictions(a), predictions(b))


def rotation(seed: int = 0) -> np.ndarray:
    """A proper rotation, shape (3, 3)."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.linalg.det(q)
