"""Sweep a search space on a task: graphs, search, training of the best on every fold, one test each.

    python tune/run_sweep.py --space head_finetune
    python tune/run_sweep.py --space full_finetune --task matbench_mp_e_form --gpus-per-trial 0.25
    python tune/run_sweep.py --resume NAME
    python tune/run_sweep.py --extend NAME --num-samples +32

This file is the command line; what a sweep does is `tune/sweep/sweep.py`.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # before anything of the user's could be imported by the name of something else
    sys.path.insert(0, os.path.realpath(__file__).rsplit("/", 2)[0])
    from data.machine.import_path import own_first

    own_first()

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data.fold import DEFAULT_SPLIT
from data.machine.command_line import command
from data.machine.console import lines_only
from data.machine.interruption import interruptible
from data.split_rule import split_rule
from tune.arguments import STORAGE, Tracker, Untrusted, absolute_spec, anywhere, own_name, parse_folds, shared_options
from tune.errors import SweepError

if TYPE_CHECKING:
    from tune.records.options import Options

SWEEP, PROTOCOL, MACHINE = "What to sweep", "Protocol", "Machine and folders"


def main(
    context: typer.Context,
    space: Annotated[
        str,
        typer.Option(help="Search space: a file of search_spaces/ without .yaml, or a path.", rich_help_panel=SWEEP),
    ] = "head_finetune",
    task: Annotated[
        str,
        typer.Option(
            help="`demo` (embedded, no network), an official name such as `matbench_mp_e_form` (downloaded on first "
            "use), or the path of a file or folder of your own in one of the layouts that docs/tasks.md lists.",
            rich_help_panel=SWEEP,
        ),
    ] = "demo",
    ids: Annotated[
        Path | None,
        typer.Option(help="Text file of ids, one a line: use these rows only.", rich_help_panel=SWEEP),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Column of the targets, where your own file has several.", rich_help_panel=SWEEP),
    ] = None,
    quantity: Annotated[
        str | None,
        typer.Option(
            help="What your own target is to an energy model: energy_per_atom, energy_per_cell, or other "
            "(a fresh readout is trained). Default: other.",
            rich_help_panel=SWEEP,
        ),
    ] = None,
    folds: Annotated[
        str,
        typer.Option(help="Folds to train and test on: `all`, or indices such as 0,2.", rich_help_panel=PROTOCOL),
    ] = "all",
    split: Annotated[
        str,
        typer.Option(
            help="How folds are made: `task`, its own; `leave-group-out:element` or `leave-group-out:molecular`, which "
            "test crystals of elements, or molecular ones, that they do not train on.",
            rich_help_panel=PROTOCOL,
        ),
    ] = DEFAULT_SPLIT,
    search_folds: Annotated[
        str,
        typer.Option(
            help="Folds that are searched; `all`: one search per fold. Folds without one use the first's result.",
            rich_help_panel=PROTOCOL,
        ),
    ] = "0",
    num_samples: Annotated[
        int | None,
        typer.Option(min=1, help="Trials of a search. Default: the space's own.", rich_help_panel=PROTOCOL),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of validation splits, Optuna and training.", rich_help_panel=PROTOCOL)
    ] = 0,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train the chosen configs with so many seeds, and their ensemble. Default: the space's own.",
            rich_help_panel=PROTOCOL,
        ),
    ] = None,
    tta: Annotated[
        str,
        typer.Option(
            help="Test-time augmentation: predict so many copies of a crystal, each moved a little, and take the mean; "
            "`auto`: 8, in the folds where validation gains by it.",
            rich_help_panel=PROTOCOL,
        ),
    ] = "none",
    untrusted: Annotated[
        Untrusted,
        typer.Option(
            help="Predictions that are not trusted are kept, or are the baseline's; marked both.",
            rich_help_panel=PROTOCOL,
        ),
    ] = "keep",
    quiet: Annotated[
        bool,
        typer.Option("--quiet", help="Lines instead of tables and bars that move.", rich_help_panel=MACHINE),
    ] = False,
    track: Annotated[
        Tracker | None,
        typer.Option(
            help="Also log to `wandb` or `mlflow`, by Ray's own callbacks and their environment variables.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the sweep. Default: task, space and time.", rich_help_panel=MACHINE)
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="NAME", help="Go on with a killed sweep.", rich_help_panel=MACHINE)
    ] = None,
    extend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Add --num-samples trials to each search of a finished sweep, in a wider --space if wanted.",
            rich_help_panel=SWEEP,
        ),
    ] = None,
    only_failed: Annotated[
        bool,
        typer.Option("--only-failed", help="With --extend: run its failed trials anew instead.", rich_help_panel=SWEEP),
    ] = False,
    plan_only: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Measure a few batches here and say what the sweep will take; nothing is run or kept.",
            rich_help_panel=MACHINE,
        ),
    ] = False,
    storage: Annotated[
        str, typer.Option(help="Where sweeps are kept: a folder, s3://..., gs://...", rich_help_panel=MACHINE)
    ] = STORAGE,
    cache: Annotated[
        str | None,
        typer.Option(
            help="Where graphs are kept: a folder or URI. [default: ~/.cache/matsweep/graphs]",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    downloads: Annotated[
        str | None,
        typer.Option(help="Local folder of datasets. [default: ~/.cache/matsweep/downloads]", rich_help_panel=MACHINE),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join; `auto` on one of its nodes.", rich_help_panel=MACHINE),
    ] = None,
    gpus_per_trial: Annotated[
        str,
        typer.Option(
            help="Share of a GPU a trial gets, such as 0.25; `auto`: measured, as many as its memory holds; 0: CPU.",
            rich_help_panel=MACHINE,
        ),
    ] = "0",
    cpus_per_trial: Annotated[int, typer.Option(min=1, help="Threads of a trial.", rich_help_panel=MACHINE)] = 1,
    max_concurrent: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Trials, and processes that prepare for them, at once. Default: as many as fit.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    every_atom: Annotated[
        bool,
        typer.Option(
            "--every-atom",
            help="Compute every atom of a crystal, not one of each kind of equivalent ones: slower, and the same "
            "but for rounding.",
            rich_help_panel=MACHINE,
        ),
    ] = False,
) -> None:
    """Sweep the hyper-parameters of a model on a task, and test the best once per fold.

    Without options: the `head_finetune` space on the embedded demo. Results go to `ray_results/NAME/`;
    ray_results/README.md says what each file is.
    """
    if quiet:
        lines_only()
    place = anywhere(storage)
    if plan_only and (resume or extend or address):
        raise SweepError(
            "--plan measures a sweep that is not begun yet, on this machine: leave out --resume, --extend and --address"
        )
    if only_failed and extend is None:
        raise SweepError("--only-failed goes with --extend NAME")
    with interruptible("nothing was begun, so give the same command again"):
        if resume is not None:
            options = _options_to_resume(context, place, resume)
        elif extend is not None:
            options = _options_to_extend(context, place, extend, space, num_samples, only_failed)
        else:
            fields = shared_options(
                target=target,
                quantity=quantity,
                ids=ids,
                search_folds=parse_folds(search_folds, "--search-folds"),
                folds=folds,
                seed=seed,
                storage=storage,
                cache=cache,
                downloads=downloads,
                cpus_per_trial=cpus_per_trial,
                gpus_per_trial=gpus_per_trial,
                max_concurrent=max_concurrent,
                every_atom=every_atom,
                tta=tta,
                untrusted=untrusted,
                track=track,
                split=split_rule(split),
            )
            options = _new_options(space, task, name, num_samples, seeds, fields)
        if plan_only:
            from tune.planning.plan import plan
            from tune.planning.plan_table import show

            show(plan(options))
            return
        from tune.sweep.sweep import run

        run(options, address=address, resumed=bool(resume or extend))


def _options_to_resume(context: typer.Context, place: str, name: str) -> Options:
    """Read the options that a sweep was begun with, and refuse others on the command line."""
    _refuse_changed(context, "--resume", set())
    from tune.records.options import options_to_go_on

    return options_to_go_on(place, name, "--resume")


def _options_to_extend(
    context: typer.Context, place: str, name: str, space: str, num_samples: int | None, only_failed: bool
) -> Options:
    """Read the options that a finished sweep was begun with, and add a batch of trials to them."""
    _refuse_changed(context, "--extend", {"num_samples", "space", "only_failed"})
    from tune.records.options import options_to_go_on
    from tune.spaces.space import load_space
    from tune.sweep.extend import extended

    wider_space = load_space(space) if "space" in _options_on_command_line(context) else None
    return extended(
        options_to_go_on(place, name, "--extend"), num_samples=num_samples, space=wider_space, only_failed=only_failed
    )


def _new_options(
    space: str, task: str, name: str | None, num_samples: int | None, seeds: int | None, fields: dict[str, Any]
) -> Options:
    """Make the options of a new sweep; `fields` are those that do not depend on the space."""
    from tune.spaces.space import load_space

    task_spec = absolute_spec(task)
    search_space = load_space(space)
    seeds = seeds or search_space.seeds
    if seeds > 1 and not search_space.trains:
        raise SweepError(f"--seeds {seeds}: space {search_space.name} trains nothing, so seeds make no difference")
    if name is None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        name = f"{own_name(task)}-{own_name(search_space.name)}-{stamp}"
    # Only now, for these take seconds, which a mistake in the space need not wait for.
    from tune.records.folder import refuse_taken
    from tune.records.options import Options
    from tune.trials.trackers import trackers

    trackers(fields["track"], name)  # refuses what is not installed before anything is done
    refuse_taken("--name", name, fields["storage"])
    num_samples = num_samples or search_space.num_samples
    return Options(name=name, space=search_space, task=task_spec, num_samples=num_samples, seeds=seeds, **fields)


def _refuse_changed(context: typer.Context, option: str, may_change: set[str]) -> None:
    """Refuse options on the command line of a sweep that goes on, which keeps its own; some may change."""
    allowed = {"resume", "extend", "storage", "address", "quiet"} | may_change
    names = _options_on_command_line(context)
    changed = [f"--{name.replace('_', '-')}" for name in sorted(names - allowed)]
    if changed or {"resume", "extend"} <= names:
        allowed_options = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(allowed - {"resume", "extend"}))
        raise SweepError(
            f"{option} goes on with the options the sweep was begun with; leave out "
            f"{', '.join(changed) or '--extend'} (only {allowed_options} may be given)"
        )


def _options_on_command_line(context: typer.Context) -> set[str]:
    """The names of the options that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name != "DEFAULT"}


app = command(main)

if __name__ == "__main__":
    app()
