"""What other people's code imports of matsweep: trained models, finished sweeps, and a calculator for ASE.

    from matsweep import EnergyCalculator, load_model, load_sweep

Its own code lies in the packages `data`, `models` and `tune`, whose names are common: importing this module says which
folder hides one of them.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.crystals.ase_calculator import EnergyCalculator
    from models.fitted import load_model
    from tune.runs import load_sweep

__all__ = ["EnergyCalculator", "load_model", "load_sweep"]

_MODULES = {
    "EnergyCalculator": "models.crystals.ase_calculator",
    "load_model": "models.fitted",
    "load_sweep": "tune.runs",
}


def _refuse_namesakes() -> None:
    """Raise an ImportError that names the folder which Python takes for one of our packages."""
    root = Path(__file__).resolve().parent.parent
    for package in ("data", "models", "tune"):
        spec = importlib.util.find_spec(package)
        places = [spec.origin, *(spec.submodule_search_locations or [])] if spec else []
        folders = [Path(place).resolve() for place in places if place]
        if not any(folder.is_relative_to(root / package) for folder in folders):
            raise ImportError(
                f"{folders[0] if folders else 'nothing'} is what Python takes for matsweep's own package {package!r}, "
                f"which is {root / package}: rename yours, or start Python in another folder"
            )


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: torch takes seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module 'matsweep' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_MODULES[name]), name)


_refuse_namesakes()
