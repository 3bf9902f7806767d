"""What is wrong with a file of the user, as opposed to a fault of the program."""

from __future__ import annotations


class BadFileError(ValueError):
    """A file of a dataset cannot be used; the message begins with its path.

    ``on_error: skip`` passes over these, and over files that cannot be opened; no other error.
    """
