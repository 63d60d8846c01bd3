"""What a person sees: tables on stdout, progress on stderr (a bar on a terminal, plain lines in a log)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dydit_cli import units

out = Console(highlight=False)

err = Console(stderr=True, highlight=False)

LOG_EVERY_SECONDS = 10.0


class Advance(Protocol):
    """Moves a progress display on by `amount`; `note` says how it goes."""

    def __call__(self, amount: int = 1, note: str = "") -> None: ...


@contextmanager
def progress(what: str, total: int, unit: str, per: int = 1) -> Iterator[Advance]:
    """Shows `total` units of work with rate and time left; `per` of what one advances by make a unit."""
    if err.is_terminal:
        with _bar(what, total, unit, per) as advance:
            yield advance
    else:
        yield _lines(what, total, unit, per)


@contextmanager
def _bar(what: str, total: int, unit: str, per: int) -> Iterator[Advance]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    start, done = time.perf_counter(), 0
    with Progress(*columns, console=err) as bar:
        task = bar.add_task(what, total=total, rate="", note="")

        def advance(amount: int = 1, note: str = "") -> None:
            nonlocal done
            done += amount
            rate = _rate(done / per, time.perf_counter() - start, unit)
            bar.update(task, completed=done / per, rate=rate, note=note)

        yield advance


def _lines(what: str, total: int, unit: str, per: int) -> Advance:
    start = said = time.perf_counter()
    done = 0

    def advance(amount: int = 1, note: str = "") -> None:
        nonlocal said, done
        done += amount
        now = time.perf_counter()
        if now - said < LOG_EVERY_SECONDS and done < total * per:
            return
        said, past = now, now - start
        left = (total * per / done - 1) * past
        time_left = f", {units.seconds(left)} left" if done < total * per else f", took {units.seconds(past)}"
        text = f"{what}: {done // per}/{total} {unit}, {_rate(done / per, past, unit)}{time_left}"
        err.print(text + (f", {note}" if note else ""), markup=False, soft_wrap=True)

    return advance


def _rate(done: float, seconds: float, unit: str) -> str:
    """`31.4 images/s`; under one a second with the digits that still tell something."""
    rate = done / max(seconds, 1e-9)
    return f"{rate:.1f} {unit}/s" if rate >= 1 else f"{rate:.2g} {unit}/s"


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on stdout; the first column is text, the others are numbers."""
    drawn = Table(title=Text(title), title_justify="left", title_style="bold")  # Text: "[s]" is a unit, not markup
    for i, column in enumerate(columns):
        drawn.add_column(Text(column), justify="left" if i == 0 else "right")
    for row in rows:
        drawn.add_row(*map(Text, row))
    out.print(drawn)


def facts(title: str, pairs: dict[str, str]) -> None:
    """Name and value, a line each."""
    drawn = Table(title=Text(title), title_justify="left", title_style="bold", show_header=False, box=None)
    drawn.add_column(style="dim", no_wrap=True)
    drawn.add_column(overflow="fold")
    for name, value in pairs.items():
        drawn.add_row(Text(name), Text(value))
    out.print(drawn)


def say(text: str) -> None:
    """One line on stdout that is not cut or wrapped."""
    out.print(text, markup=False, soft_wrap=True)


def note(text: str) -> None:
    """One line on stderr."""
    err.print(text, markup=False, soft_wrap=True)


def as_json(value: Any) -> None:
    """JSON on stdout and nothing else."""
    print(json.dumps(value, indent=2))


class Stages:
    """A progress display for work in several stages, one after the other."""

    def __init__(self) -> None:
        self._open: ExitStack = ExitStack()
        self._advance: Advance = _ignore

    def begin(self, what: str, total: int, unit: str, per: int = 1) -> None:
        self._open.close()
        self._advance = self._open.enter_context(progress(what, total, unit, per))

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._advance(amount, note)

    def close(self) -> None:
        self._open.close()


@contextmanager
def stages() -> Iterator[Stages]:
    work = Stages()
    try:
        yield work
    finally:
        work.close()


def _ignore(amount: int = 1, note: str = "") -> None:
    pass
