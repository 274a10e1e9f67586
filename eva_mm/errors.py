"""Errors that are the input's fault; tools print their text alone, without a traceback."""


class InputError(ValueError):
    """A file, a config or a command line is wrong.

    The message names file or key, what was found, and what was expected.
    """


class MissingFileError(InputError, FileNotFoundError):
    """A file that the input names is not there."""


class UnreadableFileError(InputError, OSError):
    """A file that the input names cannot be read."""


class UsageError(InputError):
    """A mistake in what the user typed."""
