"""numba's compiler, with machine code kept between runs and never older than the source.

numba keeps a function's machine code until the function's own file changes, although calls to functions of
other files were compiled into it. So the code is kept in a folder named by a hash of all source files that
could be part of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

_data = Path(__file__).parent
_sources = [path.read_bytes() for path in sorted(_data.glob("*.py"))]
# Few files of models/ hold compiled code; to change another one shall not cost half a minute of compiling.
_others = [path.read_bytes() for path in sorted((_data.parent / "models").glob("*.py"))]
_sources += [source for source in _others if b"data.compiled" in source]
_hash = hashlib.sha256(b"|".join(_sources)).hexdigest()[:16]
# Has to be said before the first function is decorated. A folder of the user's own (NUMBA_CACHE_DIR) is kept to.
_config: Any = numba.config
_config.CACHE_DIR = str(Path(_config.CACHE_DIR or Path(__file__).parent / "__pycache__") / f"compiled-{_hash}")


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as machine code for the types it is called with."""
    return numba.njit(cache=True)(function)


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
