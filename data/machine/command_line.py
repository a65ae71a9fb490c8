"""The command line of every command: its options, its errors in a sentence, its exit code.

A command's file holds its options alone, and imports what does the work when they have been read: `--help` and a wrong
option answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from data.errors import UserError
from data.machine.console import say_problem


def command(main: Callable[..., None]) -> typer.Typer:
    """The command that a function is; what a user can mend ends it with a sentence and exit code 1."""
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)

    @app.command()
    @wraps(main)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            main(*arguments, **options)
        except errors_of_users() as problem:
            say_problem(problem)
            sys.exit(1)

    return app


def errors_of_users() -> tuple[type[BaseException], ...]:
    """Errors that are told in a sentence: ours, the system's, and Ray's, of which there are none before its import."""
    ray = sys.modules.get("ray.exceptions")
    return (UserError, OSError, *([ray.RayError] if ray else []))
