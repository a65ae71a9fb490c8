"""What may be wrong with a sweep, or with a finished run of one; who reads neither imports nothing else for it."""

from data.errors import UserError


class SweepError(UserError, RuntimeError):
    """A sweep that cannot start or go on; the message says why and what to do."""


class RunError(UserError, ValueError):
    """A run cannot be read, or runs do not go together; the message says why and what to do."""
