"""What a trial is given: the fields of its model's config, with `model` and `fold`.

TensorBoard's HParams shows what stands at the top of a trial's config. So the fields of a search are there; those of
what is trained to the end, which were chosen and not searched, stand one level deeper, under `run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def not_searched(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's config with fields that were chosen, not searched."""
    return {"run": dict(fields)}


def fields_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in a trial's config, of whichever kind it is."""
    return dict(config.get("run", config))
