"""The tasks of crystals that have a name: Matbench's nine on structures and four on compositions, and the demo.

Facts only; `data/crystals/tasks.py` opens them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, cast

import orjson

from data.task import USUAL_METRIC, Kind, Quantity, Task, TaskError

LAYOUTS = (
    "Files that are read: .json(.gz) in Matbench's layout, of JARVIS's or other records, or of a data frame; .jsonl; "
    ".parquet or .csv with a column of formulas or structures; .xyz (extended, of many frames); .db of ASE. "
    "Folders: CIF, POSCAR and other structure files with one CSV of targets, or with CGCNN's id_prop.csv; runs of VASP"
)

Inputs = Literal["structures", "compositions"]


DEMO = Task(
    name="demo",
    family="crystals",
    metric="mae",
    example="crystal",
    groups="composition",
    inputs="structures",
    flags=("labels of a model",),
    target="e_form",
    unit="eV/atom",
    kind="regression",
    quantity="energy_per_atom",
    labels="Labels are formation energies predicted by a model (CHGNet's r2SCAN weights), not DFT.",
    notes="Substituted and strained AFLOW prototypes; results show that the program works, nothing about "
    "accuracy. Some prototypes are compounds that CHGNet's pretraining holds too.",
)


@dataclass(frozen=True)
class _Facts:
    """What Matbench's own metadata does not say about one of its tasks."""

    labels: str
    quantity: Quantity = "other"
    materials_project: bool = True
    notes: str = ""


def _experimental(labels: str) -> _Facts:
    return _Facts(labels, materials_project=False, notes="Compositions only, as Matbench publishes this task.")


_OFFICIAL = {
    "matbench_dielectric": _Facts("Refractive indices from DFPT (PBE), Petousis et al. 2017, Materials Project."),
    "matbench_jdft2d": _Facts(
        "Exfoliation energies of layered crystals from OptB88vdW DFT, Choudhary et al. 2017, JARVIS-DFT.",
        materials_project=False,
    ),
    "matbench_log_gvrh": _Facts("Shear moduli (VRH) from PBE DFT, de Jong et al. 2015, Materials Project."),
    "matbench_log_kvrh": _Facts("Bulk moduli (VRH) from PBE DFT, de Jong et al. 2015, Materials Project."),
    "matbench_mp_e_form": _Facts(
        "Formation energies from PBE/PBE+U DFT with energy corrections, Materials Project.",
        quantity="energy_per_atom",
    ),
    "matbench_mp_gap": _Facts("Band gaps from PBE DFT, Materials Project."),
    "matbench_mp_is_metal": _Facts("Metal or not by the PBE DFT band structure, Materials Project."),
    "matbench_perovskites": _Facts(
        "Heats of formation from RPBE DFT, Castelli et al. 2012.",
        quantity="energy_per_atom",
        materials_project=False,
        notes="Matbench says eV/unit cell; the numbers behave as eV/atom (same-composition differences "
        "against CHGNet per-atom energies: slope 0.943) and are treated so.",
    ),
    "matbench_phonons": _Facts(
        "Highest optical phonon frequencies from DFPT (PBEsol), Petretto et al. 2018, on structures of the "
        "Materials Project."
    ),
    "matbench_expt_gap": _experimental("Experimental band gaps, Zhuo et al. 2018."),
    "matbench_expt_is_metal": _experimental("Metal or not by experiment, Zhuo et al. 2018."),
    "matbench_glass": _experimental(
        "Fully glass-forming or not by experiment, ternary alloys, Kawazoe et al. 1997 (Landolt-Boernstein)."
    ),
    "matbench_steels": _experimental("Experimental yield strengths of steels, Citrine Informatics."),
}


OFFICIAL_NAMES = tuple(_OFFICIAL)


def task_names() -> list[str]:
    """See `DataFamily`."""
    return [DEMO.name, *OFFICIAL_NAMES]


def official_task(name: str) -> Task:
    """One of Matbench's tasks; target, unit, kind, size and inputs are Matbench's own.

    Raises:
        TaskError: there is no such task.
    """
    if name not in _OFFICIAL:
        raise TaskError(f"Matbench has no task {name!r}: expected one of {', '.join(_OFFICIAL)}")
    facts, published = _OFFICIAL[name], _matbench_metadata()[name]
    kind = cast(Kind, published["task_type"])
    return Task(
        name=name,
        target=str(published["target"]),
        unit="" if published["unit"] in (None, "unitless") else str(published["unit"]),
        kind=kind,
        family="crystals",
        metric=USUAL_METRIC[kind],
        example="crystal",
        groups="composition",
        quantity=facts.quantity,
        labels=facts.labels,
        pretraining_overlap=facts.materials_project,
        official=name,
        n_official=cast(int, published["n_samples"]),
        notes=facts.notes,
        inputs="compositions" if published["input_type"] == "composition" else "structures",
    )


def official_ids(task: Task) -> list[str]:
    """The ids Matbench gives the rows of an official task, in order, such as "mb-phonons-0001"."""
    if task.official is None or task.n_official is None:
        raise TaskError(f"task {task.name!r} is not an official one and has no official ids")
    width = len(str(task.n_official))
    return [f"{id_prefix(task.official)}-{k:0{width}d}" for k in range(1, task.n_official + 1)]


def published_file(name: str) -> tuple[str, str]:
    """Address and sha256 of an official task's file, as published by Matbench's authors."""
    published = orjson.loads((package_folder("matminer") / "datasets" / "dataset_metadata.json").read_bytes())[name]
    return published["url"], published["hash"]


def id_prefix(name: str) -> str:
    """What the ids of an official task begin with: "mb-mp-e-form" for "matbench_mp_e_form"."""
    return name.replace("matbench", "mb").replace("_", "-")


def _matbench_metadata() -> dict[str, dict[str, object]]:
    return orjson.loads((package_folder("matbench") / "matbench_v0.1_dataset_metadata.json").read_bytes())


def package_folder(name: str) -> Path:
    """Folder of an installed package, found without the seconds that importing it takes."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise TaskError(f"the package {name!r} is not installed; install this project's dependencies")
    return Path(spec.origin).parent
