"""The errors that people are told in a sentence, without a traceback; whoever raises one writes it for them."""


class UserError(Exception):
    """An error that a user can mend: the message says what happened, where, and what to do; each kind is a class."""
