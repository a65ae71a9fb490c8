"""A folder of VASP runs: of each `vasprun.xml` the last structure, and its energy per atom."""

from __future__ import annotations

import hashlib
import math
import warnings
from pathlib import Path
from typing import Any

from data.atoms_records import atoms_record, unusable_record
from data.source import Source, joined, some_of, with_progress
from data.task_table import TaskError

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
    folders = [file.parent for file in files]
    if repeated := sorted({str(one) for one in folders if folders.count(one) > 1}):
        raise TaskError(f"{some_of(repeated)} has both {' and '.join(_FILES)}: leave one there")
    ids = [folder.name if one == folder else one.relative_to(folder).as_posix() for one in folders]
    energies: list[object] = []
    payloads: list[bytes] = []
    digest = hashlib.sha256()
    for row_id, file in with_progress(zip(ids, files, strict=True), "reading VASP runs", len(files)):
        digest.update(f"{row_id}\n{_sha256(file)}\n".encode())
        try:
            energy, payload = _last_step(file)
        except Exception as error:  # noqa: BLE001 - pymatgen's parser and XML's raise of every kind
            reason = " ".join(str(error).split()) or type(error).__name__
            energy, payload = None, unusable_record(f"{file.name} cannot be read: {reason}")
        energies.append(energy)
        payloads.append(payload)
    buffer, spans = joined(payloads)
    taken = "ids from the folders of the runs, structures and energies from the last step of each"
    notes = (
        f"The target {ENERGY!r} is VASP's total energy over the number of atoms, in eV/atom, and no formation energy; "
        "with --quantity energy_per_atom CHGNet's own energy predicts it."
    )
    columns = {ENERGY: energies}
    return Source(list(ids), columns, ids, "atoms_json", buffer, spans, digest.hexdigest(), taken, notes)


def _last_step(file: Path) -> tuple[float | None, bytes]:
    """Energy per atom and structure of a run's last step."""
    from pymatgen.io.vasp.outputs import Vasprun

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of runs that did not converge, of missing POTCARs
        run: Any = Vasprun(
            str(file), parse_dos=False, parse_eigen=False, parse_potcar_file=False, exception_on_bad_xml=True
        )
        structure, energy = run.final_structure, float(run.final_energy) / len(run.final_structure)
        pressure = float(run.parameters.get("PSTRESS") or 0)
        loops = [name for name in ("electronic", "ionic") if not getattr(run, f"converged_{name}")]
    if loops:
        return None, unusable_record(f"the last {' and the last '.join(loops)} loop ended at its limit: not converged")
    if pressure:
        return None, unusable_record(f"PSTRESS is {pressure:g} kbar: the last energy is an enthalpy")
    if not math.isfinite(energy):
        return None, unusable_record(f"its last energy is {energy}")
    symbols = [site.specie.symbol for site in structure]
    return energy, atoms_record(symbols, structure.frac_coords, structure.lattice.matrix)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
