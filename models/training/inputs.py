"""What the training loop asks of a model's rows: batches for its network, in passes that fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

T = TypeVar("T")


class Inputs(Protocol):
    """Rows that a network can be fed with, in batches."""

    def batch(self, which: np.ndarray) -> Any:
        """A batch of the rows at the positions `which`, int64, shape (n,)."""
        ...

    def passes(self, which: np.ndarray) -> list[np.ndarray]:
        """`which` in runs small enough for one pass."""
        ...


@runtime_checkable
class RecordableInputs(Inputs, Protocol):
    """Inputs whose batches have sizes of their own and can be padded, so that a pass can be recorded on a GPU."""

    def on_cpu(self, which: np.ndarray) -> Any:
        """The batch of the rows at `which`, a dataclass of tensors that are not yet on the device."""
        ...

    def size(self, which: np.ndarray) -> tuple[float, ...]:
        """How many rows of each kind the batch of the rows at `which` has."""
        ...

    def padded(self, batch: Any, typical: tuple[float, ...]) -> tuple[Any, int]:
        """The batch with more rows, which count for nothing; its size is one of a few, and comes with its number.

        Args:
            batch: on the CPU.
            typical: size that the few are made from.
        """
        ...


@dataclass(frozen=True)
class Mix:
    """How the rows of a batch are mixed in pairs (`GradientConfig.mixup`).

    Attributes:
        partner: position of each row's partner in the batch, int64, shape (n,).
        share: of the row itself, 0.5 to 1; the partner has the rest.
        generator: of the random choices that a network makes in mixing, on the CPU.
    """

    partner: Tensor
    share: float
    generator: torch.Generator


def predict(network: nn.Module, inputs: Inputs, which: np.ndarray) -> np.ndarray:
    """The network's output for the rows at `which`, float64, shape (n, ...), in evaluation mode."""
    network.eval()

    def compute(run: np.ndarray) -> np.ndarray:
        return network(inputs.batch(run)).double().cpu().numpy()

    with torch.inference_mode():
        outputs = by_pass(compute, inputs.passes(which))
    return np.concatenate(outputs) if outputs else np.empty(0)


def by_pass(compute: Callable[[np.ndarray], T], passes: Sequence[np.ndarray]) -> list[T]:
    """What there is to compute of each pass, in order; one for which memory runs out is computed in halves.

    Raises:
        torch.OutOfMemoryError: one row alone does not fit.
    """
    remaining, results = list(reversed(passes)), []
    while remaining:
        run = remaining.pop()
        try:
            results.append(compute(run))
            continue
        except torch.OutOfMemoryError:
            if len(run) == 1:
                raise
        torch.cuda.empty_cache()  # outside the except clause, whose traceback keeps tensors alive
        remaining += reversed(np.array_split(run, 2))
    return results
