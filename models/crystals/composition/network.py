"""A network for a crystal's property from its composition alone: attention between its elements."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from pymatgen.core import Element
from torch import Tensor, nn
from torch.nn import functional

from models.training.inputs import Mix

N_ELEMENTS = 94
_HEADS = 4
_FREQUENCIES = 8
_PROPERTIES = (
    "Z",
    "row",
    "group",
    "X",
    "atomic_radius",
    "atomic_radius_calculated",
    "average_ionic_radius",
    "van_der_waals_radius",
    "mendeleev_no",
    "melting_point",
    "boiling_point",
    "molar_volume",
    "thermal_conductivity",
    "electron_affinity",
)


def element_properties() -> Tensor:
    """Standardised properties of the elements hydrogen to plutonium, from pymatgen.

    They are those of `_PROPERTIES`, the first three ionization energies, the electrons outside the noble-gas
    core by subshell, and the highest and lowest common oxidation state. A value that pymatgen lacks is
    interpolated linearly between the nearest atomic numbers that have one.

    Returns:
        float32, shape (94, 23); each column has mean 0 and standard deviation 1.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns of each missing value; they are filled below
        table = np.array([_properties_of(Element.from_Z(z)) for z in range(1, N_ELEMENTS + 1)])
    for column in table.T:
        missing = np.isnan(column)
        column[missing] = np.interp(np.flatnonzero(missing), np.flatnonzero(~missing), column[~missing])
    return torch.tensor((table - table.mean(axis=0)) / table.std(axis=0), dtype=torch.float32)


def _properties_of(element: Element) -> list[float]:
    """One row of the table, NaN where pymatgen has no value."""
    values = [getattr(element, name) for name in _PROPERTIES]
    row = [math.nan if value is None else float(value) for value in values]
    if not row[_PROPERTIES.index("average_ionic_radius")]:
        row[_PROPERTIES.index("average_ionic_radius")] = math.nan  # pymatgen's 0 says that there is no value
    energies = [math.nan if value is None else float(value) for value in element.ionization_energies[:3]]
    subshells = re.findall(r"\d([spdf])(\d+)", element.electronic_structure.split("]")[-1])
    electrons = [float(sum(int(n) for shell, n in subshells if shell == kind)) for kind in "spdf"]
    states = element.common_oxidation_states or element.oxidation_states or (0,)
    return [*row, *energies, *[math.nan] * (3 - len(energies)), *electrons, float(max(states)), float(min(states))]


@dataclass(frozen=True)
class _Tokens:
    """Where the elements present in a batch lie in an array padded to the longest composition.

    Attributes:
        shape: compositions, and elements of the longest one.
        slot: of each element present, its place in the flat padded array, int64, shape (n_tokens,).
        log_fraction: of the padded array, 0 where nothing is, shape (n, longest).
        mask: 0 where there is an element and a large negative number elsewhere, shape (n, longest).
    """

    shape: tuple[int, int]
    slot: Tensor
    log_fraction: Tensor
    mask: Tensor


class _Attention(nn.Module):
    """Self-attention between the elements of a composition; a head may favour the abundant ones."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.fraction_weight = nn.Parameter(torch.ones(_HEADS, 1, 1))
        self.dropout = dropout

    def forward(self, h: Tensor, tokens: _Tokens) -> Tensor:
        """Add to each element what it takes from the others; shape (n_tokens, width), as the result."""
        width = h.shape[1]
        n, longest = tokens.shape
        flat = self.query_key_value(self.norm(h))
        padded = flat.new_zeros(n * longest, 3 * width).index_copy(0, tokens.slot, flat)
        query, key, value = padded.view(n, longest, 3, _HEADS, width // _HEADS).permute(2, 0, 3, 1, 4)
        logits = query @ key.transpose(-1, -2) / math.sqrt(width // _HEADS)
        logits = logits + self.fraction_weight * tokens.log_fraction[:, None, None] + tokens.mask[:, None, None]
        mixed = (logits.softmax(dim=-1) @ value).transpose(1, 2).reshape(n * longest, width)
        out = self.out(mixed.index_select(0, tokens.slot))
        return h + functional.dropout(out, self.dropout, self.training)


class _Residual(nn.Module):
    """x + MLP(norm(x)), with one hidden layer."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, width), as the result."""
        return x + self.layers(self.norm(x))


