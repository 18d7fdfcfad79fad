"""The exception for mistakes that the user can correct: a wrong value in conf/, a broken file, a missing model.

``files.run`` and planning print it as one sentence. Every other exception is a bug, ours or a library's: it keeps its traceback, and the
command ends with a status other than 0.
"""

from __future__ import annotations


class UserError(ValueError):
    """The user's mistake. The message names the file, key or row, and what to do."""

    status = 1  # the stage's exit status


class NotFinite(UserError):
    """A loss or gradient that is not finite. Other hyperparameters may help."""

    status = 3
