"""The methods that a study compares: which rows each has, and what its fine-tuning begins with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from dydit_cli.checkpoint.budgets import at_ratio
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import CONFIG_FILE
from dydit_cli.checkpoint.read import read
from dydit_cli.compress.convert import convert
from dydit_cli.compress.prune import prune
from dydit_cli.studies.recipe import MethodsPart, StudyRecipe
from dydit_cli.train.recipe import Recipe, SamplingSection, for_model, with_steps
from dydit_cli.train.run import resolve_recipe

STATIC, PRUNE = "static", "prune"

Tuning = Literal["dynamic", "static"]


@dataclass(frozen=True)
class Method:
    """`rows` are names and targets in a study's recipe, `tuning` the one of its recipes that a row is fine-tuned with, None
    for the static model as it is. `start` writes what that begins with, by default it is the static model. A `whole` one
    leaves nothing out and has no target; one that `merges` tokens does so while sampling; the target of one that `hurries` is
    its number of sampling steps. One that is `ranged` has one model for all targets, its FLOPs ratios. `steps` are such numbers
    too, and `caches` spellings of caches, with which each row's model is measured as well."""

    rows: Callable[[MethodsPart], list[tuple[str, float]]]
    tuning: Tuning | None = None
    start: Callable[[Start, Row, Path], object] | None = None
    whole: bool = False
    merges: bool = False
    hurries: bool = False
    ranged: bool = False
    steps: Callable[[MethodsPart], Sequence[int]] = lambda part: ()
    caches: Callable[[MethodsPart], Sequence[str]] = lambda part: ()


@dataclass(frozen=True)
class Row:
    """`target` is lambda of a DyDiT, the FLOPs ratio of one of a range, the share that pruning keeps, the share of tokens that
    ToMe merges, 1 of what is whole. The seed is of pruning, of fine-tuning and of the samples; a DyDiT is converted once and
    for all seeds alike. `steps` are sampling steps, None for the study's own number; `cache` is spelled as in lists."""

    method: str
    target: float
    seed: int
    steps: int | None = None
    cache: str | None = None

    @property
    def what(self) -> str:
        """Method, target, steps and cache: rows of one name differ by seed alone."""
        method = method_of(self.method)
        name = self.method if method.whole else f"{self.method}-{self.target:g}"
        name = name if self.steps is None or method.hurries else f"{name}-{self.steps}steps"
        return name if self.cache is None else f"{name}-{self.cache.replace(':', '-')}"  # no colon in names of files

    @property
    def name(self) -> str:
        return f"{self.what}-seed{self.seed}"

    @property
    def made(self) -> Row:
        """The row whose model this one measures: of rows that differ by steps or cache the first, which is fine-tuned, and of a
        range the complete model's."""
        made = self if self.tuning is None else replace(self, steps=None, cache=None)
        return replace(made, target=1.0) if method_of(self.method).ranged else made

    @property
    def tuning(self) -> Tuning | None:
        return method_of(self.method).tuning

    @property
    def tome(self) -> float | None:
        """The share of tokens merged while sampling."""
        return self.target if method_of(self.method).merges else None


