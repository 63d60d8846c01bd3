"""Which rows a study has: a method, its target, a seed; and what each method asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dydit_cli.baselines.importance import Method
from dydit_cli.tradeoff.recipe import StudyRecipe

STATIC, CONTROL, DYDIT, TOME = "static", "control", "dydit", "tome"
PRUNINGS: tuple[str, ...] = get_args(Method)
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