class CompositionNetwork(nn.Module):
    """Predicts a property of a crystal from the fractions of its elements; a `models.training.train.Trainable`.

    Every element present becomes a vector of its identity, its properties and its fraction; rounds of
    self-attention let the elements act on each other; means over the elements, with and without their
    fractions as weights, go through a residual MLP. The same idea as Roost (10.1038/s41467-020-19964-7) and
    CrabNet (10.1038/s41524-021-00545-1), small enough to train on a CPU.
    """

    properties: Tensor
    angular_frequency: Tensor

    def __init__(
        self,
        *,
        width: int = 128,
        rounds: int = 2,
        head_width: int = 256,
        head_depth: int = 2,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Initialise the weights from `seed`, leaving torch's global random state as it was.

        Args:
            width: of an element's vector, a multiple of 4.
            rounds: of attention, each followed by an MLP on every element.
            head_width: of the MLP after pooling.
            head_depth: its residual blocks.
            dropout: probability of dropping a number inside a block.
            seed: of the initial weights.

        Raises:
            ValueError: where `width` is not a multiple of 4.
        """
        super().__init__()
        if width % _HEADS:
            raise ValueError(f"width is {width}; it must be a multiple of {_HEADS}, the number of attention heads.")
        self.register_buffer("properties", element_properties(), persistent=False)
        frequency = 0.5 * math.pi * 2.0 ** torch.arange(_FREQUENCIES)
        self.register_buffer("angular_frequency", frequency, persistent=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.identity = nn.Parameter(0.5 * torch.randn(N_ELEMENTS, width))
            self.from_properties = nn.Linear(self.properties.shape[1], width)
            self.from_fraction = nn.Linear(3 + 2 * _FREQUENCIES, width)
            self.attention = nn.ModuleList(_Attention(width, dropout) for _ in range(rounds))
            self.mlps = nn.ModuleList(_Residual(width, 2 * width, dropout) for _ in range(rounds))
            self.norm = nn.LayerNorm(width)
            self.gated = nn.Linear(width, 2 * width)
            self.head = nn.Sequential(
                nn.Linear(4 * width, head_width),
                *(_Residual(head_width, head_width, dropout) for _ in range(head_depth)),
                nn.LayerNorm(head_width),
                nn.Linear(head_width, 1),
            )

    def forward(self, fractions: Tensor, mix: Mix | None = None) -> Tensor:
        """Predict from element fractions.

        Args:
            fractions: of the atoms, float32, shape (n, 94), column Z - 1; a row sums to 1 and may hold any
                number of elements.
            mix: which rows are mixed; a mixture of two compositions is one, so that it happens at the input.

        Returns:
            The property in units of the standardised target, shape (n,).
        """
        if mix is not None:
            fractions = torch.lerp(fractions[mix.partner], fractions, mix.share)
        n = len(fractions)
        owner, element = fractions.nonzero(as_tuple=True)
        fraction = fractions[owner, element][:, None]
        count = (fractions != 0).sum(dim=1)
        tokens = _tokens(owner, count, fraction[:, 0].log())

        phase = fraction * self.angular_frequency
        encoded = torch.cat([fraction, fraction.sqrt(), fraction.log(), phase.sin(), phase.cos()], dim=1)
        table = self.identity + self.from_properties(self.properties)
        h = functional.embedding(element, table) + self.from_fraction(encoded)
        for attention, mlp in zip(self.attention, self.mlps, strict=True):
            h = mlp(attention(h, tokens))

        h = self.norm(h)
        core, gate = self.gated(h).chunk(2, dim=1)
        h = torch.cat([h, functional.silu(core) * gate.sigmoid()], dim=1)
        zeros = h.new_zeros(n, h.shape[1])
        weighted = zeros.index_add(0, owner, h * fraction)
        plain = zeros.index_add(0, owner, h) / count[:, None]
        return self.head(torch.cat([weighted, plain], dim=1))[:, 0]

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """All parameters, in one group."""
        return [list(self.parameters())]

    def open_groups(self, n_groups: int) -> None:
        """There is one group, which always trains."""

    def rescale(self, shift: float, scale: float) -> None:
        """A fresh network has no unit yet, so that there is nothing to keep."""


def _tokens(owner: Tensor, count: Tensor, log_fraction: Tensor) -> _Tokens:
    """Places in the padded array.

    Args:
        owner: composition of each element present, ascending, int64, shape (n_tokens,).
        count: elements present in each composition, int64, shape (n,).
        log_fraction: of each element present, shape (n_tokens,).
    """
    n, longest = len(count), int(count.max())
    first = count.cumsum(0) - count
    slot = owner * longest + torch.arange(len(owner), device=owner.device) - first[owner]
    return _Tokens(
        shape=(n, longest),
        slot=slot,
        log_fraction=log_fraction.new_zeros(n * longest).index_copy(0, slot, log_fraction).view(n, longest),
        mask=log_fraction.new_full((n * longest,), -1e9).index_fill(0, slot, 0.0).view(n, longest),
    )
