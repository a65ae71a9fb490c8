"""What the options of the commands mean, and the values that some of them have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.families import task_names
from data.fold import N_FOLDS
from data.stores.places import default_cache, downloads_folder, expanded
from tune.errors import SweepError

STORAGE = "ray_results"  # where names are looked up
NOBODY = "not told yet"  # in place of the authors of a submission
AUTO_COPIES = 8  # of each crystal with `--tta auto`
On = Literal["test", "validation"]
Tracker = Literal["wandb", "mlflow"]
Untrusted = Literal["keep", "baseline"]
AverageWeights = Literal["equal", "validation"]


@dataclass(frozen=True)
class Copies:
    """Test-time augmentation: how many moved copies of each crystal, and whether only where validation gains by it."""

    number: int
    only_if_better: bool


def shared_options(
    *,
    ids: Path | None,
    folds: str,
    storage: str,
    cache: str | None,
    downloads: str | None,
    gpus_per_trial: str,
    tta: str,
    **as_they_are: Any,
) -> dict[str, Any]:
    """Fields of `Options` from what the command lines of sweeps and of queues have in common.

    Raises:
        SweepError: a value that an option cannot have.
    """
    return {
        **as_they_are,
        "ids": str(expanded(ids).resolve()) if ids else None,
        "folds": parse_folds(folds, "--folds"),
        "storage": anywhere(storage),
        "cache": anywhere(cache or str(default_cache() / "graphs")),
        "downloads": anywhere(str(downloads_folder(downloads))),
        "gpus_per_trial": gpu_share(gpus_per_trial),
        "pack_gpus": gpus_per_trial == "auto",
        "tta": copies(tta),
    }


def parse_folds(text: str, option: str) -> list[int]:
    """`all`, or indices separated by commas; SweepError for anything else."""
    if text == "all":
        return list(range(N_FOLDS))
    try:
        folds = sorted({int(part) for part in text.split(",")})
    except ValueError:
        folds = [-1]
    if not all(0 <= fold < N_FOLDS for fold in folds):
        raise SweepError(f"{option} {text!r}: expected `all` or folds of 0 to {N_FOLDS - 1} such as 0,2")
    return folds


def copies(text: str) -> str:
    """`none`, `auto`, or a number of copies of two or more; SweepError for anything else."""
    if text not in ("none", "auto") and not (text.isascii() and text.isdecimal() and int(text) > 1):
        raise SweepError(f"--tta {text!r}: expected none, auto, or a number of copies such as 4")
    return text


def absolute_spec(spec: str) -> str:
    """A task's name as it is; a path as one that means the same in every working directory."""
    path = expanded(spec)
    return str(path.resolve()) if spec not in task_names() and path.exists() else spec


def own_name(file: str) -> str:
    """The short name of a task or a space, for a sweep's name: what that may not hold is left out."""
    return re.sub(r"[^\w+=-]", "", Path(file).name.split(".")[0]) or "sweep"


def gpu_share(text: str) -> float:
    """The share of a GPU that a trial gets; a whole one for `auto`, measured later. SweepError for anything else."""
    try:
        share = 1.0 if text == "auto" else float(text)
    except ValueError:
        share = -1.0
    finest = round(share, 4) if 0 <= share <= 1 else share  # Ray counts in steps of 0.0001
    if finest != share or not (0 <= share <= 1 or (share > 1 and share.is_integer())):
        raise SweepError(
            f"--gpus-per-trial {text!r}: expected auto, a share such as 0.25 (of up to 4 decimals), or whole GPUs"
        )
    return share


def anywhere(place: str) -> str:
    """A URI as it is, a path made absolute: a sweep may be resumed from another folder."""
    return place if "://" in place else str(expanded(place).resolve())
