"""Passes that are recorded on a GPU: here with a pass made anew in the place of each recording; see test_gpu.py."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_cases import fine_tuning, finished, numbers, sample

from models.training.recorded import RecordedPasses


def recording(self, batch, goals, offset):
    """As `RecordedPasses._record`, but that it runs in Python."""
    loss = torch.zeros(())
    graph = SimpleNamespace(replay=lambda: loss.copy_(self._pass(batch, goals, offset)))
    return SimpleNamespace(batch=batch, goals=goals, offset=offset, loss=loss, graph=graph)


@pytest.mark.parametrize(
    "fields",
    [
        {"averaging": "ema", "refit_reference": True},
        {"unfreeze_every": 1, "layer_decay": 0.5},
        {"jitter": 0.01},
        {"mixup": True},  # whose batches are mixed are not recorded
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_training_by_padded_passes_is_the_same_but_for_rounding(monkeypatch, fields):
    data = sample(48, small=True)
    run, other = (fine_tuning(data, freeze_depth="full", epochs=3, lr=1e-4, **fields) for _ in range(2))
    monkeypatch.setattr(RecordedPasses, "_record", recording)
    run.recorded.on = True
    np.testing.assert_allclose(numbers(finished(run)), numbers(finished(other)), rtol=0, atol=1e-6)
    assert 1 < len(run.recorded.recordings) < 12  # of 12 batches
    assert not other.recorded.recordings


def test_where_memory_does_not_suffice_passes_are_as_without(monkeypatch):
    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory, as a test asked for")

    data, fields = sample(48, small=True), {"freeze_depth": "full", "epochs": 2}
    run = fine_tuning(data, **fields)
    monkeypatch.setattr(RecordedPasses, "_record", no_memory)
    run.recorded.on = True
    np.testing.assert_array_equal(numbers(finished(run)), numbers(finished(fine_tuning(data, **fields))))
    assert not run.recorded.on
