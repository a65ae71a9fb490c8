"""Folds are Matbench's own, and no near-duplicate of a training crystal is validated on."""

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import KFold

from data.crystals.task_table import DEMO, OFFICIAL_NAMES, official_ids, official_task
from data.fold import Fold, SplitError
from data.folds import Split, make_folds, split_fold

REPOSITORY = Path(__file__).parents[2]
SUBSET = REPOSITORY.parent / "shared" / "data" / "mp_e_form_subset.json.gz"
OWN = replace(DEMO, name="own")


@pytest.fixture(scope="module")
def matbench_splits():
    from matbench.metadata import mbv01_validation

    return mbv01_validation["splits"]


def assert_sound(split: Split, fold: Fold, ids: list[str], usable: np.ndarray) -> None:
    """The three parts are disjoint, complete and on their side of the fold."""
    parts = [split.train, split.val, split.test]
    assert all(part.dtype == np.int64 and len(part) for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == np.flatnonzero(usable).tolist()
    assert {ids[row] for row in split.test.tolist()} <= set(fold.test_ids)
    assert {ids[row] for row in [*split.train.tolist(), *split.val.tolist()]} <= set(fold.train_ids)


@pytest.mark.parametrize("name", ["matbench_jdft2d", "matbench_phonons", "matbench_mp_is_metal", "matbench_mp_e_form"])
def test_folds_of_a_whole_task_are_matbenchs(name, matbench_splits):
    task = official_task(name)
    folds = make_folds(task, official_ids(task), None)
    assert [fold.index for fold in folds] == [0, 1, 2, 3, 4]
    for fold in folds:
        official = matbench_splits[name][f"fold_{fold.index}"]
        assert fold.train_ids == official["train"]
        assert fold.test_ids == official["test"]


@pytest.mark.parametrize("name", OFFICIAL_NAMES)
def test_the_ids_we_assign_are_all_of_matbenchs(name, matbench_splits):
    fold = matbench_splits[name]["fold_0"]
    assert official_ids(official_task(name)) == sorted(fold["train"] + fold["test"])


@pytest.mark.skipif(not SUBSET.exists(), reason="the shared subset of matbench_mp_e_form is not here")
def test_the_real_subset_splits_soundly_and_without_leaks(matbench_splits):
    table = json.loads(gzip.decompress(SUBSET.read_bytes()))
    ids, present = table["index"], set(table["index"])
    formulas = []
    for structure, _ in table["data"]:
        symbols = [site["species"][0]["element"] for site in structure["sites"]]
        counts = {symbol: symbols.count(symbol) for symbol in sorted(set(symbols))}
        divisor = np.gcd.reduce(list(counts.values()))
        formulas.append(" ".join(f"{symbol}{count // divisor}" for symbol, count in counts.items()))
    usable = np.ones(len(ids), dtype=bool)
    usable[[3, 500]] = False
    assert len(set(formulas)) < len(formulas), "no polymorphs: nothing would be shown"
    for fold in make_folds(official_task("matbench_mp_e_form"), ids, None):
        official = matbench_splits["matbench_mp_e_form"][f"fold_{fold.index}"]
        assert fold.train_ids == [one for one in official["train"] if one in present]
        assert fold.test_ids == [one for one in official["test"] if one in present]
        split = split_fold(fold, ids, usable, formulas, seed=1)
        assert_sound(split, fold, ids, usable)
        assert not {formulas[row] for row in split.train.tolist()} & {formulas[row] for row in split.val.tolist()}
        assert len(split.val) == round(0.1 * (len(split.train) + len(split.val)))


def test_own_data_follows_matbenchs_recipe_and_repeated_ids_count_once():
    ids = [f"x{k}" for k in range(23)]
    folds = make_folds(OWN, [*ids, "x4", "x4"], None)
    expected = KFold(5, shuffle=True, random_state=18012019).split(ids)
    for fold, (train, test) in zip(folds, expected, strict=True):
        assert fold.train_ids == [ids[k] for k in train]
        assert fold.test_ids == [ids[k] for k in test]


def test_groups_stay_whole_in_folds_and_in_validation():
    rng = np.random.default_rng(3)
    ids = [f"x{k}" for k in range(200)]
    groups = [f"g{k}" for k in rng.integers(0, 40, 200)]
    compositions = [f"c{k}" for k in rng.integers(0, 2000, 200)]
    usable = rng.random(200) < 0.9
    tested: list[str] = []
    for fold in make_folds(OWN, ids, groups):
        split = split_fold(fold, ids, usable, compositions, groups=groups, seed=0)
        assert_sound(split, fold, ids, usable)
        tested += fold.test_ids
        used = [{groups[row] for row in part.tolist()} for part in (split.train, split.val, split.test)]
        assert len(set.union(*used)) == sum(len(some) for some in used)
        assert not {compositions[row] for row in split.train} & {compositions[row] for row in split.val}
    assert sorted(tested) == sorted(ids)


def one_fold(n_train: int, n_test: int = 2) -> tuple[Fold, list[str], np.ndarray]:
    ids = [f"x{k}" for k in range(n_train + n_test)]
    return Fold(0, ids[:n_train], ids[n_train:]), ids, np.ones(n_train + n_test, dtype=bool)


@pytest.mark.parametrize(
    ("sizes", "fraction", "n_val"),
    [
        ([1] * 50, 0.1, 5),
        ([1] * 4, 0.1, 1),
        ([7, 7, 7, 7, 3], 0.32, 10),  # 10 of 31 is 7 + 3
        ([6, 6, 5, 5], 0.5, 11),  # none but 6 + 5
        ([40, 8], 0.1, 8),  # the nearest there is, though more than asked
        ([5, 5], 0.9, 5),  # training keeps something
    ],
)
def test_validation_is_as_near_the_fraction_as_compositions_allow(sizes, fraction, n_val):
    compositions = [f"c{k}" for k, size in enumerate(sizes) for _ in range(size)] + ["t", "t"]
    fold, ids, usable = one_fold(sum(sizes))
    for seed in range(5):
        split = split_fold(fold, ids, usable, compositions, val_fraction=fraction, seed=seed)
        assert len(split.val) == n_val


def test_a_split_depends_on_seed_and_fold_only():
    fold, ids, usable = one_fold(100)
    compositions = [f"c{k % 60}" for k in range(102)]
    first = split_fold(fold, ids, usable, compositions, seed=5)
    again = split_fold(fold, ids, usable, compositions, seed=5)
    np.testing.assert_array_equal(first.val, again.val)
    for changed in (
        split_fold(fold, ids, usable, compositions, seed=6),
        split_fold(replace(fold, index=1), ids, usable, compositions, seed=5),
    ):
        assert first.val.tolist() != changed.val.tolist()
    code = (
        "import numpy as np; from data.folds import *; ids = [f'x{k}' for k in range(102)];"
        "split = split_fold(Fold(0, ids[:100], ids[100:]), ids, np.ones(102, bool),"
        "[f'c{k % 60}' for k in range(102)], groups=[f'g{k % 40}' for k in range(102)], seed=5);"
        "print(split.val.tolist())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1")
    }
    assert len(printed) == 1


