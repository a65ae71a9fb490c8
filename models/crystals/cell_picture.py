"""Draws a unit cell as SVG, for the list of the worst crystals of a report."""

from __future__ import annotations

import warnings
from functools import cache
from html import escape

import numpy as np

from data.crystals.crystal import Crystal
from data.crystals.elements import SYMBOLS
from models.crystals.chemical_families import NONMETALS


@cache
def _look(number: int) -> tuple[float, str, str]:
    """Radius (Angstrom), fill, and colour of the letters of an element, as Jmol has them."""
    from pymatgen.core import Element
    from pymatviz.colors import ELEM_COLORS_JMOL

    red, green, blue = (float(part) for part in ELEM_COLORS_JMOL.get(SYMBOLS[number], (0.6, 0.6, 0.6)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some elements have no radius
        radius = Element.from_Z(number).atomic_radius
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
    fill = "#" + "".join(f"{round(255 * part):02x}" for part in (red, green, blue))
    return float(radius or 1.5), fill, "#fff" if dark else "#000"


def cell_picture(crystal: Crystal, size: int = 104) -> str:
    """A unit cell seen almost along its a axis, c upwards, as SVG; atoms on its faces are drawn on both sides.

    Args:
        crystal: what to draw.
        size: of the square picture, in pixels.
    """
    lattice = crystal.lattice
    up = lattice[2] / np.linalg.norm(lattice[2])
    front = lattice[0] - (lattice[0] @ up) * up
    front /= np.linalg.norm(front)
    view = front + 0.35 * np.cross(up, front) + 0.25 * up  # towards the eye
    view /= np.linalg.norm(view)
    right = np.cross(up, view)
    right /= np.linalg.norm(right)
    axes = np.stack([right, -np.cross(view, right), view], axis=1)  # the screen's y points down

    inside = crystal.frac_coords % 1.0
    inside[inside > 0.999] = 0.0
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=float)
    shifts = corners if len(inside) <= 40 else corners[:1]
    images = (inside[:, None] + shifts).reshape(-1, 3)
    numbers = np.repeat(crystal.numbers, len(shifts))
    is_drawn = (images < 1.001).all(axis=1)
    atoms, numbers = images[is_drawn] @ lattice @ axes, numbers[is_drawn]
    box = corners @ lattice @ axes

    margin = 1.1
    low = np.minimum(atoms.min(axis=0), box.min(axis=0))[:2] - margin
    high = np.maximum(atoms.max(axis=0), box.max(axis=0))[:2] + margin
    scale = size / (high - low).max()
    offset = (size - (high - low) * scale) / 2 - low * scale

    edges = [(a, b) for a in range(8) for b in range(a + 1, 8) if np.abs(corners[a] - corners[b]).sum() == 1]
    lines = [
        (min(box[a, 2], box[b, 2]), _line(box[a, :2] * scale + offset, box[b, :2] * scale + offset, "#8a8a8a", 0.8))
        for a, b in edges
    ]
    for position, number in zip(atoms, numbers, strict=True):
        (x, y), (radius, fill, ink) = position[:2] * scale + offset, _look(int(number))
        r = (0.3 + 0.3 * radius) * scale  # small ones larger than they are, to be seen
        ball = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill="{fill}" stroke="#333" stroke-width=".6"/>'
        if r > 5:
            ball += (
                f'<text x="{x:.1f}" y="{y + 0.34 * r:.1f}" fill="{ink}" font-size="{r:.1f}">{SYMBOLS[number]}</text>'
            )
        lines.append((position[2], ball))
    for a, b in _bonds(atoms, numbers):
        # A little behind the farther atom's centre, so that the balls cover its ends.
        ends = atoms[a, :2] * scale + offset, atoms[b, :2] * scale + offset
        lines.append((min(atoms[a, 2], atoms[b, 2]) - 1e-3, _line(*ends, "#b5b5b5", max(1.2, 0.16 * scale))))
    formula = escape(" ".join(sorted({SYMBOLS[number] for number in crystal.numbers.tolist()})))
    shapes = "".join(text for _, text in sorted(lines))
    return (
        f'<svg class="crystal" viewBox="0 0 {size} {size}" width="{size}" height="{size}" role="img" '
        f'aria-label="unit cell of {formula}" text-anchor="middle">{shapes}</svg>'
    )


def _line(start: np.ndarray, end: np.ndarray, colour: str, width: float) -> str:
    x1, y1, x2, y2 = (f"{value:.1f}" for value in (*start, *end))
    return f'<path d="M{x1} {y1}L{x2} {y2}" stroke="{colour}" stroke-width="{width:.1f}"/>'


def _bonds(atoms: np.ndarray, numbers: np.ndarray) -> list[tuple[int, int]]:
    """Drawn atoms that are at most 1.2 times the sum of their radii apart, one of them a nonmetal."""
    radii = np.array([_look(int(number))[0] for number in numbers])
    nonmetal = np.array([SYMBOLS[number] in NONMETALS for number in numbers])
    apart = np.linalg.norm(atoms[:, None] - atoms[None], axis=-1)
    near = (apart < 1.2 * (radii[:, None] + radii)) & (nonmetal[:, None] | nonmetal) & (apart > 0.1)
    return [(int(a), int(b)) for a, b in zip(*np.nonzero(np.triu(near)), strict=True)]
