"""`dydit plan COMMAND`: the command itself, up to where its work begins.

There a command that is only `planned()` raises `Planned` with what it will take, and its module says that it does by `PLANNED =
True`: options are read, and refused, by the command itself, and its plan is made in one place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dydit_cli.costs.plan import Plan

_planning: ContextVar[bool] = ContextVar("planning", default=False)


class Planned(Exception):  # noqa: N818  # no error
    """Ends a command that is only planned: with its plan, or None where it costs little."""

    def __init__(self, plan: Plan | None) -> None:
        super().__init__("planned")
        self.plan = plan


@contextmanager
def planning() -> Iterator[None]:
    """Within it, commands end where their work would begin."""
    before = _planning.set(True)
    try:
        yield
    finally:
        _planning.reset(before)


def planned() -> bool:
    """Whether the command is to end here, where its work would begin."""
    return _planning.get()
