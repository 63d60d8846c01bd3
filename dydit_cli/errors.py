"""The one exception that users see."""

from __future__ import annotations


class DyditError(Exception):
    """A mistake or a bad file that the user can mend.

    The message is one line that names the thing and the mend. The command line prints it on stderr and exits with 2;
    in Python it is an ordinary exception.
    """
