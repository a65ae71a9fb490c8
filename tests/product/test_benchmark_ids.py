"""The ids that the figures of docs/accuracy.md are measured on: official ones, as many as each list says."""

import gzip
import re
from pathlib import Path

import orjson
import pytest

from data.crystals.task_table import official_task
from data.folds import make_folds

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"
LISTS = sorted((REPOSITORY / "benchmarks" / "ids").glob("*.txt"))


def read(file: Path) -> tuple[int, str, list[str]]:
    """The number of ids and the task that a list's first line names, and the ids that follow."""
    first, *ids = file.read_text().splitlines()
    n_ids, task = re.match(r"# (\d+) ids of (\w+):", first).groups()
    return int(n_ids), task, ids


def test_the_lists_are_those_of_the_readme():
    assert [file.name for file in LISTS] == ["mp_e_form_subset.txt", "perovskites_subset.txt"]


@pytest.mark.parametrize("file", LISTS, ids=lambda file: file.stem)
def test_ids_are_official_ones_each_named_once(file):
    n_ids, task, ids = read(file)
    folds = make_folds(official_task(task), ids, None)  # Matbench's; refuses what they do not hold
    assert len(ids) == len(set(ids)) == n_ids
    assert sorted(one for fold in folds for one in fold.test_ids) == sorted(ids)
    assert all(len(fold.test_ids) > n_ids / 10 for fold in folds)  # something to test on in every fold


@pytest.mark.parametrize("file", LISTS, ids=lambda file: file.stem)
def test_ids_are_those_of_the_shared_structures(file):
    structures = SHARED / f"{file.stem}.json.gz"
    if not structures.exists():
        pytest.skip(f"the shared {structures.name} of real structures is not here")
    index = orjson.loads(gzip.decompress(structures.read_bytes()))["index"]
    assert sorted(read(file)[2]) == sorted(index)
