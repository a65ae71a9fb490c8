"""What one trial may use, and how many trials run at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ray

from data.machine.ray_internals import most_resources


@dataclass(frozen=True)
class Resources:
    """The resources that one trial may use, and how many trials run at once (None: as many as fit)."""

    cpus_per_trial: int
    gpus_per_trial: float
    max_concurrent: int | None

    def slots(self) -> int:
        """Trials that run at once on the Ray cluster as it is now; 0 where it has too little for one."""
        return self._fitting(ray.cluster_resources())

    def most_slots(self) -> int:
        """Trials that run at once on the cluster with all nodes that its autoscaler may add."""
        return max(self.slots(), self._fitting(most_resources()))

    def _fitting(self, resources: Mapping[str, float]) -> int:
        n_trials = resources.get("CPU", 0) / self.cpus_per_trial
        if self.gpus_per_trial:
            n_trials = min(n_trials, resources.get("GPU", 0) / self.gpus_per_trial)
        return min(int(n_trials + 1e-6), self.max_concurrent or int(n_trials + 1e-6))
