"""What a person sees: tables on stdout, progress on stderr (a bar on a terminal, plain lines in a log)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dydit_cli import units

out = Console(highlight=False)

err = Console(stderr=True, highlight=False)

LOG_EVERY_SECONDS = 10.0

NARROWEST_NAME = 12  # what a table's first column keeps of the terminal's width beside its numbers

LONGEST_WORD = 24  # no number is longer; a path or a hash goes over two lines


class Stages:
    """Progress through stages of work, one after the other, with rate and time left."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._bar: Any = None

    def begin(self, what: str, total: int, unit: str, per: int = 1) -> None:
        """`total` units; `per` of what `advance` counts make one."""
        self.close()
        self._what, self._total, self._unit, self._per, self._done = what, total, unit, per, 0
        self._start = self._shown = time.perf_counter()
        if err.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            texts = [TextColumn(f"{{task.{name}}}") for name in ("description", "fields[rate]", "fields[note]")]
            columns = (texts[0], BarColumn(bar_width=24), MofNCompleteColumn(), texts[1], TimeRemainingColumn(), texts[2])
            self._bar = self._open.enter_context(Progress(*columns, console=err))
            self._task = self._bar.add_task(what, total=total, rate="", note="")

    def advance(self, amount: int = 1, note: str = "") -> None:
        """`note` tells how the work goes."""
        self._done += amount
        now, done = time.perf_counter(), self._done / self._per
        past = now - self._start
        rate = done / max(past, 1e-9)
        # under one a second with the digits that still tell something
        speed = f"{rate:.1f} {self._unit}/s" if rate >= 1 else f"{rate:.2g} {self._unit}/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, rate=speed, note=note)
        elif done >= self._total or now - self._shown >= LOG_EVERY_SECONDS:
            self._shown = now
            left = (self._total / max(done, 1e-9) - 1) * past
            ending = f"{units.seconds(left)} left" if done < self._total else f"took {units.seconds(past)}"
            text = f"{self._what}: {int(done)}/{self._total} {self._unit}, {speed}, {ending}"
            err.print(text + (f", {note}" if note else ""), markup=False, soft_wrap=True)

    def close(self) -> None:
        self._open.close()
        self._bar = None


@contextmanager
def stages() -> Iterator[Stages]:
    work = Stages()
    try:
        yield work
    finally:
        work.close()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; the first column is text, the others are numbers, which are never cut: where they do not fit
    beside each other, headings stand in several lines, and in the narrowest terminals each row is a list."""
    for heads in (columns, [column.replace(" ", "\n") for column in columns]):
        cells = zip(heads, *rows, strict=True)  # column by column
        widths = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in cells]
        if min(widths[0], NARROWEST_NAME) + sum(widths[1:]) + 3 * len(widths) + 1 <= out.width:
            drawn = Table(title=Text(title), title_justify="left", title_style="bold")  # Text: "[s]" is a unit, not markup
            for i, head in enumerate(heads):
                drawn.add_column(Text(head), justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
            for row in rows:
                drawn.add_row(*map(Text, row))
            out.print(drawn)
            return
    out.print(Text(title, "bold"))
    for name, *values in rows:
        facts(name, dict(zip(columns[1:], values, strict=True)))


def facts(title: str, pairs: dict[str, str]) -> None:
    """Name and value, a line each; the value under its name where a word of it would be cut."""
    longest = max((cell_len(word) for value in pairs.values() for word in value.split()), default=0)
    stacked = max(map(cell_len, pairs), default=0) + min(longest, LONGEST_WORD) + 3 > out.width
    drawn = Table(title=Text(title), title_justify="left", title_style="bold", show_header=False, box=None)
    drawn.add_column(overflow="fold", no_wrap=not stacked)
    if not stacked:
        drawn.add_column(overflow="fold")
    for name, value in pairs.items():
        cells = (Text(name, "dim"), Text(value))
        for row in ((cell,) for cell in cells) if stacked else (cells,):
            drawn.add_row(*row)
    out.print(drawn)


def say(text: str) -> None:
    """One line on stdout that is not cut or wrapped."""
    out.print(text, markup=False, soft_wrap=True)


def note(text: str) -> None:
    """One line on stderr."""
    err.print(text, markup=False, soft_wrap=True)


def error(text: str) -> None:
    """One line on stderr, in red; nothing where stderr cannot be written."""
    with suppress(OSError):  # the log may be what cannot be written
        err.print(" ".join(text.split()), style="bold red", markup=False, highlight=False, soft_wrap=True)


def as_json(value: Any) -> None:
    """JSON on stdout and nothing else."""
    print(json.dumps(value, indent=2))
