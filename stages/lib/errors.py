"""The one exception for what the user can mend: a wrong value in conf/, a broken file, a missing model.

``files.run`` and planning turn it, and nothing else, into one sentence. Every other exception is a bug of ours or of a library's: it keeps
its traceback, and the command ends with a status that is not 0.
"""

from __future__ import annotations


class UserError(ValueError):
    """The user's mistake. The message names the file, key or row, and what to do."""

    status = 1  # the exit status of a stage that it ends


class NotFinite(UserError):
    """A loss or gradient that is no number: other values of the hyperparameters may mend it."""

    status = 3
