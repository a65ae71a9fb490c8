"""numba's compiler, with machine code kept between runs and never older than the source.

numba keeps a function's machine code until the function's own file changes, although calls to functions of
other files were compiled into it. So the code is kept in a folder named by a hash of all source files that
could be part of it: beside the source, or where that cannot be written to, in the cache folder.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
import numpy as np

from data.machine.module_files import importers, module_files
from data.stores.faults import StorageError
from data.stores.places import default_cache

# Whatever holds compiled code, and all that it imports, whose functions and numbers become part of the machine code.
# To change another file shall not cost half a minute of compiling.
_sources = [file.read_bytes() for file in module_files([__name__, *importers(__name__)])]
_hash = hashlib.sha256(b"|".join(_sources)).hexdigest()[:16]
_config: Any = numba.config


def _folder() -> Path | None:
    """Where machine code is kept: in a folder of the user's own (NUMBA_CACHE_DIR), or the first that can be."""
    folders = [Path(_config.CACHE_DIR or Path(__file__).parent / "__pycache__")]
    with suppress(StorageError):  # none is known; who needs it for more than this is told so
        folders.append(default_cache() / "kernels")
    for folder in folders:
        with suppress(OSError):
            code_folder = folder / f"compiled-{_hash}"
            code_folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=code_folder).close()
            return code_folder
    logging.getLogger(__name__).warning(
        "Neither %s can be written to: every process compiles the kernels for itself, which takes half a minute. Set "
        "MATSWEEP_CACHE to a folder that is yours to write to",
        " nor ".join(map(str, folders)),
    )
    return None


# Has to be said before the first function is decorated.
_config.CACHE_DIR = str(_folder() or "")
KEPT = bool(_config.CACHE_DIR)  # whether there is a place for machine code


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as machine code for the types it is called with."""
    return numba.njit(cache=KEPT)(function)


def read_only(array: np.ndarray) -> np.ndarray:
    """The array as Ray's object store gives it: numba compiles anew for arrays that can be written to."""
    view = array.view()
    view.flags.writeable = False
    return view


@compiled
def longer(array: np.ndarray, n_rows: int) -> np.ndarray:
    """A copy of a two-dimensional array with room for `n_rows` rows.

    For use in compiled functions: to assign to a slice takes numba seconds to compile.
    """
    copy = np.empty((n_rows, array.shape[1]), dtype=array.dtype)
    for i in range(len(array)):
        for k in range(array.shape[1]):
            copy[i, k] = array[i, k]
    return copy
