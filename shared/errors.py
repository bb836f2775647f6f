"""Errors for the person at the keyboard: one clear message, no traceback."""

__all__ = ["InputError", "UserError"]


class UserError(Exception):
    """Something that the caller can mend: says what was found, what was expected, and what to do."""

    exit_code = 2
    """What the command line exits with."""


class InputError(UserError):
    """One input (a file, an upload) that cannot be used. A batch lists it and goes on with the others."""
