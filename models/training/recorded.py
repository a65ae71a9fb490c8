"""A batch's forward and backward pass on a GPU as one CUDA graph, recorded once for every size of a batch.

A small batch leaves a GPU idle: a step of CHGNet is some 1,500 short kernels, and starting them one by one from Python
takes many times as long as they do. A recorded pass is started by one call. It always reads and writes the same memory,
so that batches are padded to one of a few sizes (`models/training/inputs.py`).

Source: "CUDA Graphs", PyTorch's notes on CUDA semantics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.config import GradientConfig
from models.training.inputs import Inputs, RecordableInputs
from models.training.objective import Objective


@dataclass(frozen=True)
class _Recording:
    """A pass over a batch of one size, and the memory in which it expects its input and leaves its loss."""

    graph: torch.cuda.CUDAGraph
    batch: Any
    goals: Tensor
    offset: Tensor
    loss: Tensor


class RecordedPasses:
    """Passes of one training run; gradients are left where the parameters have them."""

    def __init__(
        self,
        config: GradientConfig,
        network: nn.Module,
        objective: Objective,
        gradients: list[Tensor],
        train: np.ndarray,
        inputs_of: Callable[[int], Inputs],
    ) -> None:
        """Record nothing yet.

        Args:
            config: of the run.
            network: that trains.
            objective: of the run.
            gradients: of all parameters, to set to zero before each pass.
            train: training rows.
            inputs_of: what the run trains on in an epoch.
        """
        self.config, self.network, self.objective, self.gradients = config, network, objective, gradients
        self.train, self.inputs_of = train, inputs_of
        self.device = objective.device
        self.on = self.device.type == "cuda"  # while memory suffices
        self.recordings: dict[tuple[int, ...], _Recording] = {}
        self.typical: tuple[float, ...] | None = None
        self.pool: tuple[int, int] | None = None

    def backward(self, inputs: Inputs, which: np.ndarray, key: int) -> float | None:
        """The loss of a batch, whose gradient is then there.

        None where it has to be computed otherwise: on a CPU, of inputs that cannot be padded, in several passes, or for
        want of the memory that padding takes.

        Args:
            inputs: to take the batch from.
            which: its rows, int64.
            key: changes whenever other parameters train.
        """
        if not self.on or not isinstance(inputs, RecordableInputs) or len(inputs.passes(which)) > 1:
            return None
        try:
            return self._run(inputs, which, *self.objective.expected(which), key)
        except torch.OutOfMemoryError:
            self.on = False
            self.recordings.clear()
        torch.cuda.empty_cache()  # outside the except clause, whose traceback keeps tensors alive
        return None

    def _run(self, inputs: RecordableInputs, which: np.ndarray, goals: Tensor, offset: Tensor, key: int) -> float:
        if self.typical is None:
            self.typical = self._typical_size()
        padded_batch, level = inputs.padded(inputs.on_cpu(which), self.typical)
        size = (key, level, len(which))
        if size not in self.recordings:
            self.recordings[size] = self._record(padded_batch.to(self.device), goals.clone(), offset.clone())
        recording = self.recordings[size]
        for field in fields(padded_batch):
            getattr(recording.batch, field.name).copy_(getattr(padded_batch, field.name))
        recording.goals.copy_(goals)
        recording.offset.copy_(offset)
        recording.graph.replay()
        return float(recording.loss)

    def _typical_size(self) -> tuple[float, ...]:
        """Mean size of the first batches, which are the same in a run that was resumed."""
        inputs = self.inputs_of(1)
        assert isinstance(inputs, RecordableInputs)
        order = np.random.default_rng([self.config.seed, 1]).permutation(len(self.train))
        rows = self.train[order][: 8 * self.config.batch_size]
        share = min(self.config.batch_size, len(rows)) / len(rows)
        return tuple(share * number for number in inputs.size(rows))

    def _record(self, batch: Any, goals: Tensor, offset: Tensor) -> _Recording:
        # Once as usual, so that libraries set themselves up; on another stream, as recording is.
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            self._pass(batch, goals, offset)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        # One pool for all recordings: only one is replayed at a time.
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # Ray has threads of its own, which may do what they like meanwhile.
            with torch.cuda.graph(graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
                loss = self._pass(batch, goals, offset)
        except RuntimeError as problem:
            if isinstance(problem.__context__, torch.OutOfMemoryError):  # then the recording could not be ended either
                raise problem.__context__ from None
            raise
        return _Recording(graph, batch, goals, offset, loss)

    def _pass(self, batch: Any, goals: Tensor, offset: Tensor) -> Tensor:
        for gradient in self.gradients:
            gradient.zero_()
        loss = self.objective.mean_loss(self.network(batch), goals, offset)
        loss.backward()
        return loss.detach()
