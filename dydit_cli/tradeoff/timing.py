"""What a row's sampling costs in time: whole runs of it and of the static model in turn, on an otherwise idle machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch

from dydit_cli.bench.run import Spread
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.sampling.painter import Drawing, open_painter
from dydit_cli.tradeoff.measure import Yardstick
from dydit_cli.tradeoff.progress import RowWork
from dydit_cli.tradeoff.recipe import TimingPart
from dydit_cli.tradeoff.rows import STATIC, Row


def time_row(
    static: Checkpoint, model: Checkpoint, row: Row, how: TimingPart, yardstick: Yardstick, work: RowWork
) -> dict[str, Any]:
    """Seconds per image of both, and the static model's over the row's, run by run; medians and quartiles.

    A run draws `how.images` images at once. What it plans and computes ahead belongs to it: each begins with a new model.
    """
    whole = Row(STATIC, 1.0, row.seed)
    pair = [(static, yardstick.drawing(whole, how.images)), (model, yardstick.drawing(row, how.images))]
    total = (2 * how.repeats + 2) * how.images * yardstick.how.settings.steps
    advance = work.part("time", 1.0, total)
    for checkpoint, drawing in pair:  # warm
        _run(checkpoint, drawing, how.images, advance)
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(how.repeats):
        for side in (0, 1) if repeat % 2 == 0 else (1, 0):  # neither always comes first
            seconds[side].append(_run(*pair[side], how.images, advance) / how.images)
    return {
        "method": row.method,
        "target": row.target,
        "seed": row.seed,
        "seconds_per_image": _values(Spread.of(seconds[1])),
        "static_seconds_per_image": _values(Spread.of(seconds[0])),
        "speedup": _values(Spread.of([a / b for a, b in zip(*seconds, strict=True)])),
        "images": how.images,
        "repeats": how.repeats,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
    }


def _run(checkpoint: Checkpoint, drawing: Drawing, images: int, advance: Callable[[int], None]) -> float:
    painter = open_painter(checkpoint, drawing)
    start = time.perf_counter()
    painter.samples(0, images)  # ends on the cpu, so nothing is under way after it
    seconds = time.perf_counter() - start
    advance(images * drawing.settings.steps)
    return seconds


def _values(spread: Spread) -> dict[str, float]:
    return {"median": spread.median, "low": spread.low, "high": spread.high}
