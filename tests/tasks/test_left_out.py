"""`--split leave-group-out`: what a fold tests is unlike anything that it trains on."""

from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from made_crystals import body_centred, face_centred, rock_salt
from pymatgen.core import Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from data.crystals.crystal import crystal_from_structure
from data.crystals.graphs import convert, element_fractions, stack
from data.crystals.left_out import leave_elements_out, leave_molecules_out
from data.crystals.molecules import molecular
from data.fold import SplitError
from data.split_rule import split_rule
from data.tasks import open_task

CUTOFF = 6.0


def packed(name: str) -> Structure:
    """A molecule of ASE's collection in a cell that leaves 3.5 Angstrom to its copies."""
    atoms = molecule(name)
    atoms.center(vacuum=1.75)
    atoms.pbc = True
    return AseAtomsAdaptor.get_structure(atoms)


def is_molecular(*structures: Structure) -> list[bool]:
    return molecular(stack([convert(crystal_from_structure(one), CUTOFF) for one in structures])).tolist()


def cubic(spacegroup: str, a: float, species: list[str], coords: list[list[float]]) -> Structure:
    return Structure.from_spacegroup(spacegroup, Lattice.cubic(a), species, coords)


def test_molecules_are_told_from_salts_metals_and_networks():
    names = ["PF3", "BCl3", "SiCl4", "CH4", "H2O", "C6H6", "N2", "SO2"]
    assert is_molecular(*map(packed, names)) == [True] * len(names)
    others = {
        "salt": rock_salt("Na", "Cl", 5.69),
        "salt of a heavy metal": rock_salt("Tl", "F", 5.5),
        "fluorite": cubic("Fm-3m", 5.52, ["Ca", "F"], [[0, 0, 0], [0.25, 0.25, 0.25]]),
        "lead": face_centred("Pb", 5.04),
        "caesium": body_centred("Cs", "Cs", 6.16),
        "diamond": cubic("Fd-3m", 3.57, ["C"], [[0, 0, 0]]),
        "quartz-like": cubic("Fd-3m", 7.13, ["Si", "O"], [[0, 0, 0], [0.125, 0.125, 0.125]]),
        "graphite": Structure(Lattice.hexagonal(2.46, 3.35), ["C"] * 2, [[0, 0, 0], [1 / 3, 2 / 3, 0]]),
    }  # fmt: skip
    assert dict(zip(others, is_molecular(*others.values()), strict=True)) == dict.fromkeys(others, False)
    assert is_molecular(face_centred("Ar", 5.31)) == [True], "atoms apart from all others"
    # One atom chain across the cell joins what would else be molecules; a molecule cut by the cell's border is whole.
    chain = Structure(Lattice.orthorhombic(8, 8, 2.3), ["S"], [[0.5, 0.5, 0.0]])
    assert is_molecular(chain) == [False]
    shifted = packed("SiCl4")
    shifted.translate_sites(range(len(shifted)), [0.5, 0.5, 0.5])
    assert is_molecular(shifted) == [True]
    assert is_molecular(packed("SiCl4") * (2, 1, 2)) == [True]


@pytest.fixture(scope="module")
def demo() -> tuple[list[str], np.ndarray]:
    _, rows = open_task("demo", download_dir=Path())
    crystals = [getattr(one, "crystal", one) for one in rows.chunk(0, len(rows)).crystals()]
    return rows.ids, element_fractions(stack([convert(one, CUTOFF) for one in crystals]))


def test_no_fold_trains_on_an_element_that_it_leaves_out(demo):
    ids, fractions = demo
    folds, left_out = leave_elements_out(ids, fractions)
    holds = {one: set(np.flatnonzero(row) + 1) for one, row in zip(ids, fractions, strict=True)}
    assert len({z for numbers in left_out for z in numbers}) == sum(map(len, left_out)) > 40
    for fold, numbers in zip(folds, left_out, strict=True):
        assert sorted([*fold.train_ids, *fold.test_ids]) == sorted(ids)
        assert all(holds[one] & set(numbers) for one in fold.test_ids)
        assert not any(holds[one] & set(numbers) for one in fold.train_ids)
        assert 0.1 * len(ids) < len(fold.test_ids) <= 0.2 * len(ids)
    assert leave_elements_out(ids, fractions)[1] == left_out


def test_rows_without_a_crystal_are_in_no_part_and_repeated_ids_once(demo):
    ids, fractions = demo[0].copy(), demo[1].copy()
    ids[1], fractions[2] = ids[0], 0.0
    for fold in leave_elements_out(ids, fractions)[0]:
        assert ids[2] not in [*fold.train_ids, *fold.test_ids]
        assert len(set(fold.train_ids)) == len(fold.train_ids)


def test_molecules_are_tested_once_and_never_trained_on():
    ids = [f"x{k}" for k in range(40)]
    is_molecule = np.arange(40) % 3 == 0
    is_usable = np.arange(40) != 6
    folds = leave_molecules_out(ids, is_molecule, is_usable)
    tested = [one for fold in folds for one in fold.test_ids]
    assert sorted(tested) == sorted(ids[k] for k in range(0, 40, 3) if k != 6)
    assert {tuple(fold.train_ids) for fold in folds} == {tuple(ids[k] for k in range(40) if k % 3)}


def test_what_cannot_be_left_out_is_refused():
    with pytest.raises(SplitError, match=r"leave-group-out:element: 0 elements are in no more than a fifth"):
        leave_elements_out(["a", "b", "c"], np.eye(94)[[0, 0, 1]])
    with pytest.raises(SplitError, match=r"1 of the rows are molecular crystals, 2 are not"):
        leave_molecules_out(["a", "b", "c"], np.array([True, False, False]), np.ones(3, dtype=bool))
    assert split_rule("leave-group-out") == "leave-group-out:element"
    with pytest.raises(SplitError, match=r"--split 'random': expected one of task, leave-group-out:element"):
        split_rule("random")
