"""Errors a user can mend. Every other exception is a defect of ours and keeps its traceback."""


class UserError(ValueError):
    """Bad config or bad input: reported as one line without a traceback, exit code 2.

    The message names the key or file, the value found, and what to do about it.
    """


class ConfigError(UserError):
    """A config value, key or group choice that cannot be used."""


class InputError(UserError):
    """A file, folder, bucket or table that cannot be used."""
