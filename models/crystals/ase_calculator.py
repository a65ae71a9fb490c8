"""A trained model as an ASE calculator, where its target is an energy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from pymatgen.io.ase import AseAtomsAdaptor

from data.crystals.crystal import BadCrystalError
from data.metrics import TRUSTED
from models.fitted import FittedModel, SeedEnsemble


class EnergyCalculator(Calculator):
    """Energies of `ase.Atoms` by a trained model; in eV for the whole cell.

    What the energy is of is what the model was trained on: one trained on formation energies gives formation energies
    from the elements, so that energies of two compositions differ by another constant than DFT's total energies do.
    `results["energy_std"]` is the model's own uncertainty, where it has one, and `results["trust"]` says how near the
    atoms are to what was trained on; the first energy whose trust is below 0.5 comes with a warning. There are no
    forces: these models are trained on energies of relaxed crystals alone.
    """

    implemented_properties = ["energy"]  # noqa: RUF012 - as ASE declares it

    def __init__(self, model: FittedModel | SeedEnsemble, **kwargs: Any) -> None:
        """Wrap a model.

        Raises:
            ValueError: its target is no energy.
        """
        super().__init__(**kwargs)
        self.quantity = model.about.get("quantity", "unknown")
        if self.quantity not in ("energy_per_atom", "energy_per_cell"):
            raise ValueError(
                f"the model predicts {model.about['target']} of {model.about['task']}, whose quantity is "
                f"{self.quantity}: no energy, and so no ASE calculator"
            )
        self.model = model
        self.has_warned = False

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """ASE calls this; raises BadCrystalError for atoms that are no crystal, or that the model cannot read."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        if self.atoms.cell.rank < 3 or not self.atoms.pbc.all():
            raise BadCrystalError(
                f"the model reads crystals, periodic along three cell vectors; these atoms have {self.atoms.cell.rank} "
                f"and pbc {self.atoms.pbc.tolist()}. Set atoms.cell, for a slab or a molecule with vacuum in it, and "
                "atoms.pbc = True"
            )
        prediction = self.model.predict_with_std([AseAtomsAdaptor.get_structure(self.atoms)])
        n_atoms = len(self.atoms) if self.quantity == "energy_per_atom" else 1
        self.results = {"energy": float(prediction.values[0]) * n_atoms}
        if prediction.std is not None:
            self.results["energy_std"] = float(prediction.std[0]) * n_atoms
        if prediction.trust is None:
            return
        self.results["trust"] = trust = float(prediction.trust[0])
        if trust < TRUSTED and not self.has_warned:
            self.has_warned = True
            warnings.warn(
                f"the energy of {self.atoms.get_chemical_formula()} is not to be trusted (trust {trust:.2g}, below "
                f"{TRUSTED}): its atoms, or the prediction, are far from what the model was trained on. Later ones are "
                'marked in results["trust"] alone',
                UserWarning,
                stacklevel=2,
            )
