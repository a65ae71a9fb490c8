"""Prints lines and errors of commands on the terminal's error stream."""

from __future__ import annotations

import os

from rich.console import Console

console = Console(stderr=True)


def lines_only() -> None:
    """Show no tables and bars that move."""
    console.is_interactive = False


def say(line: str, style: str = "") -> None:
    """Print a line as it is: what looks like rich's markup in it may be a path or a column's name."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def say_problem(problem: BaseException) -> None:
    """Print what went wrong; of an error in another process its own message, not where it was met on the way."""
    notes = getattr(problem, "__notes__", [])
    cause = getattr(problem, "cause", None)  # of Ray's errors
    if isinstance(cause, Exception) and not type(cause).__module__.startswith("ray."):
        problem = cause
    say(f"{type(problem).__name__}: {problem}", style="red")
    if isinstance(problem, FileNotFoundError) and problem.filename is None and not os.path.exists("."):  # noqa: PTH110
        say("The folder that this command was given in no longer exists: change to another one, and give it again")
    if isinstance(problem, PermissionError):
        say("Give a file or folder that is yours to use, or have its owner change its permissions")
    for note in notes:
        say(note[0].upper() + note[1:])
