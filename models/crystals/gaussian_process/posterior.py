"""Gaussian process regression: the covariance of crystals, its strengths from data, and the posterior.

Exact for as many data as fit in memory, beyond through inducing points. Sources: Rasmussen & Williams, Gaussian
Processes for Machine Learning (2006), algorithm 2.1, sections 5.4 and 8.3.4 (projected process).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize
from torch import Tensor

Kernel = Literal["matern12", "matern32", "matern52", "rbf"]
Composition = Literal["none", "linear", "pairs", "kernel"]

ROWS_AT_ONCE = 4096  # of what a block of a covariance is computed for
ELEMENTS_AT_ONCE = 50_000_000  # of a covariance of rows
_STEPS = 60  # of the search for strengths
_JITTER = 1e-8  # of the largest variance, so that crystals which are the same to the kernel do no harm
# Of values of mean square 1: strengths in the order of `covariance`; where the search begins and what bounds it.
_START = np.log([1.0, 1.2, 0.3, 0.3, 0.3])
_BOUNDS = np.log([(1e-2, 1e2), (5e-2, 5e1), (1e-3, 1e2), (3e-2, 1e1), (1e-3, 1e1)])


@dataclass(frozen=True)
class Points:
    """Crystals as the kernel sees them: rows of features, one a crystal where they are pooled, or one an atom.

    Attributes:
        features: of all rows, float64, shape (n_rows, 64 or 128).
        fractions: of the elements in each crystal, float64, shape (n, 94).
        rows_of: how many rows each crystal has, int64, shape (n,).
        shares: of each row in its crystal, float64, shape (n_rows,).
    """

    features: Tensor
    fractions: Tensor
    rows_of: Tensor
    shares: Tensor

    def __len__(self) -> int:
        """Number of crystals."""
        return len(self.fractions)

    @property
    def pooled(self) -> bool:
        """Whether each crystal is one row."""
        return len(self.features) == len(self.fractions)

    def at(self, which: np.ndarray | slice) -> Points:
        """Some of them."""
        chosen = torch.arange(len(self))[which] if isinstance(which, slice) else torch.from_numpy(which)
        if self.pooled:
            return Points(self.features[chosen], self.fractions[chosen], self.rows_of[chosen], self.shares[chosen])
        rows_of, first = self.rows_of[chosen], torch.cumsum(self.rows_of, 0) - self.rows_of
        ends = torch.cumsum(rows_of, 0)
        rows = torch.arange(int(rows_of.sum())) + torch.repeat_interleave(first[chosen] - (ends - rows_of), rows_of)
        return Points(self.features[rows], self.fractions[chosen], rows_of, self.shares[rows])

    def summed(self, by_row: Tensor) -> Tensor:
        """Of something about each row its sum over those of a crystal, by their shares; (n_rows, m) to (n, m)."""
        if self.pooled:
            return by_row
        owner = torch.repeat_interleave(torch.arange(len(self)), self.rows_of)
        return by_row.new_zeros(len(self), by_row.shape[1]).index_add(0, owner, by_row * self.shares[:, None])


def normalised(kernel: Kernel, length: Tensor, points: Points) -> Points:
    """The same with shares that make the covariance of each crystal's features with themselves 1."""
    if points.pooled:
        return points
    n = points.rows_of
    pairs = n**2
    owner = torch.repeat_interleave(torch.arange(len(points)), pairs)
    place = torch.arange(len(owner)) - (torch.cumsum(pairs, 0) - pairs)[owner]
    first = (torch.cumsum(n, 0) - n)[owner]
    i, j = first + place // n[owner], first + place % n[owner]
    squared = ((points.features[i] - points.features[j]) ** 2).sum(1) / (length**2 * points.features.shape[1])
    terms = points.shares[i] * points.shares[j] * _of_distance(kernel, squared)
    itself = terms.new_zeros(len(points)).index_add(0, owner, terms)
    return replace(points, shares=points.shares / torch.repeat_interleave(itself.sqrt(), n))


