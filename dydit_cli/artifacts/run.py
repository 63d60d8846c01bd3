"""What training leaves: a line of figures for every step."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dydit_cli.errors import DyditError

if TYPE_CHECKING:
    pass


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

    def to_dict(self) -> dict[str, float | int | bool | None]:
        return asdict(self)


METRICS_FILE = "metrics.jsonl"

COLUMNS = ("step", "mse", "vb", "ratio", "target", "skipped")


def read_metrics(run: str | Path) -> pd.DataFrame:
    """A row for each step of the run in the folder `run`; raises `DyditError` where it has no readable metrics."""
    file = Path(run) / METRICS_FILE
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        table = pd.DataFrame(rows)
    except FileNotFoundError:
        raise DyditError(
            f"{run}: not a training run: it has no {METRICS_FILE}; dydit finetune and pretrain write one"
        ) from None
    except (OSError, ValueError) as error:
        raise DyditError(f"{file}: not readable as metrics: {error}") from None
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing and rows:
        raise DyditError(f"{file}: its lines lack {missing[0]!r}; they are not a training run's")
    if not rows:
        raise DyditError(f"{file}: holds no step yet")
    return table
