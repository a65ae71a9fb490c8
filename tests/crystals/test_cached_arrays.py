"""The pretrained backbone's output is computed once for every crystal, and a damaged part of it again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import ray
from model_cases import sample

from data.crystals.task_table import DEMO
from models.crystals.cached_arrays import backbone_output
from models.crystals.rows import CrystalRows
from tune.dataset.parts import ROWS_PER_PART, cached_fields, prefix_of


def test_backbone_output_is_computed_once_and_damaged_parts_again(ray_session, tmp_path):
    data = sample(40, file=DEMO.name)
    which = np.arange(ROWS_PER_PART + 30) % 40  # two parts
    rows = CrystalRows(data.rows.fractions[which], data.rows.n_atoms[which], data.rows.graphs.select(which))
    rows_ref, arrays = ray.put(rows), backbone_output("0.3.0", collapse=False)

    def output() -> dict:
        return cached_fields(arrays, rows_ref, len(which), str(tmp_path), 0.0)

    before = output()
    np.testing.assert_allclose(before["outputs"], data.rows.outputs[which], atol=2e-6)
    parts = sorted(Path(tmp_path).iterdir())
    assert [part.name.startswith(prefix_of(arrays)) for part in parts] == [True, True]
    for damaged in range(2):
        parts[damaged].write_bytes(parts[damaged].read_bytes()[:-3] + b"xyz")
        after = output()
        np.testing.assert_array_equal(after["outputs"], before["outputs"])
        np.testing.assert_array_equal(after["features"].values, before["features"].values)
        assert sorted(Path(tmp_path).iterdir()) == parts  # the checksum in the name is the same again
