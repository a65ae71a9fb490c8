"""Where rows stand in the file that they are from, as a person who opens it counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, eq=False)
class RowNumbers:
    """Says where rows stand in the file that they are from, as a person who opens it counts.

    Attributes:
        unit: "line" of a text file, its line of column names counted too, else "row". Both begin at 1.
        values: one a row; of a row of several lines its first.
    """

    unit: Literal["line", "row"]
    values: Sequence[int]

    def of(self, row: int) -> str:
        """The name of the row at this position in messages, such as `line 7`."""
        return f"{self.unit} {self.values[row]}"


def counted(n_rows: int) -> RowNumbers:
    """The numbers of rows that have no lines: 1 to `n_rows`."""
    return RowNumbers("row", range(1, n_rows + 1))
