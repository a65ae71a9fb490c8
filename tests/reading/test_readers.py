"""Structure files that come with the dependencies are read as pymatgen, ASE and gemmi read them, or refused."""

from pathlib import Path

import ase
import pytest

from benchmarks.readers import compare, structure_files

SHIPPED = structure_files(Path(ase.__file__).parent / "test" / "testdata" / "minerals")


def test_there_are_such_files():
    assert len(SHIPPED) >= 5


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_all_readers_agree(path):
    comparison = compare(path)
    assert not comparison.reason
    assert set(comparison.verdicts.values()) == {"agrees"}
