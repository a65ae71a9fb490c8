"""A submission's record as Matbench's own package reads it."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any

from tune.analysis.matbench_record import quiet_matbench


def read_record(file: str | Path) -> Any:
    """A `results.json.gz`, compressed or not, read and validated by `MatbenchBenchmark.from_file`.

    Raises:
        ValueError: it is not valid, or was changed after it was written.
    """
    content = Path(file).read_bytes()
    with tempfile.TemporaryDirectory() as folder, quiet_matbench():
        from matbench.bench import MatbenchBenchmark

        plain = Path(folder) / "results.json"
        plain.write_bytes(gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content)
        return MatbenchBenchmark.from_file(str(plain))
