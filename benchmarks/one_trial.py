"""One trial as a process of its own, without Ray: what the search of `benchmarks/runs.py` is compared with.

python -m benchmarks.one_trial FOLDER K    # FOLDER as that search leaves it; prints the best metric
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import torch

from data.machine.allocator import keep_freed_memory
from models.crystals.chgnet.model import CHGNetConfig, start_chgnet
from models.model import TrainingPart

if __name__ == "__main__":
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    folder, k = Path(sys.argv[1]), int(sys.argv[2])
    rows, targets, train, val, kind, quantity = pickle.loads((folder / "data.pickle").read_bytes())
    config = CHGNetConfig(**json.loads((folder / "configs.json").read_text())[k])
    run = start_chgnet(config, rows, TrainingPart(targets, train, val, kind, quantity))
    for _ in run.epochs():
        torch.save(run.state(), folder / f"state-{k}.pt")  # every epoch, as a trial of the sweep does
    print(run.history[run.kept_epoch].val_metric)
