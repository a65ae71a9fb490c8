"""The errors that people are told in a sentence, without a traceback; whoever raises one writes it for them."""


class UserError(Exception):
    """What a user can mend; the message says what happened, where, and what to do. Each kind is a class of its own."""
