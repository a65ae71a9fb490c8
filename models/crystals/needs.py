"""What trials of crystals read of a task; spaces of equal needs share their rows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CrystalNeeds:
    """What trials read of a task.

    Attributes:
        structures: whether they read graphs, and not the composition alone.
        weights: of CHGNet, whose cutoffs graphs are made for; its output is read unless they are random.
        corrections: whether any trial asks for the energy corrections of the Materials Project.
    """

    structures: bool
    weights: str
    corrections: bool
