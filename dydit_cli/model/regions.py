"""The regions of a forward pass name themselves, for whoever takes the time: `with region(ATTENTION): ...`.

Without a listener a region costs one look at a variable.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

ATTENTION, MLP, MODULATION = "attention", "mlp", "modulation and norms"
TOKEN_ROUTERS, GATHER, SLICING, MATCHING = "token routers", "gather and scatter", "slicing", "matching"
FORECAST = "forecast"
_NOTHING: AbstractContextManager[None] = nullcontext()


class Listener(Protocol):
    """Enters a region by its name, and leaves it at the end of the block."""

    def region(self, name: str) -> AbstractContextManager[None]: ...


_listener: Listener | None = None


def region(name: str) -> AbstractContextManager[None]:
    """The region `name` of a forward pass, for the length of the block."""
    return _NOTHING if _listener is None else _listener.region(name)


@contextmanager
def listen(listener: Listener | None) -> Iterator[None]:
    """Inside, every region is reported to `listener`, and to no other."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def unheard() -> AbstractContextManager[None]:
    """Inside, no region is reported: where nobody may wait for the device."""
    return listen(None)