def covariance(kernel: Kernel, composition: Composition, strengths: Tensor, a: Points, b: Points) -> Tensor:
    """Between each of a and each of b, shape (len(a), len(b)): a term of the features, one of the composition.

    That of two crystals with several rows is the mean over pairs of rows, by their shares: the average kernel of De et
    al., Phys. Chem. Chem. Phys. 18, 13754 (2016).

    Args:
        kernel: of the rows of features, and of the composition if that is to have such a one.
        composition: kernel of the element fractions: that of the features; linear in the fractions, or in the products
            of the fractions of each two elements; or none.
        strengths: standard deviation that the features explain, their length (root mean square difference), standard
            deviation that the composition explains, its length (Euclidean), and noise, which is not used here.
        a, b: crystals, `normalised` for that length.
    """
    feature_strength, length, composition_strength, composition_length, _ = strengths
    squared = _squared_distances(a.features, b.features) / (length**2 * a.features.shape[1])
    terms = feature_strength**2 * b.summed(a.summed(_of_distance(kernel, squared)).T).T
    if composition == "kernel":
        squared = _squared_distances(a.fractions, b.fractions) / composition_length**2
        return terms + composition_strength**2 * _of_distance(kernel, squared)
    if composition == "none":
        return terms
    overlap = a.fractions @ b.fractions.T
    return terms + composition_strength**2 * (overlap if composition == "linear" else overlap**2)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return ((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T).clamp_min(0)


def _of_distance(kernel: Kernel, squared: Tensor) -> Tensor:
    if kernel == "rbf":
        return torch.exp(-squared / 2)
    distance = torch.sqrt(squared + 1e-12)  # the square root has no derivative at 0
    if kernel == "matern12":
        return torch.exp(-distance)
    if kernel == "matern32":
        return (1 + 3**0.5 * distance) * torch.exp(-(3**0.5) * distance)
    return (1 + 5**0.5 * distance + 5 / 3 * squared) * torch.exp(-(5**0.5) * distance)


@dataclass(frozen=True)
class Posterior:
    """A Gaussian process given data, through some points: all data, or the inducing ones that stand in.

    Attributes:
        kernel, composition, strengths: see `covariance`; the last float64, shape (5,).
        points: training crystals, or inducing ones, normalised.
        weights: mean at a crystal = covariance with the points @ weights; shape (n_points,).
        through: of inducing points: lower Cholesky factor of 1 + V V' / noise^2, where V is the covariance of points
            and data with the points' own Cholesky factor divided out; float64, (n_points, n_points). None if exact.
    """

    kernel: Kernel
    composition: Composition
    strengths: Tensor
    points: Points
    weights: np.ndarray
    through: np.ndarray | None

    @cached_property
    def factor(self) -> np.ndarray:
        """Lower Cholesky factor of the covariance of the points, with the noise where they are the data."""
        return _factor(self.kernel, self.composition, self.strengths, self.points, noisy=self.through is None)

    def at(self, crystals: Points) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of labels, noise included, float64, shape (n,) each."""
        means, variances = [np.empty(0)], [np.empty(0)]
        feature_strength, _, composition_strength, _, noise = self.strengths.tolist()
        for part in _blocks(crystals, len(self.points.features)):
            block = normalised(self.kernel, self.strengths[1], part)
            cross = covariance(self.kernel, self.composition, self.strengths, self.points, block).numpy()
            means.append(cross.T @ self.weights)
            overlap = (block.fractions**2).sum(1).numpy()
            itself = {"none": 0.0 * overlap, "kernel": overlap**0, "linear": overlap, "pairs": overlap**2}
            variance = feature_strength**2 + composition_strength**2 * itself[self.composition]
            explained = solve_triangular(self.factor, cross, lower=True, overwrite_b=True)
            variance -= (explained**2).sum(0)
            if self.through is not None:
                variance += (solve_triangular(self.through, explained, lower=True) ** 2).sum(0)
            variances.append(np.maximum(variance, 0) + noise**2)
        return np.concatenate(means), np.sqrt(np.concatenate(variances))


def posterior(
    kernel: Kernel, composition: Composition, strengths: Tensor, points: Points, values: np.ndarray
) -> Posterior:
    """Given all data, exactly; time grows with the cube of their number, memory with its square."""
    points = normalised(kernel, strengths[1], points)
    factor = _factor(kernel, composition, strengths, points, noisy=True)
    weights = solve_triangular(factor, solve_triangular(factor, values, lower=True), lower=True, trans="T")
    result = Posterior(kernel, composition, strengths, points, weights, None)
    result.__dict__["factor"] = factor  # the cached property: not computed twice
    return result


def projected_posterior(
    kernel: Kernel,
    composition: Composition,
    strengths: Tensor,
    points: Points,
    values: np.ndarray,
    inducing: np.ndarray,
) -> Posterior:
    """Given all data, through those at the positions `inducing`; memory does not grow with the number of data."""
    stand_in = normalised(kernel, strengths[1], points.at(inducing))
    factor = _factor(kernel, composition, strengths, stand_in, noisy=False)
    noise = float(strengths[4])
    gram, target = np.eye(len(stand_in)), np.zeros(len(stand_in))
    start = 0
    for part in _blocks(points, len(stand_in.features)):
        block = normalised(kernel, strengths[1], part)
        projected_block = (
            solve_triangular(factor, covariance(kernel, composition, strengths, stand_in, block).numpy(), lower=True)
            / noise
        )
        gram += projected_block @ projected_block.T
        target += projected_block @ (values[start : start + len(block)] / noise)
        start += len(block)
    through = cholesky(gram, lower=True, overwrite_a=True)
    inner = solve_triangular(through, solve_triangular(through, target, lower=True), lower=True, trans="T")
    return Posterior(
        kernel, composition, strengths, stand_in, solve_triangular(factor, inner, lower=True, trans="T"), through
    )


def _factor(kernel: Kernel, composition: Composition, strengths: Tensor, points: Points, *, noisy: bool) -> np.ndarray:
    blocks = _blocks(points, len(points.features))
    matrix = torch.cat([covariance(kernel, composition, strengths, points, block) for block in blocks], 1).numpy()
    matrix.flat[:: len(matrix) + 1] += float(strengths[4] ** 2) * noisy + _JITTER * matrix.diagonal().max()
    return cholesky(matrix.T, lower=True, overwrite_a=True, check_finite=False)  # transposed as LAPACK keeps it


def _blocks(points: Points, n_rows: int) -> list[Points]:
    """So many crystals at once that the covariance of their rows with `n_rows` others fits in memory."""
    per_crystal = max(1.0, len(points.features) / max(1, len(points)))
    size = max(1, int(min(ROWS_AT_ONCE, ELEMENTS_AT_ONCE / (per_crystal * max(1, n_rows)))))
    return [points.at(slice(k, k + size)) for k in range(0, len(points), size)]


def likely_strengths(
    kernel: Kernel,
    composition: Composition,
    points: Points,
    values: np.ndarray,
    fixed: Mapping[int, float],
    tell: Callable[[str], None] = lambda _line: None,
) -> Tensor:
    """Strengths of greatest marginal likelihood.

    Args:
        kernel, composition: see `covariance`.
        points: at most some thousand crystals.
        values: of a mean of about zero, shape (n,).
        fixed: strengths that are given, by position in what `covariance` takes.
        tell: takes a line before every step.

    Returns:
        As `covariance` takes them, float64, shape (5,).
    """
    size = max(float(np.sqrt((values**2).mean())), 1e-12)
    units = torch.tensor([size, 1.0, size, 1.0, size], dtype=torch.float64)
    scaled_values = torch.from_numpy(values / size)
    free = [k for k in range(5) if k not in fixed]
    fixed_strengths = torch.tensor([fixed.get(k, 0.0) for k in range(5)], dtype=torch.float64) / units

    def strengths_of(logarithms: Tensor) -> Tensor:
        return fixed_strengths.index_add(0, torch.tensor(free, dtype=torch.int64), torch.exp(logarithms))

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        logarithms = torch.from_numpy(x.copy()).requires_grad_()
        strengths = strengths_of(logarithms)
        normalised_points = normalised(kernel, strengths[1], points)
        matrix = covariance(kernel, composition, strengths, normalised_points, normalised_points)
        matrix = matrix + torch.diag((strengths[4] ** 2 + _JITTER).expand(len(points)))
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed:
            return 1e10, np.zeros(len(free))
        solved = torch.linalg.solve_triangular(factor, scaled_values[:, None], upper=False)
        value = (solved**2).sum() / 2 + torch.log(factor.diagonal()).sum()
        value.backward()
        assert logarithms.grad is not None
        return value.item(), logarithms.grad.numpy()

    step = itertools.count(1)

    def tell_step(_x: np.ndarray | None = None) -> None:
        tell(f"likelihood of {len(points):,} rows, step {next(step)} of at most {_STEPS}")

    tell_step()
    optimum = minimize(
        loss,
        _START[free],
        jac=True,
        method="L-BFGS-B",
        bounds=_BOUNDS[free],
        options={"maxiter": _STEPS},
        callback=tell_step,
    )
    return strengths_of(torch.from_numpy(optimum.x)) * units
