"""Damaged files of every kind that people hand to the commands: read as they were, quarantined, or one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from fuzzing import GOOD, KINDS, Kind
from mutations import damaged

FUZZING = Path(__file__).parents[1] / "made" / "fuzzing.py"
ROOT = FUZZING.parents[2]
SHORT, LONG = 8, 1000  # files of each kind
WAIT = 600  # seconds of a file that hangs without using the processor, and of the imports before the first


End = tuple[int, str, str]  # number of a file, how its reading ended, and what is to be said of it


def read_damaged(kinds: str, folder: Path, first: int, last: int) -> dict[str, list[End]]:
    """How the reading of each file ended; where the process dies of one, the next begins behind it."""
    ends: dict[str, list[End]] = {}
    while first < last:
        command = [sys.executable, str(FUZZING), kinds, str(folder), str(first), str(last)]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=WAIT)
            printed, code, errors = done.stdout, done.returncode, done.stderr
        except subprocess.TimeoutExpired as hanging:
            printed, code, errors = (hanging.stdout or b"").decode(), -1, "it hangs"
        lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
        for line in lines:
            if "case" in line:
                ends.setdefault(line["kind"], []).append((line["case"], line["outcome"], line["about"]))
        if code == 0:
            break
        begun = [(line["kind"], line["begun"]) for line in lines if "begun" in line]
        assert begun, errors
        kind, case = begun[-1]
        of_kind = ends.setdefault(kind, [])
        if not of_kind or of_kind[-1][0] != case:
            of_kind.append((case, "died", f"exit code {code}: {errors[-500:]}"))
        first = case + 1
    return ends


def assert_good(kind: str, ends: list[End], n: int, capsys: pytest.CaptureFixture) -> None:
    assert [case for case, *_ in ends] == list(range(n))
    counts = Counter(outcome for _, outcome, _ in ends)
    with capsys.disabled():
        print(f"\n  {kind}: " + ", ".join(f"{counts[name]} {name}" for name in (*GOOD, *(counts.keys() - set(GOOD)))))
    assert [end for end in ends if end[1] not in GOOD] == []
    if n == LONG:
        assert counts["equal"] + counts["noted"] + counts["as written"] > n / 50
        assert counts["quarantined"] + counts["sentence"] > n / 50


def test_damaged_files_are_read_as_they_were_quarantined_or_one_sentence(tmp_path, capsys):
    """In one process, which spares the imports."""
    ends = read_damaged(",".join(KINDS), tmp_path, 0, SHORT)
    for kind, of_kind in ends.items():
        assert_good(kind, of_kind, SHORT, capsys)
    assert list(ends) == list(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_damaged_files_of_each_kind(kind, tmp_path, capsys):
    assert_good(kind, read_damaged(kind, tmp_path, 0, LONG)[kind], LONG, capsys)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Kind]:
    return {name: KINDS[name](tmp_path_factory.mktemp(name)) for name in ("checkpoint", "predictions", "space")}


@pytest.mark.slow
@pytest.mark.parametrize("case", range(30))
def test_a_command_given_a_damaged_file_ends_well_or_in_a_sentence(case, whole, tmp_path):
    name = ("checkpoint", "predictions", "space")[case % 3]
    file, content = whole[name].originals[case // 3 % len(whole[name].originals)]
    bad = damaged(content, f"command-{case}", text=whole[name].text).content
    if name == "checkpoint":
        (tmp_path / "model.pth").write_bytes(bad)
        arguments = ["models/predict.py", tmp_path / "model.pth", "Fe2O3", "NaCl"]
    elif name == "predictions":
        for run in ("a", "b"):
            shutil.copytree(whole[name].run, tmp_path / "ray_results" / run)
        (tmp_path / "ray_results" / "b" / file).write_bytes(bad)
        arguments = [("tune/compare.py", "tune/report.py")[case % 2], "b", *(["a"] if case % 2 == 0 else [])]
    else:
        (tmp_path / "space.yaml").write_bytes(bad)
        arguments = ["tune/run_sweep.py", "--space", tmp_path / "space.yaml", "--task", tmp_path / "nothing.csv"]
    command = [sys.executable, str(ROOT / str(arguments[0])), *map(str, arguments[1:])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=WAIT)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert done.returncode == 0 or done.stderr.strip()
