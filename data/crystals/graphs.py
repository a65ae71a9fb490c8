"""Crystal -> graph: every bond within the cutoff, as flat arrays (compiled, no Python object per bond).

The flow is `Crystal` (`data/crystals/crystal.py`) -> `Graph` -> a row of a Parquet shard (`data/crystals/shards.py`) ->
`Graphs`, many of them in one set of arrays -> a batch (`data/crystals/batches.py`).

Only undirected bonds are kept. The directed edges are each bond in its two directions, and the angles of
the bond graph are all ordered pairs of different directed edges shorter than the bond-graph cutoff that
leave the same atom; both follow from the bonds, and `data/crystals/batches.py` derives them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from data.crystals.crystal import BadCrystalError, Crystal
from data.machine.compiled import compiled, longer, read_only

CONVERTER_VERSION = 3  # part of the cache key: raise it whenever a graph, or what is kept beside it, would be different
CUTOFF_STEP_ANGSTROM = 1.0  # by which the cutoff grows while an atom has no neighbour
MAX_CUTOFF_ANGSTROM = 50.0  # beyond it an atom without a neighbour means that the lattice is wrong
MAX_ATOMS = 65_535  # bonds index atoms by uint16
MAX_IMAGE = 127  # and cells by int8


@dataclass(frozen=True)
class Graph:
    """The graph of one crystal, in single precision as CHGNet computes.

    Attributes:
        numbers: atomic numbers, uint8, shape (n_atoms,).
        frac_coords: fractional coordinates wrapped into [0, 1], float32, shape (n_atoms, 3).
        lattice: lattice vectors in its rows, Angstrom, float32, shape (3, 3).
        bond_atoms: the two atoms (i, j), i <= j, of each bond, uint16, shape (n_bonds, 2).
        bond_image: lattice translation of atom j, int8, shape (n_bonds, 3).
        cutoff_angstrom: the cutoff used; larger than asked for where an atom had no neighbour within it.
    """

    numbers: np.ndarray
    frac_coords: np.ndarray
    lattice: np.ndarray
    bond_atoms: np.ndarray
    bond_image: np.ndarray
    cutoff_angstrom: float


@dataclass(frozen=True)
class Graphs:
    """Many graphs in one set of flat arrays; graph k owns `atom_start[k]:atom_start[k + 1]` and so on.

    Plain numpy arrays throughout, so that Ray shares them between the trials of a node without a copy.
    They may be read-only. Shapes and dtypes are those of `Graph`, concatenated along the first axis.

    Attributes:
        atom_start: int64, shape (n_graphs + 1,).
        bond_start: int64, shape (n_graphs + 1,).
        lattices: float32, shape (n_graphs, 3, 3).
    """

    numbers: np.ndarray
    frac_coords: np.ndarray
    lattices: np.ndarray
    bond_atoms: np.ndarray
    bond_image: np.ndarray
    atom_start: np.ndarray
    bond_start: np.ndarray

    def __len__(self) -> int:
        """Number of graphs."""
        return len(self.lattices)

    @property
    def atoms_per_graph(self) -> np.ndarray:
        """Number of atoms of each graph, int64, shape (n_graphs,)."""
        return np.diff(self.atom_start)

    def read_only(self) -> tuple[np.ndarray, ...]:
        """The arrays in the order of the fields, as compiled functions are given them."""
        return tuple(read_only(getattr(self, field.name)) for field in fields(self))

    def select(self, which: np.ndarray) -> Graphs:
        """The graphs at the positions `which`, int64, in that order; a copy."""

        def flat(values: np.ndarray, start: np.ndarray) -> np.ndarray:
            return np.concatenate([values[start[k] : start[k + 1]] for k in which])

        return Graphs(
            numbers=flat(self.numbers, self.atom_start),
            frac_coords=flat(self.frac_coords, self.atom_start),
            lattices=self.lattices[which],
            bond_atoms=flat(self.bond_atoms, self.bond_start),
            bond_image=flat(self.bond_image, self.bond_start),
            atom_start=starts(self.atoms_per_graph[which]),
            bond_start=starts(np.diff(self.bond_start)[which]),
        )


def convert(crystal: Crystal, cutoff_angstrom: float) -> Graph:
    """Find every bond of a crystal.

    The cutoff is raised by `CUTOFF_STEP_ANGSTROM` until each atom has a neighbour. For CHGNet this leaves
    the energy as it is without those bonds: its radial basis is zero beyond the model's own cutoff.

    Args:
        crystal: the crystal.
        cutoff_angstrom: atom-graph cutoff of the model's weights, Angstrom.

    Raises:
        BadCrystalError: more atoms than a graph can index, an atom far from all others, or a cell so
            skewed that a lattice translation overflows.
    """
    if len(crystal.numbers) > MAX_ATOMS:
        raise BadCrystalError(f"{len(crystal.numbers)} atoms; a graph holds at most {MAX_ATOMS}")
    cutoff = float(cutoff_angstrom)
    while True:
        frac_coords, lattice, bond_atoms, bond_image, alone, farthest = find_bonds(
            crystal.frac_coords, crystal.lattice, cutoff
        )
        if farthest < 0:
            raise BadCrystalError(f"singular lattice {crystal.lattice.tolist()}: it spans no volume")
        if farthest > MAX_IMAGE:
            raise BadCrystalError(
                f"a bond crosses more than {MAX_IMAGE} cells: is the lattice right? {crystal.lattice.tolist()}"
            )
        if alone < 0:
            return Graph(crystal.numbers, frac_coords, lattice, bond_atoms, bond_image, cutoff)
        cutoff += CUTOFF_STEP_ANGSTROM
        if cutoff > MAX_CUTOFF_ANGSTROM:
            raise BadCrystalError(
                f"site {alone} has no neighbour within {MAX_CUTOFF_ANGSTROM:g} Angstrom: "
                f"is the lattice right? {crystal.lattice.tolist()}"
            )


@compiled
def find_bonds(
    frac_coords: np.ndarray, lattice: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, int]:
    """Undirected bonds no longer than `cutoff`, each once.

    The lattice is rotated into a lower triangular matrix: then z depends on the third fractional coordinate
    alone, y on the last two, and each loop over lattice translations runs over exactly those that can lie
    in the sphere, so that the work is proportional to the bonds found.

    Args:
        frac_coords: float64, shape (n_atoms, 3).
        lattice: float64, shape (3, 3).
        cutoff: Angstrom.

    Returns:
        The four arrays of a `Graph`, wrapped coordinates first; the first atom without a bond, or -1; and
        the most cells that a bond crosses, or -1 for a lattice that spans no volume.
    """
    n_atoms = len(frac_coords)
    wrapped = np.empty((n_atoms, 3))
    for i in range(n_atoms):
        for k in range(3):
            inside = frac_coords[i, k] - np.floor(frac_coords[i, k])
            wrapped[i, k] = inside if inside < 1.0 else 0.0  # -1e-17 wraps to exactly 1
    bond_atoms = np.empty((64 * n_atoms, 2), dtype=np.uint16)
    bond_image = np.empty((64 * n_atoms, 3), dtype=np.int8)
    count = 0
    farthest = 0

    # Cholesky factor of the metric tensor.
    metric = np.empty((3, 3))
    for j in range(3):
        for k in range(3):
            metric[j, k] = lattice[j, 0] * lattice[k, 0] + lattice[j, 1] * lattice[k, 1] + lattice[j, 2] * lattice[k, 2]
    xx = np.sqrt(metric[0, 0])
    yx = metric[1, 0] / xx if xx > 0.0 else 0.0
    zx = metric[2, 0] / xx if xx > 0.0 else 0.0
    yy = np.sqrt(max(metric[1, 1] - yx * yx, 0.0))
    zy = (metric[2, 1] - zx * yx) / yy if yy > 0.0 else 0.0
    zz = np.sqrt(max(metric[2, 2] - zx * zx - zy * zy, 0.0))
    if not (xx > 0.0 and yy > 0.0 and zz > 0.0):
        farthest = -1
        n_atoms = 0

    radius = cutoff + 1e-8  # the tolerance of pymatgen's neighbour list, as stock CHGNet calls it
    bonded = np.zeros(len(frac_coords), dtype=np.bool_)
    for i in range(n_atoms):
        for j in range(i, n_atoms):
            da = wrapped[j, 0] - wrapped[i, 0]
            db = wrapped[j, 1] - wrapped[i, 1]
            dc = wrapped[j, 2] - wrapped[i, 2]
            first_c = int(np.ceil(-radius / zz - dc))
            if i == j:  # a bond of an atom to its own image: take one of each +- pair
                first_c = 0
            for c in range(first_c, int(np.floor(radius / zz - dc)) + 1):
                z = (dc + c) * zz
                room_y = np.sqrt(max(radius * radius - z * z, 0.0))
                y0 = (dc + c) * zy + db * yy
                first_b = int(np.ceil((-room_y - y0) / yy))
                if i == j and c == 0:
                    first_b = 0
                for b in range(first_b, int(np.floor((room_y - y0) / yy)) + 1):
                    y = y0 + b * yy
                    room_x = np.sqrt(max(radius * radius - z * z - y * y, 0.0))
                    x0 = (dc + c) * zx + (db + b) * yx + da * xx
                    first_a = int(np.ceil((-room_x - x0) / xx))
                    if i == j and c == 0 and b == 0:
                        first_a = 1
                    for a in range(first_a, int(np.floor((room_x - x0) / xx)) + 1):
                        if count == len(bond_atoms):
                            bond_atoms, bond_image = longer(bond_atoms, 2 * count), longer(bond_image, 2 * count)
                        bond_atoms[count, 0] = i
                        bond_atoms[count, 1] = j
                        bond_image[count, 0] = a
                        bond_image[count, 1] = b
                        bond_image[count, 2] = c
                        farthest = max(farthest, abs(a), abs(b), abs(c))
                        bonded[i] = bonded[j] = True
                        count += 1
    alone = -1
    for i in range(n_atoms - 1, -1, -1):
        if not bonded[i]:
            alone = i
    return (
        wrapped.astype(np.float32),
        lattice.astype(np.float32),
        bond_atoms[:count].copy(),
        bond_image[:count].copy(),
        alone,
        farthest,
    )


def starts(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where each run begins when runs lie behind one another, and where the last ends; int64, (n + 1,)."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def stack(graphs: Sequence[Graph]) -> Graphs:
    """Put graphs behind one another in one set of arrays."""
    return Graphs(
        numbers=np.concatenate([graph.numbers for graph in graphs]),
        frac_coords=np.concatenate([graph.frac_coords for graph in graphs]),
        lattices=np.stack([graph.lattice for graph in graphs]),
        bond_atoms=np.concatenate([graph.bond_atoms for graph in graphs]),
        bond_image=np.concatenate([graph.bond_image for graph in graphs]),
        atom_start=starts([len(graph.numbers) for graph in graphs]),
        bond_start=starts([len(graph.bond_atoms) for graph in graphs]),
    )


def concatenate(parts: Iterable[Graphs]) -> Graphs:
    """Put sets of graphs behind one another; each may be let go before the next is asked for."""
    n_atoms: list[np.ndarray] = []
    n_bonds: list[np.ndarray] = []
    flat: dict[str, np.ndarray] = {}
    for part in parts:
        n_atoms.append(part.atoms_per_graph)
        n_bonds.append(np.diff(part.bond_start))
        for name in ("numbers", "frac_coords", "lattices", "bond_atoms", "bond_image"):
            values = getattr(part, name)
            if name not in flat:
                flat[name] = values.copy()
                continue
            # Grown in place, for which the kernel moves no page: parts and whole are never both in memory.
            whole = flat[name]
            n_rows = len(whole)
            whole.resize((n_rows + len(values), *values.shape[1:]), refcheck=False)
            whole[n_rows:] = values
    return Graphs(**flat, atom_start=starts(np.concatenate(n_atoms)), bond_start=starts(np.concatenate(n_bonds)))


def element_fractions(graphs: Graphs) -> np.ndarray:
    """Atomic fraction of each element, float32, shape (n_graphs, 94), indexed by Z - 1.

    A graph without atoms (a rejected row) has zeros.
    """
    fractions = np.zeros((len(graphs), 94), dtype=np.float32)
    owner = np.repeat(np.arange(len(graphs)), graphs.atoms_per_graph)
    np.add.at(fractions, (owner, graphs.numbers.astype(np.int64) - 1), 1.0)
    return fractions / np.maximum(graphs.atoms_per_graph, 1)[:, None].astype(np.float32)
