"""What training leaves: a line of figures for every step, the resolved recipe, and in the end a checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dydit_cli import marks
from dydit_cli.artifacts.base import Artifact, read_object, read_object_if_any
from dydit_cli.errors import DyditError
from dydit_cli.model.config import ModelConfig
from dydit_cli.model.families import config_from_dict

CONFIG_FILE, METRICS_FILE, RECIPE_FILE = marks.CHECKPOINT, marks.METRICS, marks.RECIPE

STATE_FOLDER, BEGUN_FILE = "state", "run.json"  # of a run that is not finished: its states, and what it was begun with

COLUMNS = ("step", "mse", "vb", "ratio", "target", "skipped")


@dataclass(frozen=True)
class StepMetrics:
    """One step's figures. Losses are means over the global batch; `ratio` is its FLOPs ratio under the training noise, and
    None for a static model; `seconds` is since the run began, without the time between an interruption and its
    resumption; `peak_memory` is the most that this process held on a GPU, in bytes, and None elsewhere."""

    step: int
    loss: float
    mse: float
    vb: float
    complete_loss: float | None
    teacher_loss: float | None
    ratio: float | None
    target: float | None
    grad_norm: float
    skipped: bool
    lr: float
    seconds: float
    peak_memory: int | None = None
    cosine_loss: float | None = None
    block_loss: float | None = None

    def to_dict(self) -> dict[str, float | int | bool | None]:
        """Plain values for JSON; the last two only where they have a weight."""
        optional = ("cosine_loss", "block_loss")
        return {name: value for name, value in asdict(self).items() if name not in optional or value is not None}


@dataclass(frozen=True)
class CheckpointFolder(Artifact):
    """A checkpoint as its config.json describes it, without its weights; `config` is empty for a run that has none yet."""

    kind = "checkpoint"
    name = "a checkpoint"
    made_by = "dydit convert SRC DIR"
    mark = CONFIG_FILE

    config: dict[str, Any]

    @classmethod
    def fits(cls, path: Path) -> bool:
        return super().fits(path) and not (path / METRICS_FILE).is_file()

    @property
    def model(self) -> dict[str, Any]:
        """The model's configuration."""
        return self.config.get("model", {})

    @property
    def model_config(self) -> ModelConfig | None:
        """The same, checked; None where there is none yet. Raises `DyditError` for a family that this dydit does not know."""
        return config_from_dict(self.model) if self.model else None

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """What was done to the weights, oldest first."""
        return self.config.get("lineage", [])

    @classmethod
    def read(cls, path: str | Path) -> CheckpointFolder:
        folder = Path(path)
        with cls.reading(folder):
            return cls(read_object(folder / CONFIG_FILE))


@dataclass(frozen=True)
class Run(CheckpointFolder):
    """`metrics` has a row for each step, `recipe` is the resolved recipe; `begun` is what a run that is not finished was
    begun with, None for a finished one."""

    kind = "run"
    name = "a training run"
    made_by = "dydit finetune CKPT --out DIR"
    mark = METRICS_FILE

    metrics: pd.DataFrame
    recipe: dict[str, Any] | None
    begun: dict[str, Any] | None

    @classmethod
    def fits(cls, path: Path) -> bool:
        return (path / METRICS_FILE).is_file()

    @property
    def steps(self) -> int:
        """How many are done."""
        return int(self.metrics["step"].iloc[-1])

    @property
    def planned_steps(self) -> int | None:
        """How many the recipe asks for, where it is known."""
        return None if self.recipe is None else self.recipe.get("train", {}).get("steps")

    @classmethod
    def read(cls, path: str | Path) -> Run:
        folder = Path(path)
        metrics = read_metrics(folder)
        with cls.reading(folder):
            config, recipe, begun = (
                read_object_if_any(folder / name) for name in (CONFIG_FILE, RECIPE_FILE, f"{STATE_FOLDER}/{BEGUN_FILE}")
            )
        return cls(config or {}, metrics, recipe, begun)


def read_metrics(folder: Path) -> pd.DataFrame:
    """A row for each step of a run; raises `DyditError` where `folder` has no readable metrics, or no step yet."""
    file = folder / METRICS_FILE
    if not file.is_file():
        raise Run.refusal(folder, f"it has no {METRICS_FILE}")
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        table = pd.DataFrame(rows)
    except (OSError, ValueError) as error:
        raise DyditError(f"{file}: not readable as metrics: {error}") from None
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing and rows:
        raise DyditError(f"{file}: its lines lack {missing[0]!r}; they are not a training run's")
    if not rows:
        raise DyditError(f"{file}: holds no step yet")
    return table