def test_every_training_row_is_validated_on_under_some_seed():
    fold, ids, usable = one_fold(20)
    seen = set()
    for seed in range(80):
        seen |= set(split_fold(fold, ids, usable, ids, val_fraction=0.2, seed=seed).val.tolist())
    assert seen == set(range(20))


def test_rows_of_one_composition_are_held_out_one_by_one_or_by_group_and_it_is_told():
    fold, ids, usable = one_fold(10)
    same, groups = ["SiO2"] * 12, ["a"] * 5 + ["b"] * 7
    split = split_fold(fold, ids, usable, same, seed=0)
    assert (len(split.train), len(split.val), split.by_row) == (8, 2, True)
    split = split_fold(fold, ids, usable, same, groups=groups, seed=0)
    assert {groups[row] for row in split.train}.isdisjoint(groups[row] for row in split.val)
    assert not split.by_row
    assert not split_fold(fold, ids, usable, ids, seed=0).by_row


@pytest.mark.parametrize(("n_rows", "n_val"), [(4, 1), (8, 2), (14, 2), (30, 3)])
def test_two_rows_or_more_validate_where_there_are_enough(n_rows, n_val):
    fold, ids, usable = one_fold(n_rows)
    assert len(split_fold(fold, ids, usable, ids, seed=0).val) == n_val


def test_what_cannot_be_split_is_refused():
    fold, ids, usable = one_fold(10)
    same = ["NaCl"] * 12
    with pytest.raises(SplitError, match="10 usable training rows of fold 0 all share a group"):
        split_fold(fold, ids, usable, ids, groups=same, seed=0)
    with pytest.raises(SplitError, match="fold 0 has one usable training row, so none can be held out"):
        split_fold(fold, ids, usable & ((np.arange(12) == 0) | (np.arange(12) >= 10)), ids, seed=0)
    with pytest.raises(SplitError, match="no usable test rows"):
        split_fold(replace(fold, test_ids=[]), ids, usable, ids, seed=0)
    with pytest.raises(SplitError, match="no usable training rows"):
        split_fold(fold, ids, usable & (np.arange(12) >= 10), ids, seed=0)
    with pytest.raises(SplitError, match=r"val_fraction is 1\.0"):
        split_fold(fold, ids, usable, ids, val_fraction=1.0, seed=0)
    with pytest.raises(SplitError, match="seed is -1"):
        split_fold(fold, ids, usable, ids, seed=-1)
    with pytest.raises(SplitError, match="4 ids; 5 folds need at least 5"):
        make_folds(OWN, ids[:4], None)
    with pytest.raises(SplitError, match="1 groups"):
        make_folds(OWN, ids, same)
    with pytest.raises(SplitError, match="1 ids are not in the official folds of matbench_phonons: mine"):
        make_folds(official_task("matbench_phonons"), ["mb-phonons-0001", "mine"], None)
