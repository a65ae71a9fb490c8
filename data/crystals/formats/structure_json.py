"""Reads pymatgen's `Structure` as JSON, in a row of a table or a file of its own; no `Structure` is built."""

from __future__ import annotations

from typing import Any

import numpy as np

from data.crystals.crystal import BadCrystalError, ReadCrystal, crystal_of, not_periodic
from data.json_spans import parse_json


def read_structure_json(payload: bytes) -> ReadCrystal:
    """Read the dict that `Structure.as_dict()` gives.

    Raises:
        BadCrystalError: it is no such dict, or one of a structure that is empty, disordered or not periodic in all
            directions, or that holds a dummy, a vacancy or an element beyond Z = 94.
    """
    symbols = []
    try:
        record: Any = parse_json(payload)
        sites = record["sites"]
        for k, site in enumerate(sites):
            species = site["species"]
            if len(species) != 1 or not abs(species[0]["occu"] - 1.0) <= 1e-8:
                content = ", ".join(f"{part['element']} {part['occu']}" for part in species)
                raise BadCrystalError(f"disordered structure: site {k} is {content or 'vacant'!r}")
            symbols.append(str(species[0]["element"]))
        frac_coords = np.array([site["abc"] for site in sites], dtype=np.float64)
        lattice = np.array(record["lattice"]["matrix"], dtype=np.float64)
        pbc = record["lattice"].get("pbc", (True, True, True))
        if not all(pbc):
            raise BadCrystalError(not_periodic(pbc))
        charge = record.get("charge")
    except BadCrystalError:
        raise
    except KeyError as error:
        raise BadCrystalError(f"no key {error}; expected a pymatgen Structure as JSON") from None
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BadCrystalError(f"not a pymatgen Structure as JSON: {error}") from None
    notes = [f"the charge of the structure is left out: {charge}"] if charge else []
    return crystal_of(symbols, frac_coords, lattice, notes)
