"""Run a queue of experiments: each changes one field of a baseline, and gets a verdict against it.

    python tune/run_queue.py --queue daily --task matbench_mp_e_form

An experiment is a sweep without a search, in `ray_results/NAME/EXPERIMENT`; the same command goes on where a killed one
was. Verdicts and ranks are by validation parts (`tune/analysis/verdict.py`): choosing by them looks at no test crystal.
The difference on the test parts stands beside them, to report.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # before anything of the user's could be imported by the name of something else
    sys.path.insert(0, os.path.realpath(__file__).rsplit("/", 2)[0])
    from data.machine.import_path import own_first

    own_first()

from pathlib import Path
from typing import Annotated

import typer

from data.machine.command_line import command
from data.machine.interruption import interruptible
from tune.arguments import STORAGE, absolute_spec, own_name, shared_options


def main(
    queue: Annotated[str, typer.Option(help="A queue: a file of search_spaces/ without .yaml, or a path.")] = "daily",
    task: Annotated[str, typer.Option(help="As of run_sweep.py.")] = "demo",
    ids: Annotated[Path | None, typer.Option(help="Text file of ids, one a line: use these rows only.")] = None,
    target: Annotated[str | None, typer.Option(help="Column of the targets, where your own file has several.")] = None,
    quantity: Annotated[str | None, typer.Option(help="What your own target is to an energy model.")] = None,
    folds: Annotated[str, typer.Option(help="Folds to train and test on: `all`, or indices such as 0,2.")] = "all",
    seed: Annotated[int, typer.Option(min=0, help="The first one, and of validation splits.")] = 0,
    tta: Annotated[str, typer.Option(help="Test-time augmentation, as of run_sweep.py.")] = "none",
    name: Annotated[str | None, typer.Option(help="Of the queue's folder. Default: task and queue.")] = None,
    storage: Annotated[str, typer.Option(help="Where results are kept: a folder, s3://..., gs://...")] = STORAGE,
    cache: Annotated[
        str | None, typer.Option(help="Where graphs are kept. [default: ~/.cache/matsweep/graphs]")
    ] = None,
    downloads: Annotated[
        str | None, typer.Option(help="Local folder of datasets. [default: ~/.cache/matsweep/downloads]")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; `auto` on one of its nodes.")] = None,
    gpus_per_trial: Annotated[str, typer.Option(help="Share of a GPU a training gets, as of run_sweep.py.")] = "0",
    cpus_per_trial: Annotated[int, typer.Option(min=1, help="Threads of a training.")] = 1,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="Trainings at once. Default: as many as fit.")
    ] = None,
    every_atom: Annotated[bool, typer.Option("--every-atom", help="Compute every atom of a crystal.")] = False,
) -> None:
    """Run a queue of one-variable experiments and rank them by verdict; run again to go on with a killed one."""
    fields = shared_options(
        task=absolute_spec(task),
        target=target,
        quantity=quantity,
        ids=ids,
        search_folds=[],
        folds=folds,
        num_samples=1,
        seed=seed,
        seeds=1,
        storage=storage,
        cache=cache,
        downloads=downloads,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        max_concurrent=max_concurrent,
        every_atom=every_atom,
        tta=tta,
    )
    with interruptible("the same command goes on"):
        from tune.spaces.queue_file import load_queue

        experiments_queue = load_queue(queue)
        name = f"{own_name(task)}-{own_name(experiments_queue.name)}" if name is None else name
        from tune.records.options import Options
        from tune.sweep.queue_run import run_queue

        options = Options(name=name, space=experiments_queue.experiments[0].space, **fields)
        run_queue(experiments_queue, options, address=address)


app = command(main)

if __name__ == "__main__":
    app()
