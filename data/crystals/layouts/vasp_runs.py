"""Reads a folder of VASP runs: of each `vasprun.xml` the last structure and its energy per atom."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from data.crystals.crystal import BadCrystalError
from data.crystals.elements import SYMBOLS
from data.crystals.formats.atoms_records import atoms_record, unusable_record
from data.crystals.formats.structure_files import read_structure_file
from data.crystals.layouts.source import Source, content_of, joined, some_of, with_progress
from data.row_numbers import counted
from data.task import TaskError

ENERGY = "energy_per_atom"
_FILES = ("vasprun.xml", "vasprun.xml.gz")


def vasp_runs(folder: Path) -> list[Path]:
    """Every `vasprun.xml` or `vasprun.xml.gz` in a folder and those within it, but none in a hidden one."""
    return sorted(
        path
        for name in _FILES
        for path in folder.rglob(name)
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def read_vasp_runs(folder: Path, files: list[Path]) -> Source:
    """Read runs of VASP, each under the name of the folder that it is in.

    The target `energy_per_atom` (eV/atom) is the last step's energy, extrapolated to no smearing as VASP writes it
    (`e_0_energy`), over the number of atoms. A run that is cut, or whose last electronic or ionic loop ended at its
    limit, or under a pressure (PSTRESS), is a bad row.

    Args:
        folder: that the ids are relative to.
        files: from `vasp_runs`.

    Raises:
        TaskError: a folder has two of them.
    """
    counts = Counter(file.parent for file in files)
    if repeated := sorted(str(parent) for parent, n_files in counts.items() if n_files > 1):
        raise TaskError(f"{some_of(repeated)} has both {' and '.join(_FILES)}: leave one there")
    ids = [folder.name if parent == folder else parent.relative_to(folder).as_posix() for parent in counts]
    energies: list[object] = []
    payloads: list[bytes] = []
    digest = hashlib.sha256()
    for row_id, file in with_progress(zip(ids, files, strict=True), "reading VASP runs", len(files)):
        content = content_of(file)
        digest.update(f"{row_id}\n{hashlib.sha256(content).hexdigest()}\n".encode())
        try:
            crystal = read_structure_file(file.name, content).crystal
            energy = _total_energy(file) / len(crystal.numbers)
            symbols = [SYMBOLS[number] for number in crystal.numbers.tolist()]
            payload = atoms_record(symbols, crystal.frac_coords, crystal.lattice)
        except BadCrystalError as error:
            energy, payload = None, unusable_record(str(error))
        energies.append(energy)
        payloads.append(payload)
    buffer, spans = joined(payloads)
    origin = "ids from the folders of the runs, structures and energies from the last step of each"
    notes = (
        f"The target {ENERGY!r} is VASP's total energy over the number of atoms, in eV/atom, and no formation energy; "
        "with --quantity energy_per_atom CHGNet's own energy predicts it."
    )
    return Source(
        index=list(ids),
        columns={ENERGY: energies},
        names=ids,
        format="atoms_json",
        buffer=buffer,
        spans=spans,
        sha256=digest.hexdigest(),
        row_numbers=counted(len(ids)),
        taken=origin,
        notes=notes,
    )


def _total_energy(file: Path) -> float:
    """Energy of a run's last step, eV, which pymatgen also knows to be converged or not.

    Raises:
        BadCrystalError: it is not, is an enthalpy, or cannot be read.
    """
    from pymatgen.io.vasp.outputs import Vasprun

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of runs that did not converge, of missing POTCARs
            run: Any = Vasprun(str(file), parse_dos=False, parse_eigen=False, parse_potcar_file=False)
            energy, pressure = float(run.final_energy), float(run.parameters.get("PSTRESS") or 0)
            loops = [name for name in ("electronic", "ionic") if not getattr(run, f"converged_{name}")]
    except Exception as error:  # pymatgen's parser raises of every kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadCrystalError(f"{file.name}: its energy cannot be read: {reason}") from error
    if loops:
        raise BadCrystalError(f"the last {' and the last '.join(loops)} loop ended at its limit: not converged")
    if pressure:
        raise BadCrystalError(f"PSTRESS is {pressure:g} kbar: the last energy is an enthalpy")
    if not math.isfinite(energy):
        raise BadCrystalError(f"its last energy is {energy}")
    return energy
