"""A batch's forward and backward pass on a GPU as one CUDA graph, recorded once for every size of a batch.

Small crystals leave a GPU idle: a step is some 1,500 short kernels, and starting them one by one from Python takes many
times as long as they do. A recorded pass is started by one call. It always reads and writes the same memory, so that
batches are padded to one of a few sizes (`data.batches.padded`).

Source: "CUDA Graphs", PyTorch's notes on CUDA semantics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from data.batches import BatchSize, GraphBatch, padded

GROWTH = 1.2  # from one size to the next


@dataclass(frozen=True)
class _Recording:
    """A pass over a batch of one size, and the memory in which it expects its input and leaves its loss."""

    graph: torch.cuda.CUDAGraph
    batch: GraphBatch
    wanted: Tensor
    offset: Tensor
    loss: Tensor


class RecordedPasses:
    """Passes of one training run; gradients are added up where the parameters have them."""

    def __init__(
        self,
        loss: Callable[[GraphBatch, Tensor, Tensor], Tensor],
        gradients: list[Tensor],
        device: torch.device,
        typical: BatchSize,
    ) -> None:
        """Record nothing yet.

        Args:
            loss: of a batch, given what is wanted of its graphs and the offset to add to their outputs, both float32
                of shape (n_graphs,).
            gradients: to set to zero before each pass.
            device: a GPU.
            typical: size of a batch of so many graphs as most have.
        """
        self.loss, self.gradients, self.device, self.typical = loss, gradients, device, typical
        self.recordings: dict[tuple[int, ...], _Recording] = {}
        self.pool = torch.cuda.graph_pool_handle()  # one for all: only one is replayed at a time

    def run(self, batch: GraphBatch, wanted: Tensor, offset: Tensor, key: int) -> float:
        """The loss of a batch, whose gradient is then in `gradients`.

        Args:
            batch: on the CPU.
            wanted: on the GPU, float32, shape (n_graphs,).
            offset: of the outputs, likewise.
            key: changes whenever other parameters train.

        Raises:
            torch.OutOfMemoryError: it does not fit.
        """
        size, level = size_above(batch.size, self.typical)
        filled = padded(batch, size)
        which = (key, level, batch.n_graphs)
        if which not in self.recordings:
            self.recordings[which] = self._record(filled.to(self.device), wanted.clone(), offset.clone())
        recording = self.recordings[which]
        for field in fields(GraphBatch):
            getattr(recording.batch, field.name).copy_(getattr(filled, field.name))
        recording.wanted.copy_(wanted)
        recording.offset.copy_(offset)
        recording.graph.replay()
        return float(recording.loss)

    def _record(self, batch: GraphBatch, wanted: Tensor, offset: Tensor) -> _Recording:
        # Once as usual, so that libraries set themselves up; on another stream, as recording is.
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            self._pass(batch, wanted, offset)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Ray has threads of its own, which may do what they like meanwhile.
            with torch.cuda.graph(graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
                loss = self._pass(batch, wanted, offset)
        except RuntimeError as problem:
            if isinstance(problem.__context__, torch.OutOfMemoryError):  # then the recording could not be ended either
                raise problem.__context__ from None
            raise
        return _Recording(graph, batch, wanted, offset, loss)

    def _pass(self, batch: GraphBatch, wanted: Tensor, offset: Tensor) -> Tensor:
        for gradient in self.gradients:
            gradient.zero_()
        loss = self.loss(batch, wanted, offset)
        loss.backward()
        return loss.detach()


def size_above(size: BatchSize, typical: BatchSize) -> tuple[BatchSize, int]:
    """The smallest of the sizes that has room for a batch, and its number.

    A size is the typical one times a power of `GROWTH`; all its numbers grow together, so that there are few sizes.
    """
    have, common = np.maximum(np.array(size), 1), np.maximum(np.array(typical), 1.0)
    level = math.ceil(math.log(np.max(have / common)) / math.log(GROWTH) - 1e-9)
    rows = np.ceil(common * GROWTH**level).astype(int)
    return BatchSize(*np.maximum(rows, have).tolist()), level
