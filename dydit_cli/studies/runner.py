"""Runs the rows of a study that are not done and that no other process is at, and in the end takes times."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dydit_cli.artifacts.bench import Spread
from dydit_cli.checkpoint.checkpoint import Checkpoint
from dydit_cli.checkpoint.read import read
from dydit_cli.errors import DyditError
from dydit_cli.sampling.options import SamplingConfig
from dydit_cli.sampling.sampler import open_sampler
from dydit_cli.studies.folder import TIMING, StudyFolder
from dydit_cli.studies.measure import Evaluator, measure
from dydit_cli.studies.methods import Start, make
from dydit_cli.studies.recipe import TimingPart
from dydit_cli.studies.rows import PER_ROW, STATIC, Interrupted, OnStage, OnWork, Row, RowWork
from dydit_cli.version import __version__


def time_row(
    static: Checkpoint, model: Checkpoint, row: Row, how: TimingPart, evaluator: Evaluator, work: RowWork
) -> dict[str, Any]:
    """Seconds per image of both, and the static model's over the row's, run by run; medians and quartiles.

    A run draws `how.images` images at once. What it plans and computes ahead belongs to it: each begins with a new model.
    """
    whole = Row(STATIC, 1.0, row.seed)
    pair = [(static, evaluator.drawing(whole, how.images)), (model, evaluator.drawing(row, how.images))]
    total = (2 * how.repeats + 2) * how.images * evaluator.how.settings.steps
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


def _run(checkpoint: Checkpoint, drawing: SamplingConfig, images: int, advance: Callable[[int], None]) -> float:
    image_sampler = open_sampler(checkpoint, drawing)
    start = time.perf_counter()
    image_sampler.samples(0, images)  # ends on the cpu, so nothing is under way after it
    seconds = time.perf_counter() - start
    advance(images * drawing.settings.steps)
    return seconds


def _values(spread: Spread) -> dict[str, float]:
    return {"median": spread.median, "low": spread.low, "high": spread.high}


@dataclass(frozen=True)
class Runner:
    """The rows, what they begin with and are measured with, where they are written, and who is told."""

    start: Start
    evaluator: Evaluator
    folder: StudyFolder
    rows: list[Row]
    on_stage: OnStage
    on_work: OnWork
    should_stop: Callable[[], bool]

    def run_rows(self, on_row: Callable[[], object]) -> None:
        """Goes over the rows again while there was one to run, for those that another process left; `on_row` hears of
        each. Raises `Interrupted` where it was asked to stop."""
        todo = []
        for row in self.rows:
            if not self.folder.done(row):
                todo.append(row)
            else:
                self.folder.tidy(row, self._keeps(row))  # a kill may have come between
        if todo:
            self.on_stage("study", len(todo), "rows", PER_ROW)
        ran = True
        while ran:
            ran = False
            for row in list(todo):
                with self.folder.claim(row.name) as mine:
                    if not mine:
                        continue
                    todo.remove(row)
                    work = self._work(row.name)
                    if not self.folder.done(row):
                        self.run_row(row, work)
                        ran = True
                        on_row()
                    work.finish()

    def run_row(self, row: Row, work: RowWork) -> None:
        """Makes and measures one row, and writes it."""
        if self.should_stop():
            raise Interrupted
        try:
            made = make(row, self.start, self.folder, work, self.should_stop)
            measured = measure(made.checkpoint, row, self.evaluator, work)
        except DyditError as error:
            raise DyditError(f"{row.name}: {error}") from None
        values = {
            "format": "dydit-study-row",
            "method": row.method,
            "target": row.target,
            "seed": row.seed,
            **measured.values,
            **made.facts,
            "device": self.start.device,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "dydit": __version__,
        }
        self.folder.write(row, values, measured.samples[: self.evaluator.how.kept] if self._first(row) else None)
        self.folder.tidy(row, self._keeps(row))

    def take_times(self) -> None:
        """Takes the times that are not there yet, in this process alone: two would disturb each other."""
        with self.folder.claim(TIMING) as mine:
            todo = [row for row in self.rows if self._first(row) and self.folder.time(row) is None]
            if not mine or not todo:
                return
            self.on_stage("time", len(todo), "rows", PER_ROW)
            for row in todo:
                static = self.start.checkpoint
                model = static if row.tuning is None else read(self.folder.checkpoint(row))
                work = self._work(row.what)
                values = time_row(static, model, row, self.start.recipe.timing, self.evaluator, work)
                self.folder.write_time(row, values)
                work.finish()

    def _first(self, row: Row) -> bool:
        """Whether it is of the seed whose samples and checkpoints are kept and whose times are taken."""
        return row.seed == self.start.recipe.seeds[0]

    def _keeps(self, row: Row) -> bool:
        return self.start.recipe.keep_checkpoints or self._first(row)

    def _work(self, name: str) -> RowWork:
        return RowWork(name, self.on_work, self.should_stop)
