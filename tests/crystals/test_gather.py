"""Rows taken and summed by position: what a GPU computes, on the CPU."""

import pytest
import torch

from models.crystals.chgnet.gather import Positions, _Summed, _Taken, added, summed, taken


@pytest.fixture
def positions() -> Positions:
    """Rows 0 and 4 are not pointed to."""
    return Positions(torch.tensor([3, 1, 3, 2, 3, 1, 5, 2], dtype=torch.int32), 6)


@pytest.mark.parametrize("columns", [(), (3,)])
def test_sums_are_those_of_index_add(positions, columns):
    values = torch.randn(8, *columns, dtype=torch.float64)
    torch.testing.assert_close(_Summed.apply(values, positions), summed(values, positions))
    rows = torch.randn(6, *columns, dtype=torch.float64)
    torch.testing.assert_close(rows + _Summed.apply(values, positions), added(rows, values, positions))


@pytest.mark.parametrize("columns", [(), (3,)])
def test_each_is_the_gradient_of_the_other(positions, columns):
    rows = torch.randn(6, *columns, dtype=torch.float64, requires_grad=True)
    values = torch.randn(8, *columns, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: _Taken.apply(x, positions), rows)
    assert torch.autograd.gradcheck(lambda x: _Summed.apply(x, positions), values)
    torch.testing.assert_close(_Taken.apply(rows, positions), taken(rows, positions))


def test_nothing_can_be_summed():
    nothing = Positions(torch.empty(0, dtype=torch.int32), 2)
    assert _Summed.apply(torch.empty(0, 3), nothing).tolist() == [[0.0] * 3] * 2
