"""Errors of sweeps and of finished runs, apart from what raises them, so that commands can catch them at no cost."""

from data.errors import UserError


class SweepError(UserError, RuntimeError):
    """A sweep that cannot start or go on; the message says why and what to do."""


class RunError(UserError, ValueError):
    """A run cannot be read, or runs do not go together; the message says why and what to do."""
