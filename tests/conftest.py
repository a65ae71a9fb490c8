"""Crystals, hand-made and of a task, one Ray session, and small disks, for tests of several files."""

import os
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import ray
from made_crystals import rock_salt
from pymatgen.core import Lattice, Structure

from data.crystals.rows import Rows
from data.machine.ray_session import connect


@pytest.fixture(scope="session")
def real_rows() -> Rows:
    """The 995 rows of the shared subset of matbench_mp_e_form."""
    from model_cases import FORMATION_ENERGIES, open_rows  # here, for torch takes seconds to import

    return open_rows(FORMATION_ENERGIES)[1]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests that get other crystals in a clone that has no `../shared`; `.ci/run` runs them in such a one."""
    if "at_hand" in getattr(item, "fixturenames", ()):
        item.add_marker("at_hand")


LONGEST = ("whole_sweeps", "sweep", "trials", "stores", "machine", "product", "planning", "crystals", "training")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the folders that take longest first, so that no worker begins one when the others have nothing left to do."""
    ranks = {folder: rank for rank, folder in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.parent.name, len(ranks)))


@pytest.fixture(scope="session")
def at_hand() -> str:
    """The task of tests that any crystals serve: real ones, or where those are not here the demo, which always is."""
    from model_cases import DEMO, FORMATION_ENERGIES, SHARED

    return FORMATION_ENERGIES if (SHARED / FORMATION_ENERGIES).exists() else DEMO.name


@pytest.fixture(scope="session")
def real_structures(at_hand) -> list[Structure]:
    """Every fourth of the crystals at hand: 249 real ones, or 237 of the demo."""
    from model_cases import open_rows

    rows = open_rows(at_hand)[1]
    return [
        Structure(crystal.lattice, crystal.numbers, crystal.frac_coords)
        for crystal in list(rows.chunk(0, len(rows)).crystals())[::4]
    ]


@pytest.fixture(scope="session")
def crystals() -> dict[str, Structure]:
    """Hand-made crystals by what is special about them; all have neighbours within 5 Angstrom."""
    rng = np.random.default_rng(0)
    salt = rock_salt("Na", "Cl", 5.69)
    triclinic = Structure(
        Lattice.from_parameters(4.1, 5.3, 6.7, 71, 83, 64), ["Ca", "Ti", "O", "O"], rng.random((4, 3))
    )
    skewed = Structure(
        np.array([[1, 0, 0], [3, 1, 0], [-5, 2, 1]]) @ np.diag([2.8, 3.1, 3.3]),
        ["Cs", "Cl"],
        [[0.1, 0.2, 0.3], [0.6, 0.7, 0.8]],
    )
    many = salt.copy()
    many.make_supercell([4, 4, 3])
    many.perturb(0.1, seed=1)
    return {
        "one atom": Structure(Lattice.cubic(2.6), ["Fe"], [[0.3, 0.3, 0.3]]),
        "triclinic": triclinic,
        "skewed": skewed,
        "no angle": Structure(Lattice.cubic(4.2), ["Xe"], [[0, 0, 0]]),
        "384 atoms": many,
    }


@pytest.fixture(scope="session")
def ray_session():
    """Ray, started once for all tests that use it within this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Ray leaves its daemons' log files open
        connect()
    yield
    ray.shutdown()


RIDGE = "model: ridge\nnum_samples: 5\nparameters:\n  alpha: {loguniform: [0.001, 1000]}\n"


@pytest.fixture(scope="session")
def ridge_sweep(ray_session, tmp_path_factory) -> Path:
    """The folder of a finished sweep of some crystals of the demo, of a model that is fitted at once; to be copied."""
    from sweeps import prepare, run_here

    folder = prepare(tmp_path_factory.mktemp("ridge_sweep"), every=16, ridge=RIDGE)
    run_here(folder, f"--space={folder}/ridge.yaml", f"--ids={folder}/ids.txt", "--name=ridge_sweep")
    return folder / "results/ridge_sweep"


@pytest.fixture
def disk_of(tmp_path):
    """Gives a folder on a disk of its own, of the size that it is called with."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        if os.geteuid() or subprocess.run(command, check=False).returncode:
            pytest.skip("mounting a small disk is not permitted here")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", folder], check=True)
