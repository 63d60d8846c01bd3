"""A study's progress, and how an interrupted one ends."""

from __future__ import annotations

from collections.abc import Callable

PER_ROW = 1000  # what a whole row advances the display by

OnWork = Callable[[int, str], None]  # how much, and how it goes

OnStage = Callable[[str, int, str, int], None]  # what, how many, of which unit, and how much progress makes one


class Interrupted(Exception):  # noqa: N818
    """The study is to stop; finished rows are on disk, and so is what a fine-tuning had learned."""


class RowWork:
    """Tells `on_work` of a row named `name`, whose parts have shares of 1 in all."""

    def __init__(self, name: str, on_work: OnWork, should_stop: Callable[[], bool]) -> None:
        self._name, self._on_work, self._should_stop = name, on_work, should_stop
        self._done, self._told, self._scale = 0.0, 0, 1.0

    def part(self, what: str, share: float, total: int) -> Callable[[int], None]:
        """Call the result with amounts that make `total`; it raises `Interrupted` where the study is to stop."""
        share *= self._scale

        def advance(amount: int) -> None:
            self._tell(share * amount / total, what)
            if self._should_stop():
                raise Interrupted

        return advance

    def tuned(self, share: float, total: int) -> Callable[[], None]:
        """For a fine-tuning of `total` steps, which stops by itself; the parts to come share what it leaves."""
        self._scale = 1 - share

        def advance() -> None:
            self._tell(share / total, "fine-tune")

        return advance

    def finish(self) -> None:
        """Tells of what is left."""
        self._tell(1 - self._done, "done")

    def _tell(self, share: float, note: str) -> None:
        self._done += share
        whole = round(min(1.0, self._done) * PER_ROW)
        if whole > self._told:
            self._on_work(whole - self._told, f"{self._name}: {note}")
            self._told = whole
