"""Damaged files of every kind that people hand to the commands: read as they were, quarantined, or one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from fuzzing import GOOD, KINDS

FUZZING = Path(__file__).parent / "fuzzing.py"
ROOT = FUZZING.parents[1]
SHORT, LONG = 12, 1000  # files of each kind
WAIT = 600  # seconds of a file that hangs without using the processor, and of the imports before the first


def read_damaged(kind: str, folder: Path, first: int, last: int) -> list[tuple[int, str, str]]:
    """How the reading of each file ended; where the process dies of one, the next begins behind it."""
    ends = []
    while first < last:
        command = [sys.executable, str(FUZZING), kind, str(folder), str(first), str(last)]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=WAIT)
            printed, code, errors = done.stdout, done.returncode, done.stderr
        except subprocess.TimeoutExpired as hanging:
            printed, code, errors = (hanging.stdout or b"").decode(), -1, "it hangs"
        lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
        ends += [(line["case"], line["outcome"], line["about"]) for line in lines if "case" in line]
        begun = [line["begun"] for line in lines if "begun" in line]
        if code == 0:
            break
        assert begun, errors
        if not ends or ends[-1][0] != begun[-1]:
            ends.append((begun[-1], "died", f"exit code {code}: {errors[-500:]}"))
        first = begun[-1] + 1
    return ends


def assert_good(kind: str, ends: list[tuple[int, str, str]], n: int, capsys: pytest.CaptureFixture) -> None:
    assert [case for case, *_ in ends] == list(range(n))
    counts = Counter(outcome for _, outcome, _ in ends)
    with capsys.disabled():
        print(f"\n  {kind}: " + ", ".join(f"{counts[name]} {name}" for name in (*GOOD, *(counts.keys() - set(GOOD)))))
    assert [end for end in ends if end[1] not in GOOD] == []
    assert counts["equal"] + counts["noted"] + counts["as written"] > 0
    assert counts["quarantined"] + counts["sentence"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_as_they_were_quarantined_or_one_sentence(kind, tmp_path, capsys):
    assert_good(kind, read_damaged(kind, tmp_path, 0, SHORT), SHORT, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_damaged_files_of_each_kind(kind, tmp_path, capsys):
    assert_good(kind, read_damaged(kind, tmp_path, 0, LONG), LONG, capsys)
