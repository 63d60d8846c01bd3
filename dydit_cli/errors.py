"""The one exception that users see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class DyditError(Exception):
    """A mistake or a bad file that the user can mend.

    The message is one line that names the thing and the mend. The command line prints it on stderr and exits with 2;
    in Python it is an ordinary exception.
    """


@contextmanager
def naming(what: object) -> Iterator[None]:
    """Lets a `DyditError` of the block begin with `what`, the file at fault, where it does not already."""
    try:
        yield
    except DyditError as error:
        text = str(error)
        raise DyditError(text if text.startswith(f"{what}: ") else f"{what}: {text}") from None
