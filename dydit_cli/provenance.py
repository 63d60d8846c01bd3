"""The command line that is running, for everything that it writes: how a result was made is stored when it is made."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

# of the occasion alone: they change nothing in the result, and --force would replace it
UNSTORED = frozenset({"--force", "--json"})

_command: ContextVar[str | None] = ContextVar("command", default=None)


def as_command(words: Sequence[str], without: Collection[str] = UNSTORED) -> str:
    """`dydit WORDS`, quoted for a shell, without --force and --json."""
    return shlex.join(["dydit", *(word for word in words if word not in without)])


@contextmanager
def made_with(command: str | None) -> Iterator[None]:
    """What is written within the block was made with `command`, None for what no command line made."""
    before = _command.set(command)
    try:
        yield
    finally:
        _command.reset(before)


def command_line() -> str | None:
    """The command that is running; None where dydit is used from Python."""
    return _command.get()


def made_by() -> dict[str, str]:
    """`{"command": ...}` for a summary; empty where dydit is used from Python."""
    command = command_line()
    return {} if command is None else {"command": command}
