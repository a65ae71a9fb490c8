"""Experiment trackers of other people: Ray's own callbacks for them, nothing of ours."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from tune.arguments import Tracker
from tune.errors import SweepError

if TYPE_CHECKING:
    from ray.tune import Callback


def trackers(name: Tracker | None, sweep: str) -> list[Callback]:
    """The callback for a tracker; none where none is asked for.

    Args:
        name: `wandb` reads WANDB_API_KEY and WANDB_MODE, `mlflow` MLFLOW_TRACKING_URI; see their documentation.
        sweep: the group of runs, or the experiment, that trials appear in.

    Raises:
        SweepError: it is not installed, or will not start.
    """
    if name is None:
        return []
    if find_spec(name) is None:
        raise SweepError(f"--track {name}: it is not installed; `make setup EXTRAS=dev,{name}` does that")
    # Imported here, for either takes seconds and few sweeps want one.
    if name == "wandb":
        from ray.air.integrations.wandb import WandbLoggerCallback

        return [WandbLoggerCallback(project="matsweep", group=sweep)]
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    return [MLflowLoggerCallback(experiment_name=sweep)]
