"""Which rows a study has: a method, its target, a seed; and what each method asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dydit_cli.compress.criteria import CRITERIA
from dydit_cli.studies.recipe import StudyRecipe

STATIC, CONTROL, DYDIT, TOME = "static", "control", "dydit", "tome"

PRUNINGS: tuple[str, ...] = tuple(CRITERIA)

Tuning = Literal["dynamic", "static"]


@dataclass(frozen=True)
class Row:
    """`target` is lambda of a DyDiT, the share that pruning keeps, the share of tokens that ToMe merges, 1 of what is
    whole. The seed is of pruning, of fine-tuning and of the samples; a DyDiT is converted once and for all seeds alike."""

    method: str
    target: float
    seed: int

    @property
    def what(self) -> str:
        """Method and target: rows of one name differ by seed alone."""
        return self.method if self.method in (STATIC, CONTROL) else f"{self.method}-{self.target:g}"

    @property
    def name(self) -> str:
        return f"{self.what}-seed{self.seed}"

    @property
    def tuning(self) -> Tuning | None:
        """Which recipe the row is fine-tuned with, None where it is not: ToMe merges tokens of the static model."""
        if self.method in (STATIC, TOME):
            return None
        return "dynamic" if self.method == DYDIT else "static"

    @property
    def tome(self) -> float | None:
        """The share of tokens merged while sampling."""
        return self.target if self.method == TOME else None


def rows_of(recipe: StudyRecipe) -> list[Row]:
    """All rows, a seed after the other, so that an unfinished study already compares everything; the static model first."""
    methods = recipe.methods
    kinds = [(STATIC, 1.0)]
    if methods.control:
        kinds.append((CONTROL, 1.0))
    kinds += [(DYDIT, ratio) for ratio in methods.dydit]
    kinds += [(method, keep) for keep in methods.kept for method in methods.prune]
    kinds += [(TOME, ratio) for ratio in methods.tome]
    return [Row(method, target, seed) for seed in recipe.seeds for method, target in kinds]


PER_ROW = 1000  # what a whole row advances the display by

OnWork = Callable[[int, str], None]  # how much, and how it goes

OnStage = Callable[[str, int, str, int], None]  # what, how many, of which unit, and how much progress makes one


class Interrupted(Exception):  # noqa: N818
    """The study was asked to stop; finished rows are on disk, and so is what a fine-tuning had learned."""


class RowWork:
    """Tells `on_work` of a row named `name`, whose parts have shares of 1 in all."""

    def __init__(self, name: str, on_work: OnWork, should_stop: Callable[[], bool]) -> None:
        self._name, self._on_work, self._should_stop = name, on_work, should_stop
        self._done, self._told, self._scale = 0.0, 0, 1.0

    def part(self, what: str, share: float, total: int) -> Callable[[int], None]:
        """Call the result with amounts that make `total`; it raises `Interrupted` where the study was asked to stop."""
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
