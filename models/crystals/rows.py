"""Rows of a task of crystals or compositions, as models read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.crystals.graphs import Graphs
from data.machine.compiled import compiled


@dataclass(frozen=True)
class AtomFeatures:
    """The backbone's output for some crystals, rows in their order.

    Attributes:
        values: output of the last interaction block, float32, shape (n_rows, 64); a row for each atom, or for
            each class of equivalent ones.
        atom_count: how many atoms of its crystal a row stands for, float32, shape (n_rows,).
        rows_per_graph: int32, shape (n_graphs,); 0 for a rejected crystal.
    """

    values: np.ndarray
    atom_count: np.ndarray
    rows_per_graph: np.ndarray

    def select(self, which: np.ndarray) -> AtomFeatures:
        """Those of the graphs at the positions `which`, int64, in that order."""
        rows, _ = feature_rows(np.concatenate([[0], np.cumsum(self.rows_per_graph, dtype=np.int64)]), which)
        return AtomFeatures(self.values[rows], self.atom_count[rows], self.rows_per_graph[which])


@dataclass(frozen=True)
class CrystalRows:
    """All rows of a task as training sees them; shared between trials, never written to.

    Attributes:
        fractions: element fractions, float32, shape (n_rows, 94); zero for a rejected row.
        n_atoms: of the crystal, or of the formula where there are no structures; int32, shape (n_rows,).
        graphs: one a row; None for a task of compositions.
        features: output of the pretrained backbone, or None where it is not known.
        outputs: output of the pretrained network, float64, shape (n_rows,), NaN for rejected rows, or None.
        corrections: what the Materials Project's energy corrections of 2020 add beyond those before, eV/atom, float64,
            shape (n_rows,), or None where no config asks for them.
        collapse: whether equivalent atoms of a crystal are computed once (`data/crystals/symmetry.py`).
    """

    fractions: np.ndarray
    n_atoms: np.ndarray
    graphs: Graphs | None = None
    features: AtomFeatures | None = None
    outputs: np.ndarray | None = None
    corrections: np.ndarray | None = None
    collapse: bool = True

    def select(self, which: np.ndarray) -> CrystalRows:
        """The rows at the positions `which`, int64, in that order."""

        def of(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[which]

        return CrystalRows(
            fractions=self.fractions[which],
            n_atoms=self.n_atoms[which],
            graphs=None if self.graphs is None else self.graphs.select(which),
            features=None if self.features is None else self.features.select(which),
            outputs=of(self.outputs),
            corrections=of(self.corrections),
            collapse=self.collapse,
        )


@compiled
def feature_rows(start: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the chosen graphs, and the place in `which` of the graph of each; int64."""
    n_rows = 0
    for g in which:
        n_rows += start[g + 1] - start[g]
    rows, owner = np.empty(n_rows, dtype=np.int64), np.empty(n_rows, dtype=np.int64)
    k = 0
    for position in range(len(which)):
        for row in range(start[which[position]], start[which[position] + 1]):
            rows[k], owner[k] = row, position
            k += 1
    return rows, owner