@dataclass(frozen=True)
class Start:
    """Where all rows begin: the static model, the study, and its two recipes over the budget's steps."""

    checkpoint: Checkpoint
    recipe: StudyRecipe
    tunings: dict[Tuning, Recipe]
    device: str

    @classmethod
    def of(cls, checkpoint: Checkpoint, recipe: StudyRecipe, device: str) -> Start:
        part = recipe.finetune
        names: dict[Tuning, str] = {"dynamic": part.dynamic, "static": part.static}
        tunings = {
            tuning: for_model(resolve_recipe(name, steps=part.steps, data=recipe.data), checkpoint.config)
            for tuning, name in names.items()
        }
        return cls(checkpoint, recipe, tunings, device)

    def tuning(self, row: Row) -> Recipe | None:
        """The recipe of one row, None where nothing is fine-tuned. A DyDiT is calibrated over sampling as it is measured.

        Where the recipe has a teacher and names none, it is the study's model, of what was pruned too: its own start would
        teach it the damage. A DyDiT begins as that model.
        """
        if row.tuning is None:
            return None
        settings: dict[str, Any] = {"train.seed": row.seed, "lora.merge": True}  # what is measured is a model
        recipe = self.tunings[row.tuning]
        train = recipe.train
        if row.tuning == "static" and train.teacher_weight and train.teacher is None:
            settings["train.teacher"] = self.recipe.model
        if row.tuning == "dynamic":
            settings["routing.flops_ratio"] = row.target
            if ranged := method_of(row.method).ranged:
                settings["routing.flops_ratio"], settings["routing.largest_ratio"] = self.recipe.finetune.range
                recipe = with_steps(recipe, self.recipe.finetune.range_steps or recipe.train.steps)
            if ranged or self.recipe.finetune.calibrate:
                sampling = {name: getattr(self.recipe.evaluation, name) for name in SamplingSection.model_fields}
                settings |= {
                    "routing.calibrate": not ranged,
                    **{f"calibration.{name}": value for name, value in sampling.items()},
                }
        return resolve_recipe(recipe, settings=settings)

    def at_target(self, row: Row, made: Checkpoint) -> Checkpoint:
        """What of the row's model is measured."""
        return at_ratio(made, row.target) if method_of(row.method).ranged else made

    def begin(self, row: Row, path: Path) -> Checkpoint:
        """What the row's fine-tuning begins with, written to `path` where it has to be made."""
        write = method_of(row.method).start
        if write is None:
            return self.checkpoint
        if not (path / CONFIG_FILE).is_file():
            write(self, row, path)
        return read(path)


def _convert(start: Start, row: Row, path: Path) -> None:
    convert(start.checkpoint, path)


def _prune(start: Start, row: Row, path: Path) -> None:
    method, data = cast(Any, row.method), start.recipe.data
    prune(start.checkpoint, path, method=method, keep=row.target, data=data, seed=row.seed, device=start.device)


# in the order of a study's rows
METHODS: dict[str, Method] = {
    STATIC: Method(lambda part: [(STATIC, 1.0)], whole=True, caches=lambda part: part.cache),
    "control": Method(lambda part: [("control", 1.0)] if part.control else [], "static", whole=True),
    "dydit": Method(
        lambda part: [("dydit", ratio) for ratio in part.dydit],
        "dynamic",
        _convert,
        steps=lambda part: part.dydit_steps,
        caches=lambda part: part.dydit_cache,
    ),
    "range": Method(
        lambda part: [("range", ratio) for ratio in part.range],
        "dynamic",
        _convert,
        ranged=True,
        caches=lambda part: part.dydit_cache,
    ),
    PRUNE: Method(lambda part: [(name, keep) for keep in part.kept for name in part.prune], "static", _prune),
    "tome": Method(lambda part: [("tome", ratio) for ratio in part.tome], merges=True),
    "steps": Method(lambda part: [("steps", float(steps)) for steps in part.steps], hurries=True),
}


def method_of(name: str) -> Method:
    """Of a row's name: a method of pruning has its own."""
    return METHODS.get(name, METHODS[PRUNE])


def rows_of(recipe: StudyRecipe) -> list[Row]:
    """All rows, a seed after the other, so that an unfinished study already compares everything; the static model first, and
    behind each row those of its model at other numbers of steps and with caches.

    Where the study's own number of steps is named among those, the row at hand is the one that has it.
    """
    rows: list[Row] = []
    for seed in recipe.seeds:
        for method in METHODS.values():
            for name, target in method.rows(recipe.methods):
                row = Row(name, target, seed, int(target) if method.hurries else None)
                rows += [row, *(replace(row, steps=steps) for steps in method.steps(recipe.methods))]
                rows += [replace(row, cache=cache) for cache in method.caches(recipe.methods)]
    return [row for row in rows if row.steps is None or row.steps != recipe.evaluation.usual_steps]
