"""A plan, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from data.machine.console import console, say

NOTABLE_SECONDS = 15  # to compile; loading what is compiled takes a second or two


@dataclass(frozen=True)
class Step:
    """One step of a sweep, in seconds.

    Attributes:
        name: for people.
        seconds: expected.
        low, high: of ten sweeps eight lie between, as far as chance decides which trials are stopped and chosen.
        core_seconds: of the cores that its processes keep.
        note: what it consists of.
    """

    name: str
    seconds: float
    low: float
    high: float
    core_seconds: float
    note: str


@dataclass(frozen=True)
class Epoch:
    """An epoch of one trial, or a fit in one go, on the training part of a mean fold.

    Attributes:
        what: it is, such as `An epoch of readout with batches of 32`.
        seconds: expected.
        note: how they were found, where that must be known to believe them; else "".
    """

    what: str
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Memory:
    """Expected bytes.

    Attributes:
        shared: by trials, once a node.
        store_needed: of Ray's object store, which holds the rows twice where cached arrays are added to them.
        store: that Ray has.
        trial: of each trial's process beside them; None where /proc does not tell, as the next one.
        driver: of the sweep's own process.
        cache_on_disk: of what is kept of the rows.
    """

    shared: float
    store_needed: float
    store: float
    trial: float | None
    driver: float | None
    cache_on_disk: float


@dataclass(frozen=True)
class Plan:
    """What a sweep is expected to take.

    Attributes:
        title: the sweep in a line.
        n_rows, n_sample: rows of the task, and how many of them were measured on.
        slots: trials at once.
        device: that was measured.
        steps: one after the other.
        seconds: of all of them.
        low, high: as those of a step.
        at_most: seconds, were no trial stopped early and the costliest config chosen.
        epochs: at the freeze depths and batch sizes that span the space.
        fold_search, fold_training: seconds of one fold's search, and of one fold's share of the training.
        core_hours, gpu_hours: that the sweep keeps.
        memory: of everything.
        trials_a_gpu: trials that fit on the GPU that was measured, or None.
        planning: seconds that the plan took, reading the task included.
        compiling: of these, what kernels took that were not compiled before.
        load, cores: processes that wanted a core in the last minute, and how many cores Ray has.
    """

    title: str
    n_rows: int
    n_sample: int
    slots: int
    device: str
    steps: tuple[Step, ...]
    seconds: float
    low: float
    high: float
    at_most: float
    epochs: tuple[Epoch, ...]
    fold_search: float
    fold_training: float
    core_hours: float
    gpu_hours: float
    memory: Memory
    trials_a_gpu: int | None
    planning: float
    compiling: float
    load: float
    cores: int


def show(plan: Plan) -> None:
    """Print what a sweep is expected to take."""
    say(f"Plan: {plan.title}, {plan.n_rows:,} rows", style="bold")
    table = Table("step", "expected", "8 in 10 between", "core-h", "", box=SIMPLE_HEAD, padding=0)
    for step in plan.steps:
        between = spread(step.low, step.high)
        table.add_row(step.name, duration(step.seconds), between, f"{step.core_seconds / 3600:.3g}", step.note)
    between = spread(plan.low, plan.high)
    table.add_row("all", duration(plan.seconds), between, f"{plan.core_hours:.3g}", "", style="bold")
    console.print(table)
    if plan.low < plan.high:
        say(f"At most {duration(plan.at_most)}, were no trial stopped early and the costliest configuration chosen.")
    for epoch in plan.epochs:
        say(f"{epoch.what}: {duration(epoch.seconds)}{epoch.note}")
    search = f"search {duration(plan.fold_search)}, " if plan.fold_search else ""
    say(f"A fold: {search}training and test {duration(plan.fold_training)}")
    memory = plan.memory
    processes = f"{size(memory.trial)} for each of {plan.slots} trials beside it" if memory.trial else ""
    driver = f", {size(memory.driver)} for the sweep's own process" if memory.driver else ""
    say(f"Memory: {size(memory.shared)} shared by the trials; {processes}{driver}. Cache: {size(memory.cache_on_disk)}")
    if memory.store_needed > memory.store:
        say(
            f"Warning: {size(memory.store_needed)} are to go into Ray's object store, which has {size(memory.store)}: "
            "the rest goes to disk and comes back slowly. Use a machine with more memory, or fewer rows (--ids)",
            style="yellow",
        )
    if plan.trials_a_gpu is None:
        say("Measured on the CPU: nothing is said of a GPU.")
    else:
        share = f"at least --gpus-per-trial {1 / plan.trials_a_gpu:.2g}" if plan.trials_a_gpu else "more than one GPU"
        say(f"Measured on {plan.device}: a trial needs {share}. {plan.gpu_hours:.3g} GPU-hours.")
    if plan.compiling > NOTABLE_SECONDS:
        say(f"{duration(plan.compiling)} went into compiling, once on this machine; the sweep is not charged for it.")
    say(
        f"On {plan.n_sample:,} rows, in {duration(plan.planning)}, while {plan.load:.1f} processes wanted the "
        f"{plan.cores} cores; a sweep that finds them more or less busy takes longer or shorter."
    )


def spread(low: float, high: float) -> str:
    """Two ends, in seconds; how far they are from their middle where both read alike; nothing where they are one."""
    if low == high:
        return ""
    ends = duration(low), duration(high)
    return f"{ends[0]} - {ends[1]}" if ends[0] != ends[1] else f"{ends[0]} +- {duration((high - low) / 2)}"


def duration(seconds: float) -> str:
    """Seconds in units that a person reads."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if minutes < 10 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def size(n_bytes: float) -> str:
    """Bytes likewise."""
    return f"{n_bytes / 1e9:.2g} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.3g} MB"
