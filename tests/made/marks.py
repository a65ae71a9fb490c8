"""Cases of parametrised tests that one command alone runs; no fixture, no test."""

from __future__ import annotations

import pytest


def whole_only(*cases: object) -> list:
    """Cases of a parametrised test, each a value or a tuple of values, that `make test-all` alone runs."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.whole) for case in cases]
