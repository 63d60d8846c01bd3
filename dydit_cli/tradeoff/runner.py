"""Runs the rows of a study that are not done and that no other process is at, and in the end takes times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

import dydit_cli
from dydit_cli.checkpoint.read import read
from dydit_cli.errors import DyditError
from dydit_cli.tradeoff.folder import TIMING, StudyFolder
from dydit_cli.tradeoff.measure import Yardstick, measure
from dydit_cli.tradeoff.methods import Start, make
from dydit_cli.tradeoff.progress import PER_ROW, Interrupted, OnStage, OnWork, RowWork
from dydit_cli.tradeoff.rows import Row
from dydit_cli.tradeoff.timing import time_row


@dataclass(frozen=True)
class Runner:
    """The rows, what they begin with and are measured with, where they are written, and who is told."""

    start: Start
    yardstick: Yardstick
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
            measured = measure(made.checkpoint, row, self.yardstick, work)
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
            "dydit": dydit_cli.__version__,
        }
        self.folder.write(row, values, measured.samples[: self.yardstick.how.kept] if self._first(row) else None)
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
                values = time_row(static, model, row, self.start.recipe.timing, self.yardstick, work)
                self.folder.write_time(row, values)
                work.finish()

    def _first(self, row: Row) -> bool:
        """Whether it is of the seed whose samples and checkpoints are kept and whose times are taken."""
        return row.seed == self.start.recipe.seeds[0]

    def _keeps(self, row: Row) -> bool:
        return self.start.recipe.keep_checkpoints or self._first(row)

    def _work(self, name: str) -> RowWork:
        return RowWork(name, self.on_work, self.should_stop)
