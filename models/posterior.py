"""Gaussian process regression: the covariance of crystals, its strengths from data, and the posterior.

Exact for as many data as fit in memory, beyond through inducing points. Sources: Rasmussen & Williams, Gaussian
Processes for Machine Learning (2006), algorithm 2.1, sections 5.4 and 8.3.4 (projected process).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
_STEPS = 60  # of the search for strengths
_JITTER = 1e-8  # of the largest variance, so that crystals which are the same to the kernel do no harm
# Of values of mean square 1: strengths in the order of `covariance`; where the search begins and what bounds it.
_START = np.log([1.0, 1.2, 0.3, 0.3, 0.3])
_BOUNDS = np.log([(1e-2, 1e2), (5e-2, 5e1), (1e-3, 1e2), (3e-2, 1e1), (1e-3, 1e1)])


@dataclass(frozen=True)
class Points:
    """Crystals as the kernel sees them, float64: pooled features, shape (n, 64 or 128), and fractions, (n, 94)."""

    features: Tensor
    fractions: Tensor

    def __len__(self) -> int:
        """Number of crystals."""
        return len(self.features)

    def at(self, which: np.ndarray | slice) -> Points:
        """Some of them."""
        chosen = which if isinstance(which, slice) else torch.from_numpy(which)
        return Points(self.features[chosen], self.fractions[chosen])


def covariance(kernel: Kernel, composition: Composition, strengths: Tensor, a: Points, b: Points) -> Tensor:
    """Between each of a and each of b, shape (len(a), len(b)): a term of the pooled features, one of the composition.

    Args:
        kernel: of the pooled features, and of the composition if that is to have such a one.
        composition: kernel of the element fractions: that of the features; linear in the fractions, or in the products
            of the fractions of each two elements; or none.
        strengths: standard deviation that the features explain, their length (root mean square difference), standard
            deviation that the composition explains, its length (Euclidean), and noise, which is not used here.
        a, b: crystals.
    """
    feature_strength, length, composition_strength, composition_length, _ = strengths
    squared = _squared_distances(a.features, b.features) / (length**2 * a.features.shape[1])
    terms = feature_strength**2 * _of_distance(kernel, squared)
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
        points: training crystals, or inducing ones.
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
        for block in _blocks(crystals):
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
    factor = _factor(kernel, composition, strengths, points, noisy=True)
    weights = solve_triangular(factor, solve_triangular(factor, values, lower=True), lower=True, trans="T")
    found = Posterior(kernel, composition, strengths, points, weights, None)
    found.__dict__["factor"] = factor  # the cached property: not computed twice
    return found


def projected_posterior(
    kernel: Kernel,
    composition: Composition,
    strengths: Tensor,
    points: Points,
    values: np.ndarray,
    inducing: np.ndarray,
) -> Posterior:
    """Given all data, through those at the positions `inducing`; memory does not grow with the number of data."""
    stand_in = points.at(inducing)
    factor = _factor(kernel, composition, strengths, stand_in, noisy=False)
    noise = float(strengths[4])
    gram, target = np.eye(len(stand_in)), np.zeros(len(stand_in))
    done = 0
    for block in _blocks(points):
        seen = (
            solve_triangular(factor, covariance(kernel, composition, strengths, stand_in, block).numpy(), lower=True)
            / noise
        )
        gram += seen @ seen.T
        target += seen @ (values[done : done + len(block)] / noise)
        done += len(block)
    through = cholesky(gram, lower=True, overwrite_a=True)
    inner = solve_triangular(through, solve_triangular(through, target, lower=True), lower=True, trans="T")
    return Posterior(
        kernel, composition, strengths, stand_in, solve_triangular(factor, inner, lower=True, trans="T"), through
    )


def _factor(kernel: Kernel, composition: Composition, strengths: Tensor, points: Points, *, noisy: bool) -> np.ndarray:
    matrix = covariance(kernel, composition, strengths, points, points).numpy()
    matrix.flat[:: len(matrix) + 1] += float(strengths[4] ** 2) * noisy + _JITTER * matrix.diagonal().max()
    return cholesky(matrix.T, lower=True, overwrite_a=True, check_finite=False)  # transposed as LAPACK keeps it


def _blocks(points: Points) -> list[Points]:
    return [points.at(slice(k, k + ROWS_AT_ONCE)) for k in range(0, len(points), ROWS_AT_ONCE)]


def likely_strengths(
    kernel: Kernel, composition: Composition, points: Points, values: np.ndarray, fixed: Mapping[int, float]
) -> Tensor:
    """Strengths of greatest marginal likelihood.

    Args:
        kernel, composition: see `covariance`.
        points: at most some thousand crystals.
        values: of a mean of about zero, shape (n,).
        fixed: strengths that are given, by position in what `covariance` takes.

    Returns:
        As `covariance` takes them, float64, shape (5,).
    """
    size = max(float(np.sqrt((values**2).mean())), 1e-12)
    units = torch.tensor([size, 1.0, size, 1.0, size], dtype=torch.float64)
    wanted = torch.from_numpy(values / size)
    free = [k for k in range(5) if k not in fixed]
    given = torch.tensor([fixed.get(k, 0.0) for k in range(5)], dtype=torch.float64) / units

    def strengths_of(logarithms: Tensor) -> Tensor:
        return given.index_add(0, torch.tensor(free, dtype=torch.int64), torch.exp(logarithms))

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        logarithms = torch.from_numpy(x.copy()).requires_grad_()
        strengths = strengths_of(logarithms)
        matrix = covariance(kernel, composition, strengths, points, points)
        matrix = matrix + torch.diag((strengths[4] ** 2 + _JITTER).expand(len(points)))
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed:
            return 1e10, np.zeros(len(free))
        solved = torch.linalg.solve_triangular(factor, wanted[:, None], upper=False)
        value = (solved**2).sum() / 2 + torch.log(factor.diagonal()).sum()
        value.backward()
        assert logarithms.grad is not None
        return value.item(), logarithms.grad.numpy()

    found = minimize(loss, _START[free], jac=True, method="L-BFGS-B", bounds=_BOUNDS[free], options={"maxiter": _STEPS})
    return strengths_of(torch.from_numpy(found.x)) * units
