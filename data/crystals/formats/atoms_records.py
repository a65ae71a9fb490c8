"""Writes and reads crystals as JSON in the layout of JARVIS's `Atoms.to_dict()`, which is of lists.

JARVIS publishes its databases so; readers that parse structures themselves (`data/crystals/layouts/ase_files.py`,
`data/crystals/layouts/vasp_runs.py`) hand them on so, and in the stead of one that cannot be used, the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from data.crystals.crystal import BadCrystalError, Crystal, ReadCrystal, crystal_of, fractional
from data.json_spans import parse_json

_REASON = "unusable"


def atoms_record(elements: Sequence[str], frac_coords: np.ndarray, lattice: np.ndarray) -> bytes:
    """Writes the JSON of a crystal.

    Args:
        elements: symbols, one an atom.
        frac_coords: shape (n_atoms, 3).
        lattice: vectors in its rows, Angstrom, shape (3, 3).
    """
    record = {
        "elements": list(elements),
        "coords": np.asarray(frac_coords, dtype=np.float64).tolist(),
        "cartesian": False,
        "lattice_mat": np.asarray(lattice, dtype=np.float64).tolist(),
    }
    return orjson.dumps(record)


def unusable_record(reason: str) -> bytes:
    """Stands for a structure that cannot be used, and holds the reason that the quarantine gives."""
    return orjson.dumps({_REASON: reason})


def is_unusable(payload: bytes) -> bool:
    """Says whether this is a record of `unusable_record`, which may stand for a structure of any format."""
    return payload.startswith(b'{"%s":' % _REASON.encode())


def read_atoms_record(payload: bytes) -> ReadCrystal:
    """Reads the JSON of one crystal.

    Raises:
        BadCrystalError: it is not in JARVIS's layout, or names something that is no element up to Pu.
    """
    try:
        record: Any = parse_json(payload)
        if _REASON in record:
            raise BadCrystalError(record[_REASON])
        elements = [str(element).strip() for element in record["elements"]]
        coords = np.array(record["coords"], dtype=np.float64)
        lattice = np.array(record["lattice_mat"], dtype=np.float64)
        cartesian = record["cartesian"]
    except KeyError as error:
        raise BadCrystalError(
            f"no key {error}; expected JARVIS's elements, coords, cartesian and lattice_mat"
        ) from None
    except BadCrystalError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise BadCrystalError(f"not a structure in JARVIS's layout: {error}") from None
    if not isinstance(cartesian, (bool, int)):
        raise BadCrystalError(f"'cartesian' is {cartesian!r}; expected true or false")
    reading = crystal_of(elements, coords, lattice)
    if not cartesian:
        return reading
    return ReadCrystal(Crystal(reading.crystal.numbers, fractional(coords, lattice), lattice), reading.notes)
