"""From the static model to what a row measures: converted, pruned, fine-tuned, or as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.native import CONFIG_FILE, write_into
from dydit_cli.checkpoint.read import read
from dydit_cli.compress.convert import convert
from dydit_cli.compress.prune import prune
from dydit_cli.profiling.calibrate import calibrate
from dydit_cli.studies.folder import StudyFolder
from dydit_cli.studies.recipe import StudyRecipe
from dydit_cli.studies.rows import DYDIT, PRUNINGS, Interrupted, Row, RowWork, Tuning
from dydit_cli.train.recipe import Recipe
from dydit_cli.train.run import finetune, resolve_recipe
from dydit_cli.train.run_folder import StateFolder

TUNING_SHARE = 0.6  # of the time that a fine-tuned row takes, roughly


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
        tunings = {kind: resolve_recipe(name, steps=part.steps, data=recipe.data) for kind, name in names.items()}
        return cls(checkpoint, recipe, tunings, device)

    def tuning(self, row: Row, kind: Tuning) -> Recipe:
        """The recipe of one row."""
        ratio = row.target if row.method == DYDIT else None
        return resolve_recipe(self.tunings[kind], flops_ratio=ratio, settings={"train.seed": row.seed})


@dataclass(frozen=True)
class Made:
    """A row's model, and what making it was."""

    checkpoint: Checkpoint
    facts: dict[str, Any]


def make(row: Row, start: Start, folder: StudyFolder, work: RowWork, should_stop: Callable[[], bool]) -> Made:
    """The row's model; what an interruption left is gone on with. Raises `Interrupted` where it was asked to stop."""
    kind = row.tuning
    if kind is None:
        return Made(start.checkpoint, {"finetune_steps": 0})
    recipe, run = start.tuning(row, kind), folder.checkpoint(row)
    facts: dict[str, Any] = {"finetune_steps": recipe.train.steps}
    step = work.tuned(TUNING_SHARE, recipe.train.steps)
    # an interrupted run has a model too, and its states beside it
    if not (run / CONFIG_FILE).is_file() or StateFolder(run).exists():
        result = finetune(
            begin(row, start, folder.start(row)),
            run,
            recipe=recipe,
            device=start.device,
            on_step=lambda metrics: step(),
            should_stop=should_stop,
        )
        if result.interrupted:
            raise Interrupted
        facts |= {"finetune_seconds": result.seconds, "skipped_steps": result.skipped}
    if row.method == DYDIT and start.recipe.finetune.calibrate:
        facts["calibration_shift"] = calibrated(run, row, start)
    return Made(read(run), facts)


def begin(row: Row, start: Start, place: Path) -> Checkpoint:
    """What the row's fine-tuning begins with."""
    if row.method == DYDIT or row.method in PRUNINGS:
        if not (place / CONFIG_FILE).is_file():
            if row.method == DYDIT:
                convert(start.checkpoint, place)
            else:
                method, data = row.method, start.recipe.data
                prune(start.checkpoint, place, method=method, keep=row.target, data=data, seed=row.seed, device=start.device)
        return read(place)
    return start.checkpoint


def calibrated(run: Path, row: Row, start: Start) -> float:
    """Shifts the routers of the model in `run` to the row's lambda, once; returns by how much."""
    tuned = read(run)
    last = tuned.lineage[-1]
    if last["action"] == "calibrate":
        return float(last["shift"])
    settings = start.recipe.evaluation.settings
    checkpoint, figures = calibrate(tuned, row.target, settings=settings, seed=row.seed, device=start.device)
    write_into(checkpoint, run)
    return figures.shift
